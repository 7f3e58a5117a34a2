# SPDX-License-Identifier: GPL-2.0-only
"""Read a kernel's ELF file, checking everything, into an Image.

Reading is plain structure unpacking and happens before any ELF library sees the file: a damaged file
must give one sentence, never a crash inside a native library or a hang on a size that lies. What is
accepted is narrow on purpose: an ELF32 little-endian i386 executable at fixed addresses whose
segments don't overlap, plain or compressed with gzip (as boot loaders accept it). Writing is in
``elfwrite``.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from vmi import sitetable
from vmi.errors import BadInput
from vmi.patcher.model import Access, Image, Relocation, Section, Segment, Symbol, SymbolKind

ELF_HEADER = struct.Struct("<16sHHIIIIIHHHHHH")  # 52 bytes
PROGRAM_HEADER = struct.Struct("<IIIIIIII")  # 32 bytes
SECTION_HEADER = struct.Struct("<IIIIIIIIII")  # 40 bytes
SYMBOL = struct.Struct("<IIIBBH")  # 16 bytes
RELOCATION = struct.Struct("<II")  # 8 bytes

PAGE = 0x1000
ADDRESS_SPACE = 1 << 32
ET_EXEC = 2
EM_386 = 3
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS, SHT_REL = 2, 3, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
SHN_UNDEF, SHN_ABS = 0, 0xFFF1

MULTIBOOT_MAGIC = 0x1BADB002
MULTIBOOT_SEARCH = 8192  # bytes from the start of the file that a boot loader searches
MULTIBOOT_KLUDGE = 1 << 16  # load addresses are in the multiboot header; program headers are not read
MAGIC = b"\x7fELF"
GZIP_MAGIC = b"\x1f\x8b"
MAX_UNPACKED = 256 << 20  # bytes; stops a small gzip file from filling memory
EMPTY_SLACK = 1 << 16  # bytes
MAX_HEADERS = 4096  # program or section headers; kernels have a few dozen
MAX_SEGMENTS = 64  # loadable ones
MAX_SHARING = 4  # sections that may claim the same byte of the file, on average
MAX_NAME = 4096  # bytes of a symbol's or section's name

VMI_SECTION = ".vmi"
VMI_MAGIC = b"VMIS"  # first bytes of a `.vmi` segment (see vmi/sitetable.py)


@dataclass(frozen=True, slots=True)
class Multiboot:
    """A multiboot 1 header: its file offset, flags word and length in bytes (12, 32 or 48)."""

    offset: int
    flags: int
    length: int

    @property
    def kludge(self) -> bool:
        """True when load addresses come from the header, so that program headers are not read."""
        return bool(self.flags & MULTIBOOT_KLUDGE)


@dataclass(frozen=True, slots=True)
class Kludge:
    """What a multiboot header with flag bit 16 has loaded: one range of the file, to one physical range.

    ``offset`` is where the range starts in the file, ``start`` where in memory; ``load_end`` is the first
    address that isn't loaded, and from there to ``end`` boot loaders clear memory. ``whole``: the header
    names no end, so all of the file is loaded.
    """

    offset: int
    start: int
    load_end: int
    end: int
    entry: int
    whole: bool

    def offset_of(self, paddr: int) -> int:
        """Where in the file the byte for a physical address lies."""
        return paddr - self.start + self.offset

    def __repr__(self) -> str:
        return f"Kludge({self.start:#x}-{self.load_end:#x}-{self.end:#x}, entry {self.entry:#x})"


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of an ELF header that the patcher uses."""

    entry: int
    phoff: int
    phnum: int
    shoff: int
    shnum: int
    shstrndx: int


def load(data: bytes, patched: bool = False) -> Image:
    """Check a kernel file (ELF, or ELF in gzip) and return its Image; raises BadInput, one sentence.

    ``Image.data`` is the unpacked file. A file that has a `.vmi` segment is refused unless ``patched``.
    """
    if data[:2] == GZIP_MAGIC:
        data = gunzip(data)
    header = read_header(data)
    segments = _segments(data, header)
    sections = section_headers(data, header)
    _check_sections(data, header, sections)
    image = Image(
        data=data,
        segments=segments,
        entry=header.entry,
        sections=_loaded_sections(data, header, sections),
        symbols=tuple(_symbols(data, sections)),
        relocations=tuple(_relocations(data, sections, segments)),
    )
    entry_segment(image)  # raises when the entry point is nowhere
    main_text(image)
    home = vmi_segment(image)
    if home is not None and not patched:
        _refuse_patched(home)
    if section_bytes(data, VMI_SECTION):
        raise BadInput(
            f"the kernel has a section {VMI_SECTION} of its own, which no file has that vmi patched"
        )
    return image


def _refuse_patched(home: Segment) -> NoReturn:
    try:
        sitetable.parse(home.data, home.vaddr)
    except BadInput as error:
        raise BadInput(
            f"the segment at {home.vaddr:#x} starts like a .vmi segment and is none: {error}"
        ) from None
    raise BadInput(f"the file is already patched: there is a .vmi segment at {home.vaddr:#x}")


def vmi_segment(image: Image) -> Segment | None:
    """The `.vmi` segment of a patched kernel, or None."""
    return next((segment for segment in image.segments if segment.data.startswith(VMI_MAGIC)), None)


def gunzip(data: bytes) -> bytes:
    """Unpack a gzip file; raises BadInput when it is damaged or unpacks to more than MAX_UNPACKED bytes."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            unpacked = stream.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error):
        raise BadInput("the gzip data is damaged or ends early") from None
    if len(unpacked) > MAX_UNPACKED:
        raise BadInput(f"the gzip data unpacks to more than {MAX_UNPACKED >> 20} MiB")
    return unpacked


def entry_segment(image: Image) -> Segment:
    """The segment that the entry point lies in, by virtual or by physical address.

    Virtual wins, as it does for boot loaders, and executable segments before others: nothing enforces the
    flags while a kernel starts, so some start in a segment that has only the one for reading. Raises BadInput
    when there is none.
    """
    for segment in sorted(image.segments, key=lambda segment: not segment.flags & Access.X):
        if segment.vaddr <= image.entry < segment.end:
            return segment
    for segment in sorted(image.segments, key=lambda segment: not segment.flags & Access.X):
        if segment.paddr <= image.entry < segment.paddr + segment.filesz:
            return segment
    raise BadInput(f"the entry point {image.entry:#x} lies in no segment")


def main_text(image: Image) -> Segment:
    """The segment that most code lies in; raises BadInput when nothing in the file is executable."""
    if image.text is None:
        raise BadInput("the file has no executable segment")
    return image.text


def physical_entry(image: Image) -> int:
    """Where the entry point is before paging is on."""
    return image.entry - (0 if entry_is_physical(image) else entry_segment(image).offset)


def entry_is_physical(image: Image) -> bool:
    """True when e_entry is a physical address (the linker scripts of some kernels do that)."""
    segment = entry_segment(image)
    return not segment.vaddr <= image.entry < segment.end


def multiboot(data: bytes) -> Multiboot | None:
    """The multiboot 1 header in the first 8 KiB of a file, or None."""
    for offset in range(0, min(MULTIBOOT_SEARCH, len(data)) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, offset)
        if magic == MULTIBOOT_MAGIC and (magic + flags + checksum) % ADDRESS_SPACE == 0:
            length = 48 if flags & 4 else 32 if flags & MULTIBOOT_KLUDGE else 12
            return Multiboot(offset, flags, length)
    return None


KLUDGE_FIELDS = struct.Struct("<5I")  # header, load, load end, bss end and entry address
KLUDGE_AT = 12  # offset of these in a multiboot header


def kludge(data: bytes, header: Multiboot) -> Kludge:
    """The load addresses of a multiboot header that has them; raises BadInput when they can't be right."""
    if header.offset + KLUDGE_AT + KLUDGE_FIELDS.size > len(data):
        raise BadInput("the file is truncated: it ends within its multiboot header")
    at, start, load_end, bss_end, entry = KLUDGE_FIELDS.unpack_from(data, header.offset + KLUDGE_AT)
    offset = header.offset - (at - start)
    loaded = load_end or start + len(data) - offset
    if at < start or not 0 <= offset <= header.offset or loaded <= at or (bss_end and bss_end < loaded):
        raise BadInput("the load addresses in the multiboot header contradict each other")
    if offset + loaded - start > len(data):
        raise BadInput("the file is truncated: the load addresses in its multiboot header go beyond its end")
    return Kludge(offset, start, loaded, bss_end or loaded, entry, load_end == 0)


def check_kludge(image: Image) -> None:
    """Raise BadInput when a multiboot header's load addresses say otherwise than the program headers."""
    header = multiboot(image.data)
    if header is None or not header.kludge:
        return
    loads = kludge(image.data, header)
    for segment in image.segments:
        physical_end = segment.paddr + segment.filesz
        inside = loads.start <= segment.paddr and physical_end <= loads.load_end
        unused = physical_end <= loads.start and not segment.flags & (Access.X | Access.W)
        if unused or not segment.data:
            continue  # the ELF header, which linkers put before the text
        if not (inside and loads.offset_of(segment.paddr) == segment.file_offset):
            raise BadInput(
                f"the load addresses in the multiboot header (flag bit 16) don't load the segment at "
                f"{segment.vaddr:#x} as its program header does"
            )
    entry = physical_entry(image)
    if loads.entry not in (entry, _jump_target(image, entry)):
        raise BadInput(
            f"the multiboot header's entry point {loads.entry:#x} is not that of the ELF header, {entry:#x}"
        )


def _jump_target(image: Image, paddr: int) -> int | None:
    """Where a direct jump at a physical address goes to, None when there is none."""
    home = image.virtual(paddr)
    code = image.read(home, 5) if home is not None else b""
    if code[:1] == b"\xeb" and len(code) > 1:
        return paddr + 2 + int.from_bytes(code[1:2], "little", signed=True)
    if code[:1] == b"\xe9" and len(code) == 5:
        return (paddr + 5 + int.from_bytes(code[1:], "little", signed=True)) % ADDRESS_SPACE
    return None


def symbol_values(data: bytes, names: Sequence[str]) -> dict[str, int]:
    """Values of the named symbols that the file defines, absolute ones included."""
    found = {}
    for name, value, _size, _info, shndx in _raw_symbols(data, section_headers(data, read_header(data))):
        if name in names and shndx != SHN_UNDEF:
            found[name] = value
    return found


def section_bytes(data: bytes, name: str) -> bytes:
    """Contents of the first section of that name, loaded or not; empty when there is none."""
    header = read_header(data)
    sections = section_headers(data, header)
    if not sections:
        return b""
    names = _slice(data, sections[header.shstrndx])
    found = (fields for fields in sections[1:] if _string(names, fields[0]) == name)
    return next((_slice(data, fields) for fields in found if fields[1] != SHT_NOBITS), b"")


@dataclass(frozen=True, slots=True)
class Tables:
    """What a linked file says of addresses: loaded sections (those without bytes left out), symbols, and
    the relocations that the linker kept for bytes that are loaded."""

    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    relocations: tuple[Relocation, ...]


def read_tables(data: bytes, segments: Sequence[Segment]) -> Tables:
    """The tables of a file whose own segments don't matter: ``segments`` are those of the kernel it is of.

    Raises BadInput as :func:`load` does.
    """
    header = read_header(data)
    sections = section_headers(data, header)
    _check_sections(data, header, sections)
    return Tables(
        _loaded_sections(data, header, sections),
        tuple(_symbols(data, sections)),
        tuple(_relocations(data, sections, segments)),
    )


def read_header(data: bytes) -> Header:
    """Check the ELF header and that both header tables lie in the file; raises BadInput."""
    if data[:4] != MAGIC[: len(data)] or not data:
        found = data[:4].hex(" ") or "an empty file"
        raise BadInput(f"not an ELF file: expected it to start with 7f 45 4c 46, got {found}")
    if len(data) < ELF_HEADER.size:
        raise BadInput(f"the file is truncated: an ELF header has {ELF_HEADER.size} bytes, got {len(data)}")
    fields = ELF_HEADER.unpack_from(data)
    ident, kind, machine, _version, entry, phoff, shoff = fields[:7]
    _flags, ehsize, phentsize, phnum, shentsize, shnum, shstrndx = fields[7:]
    if ident[4] != 1:
        raise BadInput(f"expected a 32-bit ELF (class 1), got class {ident[4]}")
    if ident[5] != 1:
        raise BadInput(f"expected a little-endian ELF (data encoding 1), got encoding {ident[5]}")
    if machine != EM_386:
        raise BadInput(f"expected an i386 kernel (ELF machine 3), got machine {machine}")
    if kind != ET_EXEC:
        raise BadInput(f"expected an executable linked at fixed addresses (ELF type 2), got type {kind}")
    if (ehsize, phentsize) != (ELF_HEADER.size, PROGRAM_HEADER.size):
        raise BadInput(f"expected ELF and program headers of 52 and 32 bytes, got {ehsize} and {phentsize}")
    if shnum and shentsize != SECTION_HEADER.size:
        raise BadInput(f"expected section headers of 40 bytes, got {shentsize}")
    if not 0 < phnum <= MAX_HEADERS:
        raise BadInput(f"expected 1 to {MAX_HEADERS} program headers, got {phnum}")
    if shnum > MAX_HEADERS:
        raise BadInput(f"expected at most {MAX_HEADERS} section headers, got {shnum}")
    if phoff < ELF_HEADER.size or (shnum and shoff < ELF_HEADER.size):
        raise BadInput("a header table overlaps the ELF header")
    _check_range(data, "program header table", phoff, phnum * PROGRAM_HEADER.size)
    if shnum:
        _check_range(data, "section header table", shoff, shnum * SECTION_HEADER.size)
    return Header(entry, phoff, phnum, shoff if shnum else 0, shnum, shstrndx)


def section_headers(data: bytes, header: Header) -> list[tuple[int, ...]]:
    """All section headers as tuples of their ten fields."""
    size = SECTION_HEADER.size
    return [SECTION_HEADER.unpack_from(data, header.shoff + n * size) for n in range(header.shnum)]


def program_headers(data: bytes, header: Header) -> list[tuple[int, ...]]:
    """All program headers as (type, offset, vaddr, paddr, filesz, memsz, flags, align)."""
    size = PROGRAM_HEADER.size
    return [PROGRAM_HEADER.unpack_from(data, header.phoff + n * size) for n in range(header.phnum)]


def _check_range(data: bytes, name: str, offset: int, size: int) -> None:
    # What is empty may lie a little beyond the end: linkers keep such offsets congruent to addresses.
    if offset + size > len(data) + (0 if size else EMPTY_SLACK):
        end = offset + size
        raise BadInput(f"the file is truncated: its {name} ends at byte {end}, it has {len(data)} bytes")


def _segments(data: bytes, header: Header) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for index, fields in enumerate(program_headers(data, header)):
        kind, offset, vaddr, paddr, file_size, memory_size, flags, _align = fields
        _check_range(data, f"segment {index}", offset, file_size)
        if kind in (PT_DYNAMIC, PT_INTERP):
            raise BadInput("the file is dynamically linked, and a kernel is not")
        if kind != PT_LOAD or memory_size == 0:
            continue
        if file_size > memory_size:
            raise BadInput(f"segment {index} has {file_size} bytes in the file but {memory_size} in memory")
        if vaddr + memory_size > ADDRESS_SPACE or paddr + memory_size > ADDRESS_SPACE:
            raise BadInput(f"segment {index} at {vaddr:#x} runs past the end of the 4 GiB address space")
        content = data[offset : offset + file_size]
        segments.append(Segment(vaddr, paddr, content, memory_size, Access(flags & 7), offset))
    if not segments:
        raise BadInput("the file has no loadable segment")
    if len(segments) > MAX_SEGMENTS:
        raise BadInput(f"expected at most {MAX_SEGMENTS} loadable segments, got {len(segments)}")
    segments.sort(key=lambda segment: segment.vaddr)
    for low, high in pairwise(segments):
        if low.vaddr + low.memsz > high.vaddr:
            raise BadInput(f"the segments at {low.vaddr:#x} and {high.vaddr:#x} overlap")
    physical = sorted(segments, key=lambda segment: segment.paddr)
    for low, high in pairwise(physical):
        if low.paddr + low.memsz > high.paddr:
            raise BadInput(f"the segments at {low.vaddr:#x} and {high.vaddr:#x} overlap in physical memory")
    in_file = sorted((s for s in segments if s.data), key=lambda segment: segment.file_offset)
    for low, high in pairwise(in_file):
        if low.file_offset + low.filesz > high.file_offset:
            raise BadInput(f"the segments at {low.vaddr:#x} and {high.vaddr:#x} share bytes of the file")
    return tuple(segments)


def _check_sections(data: bytes, header: Header, sections: Sequence[tuple[int, ...]]) -> None:
    if sections and any(sections[0][1:6]):
        raise BadInput("section 0 must be empty, and it is not")
    for index, fields in enumerate(sections[1:], start=1):
        _name, kind, flags, vaddr, offset, size, link, _info, _align, entry_size = fields
        _check_range(data, f"section {index}", offset, 0 if kind == SHT_NOBITS else size)
        if flags & SHF_ALLOC and vaddr + size > ADDRESS_SPACE:
            raise BadInput(f"section {index} at {vaddr:#x} runs past the end of the 4 GiB address space")
        if kind == SHT_SYMTAB:
            _check_names(sections, link, f"the names of the symbols in section {index}")
            if entry_size != SYMBOL.size or size % SYMBOL.size:
                raise BadInput(
                    f"the symbol table in section {index} should have entries of {SYMBOL.size} bytes, "
                    f"it has {size} bytes in entries of {entry_size}"
                )
    if sections:
        _check_names(sections, header.shstrndx, "the names of the sections")
    tables = sum(fields[1] == SHT_SYMTAB for fields in sections)
    if tables > 1:
        raise BadInput(f"expected one symbol table at most, got {tables}")
    claimed = sum(fields[5] for fields in sections if fields[1] != SHT_NOBITS)
    if claimed > MAX_SHARING * len(data):
        raise BadInput(f"the sections claim {claimed} bytes of the file, and it has {len(data)}")


def _check_names(sections: Sequence[tuple[int, ...]], index: int, what: str) -> None:
    if index >= len(sections):
        raise BadInput(f"{what} are said to be in section {index}, but there are {len(sections)} sections")
    if sections[index][1] != SHT_STRTAB:
        raise BadInput(f"{what} are said to be in section {index}, which is no string table")


def _loaded_sections(data: bytes, header: Header, sections: Sequence[tuple[int, ...]]) -> tuple[Section, ...]:
    if not sections:
        return ()
    names = _slice(data, sections[header.shstrndx])
    return tuple(
        Section(_string(names, name), vaddr, size, bool(flags & SHF_EXECINSTR), bool(flags & SHF_WRITE))
        for name, kind, flags, vaddr, _offset, size, *_ in sections[1:]
        if flags & SHF_ALLOC and kind != SHT_NOBITS and size
    )


def _slice(data: bytes, fields: Sequence[int]) -> bytes:
    return data[fields[4] : fields[4] + fields[5]]


def _string(table: bytes, offset: int) -> str:
    return table[offset : offset + MAX_NAME].partition(b"\0")[0].decode("utf-8", "replace")


def _raw_symbols(data: bytes, sections: Sequence[tuple[int, ...]]) -> list[tuple[str, int, int, int, int]]:
    """(name, value, size, type, section index) of every named symbol."""
    found = []
    for fields in sections:
        if fields[1] != SHT_SYMTAB:
            continue
        names = _slice(data, sections[fields[6]])
        table = _slice(data, fields)
        for name, value, size, info, _other, shndx in SYMBOL.iter_unpack(table):
            if name:
                found.append((_string(names, name), value, size, info & 0xF, shndx))
    return found


def _symbols(data: bytes, sections: Sequence[tuple[int, ...]]) -> list[Symbol]:
    kinds = {0: SymbolKind.OTHER, 1: SymbolKind.OBJECT, 2: SymbolKind.FUNCTION}
    symbols = [
        Symbol(name, value, size, kinds[kind])
        for name, value, size, kind, shndx in _raw_symbols(data, sections)
        if kind in kinds and shndx not in (SHN_UNDEF, SHN_ABS)
    ]
    return sorted(symbols, key=lambda symbol: (symbol.address, symbol.name))


def _relocations(
    data: bytes, sections: Sequence[tuple[int, ...]], segments: Sequence[Segment]
) -> list[Relocation]:
    """Relocations kept by the linker for bytes that are loaded, in address order."""
    found = []
    for fields in sections:
        target = fields[7]
        if fields[1] != SHT_REL or target >= len(sections) or not sections[target][2] & SHF_ALLOC:
            continue
        table = _slice(data, fields)
        table = table[: len(table) - len(table) % RELOCATION.size]
        found += [Relocation(address, info & 0xFF) for address, info in RELOCATION.iter_unpack(table)]
    inside = [r for r in found if any(s.vaddr <= r.address < s.end for s in segments)]
    return sorted(inside, key=lambda relocation: (relocation.address, relocation.kind))
