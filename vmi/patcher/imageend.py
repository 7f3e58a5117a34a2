# SPDX-License-Identifier: GPL-2.0-only
"""Find out what a kernel does with the address of its own end.

Every allocator needs a first free address. Simple kernels take the end of their image for it, a symbol of
the linker's, without asking anyone whether something lies there; whatever does is overwritten at once. In
the file this shows as the number itself: pushed or stored as a value, or the initial value of a variable.
Nearly every other kernel knows its end too, but only as a limit: to clear its bss, to compare with, to
put a stack below it. Such uses are told apart by the instruction and by what becomes of the
register that it loads.

Where virtual and physical addresses differ, only the virtual one counts: who takes memory wants to use it,
while the physical address is what one tells an allocator of physical memory, which then keeps clear of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from iced_x86 import Decoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register

from vmi.patcher import elf
from vmi.patcher.adaptorcode import same
from vmi.patcher.model import Access, Image, Segment

END_SYMBOLS = ("end", "_end", "__end", "kernel_end", "_kernel_end", "__bss_stop", "__kernel_end")
WARM_UP = 64  # bytes decoded before a number, after which decoding is in step with the code
FOLLOWED = 8  # instructions in which a loaded register's use is looked for
WINDOW = 15 * (FOLLOWED + 1)  # bytes of the longest such code
MOST = 1000  # uses of one number: a file that is full of it says no more by more of them
WORD = struct.Struct("<I")
LIMITS = (Mnemonic.CMP, Mnemonic.SUB)
"""What is done with a limit: comparing, and computing how many bytes there are up to it."""


@dataclass(frozen=True, slots=True)
class Use:
    """A place in the image that holds its end: the virtual address of the instruction or word.

    ``taken``: as the address of something; otherwise as a limit, or in a way that isn't understood.
    """

    address: int
    taken: bool


def image_end(image: Image) -> int:
    """The first virtual address behind every segment."""
    return max(segment.vaddr + segment.memsz for segment in image.segments)


def names(image: Image) -> list[str]:
    """Symbols of the image's end, in alphabetical order."""
    end = image_end(image)
    values = elf.symbol_values(image.data, END_SYMBOLS)
    return sorted(name for name, value in values.items() if abs(end - value) < elf.PAGE)


def uses(image: Image) -> tuple[Use, ...]:
    """Every place in the image that holds the address of its end, exactly or up to the next page's start."""
    end = image_end(image)
    known = elf.symbol_values(image.data, END_SYMBOLS).values()
    values = {end, (end + elf.PAGE - 1) & -elf.PAGE, *(v for v in known if abs(end - v) < elf.PAGE)}
    found = []
    for segment in image.segments:
        for value in sorted(value for value in values if 0 < value < elf.ADDRESS_SPACE):
            found += [_use(segment, at) for at in _places(segment.data, WORD.pack(value))]
    return tuple(sorted(found, key=lambda use: use.address))


def _places(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    for _ in range(MOST):
        if at < 0:
            return
        yield at
        at = data.find(wanted, at + 1)


def _use(segment: Segment, at: int) -> Use:
    """What the word at an offset of a segment is."""
    if not segment.flags & Access.X:
        return Use(segment.vaddr + at, at % WORD.size == 0)
    start = max(0, at - WARM_UP)
    stream = iter(Decoder(32, segment.data[start : at + WINDOW], ip=segment.vaddr + start))
    for insn in stream:
        if insn.next_ip32 - segment.vaddr > at:
            return Use(insn.ip32, _takes(insn, stream, segment.vaddr + at))
    return Use(segment.vaddr + at, False)


def _takes(insn: Instruction, following: Iterator[Instruction], word: int) -> bool:
    """True when an instruction whose number lies at ``word`` uses it as the address of something."""
    if insn.is_invalid or insn.next_ip32 != word + WORD.size:
        return False  # no number of its own, or one that an immediate follows
    if same(insn.mnemonic, Mnemonic.PUSH):
        return not _returns(following)
    first = insn.op0_register if same(insn.op0_kind, OpKind.REGISTER) else Register.NONE
    if same(insn.mnemonic, Mnemonic.MOV) and insn.op_count == 2 and _is_number(insn):
        if same(insn.op0_kind, OpKind.MEMORY):
            return True
        return not same(first, Register.ESP) and not _limits(first, following)
    absolute = same(insn.memory_base, Register.NONE) and same(insn.memory_index, Register.NONE)
    if same(insn.mnemonic, Mnemonic.LEA) and absolute:
        return not same(first, Register.ESP) and not _limits(first, following)
    return False


def _is_number(insn: Instruction) -> bool:
    return same(insn.op1_kind, OpKind.IMMEDIATE32)


def _returns(following: Iterator[Instruction]) -> bool:
    """True when straight code leads to an IRET: what was pushed is then the stack of where that goes."""
    for _, insn in zip(range(FOLLOWED), following, strict=False):
        if insn.is_invalid or not same(insn.flow_control, FlowControl.NEXT):
            return not insn.is_invalid and same(insn.mnemonic, Mnemonic.IRETD)
    return False


def _limits(register: int, following: Iterator[Instruction]) -> bool:
    """True when the first that is done with a register is what is done with limits."""
    factory = InstructionInfoFactory()
    for _, insn in zip(range(FOLLOWED), following, strict=False):
        used = any(same(one.register, register) for one in factory.info(insn).used_registers())
        if used:
            return any(same(insn.mnemonic, limit) for limit in LIMITS)
        if insn.is_invalid or not same(insn.flow_control, FlowControl.NEXT):
            return False
    return False
