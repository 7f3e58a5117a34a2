# SPDX-License-Identifier: GPL-2.0-only
"""LOCK prefixes that a kernel takes out on one processor: the table follows them, so they may move."""

from __future__ import annotations

import struct

import pytest

from tests.patcher import elfs
from tests.patcher.elfs import VADDR, Piece, Plan
from tests.patcher.images import BASE, DATA, code_image
from tests.patcher.test_hints import hints_of, relative, table_image
from vmi.errors import VerifyError
from vmi.patcher import adaptors, elf, locktable
from vmi.patcher.emit import Emission, emit
from vmi.patcher.hints import Pin
from vmi.patcher.model import LockTable
from vmi.patcher.place import place
from vmi.patcher.plan import make_plan
from vmi.patcher.rewrite import write
from vmi.patcher.verify import verify
from vmi.rom.assemble import assemble
from vmi.sitetable import Tactic

LOCKS = LockTable(DATA, 2, relative=True)
CODE = b"\xf0\xff\x43\x34" + b"\x90" * 4 + b"\xf0\xff\x43\x34" + b"\x90" * 19 + b"\xc3"
TABLE = VADDR + 0x1000
# Jumps come to the LOCK and to the NOP: the window can only begin with the one and end before the other.
SOURCE = """
    jne first
    jne second
first:
    lock inc dword ptr [ebx+0x34]
    sti
second:
    nop
    ret
"""


def kernel(relative: bool) -> bytes:
    made = assemble(SOURCE, VADDR)
    word = made.labels["first"] - (TABLE if relative else 0)
    pieces = [
        Piece(VADDR, made.code, section=".text"),
        Piece(TABLE, struct.pack("<2I", word & 0xFFFFFFFF, 0), 0, 4, section=".smp_locks"),
    ]
    return elfs.make(Plan(pieces))


def emission_of(relative: bool) -> Emission:
    image = elf.load(kernel(relative))
    return emit(make_plan(image, adaptors.refusal), place(image))


def test_a_table_is_relative_or_absolute_and_may_be_filled_up() -> None:
    for table, relation in (
        (relative(0, BASE) + relative(4, BASE + 8) + bytes(8), True),
        (struct.pack("<4I", BASE, BASE + 8, 0, 0), False),
    ):
        hints = hints_of(table_image(".smp_locks", table, CODE))
        assert hints.lock_table == LockTable(DATA, 2, relation)
        assert hints.locks == {BASE, BASE + 8}
        assert (hints.labels, hints.pins) == ((), ())


@pytest.mark.parametrize("target", [BASE + 4, BASE + 0x400])
def test_instructions_that_have_no_lock_stay(target: int) -> None:
    hints = hints_of(table_image(".smp_locks", relative(0, target), CODE))
    reason = "The kernel rewrites these bytes itself (.smp_locks)."
    assert (hints.lock_table, hints.locks) == (None, frozenset())
    assert hints.pins == ((Pin(target, target + 1, reason, True),) if target < BASE + 32 else ())


def test_nothing_is_written_when_nothing_moved() -> None:
    image = code_image(CODE, data=relative(0, BASE) + relative(4, BASE + 8))
    assert locktable.entries(image, LOCKS) == (BASE, BASE + 8)
    assert locktable.edit(image, LOCKS, ()) == {}


@pytest.mark.parametrize("relative", [True, False])
def test_the_table_names_the_prefix_where_it_is(relative: bool) -> None:
    emission = emission_of(relative)
    (sti,) = [one for one in emission.sites if one.site.form == "sti"]
    assert sti.tactic in (Tactic.BACKWARD, Tactic.BOTH)
    output = write(emission)
    verify(emission, output)
    after = elf.load(output, patched=True)
    (moved,) = locktable.entries(after, LockTable(TABLE, 1, relative))
    assert moved != assemble(SOURCE, VADDR).labels["first"]
    assert after.read(moved, 4) == bytes.fromhex("f0ff4334")


def test_a_table_that_names_something_else_is_caught() -> None:
    emission = emission_of(relative=True)
    (word,) = struct.unpack("<I", emission.edits[TABLE])
    emission.edits[TABLE] = struct.pack("<I", word + 1)
    sentence = "the table of LOCK prefixes doesn't name them where they are"
    with pytest.raises(VerifyError, match=f"^the output doesn't match the plan: {sentence}$"):
        verify(emission, write(emission))
