# SPDX-License-Identifier: GPL-2.0-only
"""Finds windows for the sites of one listing.

A window must hold its site, whole instructions that may move, no label in its interior, and five bytes.
Sites are taken in address order; each first tries to join the window before it, because every window costs
a native run two jumps, and then looks forward, backward and both ways. An instruction that holds off
interrupts is never parted from the next one. What finds no window that way is left to `springs` and `edges`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vmi.patcher.decode import FALLS_THROUGH
from vmi.patcher.entries import Entries
from vmi.patcher.gaps import Gaps
from vmi.patcher.model import MIN_SLOT, Insn, Site, Window
from vmi.sitetable import Tactic

JOIN_GAP = 12
"""Bytes between two windows that are cheaper to move than to jump out and back again."""
MAX_SHADOWS = 16
"""Interrupt shadows in a row that are kept together; no kernel has more than two."""


@dataclass(slots=True)
class Draft:
    """A window being grown: entries [first, stop), then a copy of ``tail`` (-1 none), ``padding`` bytes
    eaten; ``edges`` are sites that stay and are copied behind it. ``host``: another window's springboard is
    in it, so it must stay where it is."""

    first: int
    stop: int
    tail: int = -1
    padding: int = 0
    springboard: int | None = None
    edges: tuple[Site, ...] = ()
    host: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A site that should get a slot: entries [index, stop) of the listing."""

    site: Site
    index: int
    stop: int


@dataclass(slots=True)
class WindowPlanner:
    """The windows of one listing, in address order, and what became of each wanted site."""

    entries: Entries
    gaps: Gaps
    drafts: list[Draft] = field(default_factory=list)
    tactics: dict[int, Tactic] = field(default_factory=dict)
    failed: list[Wanted] = field(default_factory=list)
    _run: tuple[int, int] = (-1, -1)
    _journal: list[Callable[[], None]] | None = None  # how to take back what an attempt did

    def __repr__(self) -> str:
        return f"WindowPlanner({len(self.drafts)} windows, {len(self.failed)} failed)"

    def place(self, wanted: list[Wanted]) -> None:
        """Decide about all ``wanted`` sites, in address order; results are `tactics`, `drafts`, `failed`."""
        for one in wanted:
            tactic = self._place(one)
            if tactic is None:
                self.failed.append(one)
            else:
                self.tactics[one.site.address] = tactic

    def draft_of(self, index: int) -> Draft | None:
        """The draft whose displaced entries hold ``index``."""
        at = bisect_left(self.drafts, index + 1, key=lambda d: d.first) - 1
        return self.drafts[at] if at >= 0 and index < self.drafts[at].stop else None

    def neighbours(self, index: int) -> tuple[int, int, int]:
        """For an entry in no draft: where a draft would be inserted, and the entries [floor, ceiling)
        free around it."""
        at = bisect_left(self.drafts, index, key=lambda d: d.first)
        floor = self.drafts[at - 1].stop if at else 0
        ceiling = self.drafts[at].first if at < len(self.drafts) else len(self.entries.code.listing)
        return at, floor, ceiling

    def insert(self, draft: Draft) -> None:
        """Add a finished draft that overlaps no other."""
        self.drafts.insert(bisect_left(self.drafts, draft.first, key=lambda d: d.first), draft)
        if draft.tail >= 0:
            self.entries.resumes.add(self.entries.code.listing.stop(draft.tail))
        self._note(lambda: self.remove(draft))

    def remove(self, draft: Draft) -> None:
        """Take a draft out again; its padding and springboard stay used."""
        del self.drafts[bisect_left(self.drafts, draft.first, key=lambda d: d.first)]
        if draft.tail >= 0:
            self.entries.resumes.discard(self.entries.code.listing.stop(draft.tail))
        self._note(lambda: self.insert(draft))

    def take(self, start: int, size: int) -> None:
        """Use [start, start + size) of the padding."""
        first = self.gaps.take(start, size)
        self._note(lambda: self.gaps.give(first, start + size - first))

    def lodge(self, host: Draft) -> None:
        """Another window's springboard is in ``host`` now."""
        host.host = True
        self._note(lambda: setattr(host, "host", False))

    def attempt(self, change: Callable[[], bool]) -> bool:
        """Do ``change``; when it answers False, drafts and padding are again what they were before it."""
        journal: list[Callable[[], None]] = []
        self._journal = journal
        try:
            done = change()
        finally:
            self._journal = None
        if not done:
            for undo in reversed(journal):
                undo()
        return done

    def _note(self, undo: Callable[[], None]) -> None:
        if self._journal is not None:
            self._journal.append(undo)

    # ------------------------------------------------------------ one site

    def _place(self, one: Wanted) -> Tactic | None:
        last = self.drafts[-1] if self.drafts else None
        if last is not None and one.stop <= last.stop:
            return Tactic.MERGED
        if one.site.length >= MIN_SLOT:
            return Tactic.IN_PLACE
        if not self.fits(one):
            return None
        if last is not None and self._join(last, one, JOIN_GAP):
            return Tactic.MERGED
        floor = last.stop if last is not None else 0
        ceiling = len(self.entries.code.listing)
        for calls in (False, True):
            stop = self.forward(one.index, one.stop, ceiling, calls)
            if self.add(one.index, stop, floor, ceiling, calls):
                return Tactic.FORWARD
            first = self.backward(one.index, one.stop, floor)
            if self.add(first, one.stop, floor, ceiling, calls):
                return Tactic.BACKWARD
            first = self.backward(one.index, stop, floor)
            if self.add(first, stop, floor, ceiling, calls):
                return Tactic.BOTH
            if last is not None and self._join(last, one, one.site.address):
                return Tactic.MERGED
        return None

    def fits(self, one: Wanted) -> bool:
        """True when the site's own entries may move at all."""
        entries = self.entries
        return entries.movable(one.index) and all(
            entries.follows(i, False) for i in range(one.index + 1, one.stop)
        )

    def forward(self, index: int, stop: int, ceiling: int, calls: bool, enough: int = MIN_SLOT) -> int:
        """The stop entry of the shortest run from ``index`` that has enough bytes, or of the longest
        possible."""
        while (
            self.entries.size(index, stop) < enough and stop < ceiling and self.entries.follows(stop, calls)
        ):
            stop += 1
        return stop

    def backward(self, first: int, stop: int, floor: int, enough: int = MIN_SLOT) -> int:
        """The first entry of the shortest run up to ``stop`` that has enough bytes, or of the longest
        possible."""
        while self.entries.size(first, stop) < enough and first > floor and self.entries.precedes(first):
            first -= 1
        return first

    def _join(self, last: Draft, one: Wanted, gap: int) -> bool:
        """Grow the window before up to the site when at most ``gap`` bytes lie between."""
        listing = self.entries.code.listing
        if one.site.address - listing.stop(last.stop - 1) > gap:
            return False
        if not self._runs(last.stop, one.stop):
            return False
        closed = self.close(one.stop, len(listing), False)
        if closed is None:
            return False
        self.remove(last)
        self.insert(Draft(last.first, *closed))
        return True

    def _runs(self, start: int, stop: int) -> bool:
        """True when each of the entries [start, stop) may follow the one before it.

        What is known of the run from ``start`` on is kept: many sites behind one long run ask for it.
        """
        known, at = self._run
        if known != start:
            at = start
        while at < stop and self.entries.follows(at, False):
            at += 1
        self._run = (start, at)
        return at >= stop

    def add(self, first: int, stop: int, floor: int, ceiling: int, calls: bool) -> bool:
        """Make a window of [first, stop), widened so that no interrupt shadow is split; False when it can't
        be.

        Padding behind a last instruction that never falls through counts as part of it.
        """
        opened = self.open(first, floor)
        closed = self.close(stop, ceiling, calls)
        if opened < 0 or closed is None:
            return False
        stop, tail = closed
        size = self.entries.size(opened, stop)
        padding = 0
        if size < MIN_SLOT and tail < 0:
            padding = self.swallow(stop, MIN_SLOT - size)
            size += padding
        if size < MIN_SLOT:
            return False
        self.insert(Draft(opened, stop, tail, padding))
        return True

    def swallow(self, stop: int, size: int) -> int:
        """Take ``size`` bytes of padding right behind entry ``stop`` - 1; 0 when there are not as many."""
        listing = self.entries.code.listing
        if listing.kinds[stop - 1] in FALLS_THROUGH or self.gaps.after(listing.stop(stop - 1)) < size:
            return 0
        self.take(listing.stop(stop - 1), size)
        return size

    def open(self, first: int, floor: int) -> int:
        """``first``, moved back so that no interrupt shadow ends there; -1 when that can't be."""
        entries = self.entries
        lowest = max(floor, first - MAX_SHADOWS)
        while first and entries.shadow(first - 1) and entries.code.listing.joined(first - 1):
            before = self.draft_of(first - 1)
            if before is not None and before.tail == first:
                break  # the shadow's own window has a copy of this instruction
            if first - 1 < lowest or not entries.precedes(first):
                return -1
            first -= 1
        return first

    def close(self, stop: int, ceiling: int, calls: bool) -> tuple[int, int] | None:
        """(stop, tail) such that a last instruction with a shadow is followed by its own next one.

        Unless that one does nothing: then nobody can tell where it runs.
        """
        entries, listing = self.entries, self.entries.code.listing
        last = stop + MAX_SHADOWS
        while entries.shadow(stop - 1):
            if stop == last or not listing.joined(stop - 1):
                return None
            if stop < ceiling and entries.follows(stop, calls):
                stop += 1
                continue
            if entries.toggled(stop):
                # The shadow may as well end with the jump that comes back to this NOP or jump.
                return stop, -1
            inside = self.draft_of(stop)
            # The trampoline comes back behind the copy, which must not be in the middle of another window.
            if entries.copyable(stop) and (inside is None or inside.stop == stop + 1):
                return stop, stop
            return None
        return stop, -1

    # ------------------------------------------------------------ result

    def why(self, one: Wanted) -> str:
        """One sentence about a site that got no slot."""
        if not self.fits(one):
            return "It can't be moved."
        entries = self.entries
        stop, first = one.stop, one.index
        while entries.size(first, stop) < MIN_SLOT and entries.follows(stop, True):
            stop += 1
        while first and entries.size(first, stop) < MIN_SLOT and entries.precedes(first):
            first -= 1
        size = entries.size(first, stop)
        if size < MIN_SLOT:
            return (
                f"Jump targets and instructions that must stay leave {size} bytes around it, a jump needs 5."
            )
        return "An interrupt shadow beside it can't be kept in a trampoline."

    def windows(self, sites: dict[int, Site], traps: dict[int, Site]) -> Iterator[Window]:
        """The finished windows; ``sites`` get slots, ``traps`` are recorded, both by address."""
        listing = self.entries.code.listing
        inside = {listing.starts[i] for draft in self.drafts for i in range(draft.first + 1, draft.stop)}
        for draft in self.drafts:
            insns = tuple(self._insns(draft.first, draft.stop, sites))
            last = draft.stop - 1
            if draft.tail >= 0:
                insns += (listing.insn(draft.tail),)
                last = draft.tail
            start = listing.starts[draft.first]
            length = listing.stop(draft.stop - 1) + draft.padding - start
            here = [insn.address for insn in insns]
            inner = {insn.target for insn in insns if insn.branch is not None and insn.target in inside}
            yield Window(
                start,
                length,
                insns,
                tuple(sites[a] for a in here if a in sites),
                tuple(traps[a] for a in here if a in traps),
                listing.stop(last) if listing.kinds[last] in FALLS_THROUGH else None,
                draft.springboard,
                draft.edges,
                inner=tuple(sorted(inner)),
            )

    def _insns(self, first: int, stop: int, sites: dict[int, Site]) -> Iterator[Insn]:
        listing = self.entries.code.listing
        index = first
        while index < stop:
            insn = listing.insn(index)
            site = sites.get(insn.address)
            if site is not None and site.length > insn.length:
                insn = Insn(insn.address, site.raw, site.form)
                index += 1
            yield insn
            index += 1
