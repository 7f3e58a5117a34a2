# SPDX-License-Identifier: GPL-2.0-only
"""PVH: the note, the start information and where modules go."""

from __future__ import annotations

import struct

import pytest

from tests.native.boot.images import BODY, RAM, elf_kernel, note, refused
from vmi.memory import PhysicalMemory
from vmi.native.boot.loader import Module, load
from vmi.native.boot.memory_map import memory_map
from vmi.native.boot.pvh import START_AT


@pytest.fixture
def memory():
    memory = PhysicalMemory(RAM)
    memory.write(0, b"\xcc" * RAM)
    return memory


def start_info(memory):
    return struct.unpack("<4I4Q2I", memory.read(START_AT, 56))


def string(memory, address):
    data = memory.read(address, 200)
    return data[: data.index(0)]


def boot(memory, notes=None, **options):
    return load(elf_kernel(notes=note() if notes is None else notes), memory, protocol="pvh", **options)


def test_state_and_start_information(memory):
    state = boot(memory, note(data=struct.pack("<I", 0x100004)), append="a b")
    assert (state.eip, state.ebx, state.eax, state.esi) == (0x100004, START_AT, 0, 0)
    assert (state.kernel, state.end, state.task_limit) == (range(0x100000, 0x100100), 0x100100, 0x67)
    assert memory.read(0x100000, len(BODY)) == BODY
    magic, version, flags, modules, list_at, line_at, rsdp, map_at, areas, reserved = start_info(memory)
    assert (magic, version, flags, modules, list_at, rsdp, reserved) == (0x336EC578, 1, 0, 0, 0, 0, 0)
    assert string(memory, line_at) == b"a b"
    rows = [struct.unpack("<2Q2I", memory.read(map_at + 24 * n, 24)) for n in range(areas)]
    assert rows == [(a.start, a.stop - a.start, a.kind, 0) for a in memory_map(RAM)]


def test_modules_go_to_the_top_the_last_one_highest(memory):
    state = boot(memory, modules=[Module(b"1" * 5000, "one a"), Module(b"two", "two")])
    info = start_info(memory)
    assert info[3] == 2
    rows = [struct.unpack("<4Q", memory.read(info[4] + 32 * n, 32)) for n in range(2)]
    assert [row[:2] for row in rows] == [(0x3FD000, 5000), (0x3FF000, 3)]
    assert [string(memory, row[2]) for row in rows] == [b"one a", b"two"]
    assert [row[3] for row in rows] == [0, 0]
    assert memory.read(0x3FD000, 5000) == b"1" * 5000
    assert memory.read(0x3FF000, 4) == b"two\xcc"
    assert state.end == 0x3FF003


def test_entry_note_is_found_among_others(memory):
    wide = struct.pack("<Q", 0x100002)
    others = note(b"GNU\0", 18, b"abcd") + note(b"Xen\0", 6, b"linux\0") + note(kind=18, data=wide)
    assert boot(memory, others).eip == 0x100002


@pytest.mark.parametrize(
    "notes", [note(owner=b"GNU\0"), note(kind=17), note()[:-1], struct.pack("<3I", 0xFFFFFFF0, 4, 18)]
)
def test_without_the_note(memory, notes):
    with refused("the kernel has no Xen note with the entry point (type 18), which PVH needs"):
        boot(memory, notes)


@pytest.mark.parametrize(
    ("notes", "sentence"),
    [
        (note(data=b"\0\0"), "the kernel's PVH entry point must have 4 or 8 bytes, but its note has 2"),
        (
            note(data=struct.pack("<I", 0x100100)),
            "the kernel's entry point 0x100100 is not inside the memory that it is loaded to",
        ),
        (
            note(data=struct.pack("<Q", 1 << 40)),
            "the kernel's entry point 0x10000000000 is not inside the memory that it is loaded to",
        ),
    ],
)
def test_refused_notes(memory, notes, sentence):
    before = memory.sha256()
    with refused(sentence):
        boot(memory, notes)
    assert memory.sha256() == before


def test_module_that_does_not_fit(memory):
    before = memory.sha256()
    modules = [Module(bytes(0x1001), "big one"), Module(bytes(0x2FE000), "x")]
    with refused(
        "the module 'big one' of 4097 bytes does not fit between the kernel's end 0x100100 and 0x102000"
    ):
        boot(memory, modules=modules)
    assert memory.sha256() == before


def test_tables_that_do_not_fit(memory):
    # 56 bytes of information, 5 areas, and a string of 1 byte more than there is room for
    room = 0x9FC00 - START_AT - 56 - 5 * 24 - 1
    boot(memory, append="x" * room)
    with refused(
        "the command line and the module list need memory up to 0x9fc01, but low RAM ends at 0x9fc00"
    ):
        boot(memory, append="x" * (room + 1))


def test_kernel_where_the_tables_go(memory):
    image = elf_kernel((0x8000, 0x1001), entry=0x8000, notes=note(data=struct.pack("<I", 0x8000)))
    with refused("the kernel's memory 0x8000-0x9000 overlaps the boot information at 0x9000-0x90b0"):
        load(image, memory)


def test_strings_with_nul(memory):
    with refused("the command line must not contain a NUL character"):
        boot(memory, append="a\0")
    with refused("a module's string must not contain a NUL character"):
        boot(memory, modules=[Module(b"", "\0")])
