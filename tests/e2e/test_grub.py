# SPDX-License-Identifier: GPL-2.0-only
"""GRUB, started by SeaBIOS from a disk's boot sector, loads kernels from an ext2 partition."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e import dmesg, fetch_debian, grub, hosts, linux_session, needs
from tests.e2e.dmesg import Difference
from tests.e2e.needs import slow
from vmi import samples

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

#: What only one of the machines tells a kernel after SeaBIOS has run on both, and why.
DIFFERENCES = (
    Difference(r"^(SMBIOS|DMI)\b", "QEMU hands SeaBIOS these tables; without QEMU it makes general ones"),
    Difference(
        r"TIMER|8254 timer|set up timer|apic 0 pin 0|^\.{5,} (failed|works)",
        "QEMU tells SeaBIOS that IRQ 0 is at the I/O APIC's pin 2; without that its table says pin 0, and "
        "Linux finds out",
    ),
    Difference(r"^pci 0000:00:02\.0: (BAR|ROM) ", "our VGA has its text memory and no frame buffer"),
)

HELLO = {"boot/hello": samples.get("hello").path.read_bytes()}


def test_disk_is_the_same_each_time(grub_modules: Path, tmp_path: Path) -> None:
    disks = [grub.disk(grub_modules, tmp_path, HELLO, ["multiboot /boot/hello"]) for _ in range(2)]
    assert disks[0] == disks[1]
    assert disks[0][510:512] == b"\x55\xaa"


def test_multiboot_kernel(seabios: Path, grub_modules: Path, host: str, tmp_path: Path) -> None:
    commands = ["multiboot /boot/nothing", "echo loading", "multiboot /boot/hello", "boot"]
    disk = grub.disk(grub_modules, tmp_path, HELLO, commands)
    start = hosts.Start(disk=disk, megabytes=16, firmware=hosts.seabios(seabios))
    with hosts.HOSTS[host](start, tmp_path) as guest:
        guest.line.expect_end(60)
    console = guest.line.log.decode("latin-1")
    assert "Booting `test'" in console
    assert "error: file `/boot/nothing' not found." in console
    assert "loading" in console
    assert console.endswith(samples.get("hello").expected)


@slow
def test_linux(
    seabios: Path,
    grub_modules: Path,
    linux: fetch_debian.Linux,
    initrd: bytes,
    host: str,
    tmp_path: Path,
) -> None:
    files = {"boot/vmlinuz": linux.kernel.read_bytes(), "boot/initrd": initrd}
    options = f"{linux_session.CONSOLE} {linux_session.QUICK}"
    commands = [f"linux /boot/vmlinuz {options}", "initrd /boot/initrd", "boot"]
    disk = grub.disk(grub_modules, tmp_path, files, commands, mebibytes=16)
    start = hosts.Start(disk=disk, firmware=hosts.seabios(seabios))
    with hosts.HOSTS[host](start, tmp_path) as guest:
        linux_session.wait_for_shell(guest.line, 120)
        log = bytes(guest.line.log)
        linux_session.hold(guest.line, linux_session.SYSTEM)
        linux_session.end(guest.line, 30)
    if host == "ours":
        with hosts.in_qemu(start, tmp_path) as guest:
            linux_session.wait_for_shell(guest.line, 120)
            verdict = dmesg.compare({"qemu": bytes(guest.line.log), "ours": log}, DIFFERENCES)
        assert not verdict.unexplained, str(verdict)
        assert verdict.common > 250


@slow
def test_rescue_disk(seabios: Path, grub_modules: Path, host: str, tmp_path: Path) -> None:
    """The image that users make: a hybrid of CD and disk, here used as a disk."""
    needs.tool("xorriso", "xorriso")
    tree = tmp_path / "tree"
    (tree / "boot/grub").mkdir(parents=True)
    (tree / "boot/hello").write_bytes(HELLO["boot/hello"])
    (tree / "boot/grub/grub.cfg").write_bytes(grub.configuration("test", ["multiboot /boot/hello", "boot"]))
    image = tmp_path / "rescue.img"
    command = [needs.tool("grub-mkrescue", "grub-common"), "-d", str(grub_modules), "-o", str(image)]
    # few modules and no translations: the machines have to read them all
    command += ["--install-modules=" + grub.MODULES + " iso9660", "--fonts=", "--themes=", "--locales="]
    subprocess.run([*command, str(tree)], check=True, capture_output=True, timeout=120)
    start = hosts.Start(disk=image.read_bytes(), megabytes=32, firmware=hosts.seabios(seabios))
    with hosts.HOSTS[host](start, tmp_path) as guest:
        guest.line.expect_end(60)
    assert guest.line.log.decode("latin-1").endswith(samples.get("hello").expected)
