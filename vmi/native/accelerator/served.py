# SPDX-License-Identifier: GPL-2.0-only
"""One CPU that the C library serves."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, MutableSet
from typing import Any
from weakref import finalize

from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native import translator
from vmi.native.accelerator.core import (
    ASKED,
    OPERATIONS,
    PAGE_HOLDS_CODE,
    PAGE_IS_WATCHED,
    Core,
    Library,
    Region,
)
from vmi.native.straight import Path

_POINTER = ctypes.c_void_p

# The emulator library keeps a pointer to each of these for as long as it likes.
_cores: list[tuple[Core, list[Region]]] = []
_kept: list[ctypes.Structure] = []


class CodePages(MutableSet[int]):
    """Numbers of the pages of RAM that hold translated code, kept in C."""

    def __init__(self, kinds: memoryview) -> None:
        self._kinds = kinds

    def __repr__(self) -> str:
        return f"<CodePages {sorted(self)}>"

    def __contains__(self, page: object) -> bool:
        if not isinstance(page, int) or not 0 <= page < len(self._kinds):
            return False
        return bool(self._kinds[page] & PAGE_HOLDS_CODE)

    def __iter__(self) -> Iterator[int]:
        return (page for page, kind in enumerate(self._kinds) if kind & PAGE_HOLDS_CODE)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def add(self, value: int) -> None:
        """Say that a page holds code."""
        self._kinds[value] |= PAGE_HOLDS_CODE

    def discard(self, value: int) -> None:
        """Say that a page holds none."""
        if value in self:
            self._kinds[value] &= ~PAGE_HOLDS_CODE & 0xFF

    def among(self, pages: Iterable[range]) -> list[int]:
        """Those of some pages of RAM that hold code."""
        kinds = self._kinds
        return [page for run in pages for page in run if kinds[page] & PAGE_HOLDS_CODE]

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> set[Any]:
        return set(it)


class Served:
    """What C and Python share of one CPU: :attr:`core`, and who is asked what.

    :ivar code_pages: pages that hold translated code.
    """

    def __init__(self, library: Library, engine: int, memory: PhysicalMemory) -> None:
        self._library = library
        count = -(-memory.size // PAGE_SIZE)
        kinds = (ctypes.c_uint8 * count)()
        self._kinds = memoryview(kinds).cast("B")
        self.code_pages = CodePages(self._kinds)
        self.core = Core(
            size=ctypes.sizeof(Core),
            engine=engine,
            pages=ctypes.addressof(kinds),
            page_count=count,
            ram=memory.host_address,
        )
        self._regions: list[Region] = []
        _cores.append((self.core, self._regions))
        finalize(self, _withdraw, self.core, kinds)

    def adopt(self, *, cpu: int, state: int, operations: dict[str, int]) -> None:
        """Serve a CPU from now on.

        :param cpu: host address of the emulator library's CPU structure, ``state`` of its register state.
        :param operations: the library's numbers of its operations by name.
        """
        translator.release(cpu)  # one of Python's that is nearly gone may have been there
        self.core.cpu, self.core.env = cpu, state
        for field, name in OPERATIONS.items():
            setattr(self.core, field, operations[name])
        self._library.adopt(ctypes.byref(self.core))

    def send_straight(self, straight: Path, **places: int) -> None:
        """Enter the handlers of events in C, as far as the path's parameters let it."""
        core, enter = self.core, self._library.enter
        core.straight = ctypes.addressof(straight.parameters)
        _kept.append(straight.parameters)
        straight.serve(
            enter,
            cpu=core.cpu,
            env=core.env,
            ram=core.ram,
            ram_size=core.page_count * PAGE_SIZE,
            pages=core.pages,
            uncached=ctypes.addressof(core) + Core.uncached.offset,
            **places,
        )

    def ask(self, **functions: Any) -> None:
        """Say which C functions, made of Python's, are called for what, by the names in ``ASKED``."""
        for name, function in functions.items():
            assert name in ASKED
            setattr(self.core, name, ctypes.cast(function, _POINTER).value)

    def callback(self, name: str) -> Any:
        """The C function for one of the emulator library's callbacks; :attr:`user` goes with it."""
        return self._library.callback(name)

    @property
    def user(self) -> Any:
        """What the emulator library hands to its callbacks."""
        return _POINTER(ctypes.addressof(self.core))

    def region(self, start: int) -> Any:
        """What the emulator library hands to callbacks for device memory that begins at ``start``."""
        made = Region(ctypes.addressof(self.core), start)
        self._regions.append(made)
        return _POINTER(ctypes.addressof(made))

    def watch(self, page: int, on: bool) -> None:
        """Have stores into a page of RAM told, or not any more."""
        if page < len(self._kinds):
            kind = self._kinds[page] & ~PAGE_IS_WATCHED & 0xFF
            self._kinds[page] = kind | PAGE_IS_WATCHED if on else kind

    def run(self, eip: int, budget: int) -> int:
        """Execute up to ``budget`` instructions from EIP; gives the library's error number."""
        self.core.budget = budget
        status: int = self._library.run(ctypes.byref(self.core), eip)
        return status


def _withdraw(core: Core, _kinds: object) -> None:
    """The CPU is gone: nothing of it may be looked at any more, but the structure stays."""
    core.page_count = 0
