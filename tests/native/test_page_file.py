# SPDX-License-Identifier: GPL-2.0-only
"""Pages in a file: all come back, and damage is told, whatever it is."""

from __future__ import annotations

import io
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi.errors import BadInput
from vmi.memory import PAGE_SIZE
from vmi.native.page_file import GROUP, decode, encode


def page(fill: int, size: int = PAGE_SIZE) -> bytes:
    return bytes([fill]) * size


def pack(pages) -> bytes:
    return b"".join(encode(pages))


def unpack(data: bytes):
    return list(decode(io.BytesIO(data).read))


def group(number: int, content: bytes) -> bytes:
    """One group of a file, whatever its content is."""
    packed = zlib.compress(content)
    return number.to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 4 * GROUP) | st.integers(0, (1 << 40) - 1), st.integers(0, 255)))
def test_all_pages_come_back(fills):
    pages = [(number, page(fill)) for number, fill in sorted(fills.items())]
    data = pack(pages)
    assert unpack(data) == pages
    assert pack(pages) == data


def test_the_last_page_may_be_shorter():
    pages = [(3, page(1)), (700, page(2)), (701, page(3, 512))]
    assert unpack(pack(pages)) == pages


def test_pages_are_grouped():
    pages = [(number, page(7)) for number in (0, GROUP - 1, GROUP, 5 * GROUP)]
    data = pack(pages)
    bitmap = (1 | 1 << GROUP - 1).to_bytes(32, "little")
    assert data.startswith(b"\0\0\0\0")
    size = int.from_bytes(data[4:8], "little")
    assert zlib.decompress(data[8 : 8 + size]) == bitmap + page(7) * 2
    assert data[8 + size : 12 + size] == b"\1\0\0\0"
    assert len(data) < 400, "what repeats is stored once"


def test_nothing_is_an_empty_file():
    assert pack([]) == b""
    assert unpack(b"") == []


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 30])
def test_cut_off(cut):
    with pytest.raises(BadInput, match=r"^it ends in the middle of a group$"):
        unpack(pack([(0, page(1)), (9, page(2))])[:cut])


def bits(*numbers: int) -> bytes:
    return sum(1 << number for number in numbers).to_bytes(32, "little")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (group(1, bits(0) + page(1)) * 2, "group 1 follows group 1"),
        (group(0, bits(0) + page(1))[:-1] + b"x", "its compressed data can't be unpacked"),
        (group(0, bits(0, 1) + page(1)), "a group of 2 pages has 4096 bytes"),
        (group(0, bits(0) + page(1) * 2), "a group of 1 pages has 8192 bytes"),
        (group(0, bits() + b"x"), "a group of 0 pages has 1 bytes"),
        (group(0, b"x" * 31), "its compressed data has another size than a group has"),
        (group(0, bytes(100 << 20)), "its compressed data has another size than a group has"),
    ],
)
def test_damage(data, sentence):
    with pytest.raises(BadInput, match=f"^{sentence}$"):
        unpack(data)


def test_no_more_is_read_than_a_group_can_have():
    asked = []
    stream = io.BytesIO(b"\0\0\0\0\xff\xff\xff\xff")

    def read(size):
        asked.append(size)
        return stream.read(size)

    with pytest.raises(BadInput, match=r"^its compressed data has another size than a group has$"):
        list(decode(read))
    assert asked == [8]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_told_or_does_no_harm(data):
    """The hash beside the file finds all damage; here it only matters that reading ends, with a sentence."""
    packed = bytearray(pack([(n * 100, page(n)) for n in range(6)]))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        pages = unpack(bytes(packed))
    except BadInput as error:
        assert str(error)
    else:
        assert len(pages) <= 6
