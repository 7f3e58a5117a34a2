# SPDX-License-Identifier: GPL-2.0-only
"""docs/patching.md is true: examples run and print what is shown, tables and options are the code's.

Addresses in the new segment change whenever an adaptor or a table grows by a byte, and so do sizes; these
are not compared.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vmi.cli import app
from vmi.patcher.place import Strategy
from vmi.sitetable import Tactic

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "patching.md"
PAGE = FILE.read_text(encoding="utf-8")
_BLOCK = re.compile(r"```console\n\$ vmi (.*)\n((?:.*\n)*?)```")


def run(arguments: str) -> str:
    """What the command prints, without spaces at line ends."""
    result = CliRunner().invoke(app, arguments.split(), prog_name="vmi")
    assert result.exit_code == 0, result.output
    return "".join(line.rstrip() + "\n" for line in result.stdout.splitlines())


def steady(text: str) -> str:
    """``text`` without what is somewhere else after the next change: addresses, distances, sizes."""
    text = re.sub(r"\b(?:0x)?[0-9a-f]{6,}\b", "#", text)
    text = re.sub(r"\d+ adaptors, \d+ slots without", "# adaptors, # slots without", text)
    return re.sub(r"segment: .*", "segment: #", text)


@pytest.mark.parametrize("arguments", [match[1] for match in _BLOCK.finditer(PAGE)])
def test_commands_print_what_is_shown(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = run(arguments)
    if os.environ.get("VMI_WRITE_DOCS"):
        page = FILE.read_text(encoding="utf-8")
        shown = re.compile(rf"(```console\n\$ vmi {re.escape(arguments)}\n)(?:.*\n)*?```")
        FILE.write_text(shown.sub(lambda match: f"{match[1]}{printed}```", page), encoding="utf-8")
        return
    shown_text = next(match[2] for match in _BLOCK.finditer(PAGE) if match[1] == arguments)
    assert steady(printed) == steady(shown_text)
    assert len(printed.splitlines()) > 5


def test_python_examples_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 1
    for example in examples:
        exec(compile(example, str(FILE), "exec"), {})


def rows(head: str) -> list[str]:
    """The first cells of the table whose head begins with this cell."""
    lines = PAGE[PAGE.index(f"\n| {head} |") + 1 :].split("\n\n", 1)[0].splitlines()
    return [line.strip("|").split("|")[0].strip() for line in lines[2:]]


def test_tactics_are_all_there_in_their_order() -> None:
    assert rows("tactic") == [f"`{tactic.value}`" for tactic in Tactic]


def test_places_are_all_there() -> None:
    named = [strategy.value for strategy in Strategy if strategy is not Strategy.ADDRESS]
    assert rows("place") == ["`auto`", *(f"`{name}`" for name in named), "an address"]


def test_options_exist() -> None:
    known = " ".join(
        CliRunner().invoke(app, [*verb, "--help"], prog_name="vmi").stdout
        for verb in (["patch"], ["inspect"], ["run"])
    ).replace(",", " ")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert {"--dry-run", "--report", "--explain", "--place", "--symbols", "--profile", "--no-undo"} <= named
    assert named <= set(known.split())


def test_verbs_exist() -> None:
    commands = CliRunner().invoke(app, ["--help"], prog_name="vmi").stdout.split()
    assert set(re.findall(r"`vmi ([a-z]+)", PAGE)) <= set(commands)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", PAGE)
    assert len(links) >= 3
    assert [link for link in links if not (FILE.parent / link).exists()] == []
