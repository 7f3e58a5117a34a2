# SPDX-License-Identifier: GPL-2.0-only
"""Where below 640 KiB a segment can be, and what the file shows of how the kernel sees that memory.

The range is the top of what every PC has free: boot loaders put what they hand over at the bottom, above
the BIOS's data, as does the code that starts other processors, and BIOSes keep their larger data areas at
the very end. A kernel that sets its stack pointer to an address in there keeps that memory.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from vmi.patcher import elf
from vmi.patcher.model import Access, Image

LOW_START, LOW_END = 0x20000, 0x80000  # physical
ROOM_FOR_STACK = 0x8000  # bytes below a stack pointer that are left to the kernel
ONE_MEGABYTE = 0x100000
MOV_ESP = b"\xbc"  # mov esp, imm32
KNOWN = (0x40E, 0x413, 0x449, 0x467, 0xA0000, 0xB0000, 0xB8000, 0xE0000, 0xF0000)
"""What kernels look at below 1 MiB: the BIOS's data, screens, ROMs."""
WORD = struct.Struct("<I")


def top(image: Image) -> int:
    """Physical end of the range from LOW_START on that a segment may take."""
    stacks = [stack for stack in _stack_pointers(image) if LOW_START < stack <= LOW_END + ROOM_FOR_STACK]
    end = min([LOW_END, *(stack - ROOM_FOR_STACK for stack in stacks)]) & -elf.PAGE
    return max(end, LOW_START)


def _stack_pointers(image: Image) -> Iterator[int]:
    """Physical addresses around the range that are loaded into ESP, by any instruction that looks so."""
    bias = elf.main_text(image).offset
    near = range(LOW_START, LOW_END + ROOM_FOR_STACK + 1, 0x10000)
    highs = {WORD.pack(base + shift & 0xFFFFFFFF)[2:] for base in near for shift in (0, bias)}
    loads = re.compile(MOV_ESP + b"..(?:" + b"|".join(map(re.escape, sorted(highs))) + b")", re.DOTALL)
    for segment in image.segments:
        for found in loads.finditer(segment.data if segment.flags & Access.X else b""):
            (value,) = WORD.unpack(found[0][1:])
            if value % WORD.size == 0:
                yield from (value, value - bias & 0xFFFFFFFF)


def named(image: Image) -> list[int]:
    """Virtual addresses of well-known things below 1 MiB that the image holds, in a kernel linked elsewhere.

    They show that the kernel maps that memory at the same distance as itself.
    """
    bias = elf.main_text(image).offset
    found = []
    for paddr in KNOWN:
        word = WORD.pack(paddr + bias & 0xFFFFFFFF)
        if bias and any(word in segment.data for segment in image.segments):
            found.append(paddr + bias & 0xFFFFFFFF)
    return found
