# SPDX-License-Identifier: GPL-2.0-only
"""docs/machine.md is true: examples run and print what is shown, tables and figures are the code's."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.conftest import surroundings
from vmi.cli import app
from vmi.cli.guest import TIMEOUT
from vmi.errors import ExitCode
from vmi.native import machine, traffic
from vmi.native.boot.loader import PROTOCOLS
from vmi.native.boot.memory_map import memory_map
from vmi.native.cpuid import MODELS
from vmi.native.devices import ide, ps2_keyboard, rtc
from vmi.native.machine import Machine
from vmi.run import _STATUS, Outcome

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "machine.md").read_text(encoding="utf-8")


def table(head: str) -> list[list[str]]:
    """The rows of the table whose head begins with this cell."""
    lines = PAGE[PAGE.index(f"\n| {head} |") + 1 :].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def spans(text: str) -> list[range]:
    """Hexadecimal spans as ``20-21, 61``."""
    pairs = [part.strip().partition("-") for part in text.split(",")]
    return [range(int(first, 16), int(last or first, 16) + 1) for first, _, last in pairs]


# --- examples ---


@pytest.mark.parametrize("number", range(3))
def test_python_example_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 3
    monkeypatch.chdir(tmp_path)
    exec(compile(examples[number], f"example {number} of docs/machine.md", "exec"), {})


@pytest.fixture
def shell(tmp_path: Path) -> Sequence[str]:
    """A shell that knows the command."""
    (tmp_path / "vmi").write_text(f'#!/bin/sh\nexec {sys.executable} -m vmi "$@"\n')
    (tmp_path / "vmi").chmod(0o755)
    return ("sh", "-c", f'PATH="{tmp_path}:$PATH"; eval "$1" 2>&1', "sh")


def test_commands_print_what_is_shown(shell: Sequence[str], tmp_path: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    shown = [part.partition("\n") for block in blocks for part in block.split("$ ")[1:]]
    assert len(shown) == 4
    for command, _, output in shown:
        done = subprocess.run(
            [*shell, command], cwd=tmp_path, env=surroundings(), capture_output=True, check=False, timeout=120
        )
        assert done.stdout.decode().rstrip("\n") == output.rstrip("\n"), command


def test_options_exist() -> None:
    known = set(CliRunner().invoke(app, ["run", "--help"], prog_name="vmi").stdout.replace(",", " ").split())
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert len(named) > 15
    assert named <= known


def test_picture() -> None:
    data = (DOCS / "memtest.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert [int.from_bytes(data[at : at + 4], "big") for at in (16, 20)] == [720, 400]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


# --- tables ---


def test_ports_of_the_board() -> None:
    listed = [
        span for row in table("device") if re.fullmatch(r"[0-9A-F, -]+", row[1]) for span in spans(row[1])
    ]
    board = Machine(ram=1 << 20).board
    there = {port for device in board.ports.devices for span in device.ports for port in span}
    assert {port for span in listed for port in span} == there
    memory = [int(row[1].split(",")[0], 16) for row in table("device") if row[1].endswith("memory")]
    assert sorted(memory) == [0xFEC00000, 0xFEE00000]
    assert all(board.memory.device(address) is not None for address in memory)


def test_pci_functions() -> None:
    host = Machine(ram=1 << 20).board.pci
    named = re.findall(r"(\w{4}):(\w{4})\s+at (\d)\.(\d)", PAGE)
    assert {(int(s), int(f)): (int(v, 16), int(d, 16)) for v, d, s, f in named} == {
        place: (function.identity.vendor, function.identity.device)
        for place, function in host.functions.items()
    }


def test_protocols() -> None:
    assert [row[0] for row in table("protocol")] == [*PROTOCOLS]


def test_models() -> None:
    listed = re.search(r"`--cpu` is one of (.*?)\.", PAGE, re.DOTALL)
    assert listed is not None
    names = set(re.findall(r"[\w-]+", listed[1])) - {"and", "the", "usual", "one"}
    assert names == set(MODELS)
    assert f"{machine.DEFAULT_MODEL.name} (the usual one)" in listed[1]


def test_memory() -> None:
    rows = [(row[0], row[1], row[2].split(";")[0].split(":")[0]) for row in table("from")]
    for area in memory_map(64 << 20):
        kind = "RAM" if area.kind == 1 else "reserved"
        end = "end of RAM" if area.stop == 64 << 20 else f"{area.stop - 1:X}"
        assert any(row[:2] == (f"{area.start:X}", end) and row[2].split(",")[0] == kind for row in rows), area
    assert f"at {machine.MP_TABLE:X}" in PAGE


def test_figures() -> None:
    assert f"An instruction takes {machine.NS_PER_INSTRUCTION} ns" in PAGE
    assert f"an exception or interrupt {machine.EVENT_NS // 1000} µs more" in PAGE
    assert traffic.PORT_NS == machine.EVENT_NS  # the text says so
    assert f"The TSC counts {machine.TSC_HZ // 10**6} MHz" in PAGE
    assert f"needs {ide.BUSY_NS // 1000} µs for each command" in PAGE
    assert ps2_keyboard.KEY_NS == 10**6
    assert rtc.DEFAULT_EPOCH == 1_704_067_200  # the date in the text
    assert f"counts this time: {TIMEOUT.removesuffix('s')} s, or" in PAGE


def test_ends_of_runs() -> None:
    listed = {int(row[1]) for row in table("end") if row[1].isdigit()}
    assert listed == {0, int(ExitCode.GUEST_CRASH), int(ExitCode.TIMEOUT)}
    assert _STATUS[Outcome.TRIPLE_FAULT] == _STATUS[Outcome.CRASHED] == ExitCode.GUEST_CRASH
