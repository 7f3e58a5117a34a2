# SPDX-License-Identifier: GPL-2.0-only
"""The multiprocessor tables: how firmware without ACPI tells a kernel of its APICs and their wiring.

Layout by Intel's MultiProcessor Specification 1.4, chapter 4; contents as firmware on ``qemu-system-i386
-M pc`` gives them, but for the maker's name. A board of one processor has the tables too: they are where
kernels find the I/O APIC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from vmi.errors import UsageError
from vmi.native.devices.ioapic import IO_APIC_SPAN
from vmi.native.devices.lapic import LAPIC_SPAN
from vmi.native.devices.lapic import VERSION as LAPIC_VERSION
from vmi.native.intc import io_apic_input

POINTER_AREA = range(0xF0000, 0x100000)  # where kernels look for the pointer, at multiples of 16
_REVISION = 4
_MAKER, _PRODUCT = b"VMI", b"PC"

_POINTER = Struct("<4sI8B")
_HEADER = Struct("<4sHBB8s12sIHHIHBB")
_CPU = Struct("<BBBBII8x")
_BUS = Struct("<BB6s")
_IO_APIC = Struct("<BBBBI")
_INTERRUPT = Struct("<BBHBBBB")

_CPU_ENTRY, _BUS_ENTRY, _IO_APIC_ENTRY, _INTERRUPT_ENTRY, _LOCAL_ENTRY = range(5)
_ENABLED, _BOOT_PROCESSOR = 1, 2
_VECTORED, _NMI, _EXTINT = 0, 1, 3  # what comes through an input
_AS_THE_BUS_HAS_IT, _ACTIVE_HIGH = 0, 1
_ALL_PROCESSORS = 0xFF
_IO_APIC_VERSION = 0x11  # the original's; kernels ask the register for what it really is

#: ISA lines that belong to no ISA device: the cascade, and those that PCI interrupts are routed to.
_NOT_ISA = frozenset((2, 5, 9, 10, 11))


@dataclass(frozen=True)
class PciInterrupt:
    """Interrupt pin ``pin`` (0 is INTA) of PCI device ``slot`` on bus 0, and the I/O APIC input it has."""

    slot: int
    pin: int
    io_apic_input: int

    @property
    def source(self) -> int:
        """The number that an interrupt entry has for it."""
        return self.slot << 2 | self.pin


def build(
    address: int,
    *,
    signature: int,
    features: int,
    pci: bool = True,
    pci_interrupts: Sequence[PciInterrupt] = (),
    io_apic_id: int = 0,
    cpus: int = 1,
) -> list[tuple[int, bytes]]:
    """Make the floating pointer at ``address`` and the table right behind it, as (address, bytes).

    :param signature: EAX of CPUID leaf 1.
    :param features: EDX of CPUID leaf 1.
    :param cpus: processors, each with its number as APIC ID; the first one boots.
    :param pci: the board has PCI bus 0; the ISA bus then is number 1, else 0.
    :raises UsageError: kernels would not find it there, it does not fit, or PCI interrupts have no bus.
    """
    if pci_interrupts and not pci:
        raise UsageError(f"a board without PCI has no PCI interrupts, but {len(pci_interrupts)} were given")
    isa = 1 if pci else 0
    entries = [
        *(
            _CPU.pack(
                _CPU_ENTRY,
                number,
                LAPIC_VERSION & 0xFF,
                _ENABLED | (0 if number else _BOOT_PROCESSOR),
                signature,
                features,
            )
            for number in range(cpus)
        ),
        *([_BUS.pack(_BUS_ENTRY, 0, b"PCI   ")] if pci else []),
        _BUS.pack(_BUS_ENTRY, isa, b"ISA   "),
        _IO_APIC.pack(_IO_APIC_ENTRY, io_apic_id, _IO_APIC_VERSION, _ENABLED, IO_APIC_SPAN.start),
        *(
            _INTERRUPT.pack(
                _INTERRUPT_ENTRY, _VECTORED, _ACTIVE_HIGH, 0, p.source, io_apic_id, p.io_apic_input
            )
            for p in pci_interrupts
        ),
        *(
            _INTERRUPT.pack(
                _INTERRUPT_ENTRY, _VECTORED, _AS_THE_BUS_HAS_IT, isa, irq, io_apic_id, io_apic_input(irq)
            )
            for irq in range(16)
            if irq not in _NOT_ISA
        ),
        _INTERRUPT.pack(_LOCAL_ENTRY, _EXTINT, _AS_THE_BUS_HAS_IT, isa, 0, 0, 0),
        _INTERRUPT.pack(_LOCAL_ENTRY, _NMI, _AS_THE_BUS_HAS_IT, isa, 0, _ALL_PROCESSORS, 1),
    ]
    body = b"".join(entries)
    table = _HEADER.pack(
        b"PCMP", _HEADER.size + len(body), _REVISION, 0, _MAKER.ljust(8), _PRODUCT.ljust(12), 0, 0,
        len(entries), LAPIC_SPAN.start, 0, 0, 0,
    ) + body  # fmt: skip
    pointer = _POINTER.pack(b"_MP_", address + _POINTER.size, 1, _REVISION, 0, 0, 0, 0, 0, 0)
    data = _with_checksum(pointer, 10) + _with_checksum(table, 7)
    if address % 16 or address not in POINTER_AREA or address + len(data) > POINTER_AREA.stop:
        raise UsageError(
            f"the MP tables of {len(data)} bytes must lie at a multiple of 16 in "
            f"{POINTER_AREA.start:#x}-{POINTER_AREA.stop - 1:#x}, but {address:#x} was asked for"
        )
    return [(address, data)]


def _with_checksum(data: bytes, at: int) -> bytes:
    """Set byte ``at``, 0 so far, so that all bytes together give 0."""
    return data[:at] + bytes([-sum(data) & 0xFF]) + data[at + 1 :]
