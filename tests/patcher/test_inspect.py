# SPDX-License-Identifier: GPL-2.0-only
"""Inspecting a patched file tells what the report of its making told."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.patcher.elfs import VADDR, small_kernel
from tests.patcher.test_report import patched, with_silent
from vmi.errors import BadInput
from vmi.patcher import Options, inspect_file, patch
from vmi.patcher.elf import load, vmi_segment
from vmi.sitetable import Tactic


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


def test_a_segment_that_moves_is_shown_at_both_places() -> None:
    text = inspect_file(patch(small_kernel(), Options(place="low-memory")).data).to_text()
    assert "  0xc0078000  pa 0x00103000     0x8000 bytes  rwx\n" in text
    assert "the .vmi segment is moved to pa 0x00078000 before the kernel starts\n" in text
    assert "is moved" not in inspect_file(patched().data).to_text()


def test_inspecting_an_unpatched_kernel_tells_what_would_be_found() -> None:
    found = inspect_file(small_kernel())
    assert not found.patched
    assert found.counts == dict(sorted(patched().report.by_tactic.items()))
    assert found.forms == Counter(site.form for site in patched().report.sites)
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
