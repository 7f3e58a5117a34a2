# SPDX-License-Identifier: GPL-2.0-only
"""Disk images for guests: a partition table and one ext2 file system, the same bytes each time.

mke2fs and debugfs, which each Debian has, read and write the file system without mounting it, so no
privilege is needed.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e import needs

SECTOR = 512
START = 2048  # the partition's first sector: 1 MiB, where partitioning tools put it; boot loaders use the gap
_ENTRY = 0x1BE
_EPOCH = 1_000_000_000  # any fixed date
_UUID = "5a6b7c8d-0000-4000-8000-000000000001"


@dataclass(frozen=True)
class Disk:
    """What is on a disk: files by path, the file system's size in MiB, and the code of the boot sector."""

    files: Mapping[str, bytes]
    mebibytes: int = 8
    boot_code: bytes = b""
    gap: bytes = b""

    def image(self) -> bytes:
        """The disk's bytes. ``gap`` is what stands between the boot sector and the partition."""
        if len(self.boot_code) > 440 or len(self.gap) > (START - 1) * SECTOR:
            raise ValueError("boot code has 440 bytes, and the gap behind it ends where the partition starts")
        system = _ext2(self.files, self.mebibytes)
        # one entry: bootable, no cylinder-head-sector addresses, type 83h
        entry = struct.pack(
            "<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", START, len(system) // SECTOR
        )
        head = bytearray(START * SECTOR)
        head[: len(self.boot_code)] = self.boot_code
        head[_ENTRY : _ENTRY + len(entry)] = entry
        head[510:512] = b"\x55\xaa"
        head[SECTOR : SECTOR + len(self.gap)] = self.gap
        return bytes(head) + system


def _ext2(files: Mapping[str, bytes], mebibytes: int) -> bytes:
    """An ext2 file system of so many MiB that holds the files, all of them root's."""
    with tempfile.TemporaryDirectory() as scratch:
        image, script = Path(scratch, "image"), Path(scratch, "script")
        options = ["-q", "-t", "ext2", "-b", "1024", "-N", "128", "-m", "0", "-L", "test", "-U", _UUID]
        options += ["-E", f"hash_seed={_UUID},root_owner=0:0"]
        _run("mke2fs", *options, str(image), f"{mebibytes}M")
        # not by mke2fs -d, which takes over the source files' owners and times
        folders = {parent.as_posix(): None for name in files for parent in reversed(Path(name).parents)}
        commands = [f"mkdir /{folder}" for folder in folders if folder != "."]
        for number, (name, data) in enumerate(files.items()):
            Path(scratch, str(number)).write_bytes(data)
            Path(scratch, str(number)).chmod(0o644)
            commands.append(f"write {scratch}/{number} /{name}")
        script.write_text("".join(command + "\n" for command in commands))
        _run("debugfs", "-w", "-f", str(script), str(image))
        return image.read_bytes()


def read_file(disk: bytes, name: str) -> bytes:
    """A file of the disk's partition; FileNotFoundError if there is none of the name."""
    with tempfile.TemporaryDirectory() as scratch:
        image, out = Path(scratch, "image"), Path(scratch, "out")
        image.write_bytes(disk[START * SECTOR :])
        _run("debugfs", "-R", f"dump /{name} {out}", str(image))
        return out.read_bytes()


def complaints(disk: bytes) -> str:
    """What e2fsck finds wrong with the partition's file system; nothing if it is whole and was unmounted."""
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch, "image")
        image.write_bytes(disk[START * SECTOR :])
        done = _run("e2fsck", "-f", "-n", str(image), check=False)
        clean = _run("dumpe2fs", "-h", str(image)).stdout
    if done.returncode == 0 and "Filesystem state:         clean" in clean:
        return ""
    return done.stdout + done.stderr + clean


def _run(tool: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    # with a fixed date and no translated messages
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(_EPOCH), "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [needs.tool(tool, "e2fsprogs"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=check,
    )
