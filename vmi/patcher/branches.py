# SPDX-License-Identifier: GPL-2.0-only
"""Where direct branches go: a mapping from addresses of instructions, kept as two arrays.

A kernel has hundreds of thousands of them, found in the order of their addresses and mostly looked at all
together. A dictionary of as many numbers takes twenty times the memory, and longer to fill than to search
these.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Branches(Mapping[int, int]):
    """The target by the address of each direct branch. Both arrays have the same order, by address."""

    sources: array[int] = field(default_factory=lambda: array("I"))
    targets: array[int] = field(default_factory=lambda: array("I"))

    def __repr__(self) -> str:
        return f"Branches({len(self.sources)})"

    def __getitem__(self, address: int) -> int:
        at = bisect_left(self.sources, address)
        if at == len(self.sources) or self.sources[at] != address:
            raise KeyError(address)
        return self.targets[at]

    def __contains__(self, address: object) -> bool:
        # As the mapping it is derived from does it, there would be an exception for each that is not.
        at = bisect_left(self.sources, address) if isinstance(address, int) else len(self.sources)
        return at < len(self.sources) and self.sources[at] == address

    def __iter__(self) -> Iterator[int]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def append(self, address: int, target: int) -> None:
        """Add a branch at an address above all others."""
        self.sources.append(address)
        self.targets.append(target)

    def pop(self) -> None:
        """Take the last one out again."""
        self.sources.pop()
        self.targets.pop()

    def extend(self, other: Branches) -> None:
        """Add branches at addresses above all others."""
        self.sources.extend(other.sources)
        self.targets.extend(other.targets)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(address, target) of each, in order."""
        return zip(self.sources, self.targets, strict=True)
