# SPDX-License-Identifier: GPL-2.0-only
"""Every adaptor against the instruction it stands for, on a processor, from random states.

The oracle is the native instruction itself. The ROM is the nastiest one that the ABI allows: each call
does what the native instruction does, then spoils every register and flag that it may. The instructions
are all that the decoder knows for the forms in the table, with every shape of operand.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Instruction, OpKind, Register, RegisterExt

from tests.patcher import reference_rom
from tests.patcher.bench import (
    ADAPTOR,
    ARITHMETIC,
    CODE,
    CODE_SELECTOR,
    DIRECTION,
    FS_BASE,
    GS_BASE,
    INTERRUPT,
    ROM,
    SEEN,
    STACK_LOW,
    Bench,
    Outcome,
    State,
    bench,
    jump,
)
from tests.patcher.encodings import all_forms, decode, some, with_adaptors
from tests.patcher.fitting import NAMES, address_of, fitting_state, unplayable
from tests.patcher.reference_rom import run_patched
from vmi import abi
from vmi.patcher.adaptors import JUMP_OK, Refused, choose
from vmi.patcher.forms import PAGE_TABLE_FORMS, Form, classify
from vmi.patcher.model import Site
from vmi.rom.assemble import assemble

NX = 1 << 20

# Where this processor can't play the instruction, or plays it with another result than any ROM.
ORACLES = {
    "rdtsc": assemble(reference_rom.FAKE_TIME).code,
    "rdpmc": assemble(reference_rom.FAKE_TIME).code,
    "sti;hlt": b"\xfb",
}
UPWARDS = "The direction flag may be set, and the call goes upwards only."
NO_FLAT_ADDRESS = "The operand is addressed through FS or GS, and the call takes a flat address."
NO_FLAT_BUFFER = "The buffer is addressed through FS or GS, and the call takes a flat address."
TO_ESP = "The result goes to the stack pointer."
FORMS = {name: row for name, row in with_adaptors().items() if name not in PAGE_TABLE_FORMS}


def site_of(
    form: Form, raw: bytes, live: bool = True, dead: tuple[str, ...] = (), direction: bool = False
) -> Site:
    return Site(
        CODE, raw, form.name, form.call, True, False, live, dead, inline=form.inline, direction=direction
    )


def compare(form: Form, raw: bytes, rng: random.Random, variants: int = 2) -> str:
    """Run one encoding both ways; gives the sentence if it is refused."""
    insn = decode(raw)
    direction = rng.random() < 0.3
    state = fitting_state(form.name, insn, rng, direction)
    expected: Outcome | None = None
    for _ in range(variants):
        live = rng.random() < 0.6
        dead = tuple(name for name in ("eax", "ecx", "edx") if rng.random() < 0.3)
        site = site_of(form, raw, live, dead, direction)
        try:
            adaptor = choose(site)
        except Refused as reason:
            return str(reason)
        if unplayable(form.name, insn):
            continue
        if expected is None:
            native = ORACLES.get(form.name, raw)
            expected = bench().run({CODE: native}, state, CODE, CODE + len(native))
        found = run_patched(site, adaptor, state, rng)
        flags = live or form.name.startswith("popf")
        assert found.less(dead, flags) == expected.less(dead, flags), f"{insn}, {site}, {adaptor}"
    return ""


@pytest.mark.parametrize("name", sorted(set(FORMS) - JUMP_OK))
def test_an_adaptor_does_what_the_instruction_does(name: str) -> None:
    form, rows = FORMS[name]
    rng = random.Random(name)
    refused = Counter(compare(form, raw, rng) for raw in some(rows, 60))
    assert set(refused) <= {"", UPWARDS, NO_FLAT_ADDRESS, NO_FLAT_BUFFER, TO_ESP}
    assert refused[""] * 2 > refused.total() - refused[UPWARDS]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_adaptor_does_so_from_any_state(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(set(FORMS) - JUMP_OK)))
    form, rows = FORMS[name]
    raw = data.draw(st.sampled_from(rows))
    compare(form, raw, random.Random(data.draw(st.integers(0, 1 << 32))))


@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_shape_has_an_adaptor_or_a_stated_reason(name: str) -> None:
    form, rows = FORMS[name]
    allowed = {NO_FLAT_ADDRESS, NO_FLAT_BUFFER, TO_ESP}
    for raw in rows:
        try:
            choose(site_of(form, raw))
        except Refused as reason:
            insn = decode(raw)
            assert str(reason) in allowed, insn
            through = Register.FS in (segment := insn.segment_prefix,) or segment == Register.GS
            to_esp = insn.op0_register in (Register.ESP, Register.SP)
            assert {NO_FLAT_ADDRESS: through, NO_FLAT_BUFFER: through, TO_ESP: to_esp}[str(reason)], insn


def test_every_form_of_the_abi_table_is_tried() -> None:
    assert set(abi.BY_INSTRUCTION) <= set(FORMS)
    assert set(FORMS) >= JUMP_OK


def site(source: str, live: bool = False, dead: tuple[str, ...] = (), direction: bool = False) -> Site:
    raw = assemble(source).code
    form = next(form for form, rows in with_adaptors().values() if raw in rows)
    return site_of(form, raw, live, dead, direction)


DIRECT = [
    ("cli", ()),
    ("sti", ()),
    ("iretd", ()),
    ("sysexit", ()),
    ("out dx, al", ()),
    ("in eax, dx", ()),
    ("in ax, dx", ()),
    ("in al, dx", ()),
    ("rep outsd", ()),
    ("cpuid", ()),
    ("wbinvd", ("eax", "ecx", "edx")),
    ("rdmsr", ("ecx",)),
]


@pytest.mark.parametrize(("source", "dead"), DIRECT)
def test_where_operands_fit_the_slot_calls_the_rom_directly(source: str, dead: tuple[str, ...]) -> None:
    assert choose(site(source, dead=dead)) is None


@pytest.mark.parametrize("source", ["cli", "in al, dx", "cpuid"])
def test_the_direction_flag_needs_an_adaptor(source: str) -> None:
    assert choose(site(source, direction=True)) is not None


@pytest.mark.parametrize("source", ["insb", "rep outsd"])
def test_strings_that_may_go_downwards_are_left_alone(source: str) -> None:
    with pytest.raises(Refused) as caught:
        choose(site(source, direction=True))
    assert str(caught.value) == UPWARDS


BELOW = "The operand lies below the stack pointer, where the call's own frame goes."


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ("0f20dc", TO_ESP),  # mov esp, cr3
        ("0f00c4", TO_ESP),  # sldt esp
        ("8cd4", TO_ESP),  # mov esp, ss
        ("640f011510000000", NO_FLAT_ADDRESS),  # lgdt fs:[16]
        ("650f0138", NO_FLAT_ADDRESS),  # invlpg gs:[eax]
        ("0f014424f8", BELOW),  # sgdt [esp-8]
        ("0f004424fc", BELOW),  # sldt [esp-4]
        ("8c4c24fe", BELOW),  # mov [esp-2], cs
        ("646e", NO_FLAT_BUFFER),  # outsb fs:[esi]
    ],
)
def test_operands_that_nothing_can_stand_for_are_refused(raw: str, sentence: str) -> None:
    code = bytes.fromhex(raw)
    form = all_forms()[next(name for name, (_, rows) in FORMS.items() if _same_form(name, code))][0]
    with pytest.raises(Refused) as caught:
        choose(site_of(form, code))
    assert str(caught.value) == sentence


def _same_form(name: str, raw: bytes) -> bool:
    form = classify(decode(raw))
    return form is not None and form.name == name


def test_a_site_without_a_call_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        choose(Site(CODE, b"\xcb", "retf", None, False, True))
    assert str(caught.value) == "No VMI call stands for this instruction."


@pytest.mark.parametrize(("raw", "size"), [(b"\x9c", 4), (b"\x66\x9c", 2)])
@pytest.mark.parametrize("answer", [0, INTERRUPT])
def test_pushf_shows_the_virtual_interrupt_flag_not_the_real_one(raw: bytes, size: int, answer: int) -> None:
    """At CPL 1 the real IF is always 1; the ROM knows the virtual one."""
    form = FORMS["pushf" if size == 4 else "pushfw"][0]
    adaptor = choose(site_of(form, raw))
    assert adaptor is not None and adaptor.hole is not None
    state = fitting_state(form.name, decode(raw), random.Random(7), direction=False)
    state = replace(state, flags=2 | INTERRUPT | 0x41)
    code = bytearray(adaptor.code)
    code[adaptor.hole : adaptor.hole + 5] = jump(0xE8, ADAPTOR + adaptor.hole, ROM)
    rom = assemble(f"mov eax, {answer}\ncmp eax, 1\nret", ROM).code
    slot = {CODE: jump(0xE8, CODE, ADAPTOR), ADAPTOR: bytes(code), ROM: rom}
    found = bench().run(slot, state, CODE, CODE + 5)
    esp = state.registers["esp"] - size
    assert found.registers == state.with_registers(esp=esp).registers
    image = int.from_bytes(found.memory[esp - SEEN : esp - SEEN + size], "little")
    assert image & ~0x3000 == 0x43 | answer
    assert found.flags == 0x43 | INTERRUPT


# --- calls that don't come back -----------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False])
def test_iret_takes_the_frame_behind_the_return_address(live: bool) -> None:
    form = FORMS["iret"][0]
    assert choose(site_of(form, b"\xcf", live)) is None
    rng = random.Random(3)
    state = fitting_state(form.name, decode(b"\xcf"), rng, direction=False)
    esp = state.registers["esp"]
    frame = struct.pack("<III", CODE + 0x100, CODE_SELECTOR, 2 | INTERRUPT | ARITHMETIC | DIRECTION)
    at = esp - STACK_LOW
    state = replace(state, stack=state.stack[:at] + frame + state.stack[at + len(frame) :])
    native = bench().run({CODE: b"\xcf"}, state, CODE, CODE + 0x100)
    rom = assemble("lea esp, [esp+4]\niretd", ROM).code
    found = bench().run({CODE: jump(0xE8, CODE, ROM), ROM: rom}, state, CODE, CODE + 0x100)
    assert found == native
    assert found.registers["esp"] == esp + 12


def test_sysexit_leaves_with_the_registers_of_the_instruction() -> None:
    form, raw = FORMS["sysexit"][0], b"\x0f\x35"
    assert choose(site_of(form, raw)) is None
    state = fitting_state(form.name, decode(raw), random.Random(4), direction=False)
    state = state.with_registers(edx=CODE + 0x100, ecx=STACK_LOW + 0x100)
    native = Bench(0).run({CODE: raw}, state, CODE, CODE + 0x100)
    rom = assemble("sti\nsysexit", ROM).code
    found = Bench(0).run({CODE: jump(0xE8, CODE, ROM), ROM: rom}, state, CODE, CODE + 0x100)
    assert found.flags == native.flags | INTERRUPT
    assert found.less((), False)[0] == native.less((), False)[0]
    assert found.registers["esp"] == STACK_LOW + 0x100


# --- CPUID without NX ---------------------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("direction", [True, False])
@pytest.mark.parametrize("leaf", [0, 1, 4, 0x80000000, 0x80000001, 0x80000002])
def test_cpuid_can_hide_nx_and_nothing_else(leaf: int, live: bool, direction: bool) -> None:
    form = FORMS["cpuid"][0]
    assert form.call is not None
    rng = random.Random(leaf)
    case = site_of(form, b"\x0f\xa2", live, direction=direction)
    adaptor = choose(case, hide_nx=True)
    state = fitting_state(form.name, decode(case.raw), rng, direction).with_registers(eax=leaf)
    expected = bench().run({CODE: case.raw}, state, CODE, CODE + 2)
    found = run_patched(case, adaptor, state, rng)
    if leaf == 0x80000001:
        assert expected.registers["edx"] & NX
        expected.registers["edx"] &= ~NX
    assert found.less((), live) == expected.less((), live)


# --- inline adaptors ----------------------------------------------------------------------------

INLINE = sorted(name for name, (form, _) in FORMS.items() if form.inline)


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("name", INLINE)
def test_ring_one_shows_as_ring_zero(name: str, ring: int) -> None:
    form, rows = FORMS[name]
    rng = random.Random(f"{name} {ring}")
    sizes = set()
    for raw in some(rows, 40):
        insn = decode(raw)
        state = fitting_state(name, insn, rng, direction=rng.random() < 0.3)
        dead = tuple(register for register in ("eax", "ecx", "edx") if rng.random() < 0.3)
        try:
            adaptor = choose(site_of(form, raw, dead=dead))
        except Refused as reason:
            assert str(reason) == TO_ESP
            continue
        assert adaptor is not None and adaptor.hole is None
        native = bench(ring).run({CODE: raw}, state, CODE, CODE + len(raw))
        slot = {CODE: jump(0xE8, CODE, ADAPTOR), ADAPTOR: adaptor.code}
        found = bench(ring).run(slot, state, CODE, CODE + 5)
        expected, size = shown_as_zero(insn, state, native) if ring == 1 else (native, 0)
        sizes.add(size)
        assert found.less(dead, True) == expected.less(dead, True), f"{insn}, {adaptor}"
    assert sizes == ({2, 4} if ring == 1 else {0})


def shown_as_zero(insn: Instruction, state: State, native: Outcome) -> tuple[Outcome, int]:
    """What ring 1 should see, and how many bytes of it were written: the selector's lowest bit is 0."""
    registers, memory = dict(native.registers), bytearray(native.memory)
    if insn.op_kind(0) == OpKind.REGISTER and insn.op_count == 2:
        name = NAMES[int(RegisterExt.full_register32(insn.op0_register))]
        assert registers[name] & 3 == 1
        registers[name] -= 1
        return replace(native, registers=registers), 4 if int(insn.op0_register) in NAMES else 2
    if insn.op_count == 2:
        at, size = address_of(insn, state.registers) - SEEN, 2
        at += {int(Register.FS): FS_BASE, int(Register.GS): GS_BASE}.get(int(insn.segment_prefix), 0)
    else:
        at, size = registers["esp"] - SEEN, -insn.stack_pointer_increment
    assert memory[at] & 3 == 1
    memory[at] -= 1
    return replace(native, memory=bytes(memory)), size
