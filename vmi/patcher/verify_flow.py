# SPDX-License-Identifier: GPL-2.0-only
"""Follow each window of a patched file through its trampoline, instruction by instruction.

The walk knows the plan and the bytes of the output, nothing else: where an instruction is found is where
the walk is. What it finds is what the tables are checked against afterwards.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iced_x86 import Decoder, Instruction

from vmi.patcher.adaptorcode import same
from vmi.patcher.emit import Emission
from vmi.patcher.model import Insn, Site, Window
from vmi.patcher.readback import Memory, check, has_shadow, is_jump
from vmi.sitetable import SiteRecord

FILLER = 0xCC
LONG_JUMP = 5
JUMP_OVER = b"\xeb\x05"  # how a loop or jecxz that can't reach its target goes on


@dataclass(frozen=True, slots=True)
class Found:
    """An instruction of the guest in a trampoline: [start, end) now, and whether it is a relocated branch."""

    insn: Insn
    start: int
    end: int
    copy: bool


@dataclass(frozen=True, slots=True)
class Followed:
    """What the walk found: moved instructions by old address, copies of such that also stay, code ranges."""

    moved: dict[int, Found] = field(default_factory=dict)
    copies: list[Found] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    entries: dict[int, int] = field(default_factory=dict)  # where a moved instruction is to be entered
    pending: list[tuple[int, int, str]] = field(default_factory=list)  # branches to such: old, new, where


def follow(emission: Emission, memory: Memory) -> Followed:
    """Walk through all windows; raises VerifyError where one does something else than the plan says."""
    found = Followed()
    records = {record.slot: record for record in emission.records}
    boards = sorted(w.springboard for w in emission.plan.windows if w.springboard is not None)
    image = emission.plan.image
    _check_targets(emission.plan.windows)
    for window in emission.plan.windows:
        for insn in window.insns:
            check(image.read(insn.address, insn.length) == insn.raw, f"the plan misread {insn.address:#x}")
        at = _entered(memory, window, boards)
        if emission.first is not None and window is emission.first.window:
            wanted = emission.place.layout.activation
            check(at == wanted, f"the kernel's first instruction jumps to {at:#x}, not to {wanted:#x}")
            at = emission.first.start
        if window.pads:
            check(at == window.pads[0].start, f"the window at {window.start:#x} misses its first pad")
        else:
            inside = emission.base <= at < emission.base + emission.header.size
            check(inside, f"the window at {window.start:#x} jumps out of the .vmi segment")
        _Walk(memory, window, records, found, at).run()
    for address, target, where in found.pending:
        check(found.entries.get(address) == target, f"the branch at {where} has another target")
    return found


def _check_targets(windows: Sequence[Window]) -> None:
    """What the trampolines jump to is only inside a window where the plan says so."""
    ranges = sorted((window.start, window.end) for window in windows)
    starts = [start for start, _ in ranges]

    def inside(address: int) -> bool:
        at = bisect_right(starts, address) - 1
        return at >= 0 and starts[at] < address < ranges[at][1]

    for window in windows:
        targets = {insn.target for insn in window.insns if insn.branch is not None}
        named = f"the window at {window.start:#x}"
        check(set(window.inner) == {at for at in targets if inside(at)}, f"{named} branches into a window")
        back = window.resume is None or not inside(window.resume)
        check(back, f"{named} comes back into the middle of a window")


def _entered(memory: Memory, window: Window, boards: list[int]) -> int:
    """Where the window's jump leads; the rest of the window is filler and other windows' springboards."""
    at = memory.jump(window.start)
    rest = memory.decode(window.start).next_ip32
    for board in boards[bisect_right(boards, window.start) : bisect_left(boards, window.end)]:
        _check_filler(memory, window, rest, board)
        rest = board + LONG_JUMP
    _check_filler(memory, window, rest, window.end)
    if window.springboard is not None:
        check(at == window.springboard, f"the window at {window.start:#x} misses its springboard")
        at = memory.jump(at)
    return at


def _check_filler(memory: Memory, window: Window, start: int, end: int) -> None:
    left = memory.read(start, end - start) if end > start else b""
    filled = not left.strip(bytes([FILLER])) and start <= end
    check(filled, f"the window at {window.start:#x} is not filled with breakpoints behind its jump")


@dataclass(slots=True)
class _Walk:
    """A walk through one window's trampoline; ``at`` is the next byte, in piece ``number``."""

    memory: Memory
    window: Window
    records: Mapping[int, SiteRecord]
    found: Followed
    at: int
    number: int = 0
    start: int = 0  # of the piece
    falls: bool = True  # control gets to ``at`` from before it
    copies: dict[int, int] = field(default_factory=dict)  # edge site -> its slot
    pending: list[tuple[int, int, str]] = field(default_factory=list)  # branches to such: site, target, where

    def run(self) -> None:
        self.start = self.at
        window = self.window
        sites = {site.address: site for site in window.sites}
        traps = {site.address for site in window.traps}
        shadowed = False
        for insn in window.insns:
            linked = self._next_piece()
            site = sites.get(insn.address)
            where = self._where()
            check(not (shadowed and linked), f"a jump before {where} breaks the shadow of an instruction")
            if site is not None:
                self._slot(site, insn, shadowed, copy=False)
            else:
                if insn.address in traps:
                    record = self.records.get(self.at)
                    trapped = record is not None and record.site == insn.address and not record.has_call
                    check(trapped, f"there is no record to trap the instruction at {where}")
                self._copied(insn, where)
            shadowed = has_shadow(insn.raw)
        self._come_back(shadowed)
        for address, target, where in self.pending:
            check(self.copies[address] == target, f"the branch at {where} has another target")
        self._leave()
        if window.pads:
            check(
                self.number == len(window.pads) - 1,
                f"the pads of the window at {window.start:#x} aren't all used",
            )

    def _where(self) -> str:
        return f"{self.at:#x} in the trampoline for {self.window.start:#x}"

    # --- pieces

    def _next_piece(self) -> bool:
        """Go on in the next piece if this one ends here; True when a jump leads there."""
        pads = self.window.pads
        if self.number + 1 >= len(pads):
            return False
        end, following = pads[self.number].end, pads[self.number + 1].start
        linked = self.falls
        if linked:
            insn = self.memory.decode(self.at)
            if not (is_jump(insn) and insn.near_branch32 == following and insn.next_ip32 == end):
                return False
            self.at = end
        elif self.at != end:
            return False
        self._leave()
        self.number += 1
        self.at = self.start = following
        return linked

    def _leave(self) -> None:
        """Note the piece that ends here, which must fill its pad."""
        pads = self.window.pads
        if pads:
            pad = pads[self.number]
            fits = (self.start, self.at) == (pad.start, pad.end)
            check(fits, f"the piece at {self.start:#x} for {self.window.start:#x} doesn't fill its pad")
        self.found.ranges.append((self.start, self.at))

    # --- instructions

    def _slot(self, site: Site, insn: Insn, shadowed: bool, copy: bool) -> None:
        where = self._where()
        if not copy:
            self.found.entries[insn.address] = self.at
        record = self.records.get(self.at)
        named = record is not None and record.site == site.address and record.has_call
        check(named, f"the record for {site.address:#x} names another slot than {where}")
        assert record is not None
        padded = 0 if site.pad_after else record.length - site.length
        check(not (shadowed and padded), f"a NOP at {where} breaks the shadow of an instruction")
        self._note(insn, self.at + padded, self.at + padded + site.length, copy)
        self.at += record.length
        self.falls = True

    def _copied(self, insn: Insn, where: str) -> None:
        start = self.at
        if insn.branch is None:
            check(self.memory.read(start, insn.length) == insn.raw, f"the instruction at {where} changed")
            self.at += insn.length
        else:
            target = self._branch(Decoder(32, insn.raw, ip=insn.address).decode(), where)
            if any(site.address == insn.target for site in self.window.edges):
                self.pending.append((insn.target, target, where))
            elif insn.target in self.window.inner:
                self.found.pending.append((insn.target, target, where))
            else:
                check(target == insn.target, f"the branch at {where} has another target")
        copy = not self.window.start <= insn.address < self.window.end
        if not copy:
            self.found.entries[insn.address] = start
        self._note(insn, start, self.at, copy)
        self.falls = insn is not self.window.insns[-1] or self.window.resume is not None

    def _branch(self, old: Instruction, where: str) -> int:
        """The target of the relocated branch here; goes on behind it."""
        new = self.memory.decode(self.at)
        check(same(new.mnemonic, old.mnemonic), f"the branch at {where} is another one")
        self.at = new.next_ip32
        over = self.memory.read(self.at, len(JUMP_OVER)) == JUMP_OVER
        if not over or new.near_branch32 != self.at + len(JUMP_OVER):
            return new.near_branch32
        # loop, jecxz: taken goes to a long jump, not taken jumps over it.
        after = self.memory.jump(self.at)
        long = self.memory.decode(new.near_branch32)
        check(after == long.next_ip32, f"the branch at {where} does not fall through")
        self.at = after
        return self.memory.jump(new.near_branch32)

    def _note(self, insn: Insn, start: int, end: int, copy: bool) -> None:
        found = Found(insn, start, end, copy)
        if copy:
            self.found.copies.append(found)
        else:
            self.found.moved[insn.address] = found

    # --- the end

    def _come_back(self, shadowed: bool) -> None:
        """The jump back, or the copy of the site that it would lead to; then the other copies."""
        window = self.window
        edges = {site.address: site for site in window.edges}
        first = edges.pop(window.resume, None) if window.resume is not None else None
        if first is not None:
            linked = self._next_piece()
            check(
                not (shadowed and linked),
                f"a jump before {self._where()} breaks the shadow of an instruction",
            )
            self._edge(first, shadowed)
        elif window.resume is not None:
            self._back(
                window.resume,
                f"the trampoline for {window.start:#x} does not come back to {window.resume:#x}",
            )
        while edges:
            self._next_piece()
            record = self.records.get(self.at)
            site = edges.pop(record.site, None) if record is not None else None
            check(site is not None, f"there is no slot at {self._where()} for a site that stays")
            assert site is not None
            self._edge(site, False)

    def _edge(self, site: Site, shadowed: bool) -> None:
        self.copies[site.address] = self.at
        self._slot(site, Insn(site.address, site.raw, site.form), shadowed, copy=True)
        self._back(
            site.end, f"the slot at {self.copies[site.address]:#x} does not come back to {site.end:#x}"
        )

    def _back(self, target: int, otherwise: str) -> None:
        self._next_piece()
        check(self.memory.jump(self.at) == target, otherwise)
        self.at = self.memory.decode(self.at).next_ip32
        self.falls = False
