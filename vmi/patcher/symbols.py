# SPDX-License-Identifier: GPL-2.0-only
"""Symbols for a stripped kernel, from the debug file or the symbol map that belongs to it.

Both kinds of file are often about for kernels that people run, and both are worthless or worse if they are
of another build: addresses in them count as certain. So before anything is taken from one it is held against
the kernel: by build id and code where the file has them, a bare map by where the kernel's calls go.

A debug file can have hundreds of megabytes; only the tables that are needed are ever read, so ``data`` may
be a mapped file (an ``mmap``).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from vmi.errors import BadInput
from vmi.patcher import elf
from vmi.patcher.model import Access, Image, Symbol, SymbolKind

PT_NOTE, SHT_NOTE = 4, 7
SHF_COMPRESSED = 1 << 11
_BUILD_ID = 3  # the type of a note whose name is GNU
_ZLIB = 1
MAX_SECTION = 256 << 20  # bytes of an unpacked section

OTHER_BUILD = "the symbol file is of another build: {}"
_CALLED_OFTEN = 3  # calls; fewer may be chance
_LEAST_CALLED = 4  # such functions, or a map can't be checked
_KNOWN_SHARE = 0.95

_MAP_LINE = re.compile(rb"([0-9a-fA-F]{8}|[0-9a-fA-F]{16}) ([A-Za-z?-]) (\S+)(?:\t\[\S+\])?\s*")
_MAP_START = re.compile(rb"[0-9a-fA-F]{8}(?:[0-9a-fA-F]{8})? [A-Za-z?-] \S")
_CODE, _OBJECTS, _NOWHERE = b"tTwW", b"bBdDrRgGsSvV", b"aAuUN?-"


def merge(image: Image, data: bytes) -> Image:
    """``image`` with the symbols of a debug file (ELF, perhaps in gzip) or of a symbol map (as nm prints it).

    Section names and kept relocations are taken too where the image has none. Raises BadInput, one sentence,
    for a file that is neither, is damaged, or is of another build.
    """
    data = unpacked(data)
    if _is_map(data):
        symbols = tuple(sorted(_map_symbols(data), key=lambda s: (s.address, s.name)))
        check_map(image, symbols)
        return replace(image, symbols=_united(image, symbols))
    try:
        check_build(image, data)
        tables = elf.read_tables(data, image.segments)
    except BadInput as error:
        if str(error).startswith(OTHER_BUILD.format("")):
            raise
        raise BadInput(f"the symbol file can't be used: {error}") from None
    if not tables.symbols:
        raise BadInput("the symbol file has no symbols")
    return replace(
        image,
        sections=image.sections or tables.sections,
        symbols=_united(image, tables.symbols),
        relocations=image.relocations or tables.relocations,
    )


def unpacked(data: bytes) -> bytes:
    """A symbol file without its gzip coat, if it has one; raises BadInput when that is damaged."""
    if data[:2] != elf.GZIP_MAGIC:
        return data
    try:
        return elf.gunzip(data[:])
    except BadInput as error:
        raise BadInput(f"the symbol file can't be used: {error}") from None


def _united(image: Image, symbols: tuple[Symbol, ...]) -> tuple[Symbol, ...]:
    """Both files' symbols in the order that an Image has them, each once."""
    if not image.symbols:
        return symbols
    return tuple(sorted({*image.symbols, *symbols}, key=lambda s: (s.address, s.name, s.kind, s.size)))


# ---------------------------------------------------------------- debug files


def check_build(image: Image, data: bytes) -> None:
    """Raise BadInput unless ``data`` is an ELF file of the same build as ``image``."""
    header = elf.read_header(data)
    ours, theirs = build_id(image.data), build_id(data)
    if ours and theirs and ours != theirs:
        raise BadInput(OTHER_BUILD.format(f"its build id is {theirs.hex()}, the kernel's {ours.hex()}"))
    compared = 0
    for fields in elf.section_headers(data, header):
        _name, kind, flags, address, offset, size = fields[:6]
        if kind == elf.SHT_NOBITS or flags & (elf.SHF_ALLOC | elf.SHF_EXECINSTR) != (
            elf.SHF_ALLOC | elf.SHF_EXECINSTR
        ):
            continue
        code = data[offset : offset + size]
        at = _difference(image.read(address, size), code)
        if at is not None:
            raise BadInput(OTHER_BUILD.format(f"the code at {address + at:#x} differs"))
        compared += len(code)
    if not compared and not (ours and theirs):
        raise BadInput("it holds neither a build id nor code that would show that it is of this build")


def _difference(ours: bytes, theirs: bytes) -> int | None:
    """Offset of the first byte that differs or that one of the two hasn't, None when there is none."""
    if ours == theirs:
        return None
    pairs = zip(ours, theirs, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def build_id(data: bytes) -> bytes:
    """The build id of an ELF file, empty when it has none."""
    if not data:
        return b""
    header = elf.read_header(data)
    places = [(f[4], f[5]) for f in elf.section_headers(data, header) if f[1] == SHT_NOTE]
    places += [(f[1], f[4]) for f in elf.program_headers(data, header) if f[0] == PT_NOTE]
    for offset, size in places:
        for name, kind, content in _notes(data[offset : offset + min(size, 1 << 16)]):
            if name == b"GNU\0" and kind == _BUILD_ID:
                return content
    return b""


def _notes(raw: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + 12 <= len(raw):
        name, size, kind = (int.from_bytes(raw[at + n : at + n + 4], "little") for n in (0, 4, 8))
        start = at + 12 + -(-name // 4) * 4
        yield raw[at + 12 : at + 12 + name], kind, raw[start : start + size]
        at = start + -(-size // 4) * 4


def debug_section(data: bytes, name: str) -> bytes:
    """The contents of an ELF file's section that isn't loaded, unpacked; empty when there is none."""
    header = elf.read_header(data)
    sections = elf.section_headers(data, header)
    if not sections or header.shstrndx >= len(sections):
        return b""
    start, size = sections[header.shstrndx][4:6]
    names = data[start : start + size]
    wanted = name.encode() + b"\0"
    for fields in sections[1:]:
        if fields[1] != elf.SHT_NOBITS and names[fields[0] : fields[0] + len(wanted)] == wanted:
            raw = data[fields[4] : fields[4] + fields[5]]
            return _inflated(raw, name) if fields[2] & SHF_COMPRESSED else raw
    return b""


def _inflated(raw: bytes, name: str) -> bytes:
    kind = int.from_bytes(raw[:4], "little")
    if kind != _ZLIB:
        raise BadInput(f"the symbol file's {name} is compressed in way {kind}, expected 1 (zlib)")
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(raw[12:], MAX_SECTION)
    except zlib.error:
        raise BadInput(f"the symbol file's {name} is damaged") from None
    if not unpacker.eof:
        raise BadInput(f"the symbol file's {name} ends early or has more than {MAX_SECTION >> 20} MiB")
    return found


# ---------------------------------------------------------------- symbol maps


def _is_map(data: bytes) -> bool:
    return _MAP_START.match(data[:64]) is not None


def _map_symbols(data: bytes) -> Iterator[Symbol]:
    for number, line in enumerate(data[:].splitlines(), start=1):
        found = _MAP_LINE.fullmatch(line)
        if found is None:
            shown = line[:60].decode("utf-8", "backslashreplace")
            raise BadInput(
                f"line {number} of the symbol map must be an address, a letter and a name, got {shown!r}"
            )
        address, letter, name = int(found[1], 16), found[2], found[3].decode("utf-8", "replace")
        if letter in _NOWHERE or address >= elf.ADDRESS_SPACE:
            continue
        kind = SymbolKind.FUNCTION if letter in _CODE else SymbolKind.OTHER
        yield Symbol(name, address, 0, SymbolKind.OBJECT if letter in _OBJECTS else kind)


def check_map(image: Image, symbols: tuple[Symbol, ...]) -> None:
    """Raise BadInput unless what this kernel calls most is where a map says that functions are."""
    functions = {symbol.address for symbol in symbols if symbol.kind is SymbolKind.FUNCTION}
    called = _called(image)
    if not functions or len(called) < _LEAST_CALLED:
        raise BadInput("the symbol map can't be checked: it or the kernel has too few functions")
    known = sum(address in functions for address in called)
    if known < _KNOWN_SHARE * len(called):
        raise BadInput(
            OTHER_BUILD.format(
                f"of the {len(called)} functions that the kernel calls most it has {known} in their places"
            )
        )


def _called(image: Image) -> list[int]:
    """Addresses that look like the targets of several direct calls, those of most calls first."""
    ranges = [s for s in image.segments if s.flags & Access.X]
    targets: Counter[int] = Counter()
    for segment in ranges:
        code, base = segment.data, segment.vaddr + 5
        for found in re.finditer(rb"\xe8(?=(....))", code, re.DOTALL):
            targets[(base + found.start() + int.from_bytes(found[1], "little")) & 0xFFFFFFFF] += 1
    often = [
        address
        for address, count in targets.most_common(200)
        if count >= _CALLED_OFTEN and any(s.vaddr <= address < s.end for s in ranges)
    ]
    return often
