# SPDX-License-Identifier: GPL-2.0-only
"""What of a ROM's code the suite executes: counted rightly, with either engine, and nearly all of it."""

from __future__ import annotations

import json

import pytest

from vmi import abi
from vmi.conformance import coverage, suite
from vmi.conformance.coverage import Block, Coverage, Entry, Gap, Ran
from vmi.conformance.selection import Selection
from vmi.conformance.suite import Target
from vmi.rom import flow
from vmi.rom.build import build

NATIVE = Target("native", build("native").image)
VMWARE = Target("vmware", build("vmware").image)


def measured(target: Target, selection: Selection, *engines: str, jobs: int = 1) -> tuple[Coverage, bytes]:
    """Coverage of what is chosen, and the executed bytes."""
    assert target.rom is not None
    plan = selection.plan(suite.all_cases(), target.environments(engines or ("",)))
    ran = Ran(len(target.rom))
    results = list(suite.run(target, plan, jobs=jobs, ran=ran))
    assert all(result.verdict.good for result in results)
    return suite.measure(target, ran, plan), ran.image()


def test_code_is_what_an_entry_leads_to() -> None:
    code = flow.reachable(bytes.fromhex("7401c3cd82c3cc"), 0)
    assert [(at, flow.text(each)) for at, each in code.items()] == [
        (0, "je short 3"),
        (2, "ret"),
        (3, "int 0x82"),
        (5, "ret"),
    ]


def test_code_that_leads_out_is_not_followed() -> None:
    assert list(flow.reachable(bytes.fromhex("ebfe"), 0)) == [0]
    assert list(flow.reachable(bytes.fromhex("ff2500000000"), 0)) == [0]
    assert list(flow.reachable(bytes.fromhex("e9ffffff7f"), 0)) == [0]
    assert list(flow.reachable(bytes.fromhex("0fffff"), 7)) == []


def test_counting() -> None:
    image = bytearray(0x200)
    image[abi.INIT_OFFSET] = 0xCC
    image[0x100:0x106] = bytes.fromhex("740031c0c3cc")
    ran = Ran(len(image))
    ran.add(bytes(0x100) + b"\1\1" + bytes(0x80) + b"\1\1\1" + bytes(0x7B))
    found = coverage.measure(bytes(image), ran, {"GetCR3": 0x100, "GetCR4": 0x102}, {"GetCR3"})
    assert (found.size, found.ran, found.elsewhere) == (5, 2, 3)
    assert found.entries == (Entry("GetCR3", 0x100, 5, ((0x102, 3),)),)
    assert found.gaps == (Gap(0x102, 3, ("GetCR3",), ((0x102, "xor eax,eax"), (0x104, "ret"))),)
    assert found.to_text().splitlines() == [
        "GetCR3              0x0100     2 of    5 bytes   40.0 %",
        "never run: 3 bytes at 0x0102, of GetCR3",
        "    0102  xor eax,eax",
        "    0104  ret",
        "ROM code run: 2 of 5 bytes, 40.0 %; 0 of 1 entries whole",
        "3 bytes more were run that no entry visibly leads to",
    ]
    assert found.to_text() == found.to_text(verbose=True)
    data = json.loads(json.dumps(found.to_json()))
    assert data["percent"] == 40.0 and data["entries"][0]["never"] == [[0x102, 3]]
    assert data["never"][0]["code"] == ["0102  xor eax,eax", "0104  ret"]


def test_a_terminal_is_not_flooded() -> None:
    code = b"\x90" * 250 + b"\xc3"
    found = coverage.measure(bytes(0x100) + code, Ran(0x100 + len(code)), {"GetCR3": 0x100}, {"GetCR3"})
    lines = found.to_text().splitlines()
    assert len(lines) == 103 and lines[-2] == "and 152 lines more of what was never run; -v shows all"
    assert len(found.to_text(verbose=True).splitlines()) == 254


def test_hundred_percent_means_all() -> None:
    assert [coverage.percent(*each) for each in ((999, 1000), (9999, 10000), (5, 5), (0, 0))] == [
        99.9,
        99.9,
        100.0,
        100.0,
    ]


#: Two environments and a part of the cases: most of what the whole suite runs, in a tenth of the time.
PART = """
(mmu= or mmu=shadow) and (paging=2-level or paging=pae) and cpus=1
and not (segments or exits or held or handler or fault or interrupt)
"""


@pytest.mark.parametrize("target", [NATIVE, VMWARE], ids=str)
def test_the_suite_runs_nearly_all_code_of_our_roms(target: Target) -> None:
    found, _ = measured(target, Selection(expression=PART))
    assert coverage.percent(found.ran, found.size) >= 90 and found.elsewhere < 80
    assert len(found.entries) > 50


def test_engines_and_processes_see_the_same() -> None:
    wanted = Selection(("WriteGDTEntry/convention*",), expression="paging=pae and mmu=shadow")
    here = measured(VMWARE, wanted)
    assert measured(VMWARE, wanted, "python") == here
    assert measured(VMWARE, wanted, jobs=2) == here
    gdt = next(entry for entry in here[0].entries if entry.name == "WriteGDTEntry")
    never: tuple[Block, ...] = gdt.never
    assert 0 < gdt.ran <= gdt.size and sum(size for _, size in never) == gdt.size - gdt.ran
