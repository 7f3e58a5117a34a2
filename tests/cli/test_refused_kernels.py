# SPDX-License-Identifier: GPL-2.0-only
"""Every kernel that can't be patched is refused by the command in one sentence, and nothing is written."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from tests.patcher.elfs import VADDR, Piece, Plan, kernel_code, make, small_kernel
from vmi.patcher import elf, patch
from vmi.rom.assemble import assemble
from vmi.sitetable import HEADER_SIZE, VERSION


def annotated(*records: tuple[int, int, int]) -> bytes:
    """A kernel with annotation records of (address, length, version)."""
    code = kernel_code() + assemble("nop\nnop\nnop\nnop\ncli\nnop\nnop\nnop\nnop\nsti\nret").code
    raw = b"".join(struct.pack("<IHH", *record) for record in records)
    return make(Plan([Piece(VADDR, code, section=".text")], extra={".vmi.annotations": raw}))


SLOT = VADDR + len(kernel_code())


def patched(damage: Callable[[bytearray, int], None] | None = None) -> bytes:
    data = bytearray(patch(small_kernel()).data)
    home = elf.vmi_segment(elf.load(bytes(data), patched=True))
    assert home is not None
    if damage is not None:
        damage(data, home.file_offset)
    return bytes(data)


def other_version(data: bytearray, at: int) -> None:
    struct.pack_into("<H", data, at + 4, VERSION + 1)


def endless_table(data: bytearray, at: int) -> None:
    struct.pack_into("<I", data, at + 0x18, 1 << 20)


def with_header(offset: int, size: int, value: int) -> bytes:
    data = bytearray(small_kernel())
    data[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(data)


def foreign_segment() -> bytes:
    pieces = [Piece(VADDR, kernel_code(), section=".text"), Piece(VADDR + 0x4000, b"VMIS and more", flags=6)]
    return make(Plan(pieces))


def kludge() -> bytes:
    flags = 0x10003
    start = struct.pack("<III5I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, *[0] * 5)
    return make(Plan([Piece(VADDR, start + kernel_code(), section=".text")]))


REFUSED = {
    "no sites": (
        8,
        make(Plan([Piece(VADDR, assemble("again:\n nop\n jmp short again", VADDR).code)])),
        "there is no sensitive instruction among the 2 of this kernel",
    ),
    "patched": (4, patched(), "the file is already patched: there is a .vmi segment at 0xc0103000"),
    "other version": (
        4,
        patched(other_version),
        "the segment at 0xc0103000 starts like a .vmi segment and is none: "
        f"expected a .vmi segment of version {VERSION}, got version {VERSION + 1}",
    ),
    "endless table": (
        4,
        patched(endless_table),
        "the segment at 0xc0103000 starts like a .vmi segment and is none: "
        "the site table at 0xc010a000 with 1048576 records lies outside the .vmi segment",
    ),
    "foreign segment": (
        4,
        foreign_segment(),
        f"the segment at 0xc0104000 starts like a .vmi segment and is none: "
        f"a .vmi header has {HEADER_SIZE} bytes, got 13",
    ),
    "foreign section": (
        4,
        make(Plan([Piece(VADDR, kernel_code(), section=".text")], extra={".vmi": b"some"})),
        "the kernel has a section .vmi of its own, which no file has that vmi patched",
    ),
    "annotations overlap": (
        4,
        annotated((SLOT, 5, 1), (SLOT + 3, 7, 1)),
        f"the annotations at {SLOT:#x} and {SLOT + 3:#x} overlap",
    ),
    "annotations contradict": (
        4,
        annotated((SLOT, 5, 1), (SLOT, 10, 1)),
        f"the annotations at {SLOT:#x} and {SLOT:#x} overlap",
    ),
    "annotation lies": (
        4,
        annotated((SLOT, 6, 1)),
        f"the annotation at {SLOT:#x} must hold NOPs and then one sensitive instruction, but it holds "
        "90909090fa90",
    ),
    "annotation of another version": (
        4,
        annotated((SLOT, 5, 9)),
        f"the annotation at {SLOT:#x} has version 9, expected 1",
    ),
    "annotation outside": (
        4,
        annotated((0x1000, 5, 1)),
        "the annotation at 0x1000 is outside the kernel's code",
    ),
    "64 bits": (4, with_header(4, 1, 2), "expected a 32-bit ELF (class 1), got class 2"),
    "other machine": (4, with_header(18, 2, 62), "expected an i386 kernel (ELF machine 3), got machine 62"),
    "an object file": (
        4,
        with_header(16, 2, 1),
        "expected an executable linked at fixed addresses (ELF type 2), got type 1",
    ),
    "entry nowhere": (
        4,
        with_header(24, 4, 0x12345678),
        "the entry point 0x12345678 lies in no segment",
    ),
    "cut": (
        4,
        small_kernel()[:0x1100],
        "the file is truncated: its section header table ends at byte 12628, it has 4352 bytes",
    ),
    "half a gzip file": (4, b"\x1f\x8b\x08\0\0\0\0\0", "the gzip data is damaged or ends early"),
    "contradictory load addresses": (
        4,
        kludge(),
        "the load addresses in the multiboot header (flag bit 16) don't load the segment at 0xc0100000 "
        "as its program header does",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(vmi: Vmi, tmp_path: Path, name: str) -> None:
    status, data, expected = REFUSED[name]
    (tmp_path / "in").write_bytes(data)
    result = vmi("patch", tmp_path / "in", "-o", tmp_path / "out", "--report", tmp_path / "report")
    assert sentence(result) == f"vmi: {expected}"
    assert result.exit_code == status
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("other version", f"expected a .vmi segment of version {VERSION}, got version {VERSION + 1}"),
        ("foreign segment", f"a .vmi header has {HEADER_SIZE} bytes, got 13"),
        ("foreign section", "the kernel has a section .vmi of its own, which no file has that vmi patched"),
        ("annotations overlap", f"the annotations at {SLOT:#x} and {SLOT + 3:#x} overlap"),
    ],
)
def test_inspection_is_refused(vmi: Vmi, tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "in").write_bytes(REFUSED[name][1])
    result = vmi("inspect", tmp_path / "in")
    assert (result.exit_code, sentence(result)) == (4, f"vmi: {expected}")
