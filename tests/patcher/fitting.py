# SPDX-License-Identifier: GPL-2.0-only
"""Random states in which an instruction can be executed: operands that address memory, valid selectors."""

from __future__ import annotations

import random
import struct

from iced_x86 import Instruction, MemorySizeExt, Register

from tests.patcher.bench import (
    ARITHMETIC,
    DATA,
    DIRECTION,
    FS_BASE,
    GPR,
    GS_BASE,
    INTERRUPT,
    LDT_SELECTOR,
    STACK,
    SYSENTER_CS,
    TSS_SELECTOR,
    State,
    random_state,
)

_NUMBERS = {
    "eax": Register.EAX, "ecx": Register.ECX, "edx": Register.EDX, "ebx": Register.EBX,
    "esp": Register.ESP, "ebp": Register.EBP, "esi": Register.ESI, "edi": Register.EDI,
}  # fmt: skip
NAMES: dict[int, str] = {int(number): name for name, number in _NUMBERS.items()}
_SHORT: dict[int, str] = {
    int(Register.BX): "ebx",
    int(Register.BP): "ebp",
    int(Register.SI): "esi",
    int(Register.DI): "edi",
}
_CONTROL = {"mov cr0,r": (0x11, 0xE), "mov cr4,r": (0, 0x98), "mov cr3,r": (0, 0xFFFFF000)}


def unplayable(form: str, insn: Instruction) -> str:
    """Why the processor here can't play this instruction with a meaning, empty if it can."""
    if form.startswith(("mov cr0", "mov cr4")) and insn.op1_register == Register.ESP:
        return "no stack is at an address that is a good control register"
    if form in ("lldt rm", "ltr rm") and insn.op0_register in (Register.SP, Register.ESP):
        return "no stack is at an address that is a good selector"
    return ""


def fitting_state(form: str, insn: Instruction, rng: random.Random, direction: bool) -> State:
    """A random state in which ``insn`` does something that can be compared."""
    state = random_state(rng)
    registers, system = dict(state.registers), dict(state.system)
    data, stack = bytearray(state.data), bytearray(state.stack)
    flags = 2 | rng.getrandbits(32) & (ARITHMETIC | INTERRUPT | (DIRECTION if direction else 0))
    name = form.split(maxsplit=1)[0]
    if name in ("lldt", "ltr"):
        selector = LDT_SELECTOR if name == "lldt" else TSS_SELECTOR
        for register in set(registers) - {"esp"}:
            registers[register] = registers[register] & 0xFFFF0000 | selector
        for buffer in (data, stack):
            buffer[:] = struct.pack("<H", selector) * (len(buffer) // 2)
    if form in ("wrmsr", "rdmsr"):
        registers["ecx"] = SYSENTER_CS
    if form == "cpuid":
        registers["eax"], registers["ecx"] = rng.choice((0, 1, 4, 0x80000001)), rng.randrange(2)
    if form in _CONTROL:
        fixed, mask = _CONTROL[form]
        for register in set(registers) - {"esp"}:
            registers[register] = registers[register] & mask | fixed
    if form == "mov dr,r" and insn.op0_register in (Register.DR5, Register.DR7):
        registers = {register: value & 0xFFFF0000 | 0x400 for register, value in registers.items()}
        registers["esp"] = STACK  # which happens to enable no breakpoint
    if form in ("mov dr,r", "mov r,dr"):
        system["cr4"] = 0  # DR4 and DR5 are other names of DR6 and DR7
    if form.startswith(("popf", "iret")):
        image = 2 | rng.getrandbits(32) & (ARITHMETIC | INTERRUPT | DIRECTION)
        at = registers["esp"] - STACK + 0x1000
        stack[at : at + 4] = struct.pack("<I", image)
    if name.startswith(("ins", "outs")):
        registers["edi" if name.startswith("ins") else "esi"] = DATA + 0x200 + rng.randrange(16)
        registers["ecx"] = rng.randrange(6)
    _address(insn, registers, rng)
    return State(registers, flags, system, bytes(data), bytes(stack))


def _address(insn: Instruction, registers: dict[str, int], rng: random.Random) -> None:
    """Set the registers of a memory operand so that it is in the data (or on the stack, for ESP)."""
    base = NAMES.get(int(insn.memory_base), _SHORT.get(int(insn.memory_base), ""))
    index = NAMES.get(int(insn.memory_index), _SHORT.get(int(insn.memory_index), ""))
    wide = int(insn.memory_base) in NAMES or int(insn.memory_index) in NAMES
    scale, offset = insn.memory_index_scale, insn.memory_displacement & 0xFFFFFFFF
    size = MemorySizeExt.size(insn.memory_size) or 8
    target = DATA + 0x200 + 8 * rng.randrange(0x40) + (size * rng.randrange(8 // size) if size < 8 else 0)
    offset += {int(Register.FS): FS_BASE, int(Register.GS): GS_BASE}.get(int(insn.segment_prefix), 0)
    values: dict[str, int] = {}
    if base and base == index:
        values[base] = (target - offset) // (1 + scale) & ~7
    elif index:
        values[index] = 8 * rng.randrange(16)
    if base and base not in (index, "esp"):
        values[base] = target - offset - scale * values.get(index, 0)
    for register, value in values.items():
        upper = 0 if wide else registers[register] & 0xFFFF0000
        registers[register] = upper | value & (0xFFFFFFFF if wide else 0xFFFF)


def address_of(insn: Instruction, registers: dict[str, int]) -> int:
    """The flat address of the memory operand."""
    value = insn.memory_displacement
    for number, scale in ((insn.memory_base, 1), (insn.memory_index, insn.memory_index_scale)):
        name = NAMES.get(int(number), _SHORT.get(int(number), ""))
        value += registers[name] * scale if name else 0
    wide = int(insn.memory_base) not in _SHORT and int(insn.memory_index) not in _SHORT
    return value & (0xFFFFFFFF if wide and insn.memory_displ_size != 2 else 0xFFFF)


assert set(GPR) == set(_NUMBERS)
