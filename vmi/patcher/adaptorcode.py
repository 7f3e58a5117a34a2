# SPDX-License-Identifier: GPL-2.0-only
"""Write the instructions of an adaptor: saved registers, operands that shift with ESP, a call to be linked.

The encoder of the same library that decoded the site does the encoding, so an operand that could be
read can be written. Registers have the names of the ABI table here ("eax").
"""

from __future__ import annotations

from dataclasses import dataclass, field

from iced_x86 import Code, Encoder, Instruction, MemoryOperand, OpKind, Register


class Refused(Exception):
    """A site's operands can't be turned into a call; the message is a sentence for the report."""


CALL_BYTES = b"\xe8\0\0\0\0"

_SAVED_ORDER = ("eax", "ecx", "edx", "ebx")  # EAX first, so that the flags can follow it

GPR = {
    "eax": Register.EAX, "ecx": Register.ECX, "edx": Register.EDX, "ebx": Register.EBX,
    "esp": Register.ESP, "ebp": Register.EBP, "esi": Register.ESI, "edi": Register.EDI,
}  # fmt: skip
LOW_WORD = {
    "eax": Register.AX, "ecx": Register.CX, "edx": Register.DX, "ebx": Register.BX,
    "esp": Register.SP, "ebp": Register.BP, "esi": Register.SI, "edi": Register.DI,
}  # fmt: skip
_NAMES: dict[int, tuple[str, int]] = {
    **{register: (name, 4) for name, register in GPR.items()},
    **{register: (name, 2) for name, register in LOW_WORD.items()},
    Register.AL: ("eax", 1),
}


@dataclass(frozen=True, slots=True)
class Adaptor:
    """Position-independent code; ``hole`` is the offset of the E8 whose rel32 is to be linked.

    None: the adaptor calls nobody and does all by itself (an inline one).
    """

    code: bytes
    hole: int | None

    def __repr__(self) -> str:
        return f"Adaptor({self.code.hex()}, {'inline' if self.hole is None else f'hole {self.hole}'})"


def same(first: int, second: int) -> bool:
    """Compare two of the decoder's constants (their declared types let no checker do it)."""
    return int(first) == int(second)


def is_memory(insn: Instruction, operand: int) -> bool:
    """True when the operand is a memory operand with base, index, displacement."""
    return same(insn.op_kind(operand), OpKind.MEMORY)


def register_of(insn: Instruction, operand: int) -> tuple[str, int]:
    """A register operand as (name of the 32-bit register, size in bytes: 4, 2, or 1 for AL)."""
    return _NAMES[insn.op_register(operand)]


def check_operand(insn: Instruction) -> None:
    """Raise Refused for a memory operand that can't be reached from an adaptor."""
    if same(insn.memory_base, Register.ESP) and insn.memory_displacement & 0x80000000:
        raise Refused("The operand lies below the stack pointer, where the call's own frame goes.")


def reads(insn: Instruction, operand: int, register: str) -> bool:
    """True when the operand is the register (or its low part) or is addressed with it."""
    if is_memory(insn, operand):
        return GPR[register] in (insn.memory_base, insn.memory_index)
    return register_of(insn, operand)[0] == register


@dataclass(slots=True)
class Writer:
    """Collects code and knows how far ESP is below where the native instruction had it."""

    code: bytearray = field(default_factory=bytearray)
    depth: int = 4  # the return address
    hole: int | None = None
    places: dict[str, int] = field(default_factory=dict)  # what was saved -> depth after its push

    def put(self, instruction: Instruction) -> None:
        """Append one instruction that has the same bytes anywhere."""
        encoder = Encoder(32)
        encoder.encode(instruction, 0)
        self.code += encoder.take_buffer()

    def raw(self, text: str) -> None:
        """Append bytes given in hexadecimal."""
        self.code += bytes.fromhex(text)

    def save(self, register: str, name: str | None = None) -> None:
        """Push a register; ``place`` finds it again under ``name``."""
        self.put(Instruction.create_reg(Code.PUSH_R32, GPR[register]))
        self.depth += 4
        self.places[name or register] = self.depth

    def restore(self, register: str) -> None:
        """Pop a register."""
        self.put(Instruction.create_reg(Code.POP_R32, GPR[register]))
        self.depth -= 4

    def place(self, name: str) -> MemoryOperand:
        """Where on the stack ``save`` put something."""
        return _stack(self.depth - self.places[name])

    def move(self, target: str, source: str) -> None:
        """Copy a register's value as the native instruction would have read it."""
        if source == "esp":
            self.put(Instruction.create_reg_mem(Code.LEA_R32_M, GPR[target], _stack(self.depth)))
        elif source != target:
            self.put(Instruction.create_reg_reg(Code.MOV_R32_RM32, GPR[target], GPR[source]))

    def load(self, target: str, place: str) -> None:
        """Load a register from a saved place."""
        self.put(Instruction.create_reg_mem(Code.MOV_R32_RM32, GPR[target], self.place(place)))

    def keep(self, register: str, place: str) -> None:
        """Store a register in a saved place."""
        self.put(Instruction.create_mem_reg(Code.MOV_RM32_R32, self.place(place), GPR[register]))

    def constant(self, target: str, value: int) -> None:
        """Load a register with a number."""
        self.put(Instruction.create_reg_u32(Code.MOV_R32_IMM32, GPR[target], value))

    def widen(self, target: str) -> None:
        """Zero the upper half of a register."""
        self.put(Instruction.create_reg_reg(Code.MOVZX_R32_RM16, GPR[target], LOW_WORD[target]))

    def operand(self, insn: Instruction) -> MemoryOperand:
        """The instruction's memory operand as it must be written here."""
        return _operand(insn, self.depth, keep_segment=True)

    def address(self, target: str, insn: Instruction) -> None:
        """Load a register with the offset of the instruction's memory operand, its segment left out."""
        memory = _operand(insn, self.depth, keep_segment=False)
        self.put(Instruction.create_reg_mem(Code.LEA_R32_M, GPR[target], memory))

    def load_word(self, target: str, insn: Instruction) -> None:
        """Load a register with the 16 bits at the instruction's memory operand, zero-extended."""
        memory = self.operand(insn)
        self.put(Instruction.create_reg_mem(Code.MOVZX_R32_RM16, GPR[target], memory))

    def store_word(self, address: str, insn: Instruction) -> None:
        """Store AX at [address], through the segment that the instruction's memory operand has."""
        segment = insn.memory_segment
        override = Register.NONE if same(segment, Register.DS) else segment
        memory = MemoryOperand(GPR[address], seg=override)
        self.put(Instruction.create_mem_reg(Code.MOV_RM16_R16, memory, Register.AX))

    def deliver(self, register: str, size: int) -> None:
        """Put the low ``size`` bytes of EAX into a register, or into the place it will be restored from."""
        code, part = {
            4: (Code.MOV_RM32_R32, Register.EAX),
            2: (Code.MOV_RM16_R16, Register.AX),
            1: (Code.MOV_RM8_R8, Register.AL),
        }[size]
        if register in self.places:
            self.put(Instruction.create_mem_reg(code, self.place(register), part))
        elif register != "eax":
            target = GPR[register] if size == 4 else LOW_WORD[register]
            self.put(Instruction.create_reg_reg(code, target, part))

    def call(self) -> None:
        """Append the call that activation links to the ROM's entry."""
        self.hole = len(self.code)
        self.code += CALL_BYTES

    def finish(self, ending: str = "c3") -> Adaptor:
        """Append the ending (`ret` by default) and give the adaptor."""
        self.raw(ending)
        return Adaptor(bytes(self.code), self.hole)


@dataclass(frozen=True, slots=True)
class Saved:
    """What an adaptor brings back at its end: registers (EAX first), arithmetic flags, direction flag.

    EAX is among the registers if any flag is: the flags travel in it.
    """

    registers: tuple[str, ...]
    flags: bool
    direction: bool

    def __bool__(self) -> bool:
        return bool(self.registers or self.flags or self.direction)

    @classmethod
    def what(cls, registers: set[str], flags: bool, direction: bool) -> Saved:
        """``registers`` in the right order, with EAX if it is needed."""
        wanted = registers | {"eax"} if flags or direction else registers
        return cls(tuple(name for name in _SAVED_ORDER if name in wanted), flags, direction)

    def enter(self, writer: Writer, needs_eax: bool) -> None:
        """Save it all. ``needs_eax``: EAX must be as the kernel left it when the next code runs."""
        for register in self.registers:
            writer.save(register)
            if register != "eax" or not (self.flags or self.direction):
                continue
            if self.flags:
                writer.raw("9f 0f90c0")  # lahf; seto al
                writer.save("eax", "flags")
                if needs_eax:
                    writer.load("eax", "eax")
            if self.direction:
                writer.raw("9c fc")  # pushfd; cld
                writer.depth += 4

    def leave(self, writer: Writer) -> None:
        """Bring it all back; results must be where they belong, in a register or in its place."""
        for register in reversed(self.registers):
            if register == "eax" and self.direction:
                # Only this flag of the old image: the others may have been changed for good.
                writer.restore("eax")
                writer.raw("2500040000")  # and eax, 0x400
                writer.raw("9c 090424 9d")  # pushfd; or [esp], eax; popfd
            if register == "eax" and self.flags:
                writer.restore("eax")
                writer.raw("047f 9e")  # add al, 0x7f; sahf
            writer.restore(register)


def _stack(offset: int) -> MemoryOperand:
    return MemoryOperand(Register.ESP, displ=offset, displ_size=1 if offset else 0)


def _operand(insn: Instruction, depth: int, keep_segment: bool) -> MemoryOperand:
    """The instruction's memory operand as it must be written when ESP is ``depth`` lower."""
    displacement = insn.memory_displacement
    if same(insn.memory_base, Register.ESP):
        displacement += depth
    displacement &= 0xFFFFFFFF
    signed = displacement - (1 << 32) if displacement & 0x80000000 else displacement
    if same(insn.memory_base, Register.NONE) or not -128 <= signed < 128:
        size = 4
    else:
        size = 0 if signed == 0 and not same(insn.memory_base, Register.EBP) else 1
    segment = insn.segment_prefix if keep_segment else Register.NONE
    return MemoryOperand(
        insn.memory_base, insn.memory_index, insn.memory_index_scale, signed, size, False, segment
    )
