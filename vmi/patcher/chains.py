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
from functools import lru_cache
from heapq import nsmallest
from itertools import accumulate, pairwise

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
    """Find room in ``padding`` for as many of the windows as can be, in few pieces; always the same way.

    Where there is not nearly enough, what takes little room for each loss that it saves comes first.
    """
    order = sorted(jobs, key=lambda job: job.rank)
    best = tried = _attempt(order, padding)
    if attempts > 1 and len(tried.pads) < len(jobs):
        frugal = _attempt(sorted(jobs, key=lambda job: (whole(job.cut) / job.weight, job.rank)), padding)
        best = min(tried, frugal, key=lambda packed: _loss(jobs, packed))
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
    rest = [
        Pad(pad.start + sizes[pad.start], pad.size - sizes[pad.start]) if pad.start in sizes else pad
        for pad in free
    ]
    return tuple([pad for pad in rest if pad.size >= MIN_SLOT])


def chain(cut: tuple[Unit, ...], free: Sequence[Pad], most: int = MAX_PIECES) -> tuple[Pad, ...]:
    """The best chain for a trampoline of at most ``most`` pieces: the pads cut to size; empty: no room.

    ``free`` is in address order.
    """
    found = _Search(cut, free, hopeful=True).chain(most)
    if not found and most == MAX_PIECES:
        found = _Search(cut, free, hopeful=False).chain(most)
    return found


_State = tuple[int, int, tuple[int, ...], int]
"""A chain so far, in the order of how promising they are.

The units that its last pad can't reach, the bytes used up before that pad, its pads, the unit that the last
pad starts with.
"""

_End = tuple[int, tuple[int, ...]]  # (bytes used up, pads) of a whole chain
_Last = list[tuple[int, int]]  # (bytes used up, pad) for the last piece, the best first
_Ends = tuple[int, _Last, range]  # bytes used up before the last piece, that piece, pads that it can't be in
_NEVER = 1 << 32  # more bytes than any chain uses up
_Fills = dict[tuple[int, int, int], tuple[int, int]]  # what _fill found


@lru_cache(maxsize=1024)
def _fills(_shape: tuple[tuple[int, int, bool], ...]) -> _Fills:
    """What is known of trampolines whose units have these sizes: many are alike but for where they go to.

    By unit, link and room, for pads from which no branch reaches its target in its short form.
    """
    return {}


class _Search:
    """The search for one window's chain among the pads that are free; pads go by their numbers.

    ``hopeful``: a pad is as promising as it is when the next one is near, if any is. Else as it is when that
    is far, which long chains need so as not to end nowhere.

    Pads are looked at by kind: of most of them only the size matters, and -1 minus the number of a pad is the
    kind of one in which a branch may have its short form.
    """

    def __init__(self, cut: tuple[Unit, ...], free: Sequence[Pad], hopeful: bool) -> None:
        self.cut, self.free = cut, free
        self.starts = [pad.start for pad in free]
        self.sizes = [pad.size for pad in free]
        self.largest = max(self.sizes, default=0)
        self.known: _Fills = {}
        self.alike = _fills(tuple([(unit.lead, unit.long, unit.falls) for unit in cut]))
        self.kinds = [*self.sizes]
        for unit in cut:
            if unit.short != unit.long:
                first = bisect_left(self.starts, unit.target - 128 - unit.short - self.largest)
                stop = bisect_left(self.starts, unit.target + 129)
                self.kinds[first:stop] = range(-1 - first, -1 - stop, -1)
        self.groups: dict[int, list[int]] = {}  # pads by kind
        for number, kind in enumerate(self.kinds):
            self.groups.setdefault(kind, []).append(number)
        self.last: dict[int, _Last] = {}
        self.costs: dict[int, dict[int, int]] = {}  # as in last, by pad
        self.behind: dict[int, list[int]] = {}
        self.bounds: dict[int, list[int]] = {}
        self.ends: dict[tuple[int, int], list[_Ends]] = {}
        # Bytes that everything from a unit on has at least, and the last one (nothing) 0.
        sizes = accumulate([unit.lead + unit.short for unit in reversed(cut)], initial=0)
        self.least = [*sizes][::-1]
        # The shortest jump to any other pad.
        gaps = [above - below for below, above in pairwise(self.starts)]
        up, down = [*gaps, 128], [NEAR + 1, *gaps]
        self.links = [
            JMP8_SIZE if hopeful and (above < 128 or below <= NEAR) else JMP32_SIZE
            for above, below in zip(up, down, strict=False)
        ]

    def chain(self, most: int) -> tuple[Pad, ...]:
        if sum(self.sizes) < self.least[0]:
            return ()
        ends = self._last_pieces(0)
        if ends:
            return self._pads((ends[0][1],))
        if most == 1:
            return ()
        states: list[_State] = [(behind, 0, (number,), 0) for number, behind in enumerate(self._behind(0))]
        for level in range(most - 1):
            best = self._end(states)
            if best is not None:
                return self._pads(best[1])
            if level < most - 2:
                breadth = BREADTHS[level] if level < len(BREADTHS) else 4
                states = self._longer(nsmallest(breadth, states))
        return ()

    def _last_pieces(self, first: int) -> _Last:
        """(bytes used up, pad) of all pads that hold everything from unit ``first`` on, the best first."""
        found = self.last.get(first)
        if found is None:
            found = []
            least = self.least[first]
            for kind, numbers in self.groups.items():
                if self.sizes[numbers[0]] >= least:
                    stop, size = self._fill(numbers[0], kind, first, 0)
                    if stop == len(self.cut):
                        used = self._used_up(numbers[0], size)
                        found += [(used, number) for number in numbers]
            self.costs[first] = {number: used for used, number in found}
            found.sort()
            self.last[first] = found
        return found

    def _end(self, states: list[_State]) -> _End | None:
        """The best way to finish one of the chains with one more pad."""
        bounds = {first: self._bounds(first) for first in {state[3] for state in states}}
        totals = [cost + bounds[first][pads[-1]] for _behind, cost, pads, first in states]
        best: _End | None = None
        least = _NEVER  # bytes that the best one uses up
        for number in sorted(
            [number for number, total in enumerate(totals) if total < least], key=totals.__getitem__
        ):
            if totals[number] > least:
                break
            _behind, cost, pads, first = states[number]
            for used, ends, never in self._ends(pads[-1], first):
                for more, other in ends:
                    if other not in never and other not in pads:
                        end = cost + used + more, (*pads, other)
                        if best is None or end < best:
                            best, least = end, end[0]
                        break
        return best

    def _bounds(self, first: int) -> list[int]:
        """For each pad: the least that it, filled from unit ``first`` on, and one more can use up."""
        found = self.bounds.get(first)
        if found is None:
            by_kind = {}
            for kind, numbers in self.groups.items():
                by_kind[kind] = _NEVER
                for link in (JMP8_SIZE, JMP32_SIZE):
                    stop, size = self._fill(numbers[0], kind, first, link)
                    if stop > first and (ends := self._last_pieces(stop)):
                        used = self._used_up(numbers[0], size) + ends[0][0]
                        by_kind[kind] = min(by_kind[kind], used)
            found = self.bounds[first] = [by_kind[kind] for kind in self.kinds]
        return found

    def _ends(self, number: int, first: int) -> list[_Ends]:
        """The ways to end a chain behind pad ``number``, filled from unit ``first`` on, with one more pad."""
        found = self.ends.get((number, first))
        if found is None:
            found = self.ends[number, first] = []
            near = self._near(number)
            for link in (JMP8_SIZE, JMP32_SIZE):
                stop, size = self._fill(number, self.kinds[number], first, link)
                if stop > first and (ends := self._last_pieces(stop)):
                    if link == JMP8_SIZE:
                        costs = self.costs[stop]
                        ends = sorted([(costs[other], other) for other in near if other in costs])
                    found.append((self._used_up(number, size), ends, range(0) if link == JMP8_SIZE else near))
        return found

    def _near(self, number: int) -> range:
        """The pads that an 8-bit jump from pad ``number`` reaches."""
        start = self.starts[number]
        return range(bisect_left(self.starts, start - NEAR), bisect_left(self.starts, start + 128))

    def _longer(self, states: list[_State]) -> list[_State]:
        """The chains with one pad more; of those that come to the same, one."""
        found: dict[frozenset[int], dict[int, _State]] = {}  # by the pads before, then the last one
        for most, spent, pads, first in states:
            last = pads[-1]
            ways: dict[int, _State] = {}
            near = self._near(last)
            far = (*range(near.start), *range(near.stop, len(self.starts)))
            for link, numbers in ((JMP8_SIZE, near), (JMP32_SIZE, far)):
                stop, size = self._fill(last, self.kinds[last], first, link)
                if stop > first:
                    cost, behind = spent + self._used_up(last, size), self._behind(stop)
                    ways |= {
                        number: (behind[number], cost, (*pads, number), stop)
                        for number in numbers
                        if behind[number] < most and number not in pads
                    }
            same = found.setdefault(frozenset(pads), ways)
            if same is not ways:
                for number, new in ways.items():
                    same[number] = min(new, same.get(number, new))
        return [state for same in found.values() for state in same.values()]

    def _behind(self, first: int) -> list[int]:
        """For each pad: the units that it can't reach when it starts with unit ``first``."""
        found = self.behind.get(first)
        if found is None:
            sorts = list(zip(self.kinds, self.links, strict=True))
            left = {}
            for number, sort in enumerate(sorts):
                if sort not in left:
                    left[sort] = len(self.cut) - self._fill(number, sort[0], first, sort[1])[0]
            found = self.behind[first] = [left[sort] for sort in sorts]
        return found

    def _fill(self, number: int, kind: int, first: int, link: int) -> tuple[int, int]:
        """How far pad ``number`` gets from unit ``first`` on, and its size; ``link`` 0: no piece follows."""
        fills, key = self.alike if kind > 0 else self.known, (first, link, kind)
        known = fills.get(key)
        if known is None:
            pad = self.free[number]
            if link:
                known = step(self.cut, first, pad.start, pad.size, link)
            else:
                known = fill(self.cut, first, pad.start, pad.size, JMP32_SIZE)
            fills[key] = known
        return known

    def _used_up(self, number: int, size: int) -> int:
        left = self.sizes[number] - size
        return size + (left if left < MIN_SLOT else 0)

    def _pads(self, numbers: tuple[int, ...]) -> tuple[Pad, ...]:
        found = []
        first = 0
        for number, following in zip(numbers, (*numbers[1:], -1), strict=True):
            link = 0 if following < 0 else link_size(self.starts[number], self.starts[following])
            first, size = self._fill(number, self.kinds[number], first, link)
            found.append(Pad(self.starts[number], size))
        return tuple(found)
