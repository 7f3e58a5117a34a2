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
from tests.conformance.test_waivers import result
from vmi import abi
from vmi.conformance import matrix, suite
from vmi.conformance.report import Report
from vmi.conformance.subject import Environment
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


def test_every_key_of_the_json_report_is_there() -> None:
    text = PAGE.partition("In JSON, which")[2].partition("\n\nA ROM that")[0]
    case = result("GetTR/relocation", Verdict.PASS, Environment())
    made = Report({}, "", (case,)).to_json()
    rows = made["cases"]
    assert isinstance(rows, list)
    assert sorted(re.findall(r"`(\w+)`", text)) == sorted([*made, *rows[0]])


def test_there_are_as_many_seeded_bugs_as_it_says() -> None:
    assert len(MUTANTS) + len(EVENT_MUTANTS) > 100


def run_pytest(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A project of somebody's that has one file of tests."""
    (folder / "test_mine.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "vmi.conformance.pytest_plugin", *options,
         "-c", "/dev/null", "--rootdir", str(folder), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # installed, it would be there twice
    )  # fmt: skip


@pytest.mark.parametrize("rom", ["native", "vmware"])
def test_the_example_of_the_plugin_runs(rom: str, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], "--vmi-rom", rom)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr


_SHORT = """
def test_one(vmi_machine):
    vmi_machine.call("WriteGDTEntry", eax=0)
"""


def test_a_rom_that_there_is_not_ends_the_plugins_run(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, _SHORT, "--vmi-rom", "nativ")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and not done.stdout.strip()
    assert done.stderr.strip() == (
        "ERROR: --vmi-rom: ROM 'nativ' is neither a flavour (native, vmware) nor the name of a file"
    )


def test_a_rom_on_which_no_guest_can_begin_is_told_by_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "empty.rom").write_bytes(b"")
    done = run_pytest(tmp_path, _SHORT, "--vmi-rom", str(tmp_path / "empty.rom"))
    assert done.returncode == pytest.ExitCode.TESTS_FAILED and "Traceback" not in done.stdout
    assert "\nthe guest on this ROM can't begin: " in done.stdout


def test_a_call_that_the_rom_has_no_code_for_is_skipped_by_the_plugin(tmp_path: Path) -> None:
    text = "def test_one(vmi_machine):\n    vmi_machine.call('SetLazyMode', eax=0)\n"
    done = run_pytest(tmp_path, text, "--vmi-rom", "native", "-rs")
    assert done.returncode == 0 and "the ROM answers NONE for SetLazyMode" in done.stdout


_KERNEL = """
import vmi.run, vmi.samples

vmi.run.run_kernel = lambda image, **options: options["timeout_ns"]


def test_one(vmi_kernel):
    image = vmi.samples.get("hello").path.read_bytes()
    assert (vmi_kernel(image), vmi_kernel(image, timeout_ns=None)) == (10_000_000_000, None)
"""


def test_a_kernel_of_the_plugin_has_its_time(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, _KERNEL)
    assert done.returncode == 0, done.stdout
