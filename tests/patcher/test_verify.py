# SPDX-License-Identifier: GPL-2.0-only
"""What verify lets through is right: every kind of damage to an output is caught."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patcher.elfs import PADDR, VADDR, small_kernel
from vmi.errors import ExitCode, VerifyError
from vmi.patcher import adaptors, elf, rewrite
from vmi.patcher.emit import Emission, emit
from vmi.patcher.model import Placement, Site
from vmi.patcher.place import place
from vmi.patcher.plan import make_plan
from vmi.patcher.verify import verify
from vmi.sitetable import Tactic


@cache
def good() -> tuple[Emission, bytes]:
    image = elf.load(small_kernel())
    emission = emit(make_plan(image, adaptors.refusal), place(image))
    return emission, rewrite.write(emission)


@cache
def loaded_ranges() -> list[tuple[int, int]]:
    """File ranges of the loaded bytes of the output."""
    image = elf.load(good()[1], patched=True)
    return [(s.file_offset, s.file_offset + s.filesz) for s in image.segments]


def caught(emission: Emission, data: bytes) -> str:
    with pytest.raises(VerifyError) as error:
        verify(emission, data)
    assert error.value.exit_code is ExitCode.OUTPUT
    return str(error.value)


def test_a_good_output_passes() -> None:
    verify(*good())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_loaded_byte_is_caught(data: st.DataObject) -> None:
    emission, output = good()
    low, high = data.draw(st.sampled_from(loaded_ranges()))
    at = data.draw(st.integers(low, high - 1))
    damaged = bytearray(output)
    damaged[at] ^= data.draw(st.integers(1, 255))
    assert caught(emission, bytes(damaged))


def header_edit(offset: int, layout: str, value: int) -> bytes:
    damaged = bytearray(good()[1])
    struct.pack_into(layout, damaged, offset, value)
    return bytes(damaged)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "sentence"),
    [
        (24, "<I", VADDR, "the output doesn't match the plan: the entry point is 0xc0100000"),
        (
            52 + 12,
            "<I",
            PADDR + 0x1000000,
            "the output doesn't match the plan: the loadable segments are not the old ones and the new one",
        ),
        (
            52 + 64 + 24,
            "<I",
            5,
            "the output doesn't match the plan: the loadable segments are not the old ones and the new one",
        ),
        (36, "<I", 7, "the output doesn't match the plan: e_flags changed from 0 to 7"),
    ],
)
def test_damaged_headers_are_caught(offset: int, layout: str, value: int, sentence: str) -> None:
    assert caught(good()[0], header_edit(offset, layout, value)) == sentence


def test_a_truncated_output_is_caught() -> None:
    emission, output = good()
    for size in range(0, len(output), 997):
        assert caught(emission, output[:size])


def reworked(change: dict[int, bytes]) -> tuple[Emission, bytes]:
    """An emitter that got the .vmi segment wrong and believes it: addresses to bytes."""
    emission, _ = good()
    segment = bytearray(emission.segment)
    for address, raw in change.items():
        at = address - emission.base
        segment[at : at + len(raw)] = raw
    wrong = replace(emission, segment=bytes(segment))
    return wrong, rewrite.write(wrong)


def first_slot(form: str) -> tuple[int, int, int]:
    """Slot address, length and adaptor of the first slotted site of a form."""
    placed = next(p for p in good()[0].sites if p.site.form == form and p.record is not None)
    assert placed.record is not None
    return placed.record.slot, placed.record.length, placed.record.adaptor


def test_a_slot_without_its_instruction_is_caught() -> None:
    slot, length, _ = first_slot("cli")
    assert caught(*reworked({slot + length - 1: b"\xfb"})) == (
        f"the output doesn't match the plan: the slot at {slot:#x} does not hold the original instruction"
    )


def test_a_slot_with_more_than_nops_is_caught() -> None:
    slot, _, _ = first_slot("cli")
    assert caught(*reworked({slot: b"\x40\x40\x90\x90"})) == (
        f"the output doesn't match the plan: the slot at {slot:#x} has something else than NOPs before the "
        "instruction"
    )


def test_an_adaptor_that_calls_nothing_is_caught() -> None:
    _, _, adaptor = first_slot("popf")
    code = next(p.adaptor.code for p in good()[0].adaptors if p.address == adaptor)
    assert caught(*reworked({adaptor: code.replace(b"\xe8\0\0\0\0", b"\x90" * 5)})) == (
        f"the output doesn't match the plan: the adaptor at {adaptor:#x} makes 0 calls instead of one"
    )


def test_an_adaptor_with_a_branch_is_caught() -> None:
    _, _, adaptor = first_slot("popf")
    assert caught(*reworked({adaptor: b"\xeb"})) == (
        f"the output doesn't match the plan: the adaptor at {adaptor:#x} is not straight code"
    )


def test_a_trampoline_that_returns_to_the_wrong_place_is_caught() -> None:
    built = next(b for b in good()[0].trampolines if b.window.resume is not None)
    end = built.start + len(built.code)
    wrong = struct.pack("<i", struct.unpack("<i", built.code[-4:])[0] + 1)
    assert caught(*reworked({end - 4: wrong})) == (
        f"the output doesn't match the plan: the trampoline for {built.window.start:#x} does not come back "
        f"to {built.window.resume:#x}"
    )


def test_a_changed_instruction_in_a_trampoline_is_caught() -> None:
    emission, _ = good()
    for built in emission.trampolines:
        slots = {slot.site.address for slot in built.slots}
        plain = [i for i in built.window.insns if i.address not in slots and i.branch is None]
        if plain:
            at = built.start + built.code.index(plain[0].raw)
            assert "the instruction at" in caught(*reworked({at: bytes([plain[0].raw[0] ^ 1])}))
            return
    pytest.fail("the small kernel has no window with a plain instruction")


def test_a_window_that_jumps_elsewhere_is_caught() -> None:
    emission, _ = good()
    window = next(w for w in emission.plan.windows if w.springboard is None)
    edits = dict(emission.edits)
    edits[window.start] = b"\xe9" + struct.pack("<i", 0x1000).ljust(window.length - 1, b"\xcc")
    wrong = replace(emission, edits=edits)
    assert caught(wrong, rewrite.write(wrong)) == (
        f"the output doesn't match the plan: the window at {window.start:#x} jumps out of the .vmi segment"
    )


def test_an_edit_outside_the_windows_is_caught() -> None:
    emission, _ = good()
    wrong = replace(emission, edits=emission.edits | {VADDR + 0x1000: b"\x90"})
    assert caught(wrong, rewrite.write(wrong)) == (
        "the output doesn't match the plan: there is an edit at 0xc0101000 outside all windows"
    )


def test_a_record_for_another_call_is_caught() -> None:
    emission, _ = good()
    first = next(p for p in emission.sites if p.record is not None)
    assert first.record is not None
    other = replace(first, records=(replace(first.record, call=first.record.call ^ 1),))
    wrong = replace(emission, sites=tuple(other if p is first else p for p in emission.sites))
    assert caught(wrong, good()[1]) == (
        "the output doesn't match the plan: the site table reads back differently"
    )


def test_a_forgotten_record_is_caught() -> None:
    emission, output = good()
    forgotten = Site(VADDR + 0x90, b"\x16", "push ss", None, True, False)
    placements = (*emission.plan.placements, Placement(forgotten, Tactic.TRAP, "It was forgotten."))
    wrong = replace(emission, plan=replace(emission.plan, placements=placements))
    count = len(emission.records)
    assert caught(wrong, output) == (
        f"the output doesn't match the plan: there are {count} records for {count + 1} sites with a slot or "
        "to be trapped"
    )
