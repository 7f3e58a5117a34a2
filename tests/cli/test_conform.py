# SPDX-License-Identifier: GPL-2.0-only
"""``vmi conform`` as a command: choosing, reports, statuses, and one sentence for what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vmi.cli import app
from vmi.errors import ExitCode
from vmi.rom.build import build

RUN = CliRunner()
FEW = ["conform", "GetTR", "--paging", "off", "--rom", "native"]


def test_a_good_rom() -> None:
    done = RUN.invoke(app, FEW)
    assert done.exit_code == 0 and done.stdout.startswith("PASS: ") and done.stdout.count("\n") == 1


def test_json_is_one_value() -> None:
    data = json.loads(RUN.invoke(app, [*FEW, "--json"]).stdout)
    assert data["verdict"] == "PASS" and {case["verdict"] for case in data["cases"]} == {"PASS"}
    assert data["facts"]["hypervisor"] == "none" and len(data["facts"]["ROM SHA-256"]) == 64


def test_the_list_runs_nothing() -> None:
    done = RUN.invoke(app, ["conform", "IRET/*", "--list"])
    assert done.exit_code == 0 and "IRET/fault at the site" in done.stdout and "VMI-IRET-05" in done.stdout
    rows = json.loads(RUN.invoke(app, ["conform", "--level", "0", "--list", "--json"]).stdout)
    assert rows and {row["level"] for row in rows} == {0}


def test_reports_in_each_form(tmp_path: Path) -> None:
    files = [tmp_path / f"r{suffix}" for suffix in (".json", ".html", ".xml", ".tap", ".txt")]
    done = RUN.invoke(app, [*FEW, "-q", *(part for file in files for part in ("--report", str(file)))])
    assert done.exit_code == 0
    begins = ["{", "<!doctype html>", "<?xml", "TAP version 14", "PASS"]
    assert all(file.read_text().startswith(begin) for file, begin in zip(files, begins, strict=True))


def test_a_bad_rom_and_a_waiver(tmp_path: Path) -> None:
    image = bytearray(build("native").image)
    image[0x30] = 1
    image[-1] = (image[-1] - 1) & 0xFF
    (tmp_path / "bad.rom").write_bytes(image)
    command = ["conform", "ROM/*", "GetTR/*", "--paging", "off", "--rom", str(tmp_path / "bad.rom")]
    done = RUN.invoke(app, command)
    assert done.exit_code == ExitCode.NOT_CONFORMING
    assert "the reserved field reserved must be 0" in done.stdout and "VMI-ROM-06" in done.stdout
    waivers = tmp_path / "waivers.toml"
    waivers.write_text('[[waiver]]\ncase = "GetTR/relocation"\nreason = "none"\nexpires = 9999-01-01\n')
    done = RUN.invoke(app, [*FEW, "--waivers", str(waivers)])
    assert done.exit_code == ExitCode.CONFORMANCE_UNKNOWN
    assert "the waiver for GetTR/relocation was not needed" in done.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nothing"], "no case is called 'nothing'; `vmi conform --list` shows all"),
        (["--rom", "vmwar"], "ROM 'vmwar' is neither a flavour (native, vmware) nor the name of a file"),
        (["--report", "x.pdf"], "a report must end in .json, .xml, .tap, .html, .txt, but it is 'x.pdf'"),
        (["--rom", "native", "--mmu", "direct"], "there is no MMU 'direct'; there is no choice here"),
        (["--paging", "4-level"], "there is no paging '4-level'; there is 2-level, off, pae, pse"),
        (
            ["--backend", "no.such:Thing"],
            "the backend must be package.module:Class, but 'no.such:Thing' can't",
        ),
    ],
)
def test_what_makes_no_sense(options: list[str], sentence: str) -> None:
    done = RUN.invoke(app, ["conform", *options])
    assert done.exit_code in (ExitCode.USAGE, ExitCode.BAD_INPUT) and not done.stdout
    assert done.stderr.startswith(f"vmi: {sentence}") and done.stderr.count("\n") == 1
