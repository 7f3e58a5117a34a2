# SPDX-License-Identifier: GPL-2.0-only
"""Where the machine has RAM, as every boot protocol reports it to the kernel.

The map is the one that SeaBIOS gives on ``qemu-system-i386 -M isapc``: no part of the top of RAM is taken
away, since there are no ACPI tables to put there. Each protocol has its own encoding of it.
"""

from __future__ import annotations

from typing import NamedTuple

RAM, RESERVED = 1, 2

DATA_AREA = 0x400  # the firmware's variables, 256 bytes
LOW_RAM_END = 0x9FC00  # the rest up to A0000h is the firmware's extended data area
LOW_END = 0xA0000
FIRMWARE = 0xF0000
HIGH_RAM = 0x100000
#: No RAM is reported from here on, as on QEMU: devices have their addresses there.
RAM_LIMIT = 0xE0000000
FIRMWARE_TOP = 0xFFFC0000


class Area(NamedTuple):
    """One line of the map: physical addresses [start, stop), kind ``RAM`` or ``RESERVED``."""

    start: int
    stop: int
    kind: int


def ram_end(ram_size: int) -> int:
    """The first address above the RAM that a kernel is told of, for ``ram_size`` bytes of RAM."""
    return min(ram_size, RAM_LIMIT)


def upper_kib(ram_size: int) -> int:
    """KiB of RAM from 1 MiB on."""
    return (ram_end(ram_size) - HIGH_RAM) >> 10


def memory_map(ram_size: int) -> list[Area]:
    """The machine's map, sorted, without overlaps; what it leaves out is neither RAM nor reserved."""
    areas = (
        Area(0, LOW_RAM_END, RAM),
        Area(LOW_RAM_END, LOW_END, RESERVED),
        Area(FIRMWARE, HIGH_RAM, RESERVED),
        Area(HIGH_RAM, ram_end(ram_size), RAM),
        Area(FIRMWARE_TOP, 1 << 32, RESERVED),
    )
    return [area for area in areas if area.start < area.stop]
