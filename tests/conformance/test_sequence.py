# SPDX-License-Identifier: GPL-2.0-only
"""What seeds stand for: the same everywhere, arguments that a call takes, and what the table leaves open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.conformance.layout import DATA0, FREE_SELECTOR, GDT, IDT, PAGE_TABLES, SCRATCH, Paging
from vmi.conformance.sequence import LONGEST, draw, sequence, undefined, usable
from vmi.conformance.walk import Call


def test_a_seed_is_a_sequence() -> None:
    assert sequence(7, Paging.OFF) == sequence(7, Paging.OFF) != sequence(8, Paging.OFF)
    lengths = {len(sequence(seed, Paging.OFF)) for seed in range(200)}
    assert lengths == set(range(1, LONGEST + 1))


def test_a_seed_is_the_same_sequence_everywhere() -> None:
    """Files of findings name seeds: this changes when examples do, or the table, and for no other reason."""
    assert [str(step) for step in sequence(0, Paging.OFF)] == [
        "ReleasePage(eax=0x60, edx=0x1)",
        "INB(edx=0xe4)",
        "SetCR4(eax=0x0)",
        "OUTSL(esi=0x32878a3a, edx=0xe4, ecx=0x5)",
        "OUTW(eax=0x11223344, edx=0xe4)",
    ]


@given(st.integers(0, 1 << 64), st.sampled_from(Paging))
def test_what_is_drawn_can_be_written_down(seed: int, paging: Paging) -> None:
    for index, (call, values, stack) in enumerate(draw(seed, usable(paging))):
        assert len(call.record(index, values, stack)) == 96
        assert paging in call.example.paging
        if call.ports:
            registers = dict(zip(call.keys, values, strict=True))
            assert registers.get("edx", 0xE4) & 0xFFFF == 0xE4 and registers.get("ecx", 0) < 16


@pytest.mark.parametrize(
    ("name", "registers", "stack", "is_so"),
    [
        ("SetCR0", {"eax": 0x10}, (), True),
        ("SetCR0", {"eax": 0x11}, (), False),
        ("SetDR", {"eax": 7, "edx": 0x2400}, (), True),
        ("SetDR", {"eax": 7, "edx": 0x400}, (), False),
        ("SetDR", {"eax": 8, "edx": 0}, (), True),
        ("SetGDT", {"eax": SCRATCH}, (), False),
        ("SetGDT", {"eax": SCRATCH + 1}, (), True),
        ("SetTR", {"eax": 3}, (), True),
        ("SetTR", {"eax": 4}, (), False),
        ("SetCR2", {"eax": 0xFFFFFFFF}, (), False),
        ("WriteLDTEntry", {"eax": SCRATCH, "edx": 0, "ecx": 0}, (0x9300,), True),
        ("WriteLDTEntry", {"eax": SCRATCH, "edx": 0, "ecx": 0}, (0xF300,), False),
        ("WriteLDTEntry", {"eax": SCRATCH - 7, "edx": 0, "ecx": 0}, (0xF300,), True),
        ("WriteGDTEntry", {"eax": GDT, "edx": DATA0 >> 3, "ecx": 0}, (0xF300,), True),
        ("WriteGDTEntry", {"eax": GDT, "edx": FREE_SELECTOR >> 3, "ecx": 0}, (0xF300,), False),
        ("WriteGDTEntry", {"eax": GDT - 1, "edx": FREE_SELECTOR >> 3, "ecx": 0}, (0xF300,), True),
        ("WriteGDTEntry", {"eax": GDT, "edx": PAGE_TABLES - GDT >> 3, "ecx": 0}, (0xF300,), True),
        ("WriteIDTEntry", {"eax": IDT, "edx": 14, "ecx": 0}, (0x8E00,), True),
        ("WriteIDTEntry", {"eax": IDT, "edx": 60, "ecx": 0}, (0x8E00,), False),
        ("WriteIDTEntry", {"eax": IDT, "edx": 0xFF, "ecx": 0}, (0x8E00,), False),
        ("WriteIDTEntry", {"eax": IDT, "edx": 0x100, "ecx": 0}, (0x8E00,), True),
        ("WriteIDTEntry", {"eax": 0x82000, "edx": 0x8000, "ecx": 0}, (0x8E00,), True),
        ("WriteIDTEntry", {"eax": 0xFFFFFFFC, "edx": 0, "ecx": 0}, (0x8E00,), True),
    ],
)
def test_what_the_table_leaves_open(
    name: str, registers: dict[str, int], stack: tuple[int, ...], is_so: bool
) -> None:
    call = Call(name, 0)
    assert undefined(call, [registers[key] for key in call.keys], stack) is is_so
