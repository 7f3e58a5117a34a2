# SPDX-License-Identifier: GPL-2.0-only
"""Find the windows of a patched kernel again, from nothing but the file.

The site table tells where slots are, not which bytes were moved there. Those are found as a processor finds
them: each window is a jump into a trampoline, and the trampoline's slots are in the table. What comes out is
for people to look at; where the bytes leave a doubt (did the jump at the end belong to the kernel?) the
likelier answer is taken.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from iced_x86 import Decoder, FlowControl, Instruction

from vmi.patcher.adaptorcode import same
from vmi.patcher.model import Access, Image, Segment
from vmi.sitetable import LINK_SIZE, SiteFlag, SiteRecord, SiteTable, Tactic

LONGEST = 255  # bytes of a window that are looked through for its start
LONGEST_INSTRUCTION = 15
MOST = 400  # instructions of a trampoline
MOST_PIECES = 64
FILLER = 0xCC
_JUMP, _SHORT_JUMP = 0xE9, 0xEB


@dataclass(frozen=True, slots=True)
class Stretch:
    """Code at an address."""

    address: int
    code: bytes

    @property
    def end(self) -> int:
        return self.address + len(self.code)

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.end

    def __repr__(self) -> str:
        return f"Stretch({self.address:#x}+{len(self.code)})"


@dataclass(frozen=True, slots=True)
class Moved:
    """A window and where its instructions are now. ``springboard`` 0: it needs none.

    ``pieces`` hold the trampoline in the order in which it runs.
    """

    start: int
    length: int
    springboard: int
    pieces: tuple[Stretch, ...]

    @property
    def end(self) -> int:
        return self.start + self.length

    def __repr__(self) -> str:
        return f"Moved({self.start:#x}+{self.length} to {self.pieces[0].address:#x})"


class Finder:
    """The windows of a patched image, in address order: those that are ``known``, else those it finds."""

    def __init__(
        self, image: Image, home: Segment, table: SiteTable, known: Iterable[Moved] | None = None
    ) -> None:
        self._image, self._home = image, home
        self._slots = {record.slot: record for record in table.sites if record.length}
        self._ordered = sorted(self._slots)
        self._low = table.header.links + table.header.link_count * LINK_SIZE
        self.moved = self._find(table) if known is None else tuple(known)
        self._starts = [moved.start for moved in self.moved]

    def _find(self, table: SiteTable) -> tuple[Moved, ...]:
        found: dict[int, Moved] = {}
        for start, springboard, target in self._jumps():
            self._add(found, start, springboard, target)
        known = {record.slot for moved in found.values() for record in self.records(moved)}
        for record in table.sites:
            if record.flags & SiteFlag.MOVED and record.slot not in known:
                for start, springboard, target in self._before(record):
                    if self._add(found, start, springboard, target, record.slot):
                        known.update(r.slot for r in self.records(found[start]))
                        break
        return tuple(found[start] for start in sorted(found))

    def at(self, address: int) -> Moved | None:
        """The window that ``address`` lies in: its bytes, its springboard's or its trampoline's."""
        for moved in self.moved:
            board = moved.springboard
            if (board and board <= address < board + 5) or any(address in piece for piece in moved.pieces):
                return moved
        index = bisect_right(self._starts, address) - 1
        return self.moved[index] if index >= 0 and address < self.moved[index].end else None

    def records(self, moved: Moved) -> list[SiteRecord]:
        """The records of the slots in a window's trampoline."""
        slots = self._ordered
        spans = [(bisect_left(slots, p.address), bisect_left(slots, p.end)) for p in moved.pieces]
        return [self._slots[slot] for low, high in spans for slot in slots[low:high]]

    # ------------------------------------------------------------ jumps into trampolines

    def _jumps(self) -> Iterator[tuple[int, int, int]]:
        """(window, springboard or 0, trampoline) for each jump of the text into the `.vmi` segment."""
        for segment in self._image.segments:
            if segment is self._home or not segment.flags & Access.X:
                continue
            for match in re.finditer(b"\xe9", segment.data):
                at = segment.vaddr + match.start()
                target = self._target(at)
                if not self._low <= target < self._home.end:
                    continue
                sites = [r.site for r in self._visited(target)]
                for start in range(at - 129, at + 127):
                    if self._target(start) == at and any(start <= site < start + 5 for site in sites):
                        yield start, at, target
                        break
                else:
                    if not sites or any(at <= site < at + LONGEST for site in sites):
                        yield at, 0, target

    def _before(self, record: SiteRecord) -> Iterator[tuple[int, int, int]]:
        """The same for jumps at or before a site whose slot is in the text's padding, nearest first."""
        for start in range(record.site, record.site - LONGEST, -1):
            target = self._target(start)
            if target < 0:
                continue
            if self._byte(start) == _SHORT_JUMP and self._byte(target) == _JUMP:
                yield start, target, self._target(target)
            yield start, 0, target

    def _byte(self, address: int) -> int:
        return (self._image.read(address, 1) or b"\0")[0]

    def _target(self, address: int) -> int:
        """Where the jump at ``address`` goes to, -1 if there is none."""
        raw = self._image.read(address, 5)
        if raw[:1] == b"\xeb" and len(raw) > 1:
            return address + 2 + int.from_bytes(raw[1:2], "little", signed=True)
        if raw[:1] == b"\xe9" and len(raw) == 5:
            return (address + 5 + int.from_bytes(raw[1:], "little", signed=True)) & 0xFFFFFFFF
        return -1

    # ------------------------------------------------------------ trampolines

    def _visited(self, start: int) -> list[SiteRecord]:
        pieces, _ = self._walk(start, 0)
        return self.records(Moved(0, 0, 0, tuple(pieces))) if pieces else []

    def _add(
        self, found: dict[int, Moved], start: int, springboard: int, target: int, slot: int = -1
    ) -> bool:
        """Note a window; False when its trampoline doesn't hold ``slot``."""
        pieces, resume = self._walk(target, start, springboard)
        if not pieces or (slot >= 0 and not any(slot in piece for piece in pieces)):
            return False
        found.setdefault(
            start, Moved(start, self._length(start, springboard, resume), springboard, tuple(pieces))
        )
        return True

    def _length(self, start: int, springboard: int, resume: int) -> int:
        """Bytes of a window: its jump, and what fills the rest up to where control comes back."""
        end = start + (2 if springboard else 5)
        if self._is_board(end) and self._byte(end + 5) == FILLER:
            end += 5  # the springboard of a window close by
        known = start < resume < start + LONGEST
        limit = resume if known else start + LONGEST
        while end < limit:
            if known and end == start + 5 and end + 5 <= limit and self._is_board(end):
                end += 5
            elif self._byte(end) == FILLER:
                end += 1
            else:
                break
        return end - start

    def _is_board(self, address: int) -> bool:
        """True for a long jump to a trampoline, or to what may be one in padding."""
        target = self._target(address) if self._byte(address) == _JUMP else -1
        return target >= 0 and self._image.segment_at(target) is not None

    def _walk(self, start: int, window: int, springboard: int = 0) -> tuple[list[Stretch], int]:
        """The pieces of the trampoline at ``start``, and the address control goes back to (0: none)."""
        inside = self._home.vaddr <= start < self._home.end
        length = 0 if inside else self._length(window, springboard, 0)
        pieces, resume, _sure = self._chain(start, window, length, [], 0)
        return pieces, resume

    def _chain(
        self, start: int, window: int, length: int, before: list[Stretch], covered: int
    ) -> tuple[list[Stretch], int, bool]:
        """The pieces from the one at ``start`` on, the address control goes back to, and whether that's sure.

        ``covered`` bytes of the window are in the pieces ``before``. A jump at a piece's end may be the
        kernel's own or lead to the next piece: whichever accounts for all of the window.
        """
        piece, insn, copies, here = self._piece(start)
        if insn is None or any(start in other for other in before) or len(before) > MOST_PIECES:
            return before, 0, False
        pieces, covered = [*before, piece], covered + here
        if not same(insn.flow_control, FlowControl.UNCONDITIONAL_BRANCH):
            return pieces, 0, covered <= length
        target = insn.near_branch32
        # Control comes back right behind the window, or behind one instruction more that was copied.
        copied = LONGEST_INSTRUCTION if covered > length else 0
        if window < target <= window + (length + copied if length else LONGEST):
            more = [copy for copy in copies if all(copy not in other for other in pieces)]
            if more:
                return self._chain(more[0], window, length, pieces, covered)[0], target, True
            return pieces, target, True
        if length >= covered:
            following, resume, sure = self._chain(target, window, length, pieces, covered)
            if sure:
                return following, resume, True
        return pieces, 0, length - covered in (2, 5)

    def _piece(self, start: int) -> tuple[Stretch, Instruction | None, list[int], int]:
        """Code up to what never falls through: that instruction (None if there is none), copies of sites that
        its jumps lead to, and how many bytes of the window it stands for at least.
        """
        copies: list[int] = []
        covered, at = 0, start
        for _ in range(MOST):
            record = self._slots.get(at)
            padding = 0
            if record is not None and record.has_call:
                native = self._native(record)
                padding = record.length - native
                if not record.flags & SiteFlag.PAD_AFTER:
                    # Its own last instruction tells whether anything follows.
                    at += padding
                    padding = 0
            insn = Decoder(32, self._image.read(at, 15), ip=at).decode()
            if insn.is_invalid:
                break
            at = insn.next_ip32 + padding
            jumps = same(insn.flow_control, FlowControl.UNCONDITIONAL_BRANCH)
            if jumps or same(insn.flow_control, FlowControl.CONDITIONAL_BRANCH):
                copies += [insn.near_branch32] if self._is_copy(insn.near_branch32) else []
            else:
                covered += insn.len
            covered += 2 * same(insn.flow_control, FlowControl.CONDITIONAL_BRANCH)
            if not jumps and (same(insn.flow_control, FlowControl.NEXT) or _comes_back(insn)):
                continue
            if at in copies:
                continue
            return Stretch(start, self._image.read(start, at - start)), insn, copies, covered
        return Stretch(start, b""), None, copies, covered

    def _is_copy(self, target: int) -> bool:
        record = self._slots.get(target)
        return record is not None and record.tactic is Tactic.EDGE

    def _native(self, record: SiteRecord) -> int:
        """Length of the native instruction in a slot; of the last one, where it has two."""
        found = list(Decoder(32, self._image.read(record.slot, record.length)))
        return found[0 if record.flags & SiteFlag.PAD_AFTER else -1].len if found else 0


def _comes_back(insn: Instruction) -> bool:
    """True for what may go on with the next instruction: calls, conditional jumps, interrupts."""
    return insn.flow_control in (
        FlowControl.CALL,
        FlowControl.INDIRECT_CALL,
        FlowControl.CONDITIONAL_BRANCH,
        FlowControl.INTERRUPT,
    )
