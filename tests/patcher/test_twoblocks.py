# SPDX-License-Identifier: GPL-2.0-only
"""Two blocks of xz are one stream that any decoder takes, and are used where that is worth it."""

from __future__ import annotations

import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi.patcher import bzimage, twoblocks
from vmi.patcher.compression import Format, Recipe, unpack

BASE = Recipe(Format.XZ, 6, check=lzma.CHECK_CRC32, x86=True, dictionary=1 << 20)
DATA = b"".join(n.to_bytes(4, "little") + b"\xe8%d" % (n * n % 1009) for n in range(5000))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=200),
    st.sampled_from((lzma.CHECK_NONE, lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256)),
)
def test_joined_streams_unpack_to_their_parts_in_order(parts: list[bytes], check: int) -> None:
    streams = [lzma.compress(part, lzma.FORMAT_XZ, check, preset=0) for part in parts[:127]]
    assert unpack(twoblocks.joined(streams), Format.XZ) == (b"".join(parts[:127]), b"")


def test_two_blocks_have_the_check_and_the_filters_of_the_original() -> None:
    packed = twoblocks.compress(DATA, BASE)
    assert unpack(packed, Format.XZ) == (DATA, b"")
    assert packed == twoblocks.compress(DATA, BASE)
    assert packed[7] == lzma.CHECK_CRC32
    assert packed[12:18] == bytes.fromhex("020104002101")  # two filters: x86, then LZMA2
    plain = twoblocks.compress(DATA, Recipe(Format.XZ, 6, check=lzma.CHECK_CRC64, dictionary=1 << 12))
    assert unpack(plain, Format.XZ) == (DATA, b"")
    assert plain[12:17] == bytes.fromhex("0200210100")  # LZMA2 alone, with the smaller dictionary
    assert plain[7] == lzma.CHECK_CRC64


def blocks(packed: bytes) -> int:
    size = (int.from_bytes(packed[-8:-4], "little") + 1) * 4
    return packed[-12 - size + 1]


def test_large_data_takes_two_blocks_if_they_fit_and_one_if_not(monkeypatch: pytest.MonkeyPatch) -> None:
    one = BASE.compress(DATA)
    assert bzimage._squeeze(DATA, one + bytes(4), Format.XZ) == one + len(DATA).to_bytes(4, "little")
    monkeypatch.setattr(twoblocks, "LEAST", len(DATA))
    two = twoblocks.compress(DATA, BASE)
    assert (blocks(one), blocks(two)) == (1, 2)
    old = one.ljust(max(len(one), len(two)) + 4, b"\0")
    assert bzimage._squeeze(DATA, old, Format.XZ) == two + len(DATA).to_bytes(4, "little")
    assert len(two) > len(one)
    assert bzimage._squeeze(DATA, one + bytes(4), Format.XZ) == one + len(DATA).to_bytes(4, "little")
