# SPDX-License-Identifier: GPL-2.0-only
"""The command from end to end: real kernels, real runs, nothing stood in for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import memtest as memtest_screen
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


# Says what it is through the BIOS, waits for a key, shows it and ends with its code.
BOOT_SECTOR = (
    bytes.fromhex(
        "fc 31c0 8ed8 be407c"  # cld; xor ax, ax; mov ds, ax; mov si, 7C40h
        "ac 84c0 7406 b40e cd10 ebf5"  # lodsb; test al, al; jz +6; mov ah, 0Eh; int 10h; jmp -11
        "31c0 cd16 b40e cd10"  # xor ax, ax; int 16h; mov ah, 0Eh; int 10h
        "e6f4 ebfe"  # out F4h, al; jmp $
    ).ljust(0x40, b"\0")
    + b"boot sector: press a key\r\n\0"
)


def test_firmware_boots_a_disk(seabios: Path, tmp_path: Path) -> None:
    """Firmware, disk, keyboard, screen and snapshot at once: choose the disk in SeaBIOS's boot menu."""
    (tmp_path / "disk").write_bytes(BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    start = ("run", "--bios", seabios / "bios-256k.bin", "--video-bios", seabios / "vgabios-stdvga.bin")
    keys = ("--type", "<1s><Esc><1s>1")
    done = vmi(
        *start, "--disk", "disk", *keys, "--timeout", "4s", "--screenshot", "menu.txt", "--save", "saved",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 14, done.stderr
    shown = (tmp_path / "menu.txt").read_text()
    assert "1. ata0-0: " in shown
    assert shown.rstrip().endswith("boot sector: press a key")
    done = vmi("run", "--restore", "saved", "--type", "x", "--screenshot", "end.txt", cwd=tmp_path)
    assert done.returncode == ord("x") << 1 & 0xFF | 1, done.stderr
    assert (tmp_path / "end.txt").read_text().rstrip().endswith("press a key\nx")


def test_memtest_as_docs_show_it(memtest: Path, tmp_path: Path) -> None:
    options = ("-m", "6", "--append", memtest_screen.OPTIONS, "--type", "\\n", "--timeout", "2s")
    done = vmi("run", memtest, *options, "--screenshot", "screen.txt", cwd=tmp_path)
    assert done.returncode == 14, done.stderr
    at = memtest_screen.progress((tmp_path / "screen.txt").read_text())
    assert at is not None
    assert at.test >= 2
    assert (at.errors, at.megabytes) == (0, 6)
