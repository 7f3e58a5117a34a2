# SPDX-License-Identifier: GPL-2.0-only
"""Each sensitive instruction has the right form and effect, and no other one has any."""

from __future__ import annotations

import pytest
from iced_x86 import Decoder

from tests.patcher.encodings import all_forms, all_instructions
from vmi import abi
from vmi.patcher.forms import ALL_FORMS, Effect, Form, classify, pair

SILENT, TRAPS, HARMLESS = Effect.SILENT, Effect.TRAPS, Effect.HARMLESS

WITH_CALL = [
    ("0fa2", "cpuid", SILENT),
    ("0f30", "wrmsr", TRAPS),
    ("0f32", "rdmsr", TRAPS),
    ("0f0110", "lgdt m", TRAPS),
    ("0f011578563412", "lgdt m", TRAPS),
    ("0f0118", "lidt m", TRAPS),
    ("0f00d0", "lldt rm", TRAPS),
    ("660f00d0", "lldt rm", TRAPS),
    ("0f0010", "lldt rm", TRAPS),
    ("0f00d8", "ltr rm", TRAPS),
    ("0f0100", "sgdt m", SILENT),
    ("0f0108", "sidt m", SILENT),
    ("0f00c0", "sldt rm", SILENT),
    ("660f00c0", "sldt rm", SILENT),
    ("0f00c8", "str rm", SILENT),
    ("0f22c0", "mov cr0,r", TRAPS),
    ("0f22d0", "mov cr2,r", TRAPS),
    ("0f22df", "mov cr3,r", TRAPS),
    ("0f22e1", "mov cr4,r", TRAPS),
    ("0f20c6", "mov r,cr0", TRAPS),
    ("0f20d0", "mov r,cr2", TRAPS),
    ("0f20d8", "mov r,cr3", TRAPS),
    ("0f20e0", "mov r,cr4", TRAPS),
    ("0f09", "wbinvd", TRAPS),
    ("0f23f8", "mov dr,r", TRAPS),
    ("0f21f0", "mov r,dr", TRAPS),
    ("0f33", "rdpmc", TRAPS),
    ("0f31", "rdtsc", SILENT),
    ("0f06", "clts", TRAPS),
    ("fb", "sti", TRAPS),
    ("fa", "cli", TRAPS),
    ("9c", "pushf", SILENT),
    ("9d", "popf", SILENT),
    ("cf", "iret", SILENT),
    ("0f35", "sysexit", TRAPS),
    ("0f0138", "invlpg m", TRAPS),
    ("ed", "in eax", TRAPS),
    ("e570", "in eax", TRAPS),
    ("ec", "in al", TRAPS),
    ("e470", "in al", TRAPS),
    ("66ed", "in ax", TRAPS),
    ("66e570", "in ax", TRAPS),
    ("ef", "out eax", TRAPS),
    ("e770", "out eax", TRAPS),
    ("ee", "out al", TRAPS),
    ("e670", "out al", TRAPS),
    ("66ef", "out ax", TRAPS),
    ("66e770", "out ax", TRAPS),
    ("6d", "insd", TRAPS),
    ("f36d", "insd", TRAPS),
    ("6c", "insb", TRAPS),
    ("666d", "insw", TRAPS),
    ("f3666d", "insw", TRAPS),
    ("6f", "outsd", TRAPS),
    ("f36f", "outsd", TRAPS),
    ("6e", "outsb", TRAPS),
    ("666f", "outsw", TRAPS),
]

BY_NAME = [
    ("669c", "pushfw", SILENT, "GetInterruptMask"),
    ("669d", "popfw", SILENT, "SetInterruptMask"),
    ("0f01e0", "smsw rm", SILENT, "GetCR0"),
    ("f30f09", "wbnoinvd", TRAPS, "WBINVD"),
]

INLINE = [
    ("8cc8", "mov r,cs"),
    ("668cc8", "mov r,cs"),
    ("8c08", "mov r,cs"),
    ("8cd0", "mov r,ss"),
    ("0e", "push cs"),
    ("16", "push ss"),
    ("660e", "push cs"),
]

WITHOUT_CALL = [
    ("0f02c1", "lar r,rm", SILENT),
    ("0f03c1", "lsl r,rm", SILENT),
    ("9a785634120800", "call far", SILENT),
    ("ff18", "call far", SILENT),
    ("66cf", "iretw", SILENT),
    ("660f0100", "sgdtw m", SILENT),
    ("660f0108", "sidtw m", SILENT),
    ("660f0110", "lgdtw m", TRAPS),
    ("660f0118", "lidtw m", TRAPS),
    ("0f01f9", "rdtscp", SILENT),
    ("cb", "retf", TRAPS),
    ("ca0400", "retf", TRAPS),
    ("8ed0", "mov ss,r", TRAPS),
    ("17", "pop ss", TRAPS),
    ("0fb220", "lss r,m", TRAPS),
    ("0f01f0", "lmsw rm", TRAPS),
    ("0f08", "invd", TRAPS),
    ("0f01d1", "xsetbv", TRAPS),
    ("f4", "hlt", TRAPS),
    ("676c", "insb a16", TRAPS),
    ("676f", "outsd a16", TRAPS),
    ("0f01ca", "clac", TRAPS),
    ("0f00e0", "verr rm", HARMLESS),
    ("0f00e8", "verw rm", HARMLESS),
    ("63c1", "arpl rm,r", HARMLESS),
    ("ea785634120800", "jmp far", HARMLESS),
    ("ff28", "jmp far", HARMLESS),
]

NO_FORM = [
    "90",  # nop
    "8ed8",  # mov ds,eax
    "8ee0",  # mov fs,eax
    "8cd8",  # mov eax,ds
    "8ce8",  # mov eax,gs
    "1e",  # push ds
    "1f",  # pop ds
    "0fa1",  # pop fs
    "cc",  # int3: padding and debugging
    "cd80",  # int 0x80
    "c3",  # ret
    "e800000000",  # call near
    "ff10",  # call near, indirect
    "0f0b",  # ud2
    "f390",  # pause
]


def form_of(raw: str) -> Form | None:
    insn = Decoder(32, bytes.fromhex(raw)).decode()
    assert insn.len * 2 == len(raw)
    return classify(insn)


@pytest.mark.parametrize(("raw", "name", "effect"), WITH_CALL)
def test_a_form_with_a_call(raw: str, name: str, effect: Effect) -> None:
    form = form_of(raw)
    assert form is not None
    assert (form.name, form.effect) == (name, effect)
    assert form.call is abi.BY_INSTRUCTION[name]


@pytest.mark.parametrize(("raw", "name", "effect"), WITHOUT_CALL)
def test_a_form_without_a_call(raw: str, name: str, effect: Effect) -> None:
    form = form_of(raw)
    assert form is not None
    assert (form.name, form.effect, form.call) == (name, effect, None)


@pytest.mark.parametrize(("raw", "name", "effect", "call"), BY_NAME)
def test_a_form_that_only_its_call_is_named_for(raw: str, name: str, effect: Effect, call: str) -> None:
    form = form_of(raw)
    assert form is not None and form.call is not None
    assert (form.name, form.effect, form.call.name, form.inline) == (name, effect, call, False)


@pytest.mark.parametrize(("raw", "name"), INLINE)
def test_a_form_that_needs_no_call(raw: str, name: str) -> None:
    form = form_of(raw)
    assert form is not None
    assert (form.name, form.effect, form.call, form.inline) == (name, SILENT, None, True)


@pytest.mark.parametrize("raw", NO_FORM)
def test_an_ordinary_instruction_has_no_form(raw: str) -> None:
    assert form_of(raw) is None


def test_every_instruction_of_the_abi_has_a_case() -> None:
    covered = {name for _, name, _ in WITH_CALL} | {"sti;hlt"}
    assert covered == set(abi.BY_INSTRUCTION)


def test_every_privileged_instruction_of_the_decoder_has_a_form() -> None:
    """Its own opinion is that of the manuals: what needs level 0, and what needs the I/O level."""
    missing = {str(insn) for insn in all_instructions() if insn.is_privileged and classify(insn) is None}
    assert missing == set()


def test_the_decoder_knows_every_form() -> None:
    assert set(all_forms()) == set(ALL_FORMS)
    for name, (form, _) in all_forms().items():
        assert form == ALL_FORMS[name]


def test_only_interrupt_shadow_instructions_say_so() -> None:
    shadows = {name for raw, name, _ in WITH_CALL + WITHOUT_CALL if (form_of(raw) or Form("", TRAPS)).shadow}
    assert shadows == {"sti", "mov ss,r", "pop ss"}


def test_sti_and_hlt_are_one_site() -> None:
    sti, hlt, cli = form_of("fb"), form_of("f4"), form_of("fa")
    assert sti is not None and hlt is not None and cli is not None
    both = pair(sti, hlt)
    assert both is not None and both.call is abi.BY_INSTRUCTION["sti;hlt"]
    assert pair(cli, hlt) is None
    assert pair(sti, cli) is None
    assert pair(sti, None) is None
