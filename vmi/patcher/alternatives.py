# SPDX-License-Identifier: GPL-2.0-only
"""Instructions that a Linux kernel replaces by others that do the same, on the processor that it finds.

A record in `.altinstructions` names a range of the text, what to copy over it, and the feature of the
processor that decides. Mostly that is quite other code, so the range is left alone. But RDTSC has NOPs behind
it, over which the kernel writes a fence and RDTSC, or RDTSCP. With its NOPs it is a slot where it stands, and
all that is needed where a ROM is active is that the kernel doesn't copy over it: records whose length bytes
are 0 change nothing. Natively the records stay, and so does what the kernel does.

The ROM's answer then comes without a fence.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from iced_x86 import Decoder, Mnemonic

from vmi.patcher import forms
from vmi.patcher.adaptorcode import same
from vmi.patcher.fillers import is_filler
from vmi.patcher.model import MIN_SLOT, Image, Plan, Section
from vmi.sitetable import Tactic

SECTION = ".altinstructions"
BITS = 32
EQUAL = {"rdtsc": frozenset(("rdtsc", "rdtscp"))}
"""By form, the forms of instructions that do the same."""

_RECORD = struct.Struct("<iiHBB")  # distances to code and replacement, feature, and the lengths of both
_SIZES = (12, 13)
"""Bytes of a record: some kernels have one more, the length of the NOPs at the end of the range."""
LENGTHS_AT = 10
_FENCES = (Mnemonic.LFENCE, Mnemonic.MFENCE)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A record of ``size`` bytes at ``record``: ``replacement`` for ``length`` bytes at ``address``."""

    record: int
    size: int
    address: int
    length: int
    replacement: bytes = field(repr=False)


def alternatives(image: Image) -> tuple[Alternative, ...]:
    """The records in the file's order; none for a kernel without the table or with one of another layout."""
    section = image.section(SECTION)
    if section is None:
        return ()
    executable = [one for one in image.sections if one.executable]
    for size in _SIZES:
        if section.size % size == 0:
            found = [_record(image, executable, at, size) for at in range(section.vaddr, section.end, size)]
            known = tuple(one for one in found if one is not None)
            if len(known) == len(found):
                return known
    return ()


def _record(image: Image, executable: Sequence[Section], at: int, size: int) -> Alternative | None:
    raw = image.read(at, size)
    if len(raw) < size:
        return None
    code, copied, _feature, length, count = _RECORD.unpack_from(raw)
    address = (at + code) & 0xFFFFFFFF
    replacement = image.read((at + 4 + copied) & 0xFFFFFFFF, count)
    whole = len(image.read(address, length)) == length and len(replacement) == count
    if not (whole and count <= length and any(one.vaddr <= address < one.end for one in executable)):
        return None
    return Alternative(at, size, address, length, replacement)


def slots(image: Image) -> dict[int, str]:
    """The forms of the instructions that are a slot with the NOPs behind them, by their addresses."""
    found: dict[int, str] = {}
    ranges: dict[tuple[int, int], bool] = {}  # to whether all of its records agree that it is a slot
    for one in alternatives(image):
        where = (one.address, one.length)
        name = _slot(image, one)
        ranges[where] = ranges.get(where, True) and bool(name)
        found[one.address] = name
    users = Counter(at for start, length in ranges for at in range(start, start + length))
    return {
        start: found[start]
        for (start, _), agreed in ranges.items()
        if agreed and all(users[at] == 1 for at in range(start, start + MIN_SLOT))
    }


def _slot(image: Image, one: Alternative) -> str:
    """The form of the instruction in the range, empty if it holds more or may become something else."""
    held, rest = _split(image.read(one.address, one.length))
    wanted = EQUAL.get(held)
    if wanted is None or rest or one.length < MIN_SLOT:
        return ""
    new, more = _split(one.replacement)
    return held if new in wanted and not more else ""


def _split(code: bytes) -> tuple[str, int]:
    """The form of the one sensitive instruction in ``code``, and the number of others but NOPs and fences."""
    name, others = "", 0
    for insn in Decoder(BITS, code):
        raw = code[insn.ip32 : insn.next_ip32]
        form = None if insn.is_invalid else forms.classify(insn)
        if form is not None and not name:
            name = form.name
        elif form is not None or not (is_filler(raw) or any(same(insn.mnemonic, one) for one in _FENCES)):
            others += 1
    return name, others


def lengths(plan: Plan) -> Iterator[int]:
    """Addresses of the bytes that must be 0 before the kernel starts, when a ROM is active."""
    starts = set(in_place(plan))
    if starts:
        for one in alternatives(plan.image):
            if one.address in starts:
                yield from range(one.record + LENGTHS_AT, one.record + one.size)


def in_place(plan: Plan) -> Iterable[int]:
    """Where the plan has slots that such records name."""
    for slot in plan.slots:
        if slot.tactic is Tactic.IN_PLACE and slot.length > slot.site.length:
            yield slot.start
