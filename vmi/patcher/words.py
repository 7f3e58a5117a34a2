# SPDX-License-Identifier: GPL-2.0-only
"""Follow the words that others know by address into the trampolines: displaced words and relocations.

A kernel that may run elsewhere than linked has a list of its 32-bit address words, and its boot code adds
the displacement to each. Those in instructions that moved are elsewhere now; where they were, there is a
jump, which must not be changed. Relocations that the linker kept are only read by tools, but they too
name words by address.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from vmi.errors import BadInput
from vmi.patcher.elf import RELOCATION, SHF_ALLOC, SHT_REL, read_header, section_headers
from vmi.patcher.model import Branch, Image
from vmi.patcher.trampoline import Moved, Trampoline

WORD = 4
R_386_NONE = 0
DISTANCE_AT_END = frozenset((Branch.JMP, Branch.JCC, Branch.CALL))
"""Branches whose 32-bit distance, if they have one, is their last four bytes."""


def displaced(image: Image, trampolines: Sequence[Trampoline], edits: Mapping[int, bytes]) -> tuple[int, ...]:
    """``Image.displaced`` after the edits, sorted: words that are gone left out, moved and copied ones added.

    ``edits`` are those of windows, springboards and pads. Raises BadInput for a word that an edit cuts.
    """
    old = image.displaced
    if not old:
        return ()
    added: list[int] = []
    found: set[int] = set()
    for moved in (moved for built in trampolines for moved in built.moved):
        first = bisect_left(old, moved.insn.address)
        for number in range(first, len(old)):
            word = old[number]
            if word >= moved.insn.end:
                break
            if word + WORD > moved.insn.end or moved.insn.branch is not None:
                raise _cut(word)
            added.append(moved.at + word - moved.insn.address)
            if not moved.copy:
                found.add(word)
    gone: set[int] = set()
    for start, raw in edits.items():
        for number in range(bisect_left(old, start - WORD + 1), len(old)):
            word = old[number]
            if word >= start + len(raw):
                break
            if word not in found:
                raise _cut(word)
            gone.add(word)
    return tuple(sorted({word for word in old if word not in gone}.union(added)))


def _cut(word: int) -> BadInput:
    return BadInput(
        f"the kernel's list of address words names {word:#x}, which is in no instruction as a whole"
    )


def relocation_edits(
    image: Image, trampolines: Sequence[Trampoline], edits: Mapping[int, bytes]
) -> dict[int, bytes]:
    """Edits of the `.rel.*` sections: offset in the original file to bytes.

    A relocation of a word that moved gets the word's new address; one whose word is gone (the distance of
    a branch that has an 8-bit one now, or has a 32-bit one in place of that) becomes R_386_NONE. Copies of
    instructions that also stay get none.
    """
    if not image.relocations:
        return {}
    homes: dict[int, Moved] = {}
    for built in trampolines:
        homes.update((moved.insn.address, moved) for moved in built.moved if not moved.copy)
    starts = sorted(homes)
    ranges = sorted((start, start + len(raw)) for start, raw in edits.items())
    lows = [low for low, _ in ranges]
    found: dict[int, bytes] = {}
    for offset, address, info in _relocations(image.data):
        index = bisect_left(lows, address + 1) - 1
        if index < 0 or address >= ranges[index][1]:
            continue
        at = bisect_left(starts, address + 1) - 1
        moved = homes[starts[at]] if at >= 0 else None
        new = None if moved is None else _new_home(moved, address)
        if new is None:
            found[offset] = RELOCATION.pack(address, info & ~0xFF | R_386_NONE)
        else:
            found[offset] = RELOCATION.pack(new, info)
    return found


def _new_home(moved: Moved, address: int) -> int | None:
    """Where the relocated word at ``address`` of a moved instruction is now, None when there is none."""
    insn = moved.insn
    if not insn.address <= address < insn.end:
        return None
    if insn.branch is None:
        return moved.at + address - insn.address
    if insn.branch in DISTANCE_AT_END and address + WORD == insn.end and moved.size > WORD:
        return moved.at + moved.size - WORD
    return None


def _relocations(data: bytes) -> Iterable[tuple[int, int, int]]:
    """(file offset of the entry, address, info) of each relocation for sections that are loaded."""
    sections = section_headers(data, read_header(data))
    for _name, kind, _flags, _vaddr, offset, size, _link, target, *_ in sections:
        if kind != SHT_REL or target >= len(sections) or not sections[target][2] & SHF_ALLOC:
            continue
        for at in range(offset, offset + size - size % RELOCATION.size, RELOCATION.size):
            address, info = RELOCATION.unpack_from(data, at)
            yield at, address, info
