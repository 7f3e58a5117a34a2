# SPDX-License-Identifier: GPL-2.0-only
"""Patched kernels through GRUB 2, whose reader of ELF files is stricter than QEMU's own; some through both.

GRUB finds kernels by their multiboot header or Linux's setup header, loads what program headers or load
addresses say, and gives a memory map and a command line: all that patching changes goes through it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.e2e import fetch_debian, grub, hosts, linux_session
from tests.e2e.needs import slow
from tests.e2e.test_gnumach import APPEND, PANIC, PATCH_DIFFERENCES, lines
from tests.e2e.test_linux import OPTIONS, TO_END, TO_SHELL
from tests.e2e.test_patched_linux import STAY, patched_file
from tests.patcher import greedy, loaded
from vmi import sitetable
from vmi.patcher import Options, inspect_file, patch
from vmi.rom.build import build
from vmi.sitetable import MapStatus, Status

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

#: GRUB says this on the serial port before it starts a kernel.
STARTS = b"Booting `test'"


@dataclass(frozen=True)
class Told:
    """What a kernel put on the serial port, and its `.vmi` header in memory (None for an original)."""

    log: bytes
    header: sitetable.Header | None


@cache
def patched(original: bytes, place: str = "auto") -> bytes:
    return patch(original, Options(place=place)).data


def header_at(kernel: bytes) -> int:
    """Physical address of the `.vmi` segment."""
    table = inspect_file(kernel).table
    assert table is not None
    return table.header.rom_reserve - 4096 - table.header.bias & 0xFFFFFFFF


def boot(start: hosts.Start, kernel: bytes, until: bytes, folder: Path, is_patched: bool) -> Told:
    with hosts.in_qemu(start, folder) as guest:
        assert isinstance(guest, hosts.QemuGuest)
        guest.line.expect(until, 120)
        header = None
        if is_patched:
            header = sitetable.parse_header(guest.qemu.memory(header_at(kernel), sitetable.HEADER_SIZE))
        return Told(bytes(guest.line.log), header)


def rom_image(name: str | None) -> bytes | None:
    return None if name is None else build(name).image


def assert_status(told: Told, rom: str | None, map_status: MapStatus) -> None:
    assert told.header is not None
    assert told.header.map_status == map_status
    if rom is None:
        assert (told.header.status, told.header.rom_base) == (Status.NATIVE, 0)
    else:
        assert told.header.status == Status.ACTIVE
        assert told.header.rom_base in range(0xC0000, 0xE0000, 2048)


# --- GNU Mach -----------------------------------------------------------------------------------


def test_gnumach(gnumach: Path, grub_modules: Path, tmp_path: Path) -> None:
    """The same log up to the same panic: as it is, patched, and patched with a ROM."""
    original = gnumach.read_bytes()
    logs = []
    for is_patched, rom in ((False, None), (True, None), (True, "native")):
        kernel = patched(original) if is_patched else original
        commands = [f"multiboot /boot/gnumach {APPEND}", "boot"]
        disk = grub.disk(grub_modules, tmp_path, {"boot/gnumach": kernel}, commands)
        start = hosts.Start(disk=disk, rom=rom_image(rom))
        told = boot(start, kernel, PANIC, tmp_path, is_patched)
        logs.append(lines(told.log.partition(STARTS)[2], PATCH_DIFFERENCES))
        if is_patched:
            assert_status(told, rom, MapStatus.CARVED)
            shown = told.log.decode("latin-1").split(f"{header_at(kernel):018x}:")[1].splitlines()[0]
            assert "reserved" in shown
    assert len(logs[0]) > 20
    assert logs[1] == logs[0]
    assert logs[2] == logs[0]


# --- Linux --------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("rom", [None, "native"])
def test_linux(
    linux: fetch_debian.Linux, initrd: bytes, grub_modules: Path, tmp_path: Path, rom: str | None
) -> None:
    kernel = patched_file(linux.kernel).data
    files = {"boot/vmlinuz": kernel, "boot/initrd": initrd}
    commands = [f"linux /boot/vmlinuz {OPTIONS} {STAY}", "initrd /boot/initrd", "boot"]
    disk = grub.disk(grub_modules, tmp_path, files, commands, mebibytes=16)
    with hosts.in_qemu(hosts.Start(disk=disk, megabytes=128, rom=rom_image(rom)), tmp_path) as guest:
        assert isinstance(guest, hosts.QemuGuest)
        linux_session.wait_for_shell(guest.line, TO_SHELL * 2)
        raw = guest.qemu.memory(header_at(kernel), sitetable.HEADER_SIZE)
        assert_status(Told(b"", sitetable.parse_header(raw)), rom, MapStatus.LISTED)
        linux_session.hold(guest.line, linux_session.SYSTEM)
        linux_session.end(guest.line, TO_END)


# --- kernels that tell how they were loaded -----------------------------------------------------

#: How the kernel is made, and where the segment goes.
KERNELS: dict[str, tuple[dict[str, object], str]] = {
    "program-headers": ({"kludge": False}, "auto"),
    "at-an-address": ({"kludge": False}, "0xc0800000"),
    "load-addresses": ({}, "auto"),
    "load-addresses-no-room": ({"stack_header": False, "first_offset": 0x74}, "auto"),
    "load-addresses-no-end": ({"names_end": False}, "auto"),
    "low-memory": ({"kludge": False}, "low-memory"),
    "low-memory-load-addresses": ({}, "low-memory"),
    "low-memory-no-room": ({"kludge": False, "stack_header": False, "first_offset": 0x74}, "low-memory"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_loaded_by_grub(grub_modules: Path, tmp_path: Path, name: str) -> None:
    changes, place = KERNELS[name]
    original = loaded.kernel(**changes)  # type: ignore[arg-type]
    for is_patched, rom in ((False, None), (True, None), (True, "native")):
        kernel = patched(original, place) if is_patched else original
        disk = grub.disk(
            grub_modules, tmp_path, {"boot/kernel": kernel}, ["multiboot /boot/kernel x", "boot"]
        )
        start = hosts.Start(disk=disk, megabytes=32, rom=rom_image(rom))
        told = boot(start, kernel, b"done\n", tmp_path, is_patched)
        assert told.log.endswith(loaded.EXPECTED)
        assert b"error" not in told.log
        if is_patched:
            assert_status(told, rom, MapStatus.CARVED)


@pytest.mark.parametrize("name", KERNELS)
def test_loaded_by_qemu(tmp_path: Path, name: str) -> None:
    changes, place = KERNELS[name]
    original = loaded.kernel(**changes)  # type: ignore[arg-type]
    for is_patched, rom in ((False, None), (True, None), (True, "native")):
        kernel = patched(original, place) if is_patched else original
        file = tmp_path / "kernel"
        file.write_bytes(kernel)
        start = hosts.Start(file, "x", megabytes=32, rom=rom_image(rom))
        told = boot(start, kernel, b"done\n", tmp_path, is_patched)
        assert told.log == loaded.EXPECTED
        if is_patched:
            assert_status(told, rom, MapStatus.CARVED)


# --- a kernel that takes memory from its own end --------------------------------------------------


@pytest.mark.parametrize("rom", [None, "native"])
@pytest.mark.parametrize("kludge", [False, True])
def test_greedy_kernel_in_qemu(tmp_path: Path, kludge: bool, rom: str | None) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(patched(greedy.kernel(kludge=kludge)))
    start = hosts.Start(file, "x", megabytes=32, rom=rom_image(rom))
    told = boot(start, file.read_bytes(), b"done\n", tmp_path, True)
    assert told.log == greedy.EXPECTED
    assert_status(told, rom, MapStatus.CARVED)


def test_greedy_kernel_in_grub(grub_modules: Path, tmp_path: Path) -> None:
    original = greedy.kernel()
    for is_patched, rom in ((False, None), (True, None), (True, "native")):
        kernel = patched(original) if is_patched else original
        disk = grub.disk(
            grub_modules, tmp_path, {"boot/kernel": kernel}, ["multiboot /boot/kernel x", "boot"]
        )
        start = hosts.Start(disk=disk, megabytes=32, rom=rom_image(rom))
        told = boot(start, kernel, b"done\n", tmp_path, is_patched)
        assert told.log.endswith(greedy.EXPECTED)
        if is_patched:
            assert_status(told, rom, MapStatus.CARVED)


def test_greedy_kernel_behind_its_image(tmp_path: Path) -> None:
    """The place that other kernels get: QEMU ends, without a word of the kernel's."""
    file = tmp_path / "kernel"
    file.write_bytes(patched(greedy.kernel(), "after-image"))
    with hosts.in_qemu(hosts.Start(file, "x", megabytes=32), tmp_path) as guest:
        assert guest.line.expect_end(60) == "QEMU ended with status 0"
        assert bytes(guest.line.log) == b""
