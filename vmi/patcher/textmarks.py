# SPDX-License-Identifier: GPL-2.0-only
"""Sets of text addresses as a byte for each byte of the text, so that a million of them cost no object each.

Such sets are combined as long numbers: all their bytes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from operator import not_

from vmi.patcher.decode import Listing

_LARGE_GAP = 1 << 22  # bytes without text that are not worth a byte of memory each
_JUMP_BYTES = frozenset((0x0F, *range(0x70, 0x80), 0xE0, 0xE1, 0xE2, 0xE3, 0xE9, 0xEB))
"""What direct jumps start with."""
_MARKED = re.compile(b"\1")


class Marks:
    """Addresses in the stretches of a text: ``areas`` are their starts, with 1 for each address in the set.

    A kernel that starts in a segment of its own may have the rest of its text gigabytes away, hence the
    stretches: between two of them is a large gap.
    """

    def __init__(self, listings: Sequence[Listing], *addresses: Iterable[int]) -> None:
        self.areas: list[tuple[int, bytearray]] = []
        for start, end in _stretches(listings):
            self.areas.append((start, bytearray(end - start)))
        for some in addresses:
            self.add(some)

    def __repr__(self) -> str:
        return f"Marks({sum(marks.count(1) for _, marks in self.areas)} in {len(self.areas)} areas)"

    def add(self, addresses: Iterable[int]) -> None:
        """Mark those of ``addresses`` that lie in the text."""
        if len(self.areas) > 1:
            addresses = tuple(addresses)
        for start, marks in self.areas:
            end = start + len(marks)
            for address in addresses:
                if start <= address < end:
                    marks[address - start] = 1

    def __or__(self, other: Marks) -> Marks:
        """The marks of both, which are of the same text."""
        found = Marks(())
        for (start, mine), (_, its) in zip(self.areas, other.areas, strict=True):
            both = int.from_bytes(mine, "little") | int.from_bytes(its, "little")
            found.areas.append((start, bytearray(both.to_bytes(len(mine), "little"))))
        return found

    def of(self, listing: Listing) -> bytearray:
        """The part for ``listing``."""
        start, marks = next(one for one in reversed(self.areas) if one[0] <= listing.start)
        return marks[listing.start - start : listing.end - start]

    def no_starts(self, listings: Sequence[Listing]) -> list[int]:
        """The marked addresses that are the start of no entry."""
        found: list[int] = []
        for base, marks in self.areas:
            starts = bytearray(len(marks))
            for listing in listings:
                if base <= listing.start < base + len(marks):
                    starts[listing.start - base : listing.end - base] = listing.starting()
            others = int.from_bytes(marks, "little") & ~int.from_bytes(starts, "little")
            found += [base + at for at in marked(others.to_bytes(len(marks), "little"))]
        return found


def branch_targets(listings: Sequence[Listing]) -> tuple[Marks, Marks]:
    """Where direct jumps of the text go to, and where direct calls do."""
    jumped, called = Marks(listings), Marks(listings)
    for listing in listings:
        data, start = listing.data, listing.start
        sources, targets = listing.targets.sources, listing.targets.targets
        # Whatever starts with a prefix counts as a call, which is the stricter of the two.
        jumps = [data[source - start] in _JUMP_BYTES for source in sources]
        jumped.add(compress(targets, jumps))
        called.add(compress(targets, map(not_, jumps)))
    return jumped, called


def marked(marks: bytes | bytearray) -> Iterator[int]:
    """Where bytes of 1 are, in order."""
    return (match.start() for match in _MARKED.finditer(marks))


def _stretches(listings: Iterable[Listing]) -> list[tuple[int, int]]:
    """Start and end of each stretch of text, in order, in which no gap is large."""
    found: list[tuple[int, int]] = []
    for listing in sorted(listings, key=lambda one: one.start):
        if found and listing.start - found[-1][1] < _LARGE_GAP:
            found[-1] = (found[-1][0], max(found[-1][1], listing.end))
        else:
            found.append((listing.start, listing.end))
    return found
