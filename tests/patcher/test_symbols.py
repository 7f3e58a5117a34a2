# SPDX-License-Identifier: GPL-2.0-only
"""Symbols from another file: taken whole when it is of the same build, refused in a sentence otherwise."""

from __future__ import annotations

import gzip
import mmap
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patcher.elfs import VADDR, Piece, small_kernel
from tests.patcher.images import BASE, source_image
from vmi.errors import BadInput
from vmi.patcher import elf, symbols
from vmi.patcher.elf import SECTION_HEADER
from vmi.patcher.model import SymbolKind

WITH = [("start", VADDR + 0x10, 2), ("table", VADDR + 0x1000, 1)]
FULL = small_kernel(symbols=WITH)
STRIPPED = elf.load(small_kernel(symbols=[], sections=False))


def note(identity: bytes) -> bytes:
    return struct.pack("<III", 4, len(identity), 3) + b"GNU\0" + identity


def as_type(data: bytes, name: str, kind: int, flags: int = 0) -> bytes:
    """The file with another type and flags in the header of one section."""
    header = elf.read_header(data)
    changed = bytearray(data)
    fields = elf.section_headers(data, header)
    names = data[fields[header.shstrndx][4] :]
    for number, section in enumerate(fields):
        if names[section[0] :].startswith(name.encode() + b"\0"):
            new = (section[0], kind, flags, *section[3:])
            at = header.shoff + number * SECTION_HEADER.size
            changed[at : at + SECTION_HEADER.size] = SECTION_HEADER.pack(*new)
    return bytes(changed)


def with_id(identity: bytes) -> bytes:
    return as_type(small_kernel(symbols=WITH, extra={".notes": note(identity)}), ".notes", symbols.SHT_NOTE)


def refusal(data: bytes, image: elf.Image = STRIPPED) -> str:
    with pytest.raises(BadInput) as caught:
        symbols.merge(image, data)
    return str(caught.value)


def test_a_stripped_kernel_gets_all_that_the_debug_file_has() -> None:
    merged = symbols.merge(STRIPPED, FULL)
    assert [(s.name, s.address, s.kind) for s in merged.symbols] == [
        ("start", VADDR + 0x10, SymbolKind.FUNCTION),
        ("table", VADDR + 0x1000, SymbolKind.OBJECT),
    ]
    assert [section.name for section in merged.sections] == [".text", ".data"]
    assert merged.data == STRIPPED.data
    assert symbols.merge(STRIPPED, gzip.compress(FULL)) == merged


def test_a_mapped_file_will_do(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(FULL)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert symbols.merge(STRIPPED, mapped) == symbols.merge(STRIPPED, FULL)  # type: ignore[arg-type]


def test_what_the_kernel_has_itself_stays() -> None:
    image = elf.load(small_kernel(symbols=[("own", VADDR + 0x20, 2), WITH[0]]))
    merged = symbols.merge(image, FULL)
    assert [s.name for s in merged.symbols] == ["start", "own", "table"]
    assert merged.sections == image.sections


def test_another_build_is_told_by_its_code() -> None:
    code = bytearray(STRIPPED.segments[0].data)
    code[0x30] ^= 1
    other = small_kernel(pieces=[Piece(VADDR, bytes(code), section=".text")], symbols=WITH)
    expected = f"the symbol file is of another build: the code at {VADDR + 0x30:#x} differs"
    assert refusal(other) == expected
    longer = small_kernel(pieces=[Piece(VADDR, bytes(STRIPPED.segments[0].data) + b"\x90", section=".text")])
    end = VADDR + len(code)
    assert refusal(longer) == f"the symbol file is of another build: the code at {end:#x} differs"


def test_another_build_is_told_by_its_id() -> None:
    image = elf.load(with_id(b"\x11" * 20))
    assert symbols.build_id(image.data) == b"\x11" * 20
    assert symbols.merge(image, with_id(b"\x11" * 20)).symbols
    assert refusal(with_id(b"\x22" * 20), image) == (
        f"the symbol file is of another build: its build id is {'22' * 20}, the kernel's {'11' * 20}"
    )


def test_a_file_that_proves_nothing_is_refused() -> None:
    empty = as_type(FULL, ".text", elf.SHT_NOBITS, elf.SHF_ALLOC | elf.SHF_EXECINSTR)
    assert refusal(empty) == (
        "the symbol file can't be used: it holds neither a build id nor code that would show that it is of"
        " this build"
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (FULL[:4] + b"\x02" + FULL[5:], "expected a 32-bit ELF (class 1), got class 2"),
        (FULL[:18] + b"\x28" + FULL[19:], "expected an i386 kernel (ELF machine 3), got machine 40"),
        (b"", "not an ELF file: expected it to start with 7f 45 4c 46, got an empty file"),
        (gzip.compress(FULL)[:-9], "the gzip data is damaged or ends early"),
        (
            FULL[:-1],
            f"the file is truncated: its section header table ends at byte {len(FULL)},"
            f" it has {len(FULL) - 1} bytes",
        ),
    ],
)
def test_a_file_of_another_machine_or_a_damaged_one_is_refused(data: bytes, sentence: str) -> None:
    assert refusal(data) == f"the symbol file can't be used: {sentence}"


def test_a_file_without_symbols_is_refused() -> None:
    assert refusal(small_kernel(symbols=[])) == "the symbol file has no symbols"


@given(st.integers(0, len(FULL) - 1), st.integers(0, 255), st.integers(0, len(FULL)))
def test_no_damage_ends_in_anything_but_a_sentence(at: int, byte: int, length: int) -> None:
    changed = bytearray(FULL)
    changed[at] = byte
    for data in (bytes(changed), FULL[:length]):
        try:
            symbols.merge(STRIPPED, data)
            symbols.debug_section(data, ".debug_line")
        except BadInput as error:
            assert "\n" not in str(error)


def test_a_compressed_section_is_unpacked() -> None:
    packed = struct.pack("<III", 1, 1000, 1) + zlib.compress(b"lines" * 200)
    data = small_kernel(extra={".debug_line": packed, ".debug_str": b"plain"})
    data = as_type(data, ".debug_line", 1, symbols.SHF_COMPRESSED)
    assert symbols.debug_section(data, ".debug_line") == b"lines" * 200
    assert symbols.debug_section(data, ".debug_str") == b"plain"
    assert symbols.debug_section(data, ".debug_info") == b""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (struct.pack("<III", 2, 9, 1), ".debug_line is compressed in way 2, expected 1 (zlib)"),
        (struct.pack("<III", 1, 9, 1) + b"no", ".debug_line is damaged"),
        (
            struct.pack("<III", 1, 9, 1) + zlib.compress(b"x" * 99)[:-6],
            ".debug_line ends early or has more than 256 MiB",
        ),
    ],
)
def test_a_section_that_can_not_be_unpacked_is_refused(content: bytes, sentence: str) -> None:
    data = small_kernel(extra={".debug_line": content})
    with pytest.raises(BadInput) as caught:
        symbols.debug_section(as_type(data, ".debug_line", 1, symbols.SHF_COMPRESSED), ".debug_line")
    assert str(caught.value) == f"the symbol file's {sentence}"


# ---------------------------------------------------------------- symbol maps

FUNCTIONS = ["one", "two", "three", "four", "five"]
CALLS = "".join(f"    call {name}\n" * 3 for name in FUNCTIONS)
CALLED, LABELS = source_image(
    CALLS + "    hlt\n" + "".join(f"{name}:\n    nop\n    ret\n" for name in FUNCTIONS)
)


def map_text(offset: int = 0) -> bytes:
    lines = [f"{LABELS.labels[name] + offset:08x} T {name}" for name in FUNCTIONS]
    lines += [f"{BASE + 0x10000:08x} d data\t[module]", f"{BASE:016x} W _start", "00000010 a absolute"]
    return ("\n".join(lines) + "\n").encode()


def test_a_map_gives_symbols_of_all_kinds() -> None:
    merged = symbols.merge(CALLED, map_text())
    found = {symbol.name: symbol.kind for symbol in merged.symbols}
    assert found == {
        **dict.fromkeys([*FUNCTIONS, "_start"], SymbolKind.FUNCTION),
        "data": SymbolKind.OBJECT,
    }
    assert [s.address for s in merged.symbols] == sorted(s.address for s in merged.symbols)


def test_a_map_of_another_build_is_refused() -> None:
    assert refusal(map_text(1), CALLED) == (
        "the symbol file is of another build: of the 5 functions that the kernel calls most it has 0 in"
        " their places"
    )


def test_a_map_that_can_not_be_checked_is_refused() -> None:
    expected = "the symbol map can't be checked: it or the kernel has too few functions"
    assert refusal(map_text(), replace(CALLED, segments=STRIPPED.segments)) == expected
    assert refusal(b"c0100000 D data\n", CALLED) == expected


def test_a_line_that_is_none_of_a_map_is_named() -> None:
    assert refusal(map_text() + b"nothing to see\n", CALLED) == (
        "line 9 of the symbol map must be an address, a letter and a name, got 'nothing to see'"
    )
