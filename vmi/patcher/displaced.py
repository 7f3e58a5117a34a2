# SPDX-License-Identifier: GPL-2.0-only
"""The words that a kernel's boot code moves along when the kernel runs elsewhere than linked.

Linux for i386 appends their list to its ELF file: a zero word, then the ascending virtual addresses of
the 32-bit words to which the displacement (the address it runs at minus the linked one) is to be added.
The boot code reads it from the end down to the zero word.

A patched kernel carries the same list in its `.vmi` segment in a packed form, a quarter as long, and
applies it itself; the list behind its ELF is then empty. The packed form, made for a short loop:

=========  ===============================================================================================
bytes      meaning
=========  ===============================================================================================
4          where the pointer starts: little-endian, 4 below the first address (any value in an empty list)
1 each     00: the end, and the last byte of the list
           01-FE: the pointer moves up by as many bytes, and there lies a word of the list
           FF: the pointer moves up by 254 bytes, and there lies no word
=========  ===============================================================================================

So the loop, with the list in ESI and the displacement in EDX (EDI, the pointer, starts at the first four
bytes plus the displacement when the words themselves are already where they run)::

        lodsd
        lea   edi, [eax + edx]
        xor   eax, eax
    next:
        lodsb
        cmp   al, 0xFF
        je    far
        test  al, al
        jz    done
        add   edi, eax
        add   [edi], edx
        jmp   next
    far:
        add   edi, 254
        jmp   next
    done:

Each list has exactly one packed form: FF is used for distances above 254 only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from vmi.errors import BadInput

WORD = 4  # bytes
END, FAR = 0x00, 0xFF
STEP = 254
"""Bytes that one FAR moves the pointer, and the longest distance without one."""

MAX_WORDS = 1 << 24
"""More than this is no list: kernels have a few hundred thousand."""


def pack(addresses: Sequence[int]) -> bytes:
    """The packed form of strictly ascending addresses, from 4 up; ValueError when they are not."""
    if not addresses:
        return bytes(WORD + 1)
    if addresses[0] < WORD or addresses[-1] > 0xFFFFFFFF - (WORD - 1):
        raise ValueError(f"a displaced word must lie from {WORD:#x} to fffffffc")
    packed = bytearray(struct.pack("<I", addresses[0] - WORD))
    packed.append(WORD)
    for before, address in pairwise(addresses):
        distance = address - before
        if distance <= 0:
            raise ValueError(f"displaced words must ascend, but {address:#x} follows {before:#x}")
        if distance > STEP:
            jumps, distance = divmod(distance - 1, STEP)
            packed += bytes([FAR]) * jumps
            distance += 1
        packed.append(distance)
    packed.append(END)
    return bytes(packed)


def unpack(data: bytes) -> tuple[int, ...]:
    """The addresses of a packed list, which ``data`` must hold exactly; raises BadInput."""
    if len(data) < WORD + 1:
        raise BadInput(
            f"a packed list of displaced words has {WORD + 1} bytes or more, but there are {len(data)}"
        )
    end = data.find(END, WORD)
    if end != len(data) - 1:
        where = "nowhere" if end < 0 else f"at byte {end}"
        raise BadInput(
            f"a packed list of displaced words must end at its byte {len(data) - 1}, but ends {where}"
        )
    pointer = int.from_bytes(data[:WORD], "little")
    addresses = []
    for byte in data[WORD:end]:
        if byte == FAR:
            pointer += STEP
        else:
            pointer += byte
            addresses.append(pointer)
    if data[end - 1] == FAR and end > WORD:
        raise BadInput("a packed list of displaced words must not end in a distance without a word")
    if pointer > 0xFFFFFFFF - (WORD - 1):
        raise BadInput(f"a packed list of displaced words must end below 4 GiB, but goes to {pointer:#x}")
    return tuple(addresses)


def appended(tail: bytes, loaded: Sequence[tuple[int, int]]) -> tuple[int, ...] | None:
    """The list in ``tail``, all the bytes behind an ELF file; None when they are no such list.

    ``loaded`` are the virtual address ranges (start, end) of what the file's segments hold, in address
    order. All words of the list must lie in one of them, and ascend.
    """
    if len(tail) % WORD or not WORD <= len(tail) <= MAX_WORDS * WORD or any(tail[:WORD]):
        return None
    words = struct.unpack(f"<{len(tail) // WORD - 1}I", tail[WORD:])
    ranges = iter(loaded)
    start, end = 0, 0
    before = -1
    for word in words:
        while word + WORD > end:
            try:
                start, end = next(ranges)
            except StopIteration:
                return None
        if word < start or word <= before:
            return None
        before = word
    return words


def append(addresses: Sequence[int]) -> bytes:
    """What Linux appends to its ELF file for these words: 4 bytes each and 4 more."""
    return struct.pack(f"<{len(addresses) + 1}I", 0, *addresses)
