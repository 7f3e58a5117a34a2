# SPDX-License-Identifier: GPL-2.0-only
"""Kernels without a protocol: ELF files as they are, and flat images."""

from __future__ import annotations

import pytest

from tests.native.boot.images import BODY, RAM, elf_kernel, misused, refused
from vmi.memory import PhysicalMemory
from vmi.native.boot.loader import Module, load
from vmi.native.boot.state import NO_TABLE


@pytest.fixture
def memory():
    memory = PhysicalMemory(RAM)
    memory.write(0, b"\xcc" * RAM)
    return memory


def flat(memory, size=16, **options):
    return load(b"\x90" * size, memory, protocol="flat", **options)


def test_elf_is_loaded_and_nothing_else(memory):
    state = load(elf_kernel((0x100000, 0x100), (0x180000, 0x20), entry=0x100002), memory)
    assert (state.eip, state.kernel, state.end) == (0x100002, range(0x100000, 0x180020), 0x180020)
    assert (state.eax, state.ebx, state.esi, state.esp) == (0, 0, 0, 0x7000)
    assert (state.code, state.data, state.gdt, state.task_limit) == (0x08, 0x10, NO_TABLE, 0xFFFF)
    assert memory.read(0x100000, 0x100) == BODY.ljust(0x100, b"\0")
    for start, stop in ((0, 0x100000), (0x100100, 0x180000), (0x180020, RAM)):
        assert memory.read(start, stop - start) == b"\xcc" * (stop - start)


def test_header_page_below_1_mib_is_left_out(memory):
    load(elf_kernel((0xFF000, 0x1100)), memory)
    assert memory.read(0xFFFFF, 0x102) == b"\xcc" + bytes(0x100) + b"\xcc"


def test_entry_on_the_page_that_is_left_out(memory):
    with refused("the kernel's entry point 0xff002 is not inside the memory that it is loaded to"):
        load(elf_kernel((0xFF000, 0x1100), entry=0xFF002), memory)


def test_flat_goes_to_1_mib_or_where_it_is_told(memory):
    state = flat(memory)
    assert (state.eip, state.kernel, state.end) == (0x100000, range(0x100000, 0x100010), 0x100010)
    state = flat(memory, address=0x7C00)
    assert (state.eip, state.kernel, state.end) == (0x7C00, range(0x7C00, 0x7C10), 0x100000)
    assert memory.read(0x7BFF, 18) == b"\xcc" + b"\x90" * 16 + b"\xcc"


@pytest.mark.parametrize(
    ("address", "size", "stack"),
    [
        (0x500, 0x5B00, 0x7000),
        (0x500, 0x5B01, 0x9FC00),
        (0x7000, 0x98C00, 0x7000),
        (0x6FFF, 0x97C01, 0x9FC00),
    ],
)
def test_stack_is_not_in_the_kernel(memory, address, size, stack):
    assert flat(memory, size, address=address).esp == stack


def test_kernel_that_takes_all_low_memory_has_no_stack(memory):
    with refused("the kernel's memory leaves no room for a stack, neither below 0x7000 nor below 0x9fc00"):
        flat(memory, 0x9FC00 - 0x500, address=0x500)


@pytest.mark.parametrize(
    ("address", "size", "sentence"),
    [
        (0x100000, 0, "the kernel is empty"),
        (RAM - 15, 16, "the kernel needs memory up to 0x400001, but RAM ends at 0x400000"),
        (1 << 40, 16, "the kernel needs memory up to 0x10000000010, but RAM ends at 0x400000"),
        (
            0xFFFFF, 2,
            "the kernel's memory 0xfffff-0x100000 is not all RAM: there is none from 0x9fc00 to 0xfffff",
        ),
    ],
)  # fmt: skip
def test_flat_images_that_do_not_fit(memory, address, size, sentence):
    before = memory.sha256()
    with refused(sentence):
        flat(memory, size, address=address)
    assert memory.sha256() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"append": "a"}, "a flat kernel without a boot protocol can't be given a command line"),
        ({"modules": [Module(b"", "m")]}, "a flat kernel without a boot protocol can't be given a module"),
        ({"address": -1}, "the load address must not be negative, but it is -1"),
    ],
)
def test_what_flat_images_do_not_take(memory, options, sentence):
    with misused(sentence):
        flat(memory, **options)


def test_what_elf_files_do_not_take(memory):
    with misused("an ELF kernel without a boot protocol can't be given a command line"):
        load(elf_kernel(), memory, append="x")
    with misused("an ELF kernel without a boot protocol can't be given a module"):
        load(elf_kernel(), memory, modules=[Module(b"", "m")])


def test_segments_on_top_of_each_other_are_not_loaded_for_hours(memory):
    image = elf_kernel(*[(0x100000, 0x300000)] * 1000)
    with refused("the kernel's segments have 3145728000 bytes in all, but RAM has only 4194304"):
        load(image, memory)
