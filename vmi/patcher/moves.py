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
from collections.abc import Iterator
from dataclasses import dataclass

from iced_x86 import Decoder, FlowControl, Instruction

from vmi.patcher.adaptorcode import same
from vmi.patcher.model import Access, Image, Segment
from vmi.sitetable import LINK_SIZE, SiteFlag, SiteRecord, SiteTable, Tactic

LONGEST = 255  # bytes of a window that are looked through for its start
MOST = 400  # instructions of a trampoline
PAGE = 0x1000
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
    """The windows of a patched image, in address order."""

    def __init__(self, image: Image, home: Segment, table: SiteTable) -> None:
        self._image, self._home = image, home
        self._slots = {record.slot: record for record in table.sites if record.length}
        self._ordered = sorted(self._slots)
        self._low = table.header.links + table.header.link_count * LINK_SIZE
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
        self.moved = tuple(found[start] for start in sorted(found))
        self._starts = sorted(found)

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
        for start in range(record.site, max(record.site & -PAGE, record.site - LONGEST) - 1, -1):
            target = self._target(start)
            if target < 0 or start // PAGE != target // PAGE:
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
        pieces, resume = self._walk(target, start)
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
        """True for a long jump into the segment, or to padding of its page."""
        target = self._target(address) if self._byte(address) == _JUMP else -1
        return self._low <= target < self._home.end or target // PAGE == address // PAGE

    def _walk(self, start: int, window: int) -> tuple[list[Stretch], int]:
        """The pieces of the trampoline at ``start``, and the address control goes back to (0: none)."""
        pieces: list[Stretch] = []
        copies: list[int] = []  # what its jumps lead to, perhaps copies of sites that stay
        resume = 0
        begin = at = start
        for _ in range(MOST):
            record = self._slots.get(at)
            if record is not None and record.has_call and not record.flags & SiteFlag.PAD_AFTER:
                # Its own last instruction tells whether anything follows.
                at += record.length - self._native(record)
            insn = Decoder(32, self._image.read(at, 15), ip=at).decode()
            if insn.is_invalid:
                return [], 0
            at = insn.next_ip32
            jumps = same(insn.flow_control, FlowControl.UNCONDITIONAL_BRANCH)
            if jumps or same(insn.flow_control, FlowControl.CONDITIONAL_BRANCH):
                copies.append(insn.near_branch32)
            if not jumps and (same(insn.flow_control, FlowControl.NEXT) or _comes_back(insn)):
                continue
            if jumps and not resume and window < insn.near_branch32 <= window + LONGEST:
                resume = insn.near_branch32
            if at in copies and self._is_copy(at):
                continue
            pieces.append(Stretch(begin, self._image.read(begin, at - begin)))
            if self._home.vaddr <= begin < self._home.end:
                return pieces, resume
            if jumps and self._continues(insn, window, pieces):
                begin = at = insn.near_branch32
                continue
            rest = [copy for copy in copies if self._is_copy(copy) and all(copy not in p for p in pieces)]
            if not rest:
                return pieces, resume
            begin = at = rest[0]
        return [], 0

    def _is_copy(self, target: int) -> bool:
        record = self._slots.get(target)
        return record is not None and record.tactic is Tactic.EDGE

    def _native(self, record: SiteRecord) -> int:
        """Length of the last instruction in a slot."""
        raw = self._image.read(record.slot, record.length)
        return max((insn.len for insn in list(Decoder(32, raw))[-1:]), default=0)

    def _continues(self, insn: Instruction, window: int, pieces: list[Stretch]) -> bool:
        """True when a jump at a piece's end in the text's padding leads to the next piece."""
        target = insn.near_branch32
        if target // PAGE != insn.ip32 // PAGE or any(target in piece for piece in pieces):
            return False
        return not window < target <= window + LONGEST


def _comes_back(insn: Instruction) -> bool:
    """True for what may go on with the next instruction: calls, conditional jumps, interrupts."""
    return insn.flow_control in (
        FlowControl.CALL,
        FlowControl.INDIRECT_CALL,
        FlowControl.CONDITIONAL_BRANCH,
        FlowControl.INTERRUPT,
    )
