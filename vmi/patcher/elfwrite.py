# SPDX-License-Identifier: GPL-2.0-only
"""Write a kernel's ELF file back with one more segment, new bytes and a new entry point.

LIEF does the writing. Kernels force three habits on us, all of them checked again by ``verify``:

* The program header table must stay where it is. LIEF moves it when a segment is added, and GRUB
  refuses a table beyond the first 8 KiB. A segment that *replaces* another leaves the table alone, so
  the new one takes the place of ``PT_GNU_STACK``, which no boot loader reads. A file without one gets
  a placeholder in free room after the table; where there is no room, all contents first move up by
  one page in the file (no address changes).
* The physical address must be set on the object that LIEF returns; one set before is ignored.
* No section header is added, so those of the original stay valid as they are.

LIEF chooses where in the file a new segment's bytes go. Where that is not free to choose, because someone
loads the file by offsets and not by its program headers, they are put in their place here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from vmi.errors import BadInput
from vmi.patcher.elf import (
    ELF_HEADER,
    MULTIBOOT_SEARCH,
    PAGE,
    PROGRAM_HEADER,
    PT_LOAD,
    SECTION_HEADER,
    SHT_NOBITS,
    kludge,
    multiboot,
    program_headers,
    read_header,
    section_headers,
)
from vmi.patcher.model import Image
from vmi.patcher.segmentwriter import RWX, Request, Writer

PT_NULL = 0
PT_GNU_STACK = 0x6474E551
NEEDLESS = (PT_GNU_STACK, PT_NULL, 0x6474E550, 0x6474E552, 0x6474E553)
"""Program headers that mean nothing to a boot loader, best first: GNU_STACK, NULL, GNU_EH_FRAME, GNU_RELRO,
GNU_PROPERTY."""
NO_EDITS: Mapping[int, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment to add: readable, writable, executable, wholly in the file, where ``file_offset`` says."""

    vaddr: int
    paddr: int
    content: bytes = field(repr=False)
    file_offset: int | None = None


def write(
    image: Image,
    edits: Mapping[int, bytes],
    segment: NewSegment,
    entry: int,
    file_edits: Mapping[int, bytes] = NO_EDITS,
    writer: Writer | None = None,
) -> bytes:
    """Return the ELF file with ``edits`` (virtual address to bytes), the new segment and entry.

    ``file_edits`` are by offset in the image's file; ``writer`` is one that was started for this. Same input,
    same bytes. Raises BadInput when the file
    has no room for one more program header.
    """
    data = bytearray(image.data)
    for offset, replacement in file_edits.items():
        data[offset : offset + len(replacement)] = replacement
    for vaddr, replacement in edits.items():
        home = image.segment_at(vaddr)
        if home is None or vaddr + len(replacement) > home.end:
            raise ValueError(f"an edit at {vaddr:#x} lies outside the file's segments")
        offset = home.file_offset + vaddr - home.vaddr
        data[offset : offset + len(replacement)] = replacement
    prepared = with_placeholder(bytes(data))
    if segment.file_offset is not None:
        return _written_at(image.data, prepared, segment, segment.file_offset, entry)
    # By number, since asking an unknown segment for its type makes LIEF raise.
    kinds = [fields[0] for fields in program_headers(prepared, read_header(prepared))]
    number = kinds.index(PT_GNU_STACK)
    request = Request(prepared, number, segment.content, segment.vaddr, segment.paddr, entry)
    written = (writer or Writer()).write(request)
    if written is None:
        raise BadInput("the ELF library can't read the file and add a segment to it")
    output = bytearray(written)
    if read_header(image.data).shnum == 0:
        output[32:36] = bytes(4)  # e_shoff, which LIEF fills in even when no section headers follow
    return bytes(output)


def _written_at(original: bytes, data: bytes, segment: NewSegment, offset: int, entry: int) -> bytes:
    """The file with the segment's bytes at ``offset``, counted in the original if a multiboot header counts.

    What lies behind the loaded bytes (symbols, section headers) goes behind the segment when it is in the
    way, or when the bytes up to the segment are loaded too.
    """
    found = multiboot(original)
    header = read_header(data)
    programs = program_headers(data, header)
    tail = max(p[1] + p[4] for p in programs if p[0] == PT_LOAD)
    in_the_way = len(data) > offset
    if found is not None and found.kludge:
        loads = kludge(original, found)
        moved = len(data) - len(original)
        offset += moved
        tail = len(data) if loads.whole else loads.offset_of(loads.load_end) + moved
        in_the_way = len(data) > tail
    if tail > offset:
        raise BadInput(f"the file has loaded bytes up to {tail:#x}, where the .vmi segment must begin")
    end = offset + len(segment.content)
    delta = -(-(end - tail) // PAGE) * PAGE if in_the_way else 0
    output = bytearray(data[:tail] if in_the_way else data).ljust(offset, b"\0") + segment.content
    if in_the_way:
        output = output.ljust(tail + delta, b"\0") + data[tail:]
    kinds = [fields[0] for fields in programs]
    for index, (kind, at, *rest) in enumerate(programs):
        here = header.phoff + index * PROGRAM_HEADER.size
        if index == kinds.index(PT_GNU_STACK):
            size = len(segment.content)
            new = (PT_LOAD, offset, segment.vaddr, segment.paddr, size, size, RWX, PAGE)
            PROGRAM_HEADER.pack_into(output, here, *new)
        elif kind != PT_LOAD and at >= tail:
            PROGRAM_HEADER.pack_into(output, here, kind, at + delta, *rest)
    if header.shnum and header.shoff >= tail:
        struct.pack_into("<I", output, 32, header.shoff + delta)
    table = header.shoff + (delta if header.shoff >= tail else 0)
    for index, fields in enumerate(section_headers(data, header)):
        if index and fields[4] >= tail:
            struct.pack_into("<I", output, table + index * SECTION_HEADER.size + 16, fields[4] + delta)
    struct.pack_into("<I", output, 24, entry)
    return bytes(output)


def with_placeholder(data: bytes) -> bytes:
    """Return the file with an empty PT_GNU_STACK program header, made from a needless one or added."""
    header = read_header(data)
    kinds = [fields[0] for fields in program_headers(data, header)]
    found = next((kind for kind in NEEDLESS if kind in kinds), None)
    if found is None:
        if not _room_after_table(data):
            data = _shifted(data)
            header = read_header(data)
        kinds.append(PT_GNU_STACK)
        found = PT_GNU_STACK
    grown = bytearray(data)
    at = header.phoff + kinds.index(found) * PROGRAM_HEADER.size
    PROGRAM_HEADER.pack_into(grown, at, PT_GNU_STACK, 0, 0, 0, 0, 0, 6, 16)
    struct.pack_into("<H", grown, 44, len(kinds))
    return bytes(grown)


def _room_after_table(data: bytes) -> bool:
    """True when one more program header fits after the table: zero bytes that nothing else claims.

    A segment may cover the file from before the table, and so load the headers; the padding after them
    is free only if section headers tell where its real contents begin.
    """
    header = read_header(data)
    start = header.phoff + header.phnum * PROGRAM_HEADER.size
    stop = start + PROGRAM_HEADER.size
    if stop > len(data) or any(data[start:stop]):
        return False
    claimed = [(header.shoff, header.shoff + header.shnum * SECTION_HEADER.size)] if header.shnum else []
    for _name, kind, _flags, _vaddr, offset, size, *_ in section_headers(data, header)[1:]:
        if kind != SHT_NOBITS:
            claimed.append((offset, offset + size))
    for _kind, offset, _vaddr, _paddr, size, *_ in program_headers(data, header):
        if offset >= start or not header.shnum:
            claimed.append((offset, offset + size))
    return not any(low < stop and high > start for low, high in claimed if high > low)


def _shifted(data: bytes) -> bytes:
    """Move everything but the headers up by one page in the file; no address changes."""
    found = multiboot(data)
    if found is not None and found.offset + PAGE + found.length > MULTIBOOT_SEARCH:
        raise BadInput(
            "there is no room for one more program header: making room would move the multiboot header "
            f"beyond the first {MULTIBOOT_SEARCH} bytes of the file"
        )
    header = read_header(data)
    if ELF_HEADER.size + (header.phnum + 1) * PROGRAM_HEADER.size > PAGE:
        raise BadInput(f"there is no room for one more program header beside the {header.phnum} of this file")
    table = b"".join(
        PROGRAM_HEADER.pack(kind, offset + PAGE, *rest)
        for kind, offset, *rest in program_headers(data, header)
    )
    body = bytearray(data)
    fields = list(ELF_HEADER.unpack_from(data))
    fields[5] = ELF_HEADER.size  # e_phoff
    if header.shnum:
        fields[6] = header.shoff + PAGE  # e_shoff
        for index, section in enumerate(section_headers(data, header)):
            if index:
                at = header.shoff + index * SECTION_HEADER.size
                SECTION_HEADER.pack_into(body, at, *section[:4], section[4] + PAGE, *section[5:])
    return (ELF_HEADER.pack(*fields) + table).ljust(PAGE, b"\0") + bytes(body)
