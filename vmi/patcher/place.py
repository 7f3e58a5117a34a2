# SPDX-License-Identifier: GPL-2.0-only
"""Choose where the `.vmi` segment goes, and how its parts lie in it.

The segment must be somewhere no one else uses: not in any segment, in memory that the boot loader sets
aside, at an address that the kernel's own page tables will map later. Right after the image, with the
same distance between virtual and physical address as the text, is the one place that kernels with a
direct map of memory keep mapped. Boot loaders put modules after the last segment, so they keep out; the
kernel's own allocator keeps out because activation takes the segment out of the memory map. A kernel
that takes memory from its own end without asking the map is beyond that, so its signs are looked for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vmi import abi
from vmi.errors import BadInput
from vmi.patcher import elf
from vmi.patcher.model import Image
from vmi.sitetable import HEADER_SIZE

PAGE = elf.PAGE
ROM_RESERVE = 0x4000  # bytes kept for a copy of the ROM
ACTIVATION_SIZE = 0x600
RELOC_SIZE = 8  # bytes kept per call: entry address, type
STACK_SIZE = 0x1000  # also the guest's first stack, until it sets its own
COMMAND_LINE_SIZE = 0x400  # bytes at the segment's very end for a copy of the command line
MAP_ENTRY_SIZE = 24  # bytes of a multiboot 1 memory map entry, its size word included
MAX_SIZE = 0x400000  # bytes of the whole segment; far more than the largest kernels need
END_SYMBOLS = ("end", "_end", "__end", "kernel_end", "_kernel_end", "__bss_stop", "__kernel_end")


@dataclass(frozen=True, slots=True)
class Layout:
    """Virtual addresses of the segment's parts; ``bias`` is virtual minus physical address."""

    base: int
    bias: int
    rom_reserve: int
    activation: int
    relocations: int
    map_buffer: int
    map_buffer_size: int
    stack_top: int
    tables: int

    def physical(self, vaddr: int) -> int:
        """Physical address of a virtual one."""
        return vaddr - self.bias & 0xFFFFFFFF

    def __repr__(self) -> str:
        return f"Layout({self.base:#x}, bias {self.bias:#x})"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the segment goes: its layout, and for the report why it may and what speaks against it."""

    layout: Layout
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Place({self.layout.base:#x}, {len(self.warnings)} warnings)"


def place(image: Image) -> Place:
    """Choose the segment's address; raises BadInput when there is none or the image can't have one."""
    header = elf.multiboot(image.data)
    if header is not None and header.kludge:
        raise BadInput(
            "the multiboot header gives load addresses itself (flag bit 16), so boot loaders would not load "
            "a new segment"
        )
    text = elf.entry_segment(image)
    end = max(segment.vaddr + segment.memsz for segment in image.segments)
    physical_end = max(segment.paddr + segment.memsz for segment in image.segments)
    base = _page_up(max(end, physical_end + text.offset))
    if max(base, base - text.offset) + MAX_SIZE > elf.ADDRESS_SPACE:
        raise BadInput(f"there is no room for a .vmi segment between the image's end {end:#x} and 4 GiB")
    reasons = [
        f"it starts at {base:#x}, after the last byte of every segment (the image ends at {end:#x})",
        f"its distance between virtual and physical addresses is that of the text ({text.offset:#x}), so a "
        "kernel that maps memory directly maps it too",
    ]
    warnings = _end_warnings(image, end)
    if header is not None:
        reasons.append(
            "boot loaders place modules after the last segment, and activation marks the segment as reserved "
            "in the multiboot memory map"
        )
        reasons.append(
            "activation moves the command line to the segment's end, so a kernel that looks for free memory "
            "between the things its boot loader gave it, without the map, finds none in between"
        )
    else:
        warnings.append(
            "there is no multiboot 1 header, so the segment can't be taken out of a memory map: the kernel "
            f"must leave the memory from {base:#x} on alone"
        )
    return Place(_layout(base, text.offset), tuple(reasons), tuple(warnings))


def _page_up(address: int) -> int:
    return (address + PAGE - 1) & -PAGE


def _layout(base: int, bias: int) -> Layout:
    assert HEADER_SIZE <= PAGE
    rom_reserve = base + PAGE
    activation = rom_reserve + ROM_RESERVE
    relocations = activation + ACTIVATION_SIZE
    map_buffer = relocations + len(abi.CALLS) * RELOC_SIZE
    stack = _page_up(map_buffer + 16 * MAP_ENTRY_SIZE)
    return Layout(
        base=base,
        bias=bias,
        rom_reserve=rom_reserve,
        activation=activation,
        relocations=relocations,
        map_buffer=map_buffer,
        map_buffer_size=stack - map_buffer,
        stack_top=stack + STACK_SIZE,
        tables=stack + STACK_SIZE,
    )


def _end_warnings(image: Image, end: int) -> list[str]:
    """Signs that the kernel uses the memory after its image without asking anyone."""
    named = sorted(
        name for name, value in elf.symbol_values(image.data, END_SYMBOLS).items() if 0 <= end - value < PAGE
    )
    values = {value & 0xFFFFFFFF for value in (end, _page_up(end))}
    uses = sum(
        segment.data.count(struct.pack("<I", value))
        for segment in image.segments
        for value in sorted(values)
        if value
    )
    if not uses:
        return []
    known = f" (symbol {', '.join(named)})" if named else ""
    return [
        f"the address of the image's end {end:#x}{known} occurs {uses} times in the image: a kernel that "
        "takes memory from there without reading the boot loader's memory map overwrites the .vmi segment"
    ]
