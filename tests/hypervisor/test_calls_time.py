# SPDX-License-Identifier: GPL-2.0-only
"""Time calls: counters that agree, alarms that reach the guest's interrupt controllers, the time of day."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import Lab, call, exit_value
from tests.native.guest import MS
from vmi.abi import AlarmFlag, Counter
from vmi.native.machine import TSC_HZ
from vmi.rom.flavours import vmware

SLACK = 300  # cycles that a call or two take
NS_PER_CYCLE = 1_000_000_000 // TSC_HZ

# ICW1 to ICW4, all lines but 0 masked; IRQ 0 is vector 40h
PIC = """
        mov al, 0x11
        out 0x20, al
        mov al, 0x40
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xfe
        out 0x21, al
"""
TICK = """
tick:   push eax
        inc dword ptr [0x7000]
        mov al, 0x20
        out 0x20, al
        pop eax
        @iret
"""


def counters(lab: Lab) -> tuple[int, int, int]:
    """Real, available, stolen."""
    values = [call(lab, "GetCycleCounter", eax=counter).registers for counter in Counter]
    real, available, stolen = (value["edx"] << 32 | value["eax"] for value in values)
    return real, available, stolen


def alarm(lab: Lab, counter: int, expiry: int, period: int = 0, flags: int = 0) -> None:
    """SetAlarm."""
    words = (period & 0xFFFFFFFF, period >> 32)
    assert call(
        lab, "SetAlarm", *words, eax=counter | flags, edx=expiry & 0xFFFFFFFF, ecx=expiry >> 32 & 0xFFFFFFFF
    ).returned


def cancel(lab: Lab, flags: int) -> int:
    """CancelAlarm."""
    return call(lab, "CancelAlarm", eax=flags).registers["eax"]


def now(lab: Lab) -> int:
    """Cycles since power-on."""
    return lab.machine.clock.now() // NS_PER_CYCLE


def test_the_frequency_is_that_of_the_time_stamp_counter() -> None:
    lab = Lab("start: nop", mode="paravirt")
    left = call(lab, "GetCycleFrequency").registers
    assert (left["eax"], left["edx"]) == (TSC_HZ, 0)


def test_real_is_available_plus_stolen_and_nothing_is_stolen() -> None:
    lab = Lab("start: jmp start", mode="paravirt")
    before = counters(lab)
    assert before[2] == 0 and before[0] <= before[1] <= before[0] + SLACK
    lab.cpu.eip = lab.labels["start"]
    lab.run(ms=10)
    after = counters(lab)
    assert after[2] == 0 and after[0] <= after[1] <= after[0] + SLACK
    assert after[0] - before[0] == pytest.approx(10 * MS // NS_PER_CYCLE, abs=4 * SLACK)


def test_halted_time_is_available() -> None:
    lab = Lab(f"start: {PIC}\n@halt\nmov al, 1\nout 0xf4, al\n{TICK}", {0x40: "tick"}, "paravirt")
    before = counters(lab)
    alarm(lab, Counter.REAL, now(lab) + 5 * TSC_HZ // 1000)
    lab.cpu.eip = lab.labels["start"]
    assert exit_value(lab) == 1 and lab.u32(0x7000) == 1
    after = counters(lab)
    assert after[2] == 0 and after[1] - before[1] >= 5 * TSC_HZ // 1000


@pytest.mark.parametrize("counter", [3, 0xFF, 0x100, 0xFFFFFFFF])
def test_an_unknown_counter_reads_as_0(counter: int) -> None:
    lab = Lab("start: nop", mode="paravirt")
    left = call(lab, "GetCycleCounter", eax=counter).registers
    assert (left["eax"], left["edx"]) == (0, 0)


def ready() -> Lab:
    """A guest whose interrupt controllers are set up, and that can ``spin`` with interrupts on."""
    source = f"""
    start:  {PIC}
            mov al, 0
            out 0xf4, al
    idle:   jmp idle
    spin:   @sti
    turn:   dec ecx
            jnz turn
            @cli
            mov al, 1
            out 0xf4, al
    {TICK}
    """
    lab = Lab(source, {0x40: "tick"}, "paravirt")
    assert exit_value(lab) == 0
    return lab


def spin(lab: Lab, turns: int) -> int:
    """Let it spin; gives how often the handler has run since the start."""
    lab.cpu.eip, lab.cpu.ecx = lab.labels["spin"], turns
    assert exit_value(lab) == 1
    return lab.u32(0x7000)


def waiting(
    counter: int, expiry: int, period: int = 0, flags: int = 0, *, turns: int = 3000
) -> tuple[Lab, int]:
    """A guest that set an alarm so many cycles from now, and then spun; and how often it was interrupted."""
    lab = ready()
    alarm(lab, counter, now(lab) + expiry, period, flags)
    return lab, spin(lab, turns)


@pytest.mark.parametrize("counter", [Counter.REAL, Counter.AVAILABLE])
def test_an_alarm_interrupts_once(counter: Counter) -> None:
    lab, ticks = waiting(counter, 1000)
    assert ticks == 1
    assert cancel(lab, counter) == 0, "it has fired"


def test_it_fires_no_earlier_than_it_should() -> None:
    lab = ready()
    due = now(lab) + 1000
    alarm(lab, Counter.REAL, due)
    lab.cpu.eip, lab.cpu.ecx = lab.labels["spin"], 3000
    while lab.u32(0x7000) == 0:
        lab.machine.run(NS_PER_CYCLE)
        assert lab.u32(0x7000) == 0 or now(lab) >= due
    assert now(lab) < due + SLACK


@pytest.mark.parametrize("expiry", [-50, 0])
def test_an_alarm_that_is_due_fires_at_once(expiry: int) -> None:
    assert waiting(Counter.REAL, expiry, turns=3)[1] == 1


@pytest.mark.parametrize("flags", [0, AlarmFlag.PERIODIC])
def test_a_period_counts_only_where_it_is_meant(flags: int) -> None:
    assert waiting(Counter.REAL, 1000, 0 if flags else 900, flags)[1] == 1


def test_a_periodic_alarm_keeps_its_phase_and_drops_missed_ticks() -> None:
    lab = ready()
    first = now(lab) + 1000
    alarm(lab, Counter.REAL, first, 500, AlarmFlag.PERIODIC)
    ticks = spin(lab, 3000)
    assert ticks == 1 + (now(lab) - first) // 500
    lab.cpu.eip = lab.labels["idle"]
    lab.machine.run(100 * MS)  # interrupts are off: all of these fall together
    slept = now(lab)
    assert spin(lab, 3000) - ticks == pytest.approx(1 + (now(lab) - slept) // 500, abs=1)
    assert lab.domain is not None
    due = lab.domain.timer.alarms[Counter.REAL]
    assert (due - first) % 500 == 0 and due > now(lab)
    assert cancel(lab, Counter.REAL | 0xABCD00) == 1 and cancel(lab, Counter.REAL) == 0


def test_an_expiry_long_past_does_not_fire_for_each_period_missed() -> None:
    assert waiting(Counter.REAL, -(10**6), 5000, AlarmFlag.PERIODIC, turns=300)[1] <= 2


def test_setting_again_replaces_and_the_two_alarms_are_two() -> None:
    lab = ready()
    alarm(lab, Counter.REAL, now(lab) + 1000)
    alarm(lab, Counter.REAL, now(lab) + 1200)
    alarm(lab, Counter.AVAILABLE, now(lab) + 3000)
    assert spin(lab, 3000) == 2


def test_a_cancelled_alarm_does_not_fire() -> None:
    lab = ready()
    alarm(lab, Counter.REAL, now(lab) + 1000)
    assert (cancel(lab, Counter.AVAILABLE), cancel(lab, Counter.REAL), cancel(lab, Counter.REAL)) == (0, 1, 0)
    assert spin(lab, 3000) == 0


@pytest.mark.parametrize("flags", [Counter.STOLEN, 3, 0xFF])
def test_alarms_that_can_not_be(flags: int) -> None:
    """On the stolen or an unknown counter."""
    lab, ticks = waiting(flags & 0xFF, 100, 100, AlarmFlag.PERIODIC | flags & ~0xFF)
    assert ticks == 0 and cancel(lab, flags) == 0


def test_an_alarm_wired_to_an_apic_that_does_not_exist() -> None:
    """Armed like any other, and never heard of."""
    lab, ticks = waiting(Counter.REAL, 100, 100, AlarmFlag.PERIODIC | AlarmFlag.WIRED_LVTT)
    assert ticks == 0 and (cancel(lab, Counter.REAL), cancel(lab, Counter.REAL)) == (1, 0)


def test_the_farthest_alarm_is_far() -> None:
    lab, ticks = waiting(Counter.REAL, (1 << 64) - 1 - 100_000)
    assert ticks == 0 and cancel(lab, Counter.REAL) == 1


def test_an_alarm_waits_behind_the_mask_of_the_interrupt_controller() -> None:
    source = f"""
    start:  {PIC}
            mov al, 0xff
            out 0x21, al
            @sti
            mov ecx, 500
    spin:   dec ecx
            jnz spin
            mov edx, [0x7000]
            mov al, 0xfe
            out 0x21, al
            nop
            @cli
            mov al, 1
            out 0xf4, al
    {TICK}
    """
    lab = Lab(source, {0x40: "tick"}, "paravirt")
    alarm(lab, Counter.REAL, now(lab) + 300)
    lab.cpu.eip = lab.labels["start"]
    assert exit_value(lab) == 1 and (lab.cpu.edx, lab.u32(0x7000)) == (0, 1)


def test_the_alarm_shares_its_line_with_the_timer_chip() -> None:
    """Channel 0 in mode 2, as firmware leaves it: its output is high nearly always."""
    source = f"""
    start:  mov al, 0x34
            out 0x43, al
            mov al, 0
            out 0x40, al
            out 0x40, al
            {PIC}
            @sti
            mov ecx, 3000
    spin:   dec ecx
            jnz spin
            @cli
            mov al, 1
            out 0xf4, al
    {TICK}
    """
    lab = Lab(source, {0x40: "tick"}, "paravirt")
    alarm(lab, Counter.REAL, now(lab) + 2000)
    lab.cpu.eip = lab.labels["start"]
    assert exit_value(lab) == 1 and lab.u32(0x7000) == 1


def test_the_time_of_day_is_that_of_the_clock_chip_at_power_on() -> None:
    lab = Lab("start: jmp start", mode="paravirt")

    def wall() -> int:
        left = call(lab, "GetWallclockTime").registers
        return left["edx"] << 32 | left["eax"]

    assert wall() == pytest.approx(lab.machine.epoch * 1_000_000_000, abs=10_000)
    before, real = wall(), counters(lab)[0]
    lab.cpu.eip = lab.labels["start"]
    lab.run(ms=7)
    assert wall() - before == pytest.approx((counters(lab)[0] - real) * NS_PER_CYCLE, abs=2000)
    assert call(lab, "WallclockUpdated", eax=5).registers["eax"] == 0


def test_pending_tells_of_an_alarm_while_interrupts_are_off() -> None:
    lab = Lab(f"start: {PIC}\nspin: jmp spin\n{TICK}", {0x40: "tick"}, "paravirt")
    alarm(lab, Counter.REAL, now(lab) + 1000)
    lab.cpu.eip = lab.labels["start"]
    lab.run(ms=1)
    assert lab.word(vmware.PENDING) == 1 and lab.u32(0x7000) == 0
