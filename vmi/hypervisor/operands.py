# SPDX-License-Identifier: GPL-2.0-only
"""Decoding of trapped instructions, and access to their operands.

Instructions are decoded once and kept by their bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from iced_x86 import Decoder, Instruction, Mnemonic, OpKind, Register

from vmi.native.cpu import Cpu
from vmi.native.linear import Linear
from vmi.x86 import U32, Seg

MAX_LENGTH = 15  # bytes of the longest instruction

_PREFIXES = bytes.fromhex("26 2e 36 3e 64 65 66 67 f0 f2 f3")

# iced's enums are plain integers to the type checker
M: Any = Mnemonic
R: Any = Register
K: Any = OpKind

#: What instructions are called, by the number of their mnemonic.
MNEMONICS = {number: name.lower() for name, number in vars(Mnemonic).items() if isinstance(number, int)}

_GPRS32 = (R.EAX, R.ECX, R.EDX, R.EBX, R.ESP, R.EBP, R.ESI, R.EDI)
_GPRS16 = (R.AX, R.CX, R.DX, R.BX, R.SP, R.BP, R.SI, R.DI)
_NUMBER = {register: i for group in (_GPRS32, _GPRS16) for i, register in enumerate(group)}
SEGMENTS = {R.ES: Seg.ES, R.CS: Seg.CS, R.SS: Seg.SS, R.DS: Seg.DS, R.FS: Seg.FS, R.GS: Seg.GS}
CONTROL = {R.CR0: 0, R.CR2: 2, R.CR3: 3, R.CR4: 4}
DEBUG = {R.DR0 + n: n for n in range(8)}


@lru_cache(maxsize=65536)
def decode(data: bytes, bits: int = 32) -> Instruction:
    """The instruction at the start of ``data``; EIP-relative operands are not resolved."""
    return Decoder(bits, data).decode()


def undefined(data: bytes) -> bool:
    """A move to or from a control register that does not exist; ring 1 is refused it as privileged."""
    code = data.lstrip(_PREFIXES)
    return code[:1] == b"\x0f" and code[1:2] in (b"\x20", b"\x22") and len(code) > 2


class Operands:
    """Reads and writes operands of instructions at the CPU's present state."""

    def __init__(self, cpu: Cpu, linear: Linear) -> None:
        self._cpu = cpu
        self._linear = linear

    def address(self, i: Instruction) -> int:
        """Linear address of the memory operand."""
        wide = i.memory_base in _GPRS32 or i.memory_index in _GPRS32 or i.memory_displ_size == 4
        address = i.memory_displacement
        if i.memory_base != R.NONE:
            address += self._cpu.gpr(_NUMBER[i.memory_base])
        if i.memory_index != R.NONE:
            address += self._cpu.gpr(_NUMBER[i.memory_index]) * i.memory_index_scale
        address &= U32 if wide else 0xFFFF
        return (self._cpu.segment(SEGMENTS[i.memory_segment]).base + address) & U32

    def read(self, i: Instruction, operand: int, size: int) -> int:
        """The low ``size`` bytes of an operand. :raises GuestFault: #PF."""
        if i.op_kind(operand) == K.REGISTER:
            return self._cpu.gpr(_NUMBER[i.op_register(operand)]) & (1 << 8 * size) - 1
        return int.from_bytes(self._linear.read(self.address(i), size), "little")

    def write_word(self, i: Instruction, value: int) -> None:
        """Store 16 bits as operand 0; a 32-bit register gets them zero-extended. :raises GuestFault: #PF."""
        if i.op_kind(0) == K.REGISTER:
            self.set_register(i.op_register(0), value & 0xFFFF)
        else:
            self._linear.write(self.address(i), (value & 0xFFFF).to_bytes(2, "little"))

    def write_low_word(self, i: Instruction, value: int) -> None:
        """As :meth:`write_word`, but a 32-bit register keeps its upper half, as for SMSW."""
        if i.op_kind(0) == K.REGISTER:
            number = _NUMBER[i.op_register(0)]
            self._cpu.set_gpr(number, self._cpu.gpr(number) & 0xFFFF0000 | value & 0xFFFF)
        else:
            self.write_word(i, value)

    def set_register(self, register: int, value: int) -> None:
        """Set a 32-bit or 16-bit general register."""
        number = _NUMBER[register]
        if register in _GPRS16:
            value = self._cpu.gpr(number) & 0xFFFF0000 | value & 0xFFFF
        self._cpu.set_gpr(number, value)

    def read_pointer(self, i: Instruction) -> tuple[int, int]:
        """Base and limit from a 6-byte memory operand; a 16-bit operand size gives a 24-bit base."""
        base, limit = self._linear.table_pointer(self.address(i))
        return base & _base_mask(i), limit

    def write_pointer(self, i: Instruction, base: int, limit: int) -> None:
        """Store base and limit to a 6-byte memory operand."""
        self._linear.put_table_pointer(self.address(i), base & _base_mask(i), limit)

    def far_pointer(self, i: Instruction, size: int) -> tuple[int, int]:
        """Selector and offset of ``size`` bytes from the memory operand."""
        data = self._linear.read(self.address(i), size + 2)
        return int.from_bytes(data[size:], "little"), int.from_bytes(data[:size], "little")

    def far_target(self, i: Instruction) -> tuple[int, int, int] | None:
        """Selector, offset and operand size of a far branch; None for another instruction."""
        kind = i.op0_kind
        if kind == K.FAR_BRANCH32:
            return i.far_branch_selector, i.far_branch32, 4
        if kind == K.FAR_BRANCH16:
            return i.far_branch_selector, i.far_branch16, 2
        if kind != K.MEMORY or not (i.is_call_far_indirect or i.is_jmp_far_indirect):
            return None
        size = 2 if i.code in _WORD_BRANCHES else 4
        return *self.far_pointer(i, size), size


def word_sized(register: int) -> bool:
    """A 16-bit general register."""
    return register in _GPRS16


def word_return(i: Instruction) -> bool:
    """A far return that pops 16-bit values."""
    return i.code in _WORD_RETURNS


def _base_mask(i: Instruction) -> int:
    return 0xFFFFFF if i.code in _WORD_POINTERS else U32


def _codes(*names: str) -> frozenset[int]:
    from iced_x86 import Code

    return frozenset(getattr(Code, name) for name in names)


_WORD_POINTERS = _codes("LGDT_M1632_16", "LIDT_M1632_16", "SGDT_M1632_16", "SIDT_M1632_16")
_WORD_RETURNS = _codes("RETFW", "RETFW_IMM16")
_WORD_BRANCHES = _codes("CALL_M1616", "JMP_M1616")
