# SPDX-License-Identifier: GPL-2.0-only
"""Port calls: one access of the right size, registers, counts, and string transfers."""

from __future__ import annotations

from vmi.conformance.case import Findings, case
from vmi.conformance.layout import SCRATCH, TSS, WORDS
from vmi.conformance.rig import Rig, Unfit, fill

_NOBODY = 0xE4  # nothing answers here
_CMOS_INDEX, _CMOS_DATA, _CMOS_FREE = 0x70, 0x71, 0x3A  # a device with memory: the clock's RAM
_SIZES = {"B": 1, "W": 2, "L": 4}
_GP = 13


def _mask(size: int) -> int:
    return (1 << 8 * size) - 1


for _width, _size in _SIZES.items():

    @case(f"IN{_width}", "nobody", 1, 2, 3, 4)
    def input_of_nothing(rig: Rig, found: Findings, name: str = f"IN{_width}", size: int = _size) -> None:
        """A port that nobody serves reads as ones; the rest of EAX and all other registers survive."""
        for pattern in (0, 1):
            registers = {**fill(pattern), "edx": _NOBODY}
            done = rig.call(name, **registers)
            wanted = registers["eax"] & ~_mask(size) | _mask(size)
            found.equal("EAX", done.registers["eax"], wanted)
            for register in ("ecx", "edx", "ebx", "ebp", "esi", "edi"):
                found.equal(register.upper(), done.registers[register], registers[register])

    @case(f"OUT{_width}", "nobody", 1, 2, 3, 4)
    def output_to_nothing(rig: Rig, found: Findings, name: str = f"OUT{_width}") -> None:
        """A port that nobody serves takes anything, and all registers survive."""
        for pattern in (0, 1):
            registers = {**fill(pattern), "edx": _NOBODY}
            done = rig.call(name, **registers)
            found.equal("events", len(done.frames), 0)
            for register, value in registers.items():
                found.equal(register.upper(), done.registers[register], value)

    @case(f"INS{_width}", "transfers", 1, 2, 3)
    def string_input(rig: Rig, found: Findings, name: str = f"INS{_width}", size: int = _size) -> None:
        """ECX units are stored from EDI upwards, none with 0."""
        for count in (0, 1, 7):
            rig.write(SCRATCH, bytes(64))
            done = rig.call(name, edi=SCRATCH + 4, edx=_NOBODY, ecx=count)
            found.equal("EDI", done.registers["edi"], SCRATCH + 4 + size * count)
            found.equal("ECX", done.registers["ecx"], 0)
            wanted = bytes(4) + b"\xff" * (size * count) + bytes(60 - size * count)
            found.true(rig.read(SCRATCH, 64) == wanted, f"memory must hold {count} units and nothing else")

    @case(f"OUTS{_width}", "transfers", 1, 2, 3)
    def string_output(rig: Rig, found: Findings, name: str = f"OUTS{_width}", size: int = _size) -> None:
        """ECX units are read from ESI upwards, none with 0."""
        for count in (0, 1, 7):
            done = rig.call(name, esi=SCRATCH + 4, edx=_NOBODY, ecx=count)
            found.equal("ESI", done.registers["esi"], SCRATCH + 4 + size * count)
            found.equal("ECX", done.registers["ecx"], 0)


@case("OUTB", "device", 1, 2, more=("VMI-INB-01", "VMI-INB-02", "VMI-INB-03"))
def a_device(rig: Rig, found: Findings) -> None:
    """A byte written to a device's memory comes back; bits of EAX above it do not matter."""
    for value in (0x5A, 0xA5):
        rig.call("OUTB", eax=0xABCDEF00 | _CMOS_FREE, edx=_CMOS_INDEX)
        rig.call("OUTB", eax=0x12345600 | value, edx=_CMOS_DATA)
        rig.call("OUTB", eax=_CMOS_FREE, edx=_CMOS_INDEX)
        found.equal("AL", rig.value("INB", eax=0x11223344, edx=_CMOS_DATA), 0x11223300 | value)


@case("OUTSB", "order", 1)
def string_order(rig: Rig, found: Findings) -> None:
    """Bytes are written in order: the last one stays."""
    rig.write(SCRATCH, bytes([1, 2, 3, 0x77]))
    rig.call("OUTB", eax=_CMOS_FREE, edx=_CMOS_INDEX)
    rig.call("OUTSB", esi=SCRATCH, edx=_CMOS_DATA, ecx=4)
    found.equal("the device's byte", rig.value("INB", eax=0, edx=_CMOS_DATA), 0x77)


@case("INSB", "device", 1)
def string_from_device(rig: Rig, found: Findings) -> None:
    """Each unit is a read of the device."""
    rig.call("OUTB", eax=_CMOS_FREE, edx=_CMOS_INDEX)
    rig.call("OUTB", eax=0x42, edx=_CMOS_DATA)
    rig.call("INSB", edi=SCRATCH, edx=_CMOS_DATA, ecx=3)
    found.equal("memory", rig.word(SCRATCH) & 0xFFFFFF, 0x424242)


@case("IODelay", "nothing", 1, 2)
def delay(rig: Rig, found: Findings) -> None:
    """It is NOP, or a call without effect."""
    kind, _ = rig.entry("IODelay")
    if rig.offers("IODelay"):
        found.equal("events", len(rig.call("IODelay").frames), 0)
    found.true(kind in (0, 1, 3), f"the relocation must be NONE, CALL_REL or NOP, but it is {kind}")


@case("SetIOPLMask", "ports", 1, 2, 3, 5)
def io_privilege(rig: Rig, found: Findings) -> None:
    """With 3000h user code may use every port, with 0 what the bitmap says; it shows in frames."""
    rig.need("SetIOPLMask")
    rig.write(TSS + 104 + 0x80 // 8, b"\xff")
    for mask, wanted in ((0x3000, []), (0, [_GP]), (0xFFFFFFFF, []), (0xFFFFCFFF, [_GP])):
        rig.value("SetIOPLMask", eax=mask)
        rig.put(WORDS["USER_FLAGS"], 0x202 | mask & 0x3000)
        if wanted:
            rig.resume_at("leave_user")
        done = rig.user(b"\xe6\x80")
        found.equal(f"events with mask {mask:#x}", done.vectors, wanted)
        done = rig.user(b"\xcd\x30")
        found.equal("IOPL in a frame", done.last.eflags & 0x3000, mask & 0x3000)


@case("SetIOPLMask", "interrupt flag", 4)
def io_privilege_and_flag(rig: Rig, found: Findings) -> None:
    """CLI of user code does not change the virtual interrupt flag."""
    if not rig.deprivileged:
        raise Unfit("the kernel runs at level 0, where IOPL lets user code clear IF")
    rig.value("SetIOPLMask", eax=0x3000)
    rig.put(WORDS["USER_FLAGS"], 0x3202)
    done = rig.user(b"\xfa\xcd\x30")
    found.equal("IF in a frame behind CLI", done.last.eflags & 0x200, 0x200)
