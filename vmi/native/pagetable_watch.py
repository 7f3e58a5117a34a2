# SPDX-License-Identifier: GPL-2.0-only
"""Records which instructions of a guest write its page tables.

Page-table entries are written by plain stores, so nothing in a kernel's code tells them from others. Here
the pages that make up the address space in use are known, from CR3 down, and the CPU tells of each store
into them. Nothing changes for the guest: a store into a watched page takes longer on the host, and the
CPU's run is cut behind a store that may have linked in another table, which takes no guest time.

What counts is where a store goes when it happens: tables that are filled before they are linked in, and
those of an address space that is not the one in use, are memory like any other. A store that links a table
in by other means than the directory (a processor's own, or a device's) is seen at the next look at CR3.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native.cpu import Cpu
from vmi.x86 import PTE_P, PTE_PS, U32, Cr0, Cr4, GuestFault, Paging, Seg, translate

LONGEST_CODE = 15  # bytes of an instruction
_POINTERS = 32  # bytes of a table of page-directory pointers


class Level(StrEnum):
    """What kind of table was written; ``POINTERS`` is the one of four entries that PAE begins with."""

    TABLE = "table"
    DIRECTORY = "directory"
    POINTERS = "pointers"


@dataclass(frozen=True, slots=True, order=True)
class Write:
    """One kind of write: the instruction at ``eip`` stored ``size`` bytes in a table of ``level``.

    ``entry``: bytes of an entry, 4 or 8 (PAE). ``eip`` is as in the register, without the segment's base.
    """

    eip: int
    level: Level
    entry: int
    size: int


def tables(memory: PhysicalMemory, paging: Paging) -> dict[int, Level]:
    """Page numbers of all tables that translation with these registers can look at, as far as there is RAM.

    A page that is a table on two levels counts as the upper one.
    """
    if not paging.cr0 & Cr0.PG:
        return {}
    found: dict[int, Level] = {}
    if paging.cr4 & Cr4.PAE:
        base = paging.cr3 & ~(_POINTERS - 1)
        roots = _pages(_words(memory, base, _POINTERS), wide=True)
        for root in roots:
            words = _words(memory, root * PAGE_SIZE, PAGE_SIZE)
            found.update(dict.fromkeys(_pages(words, wide=True, large=True), Level.TABLE))
        found.update(dict.fromkeys(roots, Level.DIRECTORY))
        found[base // PAGE_SIZE] = Level.POINTERS
    else:
        root = paging.cr3 // PAGE_SIZE
        words = _words(memory, root * PAGE_SIZE, PAGE_SIZE)
        large = bool(paging.cr4 & Cr4.PSE)
        found.update(dict.fromkeys(_pages(words, wide=False, large=large), Level.TABLE))
        found[root] = Level.DIRECTORY
    limit = memory.size // PAGE_SIZE
    return {page: level for page, level in found.items() if page < limit}


def _words(memory: PhysicalMemory, address: int, size: int) -> memoryview:
    if address + size <= memory.size:
        return memory.ram[address : address + size].cast("I")
    return memoryview(bytes(size)).cast("I")


def _pages(words: memoryview, *, wide: bool, large: bool = False) -> set[int]:
    """Page numbers of the tables that the present entries name; ``large``: an entry may be a page instead."""
    if wide:
        pairs = zip(words[::2].tolist(), words[1::2].tolist(), strict=True)
        low = {word for word, high in pairs if not high}  # no table is above 4 GiB here
    else:
        low = set(words.tolist())
    wanted = PTE_P | (PTE_PS if large else 0)
    return {word // PAGE_SIZE for word in low if word & wanted == PTE_P}


class PageTableWatch:
    """Counts the guest's writes to its page tables from now on; see :class:`vmi.native.wiring.StoreWatch`.

    :ivar writes: how often each kind of write happened.
    :ivar code: the bytes at each instruction that wrote, when it first did: up to LONGEST_CODE, fewer where
        the next page can't be read.
    """

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self.writes: Counter[Write] = Counter()
        self.code: dict[int, bytes] = {}
        self._levels: dict[int, Level] = {}
        self._stale = True
        cpu.store_watch = self

    def __repr__(self) -> str:
        return f"<PageTableWatch {self.writes.total()} writes by {len(self.code)} instructions>"

    def stop(self) -> None:
        """Watch no longer; the counts stay."""
        self._cpu.store_watch = None
        self._cpu.watch_pages(set())

    def begin_run(self) -> None:
        """See :class:`vmi.native.wiring.StoreWatch`."""
        if self._stale:
            self.control_changed()

    def control_changed(self) -> None:
        """See :class:`vmi.native.wiring.StoreWatch`."""
        cpu = self._cpu
        self._levels = tables(cpu.memory, self._paging())
        self._stale = False
        cpu.watch_pages(set(self._levels))

    def storing(self, address: int, size: int) -> None:
        """See :class:`vmi.native.wiring.StoreWatch`."""
        cpu = self._cpu
        level = self._levels[address // PAGE_SIZE]
        if level is Level.POINTERS and not 0 <= address - (cpu.cr(3) & ~(_POINTERS - 1)) < _POINTERS:
            return  # such a table is smaller than a page, and not all of the page is one
        eip = cpu.eip
        entry = 8 if cpu.cr(4) & Cr4.PAE else 4
        self.writes[Write(eip, level, entry, size)] += 1
        if eip not in self.code:
            self.code[eip] = self._fetch((cpu.segment(Seg.CS).base + eip) & U32)
        if level is not Level.TABLE and not self._stale:
            self._stale = True
            cpu.stop_soon()

    def _paging(self) -> Paging:
        return Paging(self._cpu.cr(0), self._cpu.cr(3), self._cpu.cr(4))

    def _fetch(self, linear: int) -> bytes:
        """Code bytes as they are, without a trace in the page tables."""
        memory, paging, code = self._cpu.memory, self._paging(), b""
        while len(code) < LONGEST_CODE:
            at = (linear + len(code)) & U32
            try:
                physical = translate(memory, paging, at)
            except GuestFault:
                break
            code += memory.read(physical, min(LONGEST_CODE - len(code), PAGE_SIZE - at % PAGE_SIZE))
        return code
