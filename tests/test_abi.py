# SPDX-License-Identifier: GPL-2.0-only
"""The ABI table against hand-written lists, and against its own rules."""

from __future__ import annotations

import ast
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from vmi import abi

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

# Normal forms of all instructions that calls stand for, grouped as the calls are numbered.
FORMS = {
    *("cpuid", "wrmsr", "rdmsr", "lgdt m", "lldt rm", "lidt m", "ltr rm", "sgdt m", "sldt rm", "sidt m"),
    *("str rm", "mov cr0,r", "mov cr2,r", "mov cr3,r", "mov cr4,r", "mov r,cr0", "mov r,cr2", "mov r,cr3"),
    *("mov r,cr4", "wbinvd", "mov dr,r", "mov r,dr", "rdpmc", "rdtsc", "clts", "sti", "cli", "pushf"),
    *("popf", "iret", "sysexit", "sti;hlt", "invlpg m", "in eax", "in al", "in ax", "insd", "insb", "insw"),
    *("out eax", "out al", "out ax", "outsd", "outsb", "outsw"),
}

ROM_OFFSETS = {
    **{"rom_signature": 0x00, "rom_length": 0x02, "rom_entry": 0x03, "vrom_signature": 0x08},
    **{"api_version_min": 0x0C, "api_version_maj": 0x0D, "jump_slots": 0x0E, "virtual_top": 0x10},
    **{"license_offs": 0x16, "pci_header_offs": 0x18, "pnp_header_offs": 0x1A},
    **{"vmi_init": 0x80, "get_reloc": 0x88},
}

AP_OFFSETS = {
    **{"cr0": 0, "cr2": 4, "cr3": 8, "cr4": 12, "efer": 16, "eip": 24, "eflags": 28, "eax": 32, "ebx": 36},
    **{"ecx": 40, "edx": 44, "esp": 48, "ebp": 52, "esi": 56, "edi": 60, "cs": 64, "ss": 66, "ds": 68},
    **{"es": 70, "fs": 72, "gs": 74, "ldtr": 76, "gdtr_limit": 78, "gdtr_base": 80, "idtr_base": 84},
    **{"idtr_limit": 88, "pad": 90},
}


def every_call() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", abi.CALLS, ids=lambda call: call.name)


def short(places: tuple[str, ...]) -> str:
    texts = [f"[{abi.stack_offset(p)}]" if p.startswith("stack") else p for p in reversed(places)]
    return ":".join(texts)


def golden_line(call: abi.Call) -> str:
    into = ",".join(short(arg.places) for arg in call.args) or "-"
    out = ",".join(short(result.places) for result in call.results) or "-"
    held = {place for result in call.results for place in result.places}
    if not call.returns:
        clobbers = "none"
    elif set(call.clobbers) | held >= set(abi.STANDARD_CLOBBERS) and call.name != "CPUID":
        clobbers = "std"
    else:
        clobbers = ",".join((*call.clobbers, "flags"))
    return f"{call.number} {call.name} {into} {out} {clobbers}"


def test_table_equals_the_golden_list() -> None:
    lines = (GOLDEN / "abi_calls.txt").read_text(encoding="ascii").splitlines()
    assert [golden_line(call) for call in abi.CALLS] == [line for line in lines if not line.startswith("#")]


def test_numbers_equal_the_catalogue() -> None:
    found = list(ROOT.parent.glob("*/facts/vmi-abi.md"))
    if not found:
        pytest.skip("the call catalogue that the table was made from is not next to this checkout")
    section = found[0].read_text(encoding="utf-8").split("### 2.3 ")[1].split("\nNotes\n")[0]
    names: list[tuple[int, str]] = []
    for span, cell in re.findall(r"^\| (\d+(?:–\d+)?) \| ([A-Za-z0-9, ]+) \|", section, re.MULTILINE):
        first, _, last = span.partition("–")
        row = re.split(r"[, ]+", cell.strip())
        assert len(row) == int(last or first) - int(first) + 1
        names += enumerate(row, int(first))
    assert names == [(call.number, call.name) for call in abi.CALLS]


def test_calls_are_indexed_by_number_and_name() -> None:
    assert [call.number for call in abi.CALLS] == list(range(74))
    assert list(abi.BY_NAME.values()) == list(abi.CALLS)


def test_instruction_forms_are_the_agreed_ones_each_with_one_call() -> None:
    forms = [form for call in abi.CALLS for form in call.instructions]
    assert len(forms) == len(set(forms))
    assert set(forms) == FORMS == set(abi.BY_INSTRUCTION)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("popf", "SetInterruptMask"),
        ("sti;hlt", "Halt"),
        ("invlpg m", "InvalPage"),
        ("mov r,cr3", "GetCR3"),
        ("outsw", "OUTSW"),
        ("in al", "INB"),
    ],
)
def test_instruction_leads_to_its_call(form: str, name: str) -> None:
    assert abi.BY_INSTRUCTION[form].name == name


@every_call()
def test_regparm_arguments_fill_eax_edx_ecx_then_the_stack(call: abi.Call) -> None:
    if call.convention is not abi.Convention.REGPARM:
        assert (
            call.name in {"CPUID", "WRMSR", "RDMSR", "RDPMC", "IRET", "SYSEXIT"} or call.group is abi.Group.IO
        )
        return
    free = ["eax", "edx", "ecx"]
    pushed = 0
    for arg in call.args:
        words = 2 if arg.type == "u64" else 1
        if words <= len(free):
            expected = [free.pop(0) for _ in range(words)]
        else:
            expected = [f"stack{pushed + word}" for word in range(words)]
            pushed += words
            free = []  # as gcc: once an argument is on the stack, the rest follows it
        assert list(arg.places) == expected, arg.name
    for result in call.results:
        assert result.places == (("eax", "edx") if result.type == "u64" else ("eax",))
    assert call.stack_words == pushed


@every_call()
def test_operands_name_known_places_and_types(call: abi.Call) -> None:
    operands: list[abi.Arg | abi.Result] = [*call.args, *call.results]
    for operand in operands:
        assert operand.type in {"u8", "u16", "u32", "u64", "bool", "ptr"}
        assert len(operand.places) == (2 if operand.type == "u64" else 1)
        for place in operand.places:
            assert place in abi.REGISTERS or abi.stack_offset(place) >= 4
        assert operand.meaning
    assert not set(call.clobbers) & {place for result in call.results for place in result.places}
    assert not set(call.clobbers) & set(call.preserves)


@every_call()
def test_only_results_and_standard_registers_may_change(call: abi.Call) -> None:
    changed = set(abi.REGISTERS) - set(call.preserves)
    allowed = set(abi.STANDARD_CLOBBERS) | {place for result in call.results for place in result.places}
    assert changed <= allowed


@pytest.mark.parametrize("name", ["EnableInterrupts", "DisableInterrupts", "SetInterruptMask"])
def test_interrupt_flag_calls_change_no_register(name: str) -> None:
    assert set(abi.BY_NAME[name].preserves) == set(abi.REGISTERS)


def test_reading_the_interrupt_flag_changes_only_eax() -> None:
    assert set(abi.REGISTERS) - set(abi.BY_NAME["GetInterruptMask"].preserves) == {"eax"}


@every_call()
def test_kind_lazy_mode_and_relocations_agree(call: abi.Call) -> None:
    assert (call.kind is abi.Kind.BATCHABLE) == (call.lazy is not abi.LazyMode.NONE)
    assert (abi.Reloc.JUMP_REL in call.relocations) == (call.name in {"IRET", "SYSEXIT"})
    assert abi.Reloc.NOP not in call.relocations or not call.results
    assert list(call.relocations) == sorted(set(call.relocations))
    assert 1 <= call.level < len(abi.LEVELS)


def test_handlers_may_run_inside_the_calls_that_set_the_interrupt_flag() -> None:
    assert {call.name for call in abi.CALLS if call.delivers} == {
        *("EnableInterrupts", "SetInterruptMask", "Halt", "IRET", "SYSEXIT")
    }


@every_call()
def test_requirements_are_numbered_after_their_call(call: abi.Call) -> None:
    assert 1 <= len(call.requirements) <= 12
    for position, requirement in enumerate(call.requirements, 1):
        assert requirement.id == f"VMI-{call.name}-{position:02}"
        assert (requirement.level, requirement.subject) == (call.level, call.name)


def test_requirement_ids_are_unique_and_permanent() -> None:
    owners = [*(topic.requirements for topic in abi.TOPICS), *(call.requirements for call in abi.CALLS)]
    ids = [requirement.id for requirements in owners for requirement in requirements]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"VMI-[A-Za-z0-9]+-\d\d", identifier) for identifier in ids)
    assert list(abi.ALL_REQUIREMENTS) == ids
    for text in (requirement.text for requirement in abi.ALL_REQUIREMENTS.values()):
        assert text[0].isupper() and text.endswith("."), text
    published = (GOLDEN / "requirement_ids.txt").read_text(encoding="ascii").split()
    assert set(published) - set(ids) == set(), "ids are permanent: never take one away"
    assert set(ids) - set(published) == set(), "add new ids to tests/golden/requirement_ids.txt"


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        (abi.ROM_HEADER, 0x90),
        (abi.PCI_HEADER, 24),
        (abi.PNP_HEADER, 18),
        (abi.RELOC_INFO, 8),
        (abi.DESCRIPTOR_POINTER, 6),
        (abi.AP_STATE, 92),
    ],
)
def test_layouts_have_no_gap_and_the_right_size(fields: tuple[abi.Field, ...], size: int) -> None:
    assert fields[0].offset == 0
    for field, following in pairwise(fields):
        assert field.offset + field.size == following.offset, field.name
    assert fields[-1].offset + fields[-1].size == size
    assert len({field.name for field in fields}) == len(fields)


def test_layout_offsets_are_those_of_the_interface() -> None:
    rom = {field.name: field.offset for field in abi.ROM_HEADER}
    assert {name: rom[name] for name in ROM_OFFSETS} == ROM_OFFSETS
    assert {field.name: field.offset for field in abi.AP_STATE} == AP_OFFSETS
    assert (abi.ROM_HEADER_SIZE, abi.AP_STATE_SIZE) == (0x90, 92)
    assert (rom["vmi_init"], rom["get_reloc"]) == (abi.INIT_OFFSET, abi.GET_RELOC_OFFSET)
    assert abi.VROM_SIGNATURE.to_bytes(4, "little") == b"cVmi"
    assert abi.ROM_SIGNATURE.to_bytes(2, "little") == b"\x55\xaa"


def test_flag_values_are_those_of_the_interface() -> None:
    assert [int(kind) for kind in abi.Reloc] == [0, 1, 2, 3]
    assert [int(flag) for flag in abi.PageFlag] == [1, 2, 4, 8, 0x10, 0x20, 0x40]
    assert [int(flag) for flag in abi.UpdateFlag] == [1, 2, 4, 8, 0x10, 0x20]
    assert [int(flag) for flag in abi.FlushFlag] == [1, 2]
    assert [int(flag) for flag in abi.AlarmFlag] == [0x100, 0x10000]
    assert [int(mode) for mode in abi.LazyMode] == [0, 1, 2]
    assert [int(counter) for counter in abi.Counter] == [0, 1, 2]


def test_every_constant_has_a_meaning() -> None:
    for constants in abi.CONSTANTS:
        assert [value for value, _ in constants.meanings] == [int(member) for member in constants.kind]
        assert all(meaning for _, meaning in constants.meanings)


def test_module_imports_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / "vmi" / "abi.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in froms)
    imported |= {node.module or "" for node in froms}
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == set()


@pytest.mark.parametrize("wanted", ["SetCR3", "setcr3", " SETCR3 ", "17", "0x11", "0b10001"])
def test_find_takes_a_name_in_any_case_or_a_number(wanted: str) -> None:
    assert abi.find(wanted) is abi.BY_NAME["SetCR3"]


@pytest.mark.parametrize("wanted", ["", "SetCR1", "74", "-1", "1.5", "0x4a"])
def test_find_refuses_what_is_no_call(wanted: str) -> None:
    with pytest.raises(KeyError) as caught:
        abi.find(wanted)
    assert caught.value.args == (wanted,)


def test_suggest_offers_close_names() -> None:
    assert "SetCR3" in abi.suggest("setcr33")
    assert abi.suggest("EnableInterupts")[0] == "EnableInterrupts"
    assert abi.suggest("xyzzy") == ()


def test_stack_places() -> None:
    assert [abi.stack_offset(place) for place in ("stack0", "stack1")] == [4, 8]
    with pytest.raises(ValueError, match=r"^a stack place looks like stack0, got 'eax'$"):
        abi.stack_offset("eax")
    assert abi.places_text(("stack0", "stack1")) == "[esp+8]:[esp+4]"
    assert abi.places_text(("eax", "edx")) == "EDX:EAX"


def test_repr_is_short() -> None:
    assert repr(abi.BY_NAME["SetCR3"]) == "<17 SetCR3>"


@every_call()
def test_description_tells_all_of_the_row_in_100_columns(call: abi.Call) -> None:
    text = abi.describe(call)
    assert text.startswith(f"{call.name}, call {call.number}\n\n{call.summary}\n")
    assert max(len(line) for line in text.splitlines()) <= 100
    joined = " ".join(text.split())
    for part in (*(r.text for r in call.requirements), *(a.meaning for a in call.args), *call.notes):
        assert " ".join(part.split()) in joined
    assert all(requirement.id in text for requirement in call.requirements)


def test_description_of_one_call() -> None:
    head, *requirements = abi.describe(abi.BY_NAME["IODelay"]).split("\n\nVMI-")
    assert head.splitlines() == [
        "IODelay, call 65",
        "",
        "Wait as long as a slow device needs between two port accesses.",
        "",
        "  group       io, level 1 (uniprocessor CPU)",
        "  kind        in_rom, regparm3 convention",
        "  stands for  no single instruction",
        "  clobbers    EAX, ECX, EDX, flags",
        "  relocation  NONE, CALL_REL, NOP",
        "  Linux       io_delay (fill); if NONE: out to port 80h",
        "  source      Registers and use: Linux client code.",
    ]
    assert requirements[0] == "IODelay-01\n  No device sees an access."


@every_call()
def test_json_form_is_plain_and_complete(call: abi.Call) -> None:
    row = abi.call_to_json(call)
    assert json.loads(json.dumps(row)) == row
    assert (row["number"], row["name"], row["group"]) == (call.number, call.name, call.group.value)
    assert row["relocations"] == [kind.name for kind in call.relocations]
    assert row["requirements"] == [{"id": item.id, "text": item.text} for item in call.requirements]
    assert row["instructions"] == list(call.instructions)


def test_summary_rows_match_their_columns() -> None:
    rows = abi.summary_rows()
    assert {len(row) for row in rows} == {len(abi.SUMMARY_COLUMNS)}
    by_name = {row[1]: row for row in rows}
    assert by_name["SetPxELong"][:5] == ("39", "SetPxELong", "EDX:EAX, ECX, [esp+4]", "", "std")
    assert by_name["IRET"][2:6] == ("", "", "no return", "iret")
    assert by_name["CPUID"][4] == "flags"
