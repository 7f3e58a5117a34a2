# SPDX-License-Identifier: GPL-2.0-only
"""A BIOS that is not ours accepts the ROMs: SeaBIOS in QEMU checks them, runs their entry, and goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.qemu import needs_qemu
from vmi.rom.build import FLAVOURS, build

pytestmark = [pytest.mark.e2e, needs_qemu]


def bios_log(image: Path) -> list[str]:
    """What SeaBIOS says on its debug port, up to where it looks for something to boot."""
    command = ["qemu-system-i386", "-M", "isapc", "-cpu", "qemu32", "-m", "16", "-nodefaults", "-no-reboot"]
    command += ["-display", "none", "-option-rom", str(image)]
    command += ["-chardev", "stdio,id=log", "-device", "isa-debugcon,iobase=0x402,chardev=log"]
    lines: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as qemu:
        assert qemu.stdout is not None
        for line in qemu.stdout:
            lines.append(line.strip())
            if line.startswith("Booting from"):
                qemu.kill()
                break
    return lines


@pytest.mark.parametrize("flavour", sorted(FLAVOURS))
def test_bios_runs_the_entry_and_boots_on(tmp_path: Path, flavour: str) -> None:
    image = build(flavour).image
    (tmp_path / "rom.bin").write_bytes(image)
    log = bios_log(tmp_path / "rom.bin")
    # Without a display ours is the first in the window; the next ROM starts right behind it.
    assert "Running option rom at c000:0003" in log
    assert f"Running option rom at {(0xC0000 + len(image)) >> 4:04x}:0003" in log
    assert log[-1].startswith("Booting from")


def test_bios_refuses_a_bad_checksum(tmp_path: Path) -> None:
    image = bytearray(build("native").image)
    image[-1] ^= 1
    (tmp_path / "rom.bin").write_bytes(image)
    refused = [line for line in bios_log(tmp_path / "rom.bin") if "bad checksum" in line]
    assert len(refused) == 1 and refused[0].endswith(f"len={len(image)} sum=1")
