# SPDX-License-Identifier: GPL-2.0-only
"""Disks that boot with GRUB, as a PC's BIOS starts them: boot sector, core image behind it, ext2 partition.

The core image is made by GRUB's own tool from Debian's modules. It lies where `grub-install` would put it,
and its list of blocks says so as the tool leaves it, so nothing has to be written into it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.e2e import needs
from tests.e2e.disk_image import SECTOR, Disk

MODULES = "biosdisk part_msdos ext2 normal configfile serial terminal echo multiboot linux"

#: Everything on the serial port, and no waiting at the menu.
SETTINGS = """\
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
"""


def core_image(modules: Path, scratch: Path) -> bytes:
    """GRUB's core for a BIOS, which looks for its configuration on the first disk's first partition."""
    tool = needs.tool("grub-mkimage", "grub-common")
    command = [tool, "-O", "i386-pc", "-d", str(modules), "-p", "(hd0,msdos1)/boot/grub"]
    command += ["-o", str(scratch / "core.img"), *MODULES.split()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return (scratch / "core.img").read_bytes()


def configuration(title: str, commands: Sequence[str]) -> bytes:
    """A grub.cfg with one entry, which boots at once."""
    body = "".join(f"    {command}\n" for command in commands)
    return f'{SETTINGS}menuentry "{title}" {{\n{body}}}\n'.encode()


def disk(
    modules: Path, scratch: Path, files: Mapping[str, bytes], commands: Sequence[str], *, mebibytes: int = 8
) -> bytes:
    """A disk image that boots and gives these commands to GRUB; the files are on its partition.

    :param modules: the folder of GRUB's modules for BIOS machines.
    """
    boot = (modules / "boot.img").read_bytes()
    core = core_image(modules, scratch)
    start = int.from_bytes(core[0x1F4:0x1FC], "little")
    if len(boot) != SECTOR or start != 2:
        raise ValueError(f"this GRUB's core expects its second sector at {start}, not behind its first")
    all_files = {**files, "boot/grub/grub.cfg": configuration("test", commands)}
    return Disk(all_files, mebibytes, boot_code=boot[:440], gap=core).image()
