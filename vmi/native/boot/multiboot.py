# SPDX-License-Identifier: GPL-2.0-only
"""Multiboot (version 1) loading: puts a kernel, its modules and the information structure into memory.

Follows the Multiboot Specification 0.6.96; where that leaves a choice, the result is what
``qemu-system-i386 -M isapc -kernel`` gives: the same memory map, flags and boot device in low memory, the
module list and the strings on the page behind the kernel, the modules on the pages behind those. Kernels
count the pages that are left, so they print the same number here. A kernel that can't be loaded is
refused in one sentence.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from vmi.errors import BadInput
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native.boot import elf

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

LOW_RAM_END = 0x9FC00  # the rest up to A0000h is the firmware's data area
HIGH_RAM = 0x100000
MAP_AT = 0x9000
INFO_AT = 0x9500
STACK_TOP = 0x7000  # the specification promises no stack; this one is a page or two nobody else uses

_RAM, _RESERVED = 1, 2
_FIRMWARE_TOP = 0xFFFC0000
_UNPACKED_LIMIT = 256 << 20

_HEADER = Struct("<3I")
_ADDRESSES = Struct("<5I")
_INFO = Struct("<22I")
_MODULE = Struct("<4I")
_MAP_ENTRY = Struct("<IQQI")
_INFO_END = INFO_AT + _INFO.size


@dataclass(frozen=True, repr=False)
class Module:
    """A boot module: its bytes and its string (by convention ``file args``)."""

    data: bytes
    string: str

    def __repr__(self) -> str:
        return f"Module({self.string!r}, {len(self.data)} bytes)"


@dataclass(frozen=True, repr=False)
class BootState:
    """CPU state at the kernel's first instruction, and the memory in use.

    Segments are flat (base 0, limit 4 GiB), protection on, paging and interrupts off, A20 open.
    ``kernel`` is the kernel's physical memory with its zeroed part, ``end`` the first byte after
    kernel, strings and modules.
    """

    eip: int
    eax: int
    ebx: int
    esp: int
    kernel: range
    end: int

    def __repr__(self) -> str:
        return f"BootState(eip {self.eip:#x}, kernel {self.kernel.start:#x}-{self.kernel.stop - 1:#x})"


@dataclass(frozen=True)
class _Piece:
    """File bytes [offset, offset + filesz) for memory [address, address + memsz)."""

    address: int
    offset: int
    filesz: int
    memsz: int

    @property
    def end(self) -> int:
        return self.address + self.memsz

    @property
    def span(self) -> str:
        return f"{self.address:#x}-{self.end - 1:#x}"


def load(
    image: bytes, memory: PhysicalMemory, *, command_line: str = "", modules: Sequence[Module] = ()
) -> BootState:
    """Load a kernel (``image`` may be gzip-compressed) and give the state to start it in.

    ``command_line`` is handed over as it is, so it begins with the kernel's name if it is to.
    BadInput if the image is no multiboot kernel or does not fit.
    """
    image = unpack(image)
    at, flags = find_header(image)
    if flags & HAS_ADDRESSES:
        entry, pieces = _by_addresses(image, at)
    else:
        entry, pieces = _by_segments(image)
    pieces = [_without_header_page(piece) for piece in pieces]
    kernel = range(min(p.address for p in pieces), max(p.end for p in pieces))
    _check_place(pieces, memory.size)
    for piece in pieces:
        if piece.address < _INFO_END and piece.end > MAP_AT:
            raise BadInput(
                f"the kernel's memory {piece.span} overlaps the boot information "
                f"at {MAP_AT:#x}-{_INFO_END - 1:#x}"
            )
    writes, end = _tables(memory.size, max(kernel.stop, HIGH_RAM), command_line, modules)
    for piece in pieces:
        memory.write(piece.address, image[piece.offset : piece.offset + piece.filesz])
        memory.write(piece.address + piece.filesz, bytes(piece.memsz - piece.filesz))
    for address, data in writes:
        memory.write(address, data)
    return BootState(entry, BOOT_MAGIC, INFO_AT, STACK_TOP, kernel, end)


def unpack(image: bytes) -> bytes:
    """Undo gzip compression if there is any. BadInput if it is damaged or expands to over 256 MiB."""
    if image[:2] != b"\x1f\x8b":
        return image
    stream = zlib.decompressobj(wbits=31)
    try:
        data = stream.decompress(image, _UNPACKED_LIMIT)
    except zlib.error:
        raise BadInput("the kernel's gzip data is damaged") from None
    if stream.unconsumed_tail:
        raise BadInput(f"the compressed kernel expands to more than {_UNPACKED_LIMIT >> 20} MiB")
    if not stream.eof:
        raise BadInput("the kernel's gzip data ends too early")
    return data


def find_header(image: bytes) -> tuple[int, int]:
    """Offset and flags of the multiboot header. BadInput if there is none, or it demands too much."""
    for at in range(0, min(len(image), _HEADER_SEARCH) - _HEADER.size + 1, 4):
        magic, flags, checksum = _HEADER.unpack_from(image, at)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            break
    else:
        raise BadInput(_not_multiboot(image))
    unknown = flags & 0xFFFF & ~_KNOWN_REQUIREMENTS
    if unknown:
        raise BadInput(
            f"the kernel's multiboot header requires features {unknown:#06x}, "
            f"but only those in {_KNOWN_REQUIREMENTS:#06x} can be provided"
        )
    return at, flags


def _not_multiboot(image: bytes) -> str:
    sentence = f"the kernel has no multiboot header in its first {_HEADER_SEARCH} bytes"
    if image[_LINUX_MAGIC_AT : _LINUX_MAGIC_AT + 4] == _LINUX_MAGIC:
        return sentence + ": it is a Linux boot image"
    for at in range(0, min(len(image), 4 * _HEADER_SEARCH) - 3, 8):
        if int.from_bytes(image[at : at + 4], "little") == _MULTIBOOT2_MAGIC:
            return sentence + ": it has one of multiboot version 2"
    return sentence


def _by_addresses(image: bytes, at: int) -> tuple[int, list[_Piece]]:
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
    return entry, [_Piece(load_at, offset, filesz, memsz)]


def _by_segments(image: bytes) -> tuple[int, list[_Piece]]:
    executable = elf.parse(image)
    pieces = [_Piece(s.paddr, s.offset, s.filesz, s.memsz) for s in executable.segments]
    return executable.physical_entry(), pieces


def _without_header_page(piece: _Piece) -> _Piece:
    """Leave out what a piece has on the page below 1 MiB.

    Linkers map the file's headers there, in front of code at 1 MiB. Loaders on hardware write them to
    the firmware's ROM, where they are lost without harm.
    """
    below = HIGH_RAM - piece.address
    if not (0 < below <= PAGE_SIZE and piece.end > HIGH_RAM):
        return piece
    return _Piece(HIGH_RAM, piece.offset + below, max(piece.filesz - below, 0), piece.memsz - below)


def _check_place(pieces: Sequence[_Piece], ram_size: int) -> None:
    for piece in pieces:
        if piece.end > ram_size:
            raise BadInput(f"the kernel needs memory up to {piece.end:#x}, but RAM ends at {ram_size:#x}")
        if piece.address < HIGH_RAM and piece.end > LOW_RAM_END:
            raise BadInput(
                f"the kernel's memory {piece.span} is not all RAM: "
                f"there is none from {LOW_RAM_END:#x} to {HIGH_RAM - 1:#x}"
            )


def _tables(
    ram_size: int, behind: int, command_line: str, modules: Sequence[Module]
) -> tuple[list[tuple[int, bytes]], int]:
    """All that is loaded besides the kernel as (address, bytes), and the first address after all of it.

    BadInput if it does not fit, or a string can't be handed over.
    """
    list_at = _page_up(behind)
    strings = _Strings(list_at + _MODULE.size * len(modules))
    texts = [strings.add(module.string, "a module's string") for module in modules]
    command_line_at = strings.add(command_line, "the command line")
    loader_at = strings.add(LOADER_NAME, "the loader name")
    if strings.end > ram_size:
        raise BadInput(
            f"the command line and the module list need memory up to {strings.end:#x}, "
            f"but RAM ends at {ram_size:#x}"
        )
    rows, contents, end = b"", [], strings.end
    for module, text in zip(modules, texts, strict=True):
        start = _page_up(end)
        end = start + len(module.data)
        if end > ram_size:
            raise BadInput(
                f"the module {module.string!r} needs memory up to {end:#x}, but RAM ends at {ram_size:#x}"
            )
        rows += _MODULE.pack(start, end, text, 0)
        contents.append((start, module.data))
    entries = b"".join(
        _MAP_ENTRY.pack(_MAP_ENTRY.size - 4, start, stop - start, kind)
        for start, stop, kind in memory_map(ram_size)
    )
    upper = (min(ram_size, _FIRMWARE_TOP) - HIGH_RAM) >> 10
    info = _INFO.pack(
        _MEMORY | _BOOT_DEVICE | _COMMAND_LINE | _MODULES | _MEMORY_MAP | _LOADER_NAME,
        LOW_RAM_END >> 10, upper, _FIRST_DISK, command_line_at, len(modules), list_at, 0, 0, 0, 0,
        len(entries), MAP_AT, 0, 0, 0, loader_at, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return [(MAP_AT, entries), (INFO_AT, info), (list_at, rows + bytes(strings.data)), *contents], end


def _page_up(address: int) -> int:
    return -(-address // PAGE_SIZE) * PAGE_SIZE


class _Strings:
    """Strings one after the other, each ended by a NUL, from a given address on."""

    def __init__(self, start: int) -> None:
        self.end = start
        self.data = bytearray()

    def add(self, text: str, what: str) -> int:
        """Add a string, give its address. BadInput if it holds a NUL."""
        data = text.encode(errors="surrogateescape")  # undoes what made text of a foreign argument
        if 0 in data:
            raise BadInput(f"{what} must not contain a NUL character")
        address = self.end
        self.data += data + b"\0"
        self.end += len(data) + 1
        return address


def memory_map(ram_size: int) -> list[tuple[int, int, int]]:
    """The machine's map as (start, stop, kind): kind 1 is RAM, 2 reserved."""
    return [
        (0, LOW_RAM_END, _RAM),
        (LOW_RAM_END, 0xA0000, _RESERVED),
        (0xF0000, HIGH_RAM, _RESERVED),
        (HIGH_RAM, min(ram_size, _FIRMWARE_TOP), _RAM),
        (_FIRMWARE_TOP, 1 << 32, _RESERVED),
    ]
