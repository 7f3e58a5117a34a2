# SPDX-License-Identifier: GPL-2.0-only
"""How a kernel is compressed inside its file: unpack it, find out with which settings it was made, and
make it again.

The standard library is all that is needed for the four formats with an encoder in it. The others that
kernels use are recognised, to say so. The settings matter twice. A new kernel has to fit in the old one's
room, so it is made with those of the original first and with better ones after that. And an original that
comes out the same byte for byte need not be kept for taking a patch back: its settings are enough.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from vmi.errors import BadInput, VerifyError

LIMIT = 256 << 20
"""Most bytes that anything unpacks to; stops a small file from filling memory."""

DICTIONARY = 64 << 20
"""Largest dictionary that is used for making xz and lzma data: an encoder takes 12 times its memory."""

_MEMORY = 512 << 20  # bytes that a decoder may take
_STEP = 1 << 20  # bytes compressed between two looks at what came out


class Format(StrEnum):
    """Formats that can be unpacked and made."""

    XZ = "xz"
    GZIP = "gzip"
    LZMA = "lzma"
    BZIP2 = "bzip2"


MAGICS: dict[bytes, Format] = {
    b"\xfd7zXZ\x00": Format.XZ,
    b"\x1f\x8b": Format.GZIP,
    b"\x5d\x00\x00": Format.LZMA,
    b"BZh": Format.BZIP2,
}
OTHERS = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x89LZO": "lzo",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of an encoder. What a format does not have keeps its default.

    ``level`` is the preset or level, 0 to 9; ``check`` the number of xz's integrity check; ``x86`` whether
    xz converts branch targets first; ``literal`` are LZMA's lc, lp and pb; ``header`` is gzip's, as it
    stands in the file.
    """

    format: Format
    level: int
    extreme: bool = False
    check: int = 0
    x86: bool = False
    dictionary: int = 0
    literal: tuple[int, int, int] = (3, 0, 2)
    header: bytes = b""

    def __repr__(self) -> str:
        extreme = "e" if self.extreme else ""
        return f"Recipe({self.format} -{self.level}{extreme}, lc/lp/pb {self.literal})"

    def encoder(self) -> Encoder:
        """A new encoder with these settings; ValueError when there is none with them."""
        try:
            if self.format is Format.BZIP2:
                return bz2.BZ2Compressor(self.level)
            if self.format is Format.GZIP:
                return _Gzip(self)
            return self._lzma()
        except (lzma.LZMAError, OverflowError, zlib.error) as error:
            raise ValueError(f"no encoder takes {self}") from error

    def _lzma(self) -> lzma.LZMACompressor:
        lc, lp, pb = self.literal
        main: dict[str, int] = {
            "id": lzma.FILTER_LZMA2 if self.format is Format.XZ else lzma.FILTER_LZMA1,
            "preset": self.level | (lzma.PRESET_EXTREME if self.extreme else 0),
            "dict_size": self.dictionary,
            "lc": lc,
            "lp": lp,
            "pb": pb,
        }
        if self.format is Format.LZMA:
            return lzma.LZMACompressor(lzma.FORMAT_ALONE, filters=[main])
        before: list[dict[str, int]] = [{"id": lzma.FILTER_X86}] if self.x86 else []
        return lzma.LZMACompressor(lzma.FORMAT_XZ, self.check, filters=[*before, main])

    def compress(self, data: bytes) -> bytes:
        """The compressed form of ``data``, without anything behind it."""
        encoder = self.encoder()
        return encoder.compress(data) + encoder.flush()

    def makes(self, data: bytes, packed: bytes, most: int = LIMIT) -> bool:
        """Whether ``packed`` is what this makes of ``data``; soon False when it is not.

        Only the first ``most`` bytes of ``data`` are tried, or as many more as it takes to see any output.
        """
        encoder, done = self.encoder(), 0
        for start in range(0, len(data), _STEP):
            if start >= most and done:
                return True
            made = encoder.compress(data[start : start + _STEP])
            if packed[done : done + len(made)] != made:
                return False
            done += len(made)
        return packed[done:] == encoder.flush()


class Encoder(Protocol):
    """What the standard library's compressor objects have in common."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Gzip:
    """gzip's own frame around zlib's encoder, which can't be told a header of other bytes."""

    def __init__(self, recipe: Recipe) -> None:
        self._encoder = zlib.compressobj(recipe.level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._header, self._crc, self._size = recipe.header, 0, 0

    def compress(self, data: bytes, /) -> bytes:
        self._crc, self._size = zlib.crc32(data, self._crc), self._size + len(data)
        header, self._header = self._header, b""
        return header + self._encoder.compress(data)

    def flush(self) -> bytes:
        return (
            self.compress(b"")
            + self._encoder.flush()
            + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)
        )


def format_of(packed: bytes) -> Format | None:
    """The format by its first bytes; None for none of ours. BadInput for one that can only be recognised."""
    for magic, name in OTHERS.items():
        if packed.startswith(magic):
            raise BadInput(
                f"the kernel is compressed with {name}, but only xz, gzip, lzma and bzip2 can be unpacked"
            )
    return next((found for magic, found in MAGICS.items() if packed.startswith(magic)), None)


def unpack(packed: bytes, kind: Format) -> tuple[bytes, bytes]:
    """The unpacked data, and what is left behind the compressed data; raises BadInput."""
    decoder: lzma.LZMADecompressor | bz2.BZ2Decompressor | zlib._Decompress
    try:
        if kind is Format.GZIP:
            decoder = zlib.decompressobj(wbits=31)
            data = decoder.decompress(packed, LIMIT + 1)
        elif kind is Format.BZIP2:
            decoder = bz2.BZ2Decompressor()
            data = decoder.decompress(packed, LIMIT + 1)
        else:
            decoder = lzma.LZMADecompressor(
                lzma.FORMAT_XZ if kind is Format.XZ else lzma.FORMAT_ALONE, memlimit=_MEMORY
            )
            data = decoder.decompress(packed, LIMIT + 1)
    except (lzma.LZMAError, OSError, EOFError, ValueError, zlib.error):
        raise BadInput(f"the kernel's {kind} data is damaged") from None
    if len(data) > LIMIT:
        raise BadInput(f"the compressed kernel expands to more than {LIMIT >> 20} MiB")
    if not decoder.eof:
        raise BadInput(f"the kernel's {kind} data ends too early")
    return data, decoder.unused_data


def checked(packed: bytes, data: bytes, kind: Format) -> bytes:
    """``packed``, of which it has been seen that it unpacks to ``data``; raises VerifyError if it doesn't."""
    if unpack(packed, kind) != (data, b""):
        raise VerifyError("the compressed kernel doesn't unpack to what was compressed")
    return packed


def guesses(packed: bytes, kind: Format) -> Iterator[Recipe]:
    """Settings that may have made ``packed``, the likely ones first. All of them suit its decoder."""
    if kind is Format.BZIP2:
        if packed[3:4] in (b"%d" % level for level in range(1, 10)):
            yield Recipe(kind, int(packed[3:4]))
    elif kind is Format.GZIP:
        header = gzip_header(packed)
        yield from (Recipe(kind, level, header=header) for level in (9, 6, 8, 7, 5, 4, 3, 2, 1))
    else:
        base = _xz_base(packed) if kind is Format.XZ else _lzma_base(packed)
        if base is not None:
            # 7 to 9 differ from 6 in the size of the dictionary alone, which is known.
            presets = ((6, False), (6, True), (5, False), (4, False), (3, False), (2, False), (1, False))
            yield from (replace(base, level=level, extreme=extreme) for level, extreme in presets)


def find(data: bytes, packed: bytes, kind: Format, most: int = LIMIT) -> Recipe | None:
    """The settings that make ``packed`` of ``data``, byte for byte; None when no guess does.

    They are tried on the first ``most`` bytes of ``data``.
    """
    return next((recipe for recipe in guesses(packed, kind) if recipe.makes(data, packed, most)), None)


def better(packed: bytes, kind: Format) -> Iterator[Recipe]:
    """Settings for new data in the place of ``packed``: a likely original first, then slower ones."""
    first = next(guesses(packed, kind), None)
    if first is None:
        return
    yield first
    if kind in (Format.XZ, Format.LZMA):
        extreme = replace(first, extreme=True)
        yield extreme
        yield replace(extreme, literal=(4, 0, 2))  # more context for bytes of text and code


def gzip_header(packed: bytes) -> bytes:
    """The header of a gzip file with its optional fields; BadInput when it does not end."""
    flags, at = packed[3] if len(packed) > 3 else 0, 10
    if flags & 4:
        at += 2 + int.from_bytes(packed[at : at + 2], "little")
    for bit in (8, 16):  # name and comment, each ended by a zero byte
        if flags & bit:
            at = packed.find(0, at) + 1 or len(packed) + 1
    at += 2 if flags & 2 else 0
    if at > len(packed):
        raise BadInput("the kernel's gzip data ends too early")
    return packed[:at]


def _xz_base(packed: bytes) -> Recipe | None:
    """What the headers of an xz file say; None for filters and sizes that its makers do not use."""
    if len(packed) < 40:
        return None
    check, at, flags = packed[7], 12, packed[13]
    if flags & ~0x03:  # sizes in the header: several blocks, made by several threads
        return None
    at, filters = at + 2, []
    for _ in range((flags & 3) + 1):
        number, length = packed[at], packed[at + 1]
        filters.append((number, packed[at + 2 : at + 2 + length]))
        at += 2 + length
        if number > 0x7F or length > 0x7F or at > len(packed):
            return None
    *before, (last, properties) = filters
    if last != 0x21 or len(properties) != 1 or properties[0] > 40 or before not in ([], [(4, b"")]):
        return None
    code = properties[0]
    dictionary = min(DICTIONARY, (2 | (code & 1)) << (code // 2 + 11))
    base = Recipe(Format.XZ, 6, check=check, x86=bool(before), dictionary=dictionary)
    block = 12 + (packed[12] + 1) * 4
    # The first chunk with LZMA data in it resets the state, and so names lc, lp and pb.
    if len(packed) > block + 5 and packed[block] >= 0xC0:
        literal = _literal(packed[block + 5])
        return None if literal is None else replace(base, literal=literal)
    return base


def _lzma_base(packed: bytes) -> Recipe | None:
    literal = _literal(packed[0])
    dictionary = int.from_bytes(packed[1:5], "little")
    if literal is None or dictionary < 4096:
        return None
    return Recipe(Format.LZMA, 6, dictionary=min(DICTIONARY, dictionary), literal=literal)


def _literal(byte: int) -> tuple[int, int, int] | None:
    """lc, lp and pb from their one byte."""
    pb, rest = divmod(byte, 45)
    lp, lc = divmod(rest, 9)
    return (lc, lp, pb) if pb <= 4 and lc + lp <= 4 else None
