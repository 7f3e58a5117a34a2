# SPDX-License-Identifier: GPL-2.0-only
"""The ELF reader: what it takes, and one sentence for each thing it refuses."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.boot.images import note
from vmi.errors import BadInput
from vmi.native.boot import elf

SEGMENT = {
    "kind": 1,
    "offset": 0x80,
    "vaddr": 0xC0100000,
    "paddr": 0x100000,
    "filesz": 16,
    "memsz": 32,
    "flags": 5,
}


def image(*segments, entry=0xC0100004, size=0x100, **changes):
    """An i386 executable; ``changes`` replace header fields."""
    h = {
        "magic": b"\x7fELF",
        "bits": 1,
        "data": 1,
        "ident": 1,
        "type": 2,
        "machine": 3,
        "version": 1,
        "phoff": 52,
    }
    h |= {"phentsize": 32, "phnum": len(segments)} | changes
    ident = h["magic"] + bytes([h["bits"], h["data"], h["ident"]]) + bytes(9)
    header = struct.pack(
        "<16sHHIIIIIHHHHHH",
        *(ident, h["type"], h["machine"], h["version"], entry, h["phoff"], 0, 0, 52),
        *(h["phentsize"], h["phnum"], 0, 0, 0),
    )
    table = b"".join(
        struct.pack(
            "<8I", *(s[k] for k in ("kind", "offset", "vaddr", "paddr", "filesz", "memsz", "flags")), 4
        )
        for s in (SEGMENT | changed for changed in segments)
    )
    return (header + table).ljust(size, b"\x90")


def test_reads_loadable_segments_only():
    found = elf.parse(
        image({}, {"kind": 4}, {"memsz": 0, "filesz": 0}, {"paddr": 0x200000, "vaddr": 0x200000})
    )
    assert found.entry == 0xC0100004
    assert found.segments == (
        elf.Segment(0x80, 0xC0100000, 0x100000, 16, 32, 5),
        elf.Segment(0x80, 0x200000, 0x200000, 16, 32, 5),
    )
    assert found.segments[0].end == 0x100020
    assert repr(found) == "Executable(entry 0xc0100004, 2 segments)"
    assert repr(found.segments[0]) == "Segment(0xc0100000 at 0x100000, 0x10 of 0x20 bytes)"


def test_limits_are_inclusive():
    top = {"vaddr": 0xFFFFFFE0, "paddr": 0xFFFFFFE0, "memsz": 32, "filesz": 32}
    assert elf.parse(image(top, size=0xA0)).segments[0].end == 1 << 32


def test_virtual_entry_is_converted_by_its_segment():
    assert elf.parse(image({})).physical_entry() == 0x100004


def test_physical_entry_is_taken_as_it_is():
    assert elf.parse(image({}, entry=0x100008)).physical_entry() == 0x100008


@pytest.mark.parametrize(
    ("segment", "entry"), [({}, 0x5000), ({"flags": 6}, 0xC0100004), ({}, 0xC0100010), ({}, 0x100020)]
)
def test_entry_outside_all_segments(segment, entry):
    sentence = f"the kernel's entry point {entry:#x} is not inside any of its loadable segments"
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        elf.parse(image(segment, entry=entry)).physical_entry()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the kernel must be an ELF file, but it starts with nothing"),
        (b"MZ\x90\x00", "the kernel must be an ELF file, but it starts with 4d 5a 90 00"),
        (b"\x7fELF\x01", "the kernel's ELF header takes 52 bytes, but the file has only 5"),
        (image({}, bits=2), "the kernel must be a 32-bit ELF file, but it is 64-bit"),
        (image({}, bits=7), "the kernel must be a 32-bit ELF file, but it is of class 7"),
        (image({}, data=2), "the kernel's ELF file must be little-endian (1), but its encoding is 2"),
        (image({}, version=2), "the kernel's ELF version must be 1, but it is 1 and 2"),
        (image({}, type=1), "the kernel's ELF type must be 2 (executable), but it is 1"),
        (image({}, machine=40), "the kernel's ELF machine must be 3 (i386), but it is 40"),
        (image({}, phentsize=56), "an ELF program header takes 32 bytes, but the kernel's take 56"),
        (image({}, phoff=0xF0), "the kernel's program headers end at byte 272, after the file's 256"),
        (image({"kind": 2}), "the kernel has no loadable segment"),
        (image(), "the kernel has no loadable segment"),
        (
            image({"filesz": 0x90, "memsz": 0x90}),
            "segment 0 of the kernel ends at byte 272, after the file's 256",
        ),
        (image({}, {"memsz": 8}), "segment 1 of the kernel has 16 bytes in the file, but 8 in memory"),
        (image({"vaddr": 0xFFFFFFF0}), "segment 0 of the kernel ends beyond 4 GiB of virtual addresses"),
        (image({"paddr": 0xFFFFFFF0}), "segment 0 of the kernel ends beyond 4 GiB of physical addresses"),
    ],
)
def test_refusals(data, sentence):
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        elf.parse(data)


@given(st.binary(min_size=60, max_size=60), st.integers(0, 200))
def test_damaged_files_are_refused_not_crashed_on(noise, cut):
    data = bytearray(image({}, {"paddr": 0x200000}))
    for at, byte in zip(range(4, 120, 2), noise, strict=False):
        if byte & 3 == 0:
            data[at] = byte
    try:
        found = elf.parse(bytes(data[: 256 - cut]))
    except BadInput:
        return
    assert all(s.offset + s.filesz <= 256 - cut and s.filesz <= s.memsz for s in found.segments)


def noted(raw, align):
    """An executable whose second program header is a PT_NOTE segment with these bytes."""
    head = bytearray(image({}, {}))
    struct.pack_into("<8I", head, 52 + 32, 4, len(head), 0, 0, len(raw), len(raw), 4, align)
    return elf.parse(bytes(head) + raw).notes


@pytest.mark.parametrize("align", [0, 1, 4, 8])
def test_notes_are_read_by_their_segment_s_alignment(align):
    raw = note(b"Xen\0", 18, b"abcd", max(align, 4)) + note(b"", 5, b"", max(align, 4))
    assert noted(raw, align) == (elf.Note(b"Xen", 18, b"abcd"), elf.Note(b"", 5, b""))


def test_damaged_note_ends_the_list():
    good = note(b"GNU\0", 3, b"12345678")
    for bad in (struct.pack("<3I", 4, 0xFFFFFFFF, 1), struct.pack("<3I", 0xFFFFFFFF, 0, 1), b"\1" * 11):
        assert noted(good + bad, 4) == (elf.Note(b"GNU", 3, b"12345678"),)


def test_notes_beyond_64_kib_are_not_looked_at():
    assert len(noted(note(b"", 1, b"") * 6000, 4)) == (1 << 16) // 12
