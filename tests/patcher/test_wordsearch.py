# SPDX-License-Identifier: GPL-2.0-only
"""The search for words leaves none out, and gives only those whose upper halves fit."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from vmi.patcher.wordsearch import WORD, places

ADDRESSES = st.integers(-(1 << 32), (1 << 32) - 1)
BYTES = st.sampled_from((b"\0", b"\1", b"\x10", b"\x7f", b"\xc0", b"\xc1", b"\xff"))
DATA = st.lists(st.binary(max_size=9) | BYTES, max_size=24).map(b"".join)
NEAR = st.tuples(
    st.sampled_from((0, 0x10FFFF, 0xC1000000, 0xC10FFFFF, -0x10, -0x1000000)), st.integers(0, 1 << 25)
)
RANGES = st.lists(
    NEAR.map(lambda pair: (pair[0], pair[0] + pair[1])) | st.tuples(ADDRESSES, ADDRESSES), max_size=4
)


def halves(ranges: list[tuple[int, int]]) -> set[int]:
    """The upper halves of everything in ranges that are no larger than a few dozen of them."""
    return {
        half % (1 << 16)
        for low, high in ranges
        if low < high
        for half in range(low >> 16, (high - 1 >> 16) + 1)
    }


@given(DATA, RANGES, st.integers(1, 4), st.sampled_from((1, 4)))
@example(b"", [(0, 1 << 32)], 1, 1)
@example(b"\0\0\0", [(0, 1 << 32)], 1, 1)
@example(b"\xff" * 9, [(-1, 0)], 2, 1)
@example(b"\xff" * 9, [(5, 5)], 1, 1)
def test_places_are_where_every_word_has_an_upper_half_of_the_ranges(
    data: bytes, ranges: list[tuple[int, int]], count: int, step: int
) -> None:
    wanted = halves(ranges)
    expected = []
    for at in range(0, len(data) - count * WORD + 1, step):
        words = struct.unpack_from(f"<{count}I", data, at)
        if all(word >> 16 in wanted for word in words):
            expected.append(at)
    assert list(places(data, ranges, count, step)) == expected
