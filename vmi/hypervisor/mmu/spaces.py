# SPDX-License-Identifier: GPL-2.0-only
"""All the shadow tables of one guest: which of them there are, for which of the guest's, and in what room.

Last-level tables and directories are found again by where they come from, so that address spaces share
what the guest shares between them.
"""

from __future__ import annotations

from vmi.hypervisor.mmu.pool import Page, Pool
from vmi.hypervisor.mmu.tables import Directory, Mode, Shadow, Source, Table
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native.stamped import Stamped
from vmi.x86 import PTE_P

NARROW_DIRECTORY, NARROW_TABLE = 1024, 2048  # bytes of entries of 4 bytes that one page of the shadow is for


class Root:
    """The top level: four directories."""

    __slots__ = ("directories", "page")

    def __init__(self, page: Page) -> None:
        self.page = page
        self.directories: list[Directory | None] = [None, None, None, None]

    def point(self, number: int, directory: Directory | None) -> bool:
        """Let an entry point to a directory or nothing; True if it pointed to another one."""
        before = self.directories[number]
        self.directories[number] = directory
        self.page.words[number] = 0 if directory is None else directory.page.address | PTE_P
        return before is not None and before is not directory


class Spaces(Stamped):
    """The shadow tables that there are; :class:`~vmi.hypervisor.mmu.pool.Full` where one is one too many."""

    def __init__(self, memory: PhysicalMemory, pool: Pool) -> None:
        self._memory = memory
        self.pool = pool
        self._known: dict[Source, Shadow] = {}
        self._by_frame: dict[int, list[Shadow]] = {}
        self._roots: dict[tuple[Mode, int], Root] = {}

    def __repr__(self) -> str:
        return f"<Spaces {len(self._roots)} roots, {len(self._known)} tables>"

    def root(self, mode: Mode, cr3: int) -> Root:
        """The top level for a value of CR3."""
        key = mode, cr3 & ~(31 if mode.wide else PAGE_SIZE - 1)
        found = self._roots.get(key)
        if found is None:
            found = self._roots[key] = Root(self.pool.take())
        return found

    def directory(self, source: Source) -> Directory:
        """The directory that comes from there."""
        found = self._known.get(source)
        if found is None:
            found = Directory(source, self.pool.take(), PAGE_SIZE if source.mode.wide else NARROW_DIRECTORY)
            found.compare(self._memory)
            self._add(found)
        assert isinstance(found, Directory)
        return found

    def table(self, source: Source) -> tuple[Table, bool]:
        """The last-level table that comes from there, caught up; True if it has lost entries by that."""
        found = self._known.get(source)
        if found is None:
            table = Table(source, self.pool.take(), PAGE_SIZE if source.mode.wide else NARROW_TABLE)
            table.fill(self._memory)
            self._add(table)
            return table, False
        assert isinstance(found, Table)
        return found, found.sync(self._memory)

    def _add(self, shadow: Shadow) -> None:
        self._known[shadow.source] = shadow
        if shadow.frame is not None:
            self._by_frame.setdefault(shadow.frame, []).append(shadow)

    def made_from(self, frame: int) -> list[Shadow]:
        """All that comes from a frame of the guest's."""
        return self._by_frame.get(frame, [])

    def forget(self) -> None:
        """Give up everything."""
        for shadow in self._known.values():
            self.pool.give_back(shadow.page)
        for root in self._roots.values():
            self.pool.give_back(root.page)
        self._known.clear()
        self._by_frame.clear()
        self._roots.clear()

    def release(self, frame: int, current: Root | None) -> bool:
        """Give up all that comes from a frame, but for the root in use; True if there was any."""
        gone = self._by_frame.pop(frame, [])
        for shadow in gone:
            self._cut_out(shadow)
        for key, root in list(self._roots.items()):
            if key[1] // PAGE_SIZE == frame and root is not current:
                self.pool.give_back(self._roots.pop(key).page)
        return bool(gone)

    def _cut_out(self, shadow: Shadow) -> None:
        """Cut all links to and from a page of the shadow, and free it."""
        del self._known[shadow.source]
        for parent, index in list(shadow.parents):
            parent.unlink(index)
        for index in list(shadow.links):
            shadow.unlink(index)
        for root in self._roots.values():
            for number, directory in enumerate(root.directories):
                if directory is shadow:
                    root.point(number, None)
        self.pool.give_back(shadow.page)
