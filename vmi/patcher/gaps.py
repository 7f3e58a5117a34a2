# SPDX-License-Identifier: GPL-2.0-only
"""Bytes of the text that control never runs into: the padding between functions.

Assemblers fill up to the next aligned function with NOPs, linkers with breakpoints or zeros. What follows an
instruction that never falls through, looks like filling and is named by nothing can hold jumps, and pieces of
trampolines. A wrong guess here would overwrite code or tables, so everything that looks like anything
else is no padding.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Sequence

from vmi.patcher.decode import FALLS_THROUGH, Kind
from vmi.patcher.fillers import is_filler
from vmi.patcher.flow import Code
from vmi.patcher.model import MIN_SLOT, Pad, Skipped

ALIGNMENT = 16
"""Zeros are padding only up to an address of this alignment (elsewhere they may be a table)."""

_SPECULATED = frozenset((Kind.RET, Kind.JMP_INDIRECT))
_BREAKPOINT = 0xCC
_UNREACHED = re.compile(rb"\0+")


class Gaps:
    """The padding of one listing, and what is left of it. Built once; `take` removes what gets used."""

    def __init__(self, code: Code, wide: Sequence[Skipped] = ()) -> None:
        """``wide`` are ranges that look like 16-bit code: what follows them was perhaps read out of step."""
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}
        for start, end in _runs(code, wide):
            self._put(start, end)

    def __repr__(self) -> str:
        return f"Gaps({len(self._starts)} pieces)"

    def after(self, address: int) -> int:
        """Free bytes from ``address`` on; 0 when no piece starts there, one byte of breakpoint apart."""
        for start in (address, address + 1):
            end = self._ends.get(start)
            if end is not None:
                return end - address
        return 0

    def take(self, start: int, size: int) -> int:
        """Use [start, start + size), which must lie in one piece but for a breakpoint before it.

        :returns: where the part of it that was padding begins.
        """
        at = bisect_left(self._starts, start + 1) - 1
        if at < 0 or self._ends[self._starts[at]] <= start:
            at += 1
        low = self._starts.pop(at)
        high = self._ends.pop(low)
        if low < start:
            self._put(low, start)
        if start + size < high:
            self._put(start + size, high)
        return max(low, start)

    def give(self, start: int, size: int) -> None:
        """Put back what `take` took."""
        end = start + size
        at = bisect_left(self._starts, end)
        if at < len(self._starts) and self._starts[at] == end:
            end = self._ends.pop(self._starts.pop(at))
        if at and self._ends[self._starts[at - 1]] == start:
            self._ends[self._starts[at - 1]] = end
        else:
            self._put(start, end)

    def near(self, origin: int, size: int = MIN_SLOT) -> int:
        """Where ``size`` bytes are free that an 8-bit jump ending at ``origin`` reaches, -1 for nowhere.

        The smallest such piece is taken, so that the larger ones stay whole.
        """
        at = bisect_left(self._starts, origin - 128)
        if at and self._ends[self._starts[at - 1]] - size >= origin - 128:
            at -= 1
        best = (0, -1)
        while at < len(self._starts) and self._starts[at] <= origin + 127:
            start = max(self._starts[at], origin - 128)
            left = self._ends[self._starts[at]] - start
            if left >= size and (best[1] < 0 or left < best[0]):
                best = (left, start)
            at += 1
        return best[1]

    def pads(self) -> list[Pad]:
        """What is left, in pieces of at least MIN_SLOT bytes."""
        pieces = ((start, self._ends[start] - start) for start in self._starts)
        return [Pad(start, size) for start, size in pieces if size >= MIN_SLOT]

    def _put(self, start: int, end: int) -> None:
        if not self._starts or start > self._starts[-1]:
            self._starts.append(start)
        else:
            insort(self._starts, start)
        self._ends[start] = end


def _runs(code: Code, wide: Sequence[Skipped]) -> list[tuple[int, int]]:
    """[start, end) of all padding, in address order."""
    listing, reached = code.listing, code.reached
    runs: list[tuple[int, int]] = []
    kinds = listing.kinds
    for match in _UNREACHED.finditer(reached):
        index, stop = match.span()
        if index and kinds[index - 1] not in FALLS_THROUGH:
            low, high = _run(code, index, stop)
            if low < high and not any(one.start < low <= one.end for one in wide):
                runs.append((low, high))
    return runs


def _run(code: Code, index: int, stop: int) -> tuple[int, int]:
    """The padding that entries [index, stop) start with; empty (low == high) when they don't."""
    listing = code.listing
    base, data, starts, lengths = listing.start, listing.data, listing.starts, listing.lengths
    low = high = starts[index - 1] + lengths[index - 1]
    zeros = -1
    at = index
    over = listing.targets.get(low) if listing.kinds[index] == Kind.JMP else None
    if over is not None:
        # What an assembler fills a long way with starts with a jump over the rest of it.
        low = high = listing.stop(index)
        at += 1
    while at < stop and starts[at] == high:
        raw = data[high - base : high - base + lengths[at]]
        if not raw.strip(b"\0"):
            zeros = high if zeros < 0 else zeros
        elif zeros >= 0 or not is_filler(raw):
            break
        high += len(raw)
        at += 1
    if zeros >= 0 and not (high % ALIGNMENT == 0 or high == listing.end):
        high = zeros
    if over is not None and high != over:
        return low, low
    label = code.labels.find(1, low - base, high - base)
    if label >= 0:
        high = label + base
    pin = code.pin(low, high) if low < high else None
    if pin is not None:
        high = max(low, pin.start)
    # The breakpoint right behind a return stops a processor that runs on there by speculation.
    if low < high and listing.kinds[index - 1] in _SPECULATED and listing.data[low - base] == _BREAKPOINT:
        low += 1
    return low, high
