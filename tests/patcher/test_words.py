# SPDX-License-Identifier: GPL-2.0-only
"""Address words and relocations follow the instructions that hold them; those of jumps are gone."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.patcher import planned
from tests.patcher.elfs import VADDR
from vmi.errors import BadInput
from vmi.patcher import trampoline, words
from vmi.patcher.model import Branch, Image, Insn, Window
from vmi.patcher.trampoline import Trampoline

HOME = VADDR + 0x4000


def built(image: Image) -> tuple[Image, list[Trampoline], dict[int, bytes]]:
    made = [trampoline.build(window, HOME + 0x40 * n) for n, window in enumerate(planned.plan().windows)]
    return image, made, trampoline.edits(made)


def test_words_move_with_their_instructions() -> None:
    found = words.displaced(*built(planned.image()))
    # mov ebx,[...] behind a branch of 6 bytes and a slot; two more around a slot; one of data stays.
    assert found == (planned.DATA + 8, HOME + 2 + 6 + 5 + 2, HOME + 0x40 + 2, HOME + 0x40 + 6 + 5 + 2)


def test_a_kernel_that_does_not_move_has_no_words() -> None:
    assert words.displaced(*built(replace(planned.image(), displaced=()))) == ()


@pytest.mark.parametrize("offset", [0x0B, 0x0A, 0x02, 0x12, 0x1B])
def test_a_word_that_is_in_no_instruction_as_a_whole_is_refused(offset: int) -> None:
    image = replace(planned.image(), displaced=(VADDR + offset,))
    named = f"{VADDR + offset:#x}, which is in no instruction as a whole"
    sentence = f"^the kernel's list of address words names {named}$"
    with pytest.raises(BadInput, match=sentence):
        words.displaced(*built(image))


def test_a_copy_adds_a_word_and_takes_none_away() -> None:
    """The last instruction stays too, for those who jump to it."""
    image = replace(planned.image(), displaced=(VADDR + 0x08,))
    raw = image.read(VADDR + 0x06, 6)
    insns = (Insn(VADDR + 0x05, b"\xfb", "sti"), Insn(VADDR + 0x06, raw))
    window = Window(VADDR + 0x01, 5, insns, (), (), VADDR + 0x0C)
    made = [trampoline.build(window, HOME)]
    assert words.displaced(image, made, trampoline.edits(made)) == (VADDR + 0x08, HOME + 1 + 2)


def test_relocations_move_and_that_of_a_short_branch_is_gone() -> None:
    image, made, edits = built(planned.image())
    found = words.relocation_edits(image, made, edits)
    places = [struct.unpack("<II", raw) for raw in found.values()]
    assert places == [
        (HOME + 2 + 6 + 5 + 2, 0x101),
        (HOME + 0x40 + 2, 0x101),
        (HOME + 0x40 + 6 + 5 + 2, 0x101),
    ]


def relocated(insn: Insn, address: int, kind: int) -> list[tuple[int, ...]]:
    """What a relocation at ``address`` becomes when a window of one branch moves to HOME."""
    image = planned.image()
    at = image.data.index(struct.pack("<II", *planned.RELOCATIONS[0]))
    data = image.data[:at] + struct.pack("<II", address, 0x100 | kind) + image.data[at + 8 :]
    window = Window(insn.address, 5, (insn,), (), (), None if insn.branch is Branch.JMP else insn.address + 5)
    made = [trampoline.build(window, HOME)]
    found = words.relocation_edits(replace(image, data=data), made, trampoline.edits(made))
    return [struct.unpack("<II", raw) for raw in found.values()]


def test_the_distance_of_a_branch_is_relocated_where_it_is_now() -> None:
    start = VADDR + 0x200
    call = Insn(start, b"\xe8\0\0\0\0", None, Branch.CALL, VADDR)
    assert relocated(call, start + 1, 2) == [(HOME + 1, 0x102)]
    long = Insn(start, b"\x0f\x84\0\0\0\0", None, Branch.JCC, VADDR)
    assert relocated(long, start + 2, 2) == [(HOME + 2, 0x102)]


def test_a_distance_of_eight_bits_leaves_no_relocation() -> None:
    start = VADDR + 0x200
    short = Insn(start, b"\x74\x10", None, Branch.JCC, VADDR)
    assert relocated(short, start + 1, 23) == [(start + 1, 0x100)]
    again = Insn(start, b"\xe2\x10", None, Branch.LOOP, VADDR)
    assert relocated(again, start + 1, 23) == [(start + 1, 0x100)]


def test_relocations_elsewhere_stay() -> None:
    start = VADDR + 0x200
    call = Insn(start, b"\xe8\0\0\0\0", None, Branch.CALL, VADDR)
    assert relocated(call, start + 0x20, 1) == []


def test_a_file_without_relocations_is_not_searched() -> None:
    image, made, edits = built(planned.image())
    assert words.relocation_edits(replace(image, relocations=(), data=b""), made, edits) == {}
