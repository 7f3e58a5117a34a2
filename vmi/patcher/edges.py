# SPDX-License-Identifier: GPL-2.0-only
"""Windows across jump targets, when every jump to the target is known and moves too.

Where control comes to an address by direct jumps only, and all of these are in windows, their copies can jump
to the moved copy of that address: then it may lie inside a window. And a site that can't have a window can
stay where it is, if each jump to it and the instruction before it are in windows: behind their trampolines
stand copies of the site. Neither helps with an address that data, a number, a symbol or a table names. Only
the table by which a kernel recovers from faults is rewritten.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from vmi.patcher.model import MIN_SLOT, Site
from vmi.patcher.springs import hosted, release, spring
from vmi.patcher.windows import Draft, Wanted, WindowPlanner
from vmi.sitetable import Tactic

REACH = 24
"""Bytes on either side of a site that a window may take in beyond jump targets."""

MAX_SOURCES = 6
"""So many jumps to one target may have to get windows of their own."""


def rescue(planner: WindowPlanner) -> None:
    """Find ways for the sites that failed; `planner.tactics` and `planner.failed` say which did."""
    if not planner.failed:
        return
    ways = _Ways(planner)
    for attempt in (_merged, ways.within, _sprung, ways.beyond, ways.split, _hosted):
        failed, planner.failed = planner.failed, []
        for one in failed:
            tactic = _merged(planner, one) or attempt(planner, one)
            if tactic is None:
                planner.failed.append(one)
            else:
                planner.tactics[one.site.address] = tactic


def _merged(planner: WindowPlanner, one: Wanted) -> Tactic | None:
    draft = planner.draft_of(one.index)
    return Tactic.MERGED if draft is not None and one.stop <= draft.stop else None


def _sprung(planner: WindowPlanner, one: Wanted) -> Tactic | None:
    found = spring(planner, one.index, one.stop) if planner.fits(one) else None
    if found is None:
        return None
    planner.insert(found[0])
    return found[1]


def _hosted(planner: WindowPlanner, one: Wanted) -> Tactic | None:
    draft = hosted(planner, one.index, one.stop) if planner.fits(one) else None
    if draft is None:
        return None
    planner.insert(draft)
    return Tactic.HOST


class _Ways:
    """The direct jumps to the labels near failed sites."""

    def __init__(self, planner: WindowPlanner) -> None:
        code = planner.entries.code
        listing = code.listing
        near: set[int] = set()
        for one in planner.failed:
            start, end = one.site.address - 2 * REACH, one.site.end + 2 * REACH
            for address in range(max(start, listing.start), min(end, listing.end)):
                if code.is_label(address) and not code.is_hard(address):
                    near.add(address)
        self.sources: dict[int, list[int]] = defaultdict(list)
        for other in planner.entries.flow.codes:
            for source, target in other.listing.targets.pairs():
                if target in near:
                    self.sources[target].append(other.listing.at(source) if other is code else -1)
        # The fault table leads to these, and wherever they go: no jump needs to move for that.
        self.fixups = near & planner.entries.flow.scan.hints.fixups
        for address in self.fixups:
            self.sources.setdefault(address, [])

    # ------------------------------------------------------------ windows across labels

    def within(self, planner: WindowPlanner, one: Wanted) -> Tactic | None:
        """A window across labels whose jumps are all in windows already."""
        return self._across(planner, one, 0)

    def beyond(self, planner: WindowPlanner, one: Wanted) -> Tactic | None:
        """A window across labels; the jumps to them get windows too."""
        return self._across(planner, one, MAX_SOURCES)

    def _across(self, planner: WindowPlanner, one: Wanted, most: int) -> Tactic | None:
        if not planner.fits(one):
            return None
        entries = planner.entries
        firsts = [one.index]
        while firsts[-1] and self._may_cross(planner, firsts[-1]) and entries.leads(firsts[-1]):
            firsts.append(firsts[-1] - 1)
            if entries.size(firsts[-1], one.index) > REACH:
                break
        stops = [one.stop]
        while self._may_cross(planner, stops[-1]):
            stops.append(stops[-1] + 1)
            if entries.size(one.stop, stops[-1]) > REACH:
                break
        ranges = {self._whole(planner, first, stop) for first in firsts for stop in stops}
        ordered = sorted(r for r in ranges if r[0] < r[1])
        for first, stop in sorted(ordered, key=lambda r: (entries.size(*r), r)):
            if self._try(planner, first, stop, most):
                return _position(one, first, stop)
        return None

    def _may_cross(self, planner: WindowPlanner, index: int) -> bool:
        """True when entry ``index`` may stand behind the one before it, for all we know."""
        entries = planner.entries
        if not entries.continues(index, True):
            return False
        address = entries.code.listing.starts[index]
        return not entries.code.is_label(address) or address in self.sources

    def _whole(self, planner: WindowPlanner, first: int, stop: int) -> tuple[int, int]:
        """[first, stop) widened to whole windows of those it touches; (0, 0) when one must not change."""
        for index in (first, stop - 1):
            draft = planner.draft_of(index)
            if draft is not None:
                first, stop = min(first, draft.first), max(stop, draft.stop)
        at, _, _ = planner.neighbours(first)
        while at < len(planner.drafts) and planner.drafts[at].first < stop:
            draft = planner.drafts[at]
            if draft.host or draft.padding or draft.springboard is not None or draft.edges:
                return 0, 0
            at += 1
        return first, stop

    def _try(self, planner: WindowPlanner, first: int, stop: int, most: int) -> bool:
        """Make [first, stop) a window in place of those in it; False, and nothing changed, when it can't
        be."""
        entries = planner.entries
        at, floor, _ = planner.neighbours(first)
        old: list[Draft] = []
        while at < len(planner.drafts) and planner.drafts[at].first < stop:
            old.append(planner.drafts[at])
            at += 1
        ceiling = planner.drafts[at].first if at < len(planner.drafts) else len(entries.code.listing)
        for draft in old:
            planner.remove(draft)
        made: list[Draft] = []
        opened = planner.open(first, floor)
        closed = planner.close(stop, ceiling, False) if opened >= 0 else None
        if closed is not None and entries.size(opened, closed[0]) >= MIN_SLOT:
            missing = self._missing(planner, opened, closed[0])
            if missing is not None and len(missing) <= most:
                made.append(Draft(opened, *closed))
                planner.insert(made[0])
                if all(_cover(planner, source, made) for source in sorted(missing)):
                    return True
        _unmake(planner, made)
        for draft in old:
            planner.insert(draft)
        return False

    def _missing(self, planner: WindowPlanner, first: int, stop: int) -> set[int] | None:
        """The jumps to labels inside [first, stop) that are in no window; None when it can't be one."""
        entries, listing = planner.entries, planner.entries.code.listing
        if not entries.movable(first):
            return None
        missing: set[int] = set()
        for index in range(first + 1, stop):
            if not entries.continues(index, index == stop - 1):
                return None
            if not entries.is_label(index):
                continue
            address = listing.starts[index]
            if address not in self.sources or address in entries.resumes:
                return None
            for source in self.sources[address]:
                if source < 0:
                    return None
                if not first <= source < stop and planner.draft_of(source) is None:
                    missing.add(source)
        return missing

    # ------------------------------------------------------------ sites that stay

    def split(self, planner: WindowPlanner, one: Wanted) -> Tactic | None:
        """Leave the site where it is and copy it behind the trampolines of all that lead to it."""
        entries, listing, site = planner.entries, planner.entries.code.listing, one.site
        code = entries.code
        plain = one.stop == one.index + 1 and not entries.shadow(one.index) and not site.pad_after
        if not plain or code.is_hard(site.address) or not entries.movable(one.index):
            return None
        if site.address in self.fixups:
            return None
        if code.is_label(site.address) and site.address not in self.sources:
            return None
        leading = list(self.sources.get(site.address, ()))
        if one.index and listing.joined(one.index - 1) and code.reached[one.index - 1]:
            leading.append(one.index - 1)
        if not leading or len(leading) > MAX_SOURCES or min(leading) < 0:
            return None
        made: list[Draft] = []
        if all(_cover(planner, source, made, one.index) for source in leading):
            for source in leading:
                _add_edge(planner, source, site)
            return Tactic.EDGE
        _unmake(planner, made)
        return None


def _position(one: Wanted, first: int, stop: int) -> Tactic:
    if one.index == first:
        return Tactic.FORWARD
    return Tactic.BACKWARD if one.stop == stop else Tactic.BOTH


def _cover(planner: WindowPlanner, index: int, made: list[Draft], keep: int = -1) -> bool:
    """Get entry ``index`` into a window, a new one if need be (added to ``made``); never entry ``keep``."""
    if planner.draft_of(index) is not None:
        return True
    entries = planner.entries
    if not entries.movable(index):
        return False
    _, floor, ceiling = planner.neighbours(index)
    if keep > index:
        ceiling = min(ceiling, keep)
    elif keep >= 0:
        floor = max(floor, keep + 1)
    stop = index + 1
    done = False
    for calls in (False, True):
        far = planner.forward(index, stop, ceiling, calls)
        done = (
            planner.add(index, far, floor, ceiling, calls)
            or planner.add(planner.backward(index, stop, floor), stop, floor, ceiling, calls)
            or planner.add(planner.backward(index, far, floor), far, floor, ceiling, calls)
        )
        if done:
            break
    if not done and keep < 0:
        found = spring(planner, index, stop)
        if found is not None:
            planner.insert(found[0])
            done = True
    draft = planner.draft_of(index)
    if draft is not None:
        made.append(draft)
    return done


def _unmake(planner: WindowPlanner, made: list[Draft]) -> None:
    """Take out what was made in vain, the last first: the springboard of one may lie in one made before it,
    which must be there to tell that from padding."""
    for draft in reversed(made):
        # One that was made longer to be a host has another first entry.
        planner.remove(planner.draft_of(draft.first) or draft)
        release(planner, draft)


def _add_edge(planner: WindowPlanner, index: int, site: Site) -> None:
    draft = planner.draft_of(index)
    if draft is not None and site not in draft.edges:
        planner.remove(draft)
        planner.insert(replace(draft, edges=(*draft.edges, site)))
