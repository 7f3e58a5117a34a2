# SPDX-License-Identifier: GPL-2.0-only
"""Linux bzImages: the zero page, the CPU's state, where code and initrd go, refusals."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.boot.images import RAM, bzimage, misused, refused
from vmi.memory import PhysicalMemory
from vmi.native.boot import linux
from vmi.native.boot.linux import COMMAND_LINE_AT, GDT_AT, ZERO_PAGE_AT
from vmi.native.boot.loader import Module, load
from vmi.native.boot.memory_map import memory_map

CODE = bytes(range(64))


@pytest.fixture
def memory():
    memory = PhysicalMemory(RAM)
    memory.write(0, b"\xcc" * RAM)
    return memory


def boot(memory, changes=None, *, code=CODE, sectors=2, **options):
    return load(bzimage(changes, code, sectors), memory, **options)


def field(memory, offset, size):
    return int.from_bytes(memory.read(ZERO_PAGE_AT + offset, size), "little")


def test_state_is_that_of_the_32_bit_protocol(memory):
    state = boot(memory)
    assert (state.eip, state.esi, state.eax, state.ebx) == (0x100000, ZERO_PAGE_AT, 0, 0)
    assert (state.code, state.data) == (0x10, 0x18)
    assert (state.kernel, state.end) == (range(0x100000, 0x100040), 0x100040)
    assert memory.read(0x100000, 65) == CODE + b"\xcc"


def test_descriptors_of_the_selectors_are_there(memory):
    state = boot(memory)
    assert (state.gdt.base, state.gdt.limit) == (GDT_AT, 31)
    code, data = (memory.read(GDT_AT + selector, 8).hex() for selector in (state.code, state.data))
    assert (code, data) == ("ffff0000009bcf00", "ffff00000093cf00")
    assert memory.read(GDT_AT, 16) == bytes(16)


def test_header_is_copied_up_to_its_own_end_and_the_rest_is_zero(memory):
    image = bytearray(bzimage({0x1F2: b"\1", 0x240: b"\7" * 8, 0x264: b"\x55" * 32}, CODE))
    image[:0x1F1] = b"\xee" * 0x1F1
    load(bytes(image), memory)
    ours = {*range(0x210, 0x211), *range(0x218, 0x220), *range(0x228, 0x22C)}
    copied = [at for at in range(0x1F1, 0x26C) if at not in ours]
    page = memory.read(ZERO_PAGE_AT, 4096)
    assert [page[at] for at in copied] == [image[at] for at in copied]
    assert page[0x26C:0x2D0] == bytes(100)
    assert page[0x12:0x1E0] == bytes(0x1E0 - 0x12)


def test_what_the_setup_code_would_have_found(memory):
    boot(memory)
    screen = {0: 0, 1: 0, 4: 0, 5: 0, 6: 3, 7: 80, 8: 0, 0xA: 3, 0xE: 25, 0xF: 1, 0x10: 16}
    assert {at: field(memory, at, 1) for at in screen} == screen
    assert (field(memory, 0x02, 2), field(memory, 0x1E0, 4)) == (3072, 3072)
    assert field(memory, 0x1EF, 1) == 0  # else the kernel takes the page for one that was not cleared
    count = field(memory, 0x1E8, 1)
    rows = [struct.unpack("<QQI", memory.read(ZERO_PAGE_AT + 0x2D0 + 20 * n, 20)) for n in range(count)]
    assert rows == [(a.start, a.stop - a.start, a.kind) for a in memory_map(RAM)]


def test_oldest_field_for_memory_stops_at_63_mib():
    memory = PhysicalMemory(128 << 20)
    boot(memory)
    assert (field(memory, 0x02, 2), field(memory, 0x1E0, 4)) == (0xFC00, 127 << 10)


def test_command_line_is_the_options_alone(memory):
    boot(memory, name="bzImage", append="console=ttyS0 a\udcffb")
    assert field(memory, 0x228, 4) == COMMAND_LINE_AT
    assert memory.read(COMMAND_LINE_AT, 18) == b"console=ttyS0 a\xffb\0"
    assert field(memory, 0x210, 1) == 0xFF


@pytest.mark.parametrize(("changes", "most"), [({}, 2047), ({0x206: 0x205}, 255), ({0x238: 1 << 31}, 523263)])
def test_longest_command_line(memory, changes, most):
    boot(memory, changes, append="x" * most)
    assert memory.read(COMMAND_LINE_AT + most - 1, 2) == b"x\0"
    with refused(f"the command line has {most + 1} bytes, but the kernel takes {most} at most"):
        boot(memory, changes, append="x" * (most + 1))


def test_command_line_with_nul(memory):
    with refused("the command line must not contain a NUL character"):
        boot(memory, append="a\0b")


def test_without_an_initrd(memory):
    boot(memory, {0x218: b"\x11" * 8})
    assert (field(memory, 0x218, 4), field(memory, 0x21C, 4)) == (0, 0)


@pytest.mark.parametrize(
    ("size", "highest", "start"),
    [
        (1, 0x7FFFFFFF, 0x3FF000),
        (4095, 0x7FFFFFFF, 0x3FF000),
        (4096, 0x7FFFFFFF, 0x3FF000),
        (5000, 0x7FFFFFFF, 0x3FE000),
        (4096, 0x2FFFFF, 0x2FE000),  # a page lower than it could: so does QEMU
        (5000, 0x2FFFFF, 0x2FE000),
        (5000, 0x2FF000, 0x2FD000),
    ],
)
def test_initrd_goes_as_high_as_the_kernel_allows(memory, size, highest, start):
    state = boot(memory, {0x22C: highest}, modules=[Module(b"i" * size, "initrd")])
    assert (field(memory, 0x218, 4), field(memory, 0x21C, 4)) == (start, size)
    assert memory.read(start - 1, size + 1) == b"\xcc" + b"i" * size
    assert state.end == start + size


def test_old_kernels_have_no_highest_address():
    memory = PhysicalMemory(1 << 30)
    boot(memory, {0x206: 0x202}, modules=[Module(b"i", "initrd")])
    assert field(memory, 0x218, 4) == 0x37FFF000


def test_old_kernels_get_no_fields_that_they_do_not_know(memory):
    boot(memory, {0x206: 0x208, 0x250: b"\x77" * 8})
    assert field(memory, 0x250, 8) == 0x7777777777777777
    boot(memory, {0x206: 0x209, 0x250: b"\x77" * 8})
    assert field(memory, 0x250, 8) == 0


def test_initrd_that_does_not_fit(memory):
    before = memory.sha256()
    sentence = "the initrd of 3080193 bytes does not fit between the kernel's end 0x110000 and 0x400000"
    boot(PhysicalMemory(RAM), modules=[Module(bytes(0x2F0000), "i")])
    with refused(sentence):
        boot(memory, modules=[Module(bytes(0x2F0001), "i")])
    with refused("the initrd of 1 bytes does not fit between the kernel's end 0x110000 and 0xfffff"):
        boot(memory, {0x22C: 0xFFFFF}, modules=[Module(b"i", "i")])
    with refused("the initrd of 1 bytes does not fit between the kernel's end 0x110000 and 0x0"):
        boot(memory, {0x22C: 0}, modules=[Module(b"i", "i")])
    assert memory.sha256() == before


def test_several_modules(memory):
    with misused("Linux takes one initrd, but 2 modules are given"):
        boot(memory, modules=[Module(b"", "a"), Module(b"", "b")])


def test_no_setup_sectors_means_four(memory):
    boot(memory, {0x1F1: 0}, sectors=5)
    assert memory.read(0x100000, 64) == CODE


def test_entry_may_be_inside_the_code(memory):
    assert boot(memory, {0x214: 0x10003F}).eip == 0x10003F


def test_trailing_data_is_loaded_as_qemu_does(memory):
    assert boot(memory, code=CODE + b"signature").kernel == range(0x100000, 0x100049)


@pytest.mark.parametrize(
    ("changes", "stop"),
    [
        ({}, 0x110000),
        ({0x234: 0, 0x258: 0x200000, 0x230: 3}, 0x210000),
        ({0x258: 0}, 0x110000),
        ({0x258: 0x200001}, 0x211000),
        ({0x230: 1 << 21}, 0x210000),
        ({0x260: 0}, 0x100040),
    ],
)
def test_memory_for_unpacking_is_not_given_to_the_initrd(memory, changes, stop):
    sentence = f"the initrd of 1 bytes does not fit between the kernel's end {stop:#x} and {stop:#x}"
    with refused(sentence):
        boot(memory, {0x22C: stop} | changes, modules=[Module(b"i", "i")])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({0x206: 0x201}, "the kernel's boot protocol must be 2.02 or newer, but it is 2.01"),
        (
            {0x211: 0x80},
            "the kernel is a zImage, made to be loaded below 640 KiB: only a bzImage can be loaded",
        ),
        ({0x236: b"\1"}, "the kernel is a 64-bit Linux, but the machine's processor has only 32 bits"),
        (
            {0x200: 0x61EB},
            "the kernel's boot protocol 2.15 has a field init_size, "
            "but its setup header ends before it at byte 0x263",
        ),
        (
            {0x200: 0x29EB, 0x206: 0x202},
            "the kernel's boot protocol 2.02 has a field cmd_line_ptr, "
            "but its setup header ends before it at byte 0x22b",
        ),
        ({0x230: 0}, "the kernel's alignment must be a power of two, but it is 0x0"),
        ({0x230: 0x3000}, "the kernel's alignment must be a power of two, but it is 0x3000"),
        ({0x1F1: 2}, "the kernel's file must have 1585 bytes at least, but it has 1088"),
        ({0x1F4: 5}, "the kernel's file must have 1089 bytes at least, but it has 1088"),
        ({0x1F4: 0xFFFFFFFF}, "the kernel's file must have 68719477729 bytes at least, but it has 1088"),
        (
            {0x214: 0x100040},
            "the kernel's 32-bit entry point 0x100040 is not inside its code at 0x100000-0x10003f",
        ),
        ({0x214: 0}, "the kernel's 32-bit entry point 0x0 is not inside its code at 0x100000-0x10003f"),
        (
            {0x260: 0x300001},
            "the kernel needs memory up to 0x400001 to unpack itself, but RAM ends at 0x400000",
        ),
        (
            {0x258: 1 << 63},
            "the kernel needs memory up to 0x8000000000010000 to unpack itself, but RAM ends at 0x400000",
        ),
    ],
)
def test_refusals(memory, changes, sentence):
    before = memory.sha256()
    with refused(sentence):
        boot(memory, changes, append="x", modules=[Module(b"i", "i")])
    assert memory.sha256() == before


def test_code_that_does_not_fit(memory):
    with refused("the kernel needs memory up to 0x400001, but RAM ends at 0x400000"):
        boot(memory, code=bytes(0x300001))


def test_image_without_header_or_cut_short(memory):
    with refused("the kernel has no Linux setup header: there is no 'HdrS' at byte 0x202"):
        load(bytes(1024), memory, protocol="linux")
    with refused("the kernel's setup header ends at byte 0x26c, after the file's 0x206"):
        load(bzimage()[:0x206], memory)
    with refused("the kernel's file must have 1025 bytes at least, but it has 1024"):
        boot(memory, {0x1F4: 0}, code=b"")


@given(st.integers(0x200, 0x2FF), st.integers(0, 255))
def test_header_length_and_version_agree_or_are_refused(version, jump):
    memory = PhysicalMemory(RAM)
    image = bzimage({0x200: 0xEB | jump << 8, 0x206: version})
    newest = max(f.offset + f.size for f in linux._FIELDS.values() if f.since <= version)
    if version >= 0x202 and newest <= 0x202 + jump:
        load(image, memory)
        assert memory.read(ZERO_PAGE_AT + 0x290, 0x40) == bytes(0x40)
    else:
        with pytest.raises(linux.BadInput):
            load(image, memory)
