# SPDX-License-Identifier: GPL-2.0-only
"""The reference page is the table, rendered: nothing missing, nothing stale."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from vmi import abi, abi_docs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "abi.md"


def test_page_in_the_tree_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == abi_docs.render(), "run: python -m vmi.abi_docs > docs/abi.md"


def test_page_names_every_call_requirement_and_field() -> None:
    page = abi_docs.render()
    for call in abi.CALLS:
        assert page.count(f"\n### {call.number} {call.name}\n") == 1
    for requirement in abi.ALL_REQUIREMENTS.values():
        assert page.count(f"\n- **{requirement.id}** {requirement.text}\n") == 1
    for _, fields in abi.LAYOUTS:
        for field in fields:
            assert f"| {field.offset:02X}h | {field.size} | `{field.name}` | {field.meaning} |" in page


def test_tables_have_as_many_cells_in_every_row() -> None:
    block: list[int] = []
    for line in [*abi_docs.render().splitlines(), ""]:
        if line.startswith("|"):
            block.append(line.replace("\\|", "").count("|"))
        else:
            assert len(set(block)) <= 1, block
            block = []


def test_module_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(abi_docs.__file__)), run_name="__main__")
    assert capsys.readouterr().out == abi_docs.render()
