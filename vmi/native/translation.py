# SPDX-License-Identifier: GPL-2.0-only
"""How a CPU translates addresses, as far as somebody outside the guest has a say in it.

The emulator caches translations as a processor does, and everything here that changes what they are made
from says what becomes of the cached ones. A hypervisor may keep page tables of its own: in memory that
lies above what the guest has, where no address of the guest's can point (:meth:`Translation.hidden_memory`).
"""

from __future__ import annotations

import ctypes
import mmap

from vmi.memory import PAGE_SIZE
from vmi.native.engine import HIDDEN_SIZE, HIDDEN_START, NOWHERE, PTR, U64, Engine, Hook
from vmi.native.layout import Places
from vmi.native.registers import Registers
from vmi.native.wiring import CodeWatch, Pager
from vmi.x86 import U32, Seg

_SIZE_AT = 10  # the library's description of a block: 64 bits of address, 16 of instructions, 16 of bytes


class Translation(Registers):
    """The registers of a CPU and its cached translations.

    :ivar hidden_from: linear addresses from here on show nothing, whatever page tables say.
    :ivar nowhere: guest-physical address of a page that nothing answers.
    :ivar pager: who provides the page tables, if the guest does not.
    :ivar code_pages: numbers of the pages of RAM that translated code lies in.
    """

    def __init__(self, engine: Engine, places: Places) -> None:
        super().__init__(places.env)
        self._engine = engine
        self._lib = engine.lib
        self._counter = ctypes.c_size_t.from_address(places.counter)
        self._budget = ctypes.c_size_t.from_address(places.budget)
        self._state = PTR(places.cpu)
        self._registers = PTR(places.env)
        self.hidden_from, self.nowhere = 1 << 32, NOWHERE
        self.pager: Pager | None = None
        self._hidden: mmap.mmap | None = None
        self.code_pages: set[int] = set()
        self._code_watch: CodeWatch | None = None
        self._code_changes = False

    def watch_code(self, watch: CodeWatch) -> None:
        """Show each block of code to somebody before it is executed, all from EIP on; only between runs."""
        self._code_watch, first = watch, self._code_watch is None
        if first:
            callback = self._engine.callback((None, PTR, PTR, PTR, PTR), self._on_block, None)
            self._engine.hook(Hook.NEW_BLOCK, callback)
        # the library shows nobody the first block of an engine
        here = (self.segment(Seg.CS).base + self.eip) & U32
        if watch.code_appeared(here, PAGE_SIZE - here % PAGE_SIZE):
            watch.change_code()

    def _on_block(self, _uc: int, block: int, _before: int, _user: int) -> None:
        watch = self._code_watch
        linear, size = ctypes.c_uint64.from_address(block), ctypes.c_uint16.from_address(block + _SIZE_AT)
        if watch is not None and watch.code_appeared(linear.value & U32, size.value):
            self._code_changes = True
            self.stop_soon()  # in front of the instruction

    def stop_soon(self) -> None:
        """End the run after the current instruction (exact, unlike the library's own stop)."""
        self._budget.value = self._counter.value

    def _change_code(self) -> None:
        if self._code_changes and self._code_watch is not None:
            self._code_changes = False
            self._code_watch.change_code()

    def flush_tlb(self) -> None:
        """Drop all cached translations of addresses, global ones too."""
        self._lib.tlb_flush_x86_64(self._state)

    def flush_page(self, linear: int) -> None:
        """Drop the cached translation of one linear address."""
        self._lib.tlb_flush_page_x86_64(self._state, U64(linear))

    def hide_from(self, linear: int) -> None:
        """Let page tables show nothing at this linear address, a whole page, and above.

        What they map there reads as all ones and swallows stores; page faults are as without this.
        """
        self.hidden_from = linear
        self.flush_tlb()

    def hidden_memory(self, size: int) -> tuple[int, memoryview]:
        """Whole pages that no address of the guest reaches: their physical address, and the bytes.

        It is the same memory each time, never more than the first time; at most 64 MiB. To be asked for
        before the CPU runs: the emulator walks the guest's page tables for no reason when it maps memory.
        """
        if self._hidden is None:
            assert size <= HIDDEN_SIZE
            self._hidden = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._anchor = (ctypes.c_char * size).from_buffer(self._hidden)
            self._engine.map_hidden(ctypes.addressof(self._anchor), size)
        return HIDDEN_START, memoryview(self._hidden)

    def load_root(self, address: int) -> None:
        """Load CR3 with an address that may lie in hidden memory, above what CR3 has room for."""
        self._lib.cpu_x86_update_cr3_x86_64(self._registers, U64(address))

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
