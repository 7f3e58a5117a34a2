# SPDX-License-Identifier: GPL-2.0-only
"""Slots that the guest's source made are taken as they are, and only if they are what they say."""

from __future__ import annotations

import struct

import pytest

from tests.patcher.elfs import VADDR, Piece, small_kernel
from vmi.errors import BadInput
from vmi.patcher import elf
from vmi.patcher.forms import SET_PTE
from vmi.patcher.model import Image
from vmi.patcher.plan import make_plan
from vmi.sitetable import Tactic


def annotated(code: bytes, *records: tuple[int, int, int]) -> Image:
    table = b"".join(
        struct.pack("<IHH", VADDR + start, length, version) for start, length, version in records
    )
    return elf.load(
        small_kernel(pieces=[Piece(VADDR, code, section=".text")], extra={".vmi.annotations": table})
    )


SLOTS = bytes.fromhex("55 66906690fa 666690fbf4 66900f22d8 5d c3")


def test_annotated_slots_are_taken_as_they_are() -> None:
    plan = make_plan(annotated(SLOTS, (6, 5, 1), (1, 5, 1), (11, 5, 1), (1, 5, 1)))
    assert [(p.site.form, p.tactic) for p in plan.placements] == [
        ("cli", Tactic.ANNOTATED),
        ("sti;hlt", Tactic.ANNOTATED),
        ("mov cr3,r", Tactic.ANNOTATED),
    ]
    assert [(slot.start - VADDR, slot.length) for slot in plan.slots] == [(1, 5), (6, 5), (11, 5)]
    assert [slot.site.address - VADDR for slot in plan.slots] == [5, 9, 13]
    assert plan.windows == ()


def test_windows_keep_away_from_annotated_slots() -> None:
    code = bytes.fromhex("fa 66666690fb 89c8 fa 90 c3")
    plan = make_plan(annotated(code, (1, 5, 1)))
    assert [(p.site.form, p.tactic) for p in plan.placements][1] == ("sti", Tactic.ANNOTATED)
    assert all(w.end <= VADDR + 1 or w.start >= VADDR + 6 for w in plan.windows)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ((1, 5, 2), f"the annotation at {VADDR + 1:#x} has version 2, expected 1"),
        ((1, 4, 1), f"the annotation at {VADDR + 1:#x} has 4 bytes, expected 5 to 255"),
        ((1, 256, 1), f"the annotation at {VADDR + 1:#x} has 256 bytes, expected 5 to 255"),
        ((0x500000, 5, 1), f"the annotation at {VADDR + 0x500000:#x} is outside the kernel's code"),
        (
            (0, 6, 1),
            f"the annotation at {VADDR:#x} must hold NOPs and then one sensitive instruction,"
            " but it holds 5566906690fa",
        ),
        (
            (1, 6, 1),
            f"the annotation at {VADDR + 1:#x} must hold NOPs and then one sensitive instruction,"
            " but it holds 66906690fa66",
        ),
    ],
)
def test_an_annotation_that_lies_is_refused(record: tuple[int, int, int], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_plan(annotated(SLOTS, record))
    assert str(caught.value) == sentence


def test_a_marked_store_is_a_site_and_marked_bytes_are_left_alone() -> None:
    code = bytes.fromhex("66 66908910 c70003100000 8907 fa fa 5d c3")
    image = annotated(code, (0, 5, 0x101), (5, 6, 0x201), (13, 1, 0x301), (13, 2, 0x301))
    plan = make_plan(image, extra={VADDR + 11: SET_PTE})
    found = {p.site.address - VADDR: (p.site.form, p.tactic, p.reason) for p in plan.placements}
    alone = "The kernel's source wants these bytes left alone."
    assert found[3] == ("set pte", Tactic.ANNOTATED, "")
    assert found[5] == ("update pte long", Tactic.ANNOTATED, "")
    assert found[13] == ("cli", Tactic.LEFT, alone)
    assert found[14] == ("cli", Tactic.LEFT, alone)
    assert found[11][0] == "set pte"
    assert all(w.end <= VADDR + 13 or w.start >= VADDR + 15 for w in plan.windows)


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([(1, 5, 0x401)], f"the annotation at {VADDR + 1:#x} is of kind 4, expected 0 to 3"),
        ([(1, 0, 0x301)], f"the annotation at {VADDR + 1:#x} has 0 bytes, expected 1 to 65535"),
        ([(1, 4, 0x101)], f"the annotation at {VADDR + 1:#x} has 4 bytes, expected 5 to 255"),
        ([(8, 11, 0x301)], f"the annotation at {VADDR + 8:#x} is outside the kernel's code"),
        (
            [(1, 5, 0x101)],
            f"the annotation at {VADDR + 1:#x} must hold NOPs and then one store of a page-table entry,"
            " but it holds 66906690fa",
        ),
        (
            [(0, 1, 0x301), (1, 5, 1), (5, 1, 0x301)],
            f"the annotation at {VADDR + 1:#x} makes a slot of bytes that the one at {VADDR + 5:#x} wants"
            " left alone",
        ),
        ([(1, 5, 1), (1, 5, 0x101)], f"the annotations at {VADDR + 1:#x} and {VADDR + 1:#x} overlap"),
    ],
)
def test_marks_that_contradict_the_code_or_each_other_are_refused(
    records: list[tuple[int, int, int]], sentence: str
) -> None:
    with pytest.raises(BadInput) as caught:
        make_plan(annotated(SLOTS, *records))
    assert str(caught.value) == sentence


def test_annotations_that_overlap_are_refused() -> None:
    with pytest.raises(BadInput) as caught:
        make_plan(annotated(SLOTS, (1, 5, 1), (3, 5, 1)))
    assert str(caught.value) == f"the annotations at {VADDR + 1:#x} and {VADDR + 3:#x} overlap"


def test_an_annotation_section_of_odd_size_is_refused() -> None:
    image = elf.load(small_kernel(extra={".vmi.annotations": b"\0" * 7}))
    with pytest.raises(BadInput) as caught:
        make_plan(image)
    assert str(caught.value) == ".vmi.annotations must hold 8-byte records, but it has 7 bytes"
