# SPDX-License-Identifier: GPL-2.0-only
"""Interrupts that arrive in calls about the interrupt flag, on the ways back, and in batches."""

from __future__ import annotations

from collections.abc import Callable

from vmi.abi import LazyMode, Reloc, UpdateFlag
from vmi.conformance.arrivals import LINE, VECTOR, arrivals, flag, in_rom, kernel_cs
from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.layout import (
    CODE3,
    DATA3,
    FREE_PAGES,
    IDT,
    STACK,
    USER,
    USER_END,
    USER_STACK,
    WORDS,
    Paging,
    entry_address,
    gate,
)
from vmi.conformance.rig import Rig, Unfit, branch, fill
from vmi.memory import PAGE_SIZE
from vmi.x86 import Eflags

_IF = int(Eflags.IF)
_SEP = 11  # CPUID
_SECOND_LINE, _SECOND_VECTOR = 5, 0x25
_OPEN_BOTH = b"\xb0\xdd\xe6\x21"  # mov al, 0ddh; out 21h, al: lines 1 and 5
_INT30, _INT_END = b"\xcd\x30", bytes((0xCD, USER_END))
_HANDLER = FREE_PAGES + 30 * PAGE_SIZE
_ARITHMETIC = 0xED5  # flags that user code may have as it likes, and IF


def _flag_call(rig: Rig, name: str, *, on: bool, **registers: int) -> Callable[[], None]:
    """Sets the guest off to a call that changes the interrupt flag, with interrupts on or off."""
    rig.need(name)

    def prepare() -> None:
        rig.go("open_irq1")
        rig.value("EnableInterrupts" if on else "DisableInterrupts")
        rig.set_off_to(rig.entry(name)[1], **{**fill(0), **registers})

    return prepare


@case("Interrupt", "switched on", 12)
def switched_on(rig: Rig, found: Findings) -> None:
    """Arriving in a call that switches interrupts on, it is handled once, and registers survive."""
    for name, registers in (("EnableInterrupts", {}), ("SetInterruptMask", {"eax": _IF})):
        wanted = {**fill(0), **registers}
        for arrival in arrivals(rig, _flag_call(rig, name, on=False, **registers)):
            done, where = arrival.done, arrival.where
            found.equal(f"vectors of {name}, interrupted {where}", done.vectors, [VECTOR])
            found.equal(f"IF behind {name}", done.registers["eflags"] & _IF, _IF)
            found.true(
                all(done.registers[register] == value for register, value in wanted.items()),
                f"every register must survive {name}, interrupted {where}",
            )
            for frame in done.frames:
                found.equal(f"IF in the frame of one {where}", flag(frame), _IF)
                found.true(
                    frame.eip == rig.labels["done"] or in_rom(rig, frame),
                    f"it must come by the end of {name}, but EIP is {frame.eip:#x}",
                )


@case("Interrupt", "switched off", 13)
def switched_off(rig: Rig, found: Findings) -> None:
    """Arriving in a call that switches interrupts off, it comes with them on or waits, and comes once."""
    for name, registers in (("DisableInterrupts", {}), ("SetInterruptMask", {"eax": 0})):
        for arrival in arrivals(rig, _flag_call(rig, name, on=True, **registers)):
            done, where = arrival.done, arrival.where
            found.true(done.returned, f"{name} must return, interrupted {where}")
            for frame in done.frames:
                found.equal(f"IF in the frame of one {where}", flag(frame), _IF)
            found.equal(f"IF behind {name}, interrupted {where}", done.registers["eflags"] & _IF, 0)
            later = rig.go("spin", ecx=20)
            found.equal(f"vectors with interrupts off, after one {where}", later.vectors, [])
            vectors = [*done.vectors, *rig.call("EnableInterrupts").vectors]
            found.equal(f"vectors of one {where}, in all", vectors, [VECTOR])


def _iret(rig: Rig, frame: tuple[int, ...], *, on: bool) -> Callable[[], None]:
    """Sets the guest off to IRET with a frame."""
    rig.need("IRET")
    kind, target = rig.entry("IRET")

    def prepare() -> None:
        rig.go("open_irq1")
        rig.value("EnableInterrupts" if on else "DisableInterrupts")
        at, esp = rig.labels["iret_site"], STACK - 4 * len(frame)
        rig.jump_to(at, target, call=kind is Reloc.CALL_REL)
        rig.put(esp, *frame)
        rig.set_off(at, esp=esp, **fill(0))

    return prepare


@case("Interrupt", "IRET to the kernel", 14, 15)
def iret_to_kernel(rig: Rig, found: Findings) -> None:
    """With IF in the frame it is handled once, without it waits; the target has the frame's flags."""
    cs, target = kernel_cs(rig), rig.labels["done"]
    for on, flags in ((False, 0xAD7), (True, 0xAD7), (False, 0x8D7), (True, 0x8D7)):
        for arrival in arrivals(rig, _iret(rig, (target, cs, flags), on=on)):
            done, where = arrival.done, arrival.where
            found.true(done.returned, f"the target must be reached, interrupted {where}")
            found.equal(
                f"flags, interrupted {where}", done.registers["eflags"] & _ARITHMETIC, flags & _ARITHMETIC
            )
            found.equal(f"ESP, interrupted {where}", done.registers["esp"], STACK)
            found.true(
                all(done.registers[name] == value for name, value in fill(0).items()),
                f"every register must reach the target, interrupted {where}",
            )
            for frame in done.frames:
                found.equal(f"CS in the frame {where}", frame.cs, cs)
                found.equal(f"IF in the frame {where}", flag(frame), _IF)
            if flags & _IF:
                found.equal(f"vectors of one {where}", done.vectors, [VECTOR])
            else:
                later = rig.call("EnableInterrupts").vectors
                found.equal(f"vectors of one {where}, in all", [*done.vectors, *later], [VECTOR])
                found.true(on or not done.frames, f"with interrupts off one {where} must wait")


def _handled(rig: Rig) -> tuple[int, ...]:
    """Where a system call has reached the kernel, interrupts off, which is no more what a case is about."""
    return rig.labels["v48"], rig.labels["done"]


@case("Interrupt", "IRET to user code", 14, 16)
def iret_to_user(rig: Rig, found: Findings) -> None:
    """It comes before the frame is taken, or to user code with user code's state; both go on."""
    frame = (USER, CODE3, 0x2D7, USER_STACK, DATA3)
    go = _iret(rig, frame, on=False)

    def prepare() -> None:
        rig.write(USER, _INT30 + _INT_END)
        go()

    for arrival in arrivals(rig, prepare, until=_handled(rig)):
        done, where = arrival.done, arrival.where
        found.equal(f"vectors, interrupted {where}", sorted(done.vectors), [VECTOR, 0x30])
        for event in done.frames:
            if event.cs & 3 == 3:
                found.equal(
                    f"CS and SS in a frame, interrupted {where}", (event.cs, event.ss), (CODE3, DATA3)
                )
                found.equal(f"ESP in a frame, interrupted {where}", event.esp, USER_STACK)
                found.equal(f"flags in a frame, interrupted {where}", event.eflags & _ARITHMETIC, 0x2D5)
                got = {name: getattr(event, name) for name in fill(0)}
                found.true(got == fill(0), f"user code must have its registers, interrupted {where}: {got}")


@case("Interrupt", "SYSEXIT", 17)
def sysexit(rig: Rig, found: Findings) -> None:
    """It comes to user code, never in the kernel once its stack is gone, and user code goes on."""
    if not rig.has(_SEP):
        raise Unfit("the processor has no SYSEXIT")
    rig.need("SYSEXIT")
    values = {"eax": 1, "ebx": 2, "esi": 3, "edi": 4, "ebp": 5}

    def prepare() -> None:
        rig.call("WRMSR", ecx=0x174, eax=0x08, edx=0)
        rig.write(USER, _INT30 + _INT_END)
        rig.go("open_irq1")
        rig.value("DisableInterrupts")
        rig.set_off_to(rig.entry("SYSEXIT")[1], edx=USER, ecx=USER_STACK - 8, **values)

    for arrival in arrivals(rig, prepare, until=_handled(rig)):
        done, where = arrival.done, arrival.where
        found.equal(f"vectors, interrupted {where}", sorted(done.vectors), [VECTOR, 0x30])
        for event in done.frames:
            user = event.eip in range(USER, USER + 5)
            found.true(user, f"one {where} must come to user code, but EIP is {event.eip:#x}")
            found.equal(
                f"level and IF in a frame, interrupted {where}", (event.cs & 3, flag(event)), (3, _IF)
            )
            found.equal(f"ESP in a frame, interrupted {where}", event.esp, USER_STACK - 8)
            got = {name: getattr(event, name) for name in values}
            found.true(got == values, f"user code must have {values}, interrupted {where}, but has {got}")


@case("Interrupt", "Halt", 18)
def halt(rig: Rig, found: Findings) -> None:
    """At whatever instruction of it an interrupt arrives, it is handled once and the call returns."""
    for arrival in arrivals(rig, _flag_call(rig, "Halt", on=False)):
        done, where = arrival.done, arrival.where
        found.equal(f"vectors of one {where}", done.vectors, [VECTOR])
        found.true(done.returned, f"Halt must return, interrupted {where}")
        found.equal(f"IF behind it, interrupted {where}", done.registers["eflags"] & _IF, _IF)
        found.equal(f"ESP behind it, interrupted {where}", done.registers["esp"], STACK)


@case("Interrupt", "two of them", 19)
def two(rig: Rig, found: Findings) -> None:
    """Two that arrive in one call are both handled once, the one of higher priority first."""

    def prepare() -> None:
        rig.write(FREE_PAGES, _OPEN_BOTH)
        rig.jump_to(FREE_PAGES + len(_OPEN_BOTH), rig.labels["done"], call=False)
        rig.start(FREE_PAGES)
        rig.value("DisableInterrupts")
        rig.subject.interrupt(_SECOND_LINE)
        rig.set_off_to(rig.entry("EnableInterrupts")[1], **fill(0))

    until = (rig.labels[f"v{_SECOND_VECTOR}"],)
    for arrival in arrivals(rig, prepare, line=LINE, until=until):
        done, where = arrival.done, arrival.where
        found.equal(f"vectors, the second of them {where}", sorted(done.vectors), [VECTOR, _SECOND_VECTOR])
        if arrival.registers["eip"] == rig.labels["site"]:
            order = [frame.vector for frame in done.frames if frame.eip != rig.labels[f"v{_SECOND_VECTOR}"]]
            found.equal(f"which comes first, the second of them {where}", order, [VECTOR, _SECOND_VECTOR])
        found.true(
            all(done.registers[name] == value for name, value in fill(0).items()),
            f"every register must survive, the second of them {where}",
        )


def _leaves_and_enters(rig: Rig) -> bytes:
    """A handler that leaves lazy MMU mode, enters it again, and then does what the usual one does."""
    code = b"\x60"
    for mode in (0, int(LazyMode.MMU)):
        code += b"\xb8" + mode.to_bytes(4, "little")
        code += branch(_HANDLER + len(code), rig.entry("SetLazyMode")[1], call=True)
    return code + b"\x61" + branch(_HANDLER + len(code) + 1, rig.labels[f"v{VECTOR}"], call=False)


@case("Interrupt", "in a batch", 20, more=("VMI-SetLazyMode-05",), paging=PAGED)
def in_a_batch(rig: Rig, found: Findings) -> None:
    """A handler that leaves lazy MMU mode and enters it again loses none of the interrupted batch."""
    wide = rig.environment.paging is Paging.PAE
    name = "SetPxELong" if wide else "SetPxE"
    rig.need(name, "SetLazyMode")
    pages = [FREE_PAGES + (4 + n) * PAGE_SIZE for n in range(3)]
    shown = FREE_PAGES + 9 * PAGE_SIZE
    entries = [entry_address(rig.environment.paging, page) for page in pages]

    def set_entry(entry: int) -> tuple[tuple[int, ...], dict[str, int]]:
        level = int(UpdateFlag.PT)
        value = shown | 7
        if wide:
            return (level,), {"eax": value, "edx": 0, "ecx": entry}
        return (), {"eax": value, "edx": entry, "ecx": level}

    def prepare() -> None:
        rig.put(shown, 0x5A5A)
        rig.write(_HANDLER, _leaves_and_enters(rig))
        rig.write(IDT + 8 * VECTOR, gate(_HANDLER))
        for page, entry in zip(pages, entries, strict=True):
            rig.put(entry, 0)
            rig.value("InvalPage", eax=page)
        rig.go("open_irq1")
        rig.value("SetLazyMode", eax=int(LazyMode.MMU))
        stack, registers = set_entry(entries[0])
        rig.call(name, *stack, **registers)
        rig.value("EnableInterrupts")
        stack, registers = set_entry(entries[1])
        rig.set_off_to(rig.entry(name)[1], *stack, **registers)

    for arrival in arrivals(rig, prepare):
        found.equal(f"vectors of one {arrival.where}", arrival.done.vectors, [VECTOR])
        stack, registers = set_entry(entries[2])
        rig.call(name, *stack, **registers)
        rig.value("SetLazyMode", eax=0)
        got = [rig.go("load", ebx=page).registers["eax"] for page in pages]
        found.equal(f"loads behind a batch interrupted {arrival.where}", got, [0x5A5A] * 3)


@case("Interrupt", "user code", 21)
def user_code(rig: Rig, found: Findings) -> None:
    """At any instruction of user code, of a system call and of the way back: everything goes on."""
    values = {"eax": 0x11, "ebx": 0x22, "ecx": 2, "edx": 0x44, "esi": 0x55, "edi": 0x66, "ebp": 0x77}

    def prepare() -> None:
        rig.go("open_irq1")
        rig.write(USER, b"\x49\x75\xfd" + _INT30 + _INT_END)
        rig.put(WORDS["USER_FLAGS"], 0x202)
        rig.set_off(rig.labels["enter_user"], **values)

    for arrival in arrivals(rig, prepare, until=_handled(rig)):
        done, where = arrival.done, arrival.where
        found.equal(f"vectors, interrupted {where}", sorted(done.vectors), [VECTOR, 0x30])
        for event in done.frames:
            if event.vector != VECTOR:
                got = {name: getattr(event, name) for name in values}
                found.true(got == {**values, "ecx": 0}, f"a system call interrupted {where} finds {got}")
                found.equal(f"ESP, interrupted {where}", (event.esp, event.eip), (USER_STACK, USER + 5))
