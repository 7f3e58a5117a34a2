# SPDX-License-Identifier: GPL-2.0-only
"""The virtual interrupt flag, and the ways back: IRET, SYSEXIT, Halt."""

from __future__ import annotations

from vmi.abi import Reloc
from vmi.conformance.case import Findings, case
from vmi.conformance.layout import (
    CODE3,
    DATA3,
    GDT,
    STACK,
    USER,
    USER_STACK,
    WORDS,
    descriptor,
)
from vmi.conformance.rig import Called, Rig, Unfit, fill
from vmi.conformance.subject import End
from vmi.memory import PAGE_SIZE
from vmi.x86 import Eflags

_KEYBOARD = 0x21  # the vector of line 1
_GP, _NP, _SS, _PF = 13, 11, 12, 14
_IF = int(Eflags.IF)
_SEP = 11  # CPUID: SYSENTER and SYSEXIT
_INT30, _HLT = b"\xcd\x30", b"\xf4"
_TO_ES = 28  # bytes of a handler's frame: vector, error code, EIP, CS, EFLAGS, ESP, SS


def _mask(rig: Rig) -> int:
    return rig.value("GetInterruptMask") & _IF


def _waiting(rig: Rig) -> None:
    """An interrupt waits, interrupts are off."""
    rig.value("DisableInterrupts")
    rig.go("open_irq1")
    rig.subject.interrupt(1)


@case("EnableInterrupts", "mask", 1, 5, more=("VMI-DisableInterrupts-01", "VMI-GetInterruptMask-01"))
def mask_follows(rig: Rig, found: Findings) -> None:
    """The mask is what the last call made it."""
    for name, wanted in (
        ("EnableInterrupts", _IF),
        ("EnableInterrupts", _IF),
        ("DisableInterrupts", 0),
        ("DisableInterrupts", 0),
        ("EnableInterrupts", _IF),
    ):
        rig.value(name)
        found.equal(f"the mask after {name}", rig.value("GetInterruptMask"), wanted)


@case("EnableInterrupts", "pending", 2, more=("VMI-DisableInterrupts-02",))
def pending(rig: Rig, found: Findings) -> None:
    """What waits comes by the end of the call, and not before; with them off again nothing comes."""
    _waiting(rig)
    found.equal("vectors with interrupts off", rig.go("spin", ecx=1000).vectors, [])
    done = rig.call("EnableInterrupts")
    found.equal("vectors of the call", done.vectors, [_KEYBOARD])
    found.true(
        all(frame.eip <= rig.labels["done"] or frame.eip >= rig.rom for frame in done.frames),
        "it must come before the instruction behind the call has run",
    )
    found.equal("the mask afterwards", _mask(rig), _IF)
    rig.value("DisableInterrupts")
    rig.subject.interrupt(1)
    found.equal("vectors with interrupts off again", rig.go("spin", ecx=1000).vectors, [])


def _registers(
    rig: Rig, found: Findings, name: str, value: int | None = None, kept: tuple[str, ...] = ()
) -> None:
    for pattern in (0, 1):
        registers = {**fill(pattern), **({} if value is None else {"eax": value})}
        done = rig.call(name, **registers)
        for register in kept:
            found.equal(f"{register.upper()} after {name}", done.registers[register], registers[register])


_ALL = ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi")


@case("EnableInterrupts", "registers", 3, more=("VMI-DisableInterrupts-03",))
def flag_calls_keep(rig: Rig, found: Findings) -> None:
    """All general registers survive."""
    for name in ("EnableInterrupts", "DisableInterrupts"):
        _registers(rig, found, name, kept=_ALL)


@case("GetInterruptMask", "registers", 2)
def get_mask_keeps(rig: Rig, found: Findings) -> None:
    """ECX and EDX survive too."""
    _registers(rig, found, "GetInterruptMask", kept=_ALL[1:])


@case("SetInterruptMask", "registers", 4)
def set_mask_keeps(rig: Rig, found: Findings) -> None:
    """All general registers survive."""
    for value in (0, _IF, 0xFFFFFFFF):
        _registers(rig, found, "SetInterruptMask", value, kept=_ALL)


@case("SetInterruptMask", "only bit 9", 1, 3, more=("VMI-GetInterruptMask-03",))
def only_bit_9(rig: Rig, found: Findings) -> None:
    """Only bit 9 of the argument counts, and what GetInterruptMask gave restores it."""
    for value in (0, _IF, 0xFFFFFDFF, 0xFFFFFFFF, 0x3000, 0x202):
        rig.value("SetInterruptMask", eax=value)
        saved = rig.value("GetInterruptMask")
        found.equal(f"the mask after {value:#x}", saved & _IF, value & _IF)
        rig.value("DisableInterrupts")
        rig.value("SetInterruptMask", eax=saved)
        found.equal("the mask restored", _mask(rig), value & _IF)


@case("SetInterruptMask", "pending", 2)
def set_mask_delivers(rig: Rig, found: Findings) -> None:
    """Setting bit 9 lets in what waits by the end of the call."""
    _waiting(rig)
    found.equal("vectors of mask 0", rig.call("SetInterruptMask", eax=0).vectors, [])
    found.equal("vectors of mask 200h", rig.call("SetInterruptMask", eax=_IF).vectors, [_KEYBOARD])


for _name, _number in (
    ("EnableInterrupts", 4),
    ("DisableInterrupts", 4),
    ("GetInterruptMask", 4),
    ("SetInterruptMask", 5),
):

    @case(_name, "any DS and ES", _number)
    def any_segments(rig: Rig, found: Findings, name: str = _name) -> None:
        """It works with null selectors in DS and ES."""
        rig.need(name)
        _, target = rig.entry(name)
        rig.jump_to(rig.labels["null_site"], target, call=True)
        done = rig.go("null_call", eax=_IF)
        found.equal("events", done.vectors, [])
        wanted = {"DisableInterrupts": 0, "GetInterruptMask": 0}.get(name, _IF)
        found.equal("the mask", _mask(rig), wanted)


@case("DisableInterrupts", "exceptions", 5)
def exceptions_come(rig: Rig, found: Findings) -> None:
    """Exceptions come with interrupts off, and the pushed flags show IF as it is."""
    for name, wanted in (("DisableInterrupts", 0), ("EnableInterrupts", _IF)):
        rig.value(name)
        done = rig.go("int30")
        found.equal("vectors", done.vectors, [0x30])
        found.equal("IF in the frame", done.first.eflags & _IF, wanted)


def _iret(rig: Rig, *frame: int, **registers: int) -> Called:
    """Go through IRET with this frame on the stack."""
    rig.need("IRET")
    kind, target = rig.entry("IRET")
    at = rig.labels["iret_site"]
    rig.jump_to(at, target, call=kind is Reloc.CALL_REL)
    esp = STACK - 4 * len(frame)
    rig.put(esp, *frame)
    return rig.start(at, esp=esp, **registers)


def _kernel_cs(rig: Rig) -> int:
    """CS of the kernel as its frames show it."""
    return rig.go("int30").first.cs


@case("IRET", "to the kernel", 1, 2, 3, 6)
def iret_to_kernel(rig: Rig, found: Findings) -> None:
    """Three words are taken; registers survive; arithmetic flags and IF are those of the frame."""
    cs = _kernel_cs(rig)
    for pattern, flags in ((0, 0x2), (1, 0x202), (0, 0x8D7), (1, 0xAD7)):
        registers = dict(fill(pattern))
        done = _iret(rig, rig.labels["done"], cs, flags, **registers)
        found.true(done.returned, f"it must arrive, but {done.stop.reason}")
        found.equal("ESP", done.registers["esp"], STACK)
        for name, value in registers.items():
            found.equal(name.upper(), done.registers[name], value)
        found.equal("flags", done.registers["eflags"] & 0xED5, flags & 0xED5)
        found.equal("the mask", _mask(rig), flags & _IF)


@case("IRET", "to user code", 1, 3)
def iret_to_user(rig: Rig, found: Findings) -> None:
    """Five words are taken, and user code has the stack, flags and level of the frame."""
    for flags in (0x202, 0x2D7, 0xA02):
        rig.put(WORDS["USER_FLAGS"], flags)
        frame = rig.user(_INT30, ebx=0x1234).first
        found.equal("EIP", frame.eip, USER + 2)
        found.equal("CS and SS", (frame.cs, frame.ss), (CODE3, DATA3))
        found.equal("ESP", frame.esp, USER_STACK)
        found.equal("flags", frame.eflags & 0xED5, flags & 0xED5)
        found.equal("EBX", frame.ebx, 0x1234)


@case("IRET", "to virtual-8086 mode", 1, 6)
def iret_to_virtual_8086(rig: Rig, found: Findings) -> None:
    """Nine words are taken; the code there has the segments, the stack and the registers that it should."""
    segments = [0x1111, 0x2222, 0x3333, 0x4444]  # ES, DS, FS, GS
    rig.write(USER, _HLT)  # #GP, as level 3 of the processor has no right to it
    rig.put(WORDS["ONCE"], 1)  # the handler ends the run: it can't go back by changing EIP alone
    for flags in (0x20202, 0x20AD7):
        done = _iret(
            rig, USER & 0xF, USER >> 4, flags, 0xFFC, USER_STACK - PAGE_SIZE >> 4, *segments, **fill(0)
        )
        found.equal("events", done.faults, [(_GP, 0)])
        frame = done.last
        found.equal("CS:EIP", (frame.cs, frame.eip), (USER >> 4, USER & 0xF))
        found.equal("SS:ESP", (frame.ss, frame.esp), (USER_STACK - PAGE_SIZE >> 4, 0xFFC))
        found.equal("flags", frame.eflags & 0x20ED5, flags & 0x20ED5)
        above = frame.handler_esp + _TO_ES
        found.equal("ES, DS, FS, GS", [rig.word(above + 4 * n) for n in range(4)], segments)
        got = {name: getattr(frame, name) for name in fill(0)}
        found.true(got == fill(0), f"it must have its registers, but has {got}")


@case("IRET", "pending", 3)
def iret_delivers(rig: Rig, found: Findings) -> None:
    """With IF in the frame, what waits comes at the target's first instruction."""
    cs = _kernel_cs(rig)
    _waiting(rig)
    done = _iret(rig, rig.labels["spin"], cs, 0x202, ecx=3)
    found.equal("vectors", done.vectors, [_KEYBOARD])
    if done.frames:
        first = rig.labels["spin"]
        eip = done.first.eip
        found.true(
            eip >= rig.rom or first <= eip <= first + 3,
            f"it must come at the target's first instruction, but EIP is {eip:#x}",
        )
    _waiting(rig)
    found.equal("vectors without IF", _iret(rig, rig.labels["spin"], cs, 2, ecx=3).vectors, [])


@case("IRET", "fault at the site", 5)
def iret_faults(rig: Rig, found: Findings) -> None:
    """A frame that can't be loaded faults at the site, with the frame where it was."""
    rig.need("IRET")
    if not rig.deprivileged:
        raise Unfit("without a hypervisor the processor reports it where its own IRET is")
    rig.write(0x1000 + 0x68, (0x00CF7A000000FFFF).to_bytes(8, "little"))  # code, not present, DPL 3
    for cs, ss, vector, error in (
        (0x0, DATA3, _GP, 0),
        (0x6B, DATA3, _NP, 0x68),
        (CODE3, 0x10, _GP, 0x10),
        (0x7F3, DATA3, _GP, 0x7F0),
    ):
        rig.resume_at("done")
        done = _iret(rig, USER, cs, 0x202, USER_STACK, ss)
        found.equal("events", [(f.vector, f.error, f.eip) for f in done.frames],
                    [(vector, error, rig.labels["iret_site"])])  # fmt: skip
        found.equal("the frame", [rig.word(STACK - 20 + 4 * n) for n in range(5)],
                    [USER, cs, 0x202, USER_STACK, ss])  # fmt: skip


@case("IRET", "IOPL", 4)
def iret_iopl(rig: Rig, found: Findings) -> None:
    """A de-privileged kernel does not get IOPL from the frame: user code may not use ports."""
    if not rig.deprivileged:
        raise Unfit("the kernel runs at level 0")
    rig.write(0x3000 + 104 + 16, b"\xff")
    rig.put(WORDS["USER_FLAGS"], 0x3202)
    rig.resume_at("leave_user")
    done = rig.user(b"\xe6\x80")
    found.equal("events of a port access", done.faults, [(_GP, 0)])


@case("SYSEXIT", "to user code", 1, 2, 3, 4)
def sysexit(rig: Rig, found: Findings) -> None:
    """User code runs at EDX with ESP from ECX, interrupts on, other registers as they were."""
    if not rig.has(_SEP):
        raise Unfit("the processor has no SYSEXIT")
    rig.call("WRMSR", ecx=0x174, eax=0x08, edx=0)
    rig.write(USER, _INT30 + b"\xcd\x31")
    done = rig.call("SYSEXIT", edx=USER, ecx=USER_STACK - 8, eax=1, ebx=2, esi=3, edi=4, ebp=5)
    frame = done.first
    found.equal("vectors", done.vectors, [0x30])
    found.equal("EIP and ESP", (frame.eip, frame.esp), (USER + 2, USER_STACK - 8))
    found.equal("CS", frame.cs & 3, 3)
    found.equal("IF", frame.eflags & _IF, _IF)
    found.equal("registers", (frame.eax, frame.ebx, frame.esi, frame.edi, frame.ebp), (1, 2, 3, 4, 5))


@case("IRET", "data segments of the kernel", 1)
def kernel_data(rig: Rig, found: Findings) -> None:
    """User code doesn't get them, whoever does the return."""
    for mask in (0, 0x3000):  # the frame says 0
        if rig.offers("SetIOPLMask"):
            rig.value("SetIOPLMask", eax=mask)
        found.equal("DS in user code", rig.user(_INT30).first.ds & 0xFFFC, 0)


@case("SYSEXIT", "whatever the table holds", 1, 3)
def sysexit_without_descriptor(rig: Rig, found: Findings) -> None:
    """User code is entered in flat segments, even if their descriptor is not present; IRET came before."""
    if not rig.has(_SEP):
        raise Unfit("the processor has no SYSEXIT")
    rig.call("WRMSR", ecx=0x174, eax=0x08, edx=0)
    found.equal("vectors behind IRET", rig.user(_INT30).vectors, [0x30])
    rig.write(GDT + (CODE3 & ~7), descriptor(0, 0xFFFFF, 0x7A))
    rig.put(WORDS["ONCE"], 1)  # the handler doesn't go back
    done = rig.call("SYSEXIT", edx=USER, ecx=USER_STACK - 8, eax=1, ebx=2, esi=3, edi=4, ebp=5)
    frame = done.first
    found.equal("vectors", done.vectors, [0x30])
    found.equal("EIP and ESP", (frame.eip, frame.esp), (USER + 2, USER_STACK - 8))
    found.equal("registers", (frame.eax, frame.ebx, frame.esi, frame.edi, frame.ebp), (1, 2, 3, 4, 5))


@case("Halt", "pending", 1, 3)
def halt_pending(rig: Rig, found: Findings) -> None:
    """What waits is delivered, and the call returns with interrupts on."""
    _waiting(rig)
    done = rig.call("Halt")
    found.true(done.returned, f"the call must return, but {done.stop.reason}")
    found.equal("vectors", done.vectors, [_KEYBOARD])
    found.equal("the mask", _mask(rig), _IF)


@case("Halt", "timer", 2, 3, 4)
def halt_waits(rig: Rig, found: Findings) -> None:
    """Without anything pending it waits for an interrupt, here the timer's."""
    rig.go("timer_once")
    done = rig.call("Halt")
    found.true(done.returned, f"the call must return, but {done.stop.reason}")
    found.equal("vectors", done.vectors, [0x20])
    found.equal("the mask", _mask(rig), _IF)


@case("Reboot", "ends", 1, 2)
def reboot(rig: Rig, found: Findings) -> None:
    """Nothing of the guest runs behind it, and the end is a reset."""
    done = rig.call("Reboot", eax=0)
    found.equal("the end", done.stop.end, End.RESET)


@case("Shutdown", "ends", 1, 2)
def shutdown(rig: Rig, found: Findings) -> None:
    """Nothing of the guest runs behind it, and the end is power-off."""
    done = rig.call("Shutdown")
    found.equal("the end", done.stop.end, End.OFF)
