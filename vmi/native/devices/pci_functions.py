# SPDX-License-Identifier: GPL-2.0-only
"""The PCI functions of the board: host bridge, ISA bridge, IDE controller, display, carriers of option ROMs.

Vendors, devices, revisions and values after reset are those of QEMU's ``pc`` machine, an i440FX with a PIIX3,
so that firmware and drivers recognize the board. Registers that steer nothing here keep what is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmi.errors import UsageError
from vmi.memory import PAGE_SIZE
from vmi.native.devices.pci import (
    COMMAND,
    IO_ENABLE,
    MEMORY_ENABLE,
    ROM,
    Bar,
    Identity,
    PciFunction,
    PciHost,
    register_of,
)
from vmi.native.memory_bus import MemoryBus

HOST_BRIDGE = Identity(0x8086, 0x1237, 0x060000, revision=2)
ISA_BRIDGE = Identity(0x8086, 0x7000, 0x060100, multifunction=True)
IDE_CONTROLLER = Identity(0x8086, 0x7010, 0x010180)
DISPLAY = Identity(0x1234, 0x1111, 0x030000, revision=2)

LARGEST_ROM = 1 << 20  # bytes; firmware has room for far less

_PAM, _SMRAM = 0x59, 0x72
_PAM_END = _PAM + 7
_ROUTES = 0x60  # of the four PCI interrupts to ISA lines
_TIMING = 0x40  # of the two IDE channels, one word each
_CHANNEL_ON = 0x8000
_BUS_MASTER_BAR = 4


@dataclass(frozen=True)
class Segment:
    """A piece of the addresses from C0000h to FFFFFh: whether its reads and writes go to RAM, not to ROM."""

    start: int
    size: int
    reads: bool
    writes: bool

    def __repr__(self) -> str:
        goes = ("r" if self.reads else "-") + ("w" if self.writes else "-")
        return f"<{self.start:05x}-{self.start + self.size - 1:05x} {goes}>"


class HostBridge(PciFunction):
    """i440FX: its programmable attribute map says which pieces of the ROM area are RAM.

    :param on_pam: called with all 13 segments, in order of address, when one has changed.
    """

    def __init__(self, on_pam: Callable[[tuple[Segment, ...]], None] | None = None) -> None:
        super().__init__(HOST_BRIDGE, registers={0x57: 0x10, _SMRAM: 0x02})
        self.on_pam = on_pam
        self._told = self.segments

    @property
    def segments(self) -> tuple[Segment, ...]:
        """C0000h to EFFFFh in pieces of 16 KiB, then F0000h to FFFFFh."""
        # Two pieces for each register, the lower one in its low bits; the first register has only a high one.
        bits = [self.space[at] >> shift & 3 for at in range(_PAM, _PAM_END) for shift in (0, 4)]
        high = [(0xC0000 + 0x4000 * n, 0x4000, value) for n, value in enumerate(bits[2:])]
        return tuple(
            Segment(start, size, bool(value & 1), bool(value & 2))
            for start, size, value in [*high, (0xF0000, 0x10000, bits[1])]
        )

    def _written(self, span: range) -> None:
        if span.start < _PAM_END and span.stop > _PAM:
            segments = self.segments
            if segments != self._told:
                self._told = segments
                if self.on_pam is not None:
                    self.on_pam(segments)


def isa_bridge() -> PciFunction:
    """PIIX3, function 0: bridge to the ISA bus; the routes of PCI interrupts are kept."""
    registers = {0x07: 0x02, 0x4C: 0x4D, 0x4E: 0x03, 0x69: 0x02, 0x70: 0x80, 0x76: 0x0C, 0x77: 0x0C}
    registers |= {_ROUTES + n: 0x80 for n in range(4)}
    registers |= {0x78: 0x02, 0xA0: 0x08, 0xA8: 0x0F}
    return PciFunction(ISA_BRIDGE, registers=registers)


def ide_controller(on_map: Callable[[int | None], None] | None = None) -> PciFunction:
    """PIIX3, function 1: the two IDE channels at their usual ports.

    :param on_map: told where the bus master's 16 ports are; without it the controller has no bus master.
    """
    registers = {0x06: 0x80, 0x07: 0x02}
    if on_map is None:
        # Not QEMU's, which always has a bus master: bit 7 of the interface byte tells of one.
        plain = Identity(IDE_CONTROLLER.vendor, IDE_CONTROLLER.device, IDE_CONTROLLER.code & ~0x80)
        return PciFunction(plain, registers=registers)
    tell = on_map
    return PciFunction(
        IDE_CONTROLLER,
        bars={_BUS_MASTER_BAR: Bar(16, io=True)},
        registers=registers,
        on_map=lambda number, address: tell(address),
    )


class RomFunction(PciFunction):
    """A function with an option ROM that the guest can map anywhere; what is in it is its own matter.

    Where another device answers already, the ROM is not seen.

    :param rom: the image, at most 1 MiB; None for a function without.
    :raises UsageError: the image is empty or too large.
    """

    def __init__(self, identity: Identity, rom: bytes | None, memory: MemoryBus) -> None:
        self._memory = memory
        self._span = range(0)
        self.image = b""
        if rom is None:
            super().__init__(identity)
            return
        if not 0 < len(rom) <= LARGEST_ROM:
            raise UsageError(
                f"an option ROM on PCI must have 1 to {LARGEST_ROM} bytes, but this one has {len(rom)}"
            )
        size = max(PAGE_SIZE, 1 << (len(rom) - 1).bit_length())
        self.image = rom.ljust(size, b"\0")
        super().__init__(identity, bars={ROM: Bar(size)}, on_map=self._map)

    def _map(self, number: int, address: int | None) -> None:
        self._memory.unmap(self._span, self)
        self._span = range(0)
        if address is None:
            return
        span = range(address, address + len(self.image))
        if all(self._memory.device(page) is None for page in range(span.start, span.stop, PAGE_SIZE)):
            self._memory.map(span, self)
            self._span = span

    def memory_read(self, address: int, size: int) -> int:
        """Load from the image; zeros beyond it."""
        at = address - self._span.start
        return int.from_bytes(self.image[at : at + size], "little")

    def memory_write(self, address: int, size: int, value: int) -> None:
        """A ROM takes nothing."""


def settle(host: PciHost) -> None:
    """Configure all functions as firmware does, for a kernel that is started without any.

    Base addresses are given out (ports from C000h up, memory from FEC00000h down), decoding is switched on,
    ROMs are not. PCI interrupts are routed to lines 10 and 11; the IDE channels are on.
    """
    port, memory = 0xC000, 0xFEC00000
    for function in host.functions.values():
        for number, bar in function.bars.items():
            if bar.io:
                port = -(-port // bar.size) * bar.size
                function.write(register_of(number), 4, port)
                port += bar.size
            else:
                memory = (memory - bar.size) & -bar.size
                function.write(register_of(number), 4, memory)
        function.write(COMMAND, 2, 0x0100 | IO_ENABLE | MEMORY_ENABLE)
        if function.identity == ISA_BRIDGE:
            function.write(_ROUTES, 4, 0x0B0B0A0A)
        elif (function.identity.vendor, function.identity.device) == (0x8086, 0x7010):
            function.write(_TIMING, 4, _CHANNEL_ON << 16 | _CHANNEL_ON)
