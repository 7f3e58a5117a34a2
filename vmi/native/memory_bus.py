# SPDX-License-Identifier: GPL-2.0-only
"""Guest-physical addresses that devices answer instead of RAM, and those that nobody answers.

The CPU reaches RAM without asking; only accesses outside it come here. Devices claim whole pages, as
the chips' address decoders on a PC do, so a page number is enough to find one.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from vmi.errors import UsageError
from vmi.memory import PAGE_SIZE

_REMEMBERED = 256  # pages counted one by one; a guest that sweeps all of memory adds no more


class MemoryDevice(Protocol):
    """What answers a range of guest-physical addresses."""

    def memory_read(self, address: int, size: int) -> int:
        """Answer a load of ``size`` bytes (1, 2, 4 or 8) at a guest-physical address."""

    def memory_write(self, address: int, size: int, value: int) -> None:
        """Take a store of ``size`` bytes (1, 2, 4 or 8) at a guest-physical address."""


class MemoryBus:
    """Finds the device of a guest-physical address; counts accesses that find none, by page."""

    def __init__(self) -> None:
        self._by_page: dict[int, MemoryDevice] = {}
        self.unclaimed_reads: Counter[int] = Counter()
        self.unclaimed_writes: Counter[int] = Counter()

    def map(self, span: range, device: MemoryDevice) -> None:
        """Give a range, whole pages of 4 KiB, to a device; it takes over pages that others had.

        :raises UsageError: the range doesn't begin and end at a page.
        """
        for page in _pages(span):
            self._by_page[page] = device

    def unmap(self, span: range, device: MemoryDevice) -> None:
        """Take a range away from a device; pages that are another's by now stay with it."""
        for page in _pages(span):
            if self._by_page.get(page) is device:
                del self._by_page[page]

    def device(self, address: int) -> MemoryDevice | None:
        """What answers at an address."""
        return self._by_page.get(address // PAGE_SIZE)

    def read(self, address: int, size: int) -> int:
        """Load ``size`` bytes; all ones where nobody answers."""
        device = self._by_page.get(address // PAGE_SIZE)
        if device is None:
            _count(self.unclaimed_reads, address)
            return (1 << 8 * size) - 1
        return device.memory_read(address, size) & (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        """Store ``size`` bytes; lost where nobody takes them."""
        device = self._by_page.get(address // PAGE_SIZE)
        if device is None:
            _count(self.unclaimed_writes, address)
            return
        device.memory_write(address, size, value & (1 << 8 * size) - 1)


def _count(counter: Counter[int], address: int) -> None:
    page = address // PAGE_SIZE * PAGE_SIZE
    counter[page if page in counter or len(counter) < _REMEMBERED else -1] += 1


def _pages(span: range) -> range:
    if span.start % PAGE_SIZE or span.stop % PAGE_SIZE:
        at = f"{span.start:#x}-{span.stop - 1:#x}"
        raise UsageError(f"a device's memory must be whole pages of {PAGE_SIZE} bytes, but it is {at}")
    return range(span.start // PAGE_SIZE, span.stop // PAGE_SIZE)
