# SPDX-License-Identifier: GPL-2.0-only
"""The report accounts for every site, in words and in JSON of a published form."""

from __future__ import annotations

import gzip
import json
from functools import cache

import pytest

from tests.patcher.elfs import VADDR, Piece, Plan, kernel_code, make, small_kernel
from tests.patcher.schemas import breaches
from vmi import samples
from vmi.patcher import Patched, patch
from vmi.patcher.report import schema
from vmi.rom.assemble import assemble

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
    assert content["format"] == 2
    assert summary["sites"] == len(content["sites"]) == len(report.sites)
    assert sum(row["count"] for row in summary["by_tactic"].values()) == summary["sites"]
    for table in ("by_form", "by_call"):
        assert sum(row["sites"] for row in summary[table].values()) == summary["sites"]
        assert sum(row["slots"] for row in summary[table].values()) == summary["slots"]
    assert sum(row["percent"] for row in summary["by_tactic"].values()) == pytest.approx(100, abs=0.1)
    assert summary["sizes"]["output"] == len(patched().data)
    assert content["input"] == {"kind": "elf", "size": len(small_kernel()), "notes": []}
    assert summary["sizes"]["segment"] == content["placement"]["size"]
    assert summary["growth"]["bytes"] == len(patched().data) - len(small_kernel())
    for site in content["sites"]:
        has_slot = site["tactic"] not in ("trap", "left")
        assert bool(site["slot_length"]) == bool(site["slot"])
        assert has_slot == (site["slot_length"] >= 5)
        assert bool(site["reason"]) == (not has_slot)
    for window in content["windows"]:
        assert len(window["before"]) == len(window["after"])


def test_shares_are_of_those_that_something_can_stand_for_and_of_all() -> None:
    report = with_silent().report
    summary = report.facts()["summary"]
    count = sum(bool(site.call) for site in report.sites)
    assert 0 < count < len(report.sites)
    assert summary["replaceable"] == count
    assert summary["percent_of_replaceable"] == round(100 * report.slotted / count, 2)
    assert summary["percent_of_all"] == round(100 * report.slotted / len(report.sites), 2)


def kernels() -> dict[str, bytes]:
    found = {sample.name: sample.path.read_bytes() for sample in samples.load_all()}
    return found | {"small": small_kernel(), "gzip": gzip.compress(small_kernel(), mtime=0)}


@pytest.mark.parametrize("name", kernels())
def test_reports_keep_to_the_published_schema(name: str) -> None:
    content = json.loads(patch(kernels()[name]).report.to_json())
    assert list(breaches(content, schema(), schema())) == []


@pytest.mark.parametrize(
    ("path", "value", "breach"),
    [
        (("format",), 1, ".format is not 2"),
        (("summary", "sites"), -1, ".summary.sites is too small"),
        (("summary", "slots"), True, ".summary.slots is no integer"),
        (("sites", 0, "tactic"), "lucky", ".sites[0].tactic is 'lucky', which is not listed"),
        (("sites", 0, "bytes"), "f", ".sites[0].bytes does not match"),
        (("sites", 0, "call"), "Fly", ".sites[0].call is 'Fly', which is not listed"),
        (("sites", 0, "new"), 1, ".sites[0].new is not foreseen"),
        (("windows", 0, "pieces"), [], ".windows[0].pieces has too few items"),
        (("skipped", 0, "reason"), "", ".skipped[0].reason is too short"),
        (("placement", "vaddr"), 1 << 32, ".placement.vaddr is too large"),
    ],
)
def test_the_schema_finds_mistakes(path: tuple[str | int, ...], value: object, breach: str) -> None:
    content = json.loads(patched().report.to_json())
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert list(breaches(content, schema(), schema())) == [breach]


def test_the_schema_asks_for_every_key() -> None:
    content = json.loads(patched().report.to_json())
    for name in list(content):
        less = {key: value for key, value in content.items() if key != name}
        assert list(breaches(less, schema(), schema())) == [f".{name} is missing"]


def test_reasons_are_given_for_the_place_of_the_segment() -> None:
    content = json.loads(patched().report.to_json())
    assert len(content["placement"]["reasons"]) == 4
    assert content["placement"]["strategy"] == "after-image"
    assert content["placement"]["reasons"][0] == (
        "it starts at 0xc0103000, after the last byte of every segment (the image ends at 0xc0102234)"
    )
    assert content["placement"]["warnings"] == []


def test_use_of_the_images_end_is_a_warning() -> None:
    code = kernel_code() + assemble(f"cmp eax, {VADDR + 0x2234:#x}\nret").code
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
    assert (
        lines[1]
        == f"  that is 100.0 % of the {report.replaceable} for which a VMI call or an adaptor can stand"
    )
    for tactic, count in report.by_tactic.items():
        assert f"  {tactic:<12}{count:>7}{100 * count / total:>7.1f} %" in lines
    assert any(line.startswith(".vmi segment: ") for line in lines)
