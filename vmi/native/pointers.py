# SPDX-License-Identifier: GPL-2.0-only
"""Pointers to functions in the emulator library's data, found and exchanged.

The library reaches its own functions through pointers that the dynamic linker has filled in, as every
shared library does. To exchange one, no code is touched: the library's writable segment is searched for it.
All of a set are found before the first is exchanged, so that a library which reaches one of them in another
way stays as it is.

A function can be replaced more than once; who replaces it gets what was there before, and calls that.

A pointer that the library itself has put somewhere is replaced by its place, which is known for one build.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any

from vmi.errors import EngineError

_POINTER = ctypes.c_void_p

# in the image of a shared library (ELF, 64 bits)
_HEADER_SIZE, _PROGRAM_HEADERS = 64, Struct("<32xQ14xHH")
_PROGRAM_HEADER = Struct("<IIQQQQ16x")  # kind, flags, place in the file, address twice, bytes there
_LOADED, _NOTES, _WRITABLE_SEGMENT = 1, 4, 2
_NOTE, _BUILD_ID = Struct("<III"), 3
_AT_ONCE = 512  # words of it that are looked through together

#: The build of the emulator library whose inner structures are known: the wheel for Linux on x86-64.
BUILD = "44285d3e80527122e9e361928189385906ec813e"

#: What is in the library's data now, by name, where that is not what the linker has put there.
_replaced: dict[str, int] = {}


def original(library: Any, name: str) -> int:
    """Address of one of the library's functions. :raises EngineError: it has none of that name."""
    function = getattr(library, name, None)
    address = ctypes.cast(function, _POINTER).value if function is not None else None
    if not address:
        raise EngineError(f"the CPU emulator is not as expected: it has no function {name}")
    return address


def current(library: Any, name: str) -> int:
    """What the library calls by that name now: its own function, or what has replaced it."""
    return _replaced.get(name) or original(library, name)


def exchange(library: Any, targets: Mapping[str, int]) -> None:
    """Replace every pointer to functions of the library, by name, by another.

    :raises EngineError: a function is missing, or reached in another way; nothing is changed then.
    """
    wanted = {current(library, name): target for name, target in targets.items()}
    places: dict[int, list[tuple[int, bool]]] = {pointer: [] for pointer in wanted}
    pointers = frozenset(wanted)
    for start, size, writable in _data_of_library(original(library, "uc_open")):
        words = memoryview(ctypes.string_at(start, size - size % 8)).cast("Q")
        for first in range(0, len(words), _AT_ONCE):
            some = words[first : first + _AT_ONCE]
            if pointers.isdisjoint(some):  # many times as quick as a look at each word, and nearly always so
                continue
            for number, word in enumerate(some, first):
                if word in places:
                    places[word].append((start + 8 * number, writable))
    left = sum(not found for found in places.values())
    if left:
        raise EngineError(
            f"the CPU emulator is not as expected: {left} of {len(targets)} functions to replace are "
            "reached in a way that can't be changed"
        )
    for pointer, found in places.items():
        for place, writable in found:
            _store(place, wanted[pointer], writable)
    _replaced.update(targets)


def put(address: int, expected: int, pointer: int) -> None:
    """Replace the pointer at an address, which must be ``expected``. :raises EngineError: it is another."""
    found = ctypes.c_uint64.from_address(address).value
    if found != expected:
        raise EngineError(
            f"the CPU emulator is not as expected: the pointer at {address:#x} should be {expected:#x}, "
            f"but it is {found:#x}"
        )
    _store(address, pointer, writable=False)


def _store(address: int, pointer: int, writable: bool) -> None:
    """Store a pointer, also where the dynamic linker has made memory read-only after its work."""
    page = address - address % mmap.PAGESIZE
    if not writable:
        _protect(page, mmap.PROT_READ | mmap.PROT_WRITE)
    ctypes.c_uint64.from_address(address).value = pointer
    if not writable:
        _protect(page, mmap.PROT_READ)


def _protect(page: int, access: int) -> None:
    status = ctypes.CDLL(None).mprotect(_POINTER(page), ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_int(access))
    if status:
        raise EngineError("the CPU emulator's pointers can't be exchanged: mprotect is not allowed")


def _data_of_library(inside: int) -> Iterator[tuple[int, int, bool]]:
    """What the dynamic linker fills in of the shared library that holds an address.

    That is its writable segment, part of which is made read-only afterwards: start, bytes, writable still.
    """
    ours = _mapped(inside)
    for kind, flags, first, last in _segments(min(start for _, start, _ in ours)):
        if kind != _LOADED or not flags & _WRITABLE_SEGMENT:
            continue
        for access, start, end in ours:
            if access.startswith("r") and first < end and start < last:
                yield start, end - start, "w" in access


def build_of(library: Any) -> str:
    """The linker's identification of the library, in hexadecimal."""
    for data in _notes_of_library(original(library, "uc_open")):
        at = 0
        while at + _NOTE.size <= len(data):
            name_size, size, kind = _NOTE.unpack_from(data, at)
            name_at = at + _NOTE.size
            content_at = name_at + (name_size + 3 & ~3)
            if kind == _BUILD_ID and data[name_at : name_at + 4] == b"GNU\0":
                return data[content_at : content_at + size].hex()
            at = content_at + (size + 3 & ~3)
    return "one without a number"


def _notes_of_library(inside: int) -> Iterator[bytes]:
    """What the linker noted in the shared library that holds an address."""
    for kind, _, first, last in _segments(min(start for _, start, _ in _mapped(inside))):
        if kind == _NOTES:
            yield ctypes.string_at(first, last - first)


def _mapped(inside: int) -> list[tuple[str, int, int]]:
    """Access, start and end of all parts of the shared library that holds an address."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        rows = [row for line in maps if len(row := line.rstrip("\n").split(None, 5)) == 6]
    spans = [[int(bound, 16) for bound in row[0].split("-")] for row in rows]
    parts = [(row[5], row[1], start, end) for row, (start, end) in zip(rows, spans, strict=True)]
    home = next((path for path, _, start, end in parts if start <= inside < end), None)
    return [(access, start, end) for path, access, start, end in parts if path == home]


def _segments(base: int) -> Iterator[tuple[int, int, int, int]]:
    """Kind, flags, first address and end of each segment of a loaded library."""
    at, size, count = _PROGRAM_HEADERS.unpack_from(ctypes.string_at(base, _HEADER_SIZE))
    table = ctypes.string_at(base + at, size * count)
    for number in range(count):
        kind, flags, _, address, _, length = _PROGRAM_HEADER.unpack_from(table, size * number)
        yield kind, flags, base + address, base + address + length
