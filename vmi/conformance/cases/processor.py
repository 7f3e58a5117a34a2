# SPDX-License-Identifier: GPL-2.0-only
"""What the processor says of itself, its model-specific registers, and its counters."""

from __future__ import annotations

import itertools

from vmi.conformance.case import Findings, case
from vmi.conformance.layout import Paging, control
from vmi.conformance.rig import Rig, Unfit
from vmi.x86 import Cr4

_PSE, _TSC, _MSR, _PAE, _APIC, _SEP, _PGE = 3, 4, 5, 6, 9, 11, 13
_GP = 13
_TIMES = 8  # that a loop is run whose time is taken
_SYSENTER_CS, _SYSENTER_EIP, _NO_SUCH = 0x174, 0x176, 0x00BADBAD


def _leaf(rig: Rig, number: int) -> dict[str, int]:
    return rig.call("CPUID", eax=number, ecx=0).registers


def _need(rig: Rig, bit: int, what: str) -> None:
    if not rig.has(bit):
        raise Unfit(f"the processor has no {what}")


@case("CPUID", "leaf 0", 1, 5)
def leaf_0(rig: Rig, found: Findings) -> None:
    """The highest leaf and a name of 12 printable characters."""
    answer = _leaf(rig, 0)
    found.true(
        1 <= answer["eax"] < 0x100, f"the highest leaf must be a small number, but it is {answer['eax']:#x}"
    )
    name = b"".join(answer[register].to_bytes(4, "little") for register in ("ebx", "edx", "ecx"))
    found.true(
        all(32 <= byte < 127 for byte in name), f"the vendor's name must be printable, but it is {name!r}"
    )
    found.equal("the same leaf again", _leaf(rig, 0)["ebx"], answer["ebx"])


@case("CPUID", "SEP", 2)
def sysenter(rig: Rig, found: Findings) -> None:
    """If it promises SYSENTER, its three registers can be written and read."""
    _need(rig, _SEP, "SYSENTER")
    for msr in range(_SYSENTER_CS, _SYSENTER_EIP + 1):
        done = rig.call("WRMSR", ecx=msr, eax=0x1000 + msr, edx=0)
        found.equal("events of WRMSR", done.faults, [])
        found.equal(f"MSR {msr:#x}", rig.value("RDMSR", ecx=msr), 0x1000 + msr)


@case("CPUID", "PSE, PAE, PGE", 3)
def cr4_bits(rig: Rig, found: Findings) -> None:
    """What it promises can be set in CR4; PAE only where paging is off or PAE already."""
    base = control(rig.environment.paging)["CR4"]
    for bit, flag in ((_PSE, Cr4.PSE), (_PGE, Cr4.PGE), (_PAE, Cr4.PAE)):
        if not rig.has(bit) or (bit == _PAE and rig.environment.paging in (Paging.TWO_LEVEL, Paging.PSE)):
            continue
        done = rig.call("SetCR4", eax=base | flag)
        found.equal("events of SetCR4", done.faults, [])
        found.equal("CR4", rig.value("GetCR4"), base | flag)


@case("WRMSR", "read back", 1, 3, more=("VMI-RDMSR-01",))
def msr_read_back(rig: Rig, found: Findings) -> None:
    """All 64 bits of a register come back, high half in EDX; its neighbours keep theirs."""
    _need(rig, _SEP, "SYSENTER, whose registers would do")
    rig.call("WRMSR", ecx=_SYSENTER_CS + 1, eax=0x55, edx=0)
    rig.call("WRMSR", ecx=_SYSENTER_EIP, eax=0x89ABCDEF, edx=0)
    done = rig.call("RDMSR", ecx=_SYSENTER_EIP, edx=0xFFFFFFFF)
    found.equal("EDX:EAX", (done.registers["edx"], done.registers["eax"]), (0, 0x89ABCDEF))
    found.equal("its neighbour", rig.value("RDMSR", ecx=_SYSENTER_CS + 1), 0x55)


@case("WRMSR", "no such register", 2, more=("VMI-RDMSR-02",))
def no_such_msr(rig: Rig, found: Findings) -> None:
    """A register that no processor has raises #GP with error code 0, and registers are as before."""
    for call in ("RDMSR", "WRMSR"):
        rig.resume_at("done")
        done = rig.call(call, ecx=_NO_SUCH, eax=1, edx=2, ebx=3)
        found.equal(f"events of {call}", done.faults, [(_GP, 0)])
        frame = done.first if done.frames else None
        got = None if frame is None else (frame.eax, frame.ecx, frame.edx, frame.ebx)
        found.equal("EAX, ECX, EDX, EBX in the handler", got, (1, _NO_SUCH, 2, 3))


@case("RDPMC", "no counter", 1)
def no_counter(rig: Rig, found: Findings) -> None:
    """A counter that the guest does not have raises #GP."""
    if not rig.deprivileged:
        raise Unfit("without a hypervisor it is up to the processor, and emulated ones raise #UD")
    for counter in (0x12345, 0x80000000, 0xFFFFFFFF):
        rig.resume_at("done")
        done = rig.call("RDPMC", ecx=counter)
        found.equal(f"events of counter {counter:#x}", done.faults, [(_GP, 0)])


def _tsc(rig: Rig) -> int:
    return rig.call("RDTSC").wide


@case("RDTSC", "forward", 1, 3)
def time_stamp(rig: Rig, found: Findings) -> None:
    """It goes forward, and further when the guest runs longer."""
    _need(rig, _TSC, "time stamp counter")
    values, counts = [_tsc(rig)], (*[1] * _TIMES, 10, 1000, *[100_000] * _TIMES)
    for count in counts:
        rig.go("spin", ecx=count)
        values.append(_tsc(rig))
    steps = [later - earlier for earlier, later in itertools.pairwise(values)]
    found.true(
        all(step > 0 for step in steps), f"each value must be above the one before, but steps are {steps}"
    )
    # where time is the host's, stopping and going on takes more of it than most of these loops
    short, long = min(steps[:_TIMES]), min(steps[-_TIMES:])
    found.true(long > short, f"it must follow what the guest runs, but steps are {steps}")


@case("RDTSC", "TSD", 2)
def time_stamp_disabled(rig: Rig, found: Findings) -> None:
    """With CR4.TSD the kernel still reads it."""
    _need(rig, _TSC, "time stamp counter")
    rig.value("SetCR4", eax=rig.value("GetCR4") | Cr4.TSD)
    done = rig.call("RDTSC")
    found.equal("events", done.faults, [])
