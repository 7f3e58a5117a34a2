# SPDX-License-Identifier: GPL-2.0-only
"""The vmware flavour at privilege level 1: flag words, gates and ways out, from randomised states."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rom.conftest import GPRS, KERNEL_CODE_RPL0, MASK, USER_CODE, USER_DATA, Cpu, Outcome
from vmi import abi
from vmi.abi import Reloc
from vmi.rom.build import build
from vmi.rom.flavours.vmware import (
    FLAVOUR,
    GATE_INTERRUPT,
    INIT_GATE,
    IRET_RAISED,
    IRET_SITE,
    IRET_VIF,
    PENDING,
    PENDING_GATE,
    VIF,
)
from vmi.rom.layout import gate_number, gate_offset

ROM = build("vmware")
PLACES = [
    (base, segments) for base in (0xC8000, 0xC0800, 0xC00DD800) for segments in (0, 0x300000, 0xC0000000)
]
KERNEL_CODE = KERNEL_CODE_RPL0 | 1

REGISTERS = st.fixed_dictionaries({name: st.integers(0, MASK) for name in GPRS})
# Arithmetic flags, AC and ID; DF is clear by convention.
EFLAGS = st.integers(0, MASK).map(lambda value: value & 0x2408D5 & ~0x400 | 2)
PLACE = st.sampled_from(PLACES)
FLAG = st.sampled_from([0, 0x200])
WAITS = st.sampled_from([0, 1])


def words(cpu: Cpu, **values: int) -> None:
    """Set words of the data page; the others are 0."""
    assert ROM.data_page is not None
    page = bytearray(64)
    for name, value in values.items():
        struct.pack_into("<I", page, FLAVOUR.words[name], value)
    cpu.uc.mem_write(cpu.base + ROM.data_page, bytes(page))


def word(cpu: Cpu, offset: int) -> int:
    assert ROM.data_page is not None
    return cpu.read_words(cpu.base + ROM.data_page + offset, 1)[0]


def machine(place: tuple[int, int] = (0xC8000, 0)) -> Cpu:
    return Cpu(ROM.image, place[0], 1, place[1])


def gate_of(cpu: Cpu, outcome: Outcome) -> int | None:
    """The gate that a run ended in, seen as a hypervisor sees it: by vector and EIP."""
    if outcome.vector != GATE_INTERRUPT:
        return None
    return gate_number((outcome.eip + cpu.segment_base - cpu.base) & MASK)


def untouched_below(cpu: Cpu, depth: int) -> bool:
    """Whether the stack deeper than `depth` bytes below the entry's stack pointer was left alone."""
    top = cpu.stack + cpu.segment_base & MASK
    return not bytes(cpu.uc.mem_read(top - 0x100, 0x100 - depth)).strip(b"\xa5")


@settings(max_examples=60, deadline=None)
@given(REGISTERS, PLACE, st.sampled_from([row for row in abi.CALLS if FLAVOUR.template(row).is_gate]))
def test_gated_calls_reach_their_gate_as_they_were_made(
    registers: dict[str, int], place: tuple[int, int], row: abi.Call
) -> None:
    cpu = machine(place)
    outcome = cpu.run(cpu.rom(ROM.offset(row.name)), (cpu.landing, 1, 2), registers, data=0)
    assert gate_of(cpu, outcome) == row.number
    assert outcome.eip == cpu.rom(gate_offset(row.number)) + 2 & MASK
    assert outcome.gprs == registers
    assert cpu.stacked(outcome, 3) == (cpu.landing, 1, 2) and untouched_below(cpu, 0)


@pytest.mark.parametrize("level", [0, 1])
def test_init_reaches_its_gate_with_the_hint(level: int) -> None:
    cpu = Cpu(ROM.image, 0xC8000, level)
    registers = {name: 0x5000 + index for index, name in enumerate(GPRS)}
    outcome = cpu.run(cpu.rom(abi.INIT_OFFSET), (cpu.landing,), registers)
    assert gate_of(cpu, outcome) == INIT_GATE and outcome.gprs == registers
    back = cpu.run(outcome.eip, (cpu.landing,), registers)  # the hypervisor goes on behind the `int`
    assert back.landed


@settings(max_examples=60, deadline=None)
@given(REGISTERS, EFLAGS, PLACE, FLAG, WAITS, st.sampled_from([0, USER_DATA]))
def test_interrupt_flag_calls_change_the_flag_word_and_flags_only(
    registers: dict[str, int], eflags: int, place: tuple[int, int], flag: int, waits: int, data: int
) -> None:
    cpu = machine(place)
    wanted = registers["eax"] & 0x200
    cases = [
        ("EnableInterrupts", 0x200, registers, bool(waits)),
        ("DisableInterrupts", 0, registers, False),
        ("GetInterruptMask", flag, {**registers, "eax": flag}, False),
        ("SetInterruptMask", wanted, registers, bool(waits and wanted)),
    ]
    for name, after, gprs, delivers in cases:
        words(cpu, VIF=flag, PENDING=waits)
        outcome = cpu.run(cpu.rom(ROM.offset(name)), (cpu.landing, 7), registers, eflags, data)
        assert outcome.gprs == gprs, name
        assert word(cpu, VIF) == after and word(cpu, PENDING) == waits, name
        assert untouched_below(cpu, 32), name
        if delivers:
            assert gate_of(cpu, outcome) == PENDING_GATE, name
            assert cpu.stacked(outcome, 2) == (cpu.landing, 7), name
            outcome = cpu.run(outcome.eip, (cpu.landing, 7), registers, eflags, data)
        assert outcome.landed and outcome.esp == cpu.stack + 4 & MASK, name
        assert outcome.cs & 3 == 1 and not outcome.eflags & 0x400, name


@settings(max_examples=60, deadline=None)
@given(REGISTERS, PLACE, FLAG, FLAG, WAITS, st.sampled_from([0, 1]))
def test_iret_to_the_same_ring(
    registers: dict[str, int], place: tuple[int, int], before: int, image: int, waits: int, rpl: int
) -> None:
    """A frame as the hardware of level 1 made it, or with the selector that the kernel knows."""
    cpu = machine(place)
    words(cpu, VIF=before, PENDING=waits, IOPL=0x3000)
    frame = (0xDEAD, cpu.landing, KERNEL_CODE_RPL0 | rpl, 0x3002 | image | 0x41)
    outcome = cpu.run(cpu.rom(ROM.offset("IRET")), frame, registers, data=0)
    assert outcome.gprs == registers and untouched_below(cpu, 32)
    assert word(cpu, IRET_SITE) == 0xDEAD
    if waits and image:
        assert gate_of(cpu, outcome) == abi.BY_NAME["IRET"].number
        assert outcome.esp == cpu.stack and cpu.stacked(outcome, 4) == frame
        assert word(cpu, VIF) == before
        return
    raised = 0 if rpl else IRET_RAISED
    assert outcome.landed and word(cpu, VIF) == image and word(cpu, IRET_VIF) == before | raised
    assert (outcome.cs, outcome.esp) == (KERNEL_CODE, cpu.stack + 16 & MASK)
    assert outcome.eflags & 0x3041 == 0x41  # arithmetic flags are the image's, IOPL is not


@settings(max_examples=40, deadline=None)
@given(REGISTERS, PLACE, FLAG, WAITS)
def test_iret_to_user_mode(registers: dict[str, int], place: tuple[int, int], image: int, waits: int) -> None:
    cpu = machine(place)
    words(cpu, VIF=0, PENDING=waits)
    frame = (0xDEAD, cpu.user_landing, USER_CODE, 2 | image, 0x3000, USER_DATA)
    outcome = cpu.run(cpu.rom(ROM.offset("IRET")), frame, registers, data=0)
    assert outcome.gprs == registers and untouched_below(cpu, 32)
    if waits and image:
        assert gate_of(cpu, outcome) == abi.BY_NAME["IRET"].number
        assert outcome.cs == KERNEL_CODE and cpu.stacked(outcome, 6) == frame
        return
    assert outcome.landed and word(cpu, VIF) == image
    assert (outcome.cs, outcome.ss, outcome.esp) == (USER_CODE, USER_DATA, 0x3000)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("waits", [0, 1])
def test_iret_to_virtual_8086_mode_is_the_hypervisors(place: tuple[int, int], waits: int) -> None:
    cpu = machine(place)
    words(cpu, VIF=0, PENDING=waits)
    frame = (0xDEAD, 0x100, 0x2000, 0x20202, 0xFFE, 0x3000, 1, 2, 3, 4)
    outcome = cpu.run(cpu.rom(ROM.offset("IRET")), frame, {"eax": 1, "ecx": 2}, data=0)
    assert gate_of(cpu, outcome) == abi.BY_NAME["IRET"].number
    assert cpu.stacked(outcome, len(frame)) == frame and word(cpu, VIF) == 0


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("eflags", "iopl", "image"), [(0x4002, 0, 2), (2, 0, 0x3002), (2, 0x3000, 0x1002), (2, 0x3000, 2)]
)
def test_iret_to_another_task_or_iopl_is_the_hypervisors(
    place: tuple[int, int], eflags: int, iopl: int, image: int
) -> None:
    cpu = machine(place)
    words(cpu, VIF=0x200, IOPL=iopl)
    frame = (0xDEAD, cpu.landing, KERNEL_CODE, image)
    registers = {"eax": 1, "ecx": 2}
    outcome = cpu.run(cpu.rom(ROM.offset("IRET")), frame, registers, eflags, data=0)
    assert gate_of(cpu, outcome) == abi.BY_NAME["IRET"].number
    assert cpu.stacked(outcome, 4) == frame and word(cpu, VIF) == 0x200
    assert (outcome.gprs["eax"], outcome.gprs["ecx"]) == (1, 2) and untouched_below(cpu, 32)


def test_a_faulting_iret_leaves_frame_and_site_to_report() -> None:
    cpu = machine()
    words(cpu)
    frame = (0x12345678, cpu.landing, 0x7FF9, 0x202)  # a selector beyond the table
    outcome = cpu.run(cpu.rom(ROM.offset("IRET")), frame, {"eax": 1}, data=0)
    assert outcome.vector == 13
    assert word(cpu, IRET_SITE) == 0x12345678
    assert outcome.esp == cpu.stack + 4 and cpu.stacked(outcome, 3) == frame[1:]


@settings(max_examples=40, deadline=None)
@given(REGISTERS, EFLAGS, PLACE, WAITS, st.booleans())
def test_sysexit(
    registers: dict[str, int], eflags: int, place: tuple[int, int], waits: int, known: bool
) -> None:
    cpu = machine(place)
    words(cpu, PENDING=waits, USER_CS=USER_CODE if known else 0, USER_SS=USER_DATA if known else 0)
    registers = {**registers, "edx": cpu.user_landing, "ecx": 0x3000}
    outcome = cpu.run(cpu.rom(ROM.offset("SYSEXIT")), (0xDEAD,), registers, eflags, data=0)
    assert outcome.gprs == registers and untouched_below(cpu, 32)
    if waits or not known:
        assert gate_of(cpu, outcome) == abi.BY_NAME["SYSEXIT"].number
        assert cpu.stacked(outcome, 1) == (0xDEAD,) and word(cpu, VIF) == 0
        return
    assert outcome.landed and word(cpu, VIF) == 0x200
    assert (outcome.cs, outcome.ss, outcome.esp) == (USER_CODE, USER_DATA, 0x3000)


@pytest.mark.parametrize("place", [place for place in PLACES if not place[1]])
def test_page_table_calls_store_or_do_nothing(place: tuple[int, int]) -> None:
    cpu = machine(place)
    cpu.write_words(0x2000, MASK, MASK, MASK, MASK)

    def run(name: str, *stack: int, **registers: int) -> None:
        outcome = cpu.run(cpu.rom(ROM.offset(name)), (cpu.landing, *stack), registers)
        assert outcome.landed and outcome.esp == cpu.stack + 4

    run("SetPxE", eax=0x12345067, edx=0x2000, ecx=1)
    run("SetPxELong", 1, eax=0x89ABC067, edx=1, ecx=0x2008)
    stored = (0x12345067, MASK, 0x89ABC067, 1)
    assert cpu.read_words(0x2000, 4) == stored
    for name in ("UpdatePxE", "UpdatePxELong", "ReleasePage", "SetLazyMode", "IODelay"):
        run(name, eax=0x2000, edx=1)
    run("AllocatePage", 0, 0, eax=2, edx=1)
    run("SetLinearMapping", 0, eax=0, edx=0x2000, ecx=1)
    assert cpu.read_words(0x2000, 4) == stored


def test_words_are_dwords_of_their_own() -> None:
    """Those of 64 bits take two."""
    wide = {"HERTZ", "REAL", "AVAILABLE", "STOLEN"}
    taken = [at + part for name, at in FLAVOUR.words.items() for part in ((0, 4) if name in wide else (0,))]
    assert sorted(taken) == list(range(0, 4 * len(taken), 4))


def test_what_is_not_offered() -> None:
    """The visible list of what this hypervisor leaves to native instructions."""
    assert {row.name for row in abi.CALLS if ROM.calls[row.number][0] == Reloc.NONE} == {"SetCallbacks"}
