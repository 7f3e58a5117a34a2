# SPDX-License-Identifier: GPL-2.0-only
"""Numbered 4 KiB pages in one file, compressed: a machine's memory, or the changed blocks of a disk.

Most of a machine's memory is zero or never changes, so only the pages that are given are stored. They are
compressed in groups of 256 (1 MiB): large enough to compress well, small enough to be read one by one. The
same pages give the same bytes with the same version of zlib.

A file is a row of groups, each of a number (4 bytes, little endian), the size of the compressed data (4
bytes) and the data. That is a bitmap of 32 bytes, the lowest bit for the first page of the group, and the
pages whose bits are set. Group n begins with page 256 n. Groups and pages are in ascending order.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from vmi.errors import BadInput
from vmi.memory import PAGE_SIZE

GROUP = 256  # pages

_HEAD = struct.Struct("<II")
_BITMAP = GROUP // 8
_LEVEL = 1  # level 9 takes six times as long to make a file a twentieth smaller
_LONGEST = _BITMAP + GROUP * PAGE_SIZE
_WRONG_SIZE = "its compressed data has another size than a group has"


def encode(pages: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """The file's bytes, piece by piece.

    :param pages: numbers below 2**40, ascending, and 4096 bytes each; the last one may have fewer.
    """
    for number, group in groupby(pages, lambda page: page[0] // GROUP):
        bitmap, parts = 0, [b""]
        for page, data in group:
            bitmap |= 1 << page % GROUP
            parts.append(data)
        parts[0] = bitmap.to_bytes(_BITMAP, "little")
        packed = zlib.compress(b"".join(parts), _LEVEL)
        yield _HEAD.pack(number, len(packed)) + packed


def decode(read: Callable[[int], bytes]) -> Iterator[tuple[int, bytes]]:
    """The pages that a file holds, ascending.

    :param read: gives the file's next bytes, fewer than asked for only at its end.
    :raises BadInput: that is no such file.
    """
    last = -1
    while head := read(_HEAD.size):
        if len(head) < _HEAD.size:
            raise BadInput("it ends in the middle of a group")
        number, size = _HEAD.unpack(head)
        if number <= last:
            raise BadInput(f"group {number} follows group {last}")
        last = number
        if size > 2 * _LONGEST:
            raise BadInput(_WRONG_SIZE)
        yield from _pages(number * GROUP, _unpack(read(size), size))


def _unpack(packed: bytes, size: int) -> bytes:
    if len(packed) < size:
        raise BadInput("it ends in the middle of a group")
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(
            packed, _LONGEST
        )  # bounded: a few bytes can be made to stand for gigabytes
    except zlib.error as error:
        raise BadInput("its compressed data can't be unpacked") from error
    if not unpacker.eof or unpacker.unused_data or len(data) < _BITMAP:
        raise BadInput(_WRONG_SIZE)
    return data


def _pages(first: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    bitmap = int.from_bytes(data[:_BITMAP], "little")
    count, size = bitmap.bit_count(), len(data) - _BITMAP
    if not (count - 1) * PAGE_SIZE < size <= count * PAGE_SIZE:
        raise BadInput(f"a group of {count} pages has {size} bytes")
    at = _BITMAP
    for n in range(GROUP):
        if bitmap >> n & 1:
            yield first + n, data[at : at + PAGE_SIZE]
            at += PAGE_SIZE
