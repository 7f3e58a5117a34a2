# SPDX-License-Identifier: GPL-2.0-only
"""The report accounts for every site, in JSON and in words; inspecting the output tells the same story."""

from __future__ import annotations

import json
from functools import cache

import pytest

from tests.patcher.elfs import VADDR, Piece, Plan, kernel_code, make, small_kernel
from vmi import abi
from vmi.errors import BadInput
from vmi.patcher import Patched, inspect_file, patch
from vmi.patcher.elf import load, vmi_segment
from vmi.rom.assemble import assemble
from vmi.sitetable import Tactic

SILENT = "lar eax, ecx\nlsl eax, ecx\nret\n"


@cache
def patched() -> Patched:
    return patch(small_kernel())


@cache
def with_silent() -> Patched:
    """A kernel with instructions that no call stands for."""
    code = kernel_code() + assemble(SILENT).code
    return patch(
        make(Plan([Piece(VADDR, code, section=".text")], symbols=[("silent", VADDR + len(kernel_code()), 2)]))
    )


def test_the_json_accounts_for_every_site() -> None:
    report = patched().report
    content = json.loads(report.to_json())
    summary = content["summary"]
    assert content["format"] == 1
    assert summary["sites"] == len(content["sites"]) == len(report.sites)
    assert sum(row["count"] for row in summary["by_tactic"].values()) == summary["sites"]
    assert sum(row["count"] for row in summary["by_form"].values()) == summary["sites"]
    assert sum(row["percent"] for row in summary["by_tactic"].values()) == pytest.approx(100, abs=0.1)
    assert summary["sizes"]["output"] == len(patched().data)
    assert summary["sizes"]["input"] == len(small_kernel())
    assert summary["sizes"]["segment"] == content["segment"]["size"]
    for site in content["sites"]:
        has_slot = site["tactic"] not in ("trap", "left")
        assert bool(site["slot_length"]) == bool(site["slot"])
        assert has_slot == (site["slot_length"] >= 5)
        assert bool(site["reason"]) == (not has_slot)
        assert site["call"] in ("", *abi.BY_NAME)
    for window in content["windows"]:
        assert len(window["before"]) == len(window["after"])


def test_reasons_are_given_for_the_place_of_the_segment() -> None:
    content = json.loads(patched().report.to_json())
    assert len(content["placement"]) == 4
    assert content["placement"][0] == (
        "it starts at 0xc0103000, after the last byte of every segment (the image ends at 0xc0102234)"
    )
    assert content["warnings"] == []


def test_use_of_the_images_end_is_a_warning() -> None:
    code = kernel_code() + assemble(f"mov eax, {VADDR + 0x2234:#x}\nret").code
    pieces = [
        Piece(VADDR, code, section=".text"),
        Piece(VADDR + 0x1000, bytes(64), memsz=0x1234, flags=6, section=".data"),
    ]
    report = patch(make(Plan(pieces, symbols=[("_end", VADDR + 0x2234, 0)]))).report
    assert report.warnings == (
        "the address of the image's end 0xc0102234 (symbol _end) occurs 1 times in the image: a kernel that "
        "takes memory from there without reading the boot loader's memory map overwrites the .vmi segment "
        "(it can be placed elsewhere: low-memory, or an address)",
    )
    assert f"warning: {report.warnings[0]}\n" in report.to_text()


def test_a_kernel_without_multiboot_header_gets_a_warning() -> None:
    report = patch(make(Plan([Piece(VADDR, assemble("cli\nsti\nhlt\nret", VADDR).code)]))).report
    assert report.warnings == (
        "there is no multiboot 1 header, so the segment can't be taken out of a memory map: the kernel must "
        "leave the memory from 0xc0101000 on alone",
    )


def test_the_text_has_counts_shares_and_sizes() -> None:
    report = patched().report
    lines = report.to_text().splitlines()
    total = len(report.sites)
    assert lines[0] == (
        f"{total} sensitive instructions among {report.instructions}, {report.slotted} of them in slots "
        f"({100 * report.slotted / total:.1f} %)"
    )
    for tactic, count in report.by_tactic.items():
        assert f"  {tactic:<12}{count:>7}{100 * count / total:>7.1f} %" in lines
    assert any(line.startswith(".vmi segment: ") for line in lines)


def test_explain_shows_a_window_before_and_after() -> None:
    report = patched().report
    move = next(move for move in report.moves if not move.springboard)
    text = report.explain(move.start)
    assert "before:" in text
    assert f"  {move.start:08x}  {bytes.fromhex(move.before)[:1].hex()}" in text
    assert f"jmp 0x{move.trampoline:x}" in text
    assert "trampoline:" in text
    assert report.explain(move.trampoline).endswith(text[text.index("before:") :])


def test_explain_names_the_call_and_the_way_to_it() -> None:
    report = patched().report
    site = next(site for site in report.sites if site.form == "mov cr3,r")
    text = report.explain(site.address)
    assert f"{site.address:#x}  mov cr3, ebx  (form mov cr3,r)" in text
    assert f"  call: SetCR3; tactic: {site.tactic}" in text
    way = f"reaches the ROM through the adaptor at {site.adaptor:#x}"
    assert f"  slot: {site.slot:#x}, 5 bytes, {way}" in text


def test_explain_gives_the_reason_for_a_miss() -> None:
    report = with_silent().report
    site = next(site for site in report.sites if site.tactic == Tactic.TRAP)
    assert f"  reason: {site.reason}" in report.explain(site.address)


def test_explain_says_so_when_there_is_nothing() -> None:
    assert patched().report.explain(0x1234) == ("0x1234 is neither a sensitive instruction nor in a window\n")


def test_explain_knows_what_was_not_searched() -> None:
    report = patched().report
    skip = report.skipped[0]
    assert report.explain(int(skip["start"])) == (
        f"{int(skip['start']):#x} was not searched: {skip['reason']}\n"
    )


# --- inspect ------------------------------------------------------------------------------------


def test_inspecting_the_output_tells_what_the_report_tells() -> None:
    for run in (patched(), with_silent()):
        found = inspect_file(run.data)
        assert found.patched
        expected = {name: n for name, n in run.report.by_tactic.items() if name != Tactic.LEFT}
        assert found.counts == dict(sorted(expected.items()))
        content = json.loads(found.to_json())
        recorded = {(row["site"], row["slot"], row["adaptor"]) for row in content["sites"]}
        assert recorded == {(s.address, s.slot, s.adaptor) for s in run.report.sites if s.slot}
        assert content["header"]["original_entry"] == VADDR
        assert content["header"]["status"] == 0


def test_silent_instructions_without_a_call_are_recorded_as_traps() -> None:
    found = inspect_file(with_silent().data)
    assert found.table is not None
    assert found.forms["trap"] == len(found.table.traps) > 0
    for record in found.table.traps:
        raw = load(with_silent().data, patched=True).read(record.slot, record.length)
        assert raw in (b"\x0f\x02\xc1", b"\x0f\x03\xc1")


def test_inspecting_an_unpatched_kernel_tells_what_would_be_found() -> None:
    found = inspect_file(small_kernel())
    assert not found.patched
    assert found.counts == dict(sorted(patched().report.by_tactic.items()))
    assert found.forms == patched().report.by_form
    assert json.loads(found.to_json())["by_form"] == found.forms
    assert found.to_text().startswith("entry 0xc0100000, not patched\n")


def test_the_text_can_list_every_record() -> None:
    found = inspect_file(patched().data)
    assert found.table is not None
    short, full = found.to_text(), found.to_text(sites=True)
    assert full.startswith(short)
    assert len(full.splitlines()) == len(short.splitlines()) + len(found.table.sites)


def test_a_record_for_a_call_that_does_not_exist_is_refused() -> None:
    data = bytearray(patched().data)
    home = vmi_segment(load(bytes(data), patched=True))
    assert home is not None
    table = inspect_file(bytes(data)).table
    assert table is not None
    data[home.file_offset + table.header.sites - home.vaddr + 5] = 200
    with pytest.raises(BadInput) as caught:
        inspect_file(bytes(data))
    assert str(caught.value) == "a record of the .vmi segment names call 200, which does not exist"
