# SPDX-License-Identifier: GPL-2.0-only
"""The line table's rows of some files: the same that another reader finds, from tables of every version."""

from __future__ import annotations

import io
import itertools
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.dwarf.lineprogram import LineProgram
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from vmi.errors import BadInput
from vmi.patcher import linetable
from vmi.patcher.linetable import Span

HEADER = """
static inline void set(volatile unsigned *p, unsigned v) { *p = v; }
static inline unsigned long_way(volatile unsigned *p)
{
    unsigned sum = 0;
    for (int i = 0; i < 10; i++)
        sum += p[i] * 3;
    return sum;
}
"""
SOURCE = """
#include "{name}.h"
unsigned {name}(volatile unsigned *p, unsigned n)
{{
    set(p, 1);
    while (n--) {{
        p[n] ^= n;
        set(p + n, long_way(p));
    }}
    return long_way(p + 1);
}}
"""


def compiled(folder: Path, version: int) -> ELFFile:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: there is no table to read")
    objects = []
    for name in ("pgtable", "other"):
        (folder / f"{name}.h").write_text(HEADER)
        (folder / f"{name}.c").write_text(SOURCE.format(name=name))
        target = folder / f"{name}.o"
        flags = ["-m32", "-O2", f"-gdwarf-{version}", "-ffreestanding", "-fno-pic", "-ffunction-sections"]
        subprocess.run(["gcc", *flags, "-c", str(folder / f"{name}.c"), "-o", str(target)], check=True)
        objects.append(str(target))
    linked = folder / "linked"
    script = ["-m", "elf_i386", "-Ttext=0xc0100000", "-e", "0", "-o", str(linked)]
    subprocess.run(["ld", *script, *objects], check=True)
    return ELFFile(io.BytesIO(linked.read_bytes()))


def section(file: ELFFile, name: str) -> bytes:
    found = file.get_section_by_name(name)
    return b"" if found is None else found.data()


def other_reader(file: ELFFile, wanted: str) -> list[tuple[int, int]]:
    """All [row, next row) of one file, as another library reads them."""
    dwarf = file.get_dwarf_info(relocate_dwarf_sections=False)
    found = []
    for unit in dwarf.iter_CUs():
        program: LineProgram = dwarf.line_program_for_CU(unit)
        first = 0 if program.header.version >= 5 else 1
        names = [entry.name for entry in program.header.file_entry]
        rows = [entry.state for entry in program.get_entries() if entry.state is not None]
        for row, after in itertools.pairwise(rows):
            name = names[row.file - first].decode()
            if not row.end_sequence and name == wanted and row.address < after.address:
                found.append((row.address, after.address))
    return found


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_spans_are_those_of_another_reader(version: int, tmp_path: Path) -> None:
    file = compiled(tmp_path, version)
    tables = [section(file, name) for name in (".debug_line", ".debug_line_str", ".debug_str")]
    for wanted in ("pgtable.h", "other.c"):
        expected = other_reader(file, wanted)
        found = list(linetable.spans(tables[0], tables[1], tables[2], lambda name, w=wanted: name == w))
        assert [(span.start, span.end) for span in found] == expected
        assert len(expected) > 5
        assert {span.file for span in found} == {wanted}


def unit(code: bytes, files: bytes = b"a.h\0\0\0\0b.c\0\0\0\0", version: int = 2) -> bytes:
    """One unit of version 2: line base -3, line range 12, 10 opcodes, two files."""
    body = bytes([1, 1, 0xFD, 12, 10, 0, 1, 1, 1, 1, 0, 0, 0, 1]) + b"\0" + files + b"\0"
    content = struct.pack("<HI", version, len(body)) + body + code
    return struct.pack("<I", len(content)) + content


START = b"\0\x05\x02" + struct.pack("<I", 0xC0100000)
END = b"\0\x01\x01"


def spans(table: bytes) -> list[Span]:
    return list(linetable.spans(table, b"", b"", lambda name: name == "a.h"))


def test_every_way_to_move_the_address_counts() -> None:
    code = START + bytes([4, 2])  # in b.c
    code += bytes([10 + 12 * 5, 5, 0x8A, 0x7F, 3, 0x80, 0x7F, 8, 1, 6, 7])  # 5, and 20 by the constant
    code += bytes([2, 0x80, 1, 9, 0x10, 0])  # 128, 16
    code += bytes([4, 1, 1, 10 + 12 * 3, 4, 2, 10 + 12 * 2])  # a row here, one 3 on, the next 2 on
    base = 0xC0100000 + 5 + 20 + 128 + 16
    assert spans(unit(code + END)) == [Span(base, base + 3, "a.h"), Span(base + 3, base + 5, "a.h")]


def test_each_sequence_begins_anew() -> None:
    code = START + bytes([1, 2, 4]) + END + b"\0\x05\x02" + struct.pack("<I", 0xC0200000) + bytes([1, 2, 8])
    assert spans(unit(code + END)) == [
        Span(0xC0100000, 0xC0100004, "a.h"),
        Span(0xC0200000, 0xC0200008, "a.h"),
    ]


def test_units_without_the_file_are_passed_over() -> None:
    whole = unit(START + bytes([1, 2, 4]) + END)
    assert spans(unit(b"\xff" * 50, b"c.c\0\0\0\0") + whole) == spans(whole)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (unit(b"", version=6), "the line table has DWARF version 6, expected 2 to 5"),
        (unit(START)[:-1], "the line table is damaged in its unit at byte 0x0"),
        (unit(b"") + b"\1", "the line table is damaged in its unit at byte 0x28"),
        (unit(START[:-1]), "the line table is damaged in its unit at byte 0x0"),
        (unit(b"\2" + b"\xff" * 99), "the line table is damaged in its unit at byte 0x0"),
    ],
)
def test_damage_is_named(table: bytes, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        spans(table)
    assert str(caught.value) == sentence


WHOLE = unit(START + bytes([4, 2, 60, 5, 3, 4, 1, 1, 30, 4, 2, 70]) + END)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.binary(max_size=40))
def test_no_damage_ends_in_anything_but_a_sentence(at: int, byte: int, tail: bytes) -> None:
    changed = bytearray(WHOLE + tail)
    changed[at] = byte
    try:
        for span in spans(bytes(changed)):
            assert span.start < span.end
    except BadInput as error:
        assert str(error).startswith("the line table ")
