# SPDX-License-Identifier: GPL-2.0-only
"""Multiboot loading: headers, placement, the information structure, refusals."""

from __future__ import annotations

import gzip
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.errors import BadInput
from vmi.memory import PhysicalMemory
from vmi.native.boot import multiboot, unpack
from vmi.native.boot.multiboot import INFO_AT, MAP_AT, Module, load

MAGIC = 0x1BADB002
RAM = 4 << 20


def header(flags=3, *addresses):
    return struct.pack("<3I", MAGIC, flags, -(MAGIC + flags) & 0xFFFFFFFF) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )


def kernel(*segments, entry=0x100000, flags=3, body=b"KERNEL"):
    """An ELF kernel: segments are (paddr, memsz), each starts with the file's body."""
    segments = segments or ((0x100000, 0x100),)
    text = header(flags) + body
    offset = 52 + 32 * len(segments)
    ehdr = struct.pack(
        "<16sHHIIIIIHHHHHH",
        *(b"\x7fELF\1\1\1", 2, 3, 1, entry, 52, 0, 0, 52, 32, len(segments), 0, 0, 0),
    )
    phdrs = b"".join(
        struct.pack("<8I", 1, offset, paddr, paddr, min(len(text), memsz), memsz, 7, 4)
        for paddr, memsz in segments
    )
    return ehdr + phdrs + text


@pytest.fixture
def memory():
    memory = PhysicalMemory(RAM)
    memory.write(0, b"\xcc" * RAM)
    return memory


def string(memory, address):
    data = bytes(memory.ram[address : address + 200])
    return data[: data.index(0)]


def refused(sentence):
    return pytest.raises(BadInput, match=f"^{re.escape(sentence)}$")


def test_loads_segments_zeroes_the_rest_and_gives_the_start_state(memory):
    state = load(kernel((0x100000, 0x100), (0x180000, 0x20)), memory)
    assert (state.eip, state.eax, state.ebx) == (0x100000, 0x2BADB002, INFO_AT)
    assert state.kernel == range(0x100000, 0x180020)
    assert state.end == 0x181005  # an empty command line and the loader's name
    assert memory.read(0x100000, 0x100) == (header() + b"KERNEL").ljust(0x100, b"\0")
    assert memory.read(0x100100, 1) == b"\xcc"
    assert memory.read(0x180000, 0x20) == (header() + b"KERNEL").ljust(0x20, b"\0")
    assert state.esp < MAP_AT
    assert repr(state) == "BootState(eip 0x100000, kernel 0x100000-0x18001f)"


def test_information_structure(memory):
    load(kernel(), memory, command_line="kernel console=com0")
    info = [memory.u32(INFO_AT + 4 * n) for n in range(22)]
    assert info[:4] == [0x24F, 639, RAM // 1024 - 1024, 0x8000FFFF]
    assert string(memory, info[4]) == b"kernel console=com0"
    assert info[4] == 0x101000
    assert info[5:7] == [0, 0x101000]
    assert info[7:11] == [0, 0, 0, 0]
    assert info[11:13] == [120, MAP_AT]
    assert info[13:16] == [0, 0, 0]
    assert string(memory, info[16]) == b"vmi"
    assert info[17:] == [0] * 5


def test_memory_map(memory):
    load(kernel(), memory)
    entries = [struct.unpack("<IQQI", memory.read(MAP_AT + 24 * n, 24)) for n in range(5)]
    assert entries == [
        (20, 0x00000000, 0x9FC00, 1),
        (20, 0x0009FC00, 0x400, 2),
        (20, 0x000F0000, 0x10000, 2),
        (20, 0x00100000, RAM - 0x100000, 1),
        (20, 0xFFFC0000, 0x40000, 2),
    ]


def test_modules_follow_the_kernel_on_pages_of_their_own(memory):
    """The addresses are those that QEMU 7.2 gives, but for its longer name."""
    modules = [Module(bytes(5000), "m1 a b"), Module(b"two", "m2 c"), Module(b"", "three")]
    state = load(kernel((0x100000, 0x234)), memory, command_line="mbi.bin x", modules=modules)
    info = [memory.u32(INFO_AT + 4 * n) for n in range(22)]
    assert info[0] == 0x24F
    assert info[5:7] == [3, 0x101000]
    rows = [struct.unpack("<4I", memory.read(0x101000 + 16 * n, 16)) for n in range(3)]
    assert rows == [
        (0x102000, 0x103388, 0x101030, 0),
        (0x104000, 0x104003, 0x101037, 0),
        (0x105000, 0x105000, 0x10103C, 0),
    ]
    assert memory.read(0x101030, 0x20) == b"m1 a b\0m2 c\0three\0mbi.bin x\0vmi\0"
    assert (info[4], info[16]) == (0x101042, 0x10104C)
    assert memory.read(0x102000, 5000) == bytes(5000)
    assert memory.read(0x104000, 3) == b"two"
    assert state.end == 0x105000
    assert repr(modules[1]) == "Module('m2 c', 3 bytes)"


def test_modules_of_a_low_kernel_go_above_1_mib(memory):
    state = load(kernel((0x20000, 0x100), entry=0x20000), memory, modules=[Module(b"m", "m")])
    assert memory.u32(INFO_AT + 24) == 0x100000
    assert memory.read(0x101000, 1) == b"m"
    assert state.end == 0x101001


def test_gzip_is_undone(memory):
    plain = kernel(body=bytes(range(200)))
    assert load(gzip.compress(plain, mtime=0), memory).eip == 0x100000
    assert memory.read(0x10000C, 200) == bytes(range(200))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (gzip.compress(kernel(), mtime=0)[:-9], "the kernel's gzip data ends too early"),
        (b"\x1f\x8bxxxx", "the kernel's gzip data is damaged"),
    ],
)
def test_damaged_gzip(memory, data, sentence):
    with refused(sentence):
        load(data, memory)


def test_compressed_bomb_is_not_unpacked_whole(memory, monkeypatch):
    monkeypatch.setattr(unpack, "UNPACKED_LIMIT", 1 << 20)
    with refused("the compressed kernel expands to more than 1 MiB"):
        load(gzip.compress(bytes((1 << 20) + 1)), memory)


def test_text_that_came_from_undecodable_bytes_goes_back_to_them(memory):
    load(kernel(), memory, command_line=b"a\xffb".decode(errors="surrogateescape"))
    assert string(memory, memory.u32(INFO_AT + 16)) == b"a\xffb"


@given(st.integers(0, 2100))
def test_header_is_found_on_any_dword_of_the_first_8_kib(dword):
    data = bytes(4 * dword) + header() + bytes(8)
    if 4 * dword + 12 <= 8192:
        assert multiboot.find_header(data) == (4 * dword, 3)
    else:
        with refused("the kernel has no multiboot header in its first 8192 bytes"):
            multiboot.find_header(data)


def test_header_must_be_aligned_and_have_its_checksum():
    for data in (b"\0\0" + header() + bytes(8), struct.pack("<3I", MAGIC, 3, 0), b"", b"\0" * 11):
        with refused("the kernel has no multiboot header in its first 8192 bytes"):
            multiboot.find_header(data)
    assert multiboot.find_header(struct.pack("<3I", MAGIC, 3, 0) + header()) == (12, 3)


def test_foreign_images_are_named():
    linux = bytearray(0x300)
    linux[0x202:0x206] = b"HdrS"
    with refused("the kernel has no multiboot header in its first 8192 bytes: it is a Linux boot image"):
        multiboot.find_header(bytes(linux))
    second = bytes(64) + struct.pack("<I", 0xE85250D6) + bytes(64)
    with refused(
        "the kernel has no multiboot header in its first 8192 bytes: it has one of multiboot version 2"
    ):
        multiboot.find_header(second)


def test_unknown_requirements_are_refused_and_wishes_are_not(memory):
    with refused(
        "the kernel's multiboot header requires features 0x0108, but only those in 0x0007 can be provided"
    ):
        load(kernel(flags=0x010B), memory)
    assert load(kernel(flags=0x7FFE0007), memory).eip == 0x100000


def flat(load_at=0x100000, load_end=0, bss_end=0, entry=0x100020, lead=8, head=None, body=b"\x11" * 100):
    """A kernel that is no ELF file: ``lead`` bytes, header with addresses, body."""
    at = load_at + lead if head is None else head
    return b"\x22" * lead + header(0x10003, at, load_at, load_end, bss_end, entry) + body


def test_addresses_in_the_header_place_the_file(memory):
    data = flat(bss_end=0x100200)
    state = load(data, memory)
    assert state.eip == 0x100020
    assert state.kernel == range(0x100000, 0x100200)
    assert memory.read(0x100000, 0x200) == data.ljust(0x200, b"\0")


def test_addresses_may_leave_out_the_ends_of_the_file(memory):
    data = flat(load_at=0x100004, head=0x100008, load_end=0x100030)
    assert load(data, memory).kernel == range(0x100004, 0x100030)
    assert memory.read(0x100000, 4) == b"\xcc" * 4
    assert memory.read(0x100004, 0x2C) == data[4:0x30]
    assert memory.read(0x100030, 1) == b"\xcc"


def test_addresses_win_over_elf(memory):
    assert load(b"\x7fELF" + flat(lead=4, head=0x100008), memory).kernel.start == 0x100000


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (flat()[:30], "the kernel's multiboot header announces addresses, but the file ends before them"),
        (
            flat(head=0xFFFFF),
            "the kernel's load address 0x100000 must not be above its multiboot header at 0xfffff",
        ),
        (
            flat(head=0x100010),
            "the kernel's multiboot addresses put its start 8 bytes before the beginning of the file",
        ),
        (flat(load_end=0xFFFFF), "the kernel's load end 0xfffff must not be below its load address 0x100000"),
        (flat(bss_end=0xFFFFF), "the kernel's bss end 0xfffff must not be below its load address 0x100000"),
        (flat(load_end=0x100100), "the kernel's multiboot addresses ask for 256 bytes of a file of 140"),
        (flat(load_at=0x500000), "the kernel needs memory up to 0x50008c, but RAM ends at 0x400000"),
    ],
)
def test_refused_addresses(memory, data, sentence):
    with refused(sentence):
        load(data, memory)


@pytest.mark.parametrize("entry", [0xFFFFF, 0x10008C])
def test_addresses_with_an_entry_outside_of_the_kernel(memory, entry):
    with refused(f"the kernel's entry point {entry:#x} is not inside the memory that it is loaded to"):
        load(flat(entry=entry), memory)


@pytest.mark.parametrize(
    ("segment", "sentence"),
    [
        ((0x3FFF00, 0x101), "the kernel needs memory up to 0x400001, but RAM ends at 0x400000"),
        (
            (0x9FB00, 0x101),
            "the kernel's memory 0x9fb00-0x9fc00 is not all RAM: there is none from 0x9fc00 to 0xfffff",
        ),
        (
            (0xC0000, 0x100),
            "the kernel's memory 0xc0000-0xc00ff is not all RAM: there is none from 0x9fc00 to 0xfffff",
        ),
        (
            (0x8000, 0x1001),
            "the kernel's memory 0x8000-0x9000 overlaps the boot information at 0x9000-0x9557",
        ),
        (
            (0x9557, 0x10),
            "the kernel's memory 0x9557-0x9566 overlaps the boot information at 0x9000-0x9557",
        ),
    ],
)
def test_segments_that_do_not_fit(memory, segment, sentence):
    before = memory.sha256()
    with refused(sentence):
        load(kernel(segment, entry=segment[0]), memory)
    assert memory.sha256() == before


def test_segment_may_reach_the_very_end_of_low_memory(memory):
    assert load(kernel((0x9FB00, 0x100), entry=0x9FB00), memory).kernel.stop == 0x9FC00


def test_low_segments_beside_the_tables_are_fine(memory):
    assert load(kernel((0x8000, 0x1000), (0x9558, 0x1000), entry=0x8000), memory).eip == 0x8000


def test_header_page_below_1_mib_is_left_out(memory):
    load(kernel((0xFF000, 0x1100), entry=0x100000), memory)
    assert memory.read(0xFFFFF, 1) == b"\xcc"
    assert memory.read(0x100000, 0x100) == bytes(0x100)


def test_module_that_does_not_fit(memory):
    before = memory.sha256()
    with refused("the module 'big one' needs memory up to 0x400001, but RAM ends at 0x400000"):
        load(kernel(), memory, modules=[Module(bytes(0x2FE000), "x"), Module(b"y", "big one")])
    assert memory.sha256() == before


def test_strings_that_do_not_fit(memory):
    sentence = "the command line and the module list need memory up to 0x400005, but RAM ends at 0x400000"
    with refused(sentence):
        load(kernel((0x3FFF00, 0x100), entry=0x3FFF00), memory)
    state = load(kernel((0x3FE000, 0x1000), entry=0x3FE000), memory, command_line="x" * 4091)
    assert state.end == RAM
    with refused("the command line and the module list need memory up to 0x400001, but RAM ends at 0x400000"):
        load(kernel((0x3FE000, 0x1000), entry=0x3FE000), memory, command_line="x" * 4092)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"command_line": "a\0b"}, "the command line must not contain a NUL character"),
        ({"modules": [Module(b"", "\0")]}, "a module's string must not contain a NUL character"),
    ],
)
def test_strings_with_nul(memory, arguments, sentence):
    with refused(sentence):
        load(kernel(), memory, **arguments)
