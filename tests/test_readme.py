# SPDX-License-Identifier: GPL-2.0-only
"""README is true: its examples run, its tables are the code's, the picture is what the command prints."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from vmi.cli import app
from vmi.errors import ExitCode

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

#: Figures of the computer it was run on; everything else in the picture is the same everywhere.
_OUR_TIME = re.compile(r"^│(time here|  time in them).*$", re.MULTILINE)


def test_python_examples_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_the_picture_is_what_demo_prints() -> None:
    shown = re.search(r"<!-- demo -->\n```text\n(.*?)```\n<!-- /demo -->", README, re.DOTALL)
    assert shown is not None
    result = CliRunner().invoke(app, ["demo"], prog_name="vmi")
    assert result.exit_code == 0
    table = result.stdout[: result.stdout.index("\n\nWhat you see")] + "\n"
    assert _OUR_TIME.sub("", table) == _OUR_TIME.sub("", shown[1])


def test_exit_statuses() -> None:
    rows = {int(row) for row in re.findall(r"^\| (\d+) \| ", README, re.MULTILINE)}
    assert rows == {int(code) for code in ExitCode}


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:vmi|tests|bench|sample_kernels|docs)/[\w./-]+)`", README)
    named += re.findall(r"\]\((docs/[\w.-]+)\)", README)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_reading_order_has_ten_files() -> None:
    order = re.findall(r"^(\d+)\. `vmi/", README, re.MULTILINE)
    assert order == [str(number) for number in range(1, 11)]
