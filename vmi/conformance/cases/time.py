# SPDX-License-Identifier: GPL-2.0-only
"""Counters, alarms and the wall clock."""

from __future__ import annotations

from vmi.abi import AlarmFlag, Counter
from vmi.conformance.case import Findings, case
from vmi.conformance.rig import Called, Rig, Unfit

_REAL, _AVAILABLE, _STOLEN = int(Counter.REAL), int(Counter.AVAILABLE), int(Counter.STOLEN)
_PERIODIC, _LVTT = int(AlarmFlag.PERIODIC), int(AlarmFlag.WIRED_LVTT)
_TIMER = 0x20  # the vector of line 0
_OWN_VECTOR = 0x30
_LVT_TIMER, _SPURIOUS, _APIC_BIT, _MASKED = 0x320, 0xF0, 9, 1 << 16
_TSC, _MSR, _TSC_REGISTER = 4, 5, 0x10
_SHORT = 20_000  # cycles: longer than a call takes, by far


def _counter(rig: Rig, which: int) -> int:
    return rig.call("GetCycleCounter", eax=which).wide


def _hertz(rig: Rig) -> int:
    return rig.call("GetCycleFrequency").wide


def _alarm(rig: Rig, flags: int, expiry: int, period: int = 0) -> Called:
    return rig.call(
        "SetAlarm", period & 0xFFFFFFFF, period >> 32, eax=flags, edx=expiry & 0xFFFFFFFF, ecx=expiry >> 32
    )


def _spin(rig: Rig, cycles: int) -> list[int]:
    """Let the guest run for some time with interrupts on; the vectors that came."""
    seen = len(rig.log())
    rig.value("EnableInterrupts")
    target = _counter(rig, _REAL) + cycles
    while _counter(rig, _REAL) < target:
        rig.go("spin", ecx=500)
    rig.value("DisableInterrupts")
    return [frame.vector for frame in rig.log()[seen:]]


@case("GetCycleFrequency", "constant", 1)
def frequency(rig: Rig, found: Findings) -> None:
    """Not 0, and the same each time."""
    first = _hertz(rig)
    found.true(first > 0, "it must not be 0")
    rig.go("spin", ecx=1000)
    found.equal("the frequency later", _hertz(rig), first)


@case("GetCycleFrequency", "unit", 2, more=("VMI-GetWallclockTime-02",))
def unit(rig: Rig, found: Findings) -> None:
    """The wall clock and the real counter go forward at this rate."""
    rig.need("GetWallclockTime")
    hertz = _hertz(rig)
    wall, real = rig.call("GetWallclockTime").wide, _counter(rig, _REAL)
    rig.go("spin", ecx=200_000)
    wall = rig.call("GetWallclockTime").wide - wall
    real = (_counter(rig, _REAL) - real) * 1_000_000_000 // hertz
    found.true(
        abs(wall - real) <= max(wall, real) // 50 + 1000,
        f"both must have gone forward alike, but the wall clock has by {wall} ns, the counter by {real} ns",
    )


@case("GetCycleCounter", "forward", 1, 2, 3, 4)
def counters(rig: Rig, found: Findings) -> None:
    """No counter goes back, real is available and stolen, and what is no counter reads as 0."""
    found.equal("stolen at first", _counter(rig, _STOLEN), 0)
    last = [0, 0, 0]
    for _ in range(5):
        now = [_counter(rig, which) for which in (_REAL, _AVAILABLE, _STOLEN)]
        later = _counter(rig, _REAL)
        found.true(
            all(a >= b for a, b in zip(now, last, strict=True)), f"no counter may go back: {last}, {now}"
        )
        found.true(
            now[0] <= now[1] + now[2] <= later, f"real must be available and stolen: {now}, then {later}"
        )
        last = now
        rig.go("spin", ecx=1000)
    for which in (3, 0xFF, 0xFFFFFFFF):
        found.equal(f"counter {which:#x}", _counter(rig, which), 0)


@case("GetCycleCounter", "time stamp counter written", 1, 2)
def counter_written(rig: Rig, found: Findings) -> None:
    """Counters go on as they were, and agree, whatever the guest writes to its time stamp counter."""
    rig.need("WRMSR", "GetCycleCounter")
    if not rig.has(_TSC) or not rig.has(_MSR):
        raise Unfit("the processor has no time stamp counter that can be written")
    for high, low in ((0x1234, 0x80000000), (0, 0), (0xFFFF, 0xFFFFFFFF)):
        before = [_counter(rig, which) for which in (_REAL, _AVAILABLE)]
        rig.value("WRMSR", ecx=_TSC_REGISTER, eax=low, edx=high)
        now = [_counter(rig, which) for which in (_REAL, _AVAILABLE)]
        found.true(
            all(0 <= b - a < 1 << 32 for a, b in zip(before, now, strict=True)),
            f"counters must go on as they were, but they were {before}, and are {now}",
        )


@case("GetCycleCounter", "halted", 5, more=("VMI-Halt-04", "VMI-SetAlarm-06"))
def halted(rig: Rig, found: Findings) -> None:
    """Time halted is available; an alarm on the real counter ends it."""
    rig.need("Halt", "SetAlarm")
    rig.go("open_irq0")
    start, stolen = _counter(rig, _AVAILABLE), _counter(rig, _STOLEN)
    _alarm(rig, _REAL, _counter(rig, _REAL) + 10 * _SHORT)
    done = rig.call("Halt")
    found.equal("vectors", done.vectors, [_TIMER])
    found.true(
        _counter(rig, _AVAILABLE) - start >= 9 * _SHORT, "available time must go on while the guest waits"
    )
    found.equal("stolen", _counter(rig, _STOLEN), stolen)


@case("SetAlarm", "once", 1, 4, more=("VMI-CancelAlarm-04",))
def once(rig: Rig, found: Findings) -> None:
    """It comes once, not early; with period 0 also if PERIODIC is said."""
    rig.go("open_irq0")
    for flags in (_REAL, _AVAILABLE, _AVAILABLE | _PERIODIC):
        expiry = _counter(rig, flags & 0xFF) + _SHORT
        _alarm(rig, flags, expiry)
        seen = len(rig.log())
        rig.value("EnableInterrupts")
        while len(rig.log()) == seen and _counter(rig, _REAL) < expiry + 10 * _SHORT:
            rig.go("spin", ecx=200)
        found.equal("vectors", [frame.vector for frame in rig.log()[seen:]], [_TIMER])
        found.true(_counter(rig, flags & 0xFF) >= expiry, "it must not come before its time")
        found.equal("vectors later", _spin(rig, 3 * _SHORT), [])
        found.equal("armed afterwards", rig.value("CancelAlarm", eax=flags & 0xFF), 0)


@case("SetAlarm", "now or past", 1)
def past(rig: Rig, found: Findings) -> None:
    """An expiry that has passed fires as soon as interrupts are on."""
    rig.go("open_irq0")
    for expiry in (0, _counter(rig, _AVAILABLE)):
        _alarm(rig, _AVAILABLE, expiry)
        found.equal("vectors", _spin(rig, _SHORT), [_TIMER])


@case("SetAlarm", "periodic", 2)
def periodic(rig: Rig, found: Findings) -> None:
    """It comes each period; ticks that are missed come as one, and the phase stays."""
    rig.go("open_irq0")
    first = _counter(rig, _AVAILABLE) + _SHORT
    _alarm(rig, _AVAILABLE | _PERIODIC, first, _SHORT)
    count = len(_spin(rig, 5 * _SHORT + _SHORT // 2))
    found.true(4 <= count <= 7, f"about 5 ticks must come in 5 periods, but {count} did")
    while _counter(rig, _REAL) < first + 12 * _SHORT:
        rig.go("spin", ecx=1000)
    seen = len(rig.log())
    rig.value("EnableInterrupts")
    rig.go("spin", ecx=10)
    found.true(len(rig.log()) - seen <= 1, "ticks that were missed must come as one")
    found.equal("armed", rig.value("CancelAlarm", eax=_AVAILABLE), 1)
    found.equal("vectors afterwards", _spin(rig, 3 * _SHORT), [])


@case("SetAlarm", "a long period", 2)
def long_period(rig: Rig, found: Findings) -> None:
    """Both halves of the period count, and nothing above them on the stack."""
    rig.go("open_irq0")
    first = _counter(rig, _AVAILABLE) + _SHORT
    for period, wanted in (([_SHORT, 1], 1), ([_SHORT, 0, 0xFFFFFFFF], 4)):
        expiry = {"edx": first & 0xFFFFFFFF, "ecx": first >> 32}
        rig.value("SetAlarm", *period, eax=_AVAILABLE | _PERIODIC, **expiry)
        count = len(_spin(rig, 5 * _SHORT))
        found.true(min(count, 4) == wanted, f"{wanted} ticks or more must come, but {count} did")
        first = _counter(rig, _AVAILABLE) + _SHORT


@case("SetAlarm", "replaced", 3)
def replaced(rig: Rig, found: Findings) -> None:
    """A second one on a counter replaces the first; each counter has its own."""
    rig.go("open_irq0")
    far = _counter(rig, _AVAILABLE) + 1000 * _SHORT
    _alarm(rig, _AVAILABLE, _counter(rig, _AVAILABLE) + _SHORT)
    _alarm(rig, _AVAILABLE, far)
    found.equal("vectors", _spin(rig, 3 * _SHORT), [])
    _alarm(rig, _REAL, _counter(rig, _REAL) + _SHORT)
    found.equal("vectors of the other counter", _spin(rig, 3 * _SHORT), [_TIMER])
    found.equal("armed", rig.value("CancelAlarm", eax=_AVAILABLE), 1)


@case("SetAlarm", "LVTT", 5)
def by_lvtt(rig: Rig, found: Findings) -> None:
    """With WIRED_LVTT it comes by the vector in the local APIC's timer entry, unless that is masked."""
    if not rig.has(_APIC_BIT):
        raise Unfit("the processor has no local APIC")
    rig.need("APICWrite")
    rig.call("APICWrite", eax=_SPURIOUS, edx=0x1FF)
    for entry, wanted in ((_OWN_VECTOR, [_OWN_VECTOR]), (_OWN_VECTOR | _MASKED, [])):
        rig.call("APICWrite", eax=_LVT_TIMER, edx=entry)
        _alarm(rig, _AVAILABLE | _LVTT, _counter(rig, _AVAILABLE) + _SHORT)
        found.equal(f"vectors with entry {entry:#x}", _spin(rig, 3 * _SHORT), wanted)
        rig.call("APICWrite", eax=0xB0, edx=0)


@case("SetAlarm", "stolen or unknown", 6)
def no_alarm(rig: Rig, found: Findings) -> None:
    """One on the stolen or on no counter does nothing."""
    rig.go("open_irq0")
    for which in (_STOLEN, 3, 0xFF):
        _alarm(rig, which, 0)
        found.equal("vectors", _spin(rig, _SHORT), [])
        found.equal("armed", rig.value("CancelAlarm", eax=which), 0)


@case("CancelAlarm", "armed", 1, 2, 3)
def cancelled(rig: Rig, found: Findings) -> None:
    """It says whether the alarm was armed, which then fires no more; other flags do not matter."""
    rig.go("open_irq0")
    for flags in (_AVAILABLE, _AVAILABLE | _PERIODIC, _AVAILABLE | _LVTT):
        _alarm(rig, _AVAILABLE, _counter(rig, _AVAILABLE) + _SHORT)
        found.equal("armed", rig.value("CancelAlarm", eax=flags), 1)
        found.equal("armed afterwards", rig.value("CancelAlarm", eax=flags), 0)
        found.equal("vectors", _spin(rig, 3 * _SHORT), [])


@case("GetWallclockTime", "since 1970", 1)
def wall_clock(rig: Rig, found: Findings) -> None:
    """Nanoseconds since 1970: between 2000 and 2100."""
    years = rig.call("GetWallclockTime").wide / 1e9 / 31_556_952 + 1970
    found.true(2000 <= years < 2100, f"the year must be one of our time, but it is {years:.1f}")


@case("WallclockUpdated", "no update", 1, 2)
def no_update(rig: Rig, found: Findings) -> None:
    """After it has been asked once, passing time is no update."""
    rig.value("WallclockUpdated")
    rig.go("spin", ecx=10_000)
    found.equal("the answer", rig.value("WallclockUpdated"), 0)
