# SPDX-License-Identifier: GPL-2.0-only
"""Instruction operands as values: read from assembly text, rendered back, and taken from decoded code.

The assembler must prove that an encoder did what the text says. Both sides, the text and the decoded
bytes, become the same small dataclasses here, so the proof is an equality and not a comparison of
two dialects of printed assembly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from iced_x86 import Instruction, MemorySizeInfo, OpKind, Register, RegisterInfo

from vmi.x86 import GPR32

GPR8 = ("al", "cl", "dl", "bl", "ah", "ch", "dh", "bh")
GPR16 = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
SYSTEM = (*(f"cr{n}" for n in (0, 2, 3, 4)), *(f"dr{n}" for n in range(8)))
VECTOR = (*(f"mm{n}" for n in range(8)), *(f"xmm{n}" for n in range(8)))
_NAMES = (*GPR8, *GPR16, *GPR32, *SEGMENTS, *SYSTEM, *VECTOR)
REGISTERS = {name: getattr(Register, name.upper()) for name in _NAMES}
REGISTER_NAMES = {number: name for name, number in REGISTERS.items()}
SIZES = {"byte": 1, "word": 2, "dword": 4, "fword": 6, "qword": 8, "tbyte": 10, "xmmword": 16}
SIZE_NAMES = {size: name for name, size in SIZES.items()}

_MASK = {8: 0xFF, 16: 0xFFFF, 32: 0xFFFF_FFFF}
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_MEMORY = re.compile(r"(?:(?P<size>[a-z]+)\s+ptr\s+)?(?:(?P<seg1>[a-z]s)\s*:\s*)?\[(?P<body>[^\[\]]*)\]")
_TERM = re.compile(r"\s*((?:[+-]\s*)*)([^+-]+)")
_IMMEDIATE_BITS = {
    OpKind.IMMEDIATE8: 8,
    OpKind.IMMEDIATE8_2ND: 8,
    OpKind.IMMEDIATE16: 16,
    OpKind.IMMEDIATE32: 32,
    OpKind.IMMEDIATE8TO16: 16,
    OpKind.IMMEDIATE8TO32: 32,
}


class OperandError(ValueError):
    """An operand's text is not one of the forms the assembler knows."""


@dataclass(frozen=True, slots=True)
class Reg:
    """One register, by its lower-case name."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> int:
        """Width in bytes."""
        return RegisterInfo(REGISTERS[self.name]).size


@dataclass(frozen=True, slots=True)
class Imm:
    """A number; `bits` is its width where it came from decoded code, 0 where it came from text."""

    value: int
    bits: int = 0

    def __str__(self) -> str:
        return hex(self.value)


@dataclass(frozen=True, slots=True)
class Mem:
    """A memory operand; `size` in bytes and `segment` are None where the text leaves them open."""

    size: int | None
    segment: str | None
    base: str | None
    index: str | None
    scale: int
    displacement: int

    def __str__(self) -> str:
        size = f"{SIZE_NAMES[self.size]} ptr " if self.size else ""
        segment = f"{self.segment}:" if self.segment else ""
        parts = [part for part in (self.base, f"{self.index}*{self.scale}" if self.index else None) if part]
        body = " + ".join(parts)
        if not parts:
            body = hex(self.displacement & 0xFFFF_FFFF)
        elif self.displacement:
            body += f" {'-' if self.displacement < 0 else '+'} {abs(self.displacement):#x}"
        return f"{size}{segment}[{body}]"

    @property
    def effective_segment(self) -> str:
        """The segment the processor uses: the one written, else SS for a stack base, else DS."""
        return self.segment or ("ss" if self.base in ("esp", "ebp", "bp") else "ds")

    @property
    def address_bits(self) -> int:
        """16 or 32 by the registers, 0 when there is none."""
        register = self.base or self.index
        return RegisterInfo(REGISTERS[register]).size * 8 if register else 0


@dataclass(frozen=True, slots=True)
class Far:
    """A direct far target, `selector:offset`."""

    selector: int
    offset: int

    def __str__(self) -> str:
        return f"{self.selector:#x}:{self.offset:#x}"


Operand = Reg | Imm | Mem | Far


def parse_number(text: str) -> int | None:
    """A decimal or 0x number, optionally negative; None when `text` is something else."""
    bare = text.strip()
    sign = -1 if bare.startswith("-") else 1
    bare = bare[1:].strip() if sign < 0 else bare
    if not _NUMBER.fullmatch(bare) or len(bare) > 24:
        return None
    return sign * int(bare, 16 if bare[:2] in ("0x", "0X") else 10)


def parse_operand(text: str) -> Operand:
    """One operand of Intel syntax; raises OperandError with what is wrong."""
    bare = " ".join(text.lower().split())
    if bare in REGISTERS:
        return Reg(bare)
    value = parse_number(bare)
    if value is not None:
        if not -(1 << 31) <= value < 1 << 32:
            raise OperandError(f"{value:#x} does not fit 32 bits")
        return Imm(value)
    if "[" in bare:
        return _parse_memory(bare)
    selector, colon, offset = bare.partition(":")
    far = parse_number(selector), parse_number(offset)
    if colon and far[0] is not None and far[1] is not None:
        if not (0 <= far[0] <= 0xFFFF and 0 <= far[1] <= 0xFFFF_FFFF):
            raise OperandError(f"far target '{bare}' is out of range")
        return Far(far[0], far[1])
    raise OperandError(f"'{text.strip()}' is not a register, number, memory operand, label or symbol")


def _parse_memory(text: str) -> Mem:
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise OperandError(f"'{text}' is not a memory operand such as 'dword ptr ss:[ecx + 8]'")
    size_name, segment = match["size"], match["seg1"]
    if size_name is not None and size_name not in SIZES:
        raise OperandError(f"'{size_name} ptr' is not a size, known are {', '.join(SIZES)}")
    if segment is not None and segment not in SEGMENTS:
        raise OperandError(f"'{segment}:' is not a segment register")
    memory = Mem(SIZES[size_name] if size_name else None, segment, None, None, 1, 0)
    body, position = match["body"], 0
    if not body.strip():
        raise OperandError(f"'{text}' has an empty address")
    while position < len(body):
        term = _TERM.match(body, position)
        if term is None or (position and not term[1]):
            raise OperandError(f"'{text}' has an address that is not a sum")
        memory = _add_term(memory, -1 if term[1].count("-") % 2 else 1, term[2].strip(), text)
        position = term.end()
    displacement = memory.displacement
    if not -(1 << 31) <= displacement < 1 << 32:
        raise OperandError(f"'{text}' has a displacement that does not fit 32 bits")
    return replace(memory, displacement=(displacement + (1 << 31)) % (1 << 32) - (1 << 31))


def _add_term(memory: Mem, sign: int, term: str, text: str) -> Mem:
    left, star, right = (part.strip() for part in term.partition("*"))
    if star and parse_number(left) is not None:
        left, right = right, left
    number = parse_number(term)
    if number is not None:
        return replace(memory, displacement=memory.displacement + sign * number)
    scale = parse_number(right) if star else 1
    if left not in GPR32 + GPR16 or sign < 0 or scale not in (1, 2, 4, 8):
        raise OperandError(f"'{text}' has the part '{term}', not a register, register*1/2/4/8 or number")
    if memory.base is None and not star:
        return replace(memory, base=left)
    if memory.index is None:
        if left == "esp" and scale == 1 and memory.base is not None:
            return replace(memory, base="esp", index=memory.base)  # ESP can only be a base
        return replace(memory, index=left, scale=scale)
    raise OperandError(f"'{text}' adds more than two registers")


def decoded_operands(instruction: Instruction) -> tuple[Operand, ...] | None:
    """Operands of decoded code; None where one has a kind the assembler never writes.

    A string instruction's implicit memory operands are that: it is written without operands.
    """
    found: list[Operand] = []
    for position in range(instruction.op_count):
        kind = instruction.op_kind(position)
        if kind == OpKind.REGISTER and instruction.op_register(position) in REGISTER_NAMES:
            found.append(Reg(REGISTER_NAMES[instruction.op_register(position)]))
        elif kind in _IMMEDIATE_BITS:
            bits = _IMMEDIATE_BITS[kind]
            found.append(Imm(instruction.immediate(position) & _MASK[bits], bits))
        elif kind == OpKind.MEMORY:
            found.append(_decoded_memory(instruction))
        elif kind in (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32):
            wide = kind == OpKind.FAR_BRANCH32
            offset = instruction.far_branch32 if wide else instruction.far_branch16
            found.append(Far(instruction.far_branch_selector, offset))
        else:
            return None
    return tuple(found)


def _decoded_memory(instruction: Instruction) -> Mem:
    names = REGISTER_NAMES
    return Mem(
        MemorySizeInfo(instruction.memory_size).size,
        names.get(instruction.memory_segment),
        names.get(instruction.memory_base),
        names.get(instruction.memory_index),
        instruction.memory_index_scale,
        instruction.memory_displacement,
    )


def same_memory(written: Mem, decoded: Mem) -> bool:
    """Whether two memory operands name the same address in the same segment (sizes apart)."""
    mask = _MASK[written.address_bits or 32]
    if (written.displacement - decoded.displacement) & mask:
        return False
    if written.effective_segment != decoded.segment:
        return False
    if written.scale == decoded.scale == 1:
        return {written.base, written.index} == {decoded.base, decoded.index}
    return (written.base, written.index, written.scale) == (decoded.base, decoded.index, decoded.scale)


def same_immediate(written: Imm, decoded: Imm) -> bool:
    """Whether the number fits the width that was encoded and is the number that was encoded."""
    low, high = -(1 << (decoded.bits - 1)), 1 << decoded.bits
    return low <= written.value < high and (written.value - decoded.value) % high == 0
