# SPDX-License-Identifier: GPL-2.0-only
"""The page of sensitive instructions is the tables, rendered: nothing missing, nothing stale."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.patcher.encodings import decode, stores, with_adaptors
from vmi.patcher import instruction_docs
from vmi.patcher.forms import ALL_FORMS, PAGE_TABLE_FORMS, classify

PAGE = Path(__file__).resolve().parents[2] / "docs" / "instructions.md"


def test_page_in_the_tree_is_up_to_date() -> None:
    render = "run: python -m vmi.patcher.instruction_docs > docs/instructions.md"
    assert PAGE.read_text(encoding="utf-8") == instruction_docs.render(), render


def test_every_form_has_one_row_or_reason() -> None:
    helped = {name for name, form in ALL_FORMS.items() if form.call or form.inline}
    assert set(instruction_docs._REASONS) == set(ALL_FORMS) - helped
    assert set(instruction_docs._EXAMPLES) == helped | set(PAGE_TABLE_FORMS)
    assert set(with_adaptors()) == helped | set(PAGE_TABLE_FORMS)
    for name in (*ALL_FORMS, *PAGE_TABLE_FORMS):
        assert instruction_docs.render().count(f"\n| `{name}` |") == 1


@pytest.mark.parametrize(("name", "raw"), instruction_docs._EXAMPLES.items())
def test_an_example_is_one_of_its_form(name: str, raw: str) -> None:
    code = bytes.fromhex(raw)
    if name in PAGE_TABLE_FORMS:
        assert code in stores()[name][1] or name == "update pte"
        return
    form = classify(decode(code))
    assert name == "sti;hlt" or (form is not None and form.name == name)


def test_links_lead_to_the_calls() -> None:
    target = PAGE.with_name("abi.md").read_text(encoding="utf-8")
    titles = {line[4:].lower().replace(" ", "-") for line in target.splitlines() if line.startswith("### ")}
    links = {part.split(")")[0] for part in instruction_docs.render().split("(abi.md#")[1:]}
    assert links <= titles and len(links) > 40


def test_module_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(instruction_docs.__file__)), run_name="__main__")
    assert capsys.readouterr().out == instruction_docs.render()
