# SPDX-License-Identifier: GPL-2.0-only
"""Exceptions of user code and of the kernel, as handlers see them behind a hypervisor."""

from __future__ import annotations

from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.layout import (
    CODE0,
    CODE3,
    DATA0,
    DATA3,
    FREE_PAGES,
    FREE_SELECTOR,
    GDT,
    IDT,
    KERNEL_STACK,
    USER,
    USER_STACK,
    WORDS,
    control,
    descriptor,
    entry_address,
    gate,
)
from vmi.conformance.rig import Called, Frame, Rig
from vmi.x86 import Cr0, Eflags

_DE, _DB, _BP, _OF, _BR, _UD, _NM, _NP, _SS, _GP, _PF, _AC = 0, 1, 3, 4, 5, 6, 7, 11, 12, 13, 14, 17
_USER, _WRITE, _PRESENT = 4, 2, 1
_WINDOW = FREE_PAGES + 0x4000
_VALUES = {"eax": 0x11, "ecx": 0x22, "edx": 0, "ebp": 0x44, "esi": 0x55, "edi": 0x66}


def _user(rig: Rig, code: bytes, **registers: int) -> Called:
    """Run user code whose first exception ends it."""
    rig.resume_at("leave_user")
    done = rig.user(code, **{**_VALUES, "ebx": _WINDOW, **registers})
    rig.put(WORDS["RESUME"], 0)
    return done


def _seen(found: Findings, what: str, frame: Frame, vector: int, error: int, eip: int) -> None:
    found.equal(
        f"vector, error code and EIP of {what}", (frame.vector, frame.error, frame.eip), (vector, error, eip)
    )


@case("Exception", "faults of user code", 1, 2)
def faults(rig: Rig, found: Findings) -> None:
    """Vector, error code, EIP at the instruction, and user code's registers and segments."""
    for what, code, at, vector, error in (
        ("division by 0", b"\x31\xc9\xf7\xf1", 2, _DE, 0),
        ("UD2", b"\x0f\x0b", 0, _UD, 0),
        ("HLT", b"\xf4", 0, _GP, 0),
        ("CLI", b"\xfa", 0, _GP, 0),
        ("STI", b"\xfb", 0, _GP, 0),
        ("MOV to CR3", b"\x0f\x22\xd8", 0, _GP, 0),
        ("MOV from CR0", b"\x0f\x20\xc0", 0, _GP, 0),
        ("LGDT", b"\x0f\x01\x13", 0, _GP, 0),
        ("LTR", b"\x0f\x00\xd8", 0, _GP, 0),
        ("INVLPG", b"\x0f\x01\x3b", 0, _GP, 0),
        ("CLTS", b"\x0f\x06", 0, _GP, 0),
        ("WBINVD", b"\x0f\x09", 0, _GP, 0),
        ("BOUND", b"\x62\x03", 0, _BR, 0),
        ("kernel data into DS", b"\xb8\x10\x00\x00\x00\x8e\xd8", 5, _GP, DATA0),
    ):
        rig.put(_WINDOW, 0x100, 0x200)
        done = _user(rig, code)
        found.equal(f"number of events of {what}", len(done.frames), 1)
        if done.frames:
            frame = done.first
            _seen(found, what, frame, vector, error, USER + at)
            found.equal(f"CS and SS of {what}", (frame.cs, frame.ss), (CODE3, DATA3))
            found.equal(f"ESP of {what}", frame.esp, USER_STACK)
            kept = (frame.ebx, frame.ebp, frame.esi, frame.edi)
            found.equal(f"EBX, EBP, ESI and EDI of {what}", kept, (_WINDOW, 0x44, 0x55, 0x66))


@case("Exception", "traps of user code", 3)
def traps(rig: Rig, found: Findings) -> None:
    """INT3, INTO and INT n push the EIP behind them."""
    for what, code, behind, vector in (
        ("INT3", b"\xcc", 1, _BP),
        ("INTO", b"\xb0\x7f\x04\x01\xce", 5, _OF),
        ("INT 30h", b"\xcd\x30", 2, 0x30),
        ("INT 3", b"\xcd\x03", 2, _BP),
    ):
        done = rig.user(code)
        found.equal(f"number of events of {what}", len(done.frames), 1)
        if done.frames:
            _seen(found, what, done.first, vector, 0, USER + behind)


@case("Exception", "gates of the kernel", 4)
def kernel_gates(rig: Rig, found: Findings) -> None:
    """INT n by user code through a gate of level 0, or through none, raises #GP with the vector."""
    for vector in (0x20, 0x0E, 0x02):
        done = _user(rig, bytes((0xCD, vector)))
        found.equal("number of events", len(done.frames), 1)
        if done.frames:
            _seen(found, f"INT {vector:x}h", done.first, _GP, vector << 3 | 2, USER)
    rig.write(IDT + 8 * 0x30, gate(rig.labels["v48"], 0x6E))
    done = _user(rig, b"\xcd\x30")
    if done.frames:
        _seen(found, "a gate that is not present", done.first, _NP, 0x30 << 3 | 2, USER)


@case("Exception", "single step", 5)
def single_step(rig: Rig, found: Findings) -> None:
    """With TF user code raises #DB behind each instruction, and handlers run without it."""
    rig.put(WORDS["USER_FLAGS"], 0x302)
    done = rig.user(b"\x40\x41\x42", eax=0, ecx=0, edx=0)
    steps = [frame for frame in done.frames if frame.vector == _DB]
    found.equal("where it is raised", [frame.eip for frame in steps][:3], [USER + 1, USER + 2, USER + 3])
    found.equal("what has run by then", [(f.eax, f.ecx, f.edx) for f in steps][:3],
                [(1, 0, 0), (1, 1, 0), (1, 1, 1)])  # fmt: skip
    found.true(all(frame.eflags & Eflags.TF for frame in steps), "the pushed flags must have TF")


@case("Exception", "page faults of user code", 6, paging=PAGED)
def page_faults(rig: Rig, found: Findings) -> None:
    """Error codes and CR2 of loads and stores, where nothing is, where it is read-only, and the kernel's."""
    entry = entry_address(rig.environment.paging, _WINDOW)
    load, store = b"\x8b\x03", b"\x89\x03"
    for what, value, code, error in (
        ("a load where nothing is", 0, load, _USER),
        ("a store where nothing is", 0, store, _USER | _WRITE),
        ("a store to what is read-only", _WINDOW | 5, store, _USER | _WRITE | _PRESENT),
        ("a load of what is the kernel's", _WINDOW | 3, load, _USER | _PRESENT),
        ("a store to what is the kernel's", _WINDOW | 3, store, _USER | _WRITE | _PRESENT),
    ):
        rig.put(entry, value)
        rig.value("InvalPage", eax=_WINDOW)
        done = _user(rig, code, ebx=_WINDOW + 0x124)
        found.equal(f"events of {what}", done.faults, [(_PF, error)])
        found.equal(f"CR2 of {what}", rig.value("GetCR2"), _WINDOW + 0x124)


@case("Exception", "page faults of the kernel", 7, paging=PAGED)
def kernel_page_faults(rig: Rig, found: Findings) -> None:
    """The user bit of the error code is clear, whatever level the kernel really runs at."""
    entry = entry_address(rig.environment.paging, _WINDOW)
    for routine, value, error in (
        ("load", 0, 0),
        ("store", 0, _WRITE),
        ("store", _WINDOW | 1, _WRITE | _PRESENT),
    ):
        rig.put(entry, value)
        rig.value("InvalPage", eax=_WINDOW)
        rig.resume_at("done")
        done = rig.go(routine, ebx=_WINDOW + 0x40)
        found.equal(f"events of a {routine}", done.faults, [(_PF, error)])
        found.equal("EIP", done.first.eip if done.frames else 0, rig.labels[routine])
        found.equal("CR2", rig.value("GetCR2"), _WINDOW + 0x40)


@case("Exception", "FPU", 8)
def fpu(rig: Rig, found: Findings) -> None:
    """With TS an FPU instruction of user code raises #NM at it; with TS clear it runs."""
    base = control(rig.environment.paging)["CR0"]
    rig.value("SetCR0", eax=base | Cr0.TS)
    done = _user(rig, b"\xd9\xe8")
    found.equal("events with TS", [(f.vector, f.eip) for f in done.frames], [(_NM, USER)])
    rig.value("CLTS")
    found.equal("events without TS", rig.user(b"\xd9\xe8\xdd\xd8").vectors, [])


@case("Exception", "segments", 9)
def segments(rig: Rig, found: Findings) -> None:
    """Loads of segments that are not present, and of the null selector into SS."""
    rig.write(GDT + FREE_SELECTOR, descriptor(0, 0xFFFFF, 0x72))
    for what, code, at, vector, error in (
        ("DS not present", b"\x8e\xd8", 0, _NP, FREE_SELECTOR),
        ("SS not present", b"\x8e\xd0", 0, _SS, FREE_SELECTOR),
        ("SS null", b"\x31\xc0\x8e\xd0", 2, _GP, 0),
    ):
        done = _user(rig, code, eax=FREE_SELECTOR | 3)
        found.equal("number of events", len(done.frames), 1)
        if done.frames:
            _seen(found, what, done.first, vector, error, USER + at)


@case("Exception", "kernel's own", 10)
def kernels_own(rig: Rig, found: Findings) -> None:
    """An exception in the kernel stays on its stack, with its CS, and goes back to where it came from."""
    code = FREE_PAGES + 0x1000
    rig.write(code, b"\x0f\x0b\x43")
    rig.jump_to(code + 3, rig.labels["done"], call=False)
    rig.write(IDT + 8 * _UD, gate(code + 0x100))
    # the handler goes on behind the instruction: add dword ptr [esp], 2; then the usual one
    rig.write(code + 0x100, b"\x83\x04\x24\x02")
    rig.jump_to(code + 0x104, rig.labels["v6"], call=False)
    cs = rig.go("int30").first.cs
    for on in ("EnableInterrupts", "DisableInterrupts"):
        rig.value(on)
        done = rig.start(code, ebx=7)
        found.equal("events", done.faults, [(_UD, 0)])
        found.equal("EBX behind it", done.registers["ebx"], 8)
        if done.frames:
            frame = done.first
            found.equal("CS", frame.cs, cs)
            found.equal("the stack of the frame", frame.handler_esp + 20, done.registers["esp"])
            found.equal("IF", frame.eflags & Eflags.IF, Eflags.IF if on == "EnableInterrupts" else 0)


@case("Exception", "kernel stack", 11)
def kernel_stack(rig: Rig, found: Findings) -> None:
    """Each entry from user code begins at the top of the kernel's stack, whatever came before it."""
    for _ in range(3):
        done = rig.user(b"\xcd\x30\xcc\xcd\x30")
        tops = [frame.handler_esp + 28 for frame in done.frames]
        found.equal("where stacks begin", tops, [KERNEL_STACK] * 3)
        found.equal("levels in CS", [frame.cs & 3 for frame in done.frames], [3] * 3)
        found.equal("the kernel's CS", rig.go("int30").first.cs & ~3, CODE0)
