# SPDX-License-Identifier: GPL-2.0-only
"""Jump labels: places where a kernel turns a NOP into a jump, and back, while it runs.

Linux keeps a table of them: where the code is, where the jump goes, and which key decides. The linker
mostly puts that table among the read-only data without a name of its own, so it is searched for: two words
that lead to code, the first one to a NOP or jump of the right size, hardly stand side by side otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from vmi.patcher.fillers import filled, may_fill
from vmi.patcher.model import Access, Image
from vmi.patcher.wordsearch import WORD, places

_PAIR = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class JumpLabel:
    """[start, start + size) is the NOP or jump; ``target`` where the jump goes."""

    start: int
    size: int
    target: int


def jump_labels(
    image: Image, is_code: Callable[[int], bool], others: Container[str] = ()
) -> Iterator[JumpLabel]:
    """All jump labels of an image, in the order of their tables; some may be none after all.

    ``others`` are names of sections that hold other tables.
    """
    ranges = _executable(image)
    for start, data in _readable(image, others):
        # Relative: each word is the distance from itself.
        shifted = [(low - start - len(data), high - start) for low, high in ranges]
        for at in places(data, shifted, 2, WORD):
            code, target = _PAIR.unpack_from(data, at)
            code, target = (code + start + at) & 0xFFFFFFFF, (target + start + at + WORD) & 0xFFFFFFFF
            if is_code(code) and is_code(target) and (size := _size(image.read(code, 5), code, target)):
                yield JumpLabel(code, size, target)
        for at in places(data, ranges, 2, WORD):
            code, target = _PAIR.unpack_from(data, at)
            if is_code(code) and is_code(target) and (size := _size(image.read(code, 5), code, target)):
                yield JumpLabel(code, size, target)


def _size(raw: bytes, code: int, target: int) -> int:
    """5 or 2 when the bytes at ``code`` may be a jump label for ``target``, else 0."""
    if len(raw) < 5:
        return 0
    if raw[0] == 0xE9:
        return 5 if (code + 5 + int.from_bytes(raw[1:5], "little")) & 0xFFFFFFFF == target else 0
    if raw[0] == 0xEB:
        return 2 if (code + 2 + int.from_bytes(raw[1:2], "little", signed=True)) == target else 0
    if not raw[0] or raw[0] == 0xCC or not may_fill(raw):
        return 0
    if filled(raw):
        return 5
    return 2 if filled(raw[:2]) and -128 <= target - code - 2 <= 127 else 0


def _executable(image: Image) -> list[tuple[int, int]]:
    ranges = [(s.vaddr, s.end) for s in image.sections if s.executable and s.size]
    return ranges or [(s.vaddr, s.end) for s in image.segments if s.flags & Access.X]


def _readable(image: Image, others: Container[str]) -> Iterator[tuple[int, bytes]]:
    """Loaded data that is no code: by section where there are sections, else by segment."""
    if image.sections:
        for section in image.sections:
            if not section.executable and section.name not in others:
                yield section.vaddr, image.read(section.vaddr, section.size)
        return
    for segment in image.segments:
        if not segment.flags & Access.X:
            yield segment.vaddr, segment.data
