# SPDX-License-Identifier: GPL-2.0-only
"""The place below 640 KiB: who gets it, where in it the segment lies, what the file then says of it."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest

from tests.patcher import greedy
from tests.patcher.elfs import PADDR, VADDR, Piece, Plan, kernel_code, make, small_kernel
from tests.patcher.test_place import header, patched, refusal
from vmi.errors import BadInput, VerifyError
from vmi.patcher import Options, adaptors, elf, lowmemory, rewrite
from vmi.patcher.emit import emit
from vmi.patcher.place import LEAST, Strategy, choice, place
from vmi.patcher.plan import make_plan
from vmi.patcher.verify import verify
from vmi.rom.assemble import assemble
from vmi.sitetable import ImageFlag


def test_low_memory() -> None:
    """Linked to end at the range's end, loaded behind the image; only its own words tell the two apart."""
    found = place(elf.load(small_kernel()), choice("low-memory"))
    assert (found.top, found.limit) == (0xC0080000, 0x60000)
    emission, output = patched(elf.load(small_kernel()), choice("low-memory"))
    home = elf.vmi_segment(elf.load(output, patched=True))
    assert home is not None
    assert (home.end, home.paddr) == (0xC0080000, 0x103000)
    header = emission.header
    assert header.image_flags == ImageFlag.MULTIBOOT | ImageFlag.LIFTED
    assert (header.size, header.bias) == (len(home.data), VADDR - PADDR)
    layout = emission.place.layout
    assert layout.physical(layout.base) == 0x80000 - header.size
    assert layout.loaded(layout.base) == home.paddr
    assert emission.entry == header.activation_entry == layout.activation


def test_a_segment_that_must_move_says_so() -> None:
    emission, output = patched(elf.load(small_kernel()), choice("low-memory"))
    silent = replace(emission, header=replace(emission.header, image_flags=ImageFlag.MULTIBOOT))
    with pytest.raises(VerifyError) as caught:
        verify(silent, output)
    assert str(caught.value) == (
        "the output doesn't match the plan: the .vmi segment is loaded at 0x103000, and its flags say "
        "otherwise"
    )


def test_low_memory_with_a_physical_entry_point() -> None:
    emission, output = patched(elf.load(small_kernel(entry=PADDR + 0x10)), choice("low-memory"))
    layout = emission.place.layout
    assert elf.load(output, patched=True).entry == layout.loaded(layout.activation) == 0x108000


def test_low_memory_with_load_addresses_in_the_multiboot_header() -> None:
    emission, output = patched(elf.load(greedy.kernel(kludge=True)))
    assert emission.place.strategy is Strategy.LOW_MEMORY
    layout = emission.place.layout
    _, start, load_end, bss_end, entry = header(output)
    assert load_end == bss_end == layout.loaded(layout.base + emission.header.size)
    assert entry == layout.loaded(layout.activation)
    home = elf.vmi_segment(elf.load(output, patched=True))
    assert home is not None
    assert home.file_offset - 0x1000 == home.paddr - start


def test_a_segment_larger_than_its_place_is_refused() -> None:
    image = elf.load(small_kernel())
    where = replace(place(image, choice("low-memory")), limit=0x4000)
    with pytest.raises(BadInput) as caught:
        emit(make_plan(image, adaptors.refusal), where)
    assert str(caught.value) == "the .vmi segment would have 32768 bytes, the limit is 16384"


def test_a_kernel_that_takes_memory_from_its_end_gets_low_memory() -> None:
    image = elf.load(greedy.kernel())
    found = place(image)
    assert (found.strategy, found.top) == (Strategy.LOW_MEMORY, 0xC0080000)
    assert found == place(image, choice("low-memory"))
    assert found.reasons == (
        "it is loaded at the physical address 0x103000, behind the image like any other segment, and the "
        "first that runs, activation, moves it down to where it ends at 0x80000, away from the image's end",
        "the kernel takes memory from its own end: 0xc0100036 uses 0xc0103000 as the address of something",
        "the kernel maps memory below 1 MiB at 0xc0000000, where the segment is then: it names 0xc00b8000",
        "activation marks the segment as reserved in the multiboot memory map, and the size of memory below "
        "640 KiB ends before it",
    )
    assert found.warnings == (
        "the kernel must leave memory below 640 KiB alone where the boot loader's map doesn't show it as "
        "usable",
    )


def test_without_room_below_640_kib_it_goes_behind_the_image() -> None:
    with patch.object(lowmemory, "LOW_START", lowmemory.LOW_END - LEAST):
        assert place(elf.load(greedy.kernel())).strategy is Strategy.LOW_MEMORY
    with patch.object(lowmemory, "LOW_START", lowmemory.LOW_END - LEAST + 0x1000):
        assert place(elf.load(greedy.kernel())).strategy is Strategy.AFTER_IMAGE


def test_a_segment_that_is_too_large_for_low_memory_goes_behind_the_image() -> None:
    """Only when the place was found; one that is asked for is refused."""
    kernel = greedy.kernel()
    with patch("vmi.patcher.place.LEAST", 0x4000), patch.object(lowmemory, "LOW_START", 0x7C000):
        report = rewrite.patch(kernel, Options(undo=False)).report
        assert report.strategy == "after-image"
        assert report.warnings[-1] == (
            "the segment can't be moved away from the image's end to below 640 KiB: the .vmi segment would "
            "have 32768 bytes, the limit is 16384"
        )
        with pytest.raises(BadInput, match="the limit is 16384"):
            rewrite.patch(kernel, Options(place="low-memory"))


def test_a_kernel_whose_stack_is_in_low_memory_keeps_it() -> None:
    code = kernel_code() + assemble("mov esp, 0xc0078000\nret").code
    image = elf.load(make(Plan([Piece(VADDR, code), Piece(VADDR + 0x1000, bytes(64), flags=6)])))
    assert place(image, choice("low-memory")).top == 0xC0070000
    stack = assemble("mov esp, 0x30000\nret").code
    image = elf.load(make(Plan([Piece(VADDR, kernel_code() + stack)])))
    assert refusal(image.data, choice("low-memory")) == (
        "the segment can't be moved below 640 KiB: the kernel has its stack there"
    )


def test_low_memory_is_for_kernels_above_it() -> None:
    piece = Piece(0x20000, kernel_code(0x20000), paddr=0x20000)
    assert refusal(make(Plan([piece], 0x20000)), choice("low-memory")) == (
        "the segment can't be moved below 640 KiB: the image itself is loaded at 0x20000, below 1 MiB"
    )


def test_low_memory_without_a_sign_that_it_is_mapped_and_without_a_header() -> None:
    """Asked for; it is never found for a kernel that isn't multiboot."""
    code = assemble(f"cli\npush {VADDR + 0x1000:#x}\nsti\nhlt\nret", VADDR).code
    image = elf.load(make(Plan([Piece(VADDR, code.ljust(0x1000, b"\x90"))])))
    assert place(image).strategy is Strategy.AFTER_IMAGE
    assert place(image, choice("low-memory")).warnings[1:] == (
        "the kernel must map memory below 1 MiB at 0xc0000000, where the segment is then, and nothing in it "
        "shows that it does",
        "there is no multiboot 1 header, so the segment can't be taken out of a memory map",
    )
    assert patched(image, choice("low-memory"))[1]
