# SPDX-License-Identifier: GPL-2.0-only
"""Shadow page tables: what the processor walks, made from the guest's tables entry by entry.

They are always of PAE's form, whatever the guest uses: entries of 8 bytes reach the hypervisor's memory
above 4 GiB, and have a bit for "no execute". A shadow entry is a cached translation, and like the cached
ones of a processor it may be older than the guest's entry until the guest asks for a flush. Each table
therefore keeps the guest's entries as they were when they were last used; at a flush the two are compared,
and what differs is dropped. Nothing has to be known of when and how the guest wrote.

An entry exists in the shadow only while the guest's has its accessed bit, and can be written through only
while it has its dirty bit: the first access takes a page fault, in which the bits are set.
"""

from __future__ import annotations

from typing import NamedTuple

from vmi.hypervisor.mmu.pool import Page
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native.engine import HIDDEN_SIZE, HIDDEN_START, NOWHERE
from vmi.x86 import PTE_A, PTE_D, PTE_FRAME, PTE_NX, PTE_P, PTE_RW, PTE_US

ENTRIES = 512
_SPAN = PAGE_SIZE * ENTRIES  # bytes that one table of the shadow maps
_USED = PTE_P | PTE_A
_LINK = PTE_P | PTE_RW | PTE_US | PTE_A  # rights are all in the last level
_RIGHTS = PTE_RW | PTE_US | PTE_NX
_RESERVED = 0x7FF << 52 | 0xFFF << 40  # in an entry of 8 bytes, besides NX where it is off


class Mode(NamedTuple):
    """What decides how entries are read: the guest's CR4.PAE, CR4.PSE, CR0.WP and EFER.NXE, and line 20."""

    wide: bool
    large: bool
    protects: bool
    nx: bool
    a20: bool


class Source(NamedTuple):
    """Where a table of the shadow comes from, and so which one it is.

    :ivar at: guest-physical address of its first entry; for a part of a large page, that page's own entry.
    :ivar rights: PTE_RW, PTE_US and PTE_NX of the levels above.
    :ivar directory: it is of the level above the last; one page of the guest's may be used as both.
    :ivar part: for a part of a large page the number of its first page within it, else None.
    """

    mode: Mode
    at: int
    rights: int = PTE_RW | PTE_US
    part: int | None = None
    directory: bool = False


def leaf(frame: int, rights: int, *, dirty: bool) -> int:
    """A shadow entry for a guest-physical page; writable only if the guest's entry is dirty."""
    if HIDDEN_START <= frame < HIDDEN_START + HIDDEN_SIZE:
        frame = NOWHERE  # the guest has nothing there, so it finds nothing
    if not dirty:
        rights &= ~PTE_RW
    return frame | rights & _RIGHTS | PTE_P | PTE_A | PTE_D


class Shadow:
    """A page of the shadow with the guest's entries it was made from.

    :ivar links: for a directory, the tables that it points to, by index.
    :ivar parents: who points to this page: directories with the index, or roots.
    """

    __slots__ = ("links", "page", "parents", "seen", "size", "source", "width")

    def __init__(self, source: Source, page: Page, size: int) -> None:
        self.source = source
        self.page = page
        self.size = size  # bytes of the guest's entries
        self.width = 8 if source.mode.wide else 4  # bytes of one
        self.seen = bytearray(size)
        self.links: dict[int, Shadow] = {}
        self.parents: list[tuple[Shadow, int]] = []

    def __repr__(self) -> str:
        return f"<Shadow of {self.source.at:#x}>"

    @property
    def frame(self) -> int | None:
        """The guest's frame that holds the entries; None for a part of a large page."""
        return None if self.source.part is not None else self.source.at // PAGE_SIZE

    def now(self, memory: PhysicalMemory) -> bytes:
        """The guest's entries in memory."""
        return memory.read(self.source.at, self.size)

    def _numbers(self, entries: bytes | bytearray) -> list[int]:
        view = memoryview(entries)
        return (view.cast("Q") if self.width == 8 else view.cast("I")).tolist()

    def link(self, index: int, child: Shadow) -> None:
        """Point to another page."""
        self.links[index] = child
        child.parents.append((self, index))
        self.page.words[index] = child.page.address | _LINK

    def unlink(self, index: int) -> bool:
        """Point to nothing; True if there was something."""
        child = self.links.pop(index, None)
        if child is None:
            return False
        self.page.words[index] = 0
        child.parents.remove((self, index))
        return True

    def compare(self, memory: PhysicalMemory) -> list[tuple[int, int]]:
        """Take over the guest's entries; gives those that are different now, by index."""
        now = self.now(memory)
        if now == self.seen:
            return []
        before, after = self._numbers(self.seen), self._numbers(now)
        self.seen[:] = now
        return [(index, value) for index, value in enumerate(after) if value != before[index]]

    def note(self, index: int, value: int) -> None:
        """The guest's entry as it is used now."""
        width = self.width
        self.seen[width * index : width * (index + 1)] = (value & (1 << 8 * width) - 1).to_bytes(
            width, "little"
        )

    def changed(self, memory: PhysicalMemory, index: int) -> int | None:
        """Take over one of the guest's entries if it is different now, and give it."""
        place = slice(self.width * index, self.width * (index + 1))
        now = memory.read(self.source.at + place.start, self.width)
        if now == self.seen[place]:
            return None
        self.seen[place] = now
        return int.from_bytes(now, "little")

    def refresh(self, memory: PhysicalMemory, index: int) -> bool:
        """Catch up with one of the guest's entries; True if what was there for it is not there now."""
        raise NotImplementedError

    def sync(self, memory: PhysicalMemory) -> bool:
        """Catch up with all the guest's entries; True as for :meth:`refresh`."""
        raise NotImplementedError


class Table(Shadow):
    """The last level."""

    __slots__ = ()

    def made_from(self, value: int) -> int:
        """The shadow of a guest's entry; 0 if its first use has to be seen, or is a fault."""
        if value & _USED != _USED:
            return 0
        mode, above = self.source.mode, self.source.rights
        if mode.wide:
            if value & (_RESERVED if mode.nx else _RESERVED | PTE_NX):
                return 0
            rights = above & value & ~PTE_NX | (above | value) & PTE_NX
        else:
            rights = above & value
        return leaf(value & PTE_FRAME, rights, dirty=bool(value & PTE_D))

    def fill(self, memory: PhysicalMemory) -> None:
        """Make all entries that the guest has used before."""
        source, words = self.source, self.page.words
        if source.part is not None:
            entry = source.at
            size = ENTRIES if source.mode.wide else 2 * ENTRIES
            first = (entry & PTE_FRAME & ~(size * PAGE_SIZE - 1)) + source.part * PAGE_SIZE
            dirty = bool(entry & PTE_D)
            for index in range(ENTRIES):
                words[index] = leaf(first + index * PAGE_SIZE, source.rights, dirty=dirty)
            return
        self.seen[:] = self.now(memory)
        for index, value in enumerate(self._numbers(self.seen)):
            if value & _USED == _USED:
                words[index] = self.made_from(value)

    def _renew(self, index: int, value: int) -> bool:
        words = self.page.words
        before, after = words[index], self.made_from(value)
        words[index] = after
        return bool(before) and before != after

    def refresh(self, memory: PhysicalMemory, index: int) -> bool:
        """See :class:`Shadow`."""
        value = None if self.source.part is not None else self.changed(memory, index)
        return value is not None and self._renew(index, value)

    def sync(self, memory: PhysicalMemory) -> bool:
        """See :class:`Shadow`."""
        if self.source.part is not None:
            return False  # the entry is the directory's, and part of what this table is
        gone = False
        for index, value in self.compare(memory):
            gone |= self._renew(index, value)
        return gone


class Directory(Shadow):
    """The level above it: 1 GiB."""

    __slots__ = ()

    def _cut(self, number: int) -> bool:
        """Unlink what one of the guest's entries stands for: two tables if it is one of 4 bytes."""
        if self.width == 8:
            return self.unlink(number)
        low, high = self.unlink(2 * number), self.unlink(2 * number + 1)
        return low or high

    def refresh(self, memory: PhysicalMemory, index: int) -> bool:
        """See :class:`Shadow`."""
        return self.changed(memory, index) is not None and self._cut(index)

    def sync(self, memory: PhysicalMemory) -> bool:
        """See :class:`Shadow`; with all the tables that it points to."""
        gone = False
        for number, _ in self.compare(memory):
            gone |= self._cut(number)
        for table in self.links.values():
            gone |= table.sync(memory)
        return gone
