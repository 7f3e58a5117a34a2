# SPDX-License-Identifier: GPL-2.0-only
"""Pack trampolines into padding: which pads, in which order, each window's pieces take.

A chain with fewer pieces is better, since each piece costs a native run one more jump; among chains of the
same length the one that uses up less padding is, counting what is left of a pad and too short to be used.
Chains of two pads are searched fully, longer ones among the most promising.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from vmi.patcher.model import MIN_SLOT, Pad, Window
from vmi.patcher.pieces import (
    JMP8_SIZE,
    JMP32_SIZE,
    NEAR,
    Unit,
    fill,
    link_size,
    step,
    units,
    whole,
)

MAX_PIECES = 64
BREADTHS = (32, 16, 8)
"""Chains that are followed at once when they have one pad, two, three; four beyond that."""
ATTEMPTS = 6
"""Orders in which a page is packed before windows are given up."""


@dataclass(frozen=True, slots=True)
class Job:
    """A window that needs room, and its trampoline in units."""

    window: Window
    cut: tuple[Unit, ...]

    @property
    def weight(self) -> int:
        """What is lost without room; a window that holds nothing of its own is there for another one."""
        return max(1, len(self.window.sites) + len(self.window.edges) + len(self.window.inner))

    @property
    def rank(self) -> tuple[int, int]:
        """Those that need most come first."""
        return -whole(self.cut), self.window.start

    def __repr__(self) -> str:
        return f"Job({self.window.start:#x}, {whole(self.cut)} bytes)"


@dataclass(frozen=True, slots=True)
class Packed:
    """Pads by window start, for those windows that found room, and what is left."""

    pads: dict[int, tuple[Pad, ...]]
    free: tuple[Pad, ...]


def job(window: Window) -> Job:
    """The job of finding room for a window."""
    return Job(window, units(window))


def pack(jobs: Sequence[Job], padding: Sequence[Pad], attempts: int = ATTEMPTS) -> Packed:
    """Find room in ``padding`` for as many of the windows as can be, in few pieces; always the same way."""
    order = sorted(jobs, key=lambda job: job.rank)
    best = tried = _attempt(order, padding)
    for _ in range(attempts - 1):
        failed = [job for job in order if job.window.start not in tried.pads]
        if not failed:
            break
        order = failed + [job for job in order if job.window.start in tried.pads]
        tried = _attempt(order, padding)
        if _loss(jobs, tried) < _loss(jobs, best):
            best = tried
    return best


def _loss(jobs: Sequence[Job], packed: Packed) -> tuple[int, int]:
    """(what finds no room, pieces): less is better."""
    lost = sum(job.weight for job in jobs if job.window.start not in packed.pads)
    return lost, sum(map(len, packed.pads.values()))


def _attempt(order: Sequence[Job], padding: Sequence[Pad]) -> Packed:
    free: tuple[Pad, ...] = tuple(sorted(padding, key=lambda pad: pad.start))
    pads: dict[int, tuple[Pad, ...]] = {}
    for job in order:
        found = chain(job.cut, free)
        if found:
            pads[job.window.start] = found
            free = without(free, found)
    return Packed(pads, free)


def without(free: Sequence[Pad], taken: Sequence[Pad]) -> tuple[Pad, ...]:
    """What is left of ``free``, in address order, when the beginnings ``taken`` are cut off."""
    sizes = {pad.start: pad.size for pad in taken}
    rest = (Pad(pad.start + (used := sizes.get(pad.start, 0)), pad.size - used) for pad in free)
    return tuple(pad for pad in rest if pad.size >= MIN_SLOT)


def chain(cut: tuple[Unit, ...], free: Sequence[Pad], most: int = MAX_PIECES) -> tuple[Pad, ...]:
    """The best chain for a trampoline of at most ``most`` pieces: the pads cut to size; empty: no room.

    ``free`` is in address order.
    """
    found = _Search(cut, free, hopeful=True).chain(most)
    if not found and most == MAX_PIECES:
        found = _Search(cut, free, hopeful=False).chain(most)
    return found


class _State(NamedTuple):
    """A chain so far: the units that its last pad can't reach, the bytes used up before that pad.

    ``first`` is the unit that the last pad starts with. In the order of how promising they are.
    """

    behind: int
    cost: int
    pads: tuple[int, ...]
    first: int


_End = tuple[int, tuple[int, ...]]  # (bytes used up, pads) of a whole chain


class _Search:
    """The search for one window's chain among the pads that are free; pads go by their numbers.

    ``hopeful``: a pad is as promising as it is when the next one is near, if any is. Else as it is when that
    is far, which long chains need so as not to end nowhere.
    """

    def __init__(self, cut: tuple[Unit, ...], free: Sequence[Pad], hopeful: bool) -> None:
        self.cut, self.free = cut, free
        self.starts = [pad.start for pad in free]
        self.known: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.last: dict[int, list[tuple[int, int]]] = {}
        self.behind: dict[int, list[int]] = {}
        # Bytes that everything from a unit on has at least, and the last one (nothing) 0.
        sizes = accumulate((unit.lead + unit.short for unit in reversed(cut)), initial=0)
        self.least = [*sizes][::-1]
        # The shortest jump to any other pad.
        gaps = [above - below for below, above in pairwise(self.starts)]
        up, down = [*gaps, 128], [NEAR + 1, *gaps]
        self.links = [
            JMP8_SIZE if hopeful and (above < 128 or below <= NEAR) else JMP32_SIZE
            for above, below in zip(up, down, strict=False)
        ]

    def chain(self, most: int) -> tuple[Pad, ...]:
        if sum(pad.size for pad in self.free) < self.least[0]:
            return ()
        ends = self._last_pieces(0)
        if ends:
            return self._pads((ends[0][1],))
        states = [_State(behind, 0, (number,), 0) for number, behind in enumerate(self._behind(0))]
        for level in range(most - 1):
            best = min(filter(None, map(self._end, states)), default=None)
            if best is not None:
                return self._pads(best[1])
            if level < most - 2:
                states = self._longer(sorted(states)[: BREADTHS[level] if level < len(BREADTHS) else 4])
        return ()

    def _last_pieces(self, first: int) -> list[tuple[int, int]]:
        """(bytes used up, pad) of all pads that hold everything from unit ``first`` on, the best first."""
        found = self.last.get(first)
        if found is None:
            found = []
            least = self.least[first]
            for number, pad in enumerate(self.free):
                if pad.size >= least:
                    stop, size = self._fill(number, first, 0)
                    if stop == len(self.cut):
                        found.append((self._used_up(number, size), number))
            found.sort()
            self.last[first] = found
        return found

    def _end(self, state: _State) -> _End | None:
        """The best way to finish a chain with one more pad."""
        number = state.pads[-1]
        found: list[_End] = []
        for link in (JMP8_SIZE, JMP32_SIZE):
            stop, size = self._fill(number, state.first, link)
            ends = self._last_pieces(stop) if stop > state.first else []
            if not ends:
                continue
            start = self.starts[number]
            near = range(bisect_left(self.starts, start - NEAR), bisect_left(self.starts, start + 128))
            spent = state.cost + self._used_up(number, size)
            for used, other in ends:
                if (other in near) == (link == JMP8_SIZE) and other not in state.pads:
                    found.append((spent + used, (*state.pads, other)))
                    if link == JMP32_SIZE:
                        break
        return min(found, default=None)

    def _longer(self, states: list[_State]) -> list[_State]:
        """The chains with one pad more; of those that come to the same, one."""
        found: dict[tuple[int, frozenset[int]], _State] = {}
        for state in states:
            last, pads = state.pads[-1], frozenset(state.pads)
            ways = {}
            for link in (JMP8_SIZE, JMP32_SIZE):
                stop, size = self._fill(last, state.first, link)
                if stop > state.first:
                    ways[link] = stop, state.cost + self._used_up(last, size), self._behind(stop)
            for number, start in enumerate(self.starts):
                way = ways.get(link_size(self.starts[last], start))
                if way is None or number in pads or way[2][number] >= state.behind:
                    continue
                stop, cost, behind = way
                new = _State(behind[number], cost, (*state.pads, number), stop)
                key = (number, pads)
                if key not in found or new < found[key]:
                    found[key] = new
        return list(found.values())

    def _behind(self, first: int) -> list[int]:
        """For each pad: the units that it can't reach when it starts with unit ``first``."""
        found = self.behind.get(first)
        if found is None:
            reached = (self._fill(number, first, link)[0] for number, link in enumerate(self.links))
            found = self.behind[first] = [len(self.cut) - stop for stop in reached]
        return found

    def _fill(self, number: int, first: int, link: int) -> tuple[int, int]:
        """How far pad ``number`` gets from unit ``first`` on, and its size; ``link`` 0: no piece follows."""
        key = (number, first, link)
        known = self.known.get(key)
        if known is None:
            pad = self.free[number]
            if link:
                known = step(self.cut, first, pad.start, pad.size, link)
            else:
                known = fill(self.cut, first, pad.start, pad.size, JMP32_SIZE)
            self.known[key] = known
        return known

    def _used_up(self, number: int, size: int) -> int:
        left = self.free[number].size - size
        return size + (left if left < MIN_SLOT else 0)

    def _pads(self, numbers: tuple[int, ...]) -> tuple[Pad, ...]:
        found = []
        first = 0
        for number, following in zip(numbers, (*numbers[1:], -1), strict=True):
            link = 0 if following < 0 else link_size(self.starts[number], self.starts[following])
            first, size = self._fill(number, first, link)
            found.append(Pad(self.starts[number], size))
        return tuple(found)
