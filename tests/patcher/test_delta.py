# SPDX-License-Identifier: GPL-2.0-only
"""Differences between files: any two, and small for what a patch does."""

from __future__ import annotations

import hashlib
import struct
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.errors import BadInput
from vmi.patcher import delta


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "little")).digest(size)


SOURCE = noise(200_000)
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(SOURCE)),
        st.integers(0, 5000),  # bytes that go
        st.one_of(st.binary(max_size=60), st.integers(0, 199_000).map(lambda at: SOURCE[at : at + 700])),
    ),
    max_size=12,
)


@given(EDITS)
def test_edited(edits: list[tuple[int, int, bytes]]) -> None:
    target = SOURCE
    for at, gone, new in edits:
        target = target[:at] + new + target[at + gone :]
    data = delta.encode(SOURCE, target)
    assert delta.decode(SOURCE, data) == target
    assert len(data) < 16 + sum(len(new) + 200 for _, _, new in edits) + 20


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_any_two(source: bytes, target: bytes) -> None:
    data = delta.encode(source, target)
    assert delta.decode(source, data) == target
    assert len(data) <= len(target) + 2 * len(target) // 4 + 40


def test_windows() -> None:
    """Thousands of small changes in place, as a patch makes them: a few bytes for each."""
    target = bytearray(SOURCE)
    for number in range(1000):
        target[number * 190 : number * 190 + 5] = noise(5, number)
    data = delta.encode(SOURCE, bytes(target))
    assert delta.decode(SOURCE, data) == target
    assert len(data) < 1000 * 9.5


def test_moved_by_a_little_again_and_again() -> None:
    """A table of bytes that lost an entry here and there."""
    words = bytearray(SOURCE[:60_000])
    for at in range(50_000, 0, -1000):
        del words[at]
    data = delta.encode(SOURCE[:60_000], bytes(words))
    assert delta.decode(SOURCE[:60_000], data) == words
    assert len(data) < 50 * 40


def test_moved_far_away() -> None:
    target = noise(5000, 1) + SOURCE[120_000:] + b"between" + SOURCE[:120_000]
    data = delta.encode(SOURCE, target)
    assert delta.decode(SOURCE, data) == target
    assert len(data) < 5100


def test_the_same_bytes_each_time() -> None:
    target = SOURCE[1000:] + SOURCE[:2000]
    assert delta.encode(SOURCE, target) == delta.encode(SOURCE, target)


TARGET = SOURCE[500:1000] + b"new" + SOURCE[:300]
DATA = delta.encode(SOURCE, TARGET)


@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
def test_any_damage_gives_a_sentence_or_another_file(at: int, value: int) -> None:
    try:
        delta.decode(SOURCE, DATA[:at] + bytes([value]) + DATA[at + 1 :])
    except BadInput as error:
        assert str(error) == "a difference between files is damaged"


HEAD = struct.Struct("<4I")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        DATA[:15],
        DATA[:-1],
        DATA + b"!",
        HEAD.pack(4, 1, 1, 1) + bytes([5, 0, 0]),  # more than it says
        HEAD.pack(5, 1, 1, 1) + bytes([4, 0, 0]),  # less
        HEAD.pack(4, 1, 1, 1) + bytes([2, 2, 0]) + b"x",  # no bytes for it
        HEAD.pack(4, 2, 2, 2) + bytes([1, 3, 0, 0, 3, 0]),  # before the source's start
        HEAD.pack(4, 1, 1, 1) + bytes([0x84, 0, 0]),  # a number without end
        HEAD.pack(4, 6, 1, 1) + bytes([0x84, 0x80, 0x80, 0x80, 0x80, 0, 0, 0]),  # a number too long
        HEAD.pack(4, 1, 2, 1) + bytes([4, 0, 0, 0]),  # not as many of each
        HEAD.pack(4, 9, 9, 9),
    ],
)
def test_damaged(data: bytes) -> None:
    with pytest.raises(BadInput, match=r"^a difference between files is damaged$"):
        delta.decode(SOURCE, data)


def test_a_source_that_ends_early() -> None:
    with pytest.raises(BadInput, match=r"^a difference between files is damaged$"):
        delta.decode(SOURCE[:900], DATA)


def test_a_bomb() -> None:
    """A few bytes that copy the same again and again end where they say they do."""
    moves = 50
    streams = bytes([100] * moves) + bytes(moves) + bytes([0xC7, 0x01] * moves)
    data = HEAD.pack(100 * moves, moves, moves, 2 * moves) + streams
    assert len(delta.decode(SOURCE, data)) == 100 * moves
    with (
        mock.patch.object(delta, "LIMIT", 100 * moves - 1),
        pytest.raises(BadInput, match=r"^a difference between files is damaged$"),
    ):
        delta.decode(SOURCE, data)
