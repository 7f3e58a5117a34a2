# SPDX-License-Identifier: GPL-2.0-only
"""Rewrite the table by which a kernel recovers from faults, after instructions named in it have moved.

The kernel looks the faulting instruction's address up by halves, so the table must stay sorted, and its
relative words are distances from where they stand: an entry that changes its place changes its words too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmi.errors import BadInput
from vmi.patcher.model import FaultTable, Image
from vmi.patcher.trampoline import Trampoline

MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One entry in absolute addresses; ``third`` is what the table says it is, 0 in 8-byte entries."""

    insn: int
    fixup: int
    third: int = 0

    def __repr__(self) -> str:
        return f"Entry({self.insn:#x} -> {self.fixup:#x})"


def read(image: Image, table: FaultTable) -> tuple[Entry, ...]:
    """The entries as they stand in the image; raises ValueError when they aren't all in the file."""
    raw = image.read(table.start, table.count * table.entry)
    if len(raw) != table.count * table.entry:
        raise ValueError(f"the fault table at {table.start:#x} isn't in the file")
    found = []
    for at in range(0, len(raw), table.entry):
        words = struct.unpack_from(f"<{table.entry // 4}I", raw, at)
        found.append(Entry(*_turn(table, table.start + at, words, 1)))
    return tuple(found)


def pack(table: FaultTable, entries: Iterable[Entry]) -> bytes:
    """The table's bytes for ``entries``, in the order given."""
    raw = bytearray()
    for entry in entries:
        values = (entry.insn, entry.fixup, entry.third)[: table.entry // 4]
        raw += struct.pack(f"<{len(values)}I", *_turn(table, table.start + len(raw), values, -1))
    return bytes(raw)


def _turn(table: FaultTable, at: int, words: Iterable[int], sign: int) -> tuple[int, ...]:
    """Words to addresses (sign 1) or back (-1); the first of them stands at ``at``."""
    relative = (table.relative, table.relative, table.relative_third)
    return tuple(
        word + sign * (at + 4 * number) & MASK if relative[number] else word
        for number, word in enumerate(words)
    )


def edit(image: Image, table: FaultTable, trampolines: Sequence[Trampoline]) -> dict[int, bytes]:
    """The edit that makes the table right: address to bytes, empty when nothing named in it has moved.

    Raises ValueError when the plan moved what can't be, the copy of an instruction that also stays, of
    which the table could name one only; BadInput when it names an address where no instruction starts.
    """
    homes: dict[int, int] = {}
    copied: set[int] = set()
    inside: set[int] = set()
    entered: dict[int, int] = {}  # a place to go on at may be a slot, and is then all of it
    for built in trampolines:
        inside.update(range(built.window.start, built.window.end))
        entered.update((slot.site.address, slot.start) for slot in built.slots)
        for moved in built.moved:
            if moved.copy:
                copied.add(moved.insn.address)
            else:
                homes[moved.insn.address] = moved.at
    before = read(image, table)
    for entry in before:
        for at in (entry.insn, entry.fixup):
            if at in inside and at not in homes and at not in copied:
                raise BadInput(f"the fault table names {at:#x}, where no instruction starts")
        if entry.insn in copied:
            raise ValueError(f"the plan moves {entry.insn:#x}, which the fault table can't follow")
    starts = {built.window.start for built in trampolines}
    resumes = {at: entered.get(at, home) for at, home in homes.items() if at not in starts}
    after = sorted(_moved(before, homes, resumes), key=lambda entry: entry.insn)
    return {} if after == list(before) else {table.start: pack(table, after)}


def _moved(entries: Iterable[Entry], homes: Mapping[int, int], resumes: Mapping[int, int]) -> Iterable[Entry]:
    for entry in entries:
        yield Entry(homes.get(entry.insn, entry.insn), resumes.get(entry.fixup, entry.fixup), entry.third)
