# SPDX-License-Identifier: GPL-2.0-only
"""docs/hypervisor.md says where each call is served."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from vmi import abi
from vmi.hypervisor import call_docs
from vmi.rom.flavours import FLAVOURS, get

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "hypervisor.md").read_text(encoding="utf-8")


def test_the_table_is_up_to_date() -> None:
    shown = re.search(r"<!-- calls: (.*?) -->\n(.*?)<!-- /calls -->", PAGE, re.DOTALL)
    assert shown is not None and shown[1] == "python -m vmi.hypervisor.call_docs"
    assert shown[2] == call_docs.render()


@pytest.mark.parametrize("name", sorted(FLAVOURS))
def test_every_call_has_one_row_and_every_hole_a_reason(name: str) -> None:
    rows = [line.strip("|").split("|") for line in call_docs.render(name).splitlines()[2:]]
    assert [row[0].strip() for row in rows] == [f"{call.number} {call.name}" for call in abi.CALLS]
    for row, call in zip(rows, abi.CALLS, strict=True):
        reason = get(name).template(call).reason
        assert (row[1].strip() == "nobody") == bool(reason) and reason in row[2]
        assert row[1].strip() != "hypervisor" or row[2].strip(), row


def test_the_module_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(call_docs.__file__)), run_name="__main__")
    assert capsys.readouterr().out == call_docs.render()
