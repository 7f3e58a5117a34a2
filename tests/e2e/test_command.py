# SPDX-License-Identifier: GPL-2.0-only
"""The command from end to end: real kernels, real runs, nothing stood in for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmi import samples

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


def vmi(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vmi", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, check=False, timeout=280)


def expected(name: str) -> bytes:
    return samples.get(name).expected.encode("ascii")


@pytest.mark.parametrize("name", samples.names())
def test_sample_runs_natively_as_its_description_says(name: str, tmp_path: Path) -> None:
    sample = samples.get(name)
    done = vmi("run", f"sample:{name}", cwd=tmp_path)
    assert done.stdout == expected(name)
    assert done.returncode == sample.exit_status, done.stderr


@pytest.mark.parametrize("name", samples.names())
def test_sample_is_the_same_in_both_modes(name: str, tmp_path: Path) -> None:
    done = vmi("compare", f"sample:{name}", "--json", cwd=tmp_path)
    value = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert value["equal"] is True
    native, paravirt = value["results"]
    assert (native["mode"], paravirt["mode"]) == ("native", "paravirt")
    assert native["exit_status"] == paravirt["exit_status"] == samples.get(name).exit_status
    assert not native["calls"]


def test_patch_then_run_from_files(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(samples.get("sched").path.read_bytes())
    assert vmi("patch", "kernel", "-o", "patched", "--report", "report.json", cwd=tmp_path).returncode == 0
    assert vmi("rom", "build", "vmware", "-o", "rom.bin", cwd=tmp_path).returncode == 0
    plain = vmi("run", "kernel", cwd=tmp_path)
    native = vmi("run", "patched", cwd=tmp_path)
    paravirt = vmi("run", "patched", "--rom", "./rom.bin", cwd=tmp_path)
    assert plain.stdout == native.stdout == paravirt.stdout == expected("sched")
    assert plain.returncode == native.returncode == paravirt.returncode
    assert b"paravirt: " in paravirt.stderr


def test_demo(tmp_path: Path) -> None:
    done = vmi("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"What you see" in done.stdout


def test_json_is_the_same_each_time_except_for_this_computer_s_clock(tmp_path: Path) -> None:
    values = [json.loads(vmi("run", "sample:hello", "--json", cwd=tmp_path).stdout) for _ in range(2)]
    for value in values:
        assert value.pop("wall_s") > 0
    assert values[0] == values[1]


def test_timeout(tmp_path: Path) -> None:
    done = vmi("run", "sample:sched", "--timeout", "1us", cwd=tmp_path)
    assert done.returncode == 14
