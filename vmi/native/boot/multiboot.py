# SPDX-License-Identifier: GPL-2.0-only
"""Multiboot (version 1): a kernel, its modules and the information structure.

Follows the Multiboot Specification 0.6.96; where that leaves a choice, the result is what
``qemu-system-i386 -M isapc -kernel`` gives: the same memory map, flags and boot device in low memory, the
module list and the strings on the page behind the kernel, the modules on the pages behind those. Kernels
count the pages that are left, so they print the same number here. A kernel that can't be loaded is
refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from vmi.errors import BadInput
from vmi.memory import PhysicalMemory
from vmi.native.boot import elf, placement
from vmi.native.boot.memory_map import HIGH_RAM, LOW_RAM_END, memory_map, ram_end, upper_kib
from vmi.native.boot.placement import Piece
from vmi.native.boot.state import STACK_TOP, BootState, Module, Plan, Request, Write
from vmi.native.boot.unpack import unpack

__all__ = [
    "BOOT_MAGIC", "HEADER_MAGIC", "INFO_AT", "LOADER_NAME", "LOW_RAM_END", "MAP_AT", "STACK_TOP",
    "BootState", "Module", "find_header", "load", "memory_map", "plan", "recognise", "unpack",
]  # fmt: skip

HEADER_MAGIC = 0x1BADB002
BOOT_MAGIC = 0x2BADB002
_HEADER_SEARCH = 8192  # bytes of the file in which the whole header must lie, 4-byte aligned
_MULTIBOOT2_MAGIC = 0xE85250D6
_LINUX_MAGIC_AT, _LINUX_MAGIC = 0x202, b"HdrS"

PAGE_ALIGN, MEMORY_INFO, VIDEO_MODE, HAS_ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
#: Requirements (bits 0-15) that can be met. A wish for a video mode is passed over: the information
#: structure then says that there is none, which is what QEMU does too.
_KNOWN_REQUIREMENTS = PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE

# Flags of the information structure: which of its fields are valid.
_MEMORY, _BOOT_DEVICE, _COMMAND_LINE, _MODULES, _MEMORY_MAP, _LOADER_NAME = 1, 2, 4, 8, 0x40, 0x200
_FIRST_DISK = 0x8000FFFF
LOADER_NAME = "vmi"

MAP_AT = 0x9000
INFO_AT = 0x9500

_HEADER = Struct("<3I")
_ADDRESSES = Struct("<5I")
_INFO = Struct("<22I")
_MODULE = Struct("<4I")
_MAP_ENTRY = Struct("<IQQI")
_TABLES = range(MAP_AT, INFO_AT + _INFO.size)


def load(
    image: bytes, memory: PhysicalMemory, *, command_line: str = "", modules: Sequence[Module] = ()
) -> BootState:
    """Load a kernel (``image`` may be gzip-compressed) and give the state to start it in.

    ``command_line`` is handed over as it is, so it begins with the kernel's name if it is to.
    BadInput if the image is no multiboot kernel or does not fit.
    """
    return _plan(unpack(image), memory.size, command_line, modules).store(memory)


def plan(request: Request, ram_size: int) -> Plan:
    """What to load for a kernel; its command line is its name, a space and its options, as QEMU's."""
    return _plan(request.image, ram_size, f"{request.name} {request.append}", request.modules)


def _plan(image: bytes, ram_size: int, command_line: str, modules: Sequence[Module]) -> Plan:
    at, flags = find_header(image)
    if flags & HAS_ADDRESSES:
        entry, piece = _by_addresses(image, at)
        pieces = [placement.without_header_page(piece)]
    else:
        executable = elf.parse(image)
        entry, pieces = executable.physical_entry(), placement.by_segments(executable)
    kernel = placement.check_place(pieces, ram_size)
    placement.check_free(pieces, _TABLES)
    placement.check_entry(pieces, entry)
    tables, end = _tables(ram_size, max(kernel.stop, HIGH_RAM), command_line, modules)
    state = BootState(eip=entry, eax=BOOT_MAGIC, ebx=INFO_AT, kernel=kernel, end=end)
    return Plan(state, (*placement.writes(image, pieces), *tables))


def recognise(image: bytes) -> bool:
    """Whether the image has a multiboot header, even one that demands too much."""
    return _search(image) is not None


def _search(image: bytes) -> tuple[int, int] | None:
    for at in range(0, min(len(image), _HEADER_SEARCH) - _HEADER.size + 1, 4):
        magic, flags, checksum = _HEADER.unpack_from(image, at)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return at, flags
    return None


def find_header(image: bytes) -> tuple[int, int]:
    """Offset and flags of the multiboot header. BadInput if there is none, or it demands too much."""
    found = _search(image)
    if found is None:
        raise BadInput(_not_multiboot(image))
    unknown = found[1] & 0xFFFF & ~_KNOWN_REQUIREMENTS
    if unknown:
        raise BadInput(
            f"the kernel's multiboot header requires features {unknown:#06x}, "
            f"but only those in {_KNOWN_REQUIREMENTS:#06x} can be provided"
        )
    return found


def _not_multiboot(image: bytes) -> str:
    sentence = f"the kernel has no multiboot header in its first {_HEADER_SEARCH} bytes"
    if image[_LINUX_MAGIC_AT : _LINUX_MAGIC_AT + 4] == _LINUX_MAGIC:
        return sentence + ": it is a Linux boot image"
    if is_version_2(image):
        return sentence + ": it has one of multiboot version 2"
    return sentence


def is_version_2(image: bytes) -> bool:
    """Whether the image has the magic number of multiboot version 2, which is another protocol."""
    return any(
        int.from_bytes(image[at : at + 4], "little") == _MULTIBOOT2_MAGIC
        for at in range(0, min(len(image), 4 * _HEADER_SEARCH) - 3, 8)
    )


def _by_addresses(image: bytes, at: int) -> tuple[int, Piece]:
    """The header says itself what goes where (for files that are not ELF)."""
    if at + _HEADER.size + _ADDRESSES.size > len(image):
        raise BadInput("the kernel's multiboot header announces addresses, but the file ends before them")
    header, load_at, load_end, bss_end, entry = _ADDRESSES.unpack_from(image, at + _HEADER.size)
    if load_at > header:
        raise BadInput(
            f"the kernel's load address {load_at:#x} must not be above its multiboot header at {header:#x}"
        )
    offset = at - (header - load_at)
    if offset < 0:
        raise BadInput(
            f"the kernel's multiboot addresses put its start {-offset} bytes before the beginning of the file"
        )
    if load_end and load_end < load_at:
        raise BadInput(f"the kernel's load end {load_end:#x} must not be below its load address {load_at:#x}")
    filesz = load_end - load_at if load_end else len(image) - offset
    if offset + filesz > len(image):
        raise BadInput(
            f"the kernel's multiboot addresses ask for {offset + filesz} bytes of a file of {len(image)}"
        )
    memsz = filesz
    if bss_end:
        if bss_end < load_at:
            raise BadInput(
                f"the kernel's bss end {bss_end:#x} must not be below its load address {load_at:#x}"
            )
        memsz = max(filesz, bss_end - load_at)
    return entry, Piece(load_at, offset, filesz, memsz)


def _tables(
    ram_size: int, behind: int, command_line: str, modules: Sequence[Module]
) -> tuple[list[Write], int]:
    """All that is loaded besides the kernel as (address, bytes), and the first address after all of it.

    BadInput if it does not fit, or a string can't be handed over.
    """
    list_at = placement.page_up(behind)
    strings = placement.Strings(list_at + _MODULE.size * len(modules))
    texts = [strings.add(module.string, "a module's string") for module in modules]
    command_line_at = strings.add(command_line, "the command line")
    loader_at = strings.add(LOADER_NAME, "the loader name")
    top = ram_end(ram_size)
    if strings.end > top:
        raise BadInput(
            f"the command line and the module list need memory up to {strings.end:#x}, "
            f"but RAM ends at {top:#x}"
        )
    rows, contents, end = b"", [], strings.end
    for module, text in zip(modules, texts, strict=True):
        start = placement.page_up(end)
        end = start + len(module.data)
        if end > top:
            raise BadInput(
                f"the module {module.string!r} needs memory up to {end:#x}, but RAM ends at {top:#x}"
            )
        rows += _MODULE.pack(start, end, text, 0)
        contents.append(Write(start, module.data))
    entries = b"".join(
        _MAP_ENTRY.pack(_MAP_ENTRY.size - 4, start, stop - start, kind)
        for start, stop, kind in memory_map(ram_size)
    )
    info = _INFO.pack(
        _MEMORY | _BOOT_DEVICE | _COMMAND_LINE | _MODULES | _MEMORY_MAP | _LOADER_NAME,
        LOW_RAM_END >> 10, upper_kib(ram_size), _FIRST_DISK, command_line_at, len(modules), list_at,
        0, 0, 0, 0, len(entries), MAP_AT, 0, 0, 0, loader_at, 0, 0, 0, 0, 0,
    )  # fmt: skip
    tables = [Write(MAP_AT, entries), Write(INFO_AT, info), Write(list_at, rows + bytes(strings.data))]
    return tables + contents, end
