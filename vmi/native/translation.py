# SPDX-License-Identifier: GPL-2.0-only
"""How a CPU translates addresses, as far as somebody outside the guest has a say in it.

The emulator caches translations as a processor does, and everything here that changes what they are made
from says what becomes of the cached ones. A hypervisor may keep page tables of its own: in memory that
lies above what the guest has, where no address of the guest's can point (:meth:`Translation.hidden_memory`).
"""

from __future__ import annotations

import ctypes
import mmap
from abc import abstractmethod
from collections.abc import Callable, Iterable, MutableSet
from ctypes import PYFUNCTYPE

from vmi.memory import PAGE_SIZE
from vmi.native import control, interpose
from vmi.native.accelerator import Core
from vmi.native.engine import HIDDEN_SIZE, HIDDEN_START, NOWHERE, PTR, U64, Engine
from vmi.native.layout import Places
from vmi.native.registers import Registers
from vmi.native.straight import Path
from vmi.native.wiring import Bus, CodeWatch, Pager
from vmi.x86 import U32

_NO_PAGE = 1 << 32  # no linear address is in it


class Translation(Registers):
    """The registers of a CPU and its cached translations.

    :ivar hidden_from: linear addresses from here on show nothing, whatever page tables say.
    :ivar uncached_word: where :attr:`uncached` is.
    :ivar nowhere: guest-physical address of a page that nothing answers.
    :ivar straight: the way of events to the guest's handlers, as far as Python need not go along.
    :ivar code_pages: numbers of the pages of RAM that translated code lies in.
    :ivar hidden_view: the bytes of :meth:`hidden_memory` and their address in this process; None before there
        are any.
    """

    bus: Bus

    def __init__(self, engine: Engine, places: Places) -> None:
        super().__init__(places.env)
        self._engine = engine
        self._lib = engine.lib
        self._served = engine.served
        self._core = core = None if engine.served is None else engine.served.core
        if core is None:
            self._counter = ctypes.c_size_t.from_address(places.counter)
            self._budget = ctypes.c_size_t.from_address(places.budget)
        else:
            self._counter = ctypes.c_size_t.from_buffer(core, Core.counter.offset)
            self._budget = ctypes.c_size_t.from_buffer(core, Core.budget.offset)
        self._state = PTR(places.cpu)
        self._registers = PTR(places.env)
        # they never call Python, so other threads need not be let in meanwhile
        self._flush = PYFUNCTYPE(None, PTR)(engine.function("tlb_flush_x86_64"))
        self._flush_page = PYFUNCTYPE(None, PTR, U64)(engine.function("tlb_flush_page_x86_64"))
        self._update_root = PYFUNCTYPE(None, PTR, U64)(engine.function("cpu_x86_update_cr3_x86_64"))
        word = ctypes.c_uint64() if core is None else ctypes.c_uint64.from_buffer(core, Core.uncached.offset)
        self.uncached_word = memoryview(word).cast("B").cast("Q")
        self.straight = Path()
        self.hidden_from, self.nowhere = 1 << 32, NOWHERE
        self._pager: Pager | None = None
        self.hidden_view: tuple[memoryview, int] | None = None
        self.uncached = _NO_PAGE
        self._on_cached: Callable[[], None] = lambda: None
        self.code_pages: MutableSet[int] = set() if self._served is None else self._served.code_pages
        self.share()
        self.offered = 0  # EDX of CPUID leaf 1: what CR4 has bits for
        self._code_watch: CodeWatch | None = None
        self._code_changes = False

    @property
    def pager(self) -> Pager | None:
        """Who provides the page tables, if the guest does not."""
        return self._pager

    @pager.setter
    def pager(self, pager: Pager | None) -> None:
        self._pager = pager
        self.straight.parameters.pages_too = pager is None
        self.straight.changed()
        self._want_control()

    def _want_control(self) -> None:
        """Have loads of control registers told, now that somebody wants to know."""

    def quick_words(self) -> tuple[memoryview, memoryview, memoryview]:
        """Instructions that this run has executed and may execute, and :attr:`told_cr2`, as memory."""
        counter, budget = (memoryview(word).cast("B").cast("Q") for word in (self._counter, self._budget))
        return counter, budget, self._told_cr2

    def leave(self) -> None:
        """End the run in progress when the library next looks: at once, where it reports an event."""
        self._engine.leave()

    def share(self) -> None:
        """Tell C of what it looks at itself: :attr:`hidden_from` and :attr:`nowhere`."""
        if self._core is not None:
            self._core.hidden_from, self._core.nowhere = self.hidden_from, self.nowhere

    @property
    def uncached(self) -> int:
        """Linear address of the page that :meth:`drop_page` looks after."""
        return self.uncached_word[0]

    @uncached.setter
    def uncached(self, page: int) -> None:
        self.uncached_word[0] = page

    def takes_control(self, number: int, value: int) -> bool:
        """MOV to a control register is no #GP; called while it executes."""
        return control.takes(number, value, self.offered)

    def code_among(self, pages: Iterable[range]) -> list[int]:
        """Those of some pages of RAM, by number, that translated code lies in."""
        if self._served is not None:
            return self._served.code_pages.among(pages)
        return [page for run in pages for page in run if page in self.code_pages]

    def watch_code(self, watch: CodeWatch) -> None:
        """Show each block of code to somebody before it is executed, all from now on; only between runs."""
        self._code_watch = watch
        if self._core is None:
            interpose.tell_of_blocks(self._lib)
        else:
            self._core.tells_of_blocks = 1

    def block_appeared(self, linear: int, size: int) -> None:
        """A block of code was translated, and none of it has been executed."""
        watch = self._code_watch
        if watch is not None:
            self._guard(lambda: self._show_block(watch, linear & U32, size))

    def _show_block(self, watch: CodeWatch, linear: int, size: int) -> None:
        if watch.code_appeared(linear, size):
            self._code_changes = True
            self.stop_soon()  # in front of the instruction

    @abstractmethod
    def _guard(self, function: Callable[[], None]) -> None:
        """Call a function from a callback; the run stops and raises what it raises."""

    def stop_soon(self) -> None:
        """End the run after the current instruction (exact, unlike the library's own stop)."""
        self._budget.value = self._counter.value

    def _change_code(self) -> None:
        if self._code_changes and self._code_watch is not None:
            self._code_changes = False
            self._code_watch.change_code()

    def flush_tlb(self) -> None:
        """Drop all cached translations of addresses, global ones too."""
        self._flush(self._state)

    def flush_page(self, linear: int) -> None:
        """Drop the cached translation of one linear address."""
        self._flush_page(self._state, linear)

    def drop_page(self, linear: int, on_cached: Callable[[], None]) -> None:
        """Drop the cached translation of a page, and say so as soon as there is one again, once.

        One page is looked after at a time: the last one. ``on_cached`` is called in the middle of an
        instruction and must not raise anything.
        """
        self.flush_page(linear)
        self.uncached, self._on_cached = linear & U32 & -PAGE_SIZE, on_cached

    def cached(self) -> None:
        """The page of :meth:`drop_page` is about to be cached."""
        self.uncached = _NO_PAGE
        self._on_cached()

    def hide_from(self, linear: int) -> None:
        """Let page tables show nothing at this linear address, a whole page, and above.

        What they map there reads as all ones and swallows stores; page faults are as without this.
        """
        self.hidden_from = linear
        self.share()
        self.flush_tlb()

    def hidden_memory(self, size: int) -> tuple[int, memoryview]:
        """Whole pages that no address of the guest reaches: their physical address, and the bytes.

        It is the same memory each time, never more than the first time; at most 64 MiB. To be asked for
        before the CPU runs: the emulator walks the guest's page tables for no reason when it maps memory.
        """
        if self.hidden_view is None:
            assert size <= HIDDEN_SIZE
            memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._anchor = (ctypes.c_char * size).from_buffer(memory)
            self.hidden_view = memoryview(memory), ctypes.addressof(self._anchor)
            self._engine.map_hidden(self.hidden_view[1], size)
        return HIDDEN_START, self.hidden_view[0]

    @property
    def shows_blocks(self) -> bool:
        """Somebody is shown each block of code before it is executed, see :meth:`watch_code`."""
        return self._code_watch is not None

    def load_root(self, address: int) -> None:
        """Load CR3 with an address that may lie in hidden memory, above what CR3 has room for."""
        self._update_root(self._registers, address)

    def _ask_pager(self, error: int, *, begun: bool) -> int | None:
        """The error code of a page fault that the guest is to see; None if it never has been.

        :param begun: an instruction has begun, so it has been counted, and will be again.
        """
        pager = self.pager
        if pager is None:
            return error
        found = pager.page_fault(self.cr2, error)
        if found is None:
            self.cr2 = self.told_cr2
            self.forget_exception()
            if begun:
                self._counter.value -= 1
        return found
