# SPDX-License-Identifier: GPL-2.0-only
"""Instructions that do nothing: what assemblers, linkers and self-patching kernels fill up with.

Assemblers spell a NOP in many ways on i386, `mov esi,esi` and `lea esi,[esi+0]` among them, because old
processors knew no long NOP. Answers are kept, since a kernel repeats a few of them a hundred thousand times.
"""

from __future__ import annotations

from iced_x86 import Code as OpCode
from iced_x86 import Decoder, Mnemonic, Register

from vmi.patcher.adaptorcode import same

BITS = 32
MAX_KNOWN = 4096

# nop, breakpoint, zero, mov, lea, 0f1f, and prefixes
_FIRST = frozenset(bytes.fromhex("90 cc 00 89 8b 8d 0f 26 2e 36 3e 64 65 66 67 f2 f3"))

_fillers: dict[bytes, bool] = {}


def is_filler(raw: bytes) -> bool:
    """True for one instruction that does nothing: a NOP in any spelling, a breakpoint, or zeros."""
    if raw[0] not in _FIRST:
        return False
    known = _fillers.get(raw)
    if known is None:
        known = _compute_filler(raw)
        if len(_fillers) < MAX_KNOWN:
            _fillers[raw] = known
    return known


def _compute_filler(raw: bytes) -> bool:
    if not raw.strip(b"\xcc") or not raw.strip(b"\0"):
        return True
    insn = Decoder(BITS, raw).decode()
    if same(insn.mnemonic, Mnemonic.NOP):
        return True
    if insn.code in (OpCode.MOV_RM32_R32, OpCode.MOV_R32_RM32) and insn.op_count == 2:
        return same(insn.op1_kind, insn.op0_kind) and same(insn.op0_register, insn.op1_register)
    plain = same(insn.memory_index, Register.NONE) and insn.memory_displacement == 0
    return same(insn.code, OpCode.LEA_R32_M) and plain and same(insn.memory_base, insn.op0_register)


def may_fill(data: bytes) -> bool:
    """False for what surely starts with another instruction than a NOP."""
    return data[0] in _FIRST


def filled(data: bytes) -> bool:
    """True when ``data`` is whole NOPs."""
    if data and not may_fill(data):
        return False
    return all(is_filler(data[insn.ip32 : insn.next_ip32]) for insn in Decoder(BITS, data, ip=0))
