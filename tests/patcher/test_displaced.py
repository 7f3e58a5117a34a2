# SPDX-License-Identifier: GPL-2.0-only
"""Lists of displaced words: packed and unpacked, and found behind an ELF file."""

from __future__ import annotations

import re
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.errors import BadInput
from vmi.patcher import displaced

ADDRESSES = st.lists(st.integers(4, 0xFFFFFFFC), max_size=5).map(lambda words: sorted(set(words)))
CLOSE = st.builds(
    lambda first, steps: [first + sum(steps[:n]) for n in range(len(steps) + 1)],
    st.integers(4, 0xC1000000),
    st.lists(st.integers(1, 1100), max_size=60),
)
LOADED = ((0xC1000000, 0xC1000100), (0xC1001000, 0xC1001040))


def apply(packed: bytes) -> list[int]:
    """What the loop in the description does, instruction by instruction."""
    pointer = int.from_bytes(packed[:4], "little")
    at, found = 4, []
    while True:
        byte = packed[at]
        at += 1
        if byte == 0xFF:
            pointer += 254
        elif byte == 0:
            assert at == len(packed)
            return found
        else:
            pointer += byte
            found.append(pointer)


@given(CLOSE)
def test_round_trip(words: list[int]) -> None:
    packed = displaced.pack(words)
    assert list(displaced.unpack(packed)) == words
    assert apply(packed) == words
    assert len(packed) <= 5 + sum(1 + (b - a) // 254 for a, b in pairwise(words)) + 1


@pytest.mark.parametrize(
    ("words", "packed"),
    [
        ([], "0000000000"),
        ([0xC1000000], "fcffffc00400"),
        ([0x1000, 0x1004, 0x1102], "fc0f00000404fe00"),
        ([0x1000, 0x10FF], "fc0f000004ff0100"),
        ([0x1000, 0x11FC], "fc0f000004fffe00"),
        ([0x1000, 0x11FD], "fc0f000004ffff0100"),
    ],
)
def test_packed_bytes(words: list[int], packed: str) -> None:
    assert displaced.pack(words).hex() == packed
    assert list(displaced.unpack(bytes.fromhex(packed))) == words


@given(st.binary(max_size=40))
def test_any_bytes_are_a_list_or_a_sentence(data: bytes) -> None:
    try:
        words = displaced.unpack(data)
    except BadInput:
        return
    assert list(words) == sorted(set(words))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("00000000", "a packed list of displaced words has 5 bytes or more, but there are 4"),
        ("0000000004", "a packed list of displaced words must end at its byte 4, but ends nowhere"),
        ("000000000400ff", "a packed list of displaced words must end at its byte 6, but ends at byte 5"),
        ("00000000ff00", "a packed list of displaced words must not end in a distance without a word"),
        ("f8ffffff0500", "a packed list of displaced words must end below 4 GiB, but goes to 0xfffffffd"),
    ],
)
def test_damaged(data: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        displaced.unpack(bytes.fromhex(data))


@pytest.mark.parametrize("words", [[8, 8], [12, 8], [3, 8], [8, 0xFFFFFFFD]])
def test_what_is_no_list_is_not_packed(words: list[int]) -> None:
    with pytest.raises(ValueError, match="displaced word"):
        displaced.pack(words)


@given(ADDRESSES)
def test_appended_lists_are_found(words: list[int]) -> None:
    assert displaced.appended(displaced.append(words), ((0, 1 << 32),)) == tuple(words)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([0], True),
        ([0, 0xC1000000, 0xC10000FC, 0xC1001000, 0xC100103C], True),
        ([0, 0xC1000000, 0xC1000001], True),
        ([], False),
        ([1], False),
        ([0xC1000000], False),
        ([0, 0xC1000000, 0xC1000000], False),
        ([0, 0xC1001000, 0xC1000000], False),
        ([0, 0xC10000FD], False),
        ([0, 0xC1000FFC], False),
        ([0, 0xC1000FFE], False),
        ([0, 0xC100103D], False),
        ([0, 0xC1000000, 0, 0xC1000004], False),
    ],
)
def test_appended(words: list[int], found: bool) -> None:
    tail = struct.pack(f"<{len(words)}I", *words)
    assert displaced.appended(tail, LOADED) == (tuple(words[1:]) if found else None)
    assert displaced.appended(tail + b"\0", LOADED) is None
