# SPDX-License-Identifier: GPL-2.0-only
"""A strict reader of what loading an i386 ELF executable needs: entry point, segments and notes.

It has no dependency, so that the machine can boot a kernel without the patcher's libraries. Source:
System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from vmi.errors import BadInput

MAGIC = b"\x7fELF"
PT_LOAD = 1
PT_NOTE = 4
PF_X = 1
_CLASS_32, _LITTLE_ENDIAN, _CURRENT = 1, 1, 1
_ET_EXEC = 2
_EM_386 = 3
_CLASS_NAMES = {1: "32-bit", 2: "64-bit"}

_EHDR = Struct("<16sHHIIIIIHHHHHH")
_PHDR = Struct("<8I")
_NHDR = Struct("<3I")
_NOTE_BYTES = 1 << 16  # of a file's notes that are looked at; a kernel has a few hundred


@dataclass(frozen=True, repr=False)
class Segment:
    """One PT_LOAD program header: addresses and sizes in bytes."""

    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    flags: int

    @property
    def end(self) -> int:
        """First physical address after the segment."""
        return self.paddr + self.memsz

    def __repr__(self) -> str:
        return f"Segment({self.vaddr:#x} at {self.paddr:#x}, {self.filesz:#x} of {self.memsz:#x} bytes)"


@dataclass(frozen=True)
class Note:
    """One entry of a PT_NOTE segment: who defined it, its number there, and its contents."""

    owner: bytes
    kind: int
    data: bytes


@dataclass(frozen=True, repr=False)
class Executable:
    """Entry point (as the file has it, usually virtual) and the loadable segments in file order.

    ``notes`` are those of the file's first 64 KiB of notes; a damaged one ends its segment's list.
    """

    entry: int
    segments: tuple[Segment, ...]
    notes: tuple[Note, ...] = ()

    def physical_entry(self) -> int:
        """The entry point as a physical address. BadInput if it lies in no segment.

        A virtual entry inside an executable segment is converted by that segment's addresses; one
        that is physical already is taken as it is.
        """
        for segment in self.segments:
            if segment.flags & PF_X and 0 <= self.entry - segment.vaddr < segment.filesz:
                return self.entry - segment.vaddr + segment.paddr
        if any(segment.paddr <= self.entry < segment.end for segment in self.segments):
            return self.entry
        raise BadInput(f"the kernel's entry point {self.entry:#x} is not inside any of its loadable segments")

    def __repr__(self) -> str:
        return f"Executable(entry {self.entry:#x}, {len(self.segments)} segments)"


def parse(image: bytes) -> Executable:
    """Read headers. BadInput with one sentence if this is no loadable i386 executable."""
    if image[:4] != MAGIC:
        raise BadInput(
            f"the kernel must be an ELF file, but it starts with {image[:4].hex(' ') or 'nothing'}"
        )
    if len(image) < _EHDR.size:
        raise BadInput(
            f"the kernel's ELF header takes {_EHDR.size} bytes, but the file has only {len(image)}"
        )
    ident, kind, machine, version, entry, phoff, _, _, _, phentsize, phnum, _, _, _ = _EHDR.unpack_from(image)
    if ident[4] != _CLASS_32:
        found = _CLASS_NAMES.get(ident[4], f"of class {ident[4]}")
        raise BadInput(f"the kernel must be a 32-bit ELF file, but it is {found}")
    if ident[5] != _LITTLE_ENDIAN:
        raise BadInput(f"the kernel's ELF file must be little-endian (1), but its encoding is {ident[5]}")
    if ident[6] != _CURRENT or version != _CURRENT:
        raise BadInput(f"the kernel's ELF version must be 1, but it is {ident[6]} and {version}")
    if kind != _ET_EXEC:
        raise BadInput(f"the kernel's ELF type must be 2 (executable), but it is {kind}")
    if machine != _EM_386:
        raise BadInput(f"the kernel's ELF machine must be 3 (i386), but it is {machine}")
    if phnum and phentsize != _PHDR.size:
        raise BadInput(f"an ELF program header takes {_PHDR.size} bytes, but the kernel's take {phentsize}")
    if phoff + phnum * _PHDR.size > len(image):
        end = phoff + phnum * _PHDR.size
        raise BadInput(f"the kernel's program headers end at byte {end}, after the file's {len(image)}")
    headers = [_PHDR.unpack_from(image, phoff + number * _PHDR.size) for number in range(phnum)]
    segments = tuple(
        _segment(number, fields, len(image))
        for number, fields in enumerate(headers)
        if fields[0] == PT_LOAD and fields[5]
    )
    if not segments:
        raise BadInput("the kernel has no loadable segment")
    return Executable(entry, segments, tuple(_notes(image, headers)))


def _notes(image: bytes, headers: list[tuple[int, ...]]) -> Iterator[Note]:
    """Notes serve only to recognise a kernel, so what is wrong with them is passed over."""
    left = _NOTE_BYTES
    for kind, offset, _, _, filesz, _, _, align in headers:
        if kind != PT_NOTE or not left:
            continue
        area = image[offset : offset + min(filesz, left)]
        left -= len(area)
        step, at = 8 if align == 8 else 4, 0
        while at + _NHDR.size <= len(area):
            name_size, data_size, number = _NHDR.unpack_from(area, at)
            data_at = at + -(-(_NHDR.size + name_size) // step) * step
            if data_at + data_size > len(area):
                break
            name = area[at + _NHDR.size : at + _NHDR.size + name_size]
            yield Note(name.rstrip(b"\0"), number, area[data_at : data_at + data_size])
            at = data_at + -(-data_size // step) * step


def _segment(number: int, fields: tuple[int, ...], file_size: int) -> Segment:
    _, offset, vaddr, paddr, filesz, memsz, flags, _ = fields
    if offset + filesz > file_size:
        raise BadInput(
            f"segment {number} of the kernel ends at byte {offset + filesz}, after the file's {file_size}"
        )
    if filesz > memsz:
        raise BadInput(
            f"segment {number} of the kernel has {filesz} bytes in the file, but {memsz} in memory"
        )
    for kind, address in (("virtual", vaddr), ("physical", paddr)):
        if address + memsz > 1 << 32:
            raise BadInput(f"segment {number} of the kernel ends beyond 4 GiB of {kind} addresses")
    return Segment(offset, vaddr, paddr, filesz, memsz, flags)
