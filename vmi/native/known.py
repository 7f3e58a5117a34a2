# SPDX-License-Identifier: GPL-2.0-only
"""What was found out about a guest's tables before, as long as nothing has changed that it was found by.

Gates, descriptors and page tables are looked at for each event, and are nearly always what they were. What
was made of them is remembered with all of it, dwords of memory and registers, and comparing these takes a
fraction of the time. So nobody has to tell of a change.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Generic, TypeVar

from vmi.memory import PAGE_SIZE
from vmi.native.engine import ROM_END, ROM_START
from vmi.native.privilege import Privilege
from vmi.x86 import U32, GuestFault

OFFSET = PAGE_SIZE - 1
_MOST_STATES, _MOST_WAYS, _MOST_PAGES = 256, 1024, 1024

#: Dwords of memory by number: how to gather them. What it gives is compared with what it gave.
Gather = Callable[[Any], object]
#: What a page's translation was found by, and where the page is.
Page = tuple[Gather, object, int]
Way = TypeVar("Way", bound=tuple[Any, ...])


class Known(Generic[Way]):
    """What is remembered of one processor, for one view of its privilege.

    :param stores: frames are stored, not read.
    """

    def __init__(self, privilege: Privilege, *, stores: bool) -> None:
        self._p = privilege
        self._cpu = cpu = privilege.cpu
        self._ram, self._dwords = cpu.memory.ram, cpu.memory.dwords
        self._environment = cpu.raw
        self._stores = stores
        self._state: tuple[object, ...] = ()
        self._by_state: dict[tuple[object, ...], tuple[dict[int, Way], dict[int, Page]]] = {}
        self._ways: dict[int, Way] = {}
        self._pages: dict[int, Page] = {}

    def _change_state(self, state: tuple[object, ...]) -> None:
        found = self._by_state.get(state)
        if found is None:
            if len(self._by_state) >= _MOST_STATES:
                self._by_state.clear()
            found = self._by_state[state] = ({}, {})
        self._state = state
        self._ways, self._pages = found

    def forget(self) -> None:
        """Remember nothing."""
        self._by_state.clear()
        self._state = ()

    def _remember(self, key: int, way: Way) -> None:
        if len(self._ways) >= _MOST_WAYS:
            self._ways.clear()
        self._ways[key] = way

    def _words(self, linear: int, places: dict[int, int]) -> tuple[int, int]:
        """Two dwords of memory that a way depends on."""
        place = self._place(linear, 8, places)
        dwords = self._dwords
        places[place], places[place + 1] = dwords[place], dwords[place + 1]
        return dwords[place], dwords[place + 1]

    def _place(self, linear: int, size: int, places: dict[int, int], *, write: bool = False) -> int:
        """Number of the dword of memory at a linear address; ``places`` get what that was found by."""
        linear &= U32
        if linear & 3 or linear & OFFSET > PAGE_SIZE - size:
            raise Unsuitable
        found = self._p.linear.walked(linear, write=write)
        if found is None or found[0] > self._cpu.memory.size - PAGE_SIZE:
            raise Unsuitable
        places.update(found[1])
        return (found[0] | linear & OFFSET) >> 2

    def _find_page(self, linear: int) -> Page | None:
        """The page of a stack that has a frame; None if it isn't RAM."""
        places: dict[int, int] = {}
        start = self.find_page(linear, places)
        if start is None:
            return None
        if len(self._pages) >= _MOST_PAGES:
            self._pages.clear()
        page = self._pages[linear >> 12] = *gather(places), start
        return page

    def find_page(self, linear: int, places: dict[int, int]) -> int | None:
        """Where the page of a linear address begins, guest-physical; None if it isn't RAM to be used so.

        :param places: gets what that was found by.
        """
        try:
            start = self._place(linear & ~OFFSET, PAGE_SIZE, places, write=self._stores) << 2
        except (GuestFault, Unsuitable):
            return None
        return None if self._stores and ROM_START <= start < ROM_END else start


class Unsuitable(Exception):
    """This is not remembered."""


def gather(places: dict[int, int]) -> tuple[Gather, object]:
    """How dwords are gathered, by number, and what they are.

    Those that lie together are so as bytes: a dozen takes half of the time that it does dword by dword.
    """
    layout, found, end = "<", list[bytes](), 0
    for place in sorted(places):
        data = places[place].to_bytes(4, "little")
        if found and place == end:
            found[-1] += data
        else:
            layout += f"{len(found[-1])}s" if found else ""
            layout += f"{4 * (place - end)}x"
            found.append(data)
        end = place + 1
    layout += f"{len(found[-1])}s" if found else ""
    return Struct(layout).unpack_from, tuple(found)
