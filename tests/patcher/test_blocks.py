# SPDX-License-Identifier: GPL-2.0-only
"""Blocks of xz are one stream that any decoder takes; one is begun early, and none depends on when."""

from __future__ import annotations

import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patcher import bzimages
from vmi.errors import VerifyError
from vmi.patcher import blocks, bzimage, compression
from vmi.patcher.blocks import Cuts, Packing, cuts
from vmi.patcher.compression import Format, Recipe, unpack
from vmi.patcher.container import open_container
from vmi.patcher.elf import load
from vmi.patcher.model import Access, Image, Section, Segment

BASE = 0xC1000000
BASE_RECIPE = Recipe(Format.XZ, 6, check=lzma.CHECK_CRC32, x86=True, dictionary=1 << 20)
DATA = b"".join(n.to_bytes(4, "little") + b"\xe8%d" % (n * n % 1009) for n in range(8000))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=200),
    st.sampled_from((lzma.CHECK_NONE, lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256)),
)
def test_joined_streams_unpack_to_their_parts_in_order(parts: list[bytes], check: int) -> None:
    streams = [lzma.compress(part, lzma.FORMAT_XZ, check, preset=0) for part in parts[:127]]
    assert unpack(blocks.joined(streams), Format.XZ) == (b"".join(parts[:127]), b"")


def section(name: str, at: int, size: int) -> Section:
    return Section(name, BASE + at, size, "text" in name, False)


def image(*sections: Section, data: bytes = DATA) -> Image:
    """A kernel with 64 bytes before its first section, in one segment."""
    return Image(data, (Segment(BASE, 0, data[64:], len(data), Access.R, 64),), BASE, sections)


TEXT, RODATA = section(".text", 0, 30000), section(".rodata", 30000, 9000)
TABLE, REST = section("__ex_table", 40960, 512), section(".init.text", 50000, 99)
KERNEL = image(TEXT, RODATA, REST, TABLE)


THIRDS = Cuts(len(DATA) // 3, len(DATA) // 3 * 2, len(DATA) // 3 * 2)


@pytest.mark.parametrize(
    ("kernel", "where"),
    [
        (KERNEL, Cuts(16384, 32768, 41024)),
        (image(TEXT, RODATA, REST), Cuts(16384, 32768, 50064)),
        (image(TEXT, RODATA), Cuts(16384, 32768, len(DATA))),
        # A table in the page where the code ends: nothing is sure to stay.
        (image(TEXT, section(".smp_locks", 32000, 900)), Cuts(16384, 32768, 32768)),
        (image(RODATA), THIRDS),
        (image(), THIRDS),
        (image(section(".text", 0, len(DATA) - 64)), THIRDS),
        (image(section(".text", 1 << 20, 64)), THIRDS),
    ],
)
def test_cuts(kernel: Image, where: Cuts) -> None:
    assert cuts(kernel) == where


def count(packed: bytes) -> int:
    size = (int.from_bytes(packed[-8:-4], "little") + 1) * 4
    return packed[-12 - size + 1]


def test_the_code_has_two_blocks_or_one_and_the_rest_has_one() -> None:
    three, two = Packing(BASE_RECIPE, KERNEL).ways(DATA)
    assert unpack(three, Format.XZ) == unpack(two, Format.XZ) == (DATA, b"")
    assert (count(three), count(two)) == (3, 2)
    assert len(two) < len(three)


@pytest.mark.parametrize("at", [100, 33000, 45000])
def test_what_was_begun_does_not_change_the_bytes(at: int) -> None:
    """The block is begun with what turns out to be there, or with something else."""
    changed = DATA[:at] + b"other" + DATA[at + 5 :]
    early = list(Packing(BASE_RECIPE, KERNEL).ways(changed))
    assert early == list(Packing(BASE_RECIPE, image(*KERNEL.sections, data=changed)).ways(changed))
    assert all(unpack(packed, Format.XZ) == (changed, b"") for packed in early)


def test_a_kernel_may_grow_and_shrink() -> None:
    for kernel in (DATA + bytes(5000) + DATA[:999], DATA[:35000]):
        for packed in Packing(BASE_RECIPE, KERNEL).ways(kernel):
            assert unpack(packed, Format.XZ) == (kernel, b"")


def test_blocks_have_the_check_and_the_filters_of_the_original() -> None:
    packed = next(Packing(BASE_RECIPE, KERNEL).ways(DATA))
    assert packed[7] == lzma.CHECK_CRC32
    assert packed[12:17] == bytes.fromhex("0201040021")  # two filters: x86, then LZMA2
    plain = Recipe(Format.XZ, 6, check=lzma.CHECK_CRC64, dictionary=1 << 12)
    packed = next(Packing(plain, KERNEL).ways(DATA))
    assert unpack(packed, Format.XZ) == (DATA, b"")
    assert packed[12:17] == bytes.fromhex("0200210100")  # LZMA2 alone, with the smaller dictionary
    assert packed[7] == lzma.CHECK_CRC64


def test_a_block_that_unpacks_to_something_else_is_never_given_out() -> None:
    with pytest.raises(VerifyError, match=r"^the compressed kernel doesn't unpack to what was compressed$"):
        compression.checked(BASE_RECIPE.compress(DATA), DATA[:-1], Format.XZ)


def test_three_blocks_are_taken_if_they_fit_then_two_then_one() -> None:
    size = len(DATA).to_bytes(4, "little")
    three, two = Packing(BASE_RECIPE, KERNEL).ways(DATA)
    one = BASE_RECIPE.compress(DATA)
    assert len(one) < len(two) < len(three)
    for best, room in ((three, len(three)), (two, len(two)), (one, len(one))):
        old = one.ljust(room + 4, b"\0")
        assert bzimage._squeeze(DATA, old, Format.XZ, Packing(BASE_RECIPE, KERNEL)) == best + size
    assert bzimage._squeeze(DATA, one.ljust(len(three) + 4, b"\0"), Format.XZ) == one + size


def test_only_a_large_kernel_in_xz_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bzimages.Image()
    container = open_container(made.make())
    kernel = load(container.kernel)
    assert container.begin(kernel) is None
    monkeypatch.setattr(bzimage, "LEAST", len(kernel.data))
    begun = container.begin(kernel)
    assert begun is not None
    again = open_container(container.pack(container.kernel, begun))
    assert again.kernel[: len(container.kernel)] == container.kernel
    other = open_container(bzimages.Image(compression="gzip").make())
    assert other.begin(kernel) is None
    assert open_container(kernel.data).begin(kernel) is None
