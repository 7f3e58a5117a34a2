# SPDX-License-Identifier: GPL-2.0-only
"""docs/conformance.md and docs/requirements.md are true, and the plugin's example runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.event_mutants import EVENT_MUTANTS
from tests.conformance.mutants import MUTANTS
from vmi import abi
from vmi.conformance import matrix, suite
from vmi.conformance.verdict import Verdict

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "conformance.md").read_text(encoding="utf-8")


def test_the_matrix_is_that_of_the_cases() -> None:
    assert (DOCS / "requirements.md").read_text(encoding="utf-8") == matrix.render()


def test_every_requirement_is_decided_by_a_case_or_listed() -> None:
    decided = {each for case in suite.all_cases() for each in case.requirements}
    assert set(abi.ALL_REQUIREMENTS) - decided == set(matrix.UNDECIDED)


@pytest.mark.parametrize(
    ("command", "shown"), re.findall(r"```console\n\$ vmi (.*?)\n(.*?)```", PAGE, re.DOTALL)
)
def test_the_command_prints_what_is_shown(command: str, shown: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmi", *command.split()], capture_output=True, text=True, check=True
    )
    assert done.stdout == shown


def test_the_verdicts_are_all_there() -> None:
    assert re.findall(r"^\| ([A-Z]+) \|", PAGE, re.MULTILINE) == [verdict.value for verdict in Verdict]


def test_there_are_as_many_seeded_bugs_as_it_says() -> None:
    assert len(MUTANTS) + len(EVENT_MUTANTS) > 100


@pytest.mark.parametrize("rom", ["native", "vmware"])
def test_the_example_of_the_plugin_runs(rom: str, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "vmi.conformance.pytest_plugin", "--vmi-rom", rom]
    done = subprocess.run(
        [*command, "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # installed, it would be there twice
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
