# SPDX-License-Identifier: GPL-2.0-only
"""The PC's board: all devices, and how they are wired to each other.

What a device needs from the processor or from whoever runs the machine goes through :class:`Wires`, so
that a device knows neither. Everything a guest can find on the board is in this file, in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vmi.memory import PhysicalMemory
from vmi.native.bus import PortBus, State
from vmi.native.clock import Clock
from vmi.native.console import Console
from vmi.native.cpuid import CpuModel
from vmi.native.devices.apic_bus import ApicBus
from vmi.native.devices.debug_exit import DebugExit
from vmi.native.devices.i8042 import I8042
from vmi.native.devices.ide import primary, secondary
from vmi.native.devices.ide_dma import BusMaster
from vmi.native.devices.ioapic import IO_APIC_SPAN, IoApic
from vmi.native.devices.lapic import LAPIC_SPAN, Lapic
from vmi.native.devices.misc import A20Gate, DebugConsole, PostPort, ResetControl, SystemControlA
from vmi.native.devices.pci import Identity, PciHost
from vmi.native.devices.pci_functions import (
    DISPLAY,
    HostBridge,
    RomFunction,
    Segment,
    ide_controller,
    isa_bridge,
)
from vmi.native.devices.pic import PicPair
from vmi.native.devices.pit import Pit
from vmi.native.devices.rtc import Rtc
from vmi.native.devices.uart import Uart
from vmi.native.devices.vga import Vga
from vmi.native.disk import MOST_DISKS, Disk
from vmi.native.intc import InterruptLogic
from vmi.native.memory_bus import MemoryBus
from vmi.native.stamped import Stamped

_DATA_POINTER = 0x18  # in an option ROM: the offset of its PCI data structure


class Wires(Protocol):
    """What leads from the board to the processor and to the machine's owner."""

    def interrupt_changed(self) -> None:
        """An interrupt may be waiting now."""

    def a20_changed(self, enabled: bool) -> None:
        """The gate of address line 20 was opened or closed."""

    def request_reset(self, source: str) -> None:
        """The guest pulled the reset line, through a device that ``source`` names."""

    def debug_exit(self, value: int) -> None:
        """The guest wrote ``value`` to the debug-exit port."""

    def rom_area_changed(self, segments: tuple[Segment, ...]) -> None:
        """The chipset was told which pieces of the ROM area are RAM."""

    def load_memory(self, address: int, size: int) -> bytes:
        """Read guest-physical memory for a device."""

    def store_memory(self, address: int, data: bytes) -> None:
        """Write guest-physical memory for a device."""


class Board(Stamped):
    """All devices of one PC.

    :ivar console: what COM1 transmits, and port E9h; :ivar console2: what COM2 transmits.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        clock: Clock,
        model: CpuModel,
        wires: Wires,
        *,
        epoch: int,
        disks: Sequence[Disk | None] = (),
        video_bios: bytes | None = None,
        cpus: int = 1,
    ) -> None:
        """``disks``: primary master and slave, secondary master and slave; several ``cpus`` need APICs."""
        self.console, self.console2 = Console(), Console()
        self.ports, self.memory = PortBus(), MemoryBus()
        self.pic = PicPair()
        self.lapics = tuple(Lapic(clock, number) for number in range(cpus)) if model.has("apic") else ()
        self.apic_bus = ApicBus(self.lapics)
        self.io_apic = IoApic(self.apic_bus.deliver) if self.lapics else None
        self.lapic = self.lapics[0] if self.lapics else None  # the boot processor's
        self.interrupts = InterruptLogic(self.pic, self.lapic, self.io_apic, self.lapics[1:])
        self.interrupts.on_change = wires.interrupt_changed
        if self.lapic is not None and self.io_apic is not None:
            self.memory.map(LAPIC_SPAN, self.lapic)
            self.memory.map(IO_APIC_SPAN, self.io_apic)
        line = self.interrupts.line
        self.a20 = A20Gate(wires.a20_changed)
        self.vga = Vga(clock)
        self.keyboard = I8042(
            line(1), self.a20, lambda: wires.request_reset("the keyboard controller"), clock, line(12)
        )
        com1 = Uart("com1", 0x3F8, line(4), clock, self.console.transmit)
        com2 = Uart("com2", 0x2F8, line(3), clock, self.console2.transmit)
        first, second, third, fourth = self.disks = (*disks, *(None,) * MOST_DISKS)[:MOST_DISKS]
        self.bus_master = BusMaster(self.ports, wires.load_memory, wires.store_memory)
        engines = self.bus_master.engines
        self.ide = (
            primary(line(14), clock, first, second, dma=engines[0]),
            secondary(line(15), clock, third, fourth, dma=engines[1]),
        )
        self.pci = PciHost()
        self.pci.add(0, 0, HostBridge(wires.rom_area_changed))
        self.pci.add(1, 0, isa_bridge())
        self.pci.add(1, 1, ide_controller(self.bus_master.map))
        self.pci.add(2, 0, RomFunction(DISPLAY, video_bios, self.memory))
        self.console.connect(com1.receive, lambda: com1.waiting)
        self.console2.connect(com2.receive, lambda: com2.waiting)
        self.ports.attach(
            self.pic,
            Pit(line(0), clock),
            Rtc(line(8), clock, memory.size, epoch, cpus),
            com1,
            com2,
            self.keyboard,
            self.vga,
            *self.ide,
            self.bus_master,
            self.pci,
            SystemControlA(self.a20, lambda: wires.request_reset("port 92h")),
            ResetControl(lambda: wires.request_reset("port CF9h")),
            PostPort(),
            DebugConsole(self.console.transmit),
            DebugExit(wires.debug_exit),
        )

    def plug(self, rom: bytes) -> None:
        """Show an option ROM as the PCI device that it says it is, if it says so, in the next free slot."""
        identity = _identity(rom)
        if identity is not None:
            slot = max(slot for slot, _ in self.pci.functions) + 1
            self.pci.add(slot, 0, RomFunction(identity, rom, self.memory))

    def save(self) -> State:
        """Give the state of every device; ``load`` of it continues identically."""
        return {"ports": self.ports.save(), "interrupts": self.interrupts.save()}

    def load(self, state: State) -> None:
        """Take over what ``save`` gave on a board of the same devices."""
        self.interrupts.load(state["interrupts"])
        self.ports.load(state["ports"])

    def stats(self) -> dict[str, dict[str, int]]:
        """Give every device's counts by name, and those of the buses."""
        counts = {**self.ports.stats(), **self.interrupts.stats()}
        counts["memory"] = {
            "unclaimed_reads": self.memory.unclaimed_reads.total(),
            "unclaimed_writes": self.memory.unclaimed_writes.total(),
        }
        return counts


def _identity(rom: bytes) -> Identity | None:
    """What the PCI data structure of an option ROM says; None if there is none."""
    at = int.from_bytes(rom[_DATA_POINTER : _DATA_POINTER + 2], "little")
    data = rom[at : at + 16]
    if len(data) < 16 or data[:4] != b"PCIR":
        return None
    vendor, device = (int.from_bytes(data[i : i + 2], "little") for i in (4, 6))
    return Identity(vendor, device, int.from_bytes(data[13:16], "little"), subsystem_vendor=0, subsystem=0)
