# SPDX-License-Identifier: GPL-2.0-only
"""What a trampoline holds, and how it is cut into pieces that fit the padding of a text.

Padding between functions has a few bytes only, less than most trampolines, so a trampoline in padding is a
chain of pieces. The cuts are made here for the planner, which looks for room, and for the emitter, which
writes the code: both must find the same ones. What may not be cut are units: a slot, an instruction, and
whatever follows an instruction that holds off interrupts.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmi.patcher.model import MIN_SLOT, Branch, Insn, Pad, Site, Window

JMP8_SIZE = 2
JMP32_SIZE = 5
NEAR = 64
"""Bytes of a piece that may be filled when an 8-bit jump ends it: so its target may lie before the piece."""

SHADOWS = frozenset(("sti", "pop ss", "mov ss,r"))
"""Forms after which the next instruction runs before any interrupt is taken."""

_PREFIXES = bytes.fromhex("26 2e 36 3e 64 65 66 67 f0 f2 f3")
_LONG = {Branch.JMP: 5, Branch.CALL: 5, Branch.JCC: 6}
_SHORT = {Branch.JMP: 2, Branch.CALL: 5, Branch.JCC: 2}


@dataclass(frozen=True, slots=True)
class Item:
    """One instruction of a trampoline. ``slot``: a site that gets a slot here; ``trap``: one to be trapped.

    ``edge``: a copy of a site that stays where it is. ``local``: a branch to such a copy, or to an
    instruction that moved. ``added``: a jump that the window doesn't have. ``falls``: control may go on
    behind it.
    """

    insn: Insn
    slot: Site | None = None
    trap: Site | None = None
    edge: bool = False
    local: bool = False
    added: bool = False
    falls: bool = True


@dataclass(frozen=True, slots=True)
class Unit:
    """Items that stay together. Only the last may be a branch: ``lead`` bytes are before it (else all)."""

    items: tuple[Item, ...]
    lead: int
    long: int = 0
    short: int = 0
    target: int = 0
    falls: bool = True

    def size(self, at: int, dense: bool) -> int:
        """Bytes at address ``at``; ``dense``: branches have their shortest form."""
        if dense and self.short != self.long and in_reach(at + self.lead + self.short, self.target):
            return self.lead + self.short
        return self.lead + self.long


def in_reach(end: int, target: int) -> bool:
    """True when a branch that ends at ``end`` reaches ``target`` with an 8-bit distance."""
    return -128 <= target - end < 128


def prefixes(raw: bytes) -> int:
    """The number of prefix bytes that an instruction starts with."""
    return next(n for n, byte in enumerate(raw) if byte not in _PREFIXES)


def slot_length(site: Site) -> int:
    """Bytes of a site's slot in a trampoline."""
    return max(MIN_SLOT, site.length)


def items(window: Window) -> list[Item]:
    """All that the trampoline of a window holds, in order."""
    sites = {site.address: site for site in window.sites}
    traps = {site.address: site for site in window.traps}
    copies = {site.address for site in window.edges}
    elsewhere = copies.union(window.inner)
    found = []
    for insn in window.insns:
        last = insn is window.insns[-1] and window.resume is None
        local = insn.branch is not None and insn.target in elsewhere
        found.append(
            Item(insn, sites.get(insn.address), traps.get(insn.address), local=local, falls=not last)
        )
    # The end runs into the copy of the site it would come back to, so that one is first.
    edges = sorted(window.edges, key=lambda site: (site.address != window.resume, site.address))
    if window.resume is not None and window.resume not in copies:
        found.append(_jump(window.resume))
    for site in edges:
        found.append(Item(Insn(site.address, site.raw, site.form), site, edge=True))
        found.append(_jump(site.end))
    return found


def _jump(target: int) -> Item:
    return Item(Insn(0, b"\xe9\0\0\0\0", None, Branch.JMP, target), added=True, falls=False)


def units(window: Window) -> tuple[Unit, ...]:
    """The items of a window's trampoline in units that are never cut."""
    found: list[Unit] = []
    together: list[Item] = []
    for item in items(window):
        together.append(item)
        if item.insn.form not in SHADOWS or not item.falls:
            found.append(_unit(together))
            together = []
    if together:
        found.append(_unit(together))
    return tuple(found)


def _unit(together: list[Item]) -> Unit:
    last = together[-1]
    insn = last.insn
    lead = sum(fixed_length(item) for item in together[:-1])
    if insn.branch is None:
        return Unit(tuple(together), lead + fixed_length(last), falls=last.falls)
    if insn.branch is Branch.LOOP:
        short = prefixes(insn.raw) + 2
        long = short + JMP8_SIZE + JMP32_SIZE
    else:
        long, short = _LONG[insn.branch], _SHORT[insn.branch]
    # Where a copy or a moved instruction will be is not known while the trampoline is being cut.
    short = long if last.local else short
    return Unit(tuple(together), lead, long, short, insn.target, last.falls)


def fixed_length(item: Item) -> int:
    """Bytes of an item that is no branch."""
    return item.insn.length if item.slot is None else slot_length(item.slot)


def whole(cut: tuple[Unit, ...]) -> int:
    """Bytes of a trampoline in one piece, all branches in their long form."""
    return sum(unit.lead + unit.long for unit in cut)


def fill(cut: tuple[Unit, ...], first: int, start: int, room: int, link: int) -> tuple[int, int]:
    """(stop, size): as many units from ``first`` on as fit in ``room`` bytes at ``start``, and their size.

    ``link`` bytes are kept, and counted, for a jump to the next piece if control gets to the end and there
    are more units. Gives ``first`` when nothing fits.
    """
    at, limit, last = start, start + room, len(cut) - 1
    stop, end = first, start
    for number in range(first, last + 1):
        unit = cut[number]
        at += unit.lead
        # As Unit.size does, which is not called because this is where most of the planner's time goes.
        if unit.short == unit.long or not -128 <= unit.target - at - unit.short < 128:
            at += unit.long
        else:
            at += unit.short
        if at > limit:
            break
        kept = link if unit.falls and number < last else 0
        if at + kept <= limit:
            stop, end = number + 1, at + kept
    return stop, end - start


def link_size(start: int, following: int) -> int:
    """Size of the jump that ends a piece at ``start``, to the piece at ``following``.

    It follows from the two addresses alone, so that it stays the same when the piece's room is cut to size.
    """
    return JMP8_SIZE if -NEAR <= following - start < 128 else JMP32_SIZE


def step(cut: tuple[Unit, ...], first: int, start: int, room: int, link: int) -> tuple[int, int]:
    """``fill`` for a piece that a jump of ``link_size`` ends."""
    return fill(cut, first, start, min(room, NEAR) if link == JMP8_SIZE else room, link)


@dataclass(frozen=True, slots=True)
class Cut:
    """One piece: units, where they start, and where to go on at the end (None: nothing gets there)."""

    start: int
    units: tuple[Unit, ...]
    following: int | None


def cuts(window: Window, start: int) -> tuple[Cut, ...]:
    """The pieces of a window's trampoline: in its pads, or one at ``start``.

    Raises ValueError when the pads are not those that the window's units fill.
    """
    cut = units(window)
    if not window.pads:
        return (Cut(start, cut, None),)
    found = []
    first = 0
    for number, pad in enumerate(window.pads):
        following = window.pads[number + 1].start if number + 1 < len(window.pads) else None
        stop, size = _fill(cut, first, pad, following)
        if stop == first or size != pad.size:
            raise ValueError(f"the trampoline of the window at {window.start:#x} doesn't fill {pad!r}")
        falls = cut[stop - 1].falls and following is not None
        found.append(Cut(pad.start, cut[first:stop], following if falls else None))
        first = stop
    if first != len(cut):
        raise ValueError(f"the trampoline of the window at {window.start:#x} doesn't fit in its pads")
    return tuple(found)


def _fill(cut: tuple[Unit, ...], first: int, pad: Pad, following: int | None) -> tuple[int, int]:
    if following is None:
        return fill(cut, first, pad.start, pad.size, JMP32_SIZE)
    return step(cut, first, pad.start, pad.size, link_size(pad.start, following))
