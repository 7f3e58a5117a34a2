# SPDX-License-Identifier: GPL-2.0-only
"""Adaptors that need no call: reading CS or SS as the kernel knows them.

A kernel that is run on ring 1 finds that ring in the low bits of CS and SS (RPL), where it expects 0.
Nobody has to be asked for the difference: RPL 1 is shown as 0, and everything else as it is.

The code must keep the flags, so it computes with instructions that don't change any. As a signed number
of two bits the RPL is 0, 1, -2 or -1, and only 1 is positive: so only for RPL 1 has the negated number
a sign bit, and that sign, taken as 0 or -1, is what has to be added to the selector. Shifting left by 6
(``lea`` twice) brings the two bits to the top of a byte, ``movsx`` makes the signed number of them,
``not`` and ``lea`` negate it, and another ``movsx`` of the second byte leaves the sign alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Code, Decoder, Instruction, MemoryOperand, Register, RegisterExt

from vmi.patcher.adaptorcode import (
    GPR,
    LOW_WORD,
    Adaptor,
    Refused,
    Writer,
    check_operand,
    is_memory,
    register_of,
)

if TYPE_CHECKING:
    from iced_x86._iced_x86_py import Register as RegisterNumber

_LOW_BYTE = {"eax": Register.AL, "ecx": Register.CL, "edx": Register.DL, "ebx": Register.BL}
_HIGH_BYTE = {"eax": Register.AH, "ecx": Register.CH, "edx": Register.DH, "ebx": Register.BH}
_PUSHES = {
    Code.PUSHD_CS: (Register.CS, 4),
    Code.PUSHW_CS: (Register.CS, 2),
    Code.PUSHD_SS: (Register.SS, 4),
    Code.PUSHW_SS: (Register.SS, 2),
}


def inline(raw: bytes, dead: tuple[str, ...]) -> Adaptor:
    """The adaptor for a read of CS or SS; registers in ``dead`` may be left with anything.

    Raises Refused when the selector would go to the stack pointer.
    """
    insn = Decoder(32, raw).decode()
    if insn.code in _PUSHES:
        return _push(*_PUSHES[insn.code], dead)
    if is_memory(insn, 0):
        return _store(insn, dead)
    return _move(insn, raw, dead)


def _move(insn: Instruction, raw: bytes, dead: tuple[str, ...]) -> Adaptor:
    name, size = register_of(insn, 0)
    if name == "esp":
        raise Refused("The result goes to the stack pointer.")
    writer = Writer()
    (work,), saved = _scratch(writer, 1, (GPR[name],), dead)
    writer.code += raw  # so that the bits that the instruction leaves alone are left alone
    _subtract(writer, insn.op1_register, name, work, size)
    return _finish(writer, saved)


def _store(insn: Instruction, dead: tuple[str, ...]) -> Adaptor:
    writer = Writer()
    check_operand(insn)
    (value, work), saved = _scratch(writer, 2, (insn.memory_base, insn.memory_index), dead)
    writer.put(Instruction.create_reg_reg(Code.MOV_R32M16_SREG, GPR[value], insn.op1_register))
    _subtract(writer, insn.op1_register, value, work, 4)
    writer.put(Instruction.create_mem_reg(Code.MOV_RM16_R16, writer.operand(insn), LOW_WORD[value]))
    return _finish(writer, saved)


def _push(selector: RegisterNumber, size: int, dead: tuple[str, ...]) -> Adaptor:
    """The return address moves down by the pushed size, to make room for the selector above it."""
    writer = Writer()
    writer.raw("ff3424" if size == 4 else "66ff3424")  # push [esp], or its low half
    (value, work), saved = _scratch(writer, 2, (), dead)
    image = 4 * len(saved) + 4
    if size == 2:  # the high half follows
        half = MemoryOperand(Register.ESP, displ=image, displ_size=1)
        writer.put(Instruction.create_reg_mem(Code.MOV_R16_RM16, LOW_WORD[value], half))
        half = MemoryOperand(Register.ESP, displ=image - 2, displ_size=1)
        writer.put(Instruction.create_mem_reg(Code.MOV_RM16_R16, half, LOW_WORD[value]))
    writer.put(Instruction.create_reg_reg(Code.MOV_R32M16_SREG, GPR[value], selector))
    writer.widen(value)
    _subtract(writer, selector, value, work, 4)
    place = MemoryOperand(Register.ESP, displ=image, displ_size=1)
    code, part = (Code.MOV_RM32_R32, GPR[value]) if size == 4 else (Code.MOV_RM16_R16, LOW_WORD[value])
    writer.put(Instruction.create_mem_reg(code, place, part))
    return _finish(writer, saved)


def _scratch(
    writer: Writer, count: int, taken: tuple[RegisterNumber, ...], dead: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``count`` registers with byte parts, dead ones first, and those of them that had to be saved."""
    used = {RegisterExt.full_register32(register) for register in taken}
    free = [name for name in _LOW_BYTE if GPR[name] not in used]
    chosen = tuple(sorted(free, key=lambda name: (name not in dead, free.index(name)))[:count])
    saved = tuple(name for name in chosen if name not in dead)
    for name in saved:
        writer.save(name)
    return chosen, saved


def _subtract(writer: Writer, selector: RegisterNumber, value: str, work: str, size: int) -> None:
    """Take 1 off the selector in ``value`` if its RPL is 1; ``size`` bytes of it change."""
    register = GPR[work]
    writer.put(Instruction.create_reg_reg(Code.MOV_R32M16_SREG, register, selector))
    by_8 = MemoryOperand(Register.NONE, register, 8, displ=0, displ_size=4)
    for _ in range(2):
        writer.put(Instruction.create_reg_mem(Code.LEA_R32_M, register, by_8))
    writer.put(Instruction.create_reg_reg(Code.MOVSX_R32_RM8, register, _LOW_BYTE[work]))
    writer.put(Instruction.create_reg(Code.NOT_RM32, register))
    plus_1 = MemoryOperand(register, displ=1, displ_size=1)
    writer.put(Instruction.create_reg_mem(Code.LEA_R32_M, register, plus_1))
    writer.put(Instruction.create_reg_reg(Code.MOVSX_R32_RM8, register, _HIGH_BYTE[work]))
    total = MemoryOperand(GPR[value], register)
    if size == 4:
        writer.put(Instruction.create_reg_mem(Code.LEA_R32_M, GPR[value], total))
    else:
        writer.put(Instruction.create_reg_mem(Code.LEA_R16_M, LOW_WORD[value], total))


def _finish(writer: Writer, saved: tuple[str, ...]) -> Adaptor:
    for name in reversed(saved):
        writer.restore(name)
    return writer.finish()
