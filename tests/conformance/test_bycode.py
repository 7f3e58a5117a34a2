# SPDX-License-Identifier: GPL-2.0-only
"""A ROM whose hypervisor is not here: what header, answers and code tell is decided, the rest is skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.conformance.test_hostile_roms import ROMS, code
from vmi import abi
from vmi.conformance import runner, suite
from vmi.conformance.runner import AWAY, Result
from vmi.conformance.selection import Selection
from vmi.conformance.subject import Environment
from vmi.conformance.suite import Target
from vmi.conformance.verdict import Verdict
from vmi.rom.build import PRODUCT, build_flavour
from vmi.rom.flavours import get
from vmi.rom.template import Template, body

CODE = Selection(("*/by its code", "ROM/*", "GetReloc/*", "SetCallbacks/*")).pick(suite.all_cases())
HOSTILE = [case for case in CODE if case.subject in ("ROM", "Init", "GetReloc", "GetCR3", "SetCallbacks")]


def foreign(change: Callable[[bytearray], None] | None = None, **sources: str) -> bytes:
    """Our ROM under another's name, so that nothing here answers it; with other code for calls."""
    flavour = get("vmware")
    templates: dict[str, Template] = {name: body(source) for name, source in sources.items()}
    rom = build_flavour(replace(flavour, templates={**flavour.templates, **templates}))
    image = bytearray(rom.image)
    at = image.index(PRODUCT.encode())
    image[at : at + 3] = b"His"
    if change is not None:
        change(image)
    if image:
        image[-1] = (image[-1] - sum(image)) & 0xFF
    return bytes(image)


def results(rom: bytes, cases: list[suite.Case] = CODE) -> dict[str, Result]:
    """What cases come to on a ROM."""
    target = Target("theirs", rom)
    return {result.case.name: result for result in runner.run(cases, target.make, Environment())}


def test_what_can_be_told_is_and_the_rest_is_skipped() -> None:
    found = results(foreign(), list(suite.all_cases()))
    assert {result.verdict for result in found.values()} == {Verdict.PASS, Verdict.SKIP}
    assert found["SetCR3/by its code"].verdict is found["SetCR3/relocation"].verdict is Verdict.PASS
    assert found["ROM/found"].verdict is found["GetReloc/calls that go together"].verdict is Verdict.PASS
    skipped = found["IRET/fault at the site"]
    assert skipped.reasons == (f"{AWAY}: VMI_Init calls out by int 0x82 at 0x328",)
    assert all(result.case.alone for result in found.values() if result.verdict is Verdict.PASS)
    assert sum(result.verdict is Verdict.PASS for result in found.values()) > 150


@pytest.mark.parametrize("flavour", ["native", "vmware"])
def test_our_own_roms_have_all_they_need(flavour: str) -> None:
    made = results(build_flavour(get(flavour)).image)
    assert all(result.verdict.good for result in made.values())
    assert not any(AWAY in reason for result in made.values() for reason in result.reasons)


SEEDED = {
    "a register": (
        {"SetCR2": "test eax, eax\njz short @out\nret\n@out: xor ebx, ebx\nret"},
        "SetCR2/by its code",
        "EBX must survive, but the instruction at ",
    ),
    "a segment": (
        {"SetCR2": "mov ecx, 0\nmov es, ecx\nret"},
        "SetCR2/by its code",
        "ES must survive, but the instruction at ",
    ),
    "the wrong order": (
        {"SetCR2": "push esi\npush edi\nmov esi, eax\nmov edi, eax\npop esi\npop edi\nret"},
        "SetCR2/by its code",
        "ESI must survive, but has another value when the code returns at ",
    ),
    "the stack": ({"GetTR": "push eax\npop ecx\npop ecx\nret"}, "GetTR/by its code", "at the return at "),
    "arguments": ({"WriteIDTEntry": "ret 8"}, "WriteIDTEntry/by its code", "the return at "),
    "the direction": (
        {"GetTR": "std\nmov eax, 0x28\nret"},
        "GetTR/by its code",
        "the direction flag must survive, but the instruction at ",
    ),
    "a loop": ({"GetTR": "@a: jmp short @a"}, "GetTR/by its code", "no way through its code comes to an end"),
    "one place": (
        {"GetTR": "mov eax, dword ptr ds:[0xc2000]\nret"},
        "Init/by its code",
        "code must work anywhere, but the instruction at ",
    ),
}


@pytest.mark.parametrize("name", SEEDED)
def test_what_code_does_wrong_is_found(name: str) -> None:
    sources, case, sentence = SEEDED[name]
    result = results(foreign(**sources))[case]
    assert result.verdict is Verdict.FAIL and result.reasons[0].startswith(sentence), result.reasons


def test_an_entry_that_writes_to_its_own_image_is_found() -> None:
    rom = foreign(code(abi.INIT_OFFSET, "e800000000588800c3"))
    result = results(rom)["Init/by its code"]
    assert result.verdict is Verdict.FAIL
    assert "it must not write to the ROM's memory, but the instruction at 0x86 does" in result.reasons


@pytest.mark.parametrize(
    "text", ["0f01c1c3", "0f01d9c3", "0f34", "9a000000001000c3", "ff1500f0ffffc3", "e8ffffff70c3"]
)
def test_ways_to_call_out(text: str) -> None:
    rom = bytearray(build_flavour(get("native")).image)
    code(abi.INIT_OFFSET, "e9" + (0xE00 - abi.INIT_OFFSET - 5).to_bytes(4, "little").hex())(rom)
    code(0xE00, text)(rom)
    rom[-1] = (rom[-1] - sum(rom)) & 0xFF
    away = results(bytes(rom), list(Selection(("GetCR3/*",)).pick(suite.all_cases())))
    assert away["GetCR3/by its code"].verdict is Verdict.PASS
    convention = away["GetCR3/convention 0.0"]
    assert convention.verdict is Verdict.SKIP and convention.reasons[0].startswith(AWAY)


@pytest.mark.parametrize("name", ROMS)
def test_a_hostile_rom_without_its_hypervisor_gets_its_verdict(name: str) -> None:
    found = results(foreign(ROMS[name]), HOSTILE)
    assert all(result.verdict is not Verdict.ERROR for result in found.values())
    assert not all(result.verdict.good for result in found.values()) or name in _QUIET


#: What these do wrong shows when VMI_Init runs, or is no mistake of a ROM's code that could be read.
_QUIET = {
    "VMI_Init does what nobody can",
}
