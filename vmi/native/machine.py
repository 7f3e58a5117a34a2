# SPDX-License-Identifier: GPL-2.0-only
"""The PC: CPU, memory, devices and time put together, and the loop that runs them.

The machine knows nothing of paravirtualization. It has a bay for option ROMs, and it lets one
:class:`~vmi.native.monitor.Monitor` see each event before the guest does: that is all a hypervisor needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vmi.errors import RomError
from vmi.memory import PhysicalMemory
from vmi.native.boot import firmware, multiboot
from vmi.native.bus import PortBus
from vmi.native.clock import Clock
from vmi.native.console import Console
from vmi.native.cpu import Cpu
from vmi.native.cpuid import I686, CpuModel
from vmi.native.devices.debug_exit import DebugExit
from vmi.native.devices.i8042 import I8042
from vmi.native.devices.misc import A20Gate, DebugConsole, PostPort, ResetControl, SystemControlA
from vmi.native.devices.pic import PicPair
from vmi.native.devices.pit import Pit
from vmi.native.devices.rtc import DEFAULT_EPOCH, Rtc
from vmi.native.devices.uart import Uart
from vmi.native.interrupts import Delivery, Event, Origin, TripleFault
from vmi.native.monitor import Monitor
from vmi.native.privilege import Privilege
from vmi.native.registers import Segment, TableRegister
from vmi.native.wiring import Stop
from vmi.x86 import IF_BIT, U32, Cr0, GuestFault, Seg, Vector

NS_PER_INSTRUCTION = 10  # one instruction is one cycle of a 100 MHz processor
TSC_HZ = 1_000_000_000 // NS_PER_INSTRUCTION
# What entering a handler takes: about what it takes a processor of that time. It also makes time pass for
# a guest that is stuck between a fault and a handler that can't even begin.
EVENT_NS = 1_000
LONGEST_RUN = 2_000_000  # instructions; bounds how long a key press waits for the host
ROM_BAY = range(0xC0000, 0xE0000)
ROM_ALIGN = 2048

_CODE_FLAGS, _DATA_FLAGS = 0xCF9B00, 0xCF9300
_FAULT_NAMES = {int(vector): f"#{vector.name}" for vector in Vector}
_ONE_BYTE = {int(Vector.BP): 0xCC, int(Vector.OF): 0xCE}  # INT3 and INTO


class Outcome(StrEnum):
    """How a run ended."""

    DEBUG_EXIT = "debug_exit"
    RESET = "reset"
    TRIPLE_FAULT = "triple_fault"
    HALTED = "halted"
    SHUTDOWN = "shutdown"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    CALL_NOT_SERVED = "call_not_served"
    CONSOLE = "console"  # the console showed what was waited for


@dataclass(frozen=True)
class End:
    """The end of a run: how, one sentence why, and the debug-exit value if there is one."""

    outcome: Outcome
    reason: str
    value: int = 0


class Machine:
    """One PC.

    :param ram: bytes of RAM.
    :param model: what CPUID says.
    :param epoch: the RTC's date at power-on, seconds since 1970.
    """

    def __init__(self, *, ram: int = 64 << 20, model: CpuModel = I686, epoch: int = DEFAULT_EPOCH) -> None:
        self.memory = PhysicalMemory(ram)
        self.epoch = epoch
        self.model = model
        self.clock = Clock(self._now)
        self.cpu = Cpu(self.memory, self)
        self.privilege = Privilege(self.cpu)
        self.delivery = Delivery(self.privilege)
        self.linear = self.privilege.linear
        self.monitor: Monitor | None = None
        self.exits: Counter[str] = Counter()
        self.console = Console()
        self.end: End | None = None
        self._idle_ns = 0
        self._retry: int | None = None
        self._run_ends = 0  # when the run of the CPU in progress ends at the latest, ns
        self.halted = False
        self._rom_top = ROM_BAY.start
        self.pic = PicPair(self._stop_for_interrupt)
        self.bus = PortBus()
        self._attach_devices()
        self.memory.write(0xC0000, b"\xff" * 0x40000)

    def __repr__(self) -> str:
        return f"<Machine {self.memory.size >> 20} MiB {self.model.name} at {self._now()} ns>"

    def _attach_devices(self) -> None:
        clock, line = self.clock, self.pic.line
        a20 = A20Gate()
        com1 = Uart("com1", 0x3F8, line(4), clock, self.console.transmit)
        self.console.connect(com1.receive)
        self.bus.attach(
            self.pic,
            Pit(line(0), clock),
            Rtc(line(8), clock, self.memory.size, self.epoch),
            com1,
            I8042(line(1), a20, lambda: self.request_reset("the keyboard controller")),
            SystemControlA(a20, lambda: self.request_reset("port 92h")),
            ResetControl(lambda: self.request_reset("port CF9h")),
            PostPort(),
            DebugConsole(self.console.transmit),
            DebugExit(self._debug_exit),
        )

    # -- set-up -----------------------------------------------------------------------------

    def plug(self, rom: bytes) -> int:
        """Put an option ROM into the bay at the next free 2 KiB boundary; gives its address.

        :raises RomError: it does not fit.
        """
        end = self._rom_top + len(rom)
        if end > ROM_BAY.stop:
            left = ROM_BAY.stop - self._rom_top
            raise RomError(f"the ROM bay has {left} bytes left, the ROM needs {len(rom)}")
        address = self._rom_top
        self.cpu.write_memory(address, rom)
        self._rom_top = -(-end // ROM_ALIGN) * ROM_ALIGN
        return address

    def load_multiboot(
        self, image: bytes, command_line: str = "", modules: Sequence[multiboot.Module] = ()
    ) -> multiboot.BootState:
        """Load a kernel by the multiboot protocol, version 1, and set the CPU to its entry state.

        :param command_line: handed over as it is; QEMU's begins with the kernel's name and a space.
        :raises BadInput: the kernel can't be loaded.
        """
        firmware.settle(self.bus, self.memory)
        state = multiboot.load(image, self.memory, command_line=command_line, modules=modules)
        cpu = self.cpu
        cpu.set_cr(0, Cr0.PE | Cr0.ET)
        # flat segments, as the protocol demands; the table they came from need not exist
        cpu.set_segment(Seg.CS, Segment(0x08, 0, 0xFFFFFFFF, _CODE_FLAGS))
        for seg in (Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS):
            cpu.set_segment(seg, Segment(0x10, 0, 0xFFFFFFFF, _DATA_FLAGS))
        cpu.gdt = TableRegister(0, 0)
        cpu.idt = TableRegister(0, 0)
        cpu.eflags = 2
        cpu.eip, cpu.eax, cpu.ebx, cpu.esp = state.eip, state.eax, state.ebx, state.esp
        return state

    # -- time -------------------------------------------------------------------------------

    def _now(self) -> int:
        return self.cpu.now_instructions() * NS_PER_INSTRUCTION + self._idle_ns

    @property
    def instructions(self) -> int:
        """Guest instructions executed so far."""
        return self.cpu.now_instructions()

    # -- the CPU's bus ----------------------------------------------------------------------

    def exception(self, vector: int, is_int: bool, error: int) -> None:
        """See :class:`vmi.native.wiring.Bus`."""
        if self.end is not None:
            return  # the instruction behind the last one can't be fetched: no event of this run
        if is_int:
            event = Event(vector, Origin.SOFTWARE, length=self._int_length(vector))
        else:
            event = Event(vector, Origin.EXCEPTION, error, self.cpu.cr2)
        if self.monitor is None or not self.monitor.event(event):
            if is_int:
                self.exits["software interrupt"] += 1
            else:
                self.count_fault(vector)
            self.deliver(event)
        self._spend(EVENT_NS)

    def count_fault(self, vector: int) -> None:
        """Count an exception that goes to the guest."""
        self.exits[_FAULT_NAMES.get(vector) or f"exception {vector}"] += 1

    def _int_length(self, vector: int) -> int:
        """Bytes of the INT instruction that ends at EIP: INT3 and INTO have one, INT n has two."""
        opcode = _ONE_BYTE.get(vector)
        if opcode is None:
            return 2
        try:
            last = self.linear.physical(self.cpu.segment(Seg.CS).base + self.cpu.eip - 1)
        except GuestFault:
            return 1  # its page is gone from the tables, but not from the CPU's own memory of them
        return 1 if self.memory.read(last, 1)[0] == opcode else 2

    def port_read(self, port: int, size: int) -> int:
        """See :class:`vmi.native.wiring.Bus`."""
        self.exits["port read"] += 1
        value = self.bus.read(port, size)
        self._meet_deadline()
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        """See :class:`vmi.native.wiring.Bus`."""
        self.exits["port write"] += 1
        self.bus.write(port, size, value)
        self._meet_deadline()

    def _meet_deadline(self) -> None:
        """A device may have asked for an earlier event than the run is planned for."""
        deadline = self.clock.next_deadline()
        if deadline is not None and deadline < self._run_ends:
            self._run_ends = deadline
            self._spend(0)

    def _spend(self, ns: int) -> None:
        """Let time pass without instructions; the run in progress ends as planned, or at once."""
        self._idle_ns += ns
        self.cpu.stop_within(max(0, -(-(self._run_ends - self._now()) // NS_PER_INSTRUCTION)))

    def memory_read(self, address: int, size: int) -> int:
        """See :class:`vmi.native.wiring.Bus`: nothing is mapped above RAM."""
        self.exits["unmapped read"] += 1
        return (1 << 8 * size) - 1

    def memory_write(self, address: int, size: int, value: int) -> None:
        """See :class:`vmi.native.wiring.Bus`: writes to ROM or to nowhere are lost."""
        if self.monitor is not None and self.monitor.memory_write(address, size, value):
            return
        self.exits["unmapped write" if address >= self.memory.size else "ROM write"] += 1

    def cpuid(self, leaf: int) -> tuple[int, int, int, int]:
        """See :class:`vmi.native.wiring.Bus`."""
        return self.model.cpuid(leaf)

    def tsc(self) -> int:
        """See :class:`vmi.native.wiring.Bus`."""
        return self._now() // NS_PER_INSTRUCTION

    # -- ends -------------------------------------------------------------------------------

    def finish(self, outcome: Outcome, reason: str, value: int = 0) -> None:
        """End the run after the current instruction; the first reason given counts."""
        if self.end is None:
            self.end = End(outcome, reason, value)
        self.cpu.stop_soon()

    def request_reset(self, source: str) -> None:
        """The guest pulled the reset line."""
        self.finish(Outcome.RESET, f"the guest reset the machine through {source}")

    def _debug_exit(self, value: int) -> None:
        self.finish(Outcome.DEBUG_EXIT, f"the guest ended itself with debug-exit value {value:#x}", value)

    def deliver(self, event: Event) -> None:
        """Deliver an event to the guest."""
        if self.monitor is not None:
            self.monitor.deliver(event)
            return
        try:
            self.delivery.deliver(event)
        except TripleFault:
            self.triple_fault()

    def triple_fault(self) -> None:
        """A fault could not be delivered, nor could the double fault."""
        where = f"{self.cpu.segment(Seg.CS).selector:#x}:{self.cpu.eip:#x}"
        self.finish(Outcome.TRIPLE_FAULT, f"the guest triple-faulted at {where}")

    # -- the loop ---------------------------------------------------------------------------

    def _stop_for_interrupt(self) -> None:
        # also called by devices between runs, when it has no effect
        self.cpu.stop_soon()

    def halt(self) -> None:
        """The guest waits for an interrupt (the CPU need not be at HLT)."""
        self.halted = True
        self.cpu.stop_soon()

    def run(self, timeout_ns: int | None = None, on_slice: Callable[[], None] | None = None) -> End:
        """Run until the guest ends, waits for ever, or ``timeout_ns`` of virtual time have passed.

        ``on_slice`` is called now and then between instructions, for progress and key presses.
        """
        limit = None if timeout_ns is None else self._now() + timeout_ns
        self.end = None
        while True:
            self.clock.advance_to(self._now())
            window = self._offer_interrupt()
            if (end := self._ended()) is not None:
                return end
            deadline = self.clock.next_deadline()
            if limit is not None and (deadline is None or limit < deadline):
                deadline = limit
            if limit is not None and self._now() >= limit:
                self.finish(Outcome.TIMEOUT, f"the guest was still running after {_seconds(timeout_ns)} s")
                continue
            if self.halted:
                self._sleep(deadline)
                continue
            budget = LONGEST_RUN
            if deadline is not None:
                budget = min(budget, max(1, -(-(deadline - self._now()) // NS_PER_INSTRUCTION)))
            if self._retry:
                budget = min(budget, self._retry)
            self._run_ends = self._now() + budget * NS_PER_INSTRUCTION
            self._act_on(self.cpu.run(budget, stop_when_interruptible=window))
            if on_slice is not None:
                on_slice()

    def _ended(self) -> End | None:
        return self.end

    def _offer_interrupt(self) -> bool:
        """Deliver a waiting interrupt if the guest takes it; True if the CPU must watch for when it will."""
        waits = self.pic.pending()
        monitor = self.monitor
        if monitor is not None:
            if waits and monitor.accepts_interrupts():
                self.take_interrupt()
                waits = self.pic.pending()
            monitor.interrupt_waits(waits)
            self._retry = monitor.retry_after() if waits else None
            return self._retry == 0
        if waits and self.cpu.system_flags & IF_BIT and not self.cpu.irq_shadow:
            self.take_interrupt()
            waits = self.pic.pending()
        return waits

    def take_interrupt(self) -> None:
        """Deliver the interrupt that waits to the guest."""
        self.halted = False
        self.exits["interrupt"] += 1
        self.deliver(Event(self.pic.acknowledge(), Origin.EXTERNAL))
        self._spend(EVENT_NS)

    def _act_on(self, stop: Stop) -> None:
        if stop is Stop.HALTED:
            self.exits["halt"] += 1
            self.halted = True
        elif stop is Stop.UNMAPPED:
            self.finish(Outcome.CRASHED, self._lost())
        elif stop is Stop.FAILED:
            self.finish(
                Outcome.CRASHED,
                f"the guest's instruction at {self._code_address():#x} is none that the CPU emulator can do "
                f"(its error {self.cpu.failure})",
            )

    def _lost(self) -> str:
        """Why the next instruction could not be fetched."""
        address = self._code_address()
        try:
            begins = self.linear.physical(address) < self.memory.size
        except GuestFault:
            begins = False
        if begins:
            return f"the guest's instruction at {address:#x} goes on where no memory is"
        return f"the guest jumped to {address:#x}, where no memory is"

    def _code_address(self) -> int:
        """Linear address of the next instruction."""
        return (self.cpu.segment(Seg.CS).base + self.cpu.eip) & U32

    def _sleep(self, deadline: int | None) -> None:
        """Let time pass to the next event while the guest waits for an interrupt."""
        accepts = self.monitor.accepts_interrupts() if self.monitor else bool(self.cpu.system_flags & IF_BIT)
        if deadline is None or not accepts:
            self.finish(Outcome.HALTED, f"the guest halted for ever at {self.cpu.eip:#x}")
            return
        self._idle_ns += max(0, deadline - self._now())


def _seconds(ns: int | None) -> str:
    return f"{(ns or 0) / 1e9:g}"
