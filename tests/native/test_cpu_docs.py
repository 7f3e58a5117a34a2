# SPDX-License-Identifier: GPL-2.0-only
"""The page of processor models is the tables, rendered: nothing missing, nothing stale."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from vmi.native import cpu_docs
from vmi.native.cpuid import MODELS, WITHHELD
from vmi.native.msr import registers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cpu.md"


def test_page_in_the_tree_is_up_to_date() -> None:
    render = "run: python -m vmi.native.cpu_docs > docs/cpu.md"
    assert PAGE.read_text(encoding="utf-8") == cpu_docs.render(), render


def test_every_model_and_every_reason() -> None:
    page = cpu_docs.render()
    for model in MODELS.values():
        assert f"| {model.name} | {model.vendor} " in page
        for name, reason in model.withheld.items():
            row = next(line for line in page.splitlines() if line.endswith(f"| {reason} |"))
            assert name in row.split("|")[1].split()
    assert set(WITHHELD) == {name for model in MODELS.values() for name in model.withheld}


def rows(page: str) -> list[list[str]]:
    lines = page[page.index("## Model-specific") :].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][2:]


def numbers(cell: str) -> list[int]:
    """All numbers that a cell of the first column stands for."""
    found: list[int] = []
    for part in cell.split(", "):
        span, _, step = part.partition(" by ")
        first, _, last = span.partition("-")
        start = int(first.rstrip("h"), 16)
        found += range(start, int((last or first).rstrip("h"), 16) + 1, int(step or 1))
    return found


def test_every_register_of_every_model() -> None:
    listed = {name: set[int]() for name in MODELS}
    for number, _, _, _, _, models in rows(cpu_docs.render()):
        for model in models.split(", "):
            assert not listed[model] & set(numbers(number))
            listed[model] |= set(numbers(number))
    assert listed == {name: set(registers(model)) for name, model in MODELS.items()}


@pytest.mark.parametrize(
    ("number", "cells"),
    [
        ("FEh", ["MTRRCAP", "508h", "508h", "#GP"]),
        ("200h-20Eh by 2", ["MTRR_PHYSBASEn", "0", "80000000h, 0", "kept if valid"]),
        ("401h-425h by 4", ["MCn_STATUS", "0", "0", "0 only"]),
        ("C1h-C2h", ["PERFCTRn", "0", "0", "dropped"]),
        ("10h", ["TSC", "0", "0", "kept"]),
    ],
)
def test_rows(number: str, cells: list[str]) -> None:
    assert [row[1:5] for row in rows(cpu_docs.render()) if row[0] == number] == [cells]


def test_tables_have_as_many_cells_in_every_row() -> None:
    block: list[int] = []
    for line in [*cpu_docs.render().splitlines(), ""]:
        if line.startswith("|"):
            block.append(line.count("|"))
        else:
            assert len(set(block)) <= 1, block
            block = []


def test_module_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(cpu_docs.__file__)), run_name="__main__")
    assert capsys.readouterr().out == cpu_docs.render()
