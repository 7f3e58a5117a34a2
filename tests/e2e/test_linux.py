# SPDX-License-Identifier: GPL-2.0-only
"""Debian's Linux, unmodified, from its own bzImage to a shell: a session at its serial console.

The session's steps are checked one by one against what they must answer (they are the same on both
machines), and the kernel's own account of the machine is compared line by line with the one under QEMU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e import disk_image, dmesg, fetch_debian, hosts, initramfs, linux_session, needs
from tests.e2e.dmesg import Difference
from tests.e2e.needs import slow

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

OPTIONS = f"{linux_session.CONSOLE} {linux_session.QUICK}"
TO_SHELL, TO_END = 60, 30  # seconds

#: What only one of the machines tells a kernel that is loaded directly, and why.
DIFFERENCES = (
    Difference(r"^(SMBIOS|DMI)\b|^DMI not present", "firmware makes these tables, and ours does not run"),
    Difference(r"^PnPBIOS: ", "likewise: there is no plug-and-play BIOS to call"),
    Difference(r"^PCI: PCI BIOS revision", "likewise: PCI is found without the BIOS", only="qemu"),
    Difference(
        r"PIIX/ICH IRQ router", "likewise: the firmware's table of interrupt routes is not there", "qemu"
    ),
    Difference(r"^MPTABLE: (OEM|Product) ID", "who wrote the multiprocessor table stands in it"),
    Difference(r"^pci 0000:00:02\.0: (BAR|ROM) ", "our VGA has its text memory and no frame buffer", "qemu"),
)


@pytest.fixture
def start(linux: fetch_debian.Linux, initrd: bytes) -> hosts.Start:
    return hosts.Start(linux.kernel, OPTIONS, initrd, linux_session.DISK.image())


def boot_log(start: hosts.Start, folder: Path) -> bytes:
    """What the kernel says under QEMU until there is a shell."""
    with hosts.in_qemu(start, folder) as guest:
        linux_session.wait_for_shell(guest.line, TO_SHELL)
        return bytes(guest.line.log)


def test_session(start: hosts.Start, host: str, tmp_path: Path) -> None:
    with hosts.HOSTS[host](start, tmp_path) as guest:
        linux_session.wait_for_shell(guest.line, TO_SHELL)
        log = bytes(guest.line.log)
        answers = linux_session.hold(guest.line)
        linux_session.end(guest.line, TO_END)
        disk = guest.disk()
    assert disk_image.complaints(disk) == ""
    assert disk_image.read_file(disk, linux_session.WRITTEN) == linux_session.written(answers)
    assert disk_image.read_file(disk, "copy") == linux_session.FILES["folder/numbers.txt"]
    if host == "ours":
        verdict = dmesg.compare({"qemu": boot_log(start, tmp_path), "ours": log}, DIFFERENCES)
        assert not verdict.unexplained, str(verdict)
        assert verdict.common > 250


@slow
def test_two_processors(start: hosts.Start, tmp_path: Path) -> None:
    """What QEMU answers is seen with the patched kernel, see test_patched_linux."""
    with hosts.on_ours(replace(start, processors=2), tmp_path) as guest:
        linux_session.wait_for_shell(guest.line, TO_SHELL)
        log = bytes(guest.line.log)
        linux_session.hold(guest.line, linux_session.steps(2))
        linux_session.end(guest.line, TO_END)
    assert b"smp: Brought up 1 node, 2 CPUs" in log
    assert b"TSC warp" not in log


@slow
def test_kernel_with_pae(busybox: bytes, host: str, tmp_path: Path) -> None:
    try:
        linux = fetch_debian.linux("686-pae")
    except fetch_debian.Unavailable as error:
        needs.missing(str(error))
    initrd = initramfs.build(busybox, initramfs.modules_in_order(linux.modules, initramfs.DISK_MODULES))
    start = hosts.Start(linux.kernel, OPTIONS, initrd, linux_session.DISK.image())
    with hosts.HOSTS[host](start, tmp_path) as guest:
        linux_session.wait_for_shell(guest.line, TO_SHELL)
        linux_session.hold(guest.line)
        linux_session.end(guest.line, TO_END)
