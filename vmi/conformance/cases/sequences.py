# SPDX-License-Identifier: GPL-2.0-only
"""What kernels do with several calls in a row: critical sections, handlers, address spaces, copy on write."""

from __future__ import annotations

from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.cases.control import second_tables
from vmi.conformance.layout import FREE_PAGES, IDT, PAGE_TABLES, USER, WORDS, Paging, entry_address, gate
from vmi.conformance.rig import Rig
from vmi.memory import PAGE_SIZE

_IF, _KEYBOARD, _PF = 0x200, 0x21, 14
_WINDOW = FREE_PAGES + 4 * PAGE_SIZE
_INT30, _SPIN = b"\xcd\x30", b"\x49\x75\xfd"  # dec ecx; jnz
_LOAD, _STORE = b"\x8b\x03", b"\x89\x03"  # EAX and [EBX]


def _set(rig: Rig, linear: int, value: int) -> None:
    """Set the entry of a page by call where there is one, and drop the translation."""
    entry = entry_address(rig.environment.paging, linear)
    if rig.environment.paging is Paging.PAE and rig.offers("SetPxELong"):
        rig.call("SetPxELong", 1, eax=value, edx=0, ecx=entry)
    elif rig.environment.paging is not Paging.PAE and rig.offers("SetPxE"):
        rig.call("SetPxE", eax=value, edx=entry, ecx=1)
    else:
        rig.put(entry, value)
    rig.value("InvalPage", eax=linear)


@case("Sequence", "critical sections nest", 1)
def nested_sections(rig: Rig, found: Findings) -> None:
    """The inner of two critical sections leaves interrupts off, the outer one restores them."""
    for state in ("EnableInterrupts", "DisableInterrupts"):
        rig.value(state)
        outer = rig.value("GetInterruptMask")
        rig.value("DisableInterrupts")
        inner = rig.value("GetInterruptMask")
        rig.value("DisableInterrupts")
        rig.value("SetInterruptMask", eax=inner)
        found.equal("the mask behind the inner one", rig.value("GetInterruptMask") & _IF, 0)
        rig.value("SetInterruptMask", eax=outer)
        found.equal("the mask behind the outer one", rig.value("GetInterruptMask"), outer)


@case("Sequence", "an interrupt comes once", 2)
def once(rig: Rig, found: Findings) -> None:
    """One request while interrupts are off is one handler, however often they are switched on."""
    rig.go("open_irq1")
    rig.subject.interrupt(1)
    vectors = []
    for name in ("EnableInterrupts", "DisableInterrupts", "EnableInterrupts", "EnableInterrupts"):
        vectors += rig.call(name).vectors
        vectors += rig.go("spin", ecx=20).vectors
    found.equal("vectors", vectors, [_KEYBOARD])


@case("Sequence", "system call and back", 3)
def system_call(rig: Rig, found: Findings) -> None:
    """A handler entered from user code finds its registers and flags, and IRET gives them back."""
    values = {"eax": 0x11, "ebx": 0x22, "ecx": 0x33, "edx": 0x44, "esi": 0x55, "edi": 0x66, "ebp": 0x77}
    rig.put(WORDS["USER_FLAGS"], 0x2D7)
    done = rig.user(_INT30 * 3, **values)
    found.equal("vectors", done.vectors, [0x30] * 3)
    for number, frame in enumerate(done.frames):
        found.equal("EIP", frame.eip, USER + 2 * (number + 1))
        got = {name: getattr(frame, name) for name in values}
        found.true(got == values, f"registers must be {values}, but they are {got}")
        found.equal("arithmetic flags", frame.eflags & 0xD5, 0xD5)


@case("Sequence", "nested events", 4, paging=PAGED)
def nested_events(rig: Rig, found: Findings) -> None:
    """A page fault in a handler returns to the handler, and that to where the first event came from."""
    _set(rig, _WINDOW, 0)
    rig.write(IDT + 8 * 0x30, gate(rig.labels["nest"]))
    rig.resume_at("nest_back")
    done = rig.go("int30", ebx=_WINDOW)
    found.equal("vectors, the inner one first", done.vectors, [_PF, 0x30])


@case("Sequence", "demand paging", 5, paging=PAGED)
def demand_paging(rig: Rig, found: Findings) -> None:
    """A fault of user code tells the access; mapped by the kernel's calls, the access succeeds."""
    rig.put(FREE_PAGES, 0xCAFE)
    for code, error in ((_LOAD, 4), (_STORE, 6)):
        _set(rig, _WINDOW, 0)
        rig.resume_at("leave_user")
        done = rig.user(code, ebx=_WINDOW + 8)
        events = [(frame.vector, frame.error, frame.eip) for frame in done.frames]
        found.equal("events", events, [(_PF, error, USER)])
        found.equal("CR2", rig.value("GetCR2"), _WINDOW + 8)
        _set(rig, _WINDOW, FREE_PAGES | 7)
        found.equal("events once it is mapped", rig.user(code, ebx=_WINDOW + 8).vectors, [])


@case("Sequence", "two address spaces", 6, paging=PAGED)
def two_spaces(rig: Rig, found: Findings) -> None:
    """Switched to and fro, each address space shows its own page."""
    rig.put(FREE_PAGES, 1)
    rig.put(FREE_PAGES + PAGE_SIZE, 2)
    second = second_tables(rig, rig.environment.paging)
    seen = []
    for number in range(40):
        rig.value("SetCR3", eax=second if number & 1 else PAGE_TABLES)
        seen.append(rig.go("load", ebx=FREE_PAGES).registers["eax"])
    found.equal("what the loads gave", seen, [1, 2] * 20)


@case("Sequence", "copy on write", 7, paging=PAGED)
def copy_on_write(rig: Rig, found: Findings) -> None:
    """A store to a read-only page faults; behind the exchange of its entry it goes to the copy alone."""
    original, copy = FREE_PAGES, FREE_PAGES + PAGE_SIZE
    rig.put(original, 0x01D)
    _set(rig, _WINDOW, original | 5)
    rig.resume_at("leave_user")
    done = rig.user(_STORE, ebx=_WINDOW, eax=0x0E3)
    found.equal("events", done.faults, [(_PF, 7)])
    rig.write(copy, rig.read(original, PAGE_SIZE))
    _set(rig, _WINDOW, copy | 7)
    done = rig.user(_STORE, ebx=_WINDOW, eax=0x0E3)
    found.equal("events behind the exchange", done.vectors, [])
    found.equal("the original and the copy", (rig.word(original), rig.word(copy)), (0x01D, 0x0E3))


@case("Sequence", "interrupts in user code", 8)
def user_interrupts(rig: Rig, found: Findings) -> None:
    """An interrupt comes to user code, which goes on behind it as if nothing had been."""
    rig.go("open_irq1")
    rig.subject.interrupt(1)
    done = rig.user(_SPIN + _INT30, ecx=50, ebx=0x77)
    found.equal("vectors", sorted(done.vectors), [_KEYBOARD, 0x30])
    found.equal("ECX and EBX behind it", (done.last.ecx, done.last.ebx), (0, 0x77))
