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

# what `signal` is made of: its own functions make enumerations, for most of the time of a short run
from _signal import getsignal, signal  # type: ignore[import-not-found]
from signal import SIGINT, default_int_handler
from threading import current_thread, main_thread

from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native import interpose, layout
from vmi.native.cpu_events import ONE_INSTRUCTION, Events
from vmi.native.cpuid import MODELS, CpuModel, Word
from vmi.native.engine import (
    NO_CODE,
    OK,
    ROM_END,
    ROM_PIECE,
    ROM_START,
    Engine,
    Register,
)
from vmi.native.registers import Segment
from vmi.native.wiring import Bus, Stop
from vmi.x86 import TSS_AVAILABLE_32, U32, Cr0

_INTERRUPT_HARD = 2  # the library's name for "an external interrupt waits"
_A20 = 1 << 20
# the library's order of CPUID registers
_DECODED_BY = {
    Word.LEAF_1_EDX: 0, Word.LEAF_1_ECX: 1, Word.LEAF_7_EBX: 2, Word.EXTENDED_EDX: 6, Word.EXTENDED_ECX: 7,
}  # fmt: skip
_CONTROL = {0: Register.CR0, 4: Register.CR4}


class Cpu(Events):
    """One i386 CPU on a :class:`~vmi.memory.PhysicalMemory`; the owner sets the state it starts in.

    :param model: which instructions there are.
    :param rom: firmware that ends at 4 GiB, whole pages.
    :param steady_tsc: the time stamp counter counts instructions, and requests to the bus alone may change
        it besides; then it need not be asked for again and again.
    :raises EngineError: the emulator library is not the version this was proven on, or fails the proof
        that the first CPU of a process begins with.
    """

    _proven = False

    def __init__(
        self,
        memory: PhysicalMemory,
        bus: Bus,
        *,
        model: CpuModel = MODELS["qemu32"],
        rom: bytes = b"",
        steady_tsc: bool = False,
    ) -> None:
        if not Cpu._proven:
            self._prove()
        self.memory = memory
        self.bus = bus
        self.instructions = 0  # executed in completed runs
        self.failure = 0  # the library's error number of a run that ended as Stop.FAILED
        self.a20_mask = U32
        engine = Engine(memory, rom, self._keep)
        engine.map(self._device_read, self._device_write)  # also makes the library create its CPU
        places = layout.locate(engine.structure, engine.function)
        self._halted = ctypes.c_uint32.from_address(places.halted)
        self._features = places.features
        self.host_cpu = places.cpu
        if engine.served is None:
            interpose.adopt(self, engine=engine.structure, cpu=places.cpu, state=places.env)
        else:
            operations = layout.operations(engine.structure)
            engine.served.adopt(cpu=places.cpu, state=places.env, operations=operations)
            engine.served.core.tsc_steady = int(steady_tsc)
        super().__init__(engine, places)
        if engine.served is not None:
            engine.served.send_straight(
                self.straight,
                flush_page=engine.function("tlb_flush_page_x86_64"),
                told_cr2=ctypes.addressof(self._told),
            )
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
        from vmi.native import fitness  # it makes CPUs itself

        Cpu._proven = True
        try:
            fitness.prove()
        except BaseException:
            Cpu._proven = False
            raise

    # -- set-up -----------------------------------------------------------------------------

    def decode(self, model: CpuModel) -> None:
        """Take the instructions of a model's features and no others, where the library knows the difference.

        Holds for code that is translated from now on.
        """
        self.offered = model.words[Word.LEAF_1_EDX]
        for word, number in _DECODED_BY.items():
            ctypes.c_uint64.from_address(self._features + 8 * number).value = model.words[word]

    def set_writable(self, start: int, writable: bool, size: int = ROM_PIECE) -> None:
        """Let the guest write to whole pages of the ROM area, or not; only between runs."""
        self._engine.set_writable(start, writable, size)

    def set_a20(self, enabled: bool) -> None:
        """Open or close the gate of address line 20."""
        self.a20_mask = U32 if enabled else U32 & ~_A20
        self.straight.parameters.open_a20 = enabled
        self.straight.changed()
        self._lib.x86_cpu_set_a20_x86_64(self._state, ctypes.c_int(enabled))

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
        # A Ctrl-C in the middle of an instruction would be lost where C calls Python, or what C asks for.
        waits = getsignal(SIGINT) is default_int_handler and current_thread() is main_thread()
        if waits:
            signal(SIGINT, self._on_ctrl_c)
        try:
            status = self._execute(budget)
        finally:
            if waits:
                signal(SIGINT, default_int_handler)
        self._raise_trouble()
        self._change_code()
        if self._take_back():
            return Stop.BUDGET
        if status in NO_CODE:
            return Stop.UNMAPPED
        if status != OK:
            self.failure = status
            return Stop.FAILED
        if self._window or (self._core is not None and self._core.window):
            return Stop.WINDOW
        return Stop.HALTED if self._halted.value else Stop.BUDGET

    def _execute(self, budget: int) -> int:
        while True:
            self.straight.before[0] = self.instructions
            self._accesses.clear()
            self._again.clear()
            self._running = True
            status = self._engine.start(self.eip, budget)
            self._running = False
            # the counter runs ahead by one when the budget stopped the run in front of an instruction
            self.instructions += min(self._counter.value, self._budget.value)
            budget = self._budget.value - self._counter.value
            self._counter.value = 0
            if status not in NO_CODE or budget <= 0 or not self._reaches():
                return status

    def _on_ctrl_c(self, _number: int, _frame: object) -> None:
        """The run is to end after the current instruction, and to raise KeyboardInterrupt then."""
        if self._trouble is None:
            self._trouble = KeyboardInterrupt()
        self.stop_soon()

    def _raise_trouble(self) -> None:
        """Raise what a callback has raised."""
        if self._trouble is not None:
            raise self._trouble

    def _reaches(self) -> bool:
        """Have one instruction done alone if it may not be the one that lies where no memory is.

        As with :meth:`_runs_on`, the library fetches a whole block of code before it begins.
        """
        here = self.instructions, self.eip
        if here == self._alone or self._trouble is not None:
            return False
        self._alone = here
        self._next_block.value = ONE_INSTRUCTION
        return True

    @property
    def running(self) -> bool:
        """A run is in progress: this is asked from inside an instruction."""
        return self._running

    def now_instructions(self) -> int:
        """Instructions executed so far, the current one included while running."""
        return self.instructions + (self._counter.value if self._running else 0)

    def stop_within(self, instructions: int) -> None:
        """End the run after so many more instructions, the current one not counted; never extends it."""
        end = self._counter.value + instructions
        if end < self._budget.value:
            self._budget.value = end

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
        if number == 3:  # the library's way of setting a register takes three times as long
            self.load_root(value & U32)
            self.control_loaded()
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
        end = min(address + len(data), self.memory.size)
        if self.code_among((range(address // PAGE_SIZE, -(-end // PAGE_SIZE)),)):
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
