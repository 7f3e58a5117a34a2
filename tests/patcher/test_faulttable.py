# SPDX-License-Identifier: GPL-2.0-only
"""A fault table names instructions where they are, stays sorted, and refuses what it can't name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patcher import planned
from tests.patcher.elfs import VADDR
from tests.patcher.images import DATA, code_image
from vmi.errors import BadInput
from vmi.patcher import faulttable, trampoline
from vmi.patcher.faulttable import Entry
from vmi.patcher.model import FaultTable

WORDS = st.integers(0, 0xFFFFFFFF)
KINDS = [(8, False, False), (8, True, False), (12, True, False), (12, True, True), (12, False, False)]


@pytest.mark.parametrize(("size", "relative", "third"), KINDS)
@given(entries=st.lists(st.builds(Entry, WORDS, WORDS, WORDS), max_size=9))
def test_what_is_packed_is_read_again(size: int, relative: bool, third: bool, entries: list[Entry]) -> None:
    table = FaultTable(DATA, len(entries), size, relative, third)
    expected = [entry if size == 12 else replace(entry, third=0) for entry in entries]
    raw = faulttable.pack(table, expected)
    assert len(raw) == size * len(entries)
    image = code_image(b"\xc3", data=raw or b"\0")
    assert list(faulttable.read(image, table)) == expected


def test_relative_words_are_distances_from_themselves() -> None:
    table = FaultTable(0x1000, 2, 12, relative=True)
    raw = faulttable.pack(table, (Entry(0x1010, 0x1014, 7), Entry(0x100C, 0x1000, 8)))
    assert raw.hex(" ", 4) == "10000000 10000000 07000000 00000000 f0ffffff 08000000"


def test_entries_move_with_their_instructions_and_are_sorted_again() -> None:
    plan = planned.plan()
    built = [trampoline.build(window, VADDR + 0x400 + 0x40 * n) for n, window in enumerate(plan.windows)]
    assert plan.fault_table is not None
    after = faulttable.edit(plan.image, plan.fault_table, built)
    assert list(after) == [planned.TABLE]
    before = faulttable.read(plan.image, plan.fault_table)
    home = VADDR + 0x400 + 0x40 * 3
    expected = (
        Entry(VADDR + 0x29, VADDR + 0x28, 7),
        Entry(home, VADDR + 0x28, 7),
        Entry(home + 5, VADDR + 0x28, 7),
    )
    assert [entry.insn - VADDR for entry in before] == [0x20, 0x22, 0x29]
    assert after[planned.TABLE] == faulttable.pack(plan.fault_table, expected)


def test_nothing_is_written_when_nothing_moved() -> None:
    plan = planned.plan()
    assert plan.fault_table is not None
    built = [trampoline.build(window, VADDR + 0x400) for window in plan.windows[:1]]
    assert faulttable.edit(plan.image, plan.fault_table, built) == {}


def edit_of_one(offset: int) -> dict[int, bytes]:
    """The edit of a table that names one address, for the hand-made plan."""
    table = FaultTable(DATA, 1, 8, relative=False)
    image = code_image(b"\xc3", data=faulttable.pack(table, (Entry(VADDR + offset, 0),)))
    built = [trampoline.build(window, VADDR + 0x400) for window in planned.plan().windows]
    return faulttable.edit(image, table, built)


def test_a_copied_instruction_is_a_defect() -> None:
    sentence = f"^the plan moves {VADDR + 0x1C:#x}, which the fault table can't follow$"
    with pytest.raises(ValueError, match=sentence):
        edit_of_one(0x1C)


def test_a_table_that_names_the_middle_of_an_instruction_is_refused() -> None:
    with pytest.raises(
        BadInput, match=f"^the fault table names {VADDR + 0x21:#x}, where no instruction starts$"
    ):
        edit_of_one(0x21)


def test_a_table_outside_the_file_is_a_defect() -> None:
    with pytest.raises(ValueError, match=r"^the fault table at 0x10 isn't in the file$"):
        faulttable.read(planned.image(), FaultTable(0x10, 1, 8, relative=False))
