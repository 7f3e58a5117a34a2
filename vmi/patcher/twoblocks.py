# SPDX-License-Identifier: GPL-2.0-only
"""xz data in two blocks, each made by a thread of its own: half the time for what takes most of it.

A block starts with nothing known, so two of them take more room than one, and there is none to spare. What
is lost is won back by settings that suit a kernel of i386 better than the usual ones: matches of three bytes,
literals that depend on four bits of the byte before, and no regard to alignment, which its code has none of.

The decoder of a kernel that unpacks itself takes any number of blocks.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from vmi.patcher.compression import Recipe

LEAST = 4 << 20
"""Bytes of data that are worth two threads."""

_SHARE = 3
"""The first block has one byte in so many: a kernel begins with its code, which takes twice as long."""
_HEADER, _FOOTER = 12, 12  # bytes of a stream's
_BACKWARD = struct.Struct("<I")


def compress(data: bytes, base: Recipe) -> bytes:
    """``data`` in xz for a decoder that takes what ``base`` makes; the same bytes for the same data.

    Needs at least LEAST bytes.
    """
    cut = len(data) // _SHARE & ~0xFFF
    largest = len(data) - cut
    dictionary = min(base.dictionary, 1 << (largest - 1).bit_length())
    before = [{"id": lzma.FILTER_X86}] if base.x86 else []
    main = {"id": lzma.FILTER_LZMA2, "preset": base.level, "dict_size": dictionary}
    filters = [*before, main | {"mf": lzma.MF_BT3, "lc": 4, "lp": 0, "pb": 0}]

    def stream(part: bytes) -> bytes:
        return lzma.compress(part, lzma.FORMAT_XZ, base.check, filters=filters)

    with ThreadPoolExecutor(max_workers=2) as workers:
        return joined(list(workers.map(stream, (data[:cut], data[cut:]))))


def joined(streams: Sequence[bytes]) -> bytes:
    """One xz stream with the blocks of several (127 at most) that have the same check and one block each."""
    body = bytearray(streams[0][:_HEADER])
    records = bytearray()
    for stream in streams:
        size = _index_size(stream)
        index = stream[-_FOOTER - size : -_FOOTER]
        body += stream[_HEADER : -_FOOTER - size]
        first = 2 + _number_size(index, 2)
        records += index[2 : first + _number_size(index, first)]
    index = bytes([0, len(streams)]) + records
    index += bytes(-len(index) % 4)
    index += _crc(index)
    end = _BACKWARD.pack(len(index) // 4 - 1) + streams[0][-4:-2]
    return bytes(body + index + _crc(end) + end) + streams[0][-2:]


def _index_size(stream: bytes) -> int:
    (words,) = _BACKWARD.unpack_from(stream, len(stream) - 8)
    return (int(words) + 1) * 4


def _number_size(data: bytes, at: int) -> int:
    """Bytes of a number: 7 bits each, with bit 7 set in all but the last."""
    return next(size for size in range(1, 10) if not data[at + size - 1] & 0x80)


def _crc(data: bytes) -> bytes:
    return _BACKWARD.pack(zlib.crc32(data))
