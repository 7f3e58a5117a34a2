# SPDX-License-Identifier: GPL-2.0-only
"""`vmi run`: options reach the library, the guest's console reaches the user, the status is right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from tests.cli.fake_run import FakeRun, Outcome
from vmi import samples
from vmi.errors import CallNotServed, EngineError, GuestCrash
from vmi.native.boot.multiboot import Module
from vmi.patcher import patch
from vmi.rom.build import build


def test_defaults(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    result = vmi("run", kernel)
    assert result.exit_code == 0
    assert fake_run.seen == {
        "image": b"some kernel",
        "rom": None,
        "memory": 64 << 20,
        "append": "",
        "modules": [],
        "timeout_ns": 60 * 10**9,
        "until": None,
        "full": False,
    }


def test_every_option(vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "rom.bin").write_bytes(b"rom")
    (tmp_path / "disk").write_bytes(b"disk")
    disk = tmp_path / "disk"
    result = vmi(
        *("run", kernel, "--rom", tmp_path / "rom.bin", "-m", "8M", "--append", "a=1 b"),
        *("--initrd", disk, "--initrd", f"{disk},x y,z", "--timeout", "1.5ms"),
    )
    assert result.exit_code == 0, result.stderr
    assert fake_run.seen == {
        "image": b"some kernel",
        "rom": b"rom",
        "memory": 8 << 20,
        "append": "a=1 b",
        "modules": [Module(b"disk", str(disk)), Module(b"disk", f"{disk} x y,z")],
        "timeout_ns": 1_500_000,
        "until": None,
        "full": False,
    }


def test_rom_by_flavour(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    assert vmi("run", kernel, "--rom", "vmware").exit_code == 0
    assert fake_run.seen["rom"] == build("vmware").image


def test_rom_for_an_unpatched_kernel_is_noted(vmi: Vmi, fake_run: FakeRun, tmp_path: Path) -> None:
    notes = vmi("run", "sample:hello", "--rom", "native").stderr.splitlines()
    assert (
        notes[0] == "vmi: sample:hello is not patched; it uses the ROM only if it is a VMI client by itself"
    )
    assert len(notes) == 2
    (tmp_path / "patched").write_bytes(patch(samples.get("hello").path.read_bytes()).data)
    sentence(vmi("run", tmp_path / "patched", "--rom", "native"))


def test_full(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    assert vmi("run", kernel, "--full", "--timeout", "none").exit_code == 0
    assert (fake_run.seen["full"], fake_run.seen["timeout_ns"]) == (True, None)


def test_console_is_raw_in_a_pipe_and_the_outcome_is_on_stderr(
    vmi: Vmi, fake_run: FakeRun, kernel: Path
) -> None:
    fake_run.pieces = (b"\x1b[31mred", b"\xff\x00\r\n")
    result = vmi("run", kernel)
    assert result.stdout_bytes == b"\x1b[31mred\xff\x00\r\n"
    assert sentence(result) == (
        "vmi: native: the guest ended itself "
        "(debug_exit; 1,000,000 instructions, 2.500 ms guest time, 0.5 s here)"
    )


@pytest.mark.parametrize("status", [0, 1, 33, 12, 14, 16])
def test_exit_status_is_the_run_s(vmi: Vmi, fake_run: FakeRun, kernel: Path, status: int) -> None:
    fake_run.result = replace(fake_run.result, exit_status=status, outcome=Outcome.TIMEOUT)
    assert vmi("run", kernel).exit_code == status


def test_quiet_leaves_the_console_only(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    result = vmi("run", kernel, "-q")
    assert (result.stdout_bytes, result.stderr) == (b"hello\r\n", "")


def test_verbose_counts_exits_and_calls(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    fake_run.result = replace(fake_run.result, exits={"port": 3, "halt": 1}, calls={"SetCR3": 1})
    lines = [line.split() for line in vmi("run", kernel, "-v").stderr.splitlines()]
    assert ["port", "3", "75.0", "%"] in lines
    assert ["halt", "1", "25.0", "%"] in lines
    assert ["SetCR3", "1", "100.0", "%"] in lines
    assert ["total", "4"] in lines


def test_json_holds_the_console(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    result = vmi("run", kernel, "--json")
    assert json.loads(result.stdout) == fake_run.result.to_json()


def test_serial_to_a_file(vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path) -> None:
    result = vmi("run", kernel, "--serial", f"file:{tmp_path / 'log'}")
    assert result.stdout_bytes == b""
    assert (tmp_path / "log").read_bytes() == b"hello\r\n"


def test_serial_file_is_complete_even_if_the_run_fails(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path
) -> None:
    fake_run.error = EngineError("the engine is not what it should be")
    result = vmi("run", kernel, "--serial", f"file:{tmp_path / 'log'}")
    assert result.exit_code == 20
    assert (tmp_path / "log").read_bytes() == b"hello\r\n"


def test_serial_file_that_cant_be_written_is_known_before_the_run(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path
) -> None:
    result = vmi("run", kernel, "--serial", f"file:{tmp_path}")
    assert result.exit_code == 6
    assert sentence(result) == f"vmi: output {str(tmp_path)!r} can't be written: Is a directory"
    assert not fake_run.seen


def test_serial_to_nowhere(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    assert vmi("run", kernel, "--serial", "none").stdout_bytes == b""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GuestCrash("triple fault at 0x00100000"), 12),
        (CallNotServed("call APICRead is not served"), 16),
        (EngineError("unicorn 9.9 is not 2.1.4"), 20),
    ],
)
def test_library_errors_are_one_sentence(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, error: Exception, status: int
) -> None:
    fake_run.error = error
    result = vmi("run", kernel)
    assert result.exit_code == status
    assert sentence(result) == f"vmi: {error}"


def test_interrupt(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    fake_run.error = KeyboardInterrupt()
    result = vmi("run", kernel)
    assert (result.exit_code, sentence(result)) == (130, "vmi: interrupted")


def test_unexpected_error_is_one_sentence_with_a_hint(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VMI_TRACEBACK", raising=False)
    fake_run.error = ZeroDivisionError("division by zero")
    result = vmi("run", kernel)
    assert result.exit_code == 1
    assert sentence(result) == (
        "vmi: internal error, please report it (VMI_TRACEBACK=1 shows where): "
        "ZeroDivisionError: division by zero"
    )
    monkeypatch.setenv("VMI_TRACEBACK", "1")
    assert vmi("run", kernel).stderr.startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["missing"], 4, "kernel 'missing' can't be read: No such file or directory"),
        (
            ["KERNEL", "--full", "--rom", "native"],
            2,
            "--full runs without a ROM, so it can't be combined with --rom",
        ),
        (
            ["KERNEL", "--rom", "nonsense"],
            2,
            "ROM 'nonsense' is neither a flavour (native, vmware) nor the name of a file",
        ),
        (["KERNEL", "--rom", "./no.bin"], 4, "ROM './no.bin' can't be read: No such file or directory"),
        (
            ["KERNEL", "-m", "64X"],
            2,
            "memory size '64X' is not understood: expected a number of MiB or one with K, M or G, "
            "from 1M to below 4G, in whole pages of 4K",
        ),
        (
            ["KERNEL", "--timeout", "soon"],
            2,
            "time 'soon' is not understood: expected 'none', or a number above 0 in ns, us, ms, s, m or h",
        ),
        (
            ["KERNEL", "--serial", "pty"],
            2,
            "serial port 'pty' is not understood: expected stdio, file:PATH or none",
        ),
        (["KERNEL", "--initrd", ",x"], 2, "module ',x' is not understood: expected FILE or FILE,ARGUMENTS"),
        (["KERNEL", "--initrd", "no"], 4, "module 'no' can't be read: No such file or directory"),
    ],
)
def test_bad_arguments(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, arguments: list[str], status: int, text: str
) -> None:
    result = vmi("run", *(str(kernel) if one == "KERNEL" else one for one in arguments))
    assert result.exit_code == status
    assert sentence(result) == f"vmi: {text}"
    assert not fake_run.seen


def test_unknown_sample(vmi: Vmi, fake_run: FakeRun) -> None:
    result = vmi("run", "sample:nonsense")
    assert result.exit_code == 4
    assert sentence(result).startswith("vmi: no sample kernel is called 'nonsense'; there are ")


def test_unknown_option_is_a_usage_error(vmi: Vmi, kernel: Path) -> None:
    result = vmi("run", kernel, "--nonsense")
    assert result.exit_code == 2
    assert "--nonsense" in result.stderr
