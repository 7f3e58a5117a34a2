# SPDX-License-Identifier: GPL-2.0-only
"""A page of code is accessed when an instruction reaches it, and not because code runs towards it."""

from __future__ import annotations

from random import Random

import pytest

from tests.native.guest import DONE, PAGES, Guest
from tests.native.pairs import Pair, available
from vmi.native.machine import Machine, Outcome
from vmi.rom.assemble import assemble

PAGE, END = 0x40000, 0x41000
ACCESSED = 0x20
NOP, LOADS = b"\x90", bytes.fromhex("b801020304")  # MOV EAX, 4030201h


def guest(code: bytes, back: int) -> Guest:
    """A guest that runs code at the end of a page, ``back`` bytes from there, and what is behind it."""
    made = Guest(f"mov esi, {END - back} | jmp esi")
    made.page()
    made.memory.write(END - back, code)
    return made


def accessed(made: Guest) -> tuple[bool, bool]:
    """The page, and the one behind it, by their entries."""
    entries = [made.u32(PAGES + 0x1000 + 4 * (at >> 12)) for at in (PAGE, END)]
    return bool(entries[0] & ACCESSED), bool(entries[1] & ACCESSED)


ENDS = assemble(DONE.replace(" | ", "\n"), 0).code


@pytest.mark.parametrize("rest", [1, 5, 14, 15, 16, 29, 30, 31, 100, 900])
@pytest.mark.parametrize("before", [0, 1, 40, 600])
def test_a_guest_that_ends_in_front_of_a_page_has_not_been_there(rest: int, before: int) -> None:
    made = guest(NOP * before + ENDS + NOP * (rest + 100), before + len(ENDS) + rest)
    assert made.exit_value() == 1
    assert accessed(made) == (True, False)


@pytest.mark.parametrize("code", ["ebfe", "75fe", "c3", "0f0b"])
def test_code_that_goes_elsewhere_has_not_been_there(code: str) -> None:
    """JMP to itself, a branch that is taken, a return, and an instruction that there is not."""
    for rest in (0, 3, 20):
        body = NOP * 50 + bytes.fromhex(code)
        made = guest(body + NOP * (rest + 50), len(body) + rest)
        made.memory.put_u32(0x7FFC, 0x50000)
        made.memory.write(0x50000, b"\xeb\xfe")
        made.cpu.esp, made.cpu.eflags = 0x7FFC, 2
        made.run(1)
        assert accessed(made) == (True, False)


@pytest.mark.parametrize("inside", [1, 2, 3, 4])
def test_an_instruction_that_reaches_it_has(inside: int) -> None:
    made = guest(NOP * 3 + LOADS + ENDS, 3 + inside)
    at = END - inside
    for _ in range(2 + 2):
        made.cpu.run(1)
        assert not accessed(made)[1]
    assert made.cpu.eip == at - 1
    made.cpu.run(2)
    assert made.cpu.eip == at + len(LOADS) and accessed(made)[1]


@pytest.mark.skipif(not available(), reason="there is no accelerator here to compare with")
@pytest.mark.parametrize("seed", range(3))
def test_with_the_accelerator_it_is_the_same_at_any_stop(seed: int) -> None:
    """Straight code of all lengths over some pages, with ports and devices in it."""
    random = Random(seed)
    pieces = ["90", "40", "b801020304", "e680", "8807", "0fb6c0", "c7053000060001020304", "66b80100", "e461"]
    code = b""
    while len(code) < 0x2800:
        code += bytes.fromhex(random.choice(pieces)) * random.choice((1, 1, 3, 30))

    def make() -> Machine:
        made = guest(code + ENDS, 0x800)
        made.cpu.edi = 0x300000  # where there is no RAM
        return made.machine

    pair = Pair(make)
    for _ in range(2_000):
        end = pair.run(random.choice((10, 40, 150, 2_000, 9_000)))
        pair.compare_memory()
        if end.outcome is not Outcome.TIMEOUT:
            break
    assert end.outcome is Outcome.DEBUG_EXIT
