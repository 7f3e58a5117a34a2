# SPDX-License-Identifier: GPL-2.0-only
"""`vmi stat`: the table of exits, its selection and order, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from tests.cli.fake_run import PARAVIRT, FakeRun
from vmi import samples


@pytest.fixture
def kernel(tmp_path: Path, fake_run: FakeRun) -> Path:
    fake_run.result = PARAVIRT
    path = tmp_path / "kernel"
    path.write_bytes(samples.get("hello").path.read_bytes())
    return path


def test_table_has_the_shape_of_perf_kvm_stat(vmi: Vmi, kernel: Path) -> None:
    result = vmi("stat", kernel)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "                 VM-EXIT    Samples  Samples%    Time%     Min Time     Max Time        Avg time\n"
        "\n"
        "               interrupt         10    25.00%   56.00%       5.00us       9.00us"
        "          7.00us ( +-   0.00% )\n"
        "        VMI call: SetCR3         25    62.50%   40.00%       1.00us       4.00us"
        "          2.00us ( +-  12.50% )\n"
        "          VMI call: Halt          5    12.50%    4.00%       1.00us       1.00us"
        "          1.00us ( +-   0.00% )\n"
        "\n"
        "Total Samples:40, Total events handled time:125.00us.\n"
    )


def test_selection_and_order(vmi: Vmi, kernel: Path) -> None:
    def reasons(*options: str) -> list[str]:
        result = vmi("stat", kernel, "--json", *options)
        return [row["reason"] for row in json.loads(result.stdout)["exits"]]

    assert reasons("--key", "sample") == ["VMI call: SetCR3", "interrupt", "VMI call: Halt"]
    assert reasons("--key", "name") == ["VMI call: Halt", "VMI call: SetCR3", "interrupt"]
    assert reasons("--event", "hypercall") == ["VMI call: SetCR3", "VMI call: Halt"]
    assert reasons("--event", "hypercall", "--event", "interrupt", "--key", "name") == reasons(
        "--key", "name"
    )
    assert reasons("--event", "trap") == []


def test_run_is_the_one_asked_for(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    vmi(
        "stat",
        kernel,
        "--full",
        "-m",
        "16",
        "--append",
        "x",
        "--timeout",
        "2s",
        "--until",
        "login:",
        "--smp",
        "2",
        "--mmu",
        "shadow",
    )
    seen = fake_run.seen
    assert (seen["full"], seen["memory"], seen["append"], seen["rom"]) == (True, 16 << 20, "x", None)
    assert (seen["cpus"], seen["mmu"]) == (2, "shadow")
    assert (seen["timeout_ns"], seen["until"], seen["timed"]) == (2 * 10**9, b"login:", True)


def test_nothing_to_show_is_no_error(vmi: Vmi, kernel: Path) -> None:
    result = vmi("stat", kernel, "--event", "trap")
    assert result.exit_code == 0
    assert result.stdout.endswith("\n\nTotal Samples:0, Total events handled time:0.00us.\n")


def test_verbose_says_how_the_guest_ended(vmi: Vmi, kernel: Path) -> None:
    assert vmi("stat", kernel, "-v").stderr == "paravirt: the guest ended itself; 2.500 ms guest time\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--event", "exit"],
            "event 'exit' is not understood: expected one of hypercall, trap, system call, fault, interrupt, "
            "port, device, halt, processor",
        ),
        (["--key", "size"], "sort key 'size' is not understood: expected time, sample, name"),
        (["--mmu", "shadow"], "--mmu is about a hypervisor's work, so it needs --rom or --full"),
        (["--full", "--rom", "vmware"], "--full runs without a ROM, so it can't be combined with --rom"),
    ],
)
def test_what_is_refused(vmi: Vmi, kernel: Path, options: list[str], message: str) -> None:
    result = vmi("stat", kernel, *options)
    assert (result.exit_code, sentence(result)) == (2, f"vmi: {message}")
