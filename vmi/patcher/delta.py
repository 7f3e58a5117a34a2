# SPDX-License-Identifier: GPL-2.0-only
"""The difference between two files, for making the one from the other again, byte for byte.

A patched kernel is its original with thousands of small changes at the same places, some parts moved by a
few bytes (tables that got or lost an entry) or many (what an ELF writer puts elsewhere), and little that is
new. So a difference is a walk along both files: copy so many bytes, then take so many other ones instead,
then perhaps step elsewhere in the source. Lengths, steps and bytes are kept apart from each other because
they then compress better.

Encoded: four 32-bit numbers (the target's size, and the sizes of the three streams of numbers), then

* the lengths of the copies, the lengths of what replaces, and the steps: one of each per move, as numbers
  of 7 bits a byte, lowest first, with bit 7 set in all but the last (steps with their sign in bit 0);
* the bytes that replace, to the end.

After each move both positions are behind what was copied and replaced, and the step is added to the one
in the source.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import pairwise

from vmi.errors import BadInput

LIMIT = 256 << 20
"""Largest target, in bytes."""

_HEAD = struct.Struct("<4I")
_CHUNK = 1 << 16  # bytes compared at a time
_FINE = 1 << 12
_KEY, _STRIDE = 16, 32
"""Bytes by which a place of the source is found again, and the distance of places that are remembered."""
_LOST = 48
"""A run of this many bytes that differ is no small change: the walk looks for another place."""
_NEAR = 24
"""How far it looks around it first, in the source and in the target."""
_MOST = 4096
"""Bytes of the target in which another place is looked for before they are replaced."""
_DIFFERENT = re.compile(rb"[^\0]+(?:\0{1,3}[^\0]+)*")


class _Walk:
    """The positions and the moves so far."""

    def __init__(self, source: bytes, target: bytes) -> None:
        self.source, self.target = source, target
        self.at, self.shift = 0, 0  # next byte of the target; the source's is that far from it
        self.copies, self.replaces, self.steps = bytearray(), bytearray(), bytearray()
        self.literals = bytearray()
        self.copied = self.replaced = 0
        self._places: dict[bytes, int] | None = None

    def copy(self, count: int) -> None:
        if count and self.replaced:
            self._move(0)
        self.copied += count
        self.at += count

    def replace(self, count: int) -> None:
        self.literals += self.target[self.at : self.at + count]
        self.replaced += count
        self.at += count

    def step(self, shift: int) -> None:
        if shift != self.shift:
            self._move(shift - self.shift)
            self.shift = shift

    def _move(self, step: int) -> None:
        _put(self.copies, self.copied)
        _put(self.replaces, self.replaced)
        _put(self.steps, step * 2 if step >= 0 else -step * 2 - 1)
        self.copied = self.replaced = 0

    def finish(self) -> bytes:
        if self.copied or self.replaced:
            self._move(0)
        head = _HEAD.pack(len(self.target), len(self.copies), len(self.replaces), len(self.steps))
        return head + bytes(self.copies + self.replaces + self.steps + self.literals)

    def differences(self) -> bytes:
        """The next bytes of the target combined with those of the source: zero where they are equal."""
        start = self.at + self.shift
        if not 0 <= start < len(self.source):
            return b""
        for size in (_CHUNK, _FINE):
            old, new = self.source[start : start + size], self.target[self.at : self.at + size]
            if old == new:
                return bytes(len(new))
        size = min(len(old), len(new))
        mixed = int.from_bytes(old[:size], "little") ^ int.from_bytes(new[:size], "little")
        return mixed.to_bytes(size, "little")

    def search(self, stop: int) -> tuple[int, int] | None:
        """The next place of the target up to ``stop`` that the source has too, as (position, shift)."""
        source, target = self.source, self.target
        for at in range(self.at, min(self.at + _NEAR, stop)):
            key = target[at : at + _KEY]
            if len(key) == _KEY and key.strip(key[:1]):
                low = max(at + self.shift - _NEAR, 0)
                found = source.find(key, low, at + self.shift + _NEAR + _KEY)
                if found >= 0 and found - at != self.shift:
                    return at, found - at
        places = self.places
        for at in range(self.at, stop):
            place = places.get(target[at : at + _KEY])
            if place is not None and place - at != self.shift:
                back = 0
                while (
                    at - back > self.at and source[place - back - 1] == target[at - back - 1] and place > back
                ):
                    back += 1
                return at - back, place - at
        return None

    @property
    def places(self) -> dict[bytes, int]:
        if self._places is None:
            source, places = self.source, reversed(range(0, len(self.source) - _KEY, _STRIDE))
            # The first place of several; what is one byte over and over is everywhere.
            self._places = {source[at : at + _KEY]: at for at in places}
            for byte in range(256):
                self._places.pop(bytes([byte]) * _KEY, None)
        return self._places


def encode(source: bytes, target: bytes) -> bytes:
    """What :func:`decode` needs besides ``source`` to make ``target``; the same bytes for the same files."""
    walk = _Walk(source, target)
    while walk.at < len(target):
        mixed = walk.differences()
        if not mixed:
            _look(walk, min(walk.at + _MOST, len(target)))
            continue
        base = walk.at
        for run in _DIFFERENT.finditer(mixed):
            walk.copy(base + run.start() - walk.at)
            if run.end() - run.start() > _LOST:
                _look(walk, base + run.end())
                break
            walk.replace(base + run.end() - walk.at)
        else:
            walk.copy(base + len(mixed) - walk.at)
    return walk.finish()


def _look(walk: _Walk, stop: int) -> None:
    """Go on at another place, or replace up to ``stop``."""
    found = walk.search(stop)
    if found is None:
        walk.replace(stop - walk.at)
    else:
        at, shift = found
        walk.replace(at - walk.at)
        walk.step(shift)


def decode(source: bytes, data: bytes) -> bytes:
    """The target of a difference; raises BadInput when that is damaged, or of another source."""
    damaged = BadInput("a difference between files is damaged")
    if len(data) < _HEAD.size:
        raise damaged
    size, *lengths = _HEAD.unpack_from(data)
    starts = [_HEAD.size]
    for length in lengths:
        starts.append(starts[-1] + length)
    if size > LIMIT or starts[-1] > len(data):
        raise damaged
    copies, replaces, steps = (_numbers(data[a:b]) for a, b in pairwise(starts))
    target, literal, place = bytearray(), starts[-1], 0
    try:
        for copied, replaced, step in zip(copies, replaces, steps, strict=True):
            if copied + replaced > size - len(target) or place < 0 or place + copied > len(source):
                raise damaged
            target += source[place : place + copied]
            target += data[literal : literal + replaced]
            literal += replaced
            place += copied + replaced + (-((step + 1) // 2) if step & 1 else step // 2)
    except ValueError:  # of different lengths, or a number that does not end
        raise damaged from None
    if len(target) != size or literal != len(data):
        raise damaged
    return bytes(target)


def _put(stream: bytearray, value: int) -> None:
    while value > 0x7F:
        stream.append(value & 0x7F | 0x80)
        value >>= 7
    stream.append(value)


def _numbers(stream: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in stream:
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 35:
            raise ValueError("a number is too long")
        if not byte & 0x80:
            yield value
            value = shift = 0
    if shift:
        raise ValueError("a number does not end")
