# SPDX-License-Identifier: GPL-2.0-only
"""Windows of two to four bytes: an 8-bit jump to a springboard, which holds the 32-bit jump.

A springboard lies in padding close by, or in the unused bytes of a longer window, its host. A window close by
that is too short for that is made longer when its neighbourhood allows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from vmi.patcher.model import MIN_SLOT, SPRING
from vmi.patcher.windows import Draft, WindowPlanner
from vmi.sitetable import Tactic

HOST_SIZE = 2 * MIN_SLOT
"""Bytes of a window that has room for its own jump and for a springboard."""

REACH = 128


def spring(planner: WindowPlanner, index: int, stop: int) -> tuple[Draft, Tactic] | None:
    """A window of few bytes that holds entries [index, stop), which are in none; not yet inserted."""
    starts = planner.entries.code.listing.starts
    for draft, origin, keep in _short(planner, index, stop):
        at = planner.gaps.near(origin)
        if at >= 0:
            planner.take(at, MIN_SLOT)
            return replace(draft, springboard=at), Tactic.SPRINGBOARD
        host = _host(planner, origin, keep)
        if host is not None:
            planner.lodge(host)
            return replace(draft, springboard=starts[host.first] + MIN_SLOT), Tactic.HOST
    return None


def hosted(planner: WindowPlanner, index: int, stop: int) -> Draft | None:
    """As `spring`, with a window close by that is made to be the host; not yet inserted, the host is."""
    listing = planner.entries.code.listing
    for draft, origin, keep in _short(planner, index, stop):
        near = listing.between(origin - REACH - MIN_SLOT, origin + REACH - MIN_SLOT)
        found = [_made(planner, at, keep) for at in near]
        made = min(filter(None, found), key=lambda host: (_length(planner, host), host.first), default=None)
        if made is not None:
            planner.insert(made)
            return replace(draft, springboard=listing.starts[made.first] + MIN_SLOT)
    return None


def _short(planner: WindowPlanner, index: int, stop: int) -> Iterator[tuple[Draft, int, range]]:
    """The ways to make such a window, best first: it, where its jump ends, and the entries it must keep."""
    entries = planner.entries
    _, floor, ceiling = planner.neighbours(index)
    for calls in (False, True):
        last = planner.forward(index, stop, ceiling, calls, SPRING)
        first = planner.open(planner.backward(index, last, floor, SPRING), floor)
        closed = planner.close(last, ceiling, calls)
        if first >= 0 and closed is not None and SPRING <= entries.size(first, closed[0]) < MIN_SLOT:
            origin = entries.code.listing.starts[first] + SPRING
            yield Draft(first, *closed), origin, range(first, closed[0] + 1)


def _made(planner: WindowPlanner, first: int, keep: range) -> Draft | None:
    """A new window from entry ``first`` on that is long enough to be a host; None when it can't be."""
    entries = planner.entries
    if planner.draft_of(first) is not None or not entries.movable(first):
        return None
    _, floor, ceiling = planner.neighbours(first)
    if first < keep.start:
        ceiling = min(ceiling, keep.start)
    else:
        floor = max(floor, keep.stop)
    stop = planner.forward(first, first + 1, ceiling, False, HOST_SIZE)
    closed = planner.close(stop, ceiling, False)
    if first < floor or closed is None or planner.open(first, floor) != first:
        return None
    draft = Draft(first, *closed, host=True)
    return draft if _length(planner, draft) >= HOST_SIZE else None


def _host(planner: WindowPlanner, origin: int, keep: range) -> Draft | None:
    """A window with room for a springboard that a jump ending at ``origin`` reaches, perhaps made longer.

    ``keep`` are entries that no window may grow over.
    """
    listing = planner.entries.code.listing
    low, high = origin - REACH - MIN_SLOT, origin + REACH - 1 - MIN_SLOT
    at = bisect_left(planner.drafts, low, key=lambda d: listing.starts[d.first])
    near: list[Draft] = []
    while at < len(planner.drafts) and listing.starts[planner.drafts[at].first] <= high:
        draft = planner.drafts[at]
        if draft.springboard is None and not draft.host:
            near.append(draft)
        at += 1
    for draft in near:
        if _length(planner, draft) >= HOST_SIZE:
            return draft
    for draft in near:
        grown = _grown(planner, draft, keep)
        if grown is not None and low <= listing.starts[grown.first]:
            return grown
    return None


def _length(planner: WindowPlanner, draft: Draft) -> int:
    return planner.entries.size(draft.first, draft.stop) + draft.padding


def _grown(planner: WindowPlanner, draft: Draft, keep: range) -> Draft | None:
    """``draft`` with more of the instructions around it, so that it can be a host; None when it can't."""
    if draft.padding or draft.tail >= 0 or draft.edges:
        return None
    at, floor, _ = planner.neighbours(draft.first)
    drafts = planner.drafts
    ceiling = drafts[at + 1].first if at + 1 < len(drafts) else len(planner.entries.code.listing)
    if keep.start >= draft.stop:
        ceiling = min(ceiling, keep.start)
    else:
        floor = max(floor, keep.stop)
    stop = planner.forward(draft.first, draft.stop, ceiling, False, HOST_SIZE)
    first = planner.open(planner.backward(draft.first, stop, floor, HOST_SIZE), floor)
    closed = planner.close(stop, ceiling, False)
    if first < 0 or closed is None or planner.entries.size(first, closed[0]) < HOST_SIZE:
        return None
    grown = Draft(first, *closed)
    planner.remove(draft)
    planner.insert(grown)
    return grown
