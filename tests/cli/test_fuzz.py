# SPDX-License-Identifier: GPL-2.0-only
"""``vmi fuzz`` as a command: bounds, files, going on, statuses, and Ctrl-C."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conformance.mutants import MUTANTS
from vmi.cli import app
from vmi.cli.common import INTERRUPTED
from vmi.conformance import campaign
from vmi.errors import ExitCode

RUN = CliRunner()
FEW = ["fuzz", "--paging", "off", "-n", "20"]


@pytest.fixture
def bad_rom(tmp_path: Path) -> Path:
    mutant = next(each for each in MUTANTS if each.name == "INSB runs downwards")
    path = tmp_path / "bad one.rom"
    path.write_bytes(mutant.rom())
    return path


def test_nothing_is_found() -> None:
    done = RUN.invoke(app, FEW)
    assert done.exit_code == 0 and done.stdout == "no difference in the sequences of seeds 0 to 19\n"
    done = RUN.invoke(app, [*FEW, "--from", "100", "--json"])
    assert json.loads(done.stdout) == {
        "paging": "off",
        "mmu": "direct",
        "first": 100,
        "next": 120,
        "findings": [],
    }


def test_no_time_at_all() -> None:
    done = RUN.invoke(app, ["fuzz", "--seconds", "0"])
    assert done.exit_code == 0 and done.stdout == "no difference in the sequences of no seed\n"


def test_a_finding_is_replayed_by_conform(bad_rom: Path, tmp_path: Path) -> None:
    file = tmp_path / "found it.json"
    done = RUN.invoke(app, ["fuzz", "--rom", str(bad_rom), "--paging", "off", "-o", str(file)])
    assert done.exit_code == ExitCode.NOT_CONFORMING and "  INSB(edi=" in done.stdout
    assert done.stderr == f"vmi: run it again with vmi conform --rom '{bad_rom}' --replay '{file}'\n"
    again = RUN.invoke(app, ["conform", "--rom", str(bad_rom), "--replay", str(file), "--json"])
    data = json.loads(again.stdout)
    assert again.exit_code == ExitCode.NOT_CONFORMING and data["counts"] == {"FAIL": 1}
    (case,) = data["cases"]
    assert case["id"] == "INSB/finding 1 of found it.json" and case["paging"] == "off"
    again_alone = f"vmi conform --rom '{bad_rom}' --replay '{file}' 'INSB/finding 1 of found it.json'"
    assert case["repro"] == again_alone
    alone = RUN.invoke(app, shlex.split(again_alone)[1:])
    assert alone.exit_code == ExitCode.NOT_CONFORMING and "FAIL: 1 FAIL" in alone.stdout
    assert done.stdout.rstrip().endswith(case["reasons"][0])
    good = RUN.invoke(app, ["conform", "--replay", str(file), "--replay", str(file)])
    assert good.exit_code == 0 and good.stdout == "PASS: 2 PASS; 2 assertions\n"
    shown = RUN.invoke(app, ["conform", "--replay", str(file), "--list"])
    assert shown.stdout.startswith("INSB/finding 1 of found it.json")


def test_where_nothing_is_found_nothing_is_left_of_another_time(tmp_path: Path) -> None:
    file = tmp_path / "f[1].json"
    file.write_text("findings of another time")
    assert RUN.invoke(app, [*FEW, "-o", str(file)]).exit_code == 0
    assert json.loads(file.read_text()) == {"findings": []}
    done = RUN.invoke(app, ["conform", "--replay", str(file)])
    assert done.exit_code == 0 and done.stdout == "SKIP: no cases; 0 assertions\n"
    assert done.stderr == "vmi: these files hold no finding, so there is nothing to run\n"


def test_files_that_must_not_be_the_same(bad_rom: Path, tmp_path: Path) -> None:
    state, rom = str(tmp_path / "s"), str(bad_rom)
    for options, sentence in (
        (["--rom", rom, "-o", rom], f"{rom!r} is the input; the output needs a name of its own"),
        (["-o", state, "--state", f"{tmp_path}/./s"], "--state and --output need files of their own"),
    ):
        done = RUN.invoke(app, [*FEW, *options])
        assert done.exit_code == ExitCode.USAGE and done.stderr.startswith(f"vmi: {sentence}")


def test_a_replayed_finding_can_be_waived(bad_rom: Path, tmp_path: Path) -> None:
    file, waivers = tmp_path / "f.json", tmp_path / "waivers.toml"
    RUN.invoke(app, ["fuzz", "--rom", str(bad_rom), "--paging", "off", "-o", str(file)])
    waivers.write_text(
        '[[waiver]]\ncase = "INSB/finding 1 of f.json"\nreason = "known"\nexpires = 9999-01-01\n'
    )
    command = ["conform", "--rom", str(bad_rom), "--replay", str(file), "--waivers", str(waivers)]
    done = RUN.invoke(app, command)
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == "WAIVED: 1 WAIVED; 1 assertions"


def test_a_state_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    for seeds in ("0 to 19", "0 to 39"):
        done = RUN.invoke(app, ["fuzz", "--mmu", "shadow", "-n", "20", "--state", str(file)])
        assert done.exit_code == 0 and done.stdout == f"no difference in the sequences of seeds {seeds}\n"
    assert json.loads(file.read_text())["next"] == 40
    for options, sentence in (
        (["--from", "3"], f"the campaign in {str(file)!r} has its seeds; leave --from out to go on"),
        (["--paging", "off"], f"the campaign in {str(file)!r} has --paging 2-level, not off"),
        (["--mmu", "direct"], f"the campaign in {str(file)!r} has --mmu shadow, not direct"),
    ):
        done = RUN.invoke(app, ["fuzz", "--state", str(file), *options])
        assert done.exit_code == ExitCode.USAGE and done.stderr == f"vmi: {sentence}\n"
    done = RUN.invoke(app, ["fuzz", "--rom", "native", "--state", str(file)])
    assert (
        done.exit_code == ExitCode.BAD_INPUT and "the campaign is about the ROM with SHA-256" in done.stderr
    )
    file.write_bytes(file.read_bytes()[:100])
    done = RUN.invoke(app, ["fuzz", "--state", str(file)])
    assert done.exit_code == ExitCode.BAD_INPUT and done.stderr.count("\n") == 1
    assert done.stderr.startswith("vmi: this is no state of a campaign: JSONDecodeError ")


def test_ctrl_c_keeps_what_there_is(bad_rom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, real = tmp_path / "state.json", campaign.run
    monkeypatch.setattr(campaign, "PIECE", 10)

    def interrupted(*args: Any, **kwargs: Any) -> Iterator[campaign.State]:
        for state in real(*args, **kwargs):
            yield state
            if state.next >= stop:
                raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "run", interrupted)
    stop = 30
    done = RUN.invoke(app, ["fuzz", "--paging", "off", "--state", str(file)])
    assert done.exit_code == INTERRUPTED and done.stderr == "vmi: interrupted\n"
    assert done.stdout == "no difference in the sequences of seeds 0 to 29\n"
    assert json.loads(file.read_text())["next"] == 30
    stop, found = 600, tmp_path / "found.json"
    done = RUN.invoke(
        app, ["fuzz", "--rom", str(bad_rom), "--paging", "off", "--findings", "99", "-o", str(found)]
    )
    assert done.exit_code == ExitCode.NOT_CONFORMING and json.loads(found.read_text())["findings"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_rom_that_can_not_begin(jobs: str, tmp_path: Path) -> None:
    path = tmp_path / "refuses.rom"
    path.write_bytes(next(each for each in MUTANTS if each.name == "VMI_Init says no").rom())
    done = RUN.invoke(app, [*FEW, "--rom", str(path), "-j", jobs])
    assert done.exit_code == ExitCode.ROM and not done.stdout
    assert done.stderr == (
        "vmi: the guest on this ROM can't begin any sequence: while VMI_Init, which answered 0x1: done, "
        "the guest ended itself with debug-exit value 0x1\n"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--paging", "4-level"], "there is no paging '4-level'; there is off, 2-level, pse, pae"),
        (["--mmu", "none"], "there is no MMU 'none'; there is direct, shadow"),
        (["--rom", "vmwar"], "ROM 'vmwar' is neither a flavour (native, vmware) nor the name of a file"),
        (["-o", "/dev/null/x"], "output '/dev/null/x' can't be written: "),
        (["--state", "/dev/null/x"], "output '/dev/null/x' can't be written: "),
    ],
)
def test_what_makes_no_sense(options: list[str], sentence: str) -> None:
    done = RUN.invoke(app, ["fuzz", *options])
    assert done.exit_code in (ExitCode.USAGE, ExitCode.BAD_INPUT, ExitCode.OUTPUT) and not done.stdout
    assert done.stderr.startswith(f"vmi: {sentence}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--level", "1"], "what --replay runs is said by its files; only names choose among that"),
        (["--paging", "off"], "what --replay runs is said by its files; only names choose among that"),
        ([], "this is no file of findings of vmi fuzz: JSONDecodeError Expecting value"),
    ],
)
def test_what_can_not_be_replayed(options: list[str], sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text("nothing")
    done = RUN.invoke(app, ["conform", "--replay", str(file), *options])
    assert done.exit_code in (ExitCode.USAGE, ExitCode.BAD_INPUT) and not done.stdout
    assert done.stderr.startswith(f"vmi: {sentence}") and done.stderr.count("\n") == 1
