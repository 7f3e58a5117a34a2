# SPDX-License-Identifier: GPL-2.0-only
"""``vmi conform`` as a command: choosing, reports, statuses, and one sentence for what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vmi.cli import app
from vmi.conformance.layout import Paging
from vmi.conformance.machine_subject import MachineSubject
from vmi.conformance.subject import Environment
from vmi.errors import EngineError, ExitCode
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


def test_the_list_is_of_what_would_run() -> None:
    command = ["conform", "--rom", "native", "--list", "--json", "--expression", "SetPxELong and paging=pae"]
    rows = json.loads(RUN.invoke(app, command).stdout)
    assert rows and all(row["environments"] == ["pae"] for row in rows)
    rows = json.loads(RUN.invoke(app, [*command[:5], "--expression", "cpus=2"]).stdout)
    assert {name for row in rows for name in row["environments"]} == {
        "2-level, 2 processors",
        "pae, 2 processors",
        "pse, 2 processors",
    }


def test_engines_are_environments() -> None:
    command = ["conform", "GetTR/relocation", "--rom", "native", "--paging", "off", "--json"]
    one = json.loads(RUN.invoke(app, command).stdout)
    assert one["facts"]["engine"] in ("accelerated", "python")
    assert one["environments"]["off"] == {
        "paging": "off",
        "control registers": "CR0 0x11, CR3 0x0, CR4 0x0",
        "MMU": "",
        "processors": "1",
        "processor": "i686",
        "engine": one["facts"]["engine"],
    }
    other = json.loads(RUN.invoke(app, [*command, "--engine", "python"]).stdout)
    assert list(other["environments"]) == ["off, python"] and other["facts"]["engine"] == "python"
    assert other["cases"][0]["repro"] == (
        "vmi conform --rom native --paging off --engine python GetTR/relocation"
    )


def test_coverage_is_part_of_each_form(tmp_path: Path) -> None:
    command = [*FEW, "--coverage", "--report", str(tmp_path / "r.html"), "--report", str(tmp_path / "r.json")]
    done = RUN.invoke(app, command)
    assert "ROM code run: 7 of 7 bytes, 100.0 %; 1 of 1 entries whole" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["coverage"]["percent"] == 100.0
    assert "7 of 7 bytes" in (tmp_path / "r.html").read_text()


def test_the_same_command_gives_the_same_bytes() -> None:
    command = [*FEW, "--json", "--coverage"]
    one, two = (json.loads(RUN.invoke(app, command).stdout) for _ in range(2))
    for made in (one, two):
        for case in made["cases"]:
            case["seconds"] = 0
    assert json.dumps(one) == json.dumps(two)


def test_a_report_replaces_no_input(tmp_path: Path) -> None:
    (tmp_path / "rom.json").write_bytes(build("native").image)
    for option in ("--rom", "--waivers", "--replay"):
        path = str(tmp_path / "rom.json")
        done = RUN.invoke(app, ["conform", option, path, "--report", path])
        assert done.exit_code == ExitCode.USAGE
        assert done.stderr == f"vmi: {path!r} is the input; the output needs a name of its own\n"


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
    waivers.write_text('[[waiver]]\ncase = "GetTR/exits 0"\nreason = "none"\nexpires = 9999-01-01\n')
    done = RUN.invoke(app, [*FEW, "--waivers", str(waivers)])
    assert done.exit_code == ExitCode.CONFORMANCE_UNKNOWN
    assert "the waiver for GetTR/exits 0 was not needed" in done.stdout


def no_rom(environment: Environment) -> MachineSubject:
    """A backend that has a ROM."""
    return MachineSubject("mine", build("native").image, environment)


def with_rom(environment: Environment, rom: bytes) -> MachineSubject:
    """A backend that has none."""
    return MachineSubject("any", rom, environment)


@pytest.mark.parametrize(
    ("backend", "rom"), [("no_rom", []), ("with_rom", ["--rom", "native"]), ("with_rom", ["--rom", "vmware"])]
)
def test_a_backend_and_a_rom(backend: str, rom: list[str], tmp_path: Path) -> None:
    named = ["--backend", f"tests.cli.test_conform:{backend}", *rom]
    report = tmp_path / "report.json"
    command = ["conform", *named, "GetTR/relocation", "--paging", "off", "--report", str(report)]
    assert RUN.invoke(app, command).exit_code == ExitCode.OK
    case = json.loads(report.read_text())["cases"][0]
    assert case["repro"] == f"vmi conform {' '.join(named)} --paging off GetTR/relocation"


def only_paged(environment: Environment) -> MachineSubject:
    """A backend that has no machine without paging."""
    if environment.paging is Paging.OFF:
        raise EngineError("there is no machine without paging")
    return no_rom(environment)


def test_a_backend_without_any_machine_is_not_a_good_one() -> None:
    few = ["conform", "--backend", "tests.cli.test_conform:only_paged", "GetTR/exits 0"]
    done = RUN.invoke(app, [*few, "--paging", "off"])
    assert done.exit_code == ExitCode.USAGE and not done.stdout
    assert done.stderr == "vmi: there is no machine without paging\n"
    done = RUN.invoke(app, [*few, "--paging", "off", "--paging", "pae"])
    assert done.exit_code == ExitCode.OK
    assert done.stdout.startswith("PASS: 1 SKIP, 1 PASS;")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nothing"], "no case is called 'nothing'; `vmi conform --list` shows all"),
        (["--rom", "vmwar"], "ROM 'vmwar' is neither a flavour (native, vmware) nor the name of a file"),
        (["--report", "x.pdf"], "a report must end in .json, .xml, .tap, .html, .txt, but it is 'x.pdf'"),
        (["--rom", "native", "--mmu", "direct"], "there is no MMU 'direct'; there is no choice here"),
        (
            ["--level", "3", "--group", "mmu"],
            "there is no case that fits all of these choices; `vmi conform --list` shows all",
        ),
        (
            ["SetInitialAPState/registers", "--paging", "off"],
            "none of the cases that are chosen runs in an environment that is chosen",
        ),
        (["--engine", "fast"], "there is no engine 'fast'; there is accelerated, python, and both"),
        (
            ["--expression", "SetCR3 and", "--list"],
            "the expression must go on with a word, 'not' or '(', but it ends",
        ),
        (
            ["--backend", "a:B", "--coverage"],
            "--coverage is about this toolkit's own machine, so it can't go with --backend",
        ),
        (
            ["--backend", "a:B", "--engine", "both"],
            "--engine is about this toolkit's own machine, so it can't go with --backend",
        ),
        (["--paging", "4-level"], "there is no paging '4-level'; there is 2-level, off, pae, pse"),
        (
            ["--backend", "tests.cli.test_conform:no_rom", "--rom", "native"],
            "the backend tests.cli.test_conform:no_rom takes no ROM, so --rom can't go with it",
        ),
        (
            ["--backend", "tests.cli.test_conform:with_rom"],
            "the backend tests.cli.test_conform:with_rom needs a ROM, which --rom names",
        ),
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
