# SPDX-License-Identifier: GPL-2.0-only
"""Debian's Linux, patched from bzImage to bzImage: the same session as the original holds, wherever it runs.

Without a ROM the patched file must be what the original is; with the `native` ROM its slots are connected
to calls that do what their instructions did. QEMU runs it on one processor and on two, at addresses that the
kernel draws by lot, and, for the kernel with PAE, on a processor with NX and with page tables isolated.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.e2e import dmesg, fetch_debian, hosts, initramfs, linux_session, needs
from tests.e2e.dmesg import Difference
from tests.e2e.needs import slow
from tests.e2e.test_linux import OPTIONS, TO_END, TO_SHELL
from vmi import sitetable
from vmi.patcher import Patched, inspect_file, patch
from vmi.rom.build import build

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

#: The kernel stays where it is linked, so that a place in memory can be told beforehand.
STAY = "nokaslr"
#: Its paravirtual operations stay calls through pointers, whether there is a ROM or not.
KEEP = "noreplace-paravirt"

#: What the patched file changes in the kernel's own account of its start, and why.
PATCH_DIFFERENCES = (
    Difference(
        r"^(extended physical RAM map:|reserve setup_data: )",
        "where there is a setup_data list, the kernel shows the memory map once more, with the nodes in it: "
        "the .vmi segment is such a node",
        "patched",
    ),
)


ROM_DIFFERENCES = (
    Difference(r"^pci 0000:00:03\.0: ", "a ROM is plugged in as a device on the PCI bus", "vmware"),
)


@cache
def patched_file(path: Path) -> Patched:
    return patch(path.read_bytes())


def patched_start(kernel: Path, folder: Path, rom: str | None, append: str, initrd: bytes) -> hosts.Start:
    """The patched kernel's start with the session's disk."""
    file = folder / "vmlinuz.vmi"
    file.write_bytes(patched_file(kernel).data)
    image = None if rom is None else build(rom).image
    disk = linux_session.DISK.image()
    return hosts.Start(file, append, initrd, disk, megabytes=128, rom=image)


def hold_session(start: hosts.Start, host: str, folder: Path) -> bytes:
    """Run the session to its end; gives what the kernel said before the first prompt."""
    with hosts.HOSTS[host](start, folder) as guest:
        linux_session.wait_for_shell(guest.line, TO_SHELL * 2)
        log = bytes(guest.line.log)
        linux_session.hold(guest.line, linux_session.steps(start.processors))
        linux_session.end(guest.line, TO_END)
    return log


@pytest.mark.parametrize(
    ("processors", "rom"),
    [(1, None), (2, "native"), pytest.param(2, None, marks=slow), pytest.param(1, "native", marks=slow)],
)
def test_under_qemu(
    linux: fetch_debian.Linux, initrd: bytes, tmp_path: Path, processors: int, rom: str | None
) -> None:
    """Where the kernel lies is drawn by lot each time, as with the original."""
    start = patched_start(linux.kernel, tmp_path, rom, OPTIONS, initrd)
    hold_session(replace(start, processors=processors), "qemu", tmp_path)


@pytest.mark.parametrize("rom", [None, pytest.param("native", marks=slow)])
def test_on_ours(linux: fetch_debian.Linux, initrd: bytes, tmp_path: Path, rom: str | None) -> None:
    options = f"{OPTIONS} {linux_session.STEADY}"
    hold_session(patched_start(linux.kernel, tmp_path, rom, options, initrd), "ours", tmp_path)


@slow
@pytest.mark.parametrize("rom", [None, "native", "vmware"])
def test_two_processors_on_ours(
    linux: fetch_debian.Linux, initrd: bytes, tmp_path: Path, rom: str | None
) -> None:
    """Behind the last ROM both are de-privileged, the second one on its way out of real mode."""
    start = patched_start(linux.kernel, tmp_path, rom, f"{OPTIONS} {linux_session.STEADY}", initrd)
    log = hold_session(replace(start, processors=2), "ours", tmp_path)
    assert b"smp: Brought up 1 node, 2 CPUs" in log


@pytest.mark.parametrize("place", ["", pytest.param(f"{STAY} {KEEP}", marks=slow, id="kept")])
def test_de_privileged(linux: fetch_debian.Linux, initrd: bytes, tmp_path: Path, place: str) -> None:
    """On ring 1, with the hypervisor behind the ROM: the kernel de-privileges itself when it activates.

    Where its place in memory is known, its account of its start is that of the same file on ring 0, but for
    the ROM's PCI device.
    """
    options = f"{OPTIONS} {linux_session.STEADY} {place}"
    start = patched_start(linux.kernel, tmp_path, "vmware", options, initrd)
    with hosts.on_ours(start, tmp_path) as guest:
        assert isinstance(guest, hosts.OurGuest)
        linux_session.wait_for_shell(guest.line, TO_SHELL * 2)
        log = bytes(guest.line.log)
        assert guest.machine.cpu.cpl in (1, 3)
        linux_session.hold(guest.line)
        linux_session.end(guest.line, TO_END)
        calls, exits = guest.calls, guest.machine.exits
    assert {"SetCR3", "SetGDT", "SetIDT", "SetTR", "Halt"} <= set(calls)
    refused = sum(n for reason, n in exits.items() if reason.startswith("privileged instruction"))
    assert refused < exits["VMI call"] / 100, "what the ROM serves does not have to be trapped"
    assert exits["breakpoint: iretd"] == 0, "the ROM's faults are the kernel's, so its IRET can be a call"
    if place:
        bare = replace(start, rom=None, processor="i686")
        with hosts.on_ours(bare, tmp_path) as guest:
            linux_session.wait_for_shell(guest.line, TO_SHELL * 2)
            verdict = dmesg.compare({"native": bytes(guest.line.log), "vmware": log}, ROM_DIFFERENCES)
        assert not verdict.unexplained, str(verdict)
        assert verdict.common > 250


def test_says_what_the_original_says(linux: fetch_debian.Linux, initrd: bytes, tmp_path: Path) -> None:
    """The kernel's account of its start differs in the memory that the patch takes, and in nothing else."""
    start = patched_start(linux.kernel, tmp_path, None, f"{OPTIONS} {STAY}", initrd)
    logs = {}
    for name, kernel in (("original", linux.kernel), ("patched", start.kernel)):
        with hosts.in_qemu(replace(start, kernel=kernel), tmp_path) as guest:
            linux_session.wait_for_shell(guest.line, TO_SHELL)
            logs[name] = bytes(guest.line.log)
    verdict = dmesg.compare(logs, PATCH_DIFFERENCES)
    assert not verdict.unexplained, str(verdict)
    assert verdict.common > 250


def test_slots_are_connected_when_there_is_a_rom(
    linux: fetch_debian.Linux, initrd: bytes, tmp_path: Path
) -> None:
    table = inspect_file(patched_file(linux.kernel).data).table
    assert table is not None
    status = table.header.rom_reserve - 4096 - table.header.bias + sitetable.header_offset("status")
    for rom, expected in ((None, sitetable.Status.NATIVE), ("native", sitetable.Status.ACTIVE)):
        start = patched_start(linux.kernel, tmp_path, rom, f"{OPTIONS} {STAY}", initrd)
        with hosts.in_qemu(start, tmp_path) as guest:
            assert isinstance(guest, hosts.QemuGuest)
            linux_session.wait_for_shell(guest.line, TO_SHELL)
            assert int.from_bytes(guest.qemu.memory(status, 4), "little") == expected


@slow
@pytest.mark.parametrize("processor", ["qemu32", "max"])
@pytest.mark.parametrize(("processors", "rom"), [(1, None), (2, None), (1, "native"), (2, "native")])
def test_pae_under_qemu(
    busybox: bytes, tmp_path: Path, processor: str, processors: int, rom: str | None
) -> None:
    """NX is on where there is no ROM and the processor has it; page tables are isolated in both cases."""
    try:
        linux = fetch_debian.linux("686-pae")
    except fetch_debian.Unavailable as error:
        needs.missing(str(error))
    initrd = initramfs.build(busybox, initramfs.modules_in_order(linux.modules, initramfs.DISK_MODULES))
    start = patched_start(linux.kernel, tmp_path, rom, f"{OPTIONS} pti=on", initrd)
    log = hold_session(replace(start, processor=processor, processors=processors), "qemu", tmp_path).decode()
    assert "Kernel/User page tables isolation: enabled" in log
    assert bool(re.search(r"NX \(Execute Disable\) protection: active", log)) == (
        processor == "max" and rom is None
    )
