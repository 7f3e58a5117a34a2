# SPDX-License-Identifier: GPL-2.0-only
"""The files that kernels come in: opened, packed again, and refused when something is out of its place."""

from __future__ import annotations

import gzip
import re
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patcher import bzimages
from tests.patcher.bzimages import CODE_AT, COMPRESSIONS, INIT_SIZE, PAYLOAD_AT, PE_AT, Image
from tests.patcher.elfs import PADDR, VADDR, Piece, Plan, kernel_code, make, small_kernel
from vmi.errors import BadInput
from vmi.patcher import bzimage, compression
from vmi.patcher.container import Kind, Linux, in_gzip, open_container

IMAGE = Image().make()
OPTIONAL = PE_AT + 24


def u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def opened(data: bytes) -> Linux:
    container = open_container(data)
    assert isinstance(container, Linux)
    return container


def with_text(kernel: bytes, text: bytes = b"\x90\x90\x90") -> bytes:
    """Another kernel of the same shape."""
    return kernel.replace(kernel_code()[-16:-13], text, 1)


def test_elf() -> None:
    container = open_container(small_kernel())
    assert (container.kind, container.kernel, container.displaced, container.notes) == (
        Kind.ELF, small_kernel(), (), (),
    )  # fmt: skip
    assert container.pack(b"anything") == b"anything"


def test_gzip() -> None:
    container = open_container(gzip.compress(small_kernel()))
    assert (container.kind, container.kernel, container.notes) == (Kind.GZIP, small_kernel(), ())
    assert container.pack(b"anything") == b"anything"
    assert gzip.decompress(in_gzip(b"anything")) == b"anything"
    assert in_gzip(b"anything") == in_gzip(b"anything")


def test_what_is_nothing_of_these_is_left_to_the_elf_reader() -> None:
    assert open_container(b"nonsense").kind is Kind.ELF


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_bzimage(name: str) -> None:
    container = opened(Image(compression=name).make())
    assert container.kind is Kind.BZIMAGE
    assert container.kernel == bzimages.kernel()
    assert container.displaced == tuple(bzimages.words())
    assert container.relocatable
    kernel = with_text(container.kernel)
    packed = container.pack(kernel)
    again = opened(packed)
    assert (again.kernel, again.displaced, again.relocatable) == (kernel, (), True)
    assert again.image.payload.unpacked == kernel + bytes(4)
    assert again.image.checksum
    assert packed == container.pack(kernel)


def test_only_what_must_change_changes() -> None:
    before = opened(IMAGE).image
    packed = opened(IMAGE).pack(with_text(bzimages.kernel()))
    size = u32(packed, 0x24C)
    may_change = {*range(0x24C, 0x250), *range(0x260, 0x264), *range(PAYLOAD_AT, before.payload.end)}
    may_change |= {*range(before.input_at, before.input_at + 8), *range(len(packed) - 4, len(packed))}
    changed = {at for at, (a, b) in enumerate(zip(IMAGE, packed, strict=True)) if a != b}
    assert changed <= may_change
    assert u32(packed, before.input_at) == size < before.room
    assert u32(packed, before.output_at) == len(bzimages.kernel()) + 4
    assert u32(packed, PAYLOAD_AT + size - 4) == len(bzimages.kernel()) + 4
    assert not any(packed[PAYLOAD_AT + size : before.payload.end])
    assert zlib.crc32(packed) ^ 0xFFFFFFFF == 0


@pytest.mark.parametrize("size", [0, 5, 0x30000])
def test_memory_for_unpacking_in_place(size: int) -> None:
    """The sum that must not grow without init_size is that of Linux's own header."""
    container = opened(IMAGE)
    kernel = bzimages.kernel() + bytes(size)
    packed = container.pack(kernel)
    unpacked = -(-len(kernel) // 4) * 4 + 4
    old = container.image.payload
    margin = unpacked + (unpacked >> 8) - u32(packed, 0x24C)
    old_margin = len(old.unpacked) + (len(old.unpacked) >> 8) - container.image.room
    assert u32(packed, 0x260) % 0x1000 == 0
    assert 0 <= u32(packed, 0x260) - max(INIT_SIZE, INIT_SIZE + margin - old_margin) < 0x1000


def larger(memory: int, data: int) -> bytes:
    """A kernel with a third segment, whose end is ``memory`` bytes behind the first one's start."""
    at = memory - data
    pieces = [
        Piece(VADDR, kernel_code(), section=".text"),
        Piece(VADDR + at, bytes(data), flags=7, section=".vmi"),
    ]
    plan = Plan(pieces, first_offset=0x1000)
    kernel = bytearray(make(plan))
    first, second = 52, 52 + 32
    offset = u32(kernel, second + 4)
    content = kernel[offset : offset + data]
    # The file is as the memory is, so that the boot code need not move it.
    kernel[second + 4 : second + 8] = struct.pack("<I", at)
    kernel[first + 4 : first + 8] = struct.pack("<I", 0x1000)
    kernel = kernel.ljust(at, b"\0")
    kernel[at : at + data] = content
    return bytes(kernel)


def test_memory_for_a_larger_kernel() -> None:
    kernel = larger(0x100000, 0x2000)
    packed = opened(IMAGE).pack(kernel)
    assert u32(packed, 0x260) >= 0x100000
    assert opened(packed).kernel == kernel


def test_memory_behind_what_is_unpacked_is_not_safe() -> None:
    kernel = bytearray(larger(0x100000, 0x2000))
    kernel[52 + 32 + 20 : 52 + 32 + 24] = struct.pack("<I", 0x3000)  # p_memsz
    sentence = "the kernel needs 0x101000 bytes of memory, but its boot code only keeps 0x100004 free"
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        opened(IMAGE).pack(bytes(kernel))


def test_a_kernel_that_always_runs_where_it_is_linked() -> None:
    container = opened(Image(words=None).make())
    assert (container.displaced, container.relocatable) == ((), False)
    kernel = small_kernel()
    again = opened(container.pack(kernel))
    assert (again.kernel, again.image.payload.unpacked, again.relocatable) == (kernel, kernel, False)


def test_an_empty_list() -> None:
    container = opened(Image(words=()).make())
    assert (container.displaced, container.relocatable) == ((), True)
    assert container.kernel == bzimages.kernel()


def test_slower_settings_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload made by an encoder that does little is not the measure of what fits."""
    tried = []
    better = compression.better

    def watch(packed: bytes, kind: compression.Format) -> list[compression.Recipe]:
        tried.extend(better(packed, kind))
        return tried

    monkeypatch.setattr(compression, "better", watch)
    with pytest.raises(BadInput, match=r"^the patched kernel must fit into the \d+ bytes of "):
        opened(IMAGE).pack(larger(0x80000, 16) + bytes(range(256)) * 8 + Image(compression="bzip2").packed())
    assert [(one.level, one.extreme, one.literal[0]) for one in tried] == [
        (6, False, 3), (6, True, 3), (6, True, 4),
    ]  # fmt: skip


def test_no_room() -> None:
    container = opened(Image(elf=small_kernel(), words=(), compression="bzip2").make())
    kernel = small_kernel() + bytes(n * n * 31 % 251 for n in range(2000))
    missing = len(COMPRESSIONS["bzip2"](kernel + bytes(-len(kernel) % 4 + 4))) + 4 - container.image.room
    sentence = (
        f"the patched kernel must fit into the {container.image.room} bytes of the original's bzip2 data, "
        f"but takes {missing} more"
    )
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        container.pack(kernel)


def test_no_checksum_is_made_where_none_was() -> None:
    image = Image(checksum=False).make()
    packed = opened(image).pack(bzimages.kernel())
    assert not opened(image).image.checksum
    assert packed[-4:] == image[-4:]


@pytest.mark.parametrize(("pe", "more"), [("fixed", 0), ("stretched", 1)])
def test_pe_header(pe: str, more: int) -> None:
    image = Image(pe=pe).make()
    packed = opened(image).pack(larger(0x100000, 0x2000))
    grown = (u32(packed, 0x260) - INIT_SIZE) * more
    for at in (OPTIONAL + 4, OPTIONAL + 56, OPTIONAL + 96 + 48 + 40 + 8):
        assert u32(packed, at) == u32(image, at) + grown
    assert packed[PE_AT + 24 + 96 + 48 :][:40] == image[PE_AT + 24 + 96 + 48 :][:40]
    assert zlib.crc32(packed) ^ 0xFFFFFFFF == 0


def test_signature() -> None:
    container = opened(Image(pe="fixed", signature=b"signed" * 20).make())
    assert container.image.checksum
    assert container.notes == ("the signature was removed, since it is not valid for a changed file",)
    packed = container.pack(with_text(bzimages.kernel()))
    plain = opened(Image(pe="fixed").make())
    assert packed == plain.pack(with_text(bzimages.kernel()))
    assert plain.notes == ()


def damaged(at: int, value: int, size: int = 4, image: bytes = IMAGE) -> bytes:
    return image[:at] + value.to_bytes(size, "little") + image[at + size :]


SIZE = len(Image().unpacked)
ROOM = len(Image().packed())
END = len(IMAGE)
SIGNED = Image(pe="fixed", signature=b"signed" * 20).make()
WIDE = bytearray(bzimages.kernel())
WIDE[4] = 2


INSIDE = f"the kernel's payload must lie inside the boot code at 0x400-{END:#x}, but its header says "
SIZED = f"the kernel's payload must end in the size it unpacks to, {SIZE}, but has "
WORD = "the kernel's boot code must hold the"
LISTED = "what follows the ELF file in the kernel's payload must be a list of displaced words"
ONLY_32 = "the kernel is a 64-bit Linux: only kernels for i386 can be patched"
REFUSED: list[tuple[bytes, str]] = [
    (IMAGE[:0x260], "the kernel's setup header ends at byte 0x264, after the file's 0x260"),
    (IMAGE[:-1], f"the kernel's file must have {END} bytes at least, but it has {END - 1}"),
    (damaged(0x206, 0x209, 2), "the kernel's boot protocol must be 2.10 or newer, but it is 2.09"),
    (
        damaged(0x211, 0, 1),
        "the kernel is a zImage, made to be loaded below 640 KiB: only a bzImage can be patched",
    ),
    (damaged(0x236, 1, 2), ONLY_32),
    (Image(elf=bytes(WIDE)).make(), ONLY_32),
    (damaged(0x248, 0), f"{INSIDE}0x400-{CODE_AT + ROOM:#x}"),
    (damaged(0x24C, 15), f"{INSIDE}0x440-0x44f"),
    (damaged(0x24C, 0xFFFFFFFF), f"{INSIDE}0x440-0x10000043f"),
    (
        damaged(0x24C, ROOM - 1),
        f"{SIZED}3 bytes behind its data and ends in {u32(IMAGE, PAYLOAD_AT + ROOM - 5)}",
    ),
    (damaged(0x24C, ROOM - 9), "the kernel's xz data ends too early"),
    (damaged(PAYLOAD_AT + 30, 0), "the kernel's xz data is damaged"),
    (Image(size_word=7).make(), f"{SIZED}4 bytes behind its data and ends in 7"),
    (
        damaged(PAYLOAD_AT, 0),
        "the kernel's payload must be compressed with xz, gzip, lzma or bzip2, but starts with 00 00 00 00",
    ),
    (
        damaged(PAYLOAD_AT, 0xFD2FB528),
        "the kernel is compressed with zstd, but only xz, gzip, lzma and bzip2 can be unpacked",
    ),
    (
        Image(elf=b"\x7fELSE" * 9, words=None).make(),
        "the kernel's payload must unpack to an ELF file",
    ),
    (
        Image(elf=small_kernel()[:99], words=None).make(),
        "the file is truncated: its program header table ends at byte 148, it has 99 bytes",
    ),
    (
        Image(elf=small_kernel()[:4200], words=None).make(),
        "the file is truncated: its section header table ends at byte 12628, it has 4200 bytes",
    ),
    (Image(words=[8]).make(), LISTED),
    (Image(elf=bzimages.kernel() + b"overlay", words=None).make(), LISTED),
    (
        Image(head=bytes(64)).make(),
        "the kernel's boot code must take its memory from init_size, as it does since Linux 4.7",
    ),
    (
        Image(input_words=0).make(),
        f"{WORD} compressed size {ROOM} once behind the payload, but does never",
    ),
    (
        Image(input_words=2).make(),
        f"{WORD} compressed size {ROOM} once behind the payload, but does more than once",
    ),
    (
        Image(output_words=0).make(),
        f"{WORD} unpacked size {SIZE} once behind the payload, but does never",
    ),
    (damaged(OPTIONAL, 0x999, 2, SIGNED), "the kernel's PE header is damaged"),
    (damaged(PE_AT + 20, 8, 2, SIGNED), "the kernel's PE header is damaged"),
    (damaged(PE_AT + 6, 0xFFFF, 2, SIGNED), "the kernel's PE header is damaged"),
    (
        SIGNED + b"!",
        f"the kernel's signature must lie behind the image, at {END:#x}-{END + 121:#x}, "
        f"but its header says {END:#x}-{END + 120:#x}",
    ),
]


@pytest.mark.parametrize(("data", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        open_container(data)


def test_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "LIMIT", SIZE - 1)
    with pytest.raises(BadInput, match=r"^the compressed kernel expands to more than 0 MiB$"):
        open_container(IMAGE)


def test_no_setup_header() -> None:
    with pytest.raises(
        BadInput, match=r"^the kernel has no Linux setup header: there is no 'HdrS' at byte 0x202$"
    ):
        bzimage.read(small_kernel())


@settings(max_examples=60)
@given(st.integers(0, END - 1), st.integers(0, 255))
def test_any_damage_gives_a_sentence(at: int, value: int) -> None:
    for data in (damaged(at, value, 1, IMAGE), IMAGE[:at]):
        try:
            opened(data).pack(bzimages.kernel()) if bzimage.recognise(data) else None
        except BadInput as error:
            assert str(error)


def test_addresses_agree_with_the_builder() -> None:
    """What the tests above take for granted."""
    assert u32(IMAGE, 0x258) == PADDR
    assert opened(IMAGE).image.end == END
