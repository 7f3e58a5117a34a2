# SPDX-License-Identifier: GPL-2.0-only
"""Stores to page-table entries: memory, registers and flags are as after the store, and the call was told."""

from __future__ import annotations

import random

import pytest
from iced_x86 import MemorySizeExt, Register

from tests.patcher.bench import CODE, SEEN, bench
from tests.patcher.encodings import decode, some, stores
from tests.patcher.fitting import address_of, fitting_state
from tests.patcher.reference_rom import run_patched
from vmi import abi
from vmi.abi import UpdateFlag
from vmi.patcher.adaptors import Refused, choose
from vmi.patcher.forms import PAGE_TABLE_FORMS, SET_PTE, UPDATE_PTE, UPDATE_PTE_LONG, Form, page_table_form
from vmi.patcher.model import Site

ESP_VALUE = "The value is the stack pointer, which is another one in an adaptor."


def site_of(form: Form, raw: bytes, rng: random.Random) -> Site:
    dead = tuple(name for name in ("eax", "ecx", "edx") if rng.random() < 0.3)
    live, direction = rng.random() < 0.6, rng.random() < 0.2
    return Site(CODE, raw, form.name, form.call, False, True, live, dead, direction=direction)


def compare(form: Form, raw: bytes, rng: random.Random) -> str:
    """Run one store both ways; gives the sentence if it is refused."""
    insn = decode(raw)
    site = site_of(form, raw, rng)
    state = fitting_state(form.name, insn, rng, site.direction)
    try:
        adaptor = choose(site)
    except Refused as reason:
        return str(reason)
    expected = bench().run({CODE: raw}, state, CODE, CODE + len(raw))
    found = run_patched(site, adaptor, state, rng)
    assert found.less(site.dead, site.flags_live) == expected.less(site.dead, site.flags_live), (
        f"{insn}, {site}, {adaptor}"
    )
    entry = 8 if form is UPDATE_PTE_LONG else 4
    size = MemorySizeExt.size(insn.memory_size)
    address = address_of(insn, state.registers)
    if size < entry:
        address &= -entry
    at = address - SEEN
    told = (int.from_bytes(expected.memory[at + n : at + n + 4], "little") for n in (0, 4))
    values = (0, 0) if form is SET_PTE else tuple(told)
    assert found.log == (address, *values, UpdateFlag.PT), f"{insn}, {adaptor}"
    return ""


@pytest.mark.parametrize("name", PAGE_TABLE_FORMS)
def test_a_store_is_done_and_reported(name: str) -> None:
    form, rows = stores()[name]
    rng = random.Random(name)
    refused = [compare(form, raw, rng) for raw in some(rows, 900)]
    assert set(refused) <= ({"", ESP_VALUE} if form is not SET_PTE else {""})
    assert refused.count("") * 10 > len(refused) * 9


@pytest.mark.parametrize("name", PAGE_TABLE_FORMS)
def test_every_shape_has_an_adaptor_or_a_stated_reason(name: str) -> None:
    form, rows = stores()[name]
    for raw in rows[::4]:
        try:
            assert choose(Site(CODE, raw, name, form.call, False, True)) is not None
        except Refused as reason:
            assert str(reason) == ESP_VALUE
            assert decode(raw).op1_register in (Register.ESP, Register.SP)


CHOICES = [
    ("mov [eax], ecx", "8908", SET_PTE, UPDATE_PTE_LONG),
    ("mov [eax], esp", "8920", SET_PTE, UPDATE_PTE_LONG),
    ("mov dword [eax], 5", "c70005000000", SET_PTE, UPDATE_PTE_LONG),
    ("mov [0x12345678], eax", "a378563412", SET_PTE, UPDATE_PTE_LONG),
    ("mov [eax], cx", "668908", UPDATE_PTE, UPDATE_PTE_LONG),
    ("xchg [eax], ecx", "8708", UPDATE_PTE, UPDATE_PTE_LONG),
    ("lock and [eax], ecx", "f02108", UPDATE_PTE, UPDATE_PTE_LONG),
    ("lock cmpxchg8b [esi]", "f00fc70e", UPDATE_PTE, UPDATE_PTE_LONG),
    ("cmp [eax], ecx", "3908", None, None),
    ("test [eax], ecx", "8508", None, None),
    ("bt [eax], 1", "0fba2001", None, None),
    ("mov ecx, [eax]", "8b08", None, None),
    ("mov ecx, eax", "89c1", None, None),
    ("rep stosd", "f3ab", None, None),
    ("push eax", "50", None, None),
    ("nop", "90", None, None),
]


@pytest.mark.parametrize(("raw", "form", "long"), [c[1:] for c in CHOICES], ids=[c[0] for c in CHOICES])
def test_which_form_a_store_has(raw: str, form: Form | None, long: Form | None) -> None:
    insn = decode(bytes.fromhex(raw))
    assert page_table_form(insn) is form
    assert page_table_form(insn, long=True) is long


def test_the_forms_name_their_calls() -> None:
    calls = {name: form.call for name, form in PAGE_TABLE_FORMS.items()}
    assert calls == {
        "set pte": abi.BY_NAME["SetPxE"],
        "update pte": abi.BY_NAME["UpdatePxE"],
        "update pte long": abi.BY_NAME["UpdatePxELong"],
    }


FLAT = "The operand is addressed through FS or GS, and the call takes a flat address."
NOT_PLAIN = "It is no plain 32-bit store, so a report after it is the call to use."
NO_OPERAND = "It stores through no operand whose address can be given to the call."
BIT = "The number of the bit is in a register, so it may be in another entry."
BELOW = "The operand lies below the stack pointer, where the call's own frame goes."
REFUSALS = [
    ("mov fs:[eax], ecx", "648908", SET_PTE, FLAT),
    ("xchg [eax], ecx", "8708", SET_PTE, NOT_PLAIN),
    ("rep stosd", "f3ab", UPDATE_PTE, NO_OPERAND),
    ("cmpxchg8b [esi]", "0fc70e", UPDATE_PTE, "It stores 8 bytes, and an entry has 4."),
    ("movaps [eax], xmm0", "0f2900", UPDATE_PTE_LONG, "It stores 16 bytes, and an entry has 8."),
    ("pop [eax]", "8f00", UPDATE_PTE, "It moves the stack pointer."),
    ("btr [eax], ecx", "0fb308", UPDATE_PTE, BIT),
    ("xchg [eax], esp", "8720", UPDATE_PTE, ESP_VALUE),
    ("mov [eax], esp", "8920", UPDATE_PTE_LONG, ESP_VALUE),
    ("mov [esp-4], ecx", "894c24fc", SET_PTE, BELOW),
]


@pytest.mark.parametrize(("raw", "form", "sentence"), [c[1:] for c in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_stores_that_no_call_fits_are_refused(raw: str, form: Form, sentence: str) -> None:
    with pytest.raises(Refused) as caught:
        choose(Site(CODE, bytes.fromhex(raw), form.name, form.call, False, True))
    assert str(caught.value) == sentence
