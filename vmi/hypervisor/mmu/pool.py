# SPDX-License-Identifier: GPL-2.0-only
"""Pages of the hypervisor's own for shadow page tables, where no address of a guest leads.

How many there are bounds what a guest can make the host spend, whatever tables it builds.
"""

from __future__ import annotations

from vmi.memory import PAGE_SIZE
from vmi.native.cpu import Cpu

_WORDS = PAGE_SIZE // 8
# The processor's address line 20 may be held low, for the addresses of its tables too: pages lie where
# that bit is 0, the other half of the space is left out.
_RUN = (1 << 20) // PAGE_SIZE
_ZEROS = bytes(PAGE_SIZE)


class Full(Exception):
    """No page is free."""


class Page:
    """One page: its physical address, and its 512 entries."""

    __slots__ = ("address", "words")

    def __init__(self, address: int, words: memoryview) -> None:
        self.address = address
        self.words = words


class Pool:
    """``size`` pages, to be made before the guest runs: a page costs memory from its first use on."""

    def __init__(self, cpu: Cpu, size: int) -> None:
        self.size = size
        runs = -(-size // _RUN)
        self._base, self._memory = cpu.hidden_memory(runs * 2 * _RUN * PAGE_SIZE)
        self.used = 0
        self._free: list[Page] = []
        self._next = 0

    def __repr__(self) -> str:
        return f"<Pool {self.used} of {self.size} pages>"

    def take(self) -> Page:
        """A page of zeros. :raises Full: there is none."""
        if self._free:
            page = self._free.pop()
            page.words.cast("B")[:] = _ZEROS
        elif self._next < self.size:
            page = self._new(self._next)
            self._next += 1
        else:
            raise Full
        self.used += 1
        return page

    def _new(self, number: int) -> Page:
        at = (number // _RUN * 2 * _RUN + number % _RUN) * PAGE_SIZE
        return Page(self._base + at, self._memory[at : at + PAGE_SIZE].cast("Q"))

    def give_back(self, page: Page) -> None:
        """The page is free again; nothing may point to it any more."""
        self._free.append(page)
        self.used -= 1
