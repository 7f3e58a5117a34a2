# SPDX-License-Identifier: GPL-2.0-only
"""Ways to start the command, and a stand-in for the library below `run` and `compare`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.cli.fake_run import FakeRun
from vmi.cli import app

Vmi = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[bytes]"]


ROOT = Path(__file__).resolve().parents[2]


def surroundings(**changes: str) -> dict[str, str]:
    """The environment for a process: it finds this checkout; the user's taste in colours stays outside."""
    outside = ("VMI_TRACEBACK", "NO_COLOR", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in outside}
    return kept | {"PYTHONPATH": str(ROOT)} | changes


@pytest.fixture
def vmi() -> Vmi:
    """Run a verb in this process: quick, and stubs are seen. Its stdout is no terminal."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(one) for one in arguments], prog_name="vmi")

    return run


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """Run the command as users do, in a process of its own, inside an empty folder."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
        keywords = {"capture_output": True, "timeout": 120, "cwd": tmp_path, "env": surroundings()} | options
        command = [sys.executable, "-m", "vmi", *map(str, arguments)]
        return subprocess.run(command, check=False, **keywords)  # type: ignore[call-overload,no-any-return]

    return run


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """`vmi.run` replaced by a stand-in that records its arguments and answers what a test tells it to."""
    fake = FakeRun("vmi.run")
    monkeypatch.setitem(sys.modules, "vmi.run", fake)
    return fake


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A file to give as KERNEL where the run itself is a stand-in."""
    path = tmp_path / "kernel"
    path.write_bytes(b"some kernel")
    return path


def sentence(result: Result) -> str:
    """The one line on stderr; a verb that says more, or prints a traceback, fails here."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]
