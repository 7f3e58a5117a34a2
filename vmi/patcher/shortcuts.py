# SPDX-License-Identifier: GPL-2.0-only
"""What the first bytes of an instruction say about it, as the decoder said it before.

A kernel has millions of instructions, but they start in a few thousand ways. The length and the kind of
most follow from two bytes, opcode and ModR/M byte, and of nearly all others from three: behind a prefix or
the 0F of longer opcodes, and where the SIB byte tells whether a displacement follows. So the decoder is asked
once for each such start, and its answer is kept. It is asked every time for the sensitive instructions, for
far branches, for whatever is none, and where still more bytes decide.

An answer is one number: the kind (`vmi.patcher.decode.Kind`) times 16 and the length in bytes.
"""

from __future__ import annotations

UNKNOWN, MORE = 0xFF, 0xFE
"""In place of an answer: the decoder must be asked; a third byte must be looked at."""

LENGTHS = bytes(answer & 15 for answer in range(256))
KINDS = bytes(answer >> 4 for answer in range(256))
"""The parts of each answer, for translating many of them at once."""

TWO: list[list[int]] = [[UNKNOWN] * 256 for _ in range(256)]
"""By the first byte and the second."""

_NOTHING = [UNKNOWN] * 256
THREE: list[list[list[int]]] = [[_NOTHING] * 256 for _ in range(256)]
"""By the first three bytes, where TWO says so."""

_BEFORE_OPCODE = frozenset(bytes.fromhex("0f 26 2e 36 3e 64 65 66 f0 f2 f3"))
# What a later byte may make something else of: 16-bit addressing, WAIT, POP (XOP), BOUND (EVEX), LES and LDS
# (VEX); behind 0F the opcodes of three bytes and those that end in their opcode.
_NEVER = frozenset(bytes.fromhex("67 9b 8f 62 c4 c5"))
_NEVER_LONG = frozenset(bytes.fromhex("38 3a 0f"))


def learn(start: bytes, answer: int) -> None:
    """Keep an answer for what begins as ``start`` does, if these three bytes are enough for it.

    Only for what is an instruction and not a sensitive one.
    """
    if len(start) < 3 or start[0] in _NEVER:
        return
    first, second, third = start
    if first in _BEFORE_OPCODE:
        never = _NEVER_LONG if first == 0x0F else _NEVER | _BEFORE_OPCODE
        if second in never or _has_sib(third):
            return
    elif not _has_sib(second):
        TWO[first][second] = answer
        return
    if THREE[first][second] is _NOTHING:
        THREE[first][second] = [*_NOTHING]
    TWO[first][second] = MORE
    THREE[first][second][third] = answer


def _has_sib(modrm: int) -> bool:
    """True for a ModR/M byte with which the next byte tells whether a displacement follows."""
    return modrm & 0xC7 == 4
