# SPDX-License-Identifier: GPL-2.0-only
"""The i386 CPU: what the emulator library does, made into what a processor does.

The emulator executes instructions and reports events; everything that makes a CPU part of a
computer (delivery of exceptions and interrupts, ports, devices) is decided by the owner through
:class:`~vmi.native.wiring.Bus`. The traps of the library are answered here, once:

* it never forgets an exception in flight, so a second page fault would turn into a double fault;
* its ``timeout=`` and a stop from another thread may execute an instruction twice, so time is
  counted in instructions and a run is stopped only between two of them;
* a stop inside a port access takes effect some instructions later, so the instruction budget is
  cut to the current instruction instead, which is exact;
* writes by the host do not reach already translated code, so every host write drops translations;
* after a fault, a port access or a store into the block of code that it is in it computes the arithmetic
  flags in the wrong way;
* a block of code that runs on into a page that can't be fetched faults before it has begun, so it is then
  done one instruction at a time;
* INT 6 is reported as an invalid instruction, not as an INT;
* a debug register's breakpoint in a segment with a base makes it spin for ever, and a call gate without
  a task register makes it end the whole process: the first is reported by a function of our own, the
  second can't happen, since there is always a task register;
* its default CPU has long mode, RDRAND and the host's RDTSCP: this one has none of them;
* IN and OUT are never checked against IOPL and the task's bitmap, and an unknown model-specific register
  reads as zero: both are asked of the owner here, and a refused instruction is undone and reported;
* SYSENTER and SYSCALL do nothing, and address line 20 is always open: the one is done and the other
  refused here, and the gate is the owner's;
* each store to a page that may be executed is slow (see :mod:`vmi.native.interpose`).

These are not: an INS that is refused has cleared its destination; breakpoints on data never fire, and RF
passes all breakpoints up to the end of a block; PUSHF shows VM and RF; bounds and rights of segments are
checked when they are loaded only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native import interpose, layout
from vmi.native.cpuid import MODELS, CpuModel, Word
from vmi.native.engine import (
    I32,
    NO_CODE,
    OK,
    PTR,
    ROM_END,
    ROM_START,
    U64,
    Engine,
    Hook,
    Instruction,
    Register,
)
from vmi.native.engine import U32 as C_U32
from vmi.native.registers import Segment
from vmi.native.translation import Translation
from vmi.native.wiring import Bus, Stop, StoreWatch
from vmi.x86 import TSS_AVAILABLE_32, U32, Cr0, Eflags, GuestFault, Seg, Vector

_INTERRUPT_HARD = 2  # the library's name for "an external interrupt waits"
_ONE_INSTRUCTION = 1  # the library's name for "a block of one instruction"
_A20 = 1 << 20
# the library's order of CPUID registers
_DECODED_BY = {
    Word.LEAF_1_EDX: 0, Word.LEAF_1_ECX: 1, Word.LEAF_7_EBX: 2, Word.EXTENDED_EDX: 6, Word.EXTENDED_ECX: 7,
}  # fmt: skip
_CONTROL = {0: Register.CR0, 3: Register.CR3, 4: Register.CR4}


class Cpu(Translation):
    """One i386 CPU on a :class:`~vmi.memory.PhysicalMemory`; the owner sets the state it starts in.

    :param model: which instructions there are.
    :param rom: firmware that ends at 4 GiB, whole pages.
    :raises EngineError: the emulator library is not the version this was proven on, or fails the proof
        that the first CPU of a process begins with.
    """

    _proven = False

    def __init__(
        self, memory: PhysicalMemory, bus: Bus, *, model: CpuModel = MODELS["qemu32"], rom: bytes = b""
    ) -> None:
        if not Cpu._proven:
            self._prove()
        self.memory = memory
        self.bus = bus
        self.instructions = 0  # executed in completed runs
        self.failure = 0  # the library's error number of a run that ended as Stop.FAILED
        self.a20_mask = U32
        self.watched_pages: set[int] = set()
        self.store_watch: StoreWatch | None = None
        # what SYSENTER does to code selector, ESP and EIP; the owner may exchange it
        self.enter_kernel: Callable[[int, int, int], None] = self._enter_kernel
        self.on_pause: Callable[[], None] = lambda: None
        self.on_control: Callable[[], None] | None = None  # CR0, CR3 or CR4 was loaded
        self._refused: tuple[int, ...] | None = None
        self._refusal = GuestFault(Vector.GP)
        self._trouble: BaseException | None = None
        self._running = False
        self._window = self._dropping = False
        self._alone = (0, 0)
        engine = Engine(memory, rom, self._keep)
        engine.map(  # also makes the library create its CPU
            # looked up each time, like the other requests: somebody may measure them
            lambda *request: self.bus.memory_read(*request),  # noqa: PLW0108
            lambda *request: self.bus.memory_write(*request),  # noqa: PLW0108
        )
        places = layout.locate(engine.structure, engine.function)
        self._halted = ctypes.c_uint32.from_address(places.halted)
        self._next_block = ctypes.c_uint32.from_address(places.next_block)
        self._interrupt_request = ctypes.c_uint32.from_address(places.interrupt_request)
        self._features = places.features
        self.host_cpu = places.cpu
        interpose.adopt(self, engine=engine.structure, cpu=places.cpu, state=places.env)
        super().__init__(engine, places)
        self._flags_buffer = ctypes.c_uint32()
        self._hook_events(places)
        self.decode(model)
        # the library leaves both 0, as no processor does
        self.set_extended(Register.FPU_CONTROL, b"\x7f\x03")
        self.set_extended(Register.FPU_TAGS, b"\xff\xff")
        self.set_extended(Register.MXCSR, b"\x80\x1f\0\0")
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

    # -- set-up -----------------------------------------------------------------------------

    def decode(self, model: CpuModel) -> None:
        """Take the instructions of a model's features and no others, where the library knows the difference.

        Holds for code that is translated from now on.
        """
        for word, number in _DECODED_BY.items():
            ctypes.c_uint64.from_address(self._features + 8 * number).value = model.words[word]

    def host_page(self, page: int) -> int | None:
        """Address in this process of a page of guest RAM by number, None if RAM has no such page."""
        if page * PAGE_SIZE >= self.memory.size:
            return None
        return self.memory.host_address + page * PAGE_SIZE

    def set_writable(self, piece: int, writable: bool) -> None:
        """Let the guest write to a piece of the ROM area (16 KiB), or not; only between runs."""
        self._engine.set_writable(piece, writable)

    def set_a20(self, enabled: bool) -> None:
        """Open or close the gate of address line 20."""
        self.a20_mask = U32 if enabled else U32 & ~_A20
        self._lib.x86_cpu_set_a20_x86_64(self._state, ctypes.c_int(enabled))

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
        engine.hook(Hook.INTERRUPT, engine.callback((None, PTR, C_U32, PTR), self._on_interrupt, None))
        engine.hook(Hook.INVALID, engine.callback((ctypes.c_bool, PTR, PTR), self._on_invalid, False))
        for which, made in (
            (Instruction.IN, engine.callback((C_U32, PTR, C_U32, I32, PTR), self._on_in, 0)),
            (Instruction.OUT, engine.callback((None, PTR, C_U32, I32, C_U32, PTR), self._on_out, None)),
            (Instruction.CPUID, engine.callback((I32, PTR, PTR), self._on_cpuid, 1)),
            (Instruction.RDTSC, engine.callback((I32, PTR, PTR), self._on_rdtsc, 1)),
        ):
            engine.hook_instruction(which, made)
        rom_write = (ctypes.c_bool, PTR, I32, U64, I32, ctypes.c_int64, PTR)
        engine.hook_rom_writes(engine.callback(rom_write, self._on_rom_write, True))
        window = engine.callback((ctypes.c_bool, PTR, I32), self._on_window, False)
        debug = engine.callback((None, PTR), self._on_breakpoint, None)
        for place, made in ((places.on_interrupt, window), (places.on_debug, debug)):
            ctypes.c_void_p.from_address(place).value = ctypes.cast(made, PTR).value

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

    def _on_interrupt(self, _uc: int, vector: int, _user: int) -> None:
        error = self.error_code
        fetch = vector == Vector.PF and self.faulted_in_fetch
        if not fetch and vector != Vector.DB:
            self.settle_flags()
        if vector == Vector.PF and self._refused is None and not self.exception_is_int:
            found = self._ask_pager(error, begun=not fetch)
            if found is None or (fetch and self._runs_on()):
                return
            error = found
        self._report(vector, self.exception_is_int, error)

    def _runs_on(self) -> bool:
        """Have one instruction done alone if it may not be the one that needs the page it runs on into.

        The library fetches a whole block of code before it begins. The instruction that does need the
        page comes back with the same fault.
        """
        here = self._counter.value, self.eip
        ahead = (self.cr2 - self.segment(Seg.CS).base - self.eip) & U32
        if not 0 < ahead < PAGE_SIZE or here == self._alone:
            return False
        self._alone = here
        self._next_block.value = _ONE_INSTRUCTION
        self.forget_exception()
        return True

    def stored_into_code(self) -> None:
        """A store went to a page of code; if it was into its own block, it is done again."""
        if not self._dropping:
            self.settle_flags()

    def watch_pages(self, pages: set[int]) -> None:
        """Have :attr:`store_watch` told of each of the guest's stores into these pages of RAM, by number."""
        added = pages - self.watched_pages
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
        interpose.tell_of_pauses(self._lib, self, self._registers.value or 0)

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
        self._engine.leave()

    def _on_in(self, _uc: int, port: int, size: int, _user: int) -> int:
        self.settle_flags()
        return self.bus.port_read(port, size)

    def _on_out(self, _uc: int, port: int, size: int, value: int, _user: int) -> None:
        self.settle_flags()
        self.bus.port_write(port, size, value)

    def _on_cpuid(self, _uc: int, _user: int) -> int:
        self.settle_flags()
        self.eax, self.ebx, self.ecx, self.edx = self.bus.cpuid(self.eax, self.ecx)
        return 1

    def _on_rdtsc(self, _uc: int, _user: int) -> int:
        self.settle_flags()
        value = self.bus.tsc()
        self.eax, self.edx = value & U32, value >> 32 & U32
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
        self.settle_flags()
        self.bus.memory_write(address, size, value)
        return True

    def _on_window(self, _cpu: int, _request: int) -> bool:
        if self.system_flags & 0x200 and not self.irq_shadow:
            self._interrupt_request.value = 0
            self._window = True
            self._engine.leave()
        return False

    # -- running ----------------------------------------------------------------------------

    def run(self, budget: int, *, stop_when_interruptible: bool = False) -> Stop:
        """Execute up to ``budget`` instructions; stop earlier as :class:`~vmi.native.wiring.Stop` says.

        ``stop_when_interruptible`` ends the run as soon as EFLAGS.IF is set outside an STI or
        MOV SS shadow: the interrupt window.
        """
        self._trouble = self._refused = None
        if self.store_watch is not None:
            self.store_watch.begin_run()
        self._window = False
        self._alone = (0, 0)
        self._interrupt_request.value = _INTERRUPT_HARD if stop_when_interruptible else 0
        self._running = True
        status = self._engine.start(self.eip, budget)
        self._running = False
        # the counter runs ahead by one when the budget stopped the run in front of an instruction
        self.instructions += min(self._counter.value, self._budget.value)
        self._counter.value = 0
        if self._trouble is not None:
            raise self._trouble
        self._change_code()
        if self._take_back():
            return Stop.BUDGET
        if status in NO_CODE:
            return Stop.UNMAPPED
        if status != OK:
            self.failure = status
            return Stop.FAILED
        if self._window:
            return Stop.WINDOW
        return Stop.HALTED if self._halted.value else Stop.BUDGET

    @property
    def running(self) -> bool:
        """A run is in progress: this is asked from inside an instruction."""
        return self._running

    def now_instructions(self) -> int:
        """Instructions executed so far, the current one included while running."""
        return self.instructions + (self._counter.value if self._running else 0)

    def stop_within(self, instructions: int) -> None:
        """End the run after so many more instructions, the current one not counted; never extends it."""
        self._budget.value = min(self._budget.value, self._counter.value + instructions)

    @property
    def eflags(self) -> int:
        """EFLAGS, arithmetic flags included."""
        if self._running:
            flags = self.settled_flags()
            if flags is not None:
                return flags
            self._engine.read_register(Register.EFLAGS, self._flags_buffer)
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
        self._engine.write_register(_CONTROL[number], value & U32 | (Cr0.ET if number == 0 else 0))

    def load_dr(self, number: int, value: int) -> None:
        """Load debug register 0 to 3, 6 or 7 as MOV does: breakpoints that DR7 enables are armed."""
        self._lib.helper_set_dr_x86_64(self._registers, ctypes.c_int(number), ctypes.c_uint64(value & U32))

    def forget_translations(self) -> None:
        """Drop all cached translations of addresses and all translated code; only between runs."""
        self.flush_tlb()
        self._lib.tb_flush_x86_64(self._state)
        self.code_pages.clear()

    def extended(self, register: int, size: int) -> bytes:
        """A register of the FPU or of SSE, ``size`` bytes, little endian; only between runs."""
        buffer = ctypes.create_string_buffer(size)
        self._engine.read_register(register, buffer)
        return buffer.raw

    def set_extended(self, register: int, data: bytes) -> None:
        """Set a register of the FPU or of SSE; only between runs."""
        self._engine.write_bytes(register, data)

    # -- memory -----------------------------------------------------------------------------

    def write_memory(self, address: int, data: bytes) -> None:
        """Put data into guest-physical memory, ROM too; code that was there is translated anew."""
        self.memory.write(address, data)
        first, last = address // PAGE_SIZE, (address + len(data) - 1) // PAGE_SIZE
        if address < self.memory.size and not self.code_pages.isdisjoint(range(first, last + 1)):
            self._dropping = True
            self._engine.drop_translations(address, len(data))
            self._dropping = False

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
