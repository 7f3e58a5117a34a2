# SPDX-License-Identifier: GPL-2.0-only
"""What a CPU reports while it executes, and what becomes of it.

Each event comes from the emulator library, or by way of the accelerator's C code, in the middle of an
instruction or between two; see :mod:`vmi.native.cpu` for the library's traps that are answered here.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from typing import Any

from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native import interpose, layout
from vmi.native.accelerator.served import Served
from vmi.native.engine import I32, PTR, U64, Engine, Hook, Instruction
from vmi.native.engine import U32 as C_U32
from vmi.native.registers import AT_CC_OP, CC_OP_EFLAGS, Segment
from vmi.native.translation import Translation
from vmi.native.wiring import Bus, StoreWatch
from vmi.x86 import U32, Eflags, GuestFault, Seg, Vector

_LIBRARY_CALLS = "interrupt", "invalid", "cpuid", "rdtsc", "rom_write", "breakpoint"
# Found quickly: an enumeration's own members are looked up by a function.
_PF, _DB = Vector.PF.value, Vector.DB.value
_MOST_ACCESSES = 4  # to devices by one instruction, in front of a store into code
ONE_INSTRUCTION = 1  # the library's name for "a block of one instruction"


class Events(Translation):
    """Everything that happens to a CPU while it executes."""

    bus: Bus
    memory: PhysicalMemory
    host_cpu: int

    def __init__(self, engine: Engine, places: layout.Places) -> None:
        self.watched_pages: set[int] = set()
        # what SYSENTER does to code selector, ESP and EIP; the owner may exchange it
        self.enter_kernel: Callable[[int, int, int], None] = self._enter_kernel
        self.on_pause: Callable[[], None] = lambda: None
        self._store_watch: StoreWatch | None = None
        self._on_control: Callable[[], None] | None = None
        self._refused: tuple[int, ...] | None = None
        self._refusal = GuestFault(Vector.GP)
        self._trouble: BaseException | None = None
        self._running = False
        self._window = self._dropping = False
        self._alone = (0, 0)
        # the last accesses to devices: number of the instruction, place and size as for _had(), value; and
        # those that an instruction that is done again has yet to come to
        self._accesses: deque[tuple[int, int, int, int]] = deque(maxlen=_MOST_ACCESSES)
        self._again: list[tuple[int, int, int, int]] = []
        self._next_block = ctypes.c_uint32.from_address(places.next_block)
        self._interrupt_request = ctypes.c_uint32.from_address(places.interrupt_request)
        super().__init__(engine, places)

    def host_page(self, page: int) -> int | None:
        """Address in this process of a page of guest RAM by number, None if RAM has no such page."""
        if page * PAGE_SIZE >= self.memory.size:
            return None
        return self.memory.host_address + page * PAGE_SIZE

    def _keep(self, error: BaseException) -> None:
        """Stop the run, which then raises the first such error."""
        if self._trouble is None:
            self._trouble = error
        self.stop_soon()
        self._engine.leave()

    def _guard(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            self._keep(error)

    def _hook_events(self, places: layout.Places) -> None:
        engine = self._engine
        made = {
            "interrupt": engine.raw_callback((None, PTR, C_U32), self._on_interrupt),
            "invalid": engine.callback((ctypes.c_bool, PTR, PTR), self._on_invalid, False),
            "cpuid": engine.callback((I32, PTR, PTR), self._on_cpuid, 1),
            "rdtsc": engine.raw_callback((I32, PTR), self._on_rdtsc),
            "rom_write": engine.callback(
                (ctypes.c_bool, PTR, I32, U64, I32, ctypes.c_int64, PTR), self._on_rom_write, True
            ),
            "breakpoint": engine.callback((None, PTR), self._on_breakpoint, None),
        }
        served = self._served
        if served is not None:
            self._ask_through(served, made)
            made = {name: served.callback(name) for name in (*_LIBRARY_CALLS, "window")}
        else:
            made["window"] = engine.callback((ctypes.c_bool, PTR, I32), self._on_window, False)
            port_read = engine.callback((C_U32, PTR, C_U32, I32, PTR), self._on_in, 0)
            port_write = engine.callback((None, PTR, C_U32, I32, C_U32, PTR), self._on_out, None)
            engine.hook_instruction(Instruction.IN, port_read)
            engine.hook_instruction(Instruction.OUT, port_write)
        engine.hook(Hook.INTERRUPT, made["interrupt"])
        engine.hook(Hook.INVALID, made["invalid"])
        engine.hook_instruction(Instruction.CPUID, made["cpuid"])
        engine.hook_instruction(Instruction.RDTSC, made["rdtsc"])
        engine.hook_rom_writes(made["rom_write"])
        for place, name in ((places.on_interrupt, "window"), (places.on_debug, "breakpoint")):
            ctypes.c_void_p.from_address(place).value = ctypes.cast(made[name], PTR).value

    def _ask_through(self, served: Served, made: dict[str, Any]) -> None:
        """Let C ask, also for what it asks for itself."""
        callback = self._engine.callback
        for name, function in (
            ("read_msr", self.read_msr),
            ("write_msr", self.write_msr),
            ("fast_call", self.fast_call),
            ("long_call", self.long_call),
            ("control_loaded", self.control_loaded),
            ("cached", self.cached),
            ("paused", lambda: self.on_pause()),  # noqa: PLW0108
        ):
            made[name] = callback((None,), function, None)
        made["storing"] = callback((None, U64, U64), self.storing_into_watched, None)
        made["block_appeared"] = callback((None, U64, C_U32), self.block_appeared, None)
        made["load_control"] = callback((ctypes.c_bool, I32, C_U32), self._load_control, False)
        made["port_read"] = callback((C_U32, C_U32, I32), self._port_read, 0)
        made["port_write"] = callback((None, C_U32, I32, C_U32), self._port_write, None)
        made["memory_read"] = callback((U64, U64, C_U32), self._memory_read, 0)
        made["memory_write"] = callback((None, U64, C_U32, U64), self._memory_write, None)
        served.ask(**made)

    def on_gate(self, function: Callable[[int], bool]) -> None:
        """Have a function told of INTs that come from gates of a ROM, by the gate's number.

        That is as far as :attr:`straight` says where the gates are and that events may go straight. Others,
        and those for which it gives False, are reported as any.
        """
        if self._served is not None:
            made = self._engine.callback((I32, C_U32), function, 1)
            self.straight.parameters.called = ctypes.cast(made, PTR).value

    def _memory_read(self, address: int, size: int) -> int:
        # looked up each time, like the other requests: somebody may measure them
        return self.bus.memory_read(address, size)

    def _device_read(self, address: int, size: int) -> int:
        value = self._had(address, size) if self._again else None
        if value is None:
            value = self.bus.memory_read(address, size)
            self._accesses.append((self._counter.value, address, size, value))
        return value

    def _device_write(self, address: int, size: int, value: int) -> None:
        if not self._again or self._had(address, -size) is None:
            self.bus.memory_write(address, size, value)
            self._accesses.append((self._counter.value, address, -size, value))

    def _had(self, where: int, size: int) -> int | None:
        """What an instruction that is done again has read or written the first time; None if it has not.

        See :meth:`stored_into_code`.

        :param where: an address, or the complement of a port.
        :param size: bytes that are read, or the negative number of those that are written.
        """
        known = self._again.pop(0)
        if known[:3] == (self._counter.value, where, size):
            return known[3]
        self._again.clear()
        return None

    def _memory_write(self, address: int, size: int, value: int) -> None:
        self.bus.memory_write(address, size, value)

    def _port_read(self, port: int, size: int) -> int:
        return self.bus.port_read(port, size)

    def _port_write(self, port: int, size: int, value: int) -> None:
        self.bus.port_write(port, size, value)

    # -- events -----------------------------------------------------------------------------

    def _report(self, vector: int, is_int: bool, error: int) -> None:
        self.forget_exception()
        if self._refused is not None:
            # the instruction behind the one refused, or a trap after it: neither has happened
            self._engine.leave()
            return
        self.bus.exception(vector, is_int, error)
        # a handler whose first instruction can't be fetched begins none, so nothing else would see this
        if self._counter.value >= self._budget.value:
            self._engine.leave()

    def _on_interrupt(self, _uc: int, vector: int) -> None:
        try:
            quick = self.straight.quick
            if quick is None or not quick(vector):
                self._interrupted(vector)
        except BaseException as error:
            self._keep(error)

    def _interrupted(self, vector: int) -> None:
        is_int, error = self.exception_is_int, self.error_code
        fetch = vector == _PF and self.faulted_in_fetch
        if self._core is None and not fetch and vector != _DB:
            self.settle_flags()
        if vector == _PF and self._refused is None and not is_int:
            found = self._ask_pager(error, begun=not fetch)
            if found is None or (fetch and self._runs_on()):
                return
            error = found
        self._report(vector, is_int, error)

    def _runs_on(self) -> bool:
        """Have one instruction done alone if it may not be the one that needs the page it runs on into.

        The library fetches a whole block of code before it begins, and a block may go over the end of a page
        where :mod:`vmi.native.translator` has not seen to it. The instruction that does need the page comes
        back with the same fault.
        """
        here = self._counter.value, self.eip
        ahead = (self.cr2 - self.segment(Seg.CS).base - self.eip) & U32
        if not 0 < ahead < PAGE_SIZE or here == self._alone:
            return False
        self._alone = here
        self._next_block.value = ONE_INSTRUCTION
        self.cr2 = self.told_cr2
        self.forget_exception()
        return True

    def _settle(self) -> None:
        """See :meth:`settle_flags`; code that the accelerator counts has no need of it."""
        if self._core is None:
            self.settle_flags()

    def storing_into_code(self) -> None:
        """A store goes to a page of code."""
        if self._running and not self._dropping:
            self.mark_eip(True)

    def stored_into_code(self) -> None:
        """It has gone there; if it was into its own block, it is done again, and so counted again.

        What it has read from devices and written to them by then is not read and written again.
        """
        if self._running and not self._dropping:
            if self.eip_marked:
                self.mark_eip(False)
            else:
                number = self._counter.value
                self._again = [access for access in self._accesses if access[0] == number]
                self._counter.value = number - 1
            self._settle()

    @property
    def store_watch(self) -> StoreWatch | None:
        """Who is told of stores, see :meth:`watch_pages`."""
        return self._store_watch

    @store_watch.setter
    def store_watch(self, watch: StoreWatch | None) -> None:
        self._store_watch = watch
        self._want_control()

    @property
    def on_control(self) -> Callable[[], None] | None:
        """Called when CR0, CR3 or CR4 was loaded."""
        return self._on_control

    @on_control.setter
    def on_control(self, function: Callable[[], None] | None) -> None:
        self._on_control = function
        self._want_control()

    def _want_control(self) -> None:
        if self._core is not None:
            wanted = self.pager is not None or self.store_watch is not None or self.on_control is not None
            self._core.tells_of_control = int(wanted)

    def watch_pages(self, pages: set[int]) -> None:
        """Have :attr:`store_watch` told of each of the guest's stores into these pages of RAM, by number."""
        added = pages - self.watched_pages
        if self._served is not None:
            for page in pages ^ self.watched_pages:
                self._served.watch(page, page in pages)
        self.watched_pages = pages
        for page in sorted(added):
            host = self.host_page(page)
            if host is not None:  # stores through what is cached of translations take the long way again
                self._lib.tlb_reset_dirty_x86_64(self._state, U64(host), U64(PAGE_SIZE))

    def storing_into_watched(self, address: int, size: int) -> None:
        """A store into a watched page; the library has not done it yet."""
        watch = self.store_watch
        if watch is not None and self._running and not self._dropping:
            self._guard(lambda: watch.storing(address, size))

    def control_changed(self) -> None:
        """CR0, CR3 or CR4 has a new value."""
        if self.store_watch is not None:
            self._guard(self.store_watch.control_changed)

    def control_loaded(self) -> None:
        """CR0, CR3 or CR4 was loaded."""
        if self.pager is not None:
            self._guard(self.pager.control_changed)
        self.control_changed()
        if self.on_control is not None:
            self._guard(self.on_control)

    def tell_of_pauses(self) -> None:
        """Have :attr:`on_pause` called for each PAUSE from now on, while it executes."""
        if self._core is None:
            interpose.tell_of_pauses(self._lib, self, self._registers.value or 0)
        else:
            self._core.tells_of_pauses = 1

    def _on_invalid(self, _uc: int, _user: int) -> bool:
        self._settle()
        is_int = self.exception_is_int
        if is_int:
            self.eip = self.exception_next_eip
        self._report(Vector.UD, is_int, 0)
        return True

    def _on_breakpoint(self, _cpu: int) -> None:
        linear = (self.segment(Seg.CS).base + self.eip) & U32
        control = self.dr(7)
        hits = sum(1 << i for i in range(4) if not control >> (16 + 4 * i) & 3 and self.dr(i) == linear)
        self.set_dr(6, self.dr(6) & ~15 | hits)
        self._report(Vector.DB, False, 0)
        # the library's main loop goes on after this only if it is asked to end
        self._engine.leave()

    def _on_in(self, _uc: int, port: int, size: int, _user: int) -> int:
        self._settle()
        value = self._had(~port, size) if self._again else None
        if value is None:
            value = self.bus.port_read(port, size)
            self._accesses.append((self._counter.value, ~port, size, value))
        return value

    def _on_out(self, _uc: int, port: int, size: int, value: int, _user: int) -> None:
        self._settle()
        self.bus.port_write(port, size, value)

    def _on_cpuid(self, _uc: int, _user: int) -> int:
        self._settle()
        self.eax, self.ebx, self.ecx, self.edx = self.bus.cpuid(self.eax, self.ecx)
        return 1

    def _on_rdtsc(self, _uc: int) -> int:
        try:
            d = self._d
            if self._core is None:
                d[AT_CC_OP] = CC_OP_EFLAGS  # as settle_flags() does; some guests ask millions of times
            value = self.bus.tsc()
            d[0], d[4] = value & U32, value >> 32 & U32
        except BaseException as error:
            self._keep(error)
        return 1

    def refuse(self, fault: GuestFault | None = None) -> None:
        """Make the instruction that asks now have no effect but a fault, by default #GP.

        For IN, OUT, RDMSR, WRMSR, SYSENTER and SYSCALL.
        """
        self._refused = (self.eip, self.eax, self.ecx, self.edx, self.esi, self.edi, self.cr2, self.dr(6))
        self._refusal = fault or GuestFault(Vector.GP)
        self.stop_soon()

    def _take_back(self) -> bool:
        """Undo what a refused instruction did, if there was one, and report it."""
        if self._refused is None:
            return False
        self.eip, self.eax, self.ecx, self.edx, self.esi, self.edi, self.cr2, dr6 = self._refused
        self._refused = None
        self.set_dr(6, dr6)
        self.irq_shadow = False
        if self._refusal.vector == Vector.PF:
            self.cr2 = self._refusal.address
        self._report(self._refusal.vector, False, self._refusal.error)
        return True

    def _load_control(self, number: int, value: int) -> bool:
        """MOV to a control register, called while it executes: False if it is refused."""
        if self.takes_control(number, value):
            return True
        self.refuse()
        return False

    def read_msr(self) -> None:
        """RDMSR, called while it executes."""
        self._guard(self._read_msr)

    def write_msr(self) -> None:
        """WRMSR, called while it executes."""
        self._guard(self._write_msr)

    def _read_msr(self) -> None:
        value = self.bus.read_msr(self.ecx)
        if value is None:
            self.refuse()
        else:
            self.eax, self.edx = value & U32, value >> 32 & U32

    def _write_msr(self) -> None:
        if not self.bus.write_msr(self.ecx, self.edx << 32 | self.eax):
            self.refuse()

    def fast_call(self) -> None:
        """SYSENTER, called while it executes."""
        self._guard(self._fast_call)

    def _fast_call(self) -> None:
        selector, esp, eip = self.fast_call_target
        if not selector & 0xFFFC:
            self.refuse()
            return
        self.enter_kernel(selector & 0xFFFC, esp, eip)

    def _enter_kernel(self, selector: int, esp: int, eip: int) -> None:
        self.system_flags &= ~(Eflags.VM | Eflags.IF | Eflags.RF)
        self.set_segment(Seg.CS, Segment(selector, 0, U32, 0xCF9B00))
        self.set_segment(Seg.SS, Segment(selector + 8, 0, U32, 0xCF9300))
        self.esp, self.eip = esp, eip

    def long_call(self) -> None:
        """SYSCALL, called while it executes: none of these CPUs has it."""
        self.refuse(GuestFault(Vector.UD))

    def _on_rom_write(self, _uc: int, _kind: int, address: int, size: int, value: int, _user: int) -> bool:
        self._settle()
        self.bus.memory_write(address, size, value)
        return True

    def _on_window(self, _cpu: int, _request: int) -> bool:
        if self.system_flags & 0x200 and not self.irq_shadow:
            self._interrupt_request.value = 0
            self._window = True
            self._engine.leave()
        return False
