# SPDX-License-Identifier: GPL-2.0-only
"""Files that are no kernel, or a broken one, get one sentence each; good ones are read right."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patcher.elfs import MULTIBOOT, PADDR, VADDR, Piece, Plan, kernel_code, make, small_kernel
from vmi.errors import BadInput, VmiError
from vmi.patcher import elf, elfwrite, patch
from vmi.patcher.elf import PAGE
from vmi.patcher.model import Access, Relocation, SymbolKind

SMALL = small_kernel(first_offset=0x94)
"""A kernel file as short as it can be."""


def sentence(data: bytes) -> str:
    with pytest.raises(BadInput) as caught:
        elf.load(data)
    return str(caught.value)


def changed(offset: int, layout: str, value: int, data: bytes = SMALL) -> bytes:
    copy = bytearray(data)
    struct.pack_into(layout, copy, offset, value)
    return bytes(copy)


def test_a_good_file_is_read() -> None:
    image = elf.load(small_kernel())
    text, data = image.segments
    code = kernel_code()
    assert (text.vaddr, text.paddr, text.data, text.memsz) == (VADDR, PADDR, code, len(code))
    assert text.flags == Access.R | Access.X
    assert (data.vaddr, data.filesz, data.memsz) == (VADDR + PAGE, 64, 0x1234)
    assert data.flags == Access.R | Access.W
    assert [section.name for section in image.sections] == [".text", ".data"]
    assert [(symbol.name, symbol.address) for symbol in image.symbols] == [
        ("start", VADDR + 0x10),
        ("end", VADDR + 0x2234),
    ]
    assert image.symbols[0].kind is SymbolKind.OTHER
    assert image.entry == VADDR
    assert not elf.entry_is_physical(image)


def test_the_multiboot_header_is_found() -> None:
    data = small_kernel()
    found = elf.multiboot(data)
    assert found == elf.Multiboot(offset=data.index(MULTIBOOT), flags=3, length=12)
    assert not found.kludge
    assert elf.multiboot(data.replace(MULTIBOOT, bytes(12))) is None


def test_gzip_is_unpacked() -> None:
    data = small_kernel()
    assert elf.load(gzip.compress(data)).data == data


def test_a_physical_entry_point_is_recognised() -> None:
    image = elf.load(small_kernel(entry=PADDR + 0x10))
    assert elf.entry_is_physical(image)
    assert elf.entry_segment(image).vaddr == VADDR


def test_kept_relocations_are_read() -> None:
    relocations = struct.pack("<IIII", VADDR + 4, 0x101, 0xD0000000, 0x101)
    data = small_kernel(extra={".rel.text": relocations})
    at = data.index(struct.pack("<II", 1, 0) + struct.pack("<I", 0), len(data) - 400)
    header = elf.read_header(data)
    rows = elf.section_headers(data, header)
    index = next(n for n, row in enumerate(rows) if row[5] == 16 and row[1] == 1)
    row = header.shoff + 40 * index
    data = changed(row + 4, "<I", elf.SHT_REL, data)
    data = changed(row + 28, "<I", 1, data)
    assert elf.load(data).relocations == (Relocation(VADDR + 4, 1),)
    assert at > 0


HEADER_SENTENCES = [
    (b"", "not an ELF file: expected it to start with 7f 45 4c 46, got an empty file"),
    (b"MZ\x90\0", "not an ELF file: expected it to start with 7f 45 4c 46, got 4d 5a 90 00"),
    (SMALL[:20], "the file is truncated: an ELF header has 52 bytes, got 20"),
    (changed(4, "B", 2), "expected a 32-bit ELF (class 1), got class 2"),
    (changed(5, "B", 2), "expected a little-endian ELF (data encoding 1), got encoding 2"),
    (changed(18, "<H", 62), "expected an i386 kernel (ELF machine 3), got machine 62"),
    (changed(16, "<H", 1), "expected an executable linked at fixed addresses (ELF type 2), got type 1"),
    (changed(42, "<H", 56), "expected ELF and program headers of 52 and 32 bytes, got 52 and 56"),
    (changed(46, "<H", 64), "expected section headers of 40 bytes, got 64"),
    (changed(44, "<H", 0), "expected 1 to 4096 program headers, got 0"),
    (changed(48, "<H", 5000), "expected at most 4096 section headers, got 5000"),
    (changed(28, "<I", 4), "a header table overlaps the ELF header"),
    (
        changed(28, "<I", 100000),
        f"the file is truncated: its program header table ends at byte 100096, it has {len(SMALL)} bytes",
    ),
    (
        SMALL[:-1],
        f"the file is truncated: its section header table ends at byte {len(SMALL)}, "
        f"it has {len(SMALL) - 1} bytes",
    ),
    (
        changed(50, "<H", 77),
        "the names of the sections are said to be in section 77, but there are 6 sections",
    ),
    (changed(50, "<H", 1), "the names of the sections are said to be in section 1, which is no string table"),
    (changed(52 + 4, "<I", 0xD4), "the segments at 0xc0100000 and 0xc0101000 share bytes of the file"),
    (changed(52, "<I", 2), "the file is dynamically linked, and a kernel is not"),
    (changed(52 + 20, "<I", 4), "segment 0 has 96 bytes in the file but 4 in memory"),
    (
        changed(52 + 20, "<I", 0x40000000),
        "segment 0 at 0xc0100000 runs past the end of the 4 GiB address space",
    ),
    (
        changed(52 + 16, "<I", 0x10000),
        f"the file is truncated: its segment 0 ends at byte 65684, it has {len(SMALL)} bytes",
    ),
    (changed(52 + 20, "<I", 0x2000), "the segments at 0xc0100000 and 0xc0101000 overlap"),
    (
        changed(52 + 12, "<I", PADDR + 0x1010),
        "the segments at 0xc0101000 and 0xc0100000 overlap in physical memory",
    ),
    (changed(24, "<I", 0x12345), "the entry point 0x12345 lies in no segment"),
    (gzip.compress(SMALL)[:-20], "the gzip data is damaged or ends early"),
    (b"\x1f\x8b" + bytes(30), "the gzip data is damaged or ends early"),
]


@pytest.mark.parametrize(("data", "expected"), HEADER_SENTENCES, ids=[text for _, text in HEADER_SENTENCES])
def test_a_bad_file_gets_one_sentence(data: bytes, expected: str) -> None:
    assert sentence(data) == expected


def test_a_file_without_loadable_segments_is_refused() -> None:
    data = changed(52, "<I", 4, changed(52 + 32, "<I", 4))
    assert sentence(data) == "the file has no loadable segment"


def test_a_section_beyond_the_file_is_refused() -> None:
    header = elf.read_header(SMALL)
    data = changed(header.shoff + 40 + 20, "<I", 0x100000)
    end = 0x94 + 0x100000
    assert sentence(data) == (
        f"the file is truncated: its section 1 ends at byte {end}, it has {len(SMALL)} bytes"
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (
            24,
            99,
            "the names of the symbols in section 3 are said to be in section 99, but there are 6 sections",
        ),
        (
            36,
            24,
            "the symbol table in section 3 should have entries of 16 bytes, it has 48 bytes in entries of 24",
        ),
    ],
)
def test_a_damaged_symbol_table_is_refused(field: int, value: int, expected: str) -> None:
    header = elf.read_header(SMALL)
    assert sentence(changed(header.shoff + 3 * 40 + field, "<I", value)) == expected


def test_section_zero_is_checked() -> None:
    header = elf.read_header(SMALL)
    assert sentence(changed(header.shoff + 20, "<I", 1)) == "section 0 must be empty, and it is not"


def test_a_patched_file_is_refused() -> None:
    once = patch(small_kernel()).data
    assert sentence(once) == "the file is already patched: there is a .vmi segment at 0xc0103000"
    assert elf.vmi_segment(elf.load(once, patched=True)) is not None


def test_a_gzip_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "MAX_UNPACKED", 1 << 20)
    assert sentence(gzip.compress(bytes(2 << 20))) == "the gzip data unpacks to more than 1 MiB"


def test_truncation_at_every_byte_is_refused() -> None:
    for size in range(len(SMALL)):
        assert sentence(SMALL[:size])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_patched_but_never_crashes(data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        interesting = st.one_of(
            st.integers(0, 0x7F),  # ELF header, program headers
            st.integers(len(SMALL) - 6 * 40, len(SMALL) - 1),  # section headers
            st.integers(0, len(SMALL) - 1),
        )
        damaged[data.draw(interesting)] = data.draw(st.integers(0, 255))
    try:
        patched = patch(bytes(damaged))
    except VmiError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert patched.data.startswith(b"\x7fELF")


# --- writing ------------------------------------------------------------------------------------


def written(data: bytes) -> tuple[ELFFile, bytes]:
    image = elf.load(data)
    segment = elfwrite.NewSegment(VADDR + 0x8000, PADDR + 0x8000, b"VMIS".ljust(0x2000, b"\x5a"))
    output = elfwrite.write(image, {VADDR + 0x20: b"\xcc\xcc"}, segment, VADDR + 0x8010)
    assert output == elfwrite.write(image, {VADDR + 0x20: b"\xcc\xcc"}, segment, VADDR + 0x8010)
    return ELFFile(io.BytesIO(output)), output


def with_third_header(kind: int) -> bytes:
    """A kernel whose program headers have no room behind them, the last being of this kind."""
    data = bytearray(small_kernel())
    struct.pack_into("<I", data, 52 + 2 * 32, kind)
    data[52 + 3 * 32 : 52 + 4 * 32] = b"\x11" * 32
    return bytes(data)


SHAPES: list[tuple[str, Callable[[], bytes], int]] = [
    ("a PT_GNU_STACK to replace", small_kernel, 0x1000),
    ("a PT_NULL to replace", lambda: with_third_header(0), 0x1000),
    ("a PT_GNU_PROPERTY to replace", lambda: with_third_header(0x6474E553), 0x1000),
    ("room after the table", lambda: small_kernel(stack_header=False), 0x1000),
    ("no room at all", lambda: small_kernel(stack_header=False, first_offset=0x74), 0x1074),
]


@pytest.mark.parametrize(("_what", "kernel", "text_at"), SHAPES, ids=[what for what, _, _ in SHAPES])
def test_a_segment_is_added_and_the_table_stays(
    _what: str, kernel: Callable[[], bytes], text_at: int
) -> None:
    file, output = written(kernel())
    assert file["e_phoff"] == 52
    assert file["e_entry"] == VADDR + 0x8010
    loads = [s for s in file.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [(s["p_vaddr"], s["p_paddr"], s["p_filesz"], s["p_memsz"], s["p_flags"]) for s in loads] == [
        (VADDR, PADDR, 96, 96, 5),
        (VADDR + 0x1000, PADDR + 0x1000, 64, 0x1234, 6),
        (VADDR + 0x8000, PADDR + 0x8000, 0x2000, 0x2000, 7),
    ]
    assert loads[0]["p_offset"] == text_at
    expected = bytearray(kernel_code())
    expected[0x20:0x22] = b"\xcc\xcc"
    assert loads[0].data() == bytes(expected)
    assert loads[2].data() == b"VMIS".ljust(0x2000, b"\x5a")
    assert loads[2]["p_offset"] % PAGE == 0
    text, table = file.get_section_by_name(".text"), file.get_section_by_name(".symtab")
    assert text is not None
    assert text.data() == bytes(expected)
    assert isinstance(table, SymbolTableSection)
    assert [symbol.name for symbol in table.iter_symbols()] == ["", "start", "end"]
    found = elf.multiboot(output)
    assert found is not None
    assert found.offset == text_at + 8


def test_a_stripped_file_stays_stripped() -> None:
    image = elf.load(small_kernel(sections=False, stack_header=False))
    segment = elfwrite.NewSegment(VADDR + 0x8000, PADDR + 0x8000, b"VMIS".ljust(0x1000, b"\0"))
    output = elfwrite.write(image, {}, segment, VADDR + 0x8010)
    again = elf.load(output, patched=True)
    assert len(again.segments) == 3
    assert output[32:36] == bytes(4)


def test_headers_loaded_with_the_text_are_not_overwritten() -> None:
    """A segment that starts with the file's own headers: its first bytes are the old headers."""
    code = kernel_code(VADDR + 0x74)
    plan = Plan([Piece(VADDR + 0x74, code, section=".text")], VADDR + 0x74, stack_header=False)
    plan.first_offset = 0x74
    data = bytearray(make(plan))
    head = bytes(data[:0x74])
    struct.pack_into("<IIIII", data, 56, 0, VADDR, PADDR, len(code) + 0x74, len(code) + 0x74)
    image = elf.load(bytes(data))
    assert image.segments[0].data[:4] == b"\x7fELF"
    segment = elfwrite.NewSegment(VADDR + 0x8000, PADDR + 0x8000, b"VMIS".ljust(0x1000, b"\0"))
    output = elfwrite.write(image, {}, segment, VADDR + 0x8010)
    loaded = elf.load(output, patched=True).segments[0]
    assert loaded.data[0x74:] == code
    assert loaded.data[:16] == head[:16]
    assert (loaded.vaddr, loaded.paddr) == (VADDR, PADDR)


def test_no_room_and_a_multiboot_header_far_away_is_refused() -> None:
    code = kernel_code()
    code = code.replace(MULTIBOOT, bytes(12)).ljust(0x1A00, b"\x90") + MULTIBOOT
    plan = Plan([Piece(VADDR, code, section=".text")], stack_header=False, first_offset=0x54)
    image = elf.load(make(plan))
    segment = elfwrite.NewSegment(VADDR + 0x8000, PADDR + 0x8000, b"VMIS".ljust(0x1000, b"\0"))
    with pytest.raises(BadInput) as caught:
        elfwrite.write(image, {}, segment, VADDR + 0x8010)
    assert str(caught.value) == (
        "there is no room for one more program header: making room would move the multiboot header "
        "beyond the first 8192 bytes of the file"
    )


def test_an_edit_outside_the_file_is_a_defect() -> None:
    image = elf.load(small_kernel())
    segment = elfwrite.NewSegment(VADDR + 0x8000, PADDR + 0x8000, bytes(0x1000))
    with pytest.raises(ValueError, match=r"^an edit at 0xc0101040 lies outside the file's segments$"):
        elfwrite.write(image, {VADDR + 0x1040: b"\0"}, segment, VADDR)
