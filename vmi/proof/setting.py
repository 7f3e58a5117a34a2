# SPDX-License-Identifier: GPL-2.0-only
"""What a trial starts from, by number: registers, flags, descriptors, and what memory and devices answer.

Two executions can only be compared when nothing but their code differs, so everything here follows from
the seed of a trial and from what is asked: a port's third answer, the bytes of a page. Most values are such
that instructions succeed; in the trials that are meant for faults, half of the pages that nobody prepared
are absent, and devices refuse.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from vmi.memory import PAGE_SIZE
from vmi.x86 import GPR32, U32

REGION = 0x400000  # bytes of address space that a stage keeps for itself
GDT, LDT, TSS, STACK, ARENA = 0, 0x10000, 0x11000, 0x20000, 0x40000  # offsets in it
GDT_SIZE = 0x10000
STACK_SIZE = 0x10000
ARENA_SIZE = 0x10000

FLAT_DATA, FLAT_CODE, FLAT_USER = 0x38, 0x08, 0x13
"""Selectors that the stage's GDT has: stack and kernel data, kernel code, data for every level."""

_NOISE_SIZE = 1 << 16
_ARITHMETIC = 0x8D5
_SHIFTS = (0xC0400000, 0x80000000, 0x10000000, 0x1000)


@dataclass(frozen=True, slots=True)
class Setting:
    """The start of one trial. ``general`` is in encoding order; ``faulty`` says that things may fail."""

    seed: int
    general: tuple[int, ...]
    eflags: int
    faulty: bool
    cr2: int
    task_switched: bool

    def __repr__(self) -> str:
        words = " ".join(f"{name}={value:08x}" for name, value in zip(GPR32, self.general, strict=True))
        return f"{words} eflags={self.eflags:08x}"


def mix(*numbers: int) -> int:
    """A number of 64 bits that depends on all the numbers, the same everywhere and always."""
    value = 0x9E3779B97F4A7C15
    for number in numbers:
        value = (value ^ number) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 29
    value = value * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 32


def setting(address: int, trial: int, region: int) -> Setting:
    """The start of trial number ``trial`` of the window at ``address``, on a stage with that region."""
    seed = mix(address, trial)
    source = random.Random(seed)
    bits = source.getrandbits
    faulty = trial % 4 == 3
    arena = region + ARENA
    general = []
    for number in range(8):
        choice = bits(4)
        if number == 1 and choice < 8:
            value = bits(3)  # what counted instructions count
        elif faulty and choice < 6:
            value = bits(32) & ~0xFFF | (0xFFE if choice == 0 else bits(12))
        elif choice < 11:
            value = arena + 0x1000 * number + 0x800 + (bits(8) << 2) + (bits(2) if choice < 3 else 0)
        elif choice < 13:
            value = bits(16) if choice == 11 else bits(4)
        elif choice == 13:
            value = (FLAT_DATA, FLAT_USER, 0, U32, 0x80000000, 0x80000001, 0x3F8, 0x200)[bits(3)]
        else:
            value = bits(32)
        general.append(value)
    wild_stack = faulty and bits(2) == 0
    general[4] = bits(32) & ~3 if wild_stack else region + STACK + STACK_SIZE // 2 + (bits(8) << 2)
    if trial % 4 == 1:
        general[5] = general[4] + 0x800 + (bits(4) << 2)  # EBP is a frame pointer
    eflags = 2 | bits(12) & _ARITHMETIC | (0x200 if trial & 1 else 0) | (bits(3) == 0) << 10
    return Setting(seed, tuple(general), eflags, faulty, bits(32), bits(3) == 0)


class Noise:
    """Contents for pages that nobody prepared: numbers, small ones, pointers, selectors; none of them points
    into [low, high), where the images lie, and none has the trap flag's bit where a POPF could take it."""

    def __init__(self, low: int, high: int, region: int) -> None:
        source = random.Random(0x56_4D_49)
        words: list[bytes] = []
        while len(words) < _NOISE_SIZE // 4:
            choice = source.getrandbits(3)
            if choice < 3:
                value = region + ARENA + source.getrandbits(16)
            elif choice == 3:
                value = (FLAT_DATA, FLAT_USER, FLAT_CODE, 0)[source.getrandbits(2)]
            elif choice == 4:
                value = source.getrandbits(8)
            else:
                value = source.getrandbits(32)
            if not low <= value < high:
                words.append((value & ~0x100).to_bytes(4, "little"))
        self._bytes = b"".join(words) * 2

    def page(self, number: int) -> bytes:
        """The contents of the page with that number (address divided by 4096)."""
        at = mix(number) % (_NOISE_SIZE // 4) * 4
        return self._bytes[at : at + PAGE_SIZE]


def descriptors(region: int) -> bytes:
    """A whole GDT: flat segments for each level, code, a TSS and an LDT again and again."""
    data0, data3 = _descriptor(0, 0xFFFFF, 0xC93), _descriptor(0, 0xFFFFF, 0xCF3)
    code0 = _descriptor(0, 0xFFFFF, 0xC9B)
    based = _descriptor(region + ARENA + 0x8000, 0xFFFFF, 0xCF3)
    tss = _descriptor(region + TSS, 0xFFF, 0x089)
    ldt = _descriptor(region + LDT, 0xFFF, 0x082)
    eight = data3 + code0 + data3 + based + data3 + tss + ldt + data0
    return (bytes(8) + eight[8:] + eight * (GDT_SIZE // 64))[:GDT_SIZE]


def _descriptor(base: int, limit: int, flags: int) -> bytes:
    """``flags``: G, D/B, L, AVL in bits 11 to 8, then P, DPL, S and type."""
    low = limit & 0xFFFF | (base & 0xFFFF) << 16
    high = base >> 16 & 0xFF | (flags & 0xFF) << 8 | (limit >> 16) << 16 | (flags >> 8) << 20
    return (low | (high | base & 0xFF000000) << 32).to_bytes(8, "little")
