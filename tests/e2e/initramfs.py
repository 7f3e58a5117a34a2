# SPDX-License-Identifier: GPL-2.0-only
"""Build a small initial RAM disk for Linux from Debian's busybox and the modules of Debian's kernel.

The archive is written here and not by cpio(1), so that it is the same bytes each time and needs neither
root (for the console's device node) nor another tool. It stays uncompressed unless asked for: an emulated
machine pays for each instruction of the inflation, and nothing for reading a longer file.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.elffile import ELFFile

#: What the session needs of busybox; each is a link to it.
APPLETS = """
    awk basename cat chmod cmp cp cttyhack cut date dd df dmesg echo env expr false find free grep halt
    head hexdump id insmod kill ln ls lsmod md5sum mkdir mkfifo mknod mount mv poweroff printf ps pwd
    reboot rm rmdir sed seq setsid sh sleep sort stat stty sync tail tee test time touch tr true umount
    uname uniq uptime usleep wc xargs
"""

#: Drivers for a disk at the PC's IDE controller and for ext2, which Linux reads with its ext4 driver; crc32c
#: is not in that driver's list of dependencies, because it asks for it by name when it mounts.
DISK_MODULES = ("ata_piix", "sd_mod", "crc32c_generic", "ext4")

INIT = """\
#!/bin/sh
export PATH=/bin HOME=/run PS1='~ # '
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
{insmod}
cd /run
stty rows 24 cols 80 <{console}
echo "userland is up" >{console}
while :; do
    setsid cttyhack sh <{console} >{console} 2>&1
done
"""

_FOLDERS = ("bin", "dev", "lib", "mnt", "proc", "root", "run", "sys")
_TYPE, _REGULAR, _LINK, _FOLDER, _CHARACTER = 0o170000, 0o100000, 0o120000, 0o040000, 0o020000


class ArchiveError(Exception):
    """A module or a file that the initial RAM disk needs is not there."""


@dataclass
class Archive:
    """A cpio archive in the "newc" form, which is what Linux unpacks into its root folder."""

    _out: io.BytesIO = field(default_factory=io.BytesIO)
    _inode: int = 0

    def add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Append one member of root's, dated 1970; ``mode`` has the file type in its upper bits."""
        self._inode += 1
        path = name.encode() + b"\0"
        links = 2 if mode & _TYPE == _FOLDER else 1
        numbers = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(path), 0)
        self._out.write(b"070701" + b"".join(b"%08X" % number for number in numbers))
        for piece in (path, data):
            self._out.write(piece)
            self._out.write(bytes(-self._out.tell() % 4))

    def folder(self, name: str) -> None:
        self.add(name, _FOLDER | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.add(name, _REGULAR | mode, data)

    def link(self, name: str, target: str) -> None:
        self.add(name, _LINK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        self.add(name, _CHARACTER | 0o600, device=(major, minor))

    def data(self) -> bytes:
        """The archive with its end mark, padded to a multiple of 512 bytes as cpio(1) does."""
        end = Archive(_inode=-1)
        end.add("TRAILER!!!", 0)
        whole = self._out.getvalue() + end._out.getvalue()
        return whole + bytes(-len(whole) % 512)


def module_info(module: Path) -> dict[str, str]:
    """The ``.modinfo`` section of a kernel module: names and values; of a repeated name the first."""
    with module.open("rb") as handle:
        section = ELFFile(handle).get_section_by_name(".modinfo")
        data = b"" if section is None else section.data()
    pairs = (entry.decode("latin-1").partition("=") for entry in data.split(b"\0") if entry)
    info: dict[str, str] = {}
    for name, _, value in pairs:
        info.setdefault(name, value)
    return info


def modules_in_order(folder: Path, wanted: Sequence[str]) -> list[Path]:
    """Paths of the wanted modules and of all they depend on, each behind what it needs.

    The package has no modules.dep (it is made at installation), so the modules themselves are asked.
    Raises ArchiveError for a name that no module below ``folder`` has.
    """
    known = {_name(path.name): path for path in sorted(folder.rglob("*.ko"))}
    order: dict[Path, None] = {}

    def visit(name: str, asked_by: str) -> None:
        path = known.get(_name(name))
        if path is None:
            raise ArchiveError(f"no kernel module {name}.ko is below {folder}; {asked_by} needs it.")
        if path in order:
            return
        for needed in module_info(path).get("depends", "").split(","):
            if needed:
                visit(needed, path.name)
        order[path] = None

    for name in wanted:
        visit(name, "the initial RAM disk")
    return list(order)


def _name(text: str) -> str:
    """A module's name as the kernel compares it: `-` and `_` are the same."""
    return text.removesuffix(".ko").replace("-", "_")


def build(
    busybox: bytes,
    modules: Iterable[Path] = (),
    *,
    console: str = "/dev/ttyS0",
    files: dict[str, bytes] | None = None,
    compress: bool = False,
) -> bytes:
    """An initial RAM disk whose init loads the modules in the order given and offers a root shell.

    :param console: the terminal that gets the shell.
    :param files: more files, by path below the root.
    :param compress: gzip it, with no date in it.
    """
    archive = Archive()
    for name in _FOLDERS:
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)  # the kernel opens it before init can mount /dev
    archive.file("bin/busybox", busybox, 0o755)
    for applet in APPLETS.split():
        archive.link(f"bin/{applet}", "busybox")
    names = []
    for module in modules:
        archive.file(f"lib/{module.name}", module.read_bytes())
        names.append(f"insmod /lib/{module.name}")
    archive.file("init", INIT.format(insmod="\n".join(names), console=console).encode(), 0o755)
    for name, data in (files or {}).items():
        archive.file(name, data)
    data = archive.data()
    return gzip.compress(data, 6, mtime=0) if compress else data
