# SPDX-License-Identifier: GPL-2.0-only
"""Random sequences of calls, each made from a number: the same number, the same sequence.

A call has the arguments of one of its examples, some of them exchanged for their neighbours, values at the
boundaries of their type, addresses, or anything. What is random comes from a hash of the number, so it is
the same on every computer, and drawing takes a few divisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from struct import Struct

from vmi import abi
from vmi.conformance.examples import EXAMPLES
from vmi.conformance.layout import FREE_PAGES, FREE_SELECTOR, GDT, IDT, RECORDS, SCRATCH, USER_END, Paging
from vmi.conformance.walk import Call
from vmi.memory import PAGE_SIZE
from vmi.x86 import U32, Cr0

LONGEST = 6  # calls in a sequence
_GENERAL_DETECT = 1 << 13  # of DR7
_DPL = 3 << 13  # of a descriptor's upper dword
_MOST_TRANSFERS = 16  # of a string call
#: Calls whose effect is the same whoever runs the guest, for arguments that are right.
TELLING = tuple(
    name
    for name, examples in EXAMPLES.items()
    if all(example.same for example in examples) and abi.BY_NAME[name].group not in ("time", "apic")
)
_BOUNDARIES = (
    *(0, 1, 2, 3, 4, 7, 8, 0x10, 0x7F, 0x80, 0xFF, 0x100, 0x200, 0xFFF, 0x1000, 0x3000, 0x7FFF, 0x8000),
    *(0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFE, 0xFFFFFFFF),
)
_ADDRESSES = (SCRATCH, SCRATCH + 1, SCRATCH + PAGE_SIZE - 3, FREE_PAGES, 0x70000000, 0xFFFFFFFD)
_NEIGHBOURS = (-4, -1, 1, 4, PAGE_SIZE)
_LEFT_ALONE = 7  # of so many more kinds of values: as it is
_WORDS_A_CALL = 16  # random dwords, no more than it draws
_FIRST = 42  # of them are what one step of the hash gives
_FEW, _MANY = (Struct(f"<{count}I") for count in (_FIRST, 1 + LONGEST * _WORDS_A_CALL))


#: Calls that sequences are made of, each with its examples.
Usable = tuple[tuple[Call, ...], ...]


@dataclass(frozen=True)
class Step:
    """One call; ``example`` is the number of the example whose memory it needs."""

    call: str
    example: int
    registers: tuple[tuple[str, int], ...]
    stack: tuple[int, ...]

    def __str__(self) -> str:
        registers = ", ".join(f"{name}={value:#x}" for name, value in self.registers)
        stack = ", ".join(f"{value:#x}" for value in self.stack)
        return f"{self.call}({registers}{'; ' if stack else ''}{stack})"


def usable(paging: Paging) -> Usable:
    """Calls with the examples that make sense there, in the order that seeds draw from."""
    examples = (
        tuple(Call(name, n) for n, example in enumerate(EXAMPLES[name]) if paging in example.paging)
        for name in TELLING
    )
    return tuple(each for each in examples if each)


_known = cache(usable)


def draw(seed: int, among: Usable) -> Iterator[tuple[Call, list[int], tuple[int, ...]]]:
    """The calls that a seed stands for, with registers in the order of their keys and stack arguments."""
    words = chain(_random(seed, _FEW), _rest(seed))
    for _ in range(1 + next(words) % LONGEST):
        rest, which = divmod(next(words), len(among))
        examples = among[which]
        call = examples[rest % len(examples)]
        values = [_vary(words, value) for value in call.values]
        if call.ports:  # another port is another device's matter
            for place, key in enumerate(call.keys):
                if key == "edx":
                    values[place] = call.values[place]
                elif key == "ecx":
                    values[place] %= _MOST_TRANSFERS
        yield call, values, tuple([_vary(words, value) for value in call.stack])


def _random(seed: int, words: Struct) -> tuple[int, ...]:
    return words.unpack(hashlib.shake_128(b"%d" % seed).digest(words.size))


def _rest(seed: int) -> Iterator[int]:
    """What follows the first few random words; made when it is needed, which is rare."""
    yield from _random(seed, _MANY)[_FIRST:]


def _vary(words: Iterator[int], value: int) -> int:
    """The value as it is, mostly; or one of its neighbours, a boundary, an address, or anything."""
    rest, kind = divmod(next(words), 5 + _LEFT_ALONE)
    if kind > 4:
        return value
    if kind == 0:
        return _BOUNDARIES[rest % len(_BOUNDARIES)]
    if kind == 1:
        return _ADDRESSES[rest % len(_ADDRESSES)]
    if kind == 2:
        return value ^ 1 << rest % 32
    if kind == 3:
        return value + _NEIGHBOURS[rest % len(_NEIGHBOURS)] & U32
    return next(words)


def sequence(seed: int, paging: Paging) -> tuple[Step, ...]:
    """The sequence that a seed stands for."""
    return tuple(
        Step(call.name, call.number, tuple(zip(call.keys, values, strict=True)), stack)
        for call, values, stack in draw(seed, _known(paging))
    )


_MOST = {"SetDR": 7, "GetDR": 7, "SetLazyMode": 2, "SetLinearMapping": abi.LINEAR_SLOTS - 1, "FlushTLB": 3}
#: Calls that may have such an argument.
_PARTLY_DEFINED = frozenset(
    {*_MOST, "SetCR0", "SetGDT", "WriteGDTEntry", "WriteLDTEntry", "WriteIDTEntry", "SetTR"}
)
#: Memory that the guest stands on, the ROM's own data too, and what of it is free: entries of its tables that
#: nothing uses.
_STOOD_ON = (range(SCRATCH), range(RECORDS, FREE_PAGES), range(abi.SCAN_START, abi.SCAN_END))
_FREE = (range(GDT + FREE_SELECTOR, GDT + 0x800), range(IDT + 8 * (USER_END + 1), IDT + 0x800))


def _is_stood_on(address: int) -> bool:
    """Of 8 bytes that are written there, some are what the guest can't do without."""
    first, last = address, address + 7 & U32
    free = any(first in span and last in span for span in _FREE)
    return not free and any(at in span for at in (first, last) for span in _STOOD_ON)


def undefined(call: Call, values: list[int], stack: tuple[int, ...]) -> bool:
    """The table says nothing about such an argument; behind it two subjects may have another state, too."""
    name = call.name
    if name not in _PARTLY_DEFINED:
        return False
    registers = dict(zip(call.keys, values, strict=True))
    if name == "SetCR0" and not registers["eax"] & Cr0.PE:
        return True  # back to real mode, which hypervisors may refuse to serve
    if name == "SetDR" and registers["eax"] == 7 and registers["edx"] & _GENERAL_DETECT:
        return True  # what it guards, the oracle's emulator does not
    if name in ("WriteGDTEntry", "WriteLDTEntry") and stack[0] & _DPL != _DPL:
        return True  # a hypervisor may raise the level that is stored
    if name.startswith("Write") and _is_stood_on(registers["eax"] + 8 * registers["edx"] & U32):
        return True  # a segment in use may have the new descriptor at once, page tables may be cached
    if name == "SetGDT" and registers["eax"] != SCRATCH:
        return True  # in what isn't the guest's table a hypervisor may raise levels too
    if name == "SetTR" and not registers["eax"] & 0xFFFC:
        return True  # #GP by the manual, which the oracle's emulator doesn't know
    return registers.get("eax", 0) > _MOST.get(name, U32)
