# SPDX-License-Identifier: GPL-2.0-only
"""Walks of page tables that were made already, for whoever acts in the CPU's place.

A walk is remembered with the entries that it has read, and good as long as these are what they were. So
nobody has to tell of a change, and what is remembered never differs from what a walk would find.
"""

from __future__ import annotations

from collections.abc import Callable

from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.x86 import U32

_OFFSET, _PAGE = PAGE_SIZE - 1, U32 - (PAGE_SIZE - 1)
_MOST = 4096

# Where two dwords of the page tables are, by number, and what they were; the others that were read, likewise;
# the page that they lead to.
_Walk = tuple[int, int, int, int, tuple[tuple[int, int], ...], int]


# A guest-physical page, and the dwords of memory, by number, that it was found by.
Walked = tuple[int, tuple[tuple[int, int], ...]]


class _Seen(PhysicalMemory):
    """Memory as a walk sees it; ``places`` are the dwords that it has read, by number."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.places: list[int] = []

    def u32(self, address: int) -> int:
        """See :class:`vmi.memory.PhysicalMemory`."""
        self.places.append(address >> 2)
        return self._memory.u32(address)

    def u64(self, address: int) -> int:
        """See :class:`vmi.memory.PhysicalMemory`."""
        return self.u32(address) | self.u32(address + 4) << 32


class Walks:
    """The walks that hold for one state of the registers that paging depends on."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._dwords = memory.dwords
        self._found: dict[int, _Walk] = {}
        self._registers: tuple[object, ...] = ()

    def find(self, registers: tuple[object, ...], linear: int, write: bool, user: bool) -> int | None:
        """Guest-physical address if this was asked before and nothing has changed since.

        :param registers: whatever a walk depends on apart from memory.
        """
        if registers != self._registers:
            self._found.clear()
            self._registers = registers
            return None
        found = self._found.get((linear & _PAGE) << 2 | write << 1 | user)
        if found is None:
            return None
        at, entry, at2, entry2, more, page = found
        dwords = self._dwords
        if dwords[at] != entry or dwords[at2] != entry2:
            return None
        if more and any(dwords[place] != value for place, value in more):
            return None
        return page | linear & _OFFSET

    def made(self, linear: int, write: bool) -> Walked | None:
        """The walk for an access of the kernel that was found or made last, None if it was not remembered."""
        found = self._found.get((linear & _PAGE) << 2 | write << 1)
        if found is None:
            return None
        at, entry, at2, entry2, more, page = found
        return page, ((at, entry), (at2, entry2), *more)

    def make(self, linear: int, write: bool, user: bool, walk: Callable[[PhysicalMemory], int]) -> int:
        """Let ``walk`` read the tables in the memory that it gets, and remember what it gives."""
        seen = _Seen(self._memory)
        physical = walk(seen)
        places, dwords = seen.places, self._dwords
        if places and max(places) < len(dwords):
            if len(self._found) >= _MOST:
                self._found.clear()
            # read again, since the walk may have marked entries as accessed
            first, second, *rest = [(at, dwords[at]) for at in (places if places[1:] else places * 2)]
            key = (linear & _PAGE) << 2 | write << 1 | user
            self._found[key] = (*first, *second, tuple(rest), physical & ~_OFFSET)
        return physical
