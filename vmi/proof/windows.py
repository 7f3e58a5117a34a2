# SPDX-License-Identifier: GPL-2.0-only
"""Find the windows of a patched kernel from the two files alone.

The plan that made the file is not asked: a window is where the text begins with a jump now and a record of
the site table says that an instruction behind it has moved, and the jump's code leads to where the record
says. Whatever else has changed in the text must be reached from a window (springboards, pieces of code in
padding), or it has no explanation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from iced_x86 import FlowControl

from vmi.patcher import elf
from vmi.patcher.model import Access, Image
from vmi.proof.code import CodeView, Kind
from vmi.sitetable import SiteFlag, SiteRecord, SiteTable, Tactic

JUMP, SHORT_JUMP, FILLER = 0xE9, 0xEB, 0xCC
_JUMP_SIZE, _SHORT_SIZE = 5, 2
_NEAR = 32  # bytes
_LONGEST_FILLER = 15
_MOST_WALKED = 4096  # instructions of one window's code
_STOPS = (FlowControl.RETURN, FlowControl.INDIRECT_BRANCH, FlowControl.UNCONDITIONAL_BRANCH)


@dataclass(frozen=True, slots=True)
class Found:
    """A window: [start, end) of the original, whole instructions, and the sites that moved out of it.

    Not ``moved``: a slot that is where the instruction always was, so that only a ROM changes anything.
    """

    start: int
    end: int
    records: tuple[SiteRecord, ...]
    moved: bool = True

    def __repr__(self) -> str:
        return f"Found({self.start:#x}+{self.end - self.start}, {len(self.records)} sites)"


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Changed bytes of the text, or a record of the site table, that belong to no window."""

    address: int
    size: int
    what: str


@dataclass
class Finder:
    """Looks for the windows of a patched image; results are ``windows`` and ``unexplained``."""

    original: Image
    patched: Image
    table: SiteTable
    home: tuple[int, int]  # the .vmi segment
    windows: list[Found] = field(default_factory=list)
    unexplained: list[Unexplained] = field(default_factory=list)

    def find(self) -> None:
        """Fill in the results."""
        self._old, self._new = CodeView(self.original), CodeView(self.patched)
        loads = _load_addresses(self.original)
        self._runs = [
            part for run in _changed_runs(self.original, self.patched) for part in _without(*run, loads)
        ]
        self._run_starts = [start for start, _ in self._runs]
        self._springboards: set[int] = set()
        self._walked: dict[int, frozenset[int]] = {}
        starts: dict[int, list[SiteRecord]] = {}
        for record in self.table.sites:
            if record.tactic is Tactic.EDGE or (not record.has_call and not record.flags & SiteFlag.MOVED):
                continue
            if record.tactic in (Tactic.IN_PLACE, Tactic.ANNOTATED):
                self.windows.append(Found(record.slot, record.slot + record.length, (record,), False))
                continue
            start = self._start_of(record)
            if start is None:
                what = f"the record for {record.site:#x} leads to {record.slot:#x}, but no window does"
                self.unexplained.append(Unexplained(record.site, record.length, what))
            else:
                starts.setdefault(start, []).append(record)
        self._springboards.update(self._boards(starts))
        for start in sorted(starts):
            self._add(start, tuple(starts[start]))
        self._add_others()
        self.windows.sort(key=lambda found: found.start)
        self._explain()

    def _add_others(self) -> None:
        """Find the windows that hold no site: only their branches had to go to where others have moved.

        Changed text that was no padding must be one.
        """
        known = [(w.start, w.end) for w in self.windows]
        starts = {start for start, _ in known}
        known = _merged(known + [(at, at + _JUMP_SIZE) for at in self._springboards])
        for start, end in self._runs:
            for low, high in list(_without(start, end, known)):
                at = low
                while at < high:
                    # its first bytes may be those that were there before
                    near = range(at, at - (_JUMP_SIZE if at == low else 1), -1)
                    first = next((s for s in near if s not in starts and self._is_window(s)), None)
                    if first is not None:
                        if self._new.read(first, 1)[0] == SHORT_JUMP:
                            self._springboards.add(self._board(first))
                        self._add(first, ())
                        at = max(at + 1, self.windows[-1].end)
                    else:
                        at += 1

    def _boards(self, starts: Mapping[int, list[SiteRecord]]) -> Iterator[int]:
        """Springboards of windows that hold no site: they may lie inside windows that hold some."""
        for start, end in self._runs:
            for at in range(start - 1, end):
                if self._new.read(at, 1) == bytes((SHORT_JUMP,)) and self._is_window(at):
                    board = self._board(at)
                    if board not in starts and not board <= at < board + _JUMP_SIZE:
                        yield board

    def _is_window(self, at: int) -> bool:
        """True for a jump of the patch in the text's own code."""
        if at == self.table.header.original_entry:  # activation runs before the instructions that were there
            return False
        if self.home[0] <= at < self.home[1] or self._new.read(at, 1) not in (b"\xe9", b"\xeb"):
            return False
        target = self._target(at)
        return target is not None and self._owned(target) and not self._is_padding(at, at + 1)

    # -- one window -------------------------------------------------------------------------

    def _start_of(self, record: SiteRecord) -> int | None:
        """The window's first byte: the jump before the site from which control reaches its slot."""
        site, read = record.site, self._new.read
        candidates = [site - back for back in range(_NEAR)]  # it may lie under a springboard
        at = site
        while read(at - 1, 1) == bytes((FILLER,)):
            at -= 1
        for _ in range(4):  # a filler may hold springboards of other windows
            candidates += [at - _JUMP_SIZE, at - _SHORT_SIZE]
            at -= _JUMP_SIZE
            while read(at - 1, 1) == bytes((FILLER,)):
                at -= 1
        for start in candidates:
            target = self._target(start)
            if target is not None and record.slot in self._walk(target):
                if self._new.read(start, 1)[0] == SHORT_JUMP:
                    self._springboards.add(self._board(start))
                return start
        return None

    def _target(self, start: int) -> int | None:
        """Where a window's jump leads, through its springboard; None if there is no changed jump."""
        if not self._changed(start, start + _JUMP_SIZE):
            return None
        if self._new.read(start, 1) == bytes((SHORT_JUMP,)):
            start = self._board(start)
        raw = self._new.read(start, _JUMP_SIZE)
        if len(raw) < _JUMP_SIZE or raw[0] != JUMP:
            return None
        return start + _JUMP_SIZE + int.from_bytes(raw[1:], "little") & 0xFFFFFFFF

    def _board(self, start: int) -> int:
        """Where a short jump at ``start`` leads."""
        distance = int.from_bytes(self._new.read(start + 1, 1), "little", signed=True)
        return start + _SHORT_SIZE + distance & 0xFFFFFFFF

    def _owned(self, address: int) -> bool:
        """True for code that the patch made: in the .vmi segment, or changed bytes of the text."""
        if self.home[0] <= address < self.home[1]:
            return True
        step = self._new.step(address)
        if step is None:
            return False
        # a filler of the patch may be the very padding that was there
        more = _JUMP_SIZE if step.kind is Kind.FILLER else 0
        return self._changed(address, address + step.length + more)

    def _changed(self, start: int, end: int) -> bool:
        at = bisect_right(self._run_starts, end - 1) - 1
        return at >= 0 and self._runs[at][1] > start

    def _walk(self, target: int) -> frozenset[int]:
        """Addresses of the instructions that the code at ``target`` may execute, in the patch's own code."""
        known = self._walked.get(target)
        if known is not None:
            return known
        seen: set[int] = set()
        work = [target]
        while work and len(seen) < _MOST_WALKED:
            at = work.pop()
            while at not in seen and self._owned(at):
                step = self._new.step(at)
                if step is None:
                    break
                if at != target and step.kind is Kind.JUMP and self._is_window(at):
                    break  # another window
                seen.add(at)
                if step.kind in (Kind.JUMP, Kind.BRANCH):
                    work.append(step.target)
                if step.kind in (Kind.JUMP, Kind.END) or step.insn.flow_control in _STOPS:
                    break
                at = step.next
        found = self._walked[target] = frozenset(seen)
        return found

    def _add(self, start: int, records: tuple[SiteRecord, ...]) -> None:
        short = self._new.read(start, 1)[0] == SHORT_JUMP
        least = start + (_SHORT_SIZE if short else _JUMP_SIZE)
        while True:
            if least in self._springboards and self._changed(least, least + _JUMP_SIZE):
                least += _JUMP_SIZE
            elif self._new.read(least, 1) == bytes((FILLER,)):  # perhaps one of the original
                least += 1
            else:
                break
        end = start
        while end < least:
            step = self._old.step(end)
            if step is None:
                break
            end = step.next
        end = max(end, least)
        self.windows.append(Found(start, end, records))

    # -- the rest ---------------------------------------------------------------------------

    def _explain(self) -> None:
        """List changed text that no window leads to."""
        explained = [(w.start, w.end) for w in self.windows if w.moved]
        explained += [(at, at + _JUMP_SIZE) for at in self._springboards]
        entry = self.table.header.original_entry
        after = entry + _JUMP_SIZE
        while self._new.read(after, 1) == bytes((FILLER,)):
            after += 1
        explained.append((entry, after))  # activation may be entered from the kernel's own text
        for window in self.windows:
            target = self._target(window.start) if window.moved else None
            for at in self._walk(target) if target is not None else ():
                step = self._new.step(at)
                if step is not None and not self.home[0] <= at < self.home[1]:
                    explained.append((at, step.next))
            explained += [(r.slot, r.slot + r.length) for r in window.records]
        merged = _merged(explained)
        lows = [low for low, _ in merged]
        windows = _merged([(w.start, w.end) for w in self.windows])
        for start, end in self._runs:
            at = bisect_right(lows, start) - 1
            covered_to = merged[at][1] if at >= 0 else start
            if covered_to < end:
                first = max(start, covered_to)
                what = f"the text has changed at {first:#x}, and no window leads there"
                self.unexplained.append(Unexplained(first, end - first, what))
                continue
            for low, high in _without(start, end, windows):
                if low != entry and not self._is_padding(low, high):
                    what = f"the patch has code at {low:#x}, where the original has more than padding"
                    self.unexplained.append(Unexplained(low, high - low, what))

    def _is_padding(self, start: int, end: int) -> bool:
        """True when the original has nothing but filler at [start, end), which may begin inside of one."""
        if not self._old.read(start, end - start).strip(b"\xcc\0"):
            return True
        return any(self._fills(first, end) for first in range(start, start - _LONGEST_FILLER, -1))

    def _fills(self, at: int, end: int) -> bool:
        while at < end:
            step = self._old.step(at)
            filler = self._old.read(at, 1) == bytes((FILLER,)) or (step and step.kind is Kind.FILLER)
            if step is None or not filler:
                return False
            at = step.next
        return True


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes in as few ranges as possible, in order."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return merged


def _without(start: int, end: int, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What the ranges (in order, disjoint) leave of [start, end)."""
    at = max(bisect_right(ranges, (start, end)) - 1, 0)
    while at < len(ranges) and ranges[at][0] < end:
        low, high = ranges[at]
        if start < low:
            yield start, low
        start = max(start, high)
        at += 1
    if start < end:
        yield start, end


def _load_addresses(image: Image) -> list[tuple[int, int]]:
    """Where a multiboot header in the text says what to load and where to start: that the patch changes."""
    header = elf.multiboot(image.data)
    if header is None or not header.kludge:
        return []
    at, *_ = elf.KLUDGE_FIELDS.unpack_from(image.data, header.offset + elf.KLUDGE_AT)
    home = image.virtual(at)
    end = elf.KLUDGE_AT + elf.KLUDGE_FIELDS.size
    return [] if home is None else [(home + end - 12, home + end)]


def _changed_runs(original: Image, patched: Image) -> list[tuple[int, int]]:
    """Runs of bytes that differ, in what both files have as executable code."""
    parts = [(s.vaddr, s.end) for s in original.sections if s.executable]
    if not parts:
        parts = [(s.vaddr, s.end) for s in original.segments if s.flags & Access.X]
    runs: list[tuple[int, int]] = []
    block = 256
    for start, end in parts:
        old, new = original.read(start, end - start), patched.read(start, end - start)
        for at in range(0, len(old), block):
            if old[at : at + block] == new[at : at + block]:
                continue
            for n, (one, two) in enumerate(zip(old[at : at + block], new[at : at + block], strict=False), at):
                if one == two:
                    continue
                if runs and runs[-1][1] == start + n:
                    runs[-1] = runs[-1][0], start + n + 1
                else:
                    runs.append((start + n, start + n + 1))
    return runs
