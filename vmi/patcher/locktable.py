# SPDX-License-Identifier: GPL-2.0-only
"""Rewrite the table of LOCK prefixes that a kernel takes out on one processor, after instructions have moved.

The kernel changes the byte that an entry names if that is (or because it must be) a LOCK prefix in its own
text. So an entry follows its instruction; one in a trampoline outside the text keeps its prefix, which costs
a few cycles and nothing else, and so does a copy of an instruction that also stays.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from vmi.patcher.model import Image, LockTable
from vmi.patcher.trampoline import Trampoline

SECTION = ".smp_locks"
LOCK = b"\xf0"
_MASK = 0xFFFFFFFF
_WORD = 4


def find(image: Image, is_code: Callable[[int], bool]) -> LockTable | None:
    """The table's layout; None when there is none, or one of its entries names no LOCK prefix."""
    section = image.section(SECTION)
    if section is None or not section.size or section.size % _WORD:
        return None
    size = len(image.read(section.vaddr, section.size).rstrip(b"\0"))  # linkers fill it up to a page
    for relative in (True, False):
        table = LockTable(section.vaddr, -(-size // _WORD), relative)
        named = entries(image, table)
        if named and all(is_code(at) and image.read(at, 1) == LOCK for at in named):
            return table
    return None


def entries(image: Image, table: LockTable) -> tuple[int, ...]:
    """The addresses that the table names, in its order."""
    raw = image.read(table.start, table.count * _WORD)
    words = (word for (word,) in struct.iter_unpack("<I", raw))
    if not table.relative:
        return tuple(words)
    return tuple(word + table.start + _WORD * number & _MASK for number, word in enumerate(words))


def edit(image: Image, table: LockTable, trampolines: Iterable[Trampoline]) -> dict[int, bytes]:
    """The edit that makes the table right: address to bytes, empty when nothing named in it has moved."""
    homes = {moved.insn.address: moved.at for built in trampolines for moved in built.moved if not moved.copy}
    before = entries(image, table)
    after = [homes.get(at, at) for at in before]
    if after == list(before):
        return {}
    raw = bytearray()
    for at in after:
        origin = table.start + len(raw) if table.relative else 0
        raw += struct.pack("<I", at - origin & _MASK)
    return {table.start: bytes(raw)}
