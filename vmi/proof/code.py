# SPDX-License-Identifier: GPL-2.0-only
"""The code of one image, decoded where it runs, and what a step by step execution must know about it.

A proof executes the bytes that are in the files, so they are decoded from the files too: no plan and no
listing of the patcher is asked. Each instruction gets a *key* that is the same for an instruction and for
its moved copy, and a kind that says what the stage has to do besides letting the processor execute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from iced_x86 import Code, Decoder, Instruction, Mnemonic, OpKind, Register, RflagsBits

from vmi.patcher.adaptorcode import same
from vmi.patcher.model import Image
from vmi.x86 import Eflags

LONGEST_INSTRUCTION = 15


class Kind(IntEnum):
    """What executing an instruction takes."""

    PLAIN = 0
    FILLER = 1
    """Does nothing: a NOP in any spelling."""
    JUMP = 2
    """A direct unconditional jump: what trampolines are held together with."""
    BRANCH = 3
    """A direct conditional jump."""
    CALL = 4
    """A near call, direct or not: the return address depends on the place."""
    END = 5
    """Leaves for another privilege level or segment: states are compared right before it."""
    TO_CONTROL = 6
    """Loads a control register: would change the stage itself, so it is noted instead."""
    TO_DEBUG = 7
    """Loads a debug register: would plant breakpoints in the stage, so it is noted instead."""
    TO_TABLE = 8
    """Loads GDTR or IDTR: noted, and the stage's own table put back."""
    NOTED = 9
    """Has an effect that no register and no memory shows."""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction at one place. ``target`` is that of a direct branch; ``number`` that of a register."""

    address: int
    length: int
    kind: Kind
    key: bytes
    insn: Instruction
    target: int = 0
    number: int = 0
    source: int = 0
    shadow: bool = False
    repeated: bool = False
    undefined: bool = False  # raises #UD on every processor
    sets: int = 0  # arithmetic flags that it writes, by their bits in EFLAGS
    blurs: int = 0  # arithmetic flags that it leaves undefined
    loads_flags: bool = False  # takes all flags from the stack
    loads_esp: bool = False  # takes ESP from another register

    @property
    def next(self) -> int:
        return self.address + self.length & 0xFFFFFFFF

    def __repr__(self) -> str:
        return f"Step({self.address:#x}, {self.insn})"


_GPR = {Register.EAX + n: n for n in range(8)}  # the decoder has them in the processor's order
_COUNTED = frozenset((Mnemonic.LOOP, Mnemonic.LOOPE, Mnemonic.LOOPNE, Mnemonic.JECXZ, Mnemonic.JCXZ))
_FLAGS = (
    (RflagsBits.CF, Eflags.CF), (RflagsBits.PF, Eflags.PF), (RflagsBits.AF, Eflags.AF),
    (RflagsBits.ZF, Eflags.ZF), (RflagsBits.SF, Eflags.SF), (RflagsBits.OF, Eflags.OF),
)  # fmt: skip
_UNDEFINED = frozenset((Mnemonic.UD0, Mnemonic.UD1, Mnemonic.UD2))
_ENDS = frozenset(
    (
        Mnemonic.IRET, Mnemonic.IRETD, Mnemonic.RETF, Mnemonic.SYSEXIT, Mnemonic.SYSRET, Mnemonic.SYSENTER,
        Mnemonic.SYSCALL, Mnemonic.RSM,
    )
)  # fmt: skip
_NOTED = frozenset((Mnemonic.INVLPG, Mnemonic.WBINVD, Mnemonic.INVD, Mnemonic.HLT))
_TABLES = frozenset((Mnemonic.LGDT, Mnemonic.LIDT))
_FAR = frozenset(
    (
        Code.JMP_PTR1616, Code.JMP_PTR1632, Code.JMP_M1616, Code.JMP_M1632,
        Code.CALL_PTR1616, Code.CALL_PTR1632, Code.CALL_M1616, Code.CALL_M1632,
    )
)  # fmt: skip
_NEAR = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32)


class CodeView:
    """An image's bytes by virtual address, with the instructions that were asked for once already."""

    def __init__(self, image: Image, bytes_at: dict[int, bytes] | None = None) -> None:
        self.image = image
        self._steps: dict[int, Step | None] = {}
        self._changed = dict(bytes_at or {})
        self._pieces = [(s.vaddr, s.end, bytearray(s.data)) for s in image.segments if s.data]
        for address, raw in self._changed.items():
            for start, end, content in self._pieces:
                if start <= address < end:
                    content[address - start : address - start + len(raw)] = raw

    def read(self, address: int, size: int) -> bytes:
        """Up to ``size`` bytes; fewer at the end of a segment, none outside all."""
        for start, end, content in self._pieces:
            if start <= address < end:
                return bytes(content[address - start : address - start + size])
        return b""

    def pieces(self) -> list[tuple[int, bytes]]:
        """All bytes: (address, content)."""
        return [(start, bytes(content)) for start, _, content in self._pieces]

    def step(self, address: int) -> Step | None:
        """The instruction at an address, None where there is none."""
        try:
            return self._steps[address]
        except KeyError:
            step = self._steps[address] = self._decode(address)
            return step

    def _decode(self, address: int) -> Step | None:
        raw = self.read(address, LONGEST_INSTRUCTION)
        insn = Decoder(32, raw, ip=address).decode() if raw else None
        if insn is None or insn.is_invalid:
            return None
        return _classify(address, raw[: insn.len], insn)


def _classify(address: int, raw: bytes, insn: Instruction) -> Step:
    kind, key, target, number, source = _kind(insn), raw, 0, 0, 0
    if _direct(insn):
        target = insn.near_branch32
        # two encodings of a jump, and the jumps around a LOOP, are the same jump
        narrow = insn.mnemonic in _COUNTED and 0x67 in raw[:-1]
        key = b"branch %d %d %d" % (insn.mnemonic, same(insn.op0_kind, OpKind.NEAR_BRANCH16), narrow)
    if kind is Kind.TO_CONTROL:
        number, source = insn.op0_register - Register.CR0, _GPR[insn.op1_register]
    elif kind is Kind.TO_DEBUG:
        number, source = insn.op0_register - Register.DR0, _GPR[insn.op1_register]
    elif kind is Kind.TO_TABLE:
        number = int(same(insn.mnemonic, Mnemonic.LIDT))
    return Step(
        address=address,
        length=insn.len,
        kind=kind,
        key=key,
        insn=insn,
        target=target,
        number=number,
        source=source,
        shadow=_has_shadow(insn),
        repeated=insn.has_rep_prefix or insn.has_repne_prefix,
        undefined=insn.mnemonic in _UNDEFINED,
        sets=_flags(insn.rflags_modified),
        blurs=_flags(insn.rflags_undefined),
        loads_flags=insn.mnemonic in (Mnemonic.IRET, Mnemonic.IRETD),
        loads_esp=same(insn.mnemonic, Mnemonic.SYSEXIT),
    )


def _flags(bits: int) -> int:
    """The decoder's flag bits as those of EFLAGS."""
    return sum(flag for bit, flag in _FLAGS if bits & bit)


def _direct(insn: Instruction) -> bool:
    return insn.op_count == 1 and insn.op0_kind in _NEAR


def _kind(insn: Instruction) -> Kind:
    mnemonic = insn.mnemonic
    if insn.code in _FAR or mnemonic in _ENDS:
        return Kind.END
    if same(mnemonic, Mnemonic.CALL):
        return Kind.CALL
    if _direct(insn):
        return Kind.JUMP if same(mnemonic, Mnemonic.JMP) else Kind.BRANCH
    if same(insn.code, Code.MOV_CR_R32) and not same(insn.op0_register, Register.CR2):
        return Kind.TO_CONTROL
    if same(insn.code, Code.MOV_DR_R32):
        return Kind.TO_DEBUG
    if mnemonic in _TABLES:
        return Kind.TO_TABLE
    if mnemonic in _NOTED:
        return Kind.NOTED
    return Kind.FILLER if is_filler(insn) else Kind.PLAIN


def _has_shadow(insn: Instruction) -> bool:
    """True when interrupts are held off for the instruction behind it."""
    loads = same(insn.mnemonic, Mnemonic.MOV) or same(insn.mnemonic, Mnemonic.POP)
    into_register = same(insn.op0_kind, OpKind.REGISTER) and same(insn.op0_register, Register.SS)
    return same(insn.mnemonic, Mnemonic.STI) or (loads and into_register)


def is_filler(insn: Instruction) -> bool:
    """True for what assemblers fill gaps with: NOPs, ``mov r,r`` and ``lea r,[r+0]``."""
    if same(insn.mnemonic, Mnemonic.NOP):
        return True
    if insn.code in (Code.MOV_RM32_R32, Code.MOV_R32_RM32):
        same_kind = same(insn.op0_kind, insn.op1_kind)
        return same_kind and same(insn.op0_register, insn.op1_register)
    plain = same(insn.memory_index, Register.NONE) and not insn.memory_displacement
    return same(insn.code, Code.LEA_R32_M) and plain and same(insn.op0_register, insn.memory_base)
