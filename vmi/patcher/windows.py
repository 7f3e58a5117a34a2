# SPDX-License-Identifier: GPL-2.0-only
"""Finds windows for the sites of one listing.

A window must hold its site, whole instructions that may move, no label in its interior, and five bytes.
Sites are taken in address order; each first tries to join the window before it, because every window costs
a native run two jumps, and then looks forward, backward and both ways. An instruction that holds off
interrupts is never parted from the next one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from iced_x86 import Code as OpCode
from iced_x86 import Mnemonic, Register

from vmi.patcher.decode import CALLS, FALLS_THROUGH, MOVABLE, Kind
from vmi.patcher.flow import Code, Flow
from vmi.patcher.model import MIN_SLOT, SPRING, Insn, Site, Window
from vmi.sitetable import Tactic

JOIN_GAP = 12
"""Bytes between two windows that are cheaper to move than to jump out and back again."""

_BEFORE_RETURN_ADDRESS = frozenset(range(0x58, 0x60))  # pop r


@dataclass(slots=True)
class Draft:
    """A window being grown: entries [first, stop), then a copy of ``tail`` (-1 none), ``padding`` bytes
    eaten."""

    first: int
    stop: int
    tail: int = -1
    padding: int = 0
    springboard: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A site that should get a slot: entries [index, stop) of the listing."""

    site: Site
    index: int
    stop: int


@dataclass(slots=True)
class WindowPlanner:
    """Plans one listing. ``barriers`` are entries no window may touch (annotated slots)."""

    flow: Flow
    code: Code
    barriers: frozenset[int]
    drafts: list[Draft] = field(default_factory=list)
    tactics: dict[int, Tactic] = field(default_factory=dict)
    failed: list[Wanted] = field(default_factory=list)
    _movable: dict[int, bool] = field(default_factory=dict)

    def place(self, wanted: list[Wanted]) -> None:
        """Decide about all ``wanted`` sites, in address order; results are `tactics`, `drafts`, `failed`."""
        for one in wanted:
            tactic = self._place(one)
            if tactic is None:
                self.failed.append(one)
            else:
                self.tactics[one.site.address] = tactic
        self._springboards()
        for one in wanted:
            if self.tactics.get(one.site.address) is Tactic.IN_PLACE and self.draft_of(one.index):
                self.tactics[one.site.address] = Tactic.MERGED

    def draft_of(self, index: int) -> Draft | None:
        """The draft whose displaced entries hold ``index``."""
        at = bisect_left(self.drafts, index + 1, key=lambda d: d.first) - 1
        return self.drafts[at] if at >= 0 and index < self.drafts[at].stop else None

    # ------------------------------------------------------------ one site

    def _place(self, one: Wanted) -> Tactic | None:
        last = self.drafts[-1] if self.drafts else None
        if last is not None and one.stop <= last.stop:
            return Tactic.MERGED
        if one.site.length >= MIN_SLOT:
            return Tactic.IN_PLACE
        if not self._fits(one):
            return None
        if last is not None and self._join(last, one, JOIN_GAP):
            return Tactic.MERGED
        floor = last.stop if last is not None else 0
        for calls in (False, True):
            stop = self._forward(one, calls)
            if self._add(one.index, stop, floor, calls):
                return Tactic.FORWARD
            first = self._backward(one.index, one.stop, floor)
            if self._add(first, one.stop, floor, calls):
                return Tactic.BACKWARD
            first = self._backward(one.index, stop, floor)
            if self._add(first, stop, floor, calls):
                return Tactic.BOTH
            if last is not None and self._join(last, one, one.site.address):
                return Tactic.MERGED
        return None

    def _fits(self, one: Wanted) -> bool:
        """True when the site's own entries may move at all."""
        return self.movable(one.index) and all(self.follows(i, False) for i in range(one.index + 1, one.stop))

    def _forward(self, one: Wanted, calls: bool) -> int:
        """The stop entry of the shortest run from the site that has 5 bytes, or of the longest possible."""
        stop = one.stop
        while self._size(one.index, stop) < MIN_SLOT and self.follows(stop, calls):
            stop += 1
        return stop

    def _backward(self, first: int, stop: int, floor: int) -> int:
        """The first entry of the shortest run up to ``stop`` that has 5 bytes, or of the longest possible."""
        while self._size(first, stop) < MIN_SLOT and first > floor and self._precedes(first):
            first -= 1
        return first

    def _join(self, last: Draft, one: Wanted, gap: int) -> bool:
        """Grow the window before up to the site when at most ``gap`` bytes lie between."""
        listing = self.code.listing
        if one.site.address - listing.stop(last.stop - 1) > gap:
            return False
        if not all(self.follows(index, False) for index in range(last.stop, one.stop)):
            return False
        closed = self._close(one.stop, False)
        if closed is None:
            return False
        last.stop, last.tail = closed
        return True

    def _add(self, first: int, stop: int, floor: int, calls: bool) -> bool:
        """Make a window of [first, stop), widened so that no interrupt shadow is split; False when it can't
        be.

        Padding behind a last instruction that never falls through counts as part of it.
        """
        opened = self._open(first, floor)
        closed = self._close(stop, calls)
        if opened < 0 or closed is None:
            return False
        stop, tail = closed
        size = self._size(opened, stop)
        padding = 0
        if size < MIN_SLOT and tail < 0 and self.code.listing.kinds[stop - 1] not in FALLS_THROUGH:
            padding = MIN_SLOT - size
            size += min(padding, self._padding_after(stop - 1))
        if size < MIN_SLOT:
            return False
        self.drafts.append(Draft(opened, stop, tail, padding))
        return True

    def _open(self, first: int, floor: int) -> int:
        """``first``, moved back so that no interrupt shadow ends there; -1 when that can't be."""
        listing = self.code.listing
        while first and self._shadow(first - 1) and listing.joined(first - 1):
            if any(draft.tail == first for draft in self.drafts[-1:]):
                break  # the shadow's own window has a copy of this instruction
            if first - 1 < floor or not self._precedes(first):
                return -1
            first -= 1
        return first

    def _close(self, stop: int, calls: bool) -> tuple[int, int] | None:
        """(stop, tail) such that a last instruction with a shadow is followed by its own next one."""
        while self._shadow(stop - 1):
            if not self.code.listing.joined(stop - 1):
                return None
            if self.follows(stop, calls):
                stop += 1
            elif self._copyable(stop):
                return stop, stop
            else:
                return None
        return stop, -1

    def why(self, one: Wanted) -> str:
        """One sentence about a site that got no slot."""
        if not self._fits(one):
            return "It can't be moved."
        stop, first = one.stop, one.index
        while self.follows(stop, True):
            stop += 1
        while first and self._precedes(first):
            first -= 1
        size = self._size(first, stop)
        if size < MIN_SLOT:
            return (
                f"Jump targets and instructions that must stay leave {size} bytes around it, a jump needs 5."
            )
        return "An interrupt shadow beside it can't be kept in a trampoline."

    # ------------------------------------------------------------ entries

    def movable(self, index: int) -> bool:
        """True when entry ``index`` means the same in a trampoline and nothing needs it where it is."""
        known = self._movable.get(index)
        if known is None:
            known = self._movable[index] = self._compute_movable(index)
        return known

    def _compute_movable(self, index: int) -> bool:
        listing = self.code.listing
        kind = listing.kinds[index]
        if kind not in MOVABLE or not self.code.reached[index] or index in self.barriers:
            return False
        if self.code.pin(listing.starts[index], listing.stop(index)) is not None:
            return False
        return kind not in CALLS or self._call_may_move(index)

    def _call_may_move(self, index: int) -> bool:
        """A moved call pushes another return address: only when nobody seems to look at it."""
        listing = self.code.listing
        after = listing.stop(index)
        if after >= listing.end or self.code.is_label(after):
            return False
        if listing.kinds[index] == Kind.CALL_INDIRECT:
            return True
        target = listing.targets[listing.starts[index]]
        other = self.flow.code_at(target)
        at = other.listing.at(target) if other is not None else -1
        if other is None or at < 0:
            return False
        raw = other.listing.raw(at)
        # `pop r`, or `mov r,[esp]`: position-independent code and the like.
        return not (
            raw[0] in _BEFORE_RETURN_ADDRESS or (raw[0] == 0x8B and raw[1] & 0xC7 == 4 and raw[2] == 0x24)
        )

    def follows(self, index: int, calls: bool) -> bool:
        """True when entry ``index`` may stand in a window behind entry ``index`` - 1."""
        listing = self.code.listing
        if index >= len(listing) or not listing.joined(index - 1) or listing.kinds[index - 1] in CALLS:
            return False
        if not calls and listing.kinds[index] in CALLS:
            return False
        return not self.code.is_label(listing.starts[index]) and self.movable(index)

    def _precedes(self, first: int) -> bool:
        """True when a window may be widened from ``first`` to the entry before it."""
        return (
            self.follows(first, False)
            and self.movable(first - 1)
            and self.code.listing.kinds[first - 1] not in CALLS
        )

    def _copyable(self, index: int) -> bool:
        """True when entry ``index`` may be copied behind a window and also stay."""
        address = self.code.listing.starts[index]
        return self.movable(index) and not self._shadow(index) and address not in self.code.listing.forms

    def _shadow(self, index: int) -> bool:
        form = self.code.listing.forms.get(self.code.listing.starts[index])
        return form is not None and form.shadow

    def _size(self, first: int, stop: int) -> int:
        listing = self.code.listing
        return listing.stop(stop - 1) - listing.starts[first]

    # ------------------------------------------------------------ padding

    def _padding_after(self, index: int) -> int:
        """Bytes of padding that follow entry ``index``, which control never runs into."""
        listing = self.code.listing
        end = listing.stop(index)
        size = 0
        for at in range(index + 1, len(listing)):
            if listing.starts[at] != end + size or not self._is_padding(at):
                break
            size += listing.lengths[at]
        return size

    def _is_padding(self, index: int) -> bool:
        listing = self.code.listing
        start, end = listing.starts[index], listing.stop(index)
        if self.code.reached[index] or index in self.barriers or self.code.pin(start, end) is not None:
            return False
        if self.code.is_label(start):
            return False
        raw = listing.raw(index)
        if not raw.strip(b"\xcc") or not raw.strip(b"\0"):
            return True
        insn = listing.decoded(index)
        if insn.mnemonic == Mnemonic.NOP:
            return True
        registers = (insn.op0_register, insn.memory_base, insn.memory_index)
        if insn.code in (OpCode.MOV_RM32_R32, OpCode.MOV_R32_RM32) and insn.op_count == 2:
            return insn.op1_kind == insn.op0_kind and insn.op0_register == insn.op1_register
        same = (insn.op0_register, insn.op0_register, Register.NONE)
        return insn.code == OpCode.LEA_R32_M and registers == same and insn.memory_displacement == 0

    def _springboards(self) -> None:
        """Give failed sites with 2-4 movable bytes an 8-bit jump to padding close by."""
        if not self.failed:
            return
        pads = self._pads()
        failed, self.failed = self.failed, []
        for one in failed:
            draft = self.draft_of(one.index)
            if draft is not None and one.stop <= draft.stop:
                self.tactics[one.site.address] = Tactic.MERGED
            elif self._spring(one, pads):
                self.tactics[one.site.address] = Tactic.SPRINGBOARD
            else:
                self.failed.append(one)

    def _spring(self, one: Wanted, pads: list[tuple[int, int]]) -> bool:
        if not self._fits(one):
            return False
        at = bisect_left(self.drafts, one.index, key=lambda d: d.first)
        floor = self.drafts[at - 1].stop if at else 0
        ceiling = self.drafts[at].first if at < len(self.drafts) else len(self.code.listing)
        stop = one.stop
        while self._size(one.index, stop) < SPRING and stop < ceiling and self.follows(stop, False):
            stop += 1
        first = one.index
        while self._size(first, stop) < SPRING and first > floor and self._precedes(first):
            first -= 1
        first = self._open(first, floor)
        closed = self._close(stop, False)
        if first < 0 or closed is None or closed[0] > ceiling:
            return False
        if not SPRING <= self._size(first, closed[0]) < MIN_SLOT:
            return False
        origin = self.code.listing.starts[first] + SPRING
        near = [
            (abs(start - origin), n)
            for n, (start, size) in enumerate(pads)
            if size >= MIN_SLOT and -128 <= start - origin <= 127
        ]
        if not near:
            return False
        number = min(near)[1]
        start, size = pads[number]
        pads[number] = (start + MIN_SLOT, size - MIN_SLOT)
        self.drafts.insert(at, Draft(first, closed[0], closed[1], 0, start))
        return True

    def _pads(self) -> list[tuple[int, int]]:
        """(address, size) of padding nobody runs into, minus what windows took."""
        listing = self.code.listing
        taken = {d.stop - 1: d.padding for d in self.drafts if d.padding}
        pads: list[tuple[int, int]] = []
        index = 0
        while index < len(listing) - 1:
            if self.code.reached[index + 1] or not self.code.reached[index] or listing.joined(index):
                index += 1
                continue
            size = self._padding_after(index)
            used = taken.get(index, 0)
            if size - used >= MIN_SLOT:
                pads.append((listing.stop(index) + used, size - used))
            index += 1
        return pads

    # ------------------------------------------------------------ result

    def windows(self, sites: dict[int, Site], traps: dict[int, Site]) -> Iterator[Window]:
        """The finished windows; ``sites`` get slots, ``traps`` are recorded, both by address."""
        listing = self.code.listing
        for draft in self.drafts:
            insns = tuple(self._insns(draft.first, draft.stop, sites))
            last = draft.stop - 1
            if draft.tail >= 0:
                insns += (listing.insn(draft.tail),)
                last = draft.tail
            start = listing.starts[draft.first]
            length = listing.stop(draft.stop - 1) + draft.padding - start
            inside = [insn.address for insn in insns]
            yield Window(
                start,
                length,
                insns,
                tuple(sites[a] for a in inside if a in sites),
                tuple(traps[a] for a in inside if a in traps),
                listing.stop(last) if listing.kinds[last] in FALLS_THROUGH else None,
                draft.springboard,
            )

    def _insns(self, first: int, stop: int, sites: dict[int, Site]) -> Iterator[Insn]:
        listing = self.code.listing
        index = first
        while index < stop:
            insn = listing.insn(index)
            site = sites.get(insn.address)
            if site is not None and site.length > insn.length:
                insn = Insn(insn.address, site.raw, site.form)
                index += 1
            yield insn
            index += 1
