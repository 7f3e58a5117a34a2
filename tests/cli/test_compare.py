# SPDX-License-Identifier: GPL-2.0-only
"""`vmi compare` and `vmi demo`: what is run, what is shown, and the status for scripts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from tests.cli.fake_run import NATIVE, PARAVIRT, Comparison, FakeRun
from vmi import samples
from vmi.native.cpuid import MODELS
from vmi.patcher import inspect_file, patch
from vmi.rom.build import build


@pytest.fixture
def patched_kernel(tmp_path: Path) -> Path:
    path = tmp_path / "patched"
    path.write_bytes(patch(samples.get("hello").path.read_bytes()).data)
    return path


def cells(text: str) -> list[list[str]]:
    """The rows of a printed table as lists of cells."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    return [row for row in rows if row]


def test_patched_kernel_is_run_as_it_is(vmi: Vmi, fake_run: FakeRun, patched_kernel: Path) -> None:
    result = vmi("compare", patched_kernel, "-m", "16", "--append", "x", "--timeout", "2s")
    assert (result.exit_code, result.stderr) == (0, "")
    assert fake_run.seen == {
        "image": patched_kernel.read_bytes(),
        "modes": ["native", "paravirt"],
        "rom": build("vmware").image,
        "memory": 16 << 20,
        "append": "x",
        "modules": [],
        "timeout_ns": 2 * 10**9,
        "until": None,
        "original": None,
        "model": None,
        "cpus": 1,
        "mmu": "direct",
    }


def test_processor(vmi: Vmi, fake_run: FakeRun, patched_kernel: Path) -> None:
    assert vmi("compare", patched_kernel, "--cpu", "486").exit_code == 0
    assert fake_run.seen["model"] is MODELS["486"]


def test_unpatched_kernel_is_patched_in_memory_and_that_is_said(vmi: Vmi, fake_run: FakeRun) -> None:
    result = vmi("compare", "sample:hello")
    assert result.exit_code == 0
    report = patch(samples.get("hello").path.read_bytes()).report
    assert sentence(result) == (
        "vmi: sample:hello is not patched; patched in memory for this comparison: "
        f"{report.slotted} of {len(report.sites)} sensitive instructions in slots"
    )
    assert inspect_file(fake_run.seen["image"]).patched


def test_table(vmi: Vmi, fake_run: FakeRun, patched_kernel: Path) -> None:
    rows = cells(vmi("compare", patched_kernel).stdout)
    assert ["outcome", "debug_exit", "debug_exit", "–"] in rows
    assert ["console", "7 bytes", "equal", "–"] in rows
    assert ["instructions", "1,000,000", "1,250,000", "×1.25"] in rows
    assert ["guest time", "2.500 ms", "2.500 ms", "×1.00"] in rows
    assert ["time here", "0.50 s", "0.50 s", "×1.00"] in rows
    assert ["exits", "50", "40", "×0.80"] in rows
    assert ["VMI call", "–", "30", "–"] in rows
    assert ["hypercalls and traps", "–", "30", "–"] in rows
    assert ["time in them", "–", "55.000 µs", "–"] in rows
    assert ["interrupt", "10", "10", "×1.00"] in rows
    assert ["calls to the hypervisor", "–", "30", "–"] in rows
    assert ["SetCR3", "–", "25", "–"] in rows


def test_long_lists_are_cut_unless_verbose(vmi: Vmi, fake_run: FakeRun, patched_kernel: Path) -> None:
    calls = {f"Call{number:02}": 100 - number for number in range(20)}
    fake_run.comparison = Comparison((NATIVE, replace(PARAVIRT, calls=calls)))
    short = cells(vmi("compare", patched_kernel).stdout)
    assert ["10 more", "–", str(sum(range(81, 91))), "–"] in short
    assert ["Call19", "–", "81", "–"] not in short
    long = cells(vmi("compare", patched_kernel, "-v").stdout)
    assert ["Call19", "–", "81", "–"] in long


def test_three_modes_have_two_ratios(vmi: Vmi, fake_run: FakeRun) -> None:
    full = replace(NATIVE, mode="full", instructions=3_000_000)
    fake_run.comparison = Comparison((NATIVE, PARAVIRT, full))
    arguments = ("--mode", "native", "--mode", "paravirt", "--mode", "full")
    result = vmi("compare", "sample:hello", *arguments)
    assert fake_run.seen["modes"] == ["native", "paravirt", "full"]
    assert fake_run.seen["original"] == samples.get("hello").path.read_bytes()
    assert "paravirt : native" in result.stdout
    assert ["instructions", "1,000,000", "1,250,000", "3,000,000", "×1.25", "×3.00"] in cells(result.stdout)


def test_full_needs_the_unpatched_kernel(vmi: Vmi, fake_run: FakeRun, patched_kernel: Path) -> None:
    result = vmi("compare", patched_kernel, "--mode", "native", "--mode", "full")
    assert result.exit_code == 2
    assert sentence(result) == "vmi: mode full runs the kernel as it was before patching, so give that file"


def test_until(vmi: Vmi, fake_run: FakeRun, patched_kernel: Path) -> None:
    assert vmi("compare", patched_kernel, "--until", "no bootstrap").exit_code == 0
    assert fake_run.seen["until"] == b"no bootstrap"
    result = vmi("compare", patched_kernel, "--until", "")
    assert (result.exit_code, sentence(result)) == (2, "vmi: the text to wait for must not be empty")


def test_difference_is_shown_and_has_a_status(vmi: Vmi, fake_run: FakeRun, patched_kernel: Path) -> None:
    diff = "--- native\n+++ paravirt\n@@ -1 +1 @@\n-hello\n+help\n"
    other = replace(PARAVIRT, console=b"help\r\n")
    fake_run.comparison = Comparison((NATIVE, other), equal=False, diff=diff)
    result = vmi("compare", patched_kernel)
    assert result.exit_code == 18
    assert ["console", "7 bytes", "differs", "–"] in cells(result.stdout)
    assert result.stdout.endswith("The consoles differ:\n" + diff)


def test_json(vmi: Vmi, fake_run: FakeRun, patched_kernel: Path) -> None:
    fake_run.comparison = replace(fake_run.comparison, equal=False, diff="x")
    result = vmi("compare", patched_kernel, "--json")
    assert json.loads(result.stdout) == fake_run.comparison.to_json()
    assert result.exit_code == 18


@pytest.mark.parametrize(
    ("modes", "text"),
    [
        (["native", "fast"], "mode 'fast' is not understood: expected native, paravirt or full"),
        (["native"], "a comparison needs at least two modes, each of them once"),
        (["full", "full"], "a comparison needs at least two modes, each of them once"),
    ],
)
def test_bad_modes(vmi: Vmi, fake_run: FakeRun, kernel: Path, modes: list[str], text: str) -> None:
    result = vmi("compare", kernel, *(word for mode in modes for word in ("--mode", mode)))
    assert (result.exit_code, sentence(result)) == (2, f"vmi: {text}")


def test_what_is_no_kernel_is_refused(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    result = vmi("compare", kernel)
    assert result.exit_code == 4
    assert sentence(result).startswith("vmi: ")
    assert not fake_run.seen


def test_demo_patches_compares_and_explains(vmi: Vmi, fake_run: FakeRun) -> None:
    result = vmi("demo")
    assert result.exit_code == 0
    assert sentence(result).startswith("vmi: patched sample:sched: ")
    assert fake_run.seen["modes"] == ["native", "paravirt", "full"]
    assert fake_run.seen["original"] == samples.get("sched").path.read_bytes()
    assert fake_run.seen["image"] == patch(samples.get("sched").path.read_bytes()).data
    assert fake_run.seen["rom"] == build("vmware").image
    assert ["instructions", "1,000,000", "1,250,000", "×1.25"] in cells(result.stdout)
    explanation = result.stdout[result.stdout.index("What you see") :].splitlines()
    assert len(explanation) == 10


def test_demo_json(vmi: Vmi, fake_run: FakeRun) -> None:
    value = json.loads(vmi("demo", "--json", "-q").stdout)
    assert value["comparison"] == fake_run.comparison.to_json()
    assert value["patch"] == json.loads(patch(samples.get("sched").path.read_bytes()).report.to_json())


def test_demo_fails_if_the_consoles_differ(vmi: Vmi, fake_run: FakeRun) -> None:
    fake_run.comparison = replace(fake_run.comparison, equal=False, diff="x\n")
    assert vmi("demo").exit_code == 18


def test_client_of_the_interface_is_not_patched(vmi: Vmi, fake_run: FakeRun, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"nothing that the patcher can read")
    result = vmi("compare", kernel, "--no-patch", "--mode", "paravirt", "--mode", "full")
    assert (result.exit_code, result.stderr) == (0, "")
    assert fake_run.seen["image"] == fake_run.seen["original"] == kernel.read_bytes()


def test_plot_is_written_whole_or_not_at_all(vmi: Vmi, patched_kernel: Path, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    result = vmi("compare", patched_kernel, "--timeout", "2s", "--plot", picture, "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    missing = tmp_path / "none" / "out.png"
    result = vmi("compare", patched_kernel, "--plot", missing)
    folder = f"there is no folder {str(missing.parent)!r}"
    assert (result.exit_code, sentence(result)) == (
        6,
        f"vmi: output {str(missing)!r} can't be written: {folder}",
    )
