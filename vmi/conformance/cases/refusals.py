# SPDX-License-Identifier: GPL-2.0-only
"""Frames that IRET refuses, debug registers by two numbers, and what of an argument does not count."""

from __future__ import annotations

from vmi.abi import LazyMode, Reloc
from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.cases.control import second_tables
from vmi.conformance.layout import (
    CODE0,
    CODE3,
    DATA0,
    DATA3,
    FREE_SELECTOR,
    GDT,
    KERNEL_STACK,
    LDT,
    PAGE_TABLES,
    SCRATCH,
    STACK,
    TASK,
    TSS,
    USER,
    USER_END,
    USER_STACK,
    WORDS,
    control,
    descriptor,
)
from vmi.conformance.rig import Called, Rig, Unfit, fill
from vmi.x86 import Cr0

_NP, _SS, _GP = 11, 12, 13
_HIGH = 0xABCD0000
_NOBODY = 0xE4  # a port that nothing answers
_INT30, _INT_END = b"\xcd\x30", bytes((0xCD, USER_END))
_CODE, _DATA = 0xFA, 0xF2  # of level 3, present
_PRESENT = 0x80


def _iret(rig: Rig, cs: int, ss: int) -> Called:
    """IRET to user code with these selectors, whose fault ends the run."""
    rig.need("IRET")
    kind, target = rig.entry("IRET")
    at = rig.labels["iret_site"]
    rig.write(USER, _INT30 + _INT_END)
    rig.jump_to(at, target, call=kind is Reloc.CALL_REL)
    rig.put(STACK - 20, USER, cs, 0x202, USER_STACK, ss)
    rig.resume_at("done")
    return rig.start(at, esp=STACK - 20, **fill(0))


def _refused(rig: Rig, found: Findings, cs: int, ss: int, vector: int, error: int) -> None:
    done = _iret(rig, cs, ss)
    found.equal(f"events of a return to CS {cs:#x} and SS {ss:#x}", done.faults, [(vector, error)])
    frame = [rig.word(STACK - 20 + 4 * n) for n in range(5)]
    found.equal("the frame", frame, [USER, cs, 0x202, USER_STACK, ss])


@case("IRET", "fault, code segments", 7, 8)
def bad_code_segments(rig: Rig, found: Findings) -> None:
    """Null, no code, another level, beyond the table, not present: each has its vector and error code."""
    rig.write(GDT + FREE_SELECTOR, descriptor(0, 0xFFFFF, _CODE & ~_PRESENT))
    for cs, vector, error in (
        (0, _GP, 0),
        (3, _GP, 0),
        (DATA3, _GP, DATA3 & ~3),
        (TASK | 3, _GP, TASK),
        (CODE0 | 3, _GP, CODE0),
        (0x803, _GP, 0x800),
        (0xF, _GP, 0xC),
        (FREE_SELECTOR | 3, _NP, FREE_SELECTOR),
    ):
        _refused(rig, found, cs, DATA3, vector, error)


@case("IRET", "fault, stack segments", 9)
def bad_stack_segments(rig: Rig, found: Findings) -> None:
    """Null, read-only, of the kernel's level, code."""
    rig.write(GDT + FREE_SELECTOR + 8, descriptor(0, 0xFFFFF, 0xF0))
    for ss, vector, error in (
        (0, _GP, 0),
        (3, _GP, 0),
        (DATA0, _GP, DATA0),
        (DATA0 | 3, _GP, DATA0),
        (CODE3, _GP, CODE3 & ~3),
        (FREE_SELECTOR + 8 | 3, _GP, FREE_SELECTOR + 8),
    ):
        _refused(rig, found, CODE3, ss, vector, error)


@case("IRET", "fault, no stack segment", 10)
def absent_stack_segment(rig: Rig, found: Findings) -> None:
    """Not present: #SS with the selector."""
    if not rig.deprivileged:
        raise Unfit("without a hypervisor it is up to the processor, and emulated ones raise #NP")
    rig.write(GDT + FREE_SELECTOR, descriptor(0, 0xFFFFF, _DATA & ~_PRESENT))
    _refused(rig, found, CODE3, FREE_SELECTOR | 3, _SS, FREE_SELECTOR)


@case("IRET", "fault cured", 11)
def made_again(rig: Rig, found: Findings) -> None:
    """Once the descriptor is present, or the frame says another selector, user code is reached."""
    for cs, ss, access, vector in (
        (FREE_SELECTOR | 3, DATA3, _CODE, _NP),
        (CODE3, FREE_SELECTOR | 3, _DATA, _SS),
        (0, DATA3, _CODE, _GP),
    ):
        rig.write(GDT + FREE_SELECTOR, descriptor(0, 0xFFFFF, access & ~_PRESENT))
        frame = _iret(rig, cs, ss).first
        found.true(
            frame.vector == vector or (vector == _SS and not rig.deprivileged),
            f"the vector must be {vector}, but it is {frame.vector}",
        )
        rig.write(GDT + FREE_SELECTOR, descriptor(0, 0xFFFFF, access))
        rig.put(STACK - 16, cs or FREE_SELECTOR | 3)
        registers = {name: getattr(frame, name) for name in fill(0)}
        rig.set_off(frame.eip, esp=frame.handler_esp + 20, **registers)
        done = rig.arrive()
        found.equal("vectors of the return made again", done.vectors, [0x30])
        if done.frames:
            got = {name: getattr(done.first, name) for name in fill(0)}
            found.true(got == fill(0), f"user code must have its registers, but it has {got}")
            found.equal("EIP and ESP", (done.first.eip, done.first.esp), (USER + 2, USER_STACK))


@case("SetDR", "4 and 5", 6, more=("VMI-GetDR-05",))
def other_numbers(rig: Rig, found: Findings) -> None:
    """Without CR4.DE, 4 is 6 and 5 is 7, for writing and for reading."""
    rig.value("SetDR", eax=4, edx=0x400F)
    found.equal("DR6", rig.value("GetDR", eax=6) & 0xE00F, 0x400F)
    rig.value("SetDR", eax=5, edx=0x20400)
    found.equal("DR7", rig.value("GetDR", eax=7), 0x20400)
    found.equal("DR5", rig.value("GetDR", eax=5), 0x20400)
    rig.value("SetDR", eax=6, edx=0)
    found.equal("DR4", rig.value("GetDR", eax=4) & 0xE00F, 0)


for _width in "LBW":
    for _direction in ("IN", "OUT"):

        @case(f"{_direction}{_width}", "port in 16 bits", 5)
        def port_in_16_bits(rig: Rig, found: Findings, name: str = f"{_direction}{_width}") -> None:
            """The upper half of EDX changes nothing."""
            results = []
            for high in (0, _HIGH):
                done = rig.call(name, eax=0x11223344, edx=high | _NOBODY)
                found.equal("EDX", done.registers["edx"], high | _NOBODY)
                results.append((done.registers["eax"], done.vectors))
            found.equal("EAX and events", results[1], results[0])

        @case(f"{_direction}S{_width}", "port in 16 bits", 7)
        def string_port_in_16_bits(rig: Rig, found: Findings, name: str = f"{_direction}S{_width}") -> None:
            """The upper half of EDX changes nothing."""
            results = []
            for high in (0, _HIGH):
                rig.write(SCRATCH, bytes(64))
                done = rig.call(name, edi=SCRATCH, esi=SCRATCH, edx=high | _NOBODY, ecx=3)
                registers = {each: done.registers[each] for each in ("esi", "edi", "ecx")}
                results.append((rig.read(SCRATCH, 64), registers, done.vectors))
            found.equal("memory, registers and events", results[1], results[0])


@case("SetLDT", "selector in 16 bits", 8)
def ldt_in_16_bits(rig: Rig, found: Findings) -> None:
    """The upper half of EAX changes nothing."""
    for selector in (LDT, 0):
        done = rig.call("SetLDT", eax=_HIGH | selector)
        found.equal("events", done.faults, [])
        found.equal("LDT", rig.value("GetLDT"), selector)


@case("SetTR", "selector in 16 bits", 8)
def task_in_16_bits(rig: Rig, found: Findings) -> None:
    """The upper half of EAX changes nothing."""
    rig.write(GDT + FREE_SELECTOR, descriptor(TSS, 0x2067, 0x89, 0))
    done = rig.call("SetTR", eax=_HIGH | FREE_SELECTOR)
    found.equal("events", done.faults, [])
    found.equal("TR", rig.value("GetTR"), FREE_SELECTOR)


@case("UpdateKernelStack", "selector in 16 bits", 5)
def stack_in_16_bits(rig: Rig, found: Findings) -> None:
    """The upper half of EAX changes nothing."""
    rig.need("UpdateKernelStack")
    esp0 = KERNEL_STACK - 0x60
    rig.value("UpdateKernelStack", eax=_HIGH | DATA0, edx=esp0)
    frame = rig.user(_INT30).first
    found.equal("the stack", frame.handler_esp + 28, esp0)


@case("GetCR0", "lazy", 3)
def lazy_cr0(rig: Rig, found: Findings) -> None:
    """What is queued in CPU mode shows at once."""
    rig.need("SetLazyMode")
    base = control(rig.environment.paging)["CR0"]
    rig.value("SetLazyMode", eax=int(LazyMode.CPU))
    for value in (base | Cr0.TS, base, base | Cr0.TS):
        rig.value("SetCR0", eax=int(value))
        found.equal("CR0", rig.value("GetCR0"), int(value))
    rig.value("CLTS")
    found.equal("CR0 behind CLTS", rig.value("GetCR0"), base)
    rig.value("SetLazyMode", eax=0)


@case("GetCR3", "lazy", 3, paging=PAGED)
def lazy_cr3(rig: Rig, found: Findings) -> None:
    """What is queued in CPU mode shows at once."""
    rig.need("SetLazyMode")
    second = second_tables(rig, rig.environment.paging)
    rig.value("SetLazyMode", eax=int(LazyMode.CPU))
    for root in (second, PAGE_TABLES):
        rig.value("SetCR3", eax=root)
        found.equal("CR3", rig.value("GetCR3"), root)
    rig.value("SetLazyMode", eax=0)
    found.equal("CR3 behind the mode", rig.value("GetCR3"), PAGE_TABLES)


@case("GetLDT", "lazy", 3)
def lazy_ldt(rig: Rig, found: Findings) -> None:
    """What is queued in CPU mode shows at once."""
    rig.need("SetLazyMode")
    rig.value("SetLazyMode", eax=int(LazyMode.CPU))
    for selector in (LDT, 0, LDT):
        rig.value("SetLDT", eax=selector)
        found.equal("LDT", rig.value("GetLDT"), selector)
    rig.value("SetLazyMode", eax=0)
    found.equal("LDT behind the mode", rig.value("GetLDT"), LDT)


@case("RDPMC", "forward", 2)
def counters(rig: Rig, found: Findings) -> None:
    """Two reads of a counter that there is don't go backwards."""
    rig.need("RDPMC")
    rig.resume_at("done")
    first = rig.call("RDPMC", ecx=0)
    rig.put(WORDS["RESUME"], 0)
    if first.frames:
        raise Unfit("the processor has no counter 0")
    second = rig.call("RDPMC", ecx=0)
    found.equal("events", second.faults, [])
    found.true(second.wide >= first.wide, f"it must not go back from {first.wide:#x} to {second.wide:#x}")
