# SPDX-License-Identifier: GPL-2.0-only
"""RDTSC with its NOPs is a slot where it stands, and with a ROM the kernel's alternatives to it are off."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.patcher.elfs import PADDR, VADDR, Piece, Plan, make
from tests.patcher.test_activation import fake_rom
from tests.patcher.test_cleared import start
from vmi.abi import Reloc
from vmi.errors import VerifyError
from vmi.patcher import adaptors, alternatives, displaced, elf
from vmi.patcher.emit import Emission, emit
from vmi.patcher.model import Image
from vmi.patcher.place import Choice, place
from vmi.patcher.plan import make_plan
from vmi.patcher.rewrite import write
from vmi.patcher.verify import verify
from vmi.rom.assemble import assemble
from vmi.sitetable import Status, Tactic

COPIES, TABLE = VADDR + 0x1000, VADDR + 0x2000
FENCED, NEWER, OTHER = "0faee80f31", "0f01f9", "0f01c1"
SOURCE = "mov ecx, 0x12345678\n cli\n mov esi, ecx\n nop\n nop\n rdtsc\n {nops}\n nop\n nop\n {then}"
CODE = assemble(SOURCE.format(nops="nop", then="mov ecx, eax\n ret"), VADDR)
CLOCK = VADDR + 10
ROM = fake_rom({"RDTSC": (Reloc.CALL_REL, 0x200)})

Record = tuple[int, int, str]  # address, length, replacement
BOTH: tuple[Record, ...] = ((CLOCK, 5, FENCED), (CLOCK, 5, NEWER))


def kernel(
    records: tuple[Record, ...], *, size: int = 12, code: bytes = CODE.code, linux: bool = False
) -> Image:
    copies, table = b"", b""
    for address, length, raw in records:
        at = TABLE + len(table)
        row = struct.pack(
            "<iiHBB", address - at, COPIES + len(copies) - at - 4, 0x72, length, len(bytes.fromhex(raw))
        )
        table += row.ljust(size, b"\x03")
        copies += bytes.fromhex(raw)
    pieces = [
        Piece(VADDR, code.ljust(0x100, b"\x90"), 0, 5, section=".text"),
        Piece(COPIES, copies.ljust(0x10, b"\x90"), 0x1000, 5, section=".altinstr_replacement"),
        Piece(TABLE, table, 0x1000, 6, section=alternatives.SECTION),
    ]
    image = elf.load(make(Plan(pieces, PADDR if linux else VADDR, stack_header=False)))
    return replace(image, displaced=(VADDR + 0x80,) if linux else ())


@pytest.mark.parametrize("size", [12, 13])
def test_the_same_instruction_in_other_words_makes_a_slot(size: int) -> None:
    plan = make_plan(kernel(BOTH, size=size), adaptors.refusal)
    (slot,) = plan.slots
    assert (slot.start, slot.length, slot.tactic) == (CLOCK, 5, Tactic.IN_PLACE)
    assert (slot.site.form, slot.site.raw, slot.site.pad_after) == ("rdtsc", b"\x0f\x31", True)
    expected = [TABLE + n * size + at for n in range(2) for at in range(10, size)]
    assert list(alternatives.lengths(plan)) == expected


NONE = [
    ("something else may be copied there", ((CLOCK, 5, FENCED), (CLOCK, 5, OTHER))),
    ("with something else", ((CLOCK, 5, "0f3189c1"),)),
    ("nothing is copied there", ((CLOCK, 5, "90"),)),
    ("too few bytes", ((CLOCK, 4, NEWER),)),
    ("there is more than the instruction", ((CLOCK - 1, 8, FENCED),)),
    ("another range begins in it", (*BOTH, (CLOCK + 2, 3, ""))),
    ("another range reaches into it", (*BOTH, (CLOCK - 3, 4, ""))),
    ("other code", ((VADDR, 5, FENCED),)),
]


@pytest.mark.parametrize("records", [case[1] for case in NONE], ids=[case[0] for case in NONE])
def test_what_is_no_slot(records: tuple[Record, ...]) -> None:
    image = kernel(records)
    assert len(alternatives.alternatives(image)) == len(records)
    assert CLOCK not in alternatives.slots(image)
    plan = make_plan(image, adaptors.refusal)
    assert all(slot.start != CLOCK for slot in plan.slots)
    assert list(alternatives.lengths(plan)) == []


def test_a_jump_to_its_nops_leaves_it_alone() -> None:
    code = assemble(SOURCE.format(nops="here: nop", then="jmp here"), VADDR)
    plan = make_plan(kernel(BOTH, code=code.code), adaptors.refusal)
    (clock,) = [p for p in plan.placements if p.site.form == "rdtsc"]
    assert (clock.tactic, clock.reason) == (
        Tactic.LEFT,
        "The kernel rewrites these bytes itself (.altinstructions).",
    )


@pytest.mark.parametrize(
    "record", [(CLOCK, 5, "90" * 6), (VADDR + 0x5000, 5, FENCED), (TABLE, 5, FENCED), (COPIES + 0xE, 5, "")]
)
def test_a_table_of_another_layout_says_nothing(record: Record) -> None:
    assert alternatives.alternatives(kernel((*BOTH, record))) == ()
    assert alternatives.alternatives(kernel(BOTH, size=14)) == ()


def patched(linux: bool) -> tuple[Emission, bytes]:
    image = kernel(BOTH, linux=linux)
    emission = emit(make_plan(image, adaptors.refusal), place(image, Choice(protocol=0x20F * linux)))
    output = write(emission)
    verify(emission, output)
    return emission, output


@pytest.mark.parametrize(("linux", "displacement"), [(False, 0), (True, 0), (True, 0x123000)])
def test_with_a_rom_the_slot_calls_it_and_the_records_copy_nothing(linux: bool, displacement: int) -> None:
    emission, output = patched(linux)
    before = elf.load(output, patched=True)
    native, active = (start(emission, output, rom, displacement) for rom in (None, ROM))
    assert (native.header.status, active.header.status) == (Status.NATIVE, Status.ACTIVE)
    assert native.read(TABLE, 24) == before.read(TABLE, 24)
    assert native.read(CLOCK, 5) == b"\x0f\x31\x90\x90\x90"
    changed = bytearray(before.read(TABLE, 24))
    changed[10:12] = changed[22:24] = b"\0\0"
    assert active.read(TABLE, 24) == changed
    assert active.read(CLOCK, 1) == b"\xe8"


def test_a_list_without_them_is_caught() -> None:
    emission, _ = patched(False)
    header = emission.header
    wrong = displaced.pack([TABLE + 9, TABLE + 11, TABLE + 22, TABLE + 23])
    at = header.cleared - emission.base
    assert len(wrong) == header.cleared_size
    segment = emission.segment[:at] + wrong + emission.segment[at + len(wrong) :]
    damaged = replace(emission, segment=segment)
    with pytest.raises(VerifyError) as error:
        verify(damaged, write(damaged))
    assert str(error.value) == (
        "the output doesn't match the plan: "
        "the list of bytes to be cleared names others than the records' lengths"
    )


def test_a_slot_that_no_alternative_explains_is_caught() -> None:
    emission, output = patched(False)
    damaged = replace(emission, plan=replace(emission.plan, slots=()))
    with pytest.raises(VerifyError) as error:
        verify(damaged, output)
    assert str(error.value) == (
        "the output doesn't match the plan: there is no list of bytes to be cleared where one is needed, or "
        "the other way round"
    )
    (slot,) = emission.plan.slots
    damaged = replace(emission, plan=replace(emission.plan, slots=(slot, replace(slot, start=CLOCK + 5))))
    with pytest.raises(VerifyError) as error:
        verify(damaged, output)
    assert str(error.value) == (
        "the output doesn't match the plan: "
        "a slot is longer than its instruction, and there is no alternative to that"
    )
