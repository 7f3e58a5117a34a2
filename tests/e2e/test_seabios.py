# SPDX-License-Identifier: GPL-2.0-only
"""SeaBIOS, as Debian ships it, starts both machines, and boots a patched kernel with our ROM plugged in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import grub, hosts
from vmi import samples
from vmi.patcher import patch
from vmi.rom.build import build

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SECONDS = 60


@pytest.mark.parametrize("bios", ["bios.bin", "bios-256k.bin"])
def test_without_a_disk_it_says_so_on_the_screen(seabios: Path, host: str, bios: str, tmp_path: Path) -> None:
    start = hosts.Start(megabytes=16, firmware=hosts.seabios(seabios, bios))
    with hosts.HOSTS[host](start, tmp_path) as guest:
        screen = guest.wait_for_screen(lambda screen: "No bootable device." in screen, SECONDS)
    assert screen.lstrip().startswith("SeaBIOS (version ")
    assert "Booting from Hard Disk...\nBoot failed: could not read the boot disk" in screen


def test_patched_kernel_boots_through_bios_and_boot_loader(
    seabios: Path, grub_modules: Path, host: str, tmp_path: Path
) -> None:
    # behind QEMU stands no hypervisor that the other ROM could call
    rom = build("native" if host == "qemu" else "vmware").image
    sample = samples.get("sched")
    files = {"boot/kernel": patch(sample.path.read_bytes()).data}
    disk = grub.disk(grub_modules, tmp_path, files, ["multiboot /boot/kernel", "boot"])
    start = hosts.Start(disk=disk, megabytes=32, rom=rom, firmware=hosts.seabios(seabios))
    with hosts.HOSTS[host](start, tmp_path) as guest:
        guest.line.expect_end(SECONDS)
    console = guest.line.log.decode("latin-1")
    assert console.endswith(sample.expected), console
    if isinstance(guest, hosts.OurGuest):
        assert guest.calls["VMI_Init"] == 1
        assert guest.calls["SetCR3"] > 10
