# SPDX-License-Identifier: GPL-2.0-only
"""A kernel's xz data in three blocks, each made by a thread of its own; the last is begun before the plan is.

Most of the time of patching a Linux goes into compression, and code takes by far the most of it: so the code
has two blocks, for two processors. What is behind the code is one block. Its beginning, up to the first table
that patching changes, is the same in the patched kernel and can be compressed while that is being planned.
Should it be different after all, that block is made anew: the same kernel always gives the same bytes.

A block starts with nothing known, so three of them take more room than one, and there is none to spare. What
is lost is won back by settings that suit a kernel of i386 better than the usual ones: matches of three bytes,
literals that depend on more bits of the byte before, and no regard to alignment, which its code has none of.
Where that does not suffice the code gets one block, which takes longer.

The decoder of a kernel that unpacks itself takes any number of blocks.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vmi.patcher import compression, elf
from vmi.patcher.compression import Format, Recipe
from vmi.patcher.model import Image

LEAST = 4 << 20
"""Bytes of a kernel that are worth several threads."""

_CHANGED = frozenset(("__ex_table", ".smp_locks", ".parainstructions", ".altinstructions"))
"""Sections with addresses of code, where a patch may change bytes."""

_LEAST_DICTIONARY = 1 << 12
_CODE, _REST = 4, 3  # bits of the byte before that a literal depends on
_HEADER, _FOOTER = 12, 12  # bytes of a stream's
_BACKWARD = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a kernel's file is cut: blocks are [0, middle), [middle, code) and all that is behind.

    What is in [code, steady) is not changed by patching, as far as sections tell.
    """

    middle: int
    code: int
    steady: int


def cuts(image: Image) -> Cuts:
    """Where to cut, by the sections of a kernel; in thirds when they don't tell."""
    homes = ((image.segment_at(section.vaddr), section) for section in image.sections)
    places = [(home.file_offset + one.vaddr - home.vaddr, one) for home, one in homes if home is not None]
    size, start = max(((one.size, at) for at, one in places if one.executable), default=(0, 0))
    end = -(-(start + size) // elf.PAGE) * elf.PAGE
    if not 0 < end < len(image.data):
        third = len(image.data) // 3
        return Cuts(third, 2 * third, 2 * third)
    changed = [at for at, one in places if at + one.size > end and (one.executable or one.name in _CHANGED)]
    return Cuts(end // 2, end, max(end, min(changed, default=len(image.data))))


class Packing:
    """Makes xz data of a kernel that is ``original`` with changes, for a decoder of what ``base`` makes.

    To make one of these takes a second: it compresses what most likely stays.
    """

    def __init__(self, base: Recipe, original: Image) -> None:
        self._base = base
        self._cuts = cuts(original)
        self._rest_size = len(original.data) - self._cuts.code
        self._steady = original.data[self._cuts.code : self._cuts.steady]
        begun = self._encoder(_REST, self._rest_size)
        self._made = begun.compress(self._steady)
        self._begun: lzma.LZMACompressor | None = begun

    def ways(self, kernel: bytes) -> Iterator[bytes]:
        """The data of a kernel in all ways there are, the quickest first.

        Raises VerifyError if it unpacks to something else.
        """
        middle, code = self._cuts.middle, self._cuts.code
        with ThreadPoolExecutor(max_workers=3) as workers:
            parts = kernel[:middle], kernel[middle:code]
            halves = [workers.submit(self._code, part) for part in parts]
            rest = workers.submit(self._rest, kernel[code:])
            yield joined([*(half.result() for half in halves), rest.result()])
        yield joined([self._code(kernel[:code]), rest.result()])

    def _code(self, part: bytes) -> bytes:
        encoder = self._encoder(_CODE, len(part))
        return compression.checked(encoder.compress(part) + encoder.flush(), part, Format.XZ)

    def _rest(self, part: bytes) -> bytes:
        begun, self._begun = self._begun, None  # its memory is needed by the others
        if begun is not None and part.startswith(self._steady):
            made = self._made + begun.compress(part[len(self._steady) :]) + begun.flush()
        else:
            encoder = self._encoder(_REST, self._rest_size)
            made = encoder.compress(part) + encoder.flush()
        return compression.checked(made, part, Format.XZ)

    def _encoder(self, context: int, size: int) -> lzma.LZMACompressor:
        base = self._base
        dictionary = min(base.dictionary, max(size, _LEAST_DICTIONARY))  # the encoder takes 10 times as much
        before = [{"id": lzma.FILTER_X86}] if base.x86 else []
        main = {"id": lzma.FILTER_LZMA2, "preset": base.level, "dict_size": dictionary}
        main |= {"mf": lzma.MF_BT3, "lc": context, "lp": 0, "pb": 0}
        return lzma.LZMACompressor(lzma.FORMAT_XZ, base.check, filters=[*before, main])


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
