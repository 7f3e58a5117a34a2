# SPDX-License-Identifier: GPL-2.0-only
"""The i386 CPU: the one module that knows the emulator library (Unicorn).

The emulator executes instructions and reports events; everything that makes a CPU part of a
computer (delivery of exceptions and interrupts, ports, devices) is decided by the owner through
:class:`~vmi.native.wiring.Bus`. The traps of the library are answered here, once:

* it never forgets an exception in flight, so a second page fault would turn into a double fault;
* its ``timeout=`` and a stop from another thread may execute an instruction twice, so time is
  counted in instructions and a run is stopped only between two of them;
* a stop inside a port access takes effect some instructions later, so the instruction budget is
  cut to the current instruction instead, which is exact;
* writes by the host do not reach already translated code, so every host write drops translations;
* after a fault or a port access it computes the arithmetic flags in the wrong way;
* INT 6 is reported as an invalid instruction, not as an INT;
* a debug register's breakpoint in a segment with a base makes it spin for ever, and a call gate without
  a task register makes it end the whole process: the first is reported by a function of our own, the
  second can't happen, since there is always a task register;
* its default CPU has long mode, RDRAND and the host's RDTSCP: this one has none of them.

Two are not: an instruction that changes the very block of code it is in leaves wrong arithmetic flags,
and code that runs on into an absent page faults at the start of its block, before the block has begun.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import unicorn
from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3 import unicorn as binding

from vmi.errors import EngineError
from vmi.memory import PhysicalMemory
from vmi.native import layout
from vmi.native.registers import Registers, Segment
from vmi.native.wiring import Bus, Stop
from vmi.x86 import TSS_AVAILABLE_32, U32, Cr0, PfError, Seg, Vector

VERSION = "2.1.4"

ROM_START, ROM_END = 0xC0000, 0x100000

_LONGEST_INSTRUCTION = 15
_INTERRUPT_HARD = 2  # the library's name for "an external interrupt waits"
_PHYSICAL_END = 1 << 52  # with PAE or 4 MiB pages a guest can ask for addresses above 4 GiB
_NO_CODE = (uc_const.UC_ERR_FETCH_UNMAPPED, uc_const.UC_ERR_FETCH_PROT)
_CONTROL = {0: x86_const.UC_X86_REG_CR0, 3: x86_const.UC_X86_REG_CR3, 4: x86_const.UC_X86_REG_CR4}


class Cpu(Registers):
    """One i386 CPU on a :class:`~vmi.memory.PhysicalMemory`; the owner sets the state it starts in.

    :raises EngineError: the emulator library is not the version this was proven on, or fails the proof
        that the first CPU of a process begins with.
    """

    _proven = False

    def __init__(self, memory: PhysicalMemory, bus: Bus) -> None:
        if unicorn.__version__ != VERSION:
            raise EngineError(f"the CPU emulator must be unicorn {VERSION}, but it is {unicorn.__version__}")
        if not Cpu._proven:
            self._prove()
        self.memory = memory
        self.bus = bus
        self.instructions = 0  # executed in completed runs
        self.failure = 0  # the library's error number of a run that ended as Stop.FAILED
        self._uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        self._uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_QEMU32)
        self._lib: Any = binding.uclib
        handle = self._uc._uch
        engine = handle.value if handle is not None else None
        if not engine:
            raise EngineError("the CPU emulator gave no engine")
        self._handle = handle
        self._callbacks: list[object] = []
        self._trouble: BaseException | None = None
        self._running = False
        self._window = False
        self._uc.ctl_exits_enabled(True)
        self._map_memory()  # also makes the library create its CPU
        places = layout.locate(engine, self._function)
        self._counter = ctypes.c_size_t.from_address(places.counter)
        self._budget = ctypes.c_size_t.from_address(places.budget)
        self._halted = ctypes.c_uint32.from_address(places.halted)
        self._interrupt_request = ctypes.c_uint32.from_address(places.interrupt_request)
        self._state = ctypes.c_void_p(places.cpu)
        self._registers = ctypes.c_void_p(places.env)
        super().__init__(places.env)
        self._flags_buffer = ctypes.c_uint32()
        self._hook_events(places)
        # after a reset the library has none, and ends the process when it needs one
        self.tr = Segment(0, 0, 0xFFFF, 0x8000 | TSS_AVAILABLE_32 << 8)

    @staticmethod
    def _prove() -> None:
        from vmi.native import selftest  # it makes CPUs itself

        Cpu._proven = True
        try:
            selftest.prove()
        except BaseException:
            Cpu._proven = False
            raise

    def _function(self, name: str) -> int:
        """Address of one of the library's functions, 0 if it has none of that name."""
        function: Any = getattr(self._lib, name, None)
        return ctypes.cast(function, ctypes.c_void_p).value or 0

    # -- set-up -----------------------------------------------------------------------------

    def _map_memory(self) -> None:
        size, host = self.memory.size, self.memory.host_address
        rwx, rx = uc_const.UC_PROT_ALL, uc_const.UC_PROT_READ | uc_const.UC_PROT_EXEC
        self._uc.mem_map_ptr(0, ROM_START, rwx, host)
        # only a change of protection makes the library discard writes that its hook has accepted
        self._uc.mem_map_ptr(ROM_START, ROM_END - ROM_START, rwx, host + ROM_START)
        self._uc.mem_protect(ROM_START, ROM_END - ROM_START, rx)
        if size > ROM_END:
            self._uc.mem_map_ptr(ROM_END, size - ROM_END, rwx, host + ROM_END)
        read = self._callback(
            ctypes.CFUNCTYPE(
                ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_void_p
            ),
            lambda _uc, offset, width, _user: self.bus.memory_read(size + offset, width),
            0,
        )
        write = self._callback(
            ctypes.CFUNCTYPE(
                None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_uint64, ctypes.c_void_p
            ),
            lambda _uc, offset, width, value, _user: self.bus.memory_write(size + offset, width, value),
            None,
        )
        self._check(
            self._lib.uc_mmio_map(
                self._handle,
                ctypes.c_uint64(size),
                ctypes.c_size_t(_PHYSICAL_END - size),
                read,
                None,
                write,
                None,
            ),
            "map the space above RAM",
        )

    def _callback(self, prototype: Any, function: Callable[..., Any], otherwise: Any) -> Any:
        """A C function that calls ``function``; an exception stops the run and is raised from it."""

        def guarded(*args: Any) -> Any:
            try:
                return function(*args)
            except BaseException as error:
                if self._trouble is None:
                    self._trouble = error
                self.stop_soon()
                self._lib.uc_emu_stop(self._handle)
                return otherwise

        made = prototype(guarded)
        self._callbacks.append(made)
        return made

    def _hook(self, kind: int, callback: Any, begin: int = 1, end: int = 0, *extra: Any) -> None:
        hook = ctypes.c_size_t()
        self._check(
            self._lib.uc_hook_add(
                self._handle,
                ctypes.byref(hook),
                ctypes.c_int(kind),
                ctypes.cast(callback, ctypes.c_void_p),
                None,
                ctypes.c_uint64(begin),
                ctypes.c_uint64(end),
                *extra,
            ),
            "add a hook",
        )

    def _check(self, status: int, what: str) -> None:
        if status != uc_const.UC_ERR_OK:
            raise EngineError(f"the CPU emulator refused to {what}: error {status}")

    def _hook_events(self, places: layout.Places) -> None:
        ptr, u32, i32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint64
        interrupt = self._callback(ctypes.CFUNCTYPE(None, ptr, u32, ptr), self._on_interrupt, None)
        self._hook(uc_const.UC_HOOK_INTR, interrupt)
        invalid = self._callback(ctypes.CFUNCTYPE(ctypes.c_bool, ptr, ptr), self._on_invalid, False)
        self._hook(uc_const.UC_HOOK_INSN_INVALID, invalid)
        port_in = self._callback(ctypes.CFUNCTYPE(u32, ptr, u32, i32, ptr), self._on_in, 0)
        self._hook(uc_const.UC_HOOK_INSN, port_in, 1, 0, ctypes.c_int(x86_const.UC_X86_INS_IN))
        port_out = self._callback(ctypes.CFUNCTYPE(None, ptr, u32, i32, u32, ptr), self._on_out, None)
        self._hook(uc_const.UC_HOOK_INSN, port_out, 1, 0, ctypes.c_int(x86_const.UC_X86_INS_OUT))
        cpuid = self._callback(ctypes.CFUNCTYPE(i32, ptr, ptr), self._on_cpuid, 1)
        self._hook(uc_const.UC_HOOK_INSN, cpuid, 1, 0, ctypes.c_int(x86_const.UC_X86_INS_CPUID))
        rdtsc = self._callback(ctypes.CFUNCTYPE(i32, ptr, ptr), self._on_rdtsc, 1)
        self._hook(uc_const.UC_HOOK_INSN, rdtsc, 1, 0, ctypes.c_int(x86_const.UC_X86_INS_RDTSC))
        rom_write = self._callback(
            ctypes.CFUNCTYPE(ctypes.c_bool, ptr, i32, u64, i32, ctypes.c_int64, ptr),
            self._on_rom_write,
            True,
        )
        # bounded: an unbounded protection hook would send all memory traffic down the slow path
        self._hook(uc_const.UC_HOOK_MEM_WRITE_PROT, rom_write, ROM_START, ROM_END - 1)
        window = self._callback(ctypes.CFUNCTYPE(ctypes.c_bool, ptr, i32), self._on_window, False)
        debug = self._callback(ctypes.CFUNCTYPE(None, ptr), self._on_breakpoint, None)
        for place, function in ((places.on_interrupt, window), (places.on_debug, debug)):
            ctypes.c_void_p.from_address(place).value = ctypes.cast(function, ctypes.c_void_p).value

    # -- events -----------------------------------------------------------------------------

    def _report(self, vector: int, is_int: bool, error: int) -> None:
        self.forget_exception()
        self.bus.exception(vector, is_int, error)
        # a handler whose first instruction can't be fetched begins none, so nothing else would see this
        if self._counter.value >= self._budget.value:
            self._lib.uc_emu_stop(self._handle)

    def _on_interrupt(self, _uc: int, vector: int, _user: int) -> None:
        if vector != Vector.DB and not (vector == Vector.PF and self._faulted_in_fetch()):
            self.settle_flags()
        self._report(vector, self.exception_is_int, self.error_code)

    def _faulted_in_fetch(self) -> bool:
        """The page fault that is being reported hit the instruction's own bytes: it has not begun."""
        distance = (self.cr2 - self.segment(Seg.CS).base - self.eip) & U32
        return not self.error_code & PfError.W and distance < _LONGEST_INSTRUCTION

    def _on_invalid(self, _uc: int, _user: int) -> bool:
        self.settle_flags()
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
        self._lib.uc_emu_stop(self._handle)

    def _on_in(self, _uc: int, port: int, size: int, _user: int) -> int:
        self.settle_flags()
        return self.bus.port_read(port, size)

    def _on_out(self, _uc: int, port: int, size: int, value: int, _user: int) -> None:
        self.settle_flags()
        self.bus.port_write(port, size, value)

    def _on_cpuid(self, _uc: int, _user: int) -> int:
        self.settle_flags()
        self.eax, self.ebx, self.ecx, self.edx = self.bus.cpuid(self.eax)
        return 1

    def _on_rdtsc(self, _uc: int, _user: int) -> int:
        self.settle_flags()
        value = self.bus.tsc()
        self.eax, self.edx = value & U32, value >> 32 & U32
        return 1

    def _on_rom_write(self, _uc: int, _kind: int, address: int, size: int, value: int, _user: int) -> bool:
        self.settle_flags()
        self.bus.memory_write(address, size, value)
        return True

    def _on_window(self, _cpu: int, _request: int) -> bool:
        if self.system_flags & 0x200 and not self.irq_shadow:
            self._interrupt_request.value = 0
            self._window = True
            self._lib.uc_emu_stop(self._handle)
        return False

    # -- running ----------------------------------------------------------------------------

    def run(self, budget: int, *, stop_when_interruptible: bool = False) -> Stop:
        """Execute up to ``budget`` instructions; stop earlier as :class:`~vmi.native.wiring.Stop` says.

        ``stop_when_interruptible`` ends the run as soon as EFLAGS.IF is set outside an STI or
        MOV SS shadow: the interrupt window.
        """
        self._trouble = None
        self._window = False
        self._interrupt_request.value = _INTERRUPT_HARD if stop_when_interruptible else 0
        self._running = True
        status = self._lib.uc_emu_start(
            self._handle,
            ctypes.c_uint64(self.eip),
            ctypes.c_uint64(0),
            ctypes.c_uint64(0),
            ctypes.c_size_t(budget),
        )
        self._running = False
        # the counter runs ahead by one when the budget stopped the run in front of an instruction
        self.instructions += min(self._counter.value, self._budget.value)
        self._counter.value = 0
        if self._trouble is not None:
            raise self._trouble
        if status in _NO_CODE:
            return Stop.UNMAPPED
        if status != uc_const.UC_ERR_OK:
            self.failure = status
            return Stop.FAILED
        if self._window:
            return Stop.WINDOW
        return Stop.HALTED if self._halted.value else Stop.BUDGET

    def now_instructions(self) -> int:
        """Instructions executed so far, the current one included while running."""
        return self.instructions + (self._counter.value if self._running else 0)

    def stop_soon(self) -> None:
        """End the run after the current instruction (exact, unlike the library's own stop)."""
        self._budget.value = self._counter.value

    def stop_within(self, instructions: int) -> None:
        """End the run after so many more instructions, the current one not counted; never extends it."""
        self._budget.value = min(self._budget.value, self._counter.value + instructions)

    @property
    def eflags(self) -> int:
        """EFLAGS, arithmetic flags included."""
        if self._running:
            self._lib.uc_reg_read(self._handle, x86_const.UC_X86_REG_EFLAGS, ctypes.byref(self._flags_buffer))
            return self._flags_buffer.value
        return self.system_flags

    @eflags.setter
    def eflags(self, value: int) -> None:
        if self._running:
            self.load_flags(value)
        else:
            self.system_flags = value | 2

    def set_cr(self, number: int, value: int) -> None:
        """Load CR0, CR2, CR3 or CR4 with all the effects on translation."""
        if number == 2:
            self.cr2 = value
            return
        buffer = ctypes.c_uint64(value & U32 | (Cr0.ET if number == 0 else 0))
        status = self._lib.uc_reg_write(self._handle, _CONTROL[number], ctypes.byref(buffer))
        self._check(status, "set a control register")

    def load_dr(self, number: int, value: int) -> None:
        """Load debug register 0 to 3, 6 or 7 as MOV does: breakpoints that DR7 enables are armed."""
        self._lib.helper_set_dr_x86_64(self._registers, ctypes.c_int(number), ctypes.c_uint64(value & U32))

    def flush_tlb(self) -> None:
        """Drop all cached translations of addresses, global ones too."""
        self._lib.tlb_flush_x86_64(self._state)

    def flush_page(self, linear: int) -> None:
        """Drop the cached translation of one linear address."""
        self._lib.tlb_flush_page_x86_64(self._state, ctypes.c_uint64(linear))

    # -- memory -----------------------------------------------------------------------------

    def write_memory(self, address: int, data: bytes) -> None:
        """Put data into guest-physical memory, ROM too; code that was there is translated anew."""
        self.memory.write(address, data)
        if address < self.memory.size:
            self._lib.tb_invalidate_phys_range_x86_64(
                self._handle, ctypes.c_uint64(address), ctypes.c_uint64(address + len(data))
            )

    def store(self, address: int, data: bytes) -> None:
        """Store into guest-physical memory as the CPU itself does: ROM and nowhere take nothing."""
        end = address + len(data)
        if (end > ROM_START and address < ROM_END) or end > self.memory.size:
            self.bus.memory_write(address, len(data), int.from_bytes(data, "little"))
            if address < ROM_START:
                self.write_memory(address, data[: ROM_START - address])
            if end > ROM_END and address < self.memory.size:
                self.write_memory(max(address, ROM_END), data[max(0, ROM_END - address) :])
            return
        self.write_memory(address, data)

    def put_u32(self, address: int, value: int) -> None:
        """Store a dword, as :meth:`store`."""
        self.store(address, (value & U32).to_bytes(4, "little"))
