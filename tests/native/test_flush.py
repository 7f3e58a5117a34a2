# SPDX-License-Identifier: GPL-2.0-only
"""Code at the same linear addresses in two address spaces: what is known of one never counts in the other."""

from __future__ import annotations

import pytest

from tests.native.guest import DONE, PAGES, Guest
from vmi.x86 import U32

COUNT = 140  # pages: more than the emulator has parts in its table of blocks
LINEAR = 0x40000000
FRAMES = (0x200000, 0x300000)  # of each space
OTHER = PAGES + 0x8000  # its directory
LIST = 0x50000


def adds(number: int) -> bytes:
    """ADD EBX of a number, and a return."""
    return b"\x81\xc3" + number.to_bytes(4, "little") + b"\xc3"


def guest(switch: str, stride: int) -> Guest:
    """A guest that calls all pages, at places that differ, switches, and does so again, three times."""
    source = f"""
    start:  mov ebp, 3
            xor ebx, ebx
    again:  mov esi, {LIST}
    next:   mov eax, [esi]
            call eax
            rol ebx, 1
            add esi, 4
            cmp dword ptr [esi], 0
            jne next
            {switch}
            dec ebp
            jnz again
            {DONE}
    """
    made = Guest(source, ram=4 << 20)
    put = made.memory.put_u32
    made.page()
    made.memory.write(OTHER, made.memory.read(PAGES, 0x1000))
    for space, (directory, frames) in enumerate(zip((PAGES, OTHER), FRAMES, strict=True)):
        table = directory + 0x4000
        put(directory + 4 * (LINEAR >> 22), table | 7)
        for n in range(COUNT):
            put(table + 4 * n, frames + 0x1000 * n | 7)
            offset = n * stride & 0xFF0
            made.memory.write(frames + 0x1000 * n + offset, adds(1 + n + 1000 * space))
            put(LIST + 4 * n, LINEAR + 0x1000 * n + offset)
    put(LIST + 4 * COUNT, 0)
    return made


def expected(spaces: tuple[int, ...]) -> int:
    value = 0
    for space in spaces:
        for n in range(COUNT):
            value = value + 1 + n + 1000 * space & U32
            value = (value << 1 | value >> 31) & U32
    return value


ENTRY = PAGES + 4 * (LINEAR >> 22)
EXCHANGE = f"mov dword ptr [{ENTRY}], {OTHER + 0x4007}"
SWITCHES = {
    "CR3": (f"mov eax, cr3 | xor eax, {PAGES ^ OTHER} | mov cr3, eax", (0, 1, 0)),
    "an entry and CR3": (f"{EXCHANGE} | mov eax, cr3 | mov cr3, eax", (0, 1, 1)),
    "an entry and CR4": (f"{EXCHANGE} | mov eax, cr4 | xor eax, 0x80 | mov cr4, eax", (0, 1, 1)),
    "an entry and CR0": (f"{EXCHANGE} | mov eax, cr0 | xor eax, 0x10000 | mov cr0, eax", (0, 1, 1)),
}


@pytest.mark.parametrize("stride", [0, 0x10, 0x70])
@pytest.mark.parametrize("how", SWITCHES)
def test_the_code_is_that_of_the_address_space(how: str, stride: int) -> None:
    switch, spaces = SWITCHES[how]
    made = guest(switch, stride)
    assert made.exit_value() == 1
    assert made.cpu.ebx == expected(spaces)


def test_between_runs() -> None:
    """The same, where it is not the guest who goes to another address space."""
    made = guest(f"{DONE} | hlt", 0x30)
    for space, directory in ((0, PAGES), (1, OTHER), (0, PAGES), (1, OTHER)):
        made.cpu.set_cr(3, directory)
        made.cpu.eip = made.labels["start"]
        assert made.exit_value() == 1
        assert made.cpu.ebx == expected((space,))
