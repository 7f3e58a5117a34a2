# SPDX-License-Identifier: GPL-2.0-only
"""The PC: CPU, memory, devices and time put together, and the loop that runs them.

The machine knows nothing of paravirtualization. It has a bay for option ROMs, and it lets one
:class:`~vmi.native.monitor.Monitor` see each event before the guest does: that is all a hypervisor needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from vmi.errors import BadInput, RomError, UsageError
from vmi.memory import PhysicalMemory
from vmi.native import snapshot, start
from vmi.native.board import Board
from vmi.native.boot import firmware, loader, mptable
from vmi.native.boot.memory_map import RAM_LIMIT
from vmi.native.boot.state import BootState, Module
from vmi.native.bus import State
from vmi.native.checkpoint import Checkpoint
from vmi.native.clock import Clock
from vmi.native.cpu import Cpu
from vmi.native.cpuid import MODELS, CpuModel
from vmi.native.devices import pci_functions
from vmi.native.devices.pci_functions import Segment
from vmi.native.devices.rtc import DEFAULT_EPOCH
from vmi.native.disk import MOST_DISKS, Disk
from vmi.native.ends import End, Outcome, code_address, lost
from vmi.native.engine import ROM_END, ROM_START
from vmi.native.interrupts import Delivery, Event, Origin, TripleFault, int_length
from vmi.native.linear import Linear
from vmi.native.monitor import Monitor
from vmi.native.msr import MsrFile
from vmi.native.privilege import Privilege
from vmi.native.processor import live_registers
from vmi.native.quick import Quick
from vmi.native.rom_area import RomArea
from vmi.native.straight import fault_name
from vmi.native.traffic import Traffic
from vmi.native.turns import MOST_CPUS, Turns
from vmi.native.wiring import Stop
from vmi.x86 import IF_BIT, Seg

__all__ = ["End", "Machine", "Outcome"]

NS_PER_INSTRUCTION = 10  # one instruction is one cycle of a 100 MHz processor
TSC_HZ = 1_000_000_000 // NS_PER_INSTRUCTION
# What entering a handler takes: about what it takes a processor of that time. It also makes time pass for
# a guest that is stuck between a fault and a handler that can't even begin.
EVENT_NS = 1_000
LONGEST_RUN = 2_000_000  # instructions; bounds how long a key press waits for the host
ROM_BAY = range(0xC0000, 0xE0000)
ROM_ALIGN = 2048
DEFAULT_MODEL = MODELS["qemu32"]
MP_TABLE = 0xF5000
_SHADOW = 0x20000  # bytes of the firmware that show below 1 MiB too

# Found quickly: an enumeration's own members are looked up by a function.
_SOFTWARE, _EXCEPTION = Origin.SOFTWARE, Origin.EXCEPTION


class Machine(Traffic):
    """One PC.

    :param ram: bytes of RAM, at most 3.5 GiB.
    :param model: what CPUID says, and which model-specific registers there are.
    :param epoch: the RTC's date at power-on, seconds since 1970.
    :param disks: IDE disks: primary master and slave, secondary master and slave.
    :param bios: firmware, whole 64 KiB; the machine then starts with it, at the reset vector.
    :param video_bios: the VGA's option ROM, for the firmware to find.
    :param cpus: processors, 1 to 8; see :mod:`vmi.native.turns`.
    :raises UsageError: that much RAM has no room below the board's chips, there are too many disks, or not
        so many processors of that model.
    :raises BadInput: the firmware can't be one.
    """

    def __init__(
        self,
        *,
        ram: int = 64 << 20,
        model: CpuModel = DEFAULT_MODEL,
        epoch: int = DEFAULT_EPOCH,
        disks: Sequence[Disk | None] = (),
        bios: bytes | None = None,
        video_bios: bytes | None = None,
        cpus: int = 1,
    ) -> None:
        if ram > RAM_LIMIT:
            raise UsageError(f"RAM must be at most {RAM_LIMIT >> 20} MiB, but it is {ram >> 20} MiB")
        if bios is not None and not firmware.can_be_mapped(bios):
            raise BadInput(
                f"firmware must have a multiple of 64 KiB up to 8 MiB, but it has {len(bios)} bytes"
            )
        if len(disks) > MOST_DISKS:
            raise UsageError(f"there can be up to {MOST_DISKS} disks, but {len(disks)} were given")
        if not 1 <= cpus <= MOST_CPUS:
            raise UsageError(f"there can be 1 to {MOST_CPUS} processors, but {cpus} were asked for")
        if cpus > 1 and not model.has("apic"):
            raise UsageError(f"several processors need APICs, but the model {model.name} has none")
        self.memory = PhysicalMemory(ram)
        self.cpus = cpus
        self.epoch = epoch
        self.model = model
        self.bios, self.video_bios = bios, video_bios
        self.roms: list[bytes] = []  # option ROMs that have been plugged in
        self.disks = tuple(disks)
        self.clock = Clock(self._now)
        self.cpu = Cpu(self.memory, self, model=model, rom=bios or b"", steady_tsc=cpus == 1)
        self.privilege = Privilege(self.cpu)
        self.delivery = Delivery(self.privilege)
        self.monitor: Monitor | None = None
        self.exits: Counter[str] = Counter()
        self.end: End | None = None
        # what the clock of the processor that runs has besides its instructions, and when the run of the CPU
        # in progress ends at the latest, ns
        self._time = self.cpu.straight.time
        self.cpu.straight.set_prices(instruction=NS_PER_INSTRUCTION, event=EVENT_NS)
        Quick(self.cpu, self.delivery.ways, self)
        self._retry: int | None = None
        self.halted = False
        self._rom_top = ROM_BAY.start
        self.rom_area = RomArea(self.cpu)
        self.board = Board(
            self.memory, self.clock, model, self, epoch=epoch, disks=disks, video_bios=video_bios, cpus=cpus
        )
        self.console = self.board.console
        self.interrupts = self.board.interrupts
        cycles = self._cycles if cpus == 1 else lambda: self.clock.now() // NS_PER_INSTRUCTION
        msrs = [
            MsrFile(model, cycles, live_registers(self.cpu, lapic)) for lapic in self.board.lapics or (None,)
        ]
        self.msr = msrs[0]  # those of the processor that runs
        self.turns = None if cpus == 1 else Turns(self, msrs)
        if self.turns is not None:
            self.clock.set_source(self.turns.observe)
        for console in (self.console, self.board.console2):
            console.connect_runner(
                self.run, lambda: self.finish(Outcome.CONSOLE, "the console showed what was waited for")
            )
        self.memory.write(ROM_START, b"\xff" * (ROM_END - ROM_START))
        if bios is not None:
            self._start_firmware(bios)

    def _start_firmware(self, bios: bytes) -> None:
        """The state after power-on: real mode, at the last 16 bytes of the firmware."""
        self.memory.write(ROM_END - min(len(bios), _SHADOW), bios[-_SHADOW:])
        start.at_reset_vector(self.cpu, self.model.signature)

    def __repr__(self) -> str:
        return f"<Machine {self.memory.size >> 20} MiB {self.model.name} at {self._now()} ns>"

    @property
    def linear(self) -> Linear:
        """Linear memory as the guest sees it now."""
        return self.privilege.linear

    # -- set-up -----------------------------------------------------------------------------

    def plug(self, rom: bytes) -> int:
        """Put an option ROM into the bay at the next free 2 KiB boundary; gives its address.

        It shows as a PCI device too, if it says which. A machine that starts with firmware has it there
        alone, and the firmware copies it to where it likes.

        :raises RomError: it does not fit.
        """
        end = self._rom_top + len(rom)
        if end > ROM_BAY.stop and self.bios is None:
            left = ROM_BAY.stop - self._rom_top
            raise RomError(f"the ROM bay has {left} bytes left, the ROM needs {len(rom)}")
        self.board.plug(rom)
        self.roms.append(rom)
        if self.bios is not None:
            return 0
        address = self._rom_top
        self.cpu.write_memory(address, rom)
        self._rom_top = -(-end // ROM_ALIGN) * ROM_ALIGN
        return address

    def load(
        self,
        image: bytes,
        *,
        name: str = "kernel",
        append: str = "",
        protocol: str | None = None,
        modules: Sequence[Module] = (),
        address: int | None = None,
    ) -> BootState:
        """Load a kernel as firmware and boot loader do, and set the CPU to its entry state.

        :param name: what multiboot command lines begin with, as QEMU's do.
        :param append: the kernel's options.
        :param protocol: how it wants to be booted, None to look at the image.
        :param modules: boot modules; Linux takes one, its initrd.
        :param address: where a flat image goes.
        :raises BadInput: the kernel can't be loaded.
        :raises UsageError: the protocol is unknown, or can't do what is asked for.
        """
        # first, as it writes to the first page too, which a kernel may own
        firmware.settle(self.board.ports, self.memory)
        self.board.vga.set_text_mode()
        pci_functions.settle(self.board.pci)
        self.msr.settle()
        if self.board.lapic is not None:
            self.board.lapic.virtual_wire()
            signature, _, _, features = self.cpuid(1, 0)
            for at, data in mptable.build(MP_TABLE, signature=signature, features=features, cpus=self.cpus):
                self.memory.write(at, data)
        if self.turns is not None:
            self.turns.settle()
        state = loader.load(
            image,
            self.memory,
            name=name,
            append=append,
            protocol=protocol,
            modules=modules,
            address=address,
        )
        start.at_kernel(self.cpu, state)
        return state

    # -- time -------------------------------------------------------------------------------

    def _now(self) -> int:
        return self.cpu.now_instructions() * NS_PER_INSTRUCTION + self._time[0]

    def _cycles(self) -> int:
        # the same in cycles, for RDTSC, which some guests execute millions of times
        return self.cpu.now_instructions() + self._time[0] // NS_PER_INSTRUCTION

    def own_time(self) -> int:
        """What the clock of the processor that runs shows, ns."""
        return self._now()

    def set_own_time(self, ns: int) -> None:
        """Set the clock of the processor that runs; only between runs."""
        self._time[0] = ns - self.cpu.now_instructions() * NS_PER_INSTRUCTION

    @property
    def instructions(self) -> int:
        """Guest instructions executed so far, by all processors together."""
        return self.cpu.now_instructions()

    # -- snapshots --------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the whole machine to a folder, see :func:`vmi.native.snapshot.save`."""
        snapshot.save(self, folder)

    def checkpoint(self) -> Checkpoint:
        """Keep the whole machine in memory, to go back to as often as you like, see :class:`Checkpoint`."""
        return Checkpoint(self)

    @classmethod
    def restore(cls, folder: Path, disks: Sequence[Disk | None] | None = None) -> Machine:
        """The machine that a folder holds, see :func:`vmi.native.snapshot.restore`."""
        return snapshot.restore(cls, folder, disks)

    def progress(self) -> State:
        """What belongs to no part of the machine: time, and how far it has come."""
        return {
            "instructions": self.cpu.instructions,
            "idle_ns": self._time[0],
            "halted": self.halted,
            "rom_top": self._rom_top,
            "exits": dict(self.exits),
        }

    def set_progress(self, state: State) -> None:
        """Take over what :meth:`progress` gave."""
        self.cpu.instructions, self._time[0] = state["instructions"], state["idle_ns"]
        self.halted, self._rom_top = state["halted"], state["rom_top"]
        self.exits.clear()
        self.exits.update(state["exits"])

    # -- the CPU's bus ----------------------------------------------------------------------

    def exception(self, vector: int, is_int: bool, error: int) -> None:
        """See :class:`vmi.native.wiring.Bus`."""
        if self.end is not None:
            return  # the instruction behind the last one can't be fetched: no event of this run
        monitor = self.monitor
        if is_int:
            if monitor is not None and monitor.call_out(vector):
                self.spend(EVENT_NS)
                return
            event = Event(vector, _SOFTWARE, 0, 0, int_length(vector, self.cpu, self.linear))
        else:
            event = Event(vector, _EXCEPTION, error, self.cpu.cr2)
        if monitor is None or not monitor.event(event):
            if is_int:
                self.exits["software interrupt"] += 1
            else:
                self.count_fault(vector)
            if self.log is not None:
                self.log.event(event)
            self.deliver(event)
        self.spend(EVENT_NS)

    def count_fault(self, vector: int) -> None:
        """Count an exception that goes to the guest."""
        self.exits[fault_name(vector)] += 1

    def meet_deadline(self, ns: int = 0) -> None:
        """See :class:`vmi.native.traffic.Traffic`."""
        deadline = self.clock.next_deadline()
        if deadline is not None and deadline < self._time[1]:
            self._time[1] = deadline
        elif not ns:
            return
        self.spend(ns)

    def spend(self, ns: int) -> None:
        """Let time pass without instructions; the run in progress ends as planned, or at once."""
        self._time[0] = idle = self._time[0] + ns
        left = self._time[1] - idle - self.cpu.now_instructions() * NS_PER_INSTRUCTION
        self.cpu.stop_within(-(-left // NS_PER_INSTRUCTION) if left > 0 else 0)

    # -- ends -------------------------------------------------------------------------------

    def finish(self, outcome: Outcome, reason: str, value: int = 0) -> None:
        """End the run after the current instruction; the first reason given counts."""
        if self.end is None:
            self.end = End(outcome, reason, value)
            if self.log is not None:
                self.log.cpu(reason)
        self.cpu.stop_soon()

    def request_reset(self, source: str) -> None:
        """The guest pulled the reset line."""
        self.finish(Outcome.RESET, f"the guest reset the machine through {source}")

    def debug_exit(self, value: int) -> None:
        """The guest ended itself through the debug-exit port."""
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

    def interrupt_changed(self) -> None:
        """An interrupt may be waiting."""
        # also called by devices between runs, when it has no effect
        self.cpu.stop_soon()

    def rom_area_changed(self, segments: tuple[Segment, ...]) -> None:
        """The chipset was told which pieces of the ROM area are RAM; reads come from there in any case."""
        self.rom_area.change(segments)

    def load_memory(self, address: int, size: int) -> bytes:
        """Read guest-physical memory for a device."""
        return self.memory.read(address, size)

    def store_memory(self, address: int, data: bytes) -> None:
        """Write guest-physical memory for a device: RAM only."""
        if address < self.memory.size:
            self.cpu.store(address, data[: self.memory.size - address])

    def a20_changed(self, enabled: bool) -> None:
        """The gate of address line 20 was opened or closed."""
        self.cpu.set_a20(enabled)

    def halt(self) -> None:
        """The guest waits for an interrupt (the CPU need not be at HLT)."""
        self.halted = True
        self.cpu.stop_soon()

    def run(
        self,
        timeout_ns: int | None = None,
        on_slice: Callable[[], None] | None = None,
        on_idle: Callable[[int | None], int | None] | None = None,
    ) -> End:
        """Run until the guest ends, waits for ever, or ``timeout_ns`` of virtual time have passed.

        :param on_slice: called now and then between instructions, for progress and key presses.
        :param on_idle: called when the guest waits for an interrupt, with the ns until the next event
            (None: there is none); gives how many of them have passed, or None if nothing ever will come.
        """
        limit = None if timeout_ns is None else self._now() + timeout_ns
        self.end = None
        while True:
            if self.turns is not None:
                self.turns.advance()
            self.clock.advance_to(self._now())
            window = self._offer_interrupt()
            if (end := self._ended()) is not None:
                return end
            now, deadline = self._now(), self.clock.next_deadline()
            if limit is not None and (deadline is None or limit < deadline):
                deadline = limit
            if limit is not None and now >= limit:
                self.finish(Outcome.TIMEOUT, f"the guest was still running after {_seconds(timeout_ns)} s")
                continue
            if self.halted:
                self._sleep(deadline, on_idle)
                continue
            budget = LONGEST_RUN
            if self.turns is not None:
                budget = self.turns.budget(budget, NS_PER_INSTRUCTION)
            if deadline is not None:
                budget = min(budget, max(1, -(-(deadline - now) // NS_PER_INSTRUCTION)))
            if self._retry:
                budget = min(budget, self._retry)
            self.rom_area.settle()
            self._time[1] = now + budget * NS_PER_INSTRUCTION
            straight = self.cpu.straight
            straight.allow(self.nobody_looks())
            try:
                stop = self.cpu.run(budget, stop_when_interruptible=window)
            finally:
                straight.collect(self.exits)
            self._act_on(stop)
            if on_slice is not None:
                on_slice()

    def _ended(self) -> End | None:
        return self.end

    def _offer_interrupt(self) -> bool:
        """Deliver a waiting interrupt if the guest takes it; True if the CPU must watch for when it will."""
        waits = self.interrupts.pending()
        monitor = self.monitor
        if monitor is not None:
            if waits and monitor.accepts_interrupts():
                self.take_interrupt()
                waits = self.interrupts.pending()
            monitor.interrupt_waits(waits)
            self._retry = monitor.retry_after() if waits else None
            return self._retry == 0
        if waits and self.cpu.system_flags & IF_BIT and not self.cpu.irq_shadow:
            self.take_interrupt()
            waits = self.interrupts.pending()
        return waits

    def accepts_interrupts(self) -> bool:
        """The processor that runs would take an interrupt, at the latest when it halts."""
        return self.monitor.accepts_interrupts() if self.monitor else bool(self.cpu.system_flags & IF_BIT)

    def take_interrupt(self) -> None:
        """Deliver the interrupt that waits to the guest."""
        self.halted = False
        self.exits["interrupt"] += 1
        event = Event(self.interrupts.acknowledge(), Origin.EXTERNAL)
        if self.log is not None:
            self.log.event(event)
        self.deliver(event)
        self.spend(EVENT_NS)

    def _act_on(self, stop: Stop) -> None:
        if stop is Stop.HALTED:
            self.exits["halt"] += 1
            self.halted = True
        elif stop is Stop.UNMAPPED:
            self.finish(Outcome.CRASHED, lost(self.linear, self.memory.size, code_address(self.cpu)))
        elif stop is Stop.FAILED:
            self.finish(
                Outcome.CRASHED,
                f"the guest's instruction at {code_address(self.cpu):#x} is none that the CPU emulator can "
                f"do (its error {self.cpu.failure})",
            )

    def _sleep(self, deadline: int | None, on_idle: Callable[[int | None], int | None] | None) -> None:
        """Let time pass to the next event while the guest waits for an interrupt."""
        accepts = self.accepts_interrupts()
        if self.turns is not None:
            if self.turns.someone_ready():
                return  # an event that was due has woken another processor
            accepts = self.turns.someone_accepts()
        ns = None if deadline is None else max(0, deadline - self._now())
        if accepts and on_idle is not None:
            ns = on_idle(ns)
        if ns is None or not accepts:
            self.finish(Outcome.HALTED, f"the guest halted for ever at {self.cpu.eip:#x}")
            return
        self._time[0] += ns


def _seconds(ns: int | None) -> str:
    return f"{(ns or 0) / 1e9:g}"
