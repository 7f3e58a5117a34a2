# SPDX-License-Identifier: GPL-2.0-only
"""Read a patched file back for ``verify``: loaded bytes by address, instructions, padding.

Everything here works on the output's bytes with libraries that didn't write them.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from elftools.elf.elffile import ELFFile
from iced_x86 import Code, Decoder, Instruction, Mnemonic, OpKind, Register

from vmi.errors import VerifyError
from vmi.patcher.adaptorcode import same

_DIFFERENT = re.compile(rb"[^\0]+")


def check(condition: bool, otherwise: str) -> None:
    """Raise VerifyError with the sentence unless ``condition`` holds."""
    if not condition:
        raise VerifyError(f"the output doesn't match the plan: {otherwise}")


def open_elf(data: bytes) -> ELFFile:
    """The file as the second library reads it; it wants the section header size even without sections.

    No section headers means none, wherever they are said to be: there are never so many that their number
    stands in the first of them.
    """
    if data[48:50] == b"\0\0":  # e_shnum
        data = data[:32] + bytes(4) + data[36:46] + b"\x28\0" + data[48:]
    return ELFFile(io.BytesIO(data))


class Memory:
    """The loaded bytes by virtual address."""

    def __init__(self, pieces: list[tuple[int, bytes]]) -> None:
        self.pieces = sorted(pieces)
        self.starts = [start for start, _ in self.pieces]

    def read(self, address: int, size: int) -> bytes:
        """Up to ``size`` bytes; fewer at the end of a segment's file part."""
        index = bisect_right(self.starts, address) - 1
        if index < 0:
            return b""
        start, content = self.pieces[index]
        return content[address - start : address - start + size]

    def changed(self, before: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, int]]:
        """[start, end) of the bytes that differ from what was loaded ``before``: (address, content) pairs."""
        for start, old in before:
            new = self.read(start, len(old)).ljust(len(old), b"\0")
            if new != old:
                mixed = int.from_bytes(new, "little") ^ int.from_bytes(old, "little")
                for run in _DIFFERENT.finditer(mixed.to_bytes(len(old), "little")):
                    yield start + run.start(), start + run.end()

    def decode(self, address: int) -> Instruction:
        """The instruction at an address; raises VerifyError when there is none."""
        insn = Decoder(32, self.read(address, 15), ip=address).decode()
        check(not insn.is_invalid, f"there is no instruction at {address:#x}")
        return insn

    def jump(self, address: int) -> int:
        """The target of the direct jump at an address; raises VerifyError when there is none."""
        insn = self.decode(address)
        check(is_jump(insn), f"there is no jump at {address:#x}")
        return insn.near_branch32


def is_jump(insn: Instruction) -> bool:
    """True for a direct unconditional near jump."""
    return same(insn.op0_kind, OpKind.NEAR_BRANCH32) and same(insn.mnemonic, Mnemonic.JMP)


def is_nop(insn: Instruction) -> bool:
    """True for NOPs and for what assemblers pad i386 code with: mov r,r and lea r,[r+0]."""
    if same(insn.mnemonic, Mnemonic.NOP):
        return True
    if insn.code in (Code.MOV_R32_RM32, Code.MOV_RM32_R32):
        return same(insn.op1_kind, OpKind.REGISTER) and same(insn.op0_register, insn.op1_register)
    plain = insn.memory_displacement == 0 and same(insn.memory_index, Register.NONE)
    return same(insn.code, Code.LEA_R32_M) and plain and same(insn.op0_register, insn.memory_base)


def has_shadow(raw: bytes) -> bool:
    """True when the last instruction of ``raw`` holds interrupts off for the one after it."""
    last = list(Decoder(32, raw))[-1]
    if same(last.mnemonic, Mnemonic.STI):
        return True
    loads = same(last.mnemonic, Mnemonic.MOV) or same(last.mnemonic, Mnemonic.POP)
    return loads and same(last.op0_kind, OpKind.REGISTER) and same(last.op0_register, Register.SS)


def is_padding(raw: bytes, first: int, last: int) -> bool:
    """True when bytes [first, last) of ``raw`` are padding: NOPs, breakpoints or zeros.

    The first and the last NOP may be cut, as windows and other pads take what they need.
    """
    if not raw[first:last].strip(b"\0\xcc"):
        return True  # of any length: decoded, zeros come in pairs
    return any(_all_padding(raw, begin, first, last) for begin in range(first, max(-1, first - 15), -1))


def _all_padding(raw: bytes, begin: int, first: int, last: int) -> bool:
    at = begin
    for insn in Decoder(32, raw[begin:]):
        code = raw[at : at + insn.len]
        at += insn.len
        if at <= first or not (is_nop(insn) or not code.strip(b"\xcc") or not code.strip(b"\0")):
            return False
        if at >= last:
            return True
    return False
