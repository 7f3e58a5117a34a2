# SPDX-License-Identifier: GPL-2.0-only
"""The line table of a debug file: which instructions come from which source files.

A kernel's table has millions of rows and only those of a few files matter here, so rows are never made:
runs of opcodes that don't change the file are skipped at once and only their advance of the address is
added up. That makes a table of 16 MB a matter of seconds. DWARF 2 to 5, for 32-bit code.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from vmi.errors import BadInput

_COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE, _SET_COLUMN = 1, 2, 3, 4, 5
_CONST_ADD_PC, _FIXED_ADVANCE = 8, 9
_END_SEQUENCE, _SET_ADDRESS = 1, 2
_PATH = 1  # what DWARF 5 calls a name among the fields of a file
_STRING, _LINE_STRP, _STRP = 0x08, 0x1F, 0x0E
_FIXED = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16}
_UDATA, _BLOCK = 0x0F, 0x09
_LONGEST = 64  # bits of a number
_U32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Span:
    """The instructions of [start, end) come from ``file`` (a base name)."""

    start: int
    end: int
    file: str


@dataclass(frozen=True, slots=True)
class _Program:
    """One unit's header: where its opcodes are, what they mean, and its file names by number."""

    start: int
    end: int
    step: int
    line_range: int
    operands: bytes
    files: tuple[str, ...]

    @property
    def first_special(self) -> int:
        return len(self.operands)


def spans(table: bytes, line_strings: bytes, strings: bytes, wanted: Callable[[str], bool]) -> Iterator[Span]:
    """What comes from files whose base name is ``wanted``, in the order of the table.

    The arguments are the sections .debug_line, .debug_line_str and .debug_str. Raises BadInput where the
    table is damaged.
    """
    at = 0
    while at < len(table):
        try:
            program = _header(table, at, line_strings, strings)
            numbers = frozenset(n for n, name in enumerate(program.files) if wanted(name))
            if numbers:
                yield from _run(table[program.start : program.end], program, numbers)
        except (struct.error, IndexError):
            raise BadInput(f"the line table is damaged in its unit at byte {at:#x}") from None
        at = program.end


class _Reader:
    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    def number(self, size: int) -> int:
        value = self.data[self.at : self.at + size]
        if len(value) < size or self.at + size > self.end:
            raise IndexError
        self.at += size
        return int.from_bytes(value, "little")

    def leb(self) -> int:
        value = shift = 0
        while True:
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value
            if shift > _LONGEST:
                raise IndexError

    def text(self) -> bytes:
        stop = self.data.find(b"\0", self.at, self.end)
        if stop < 0:
            raise IndexError
        found, self.at = self.data[self.at : stop], stop + 1
        return found


def _header(table: bytes, at: int, line_strings: bytes, strings: bytes) -> _Program:
    (length,) = _U32.unpack_from(table, at)
    end = at + 4 + length
    if length >= 0xFFFFFFF0 or end > len(table):
        raise IndexError
    # names are short of the end of the header: only that much is ever copied
    reader = _Reader(table, at + 4, end)
    version = reader.number(2)
    if not 2 <= version <= 5:
        raise BadInput(f"the line table has DWARF version {version}, expected 2 to 5")
    if version == 5:
        reader.number(2)  # sizes of addresses and selectors
    size = reader.number(4)
    start = reader.at + size
    if start > end:
        raise IndexError
    reader = _Reader(table[reader.at : start], 0, size)
    step = reader.number(1)
    if version >= 4:
        reader.number(1)  # operations in an instruction
    reader.number(2)  # is_stmt, line base
    line_range = reader.number(1)
    first_special = reader.number(1)
    if not line_range or not first_special:
        raise IndexError
    operands = b"\0" + bytes(reader.number(1) for _ in range(first_special - 1))
    files = _names5(reader, line_strings, strings) if version == 5 else _names(reader)
    return _Program(start, end, step, line_range, operands, tuple(map(_base, files)))


def _names(reader: _Reader) -> list[bytes]:
    while reader.text():
        pass  # directories
    names = [b""]  # numbers begin with 1
    while name := reader.text():
        names.append(name)
        for _ in range(3):
            reader.leb()
    return names


def _names5(reader: _Reader, line_strings: bytes, strings: bytes) -> list[bytes]:
    names: list[bytes] = []
    for _ in ("directories", "files"):
        layout = [(reader.leb(), reader.leb()) for _ in range(reader.number(1))]
        count = reader.leb()
        if not layout and count:
            raise IndexError
        names = []
        for _ in range(count):
            fields = {kind: _field(reader, form, line_strings, strings) for kind, form in layout}
            names.append(fields.get(_PATH, b""))
    return names


def _field(reader: _Reader, form: int, line_strings: bytes, strings: bytes) -> bytes:
    if form == _STRING:
        return reader.text()
    if form in (_LINE_STRP, _STRP):
        table, at = line_strings if form == _LINE_STRP else strings, reader.number(4)
        stop = table.find(b"\0", at)
        if not 0 <= at <= stop:
            raise IndexError
        return table[at:stop]
    if form == _UDATA:
        reader.leb()
    elif form == _BLOCK:
        for _ in range(reader.leb()):
            reader.number(1)
    else:
        reader.number(_FIXED.get(form, 1 << 32))
    return b""


def _base(name: bytes) -> str:
    return name.rpartition(b"/")[2].decode("utf-8", "replace")


@cache
def _patterns(operands: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """A run of opcodes that make rows or change what doesn't matter, and those among them that make none."""
    leb = rb"[\x80-\xff]*[\x00-\x7f]"
    known = (_ADVANCE_PC, _SET_FILE, _CONST_ADD_PC, _FIXED_ADVANCE)
    quiet = [
        re.escape(bytes([opcode])) + leb * operands[opcode]
        for opcode in range(1, len(operands))
        if opcode not in known
    ]
    special = rb"[\x%02x-\xff\x08]+" % len(operands) if len(operands) <= 0xFF else rb"\x08+"
    silent = b"|".join(quiet)
    return re.compile(rb"(?:" + special + b"|" + silent + rb")+"), re.compile(silent)


def _advances(program: _Program) -> bytes:
    """By opcode: how many steps it moves the address on."""
    first, line_range = program.first_special, program.line_range
    table = bytearray(256)
    for opcode in range(first, 256):
        table[opcode] = (opcode - first) // line_range
    table[_CONST_ADD_PC] = (255 - first) // line_range
    return bytes(table)


def _run(code: bytes, program: _Program, numbers: frozenset[int]) -> Iterator[Span]:
    """Interpret the opcodes of one unit."""
    run, silent = _patterns(program.operands)
    advances, step = _advances(program), program.step
    reader = _Reader(code, 0, len(code))
    address, file = 0, 1
    begun: tuple[int, int] | None = None  # address and file of a row whose end is not known
    while reader.at < len(code):
        if begun is None and file not in numbers:
            found = run.match(code, reader.at)
            if found is not None:
                address += step * sum(silent.sub(b"", found[0]).translate(advances))
                reader.at = found.end()
                continue
        opcode = reader.number(1)
        row = over = False
        if opcode >= program.first_special:
            address += step * advances[opcode]
            row = True
        elif opcode == 0:
            rest = reader.leb()
            after = reader.at + rest
            kind = reader.number(1)
            if kind == _SET_ADDRESS:
                address = reader.number(rest - 1)
            elif kind == _END_SEQUENCE:
                over = True
            if after > len(code):
                raise IndexError
            reader.at = after
        elif opcode == _ADVANCE_PC:
            address += step * reader.leb()
        elif opcode == _SET_FILE:
            file = reader.leb()
        elif opcode == _CONST_ADD_PC:
            address += step * advances[opcode]
        elif opcode == _FIXED_ADVANCE:
            address += reader.number(2)
        else:
            for _ in range(program.operands[opcode]):
                reader.leb()
            row = opcode == _COPY
        if (row or over) and begun is not None:
            start, number = begun
            if start < address:
                yield Span(start, address & 0xFFFFFFFF, program.files[number])
            begun = None
        if over:
            address, file = 0, 1
        elif row and file in numbers:
            begun = (address, file)
