# SPDX-License-Identifier: GPL-2.0-only
"""Where in a kernel's bytes words may stand that are addresses in given ranges, without looking at each.

A kernel has tens of millions of bytes, any four of which may be an address, and hardly any are. What all
addresses of a range have in common are their upper halves. So all bytes are compared with those at once, as
one long number, and only what is left has to be looked at word by word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

WORD = 4
_HALVES = 1 << 16
_MAY = re.compile(b"\1")


def places(data: bytes, ranges: Iterable[tuple[int, int]], count: int = 1, step: int = 1) -> Iterator[int]:
    """Offsets, in order, at which ``count`` words may start that all lie in the ``ranges`` [low, high).

    None is left out; those given are to be looked at, since only upper halves were compared. Offsets are
    multiples of ``step``. Ranges are taken modulo 2**32, so differences of addresses will do.
    """
    one = found = hits(data, ranges)
    for number in range(1, count):
        found &= one >> 8 * WORD * number
    return offsets(found, len(data) - WORD * (count - 1), step)


def hits(data: bytes, ranges: Iterable[tuple[int, int]]) -> int:
    """The same for single words, as a little-endian number: its bytes are 1 at those offsets, else 0."""
    both = 0
    for lower, upper in _rows(ranges):
        # Byte p of the number is 1 when the word at p has this third byte, and this fourth.
        third = int.from_bytes(data.translate(lower), "little") >> 16
        both |= third & int.from_bytes(data.translate(upper), "little") >> 24
    return both


def offsets(found: int, size: int, step: int = 1) -> Iterator[int]:
    """Where bytes of such a number are 1, for data of ``size`` bytes."""
    flags = found.to_bytes(max(0, size), "little")[::step] if size > 0 else b""
    return (match.start() * step for match in _MAY.finditer(flags))


def _rows(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[bytes, bytes]]:
    """What to look for: pairs of tables that are 1 for the wanted third bytes, and for the fourth bytes."""
    wanted = bytearray(_HALVES)
    for low, high in ranges:
        if low < high:
            first, last = low >> 16, (high - 1) >> 16
            for half in range(first, min(last + 1, first + _HALVES)):
                wanted[half % _HALVES] = 1
    fourths: dict[bytes, bytearray] = {}
    for byte in range(256):
        thirds = bytes(wanted[byte * 256 : byte * 256 + 256])
        if any(thirds):
            fourths.setdefault(thirds, bytearray(256))[byte] = 1
    return ((thirds, bytes(mine)) for thirds, mine in fourths.items())
