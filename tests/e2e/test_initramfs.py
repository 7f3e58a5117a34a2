# SPDX-License-Identifier: GPL-2.0-only
"""The initial RAM disk is a well-formed archive, small, the same each time, and complete."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import fetch_debian, initramfs

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Member:
    """One member as Linux reads it."""

    mode: int
    links: int
    device: tuple[int, int]
    data: bytes


def members(archive: bytes) -> Iterator[tuple[str, Member]]:
    """Read an archive by the rules of its format: sizes in hexadecimal, all parts at multiples of four."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * field : at + 14 + 8 * field], 16) for field in range(13)]
        name_at = at + 110
        name = archive[name_at : name_at + numbers[11] - 1].decode()
        assert archive[name_at + numbers[11] - 1] == 0
        data_at = -(-(name_at + numbers[11]) // 4) * 4
        data = archive[data_at : data_at + numbers[6]]
        at = -(-(data_at + numbers[6]) // 4) * 4
        if name == "TRAILER!!!":
            assert not any(archive[at:])
            return
        yield name, Member(numbers[1], numbers[4], (numbers[9], numbers[10]), data)


def test_archive_holds_what_was_added() -> None:
    archive = initramfs.Archive()
    archive.folder("bin")
    for size in range(6):
        archive.file(f"bin/{'x' * size}file", b"d" * size, 0o755)
    archive.link("bin/link", "xfile")
    archive.character_device("console", 5, 1)
    found = dict(members(archive.data()))
    assert list(found) == ["bin", *(f"bin/{'x' * size}file" for size in range(6)), "bin/link", "console"]
    assert found["bin"] == Member(0o040755, 2, (0, 0), b"")
    assert found["bin/xxxfile"] == Member(0o100755, 1, (0, 0), b"ddd")
    assert found["bin/link"] == Member(0o120777, 1, (0, 0), b"xfile")
    assert found["console"] == Member(0o020600, 1, (5, 1), b"")
    assert len(archive.data()) % 512 == 0


def test_init_loads_the_modules_in_their_order(tmp_path: Path) -> None:
    modules = [tmp_path / "b.ko", tmp_path / "a.ko"]
    for module in modules:
        module.write_bytes(module.name.encode())
    found = dict(members(initramfs.build(b"busybox", modules, files={"note": b"more"})))
    init = found["init"].data.decode()
    assert init.index("insmod /lib/b.ko\n") < init.index("insmod /lib/a.ko\n")
    assert found["init"].mode == 0o100755
    assert found["lib/a.ko"].data == b"a.ko"
    assert found["bin/sh"].data == b"busybox"
    assert found["note"].data == b"more"


def test_compressed_is_the_same_archive_without_a_date() -> None:
    plain, packed = initramfs.build(b"busybox"), initramfs.build(b"busybox", compress=True)
    assert gzip.decompress(packed) == plain
    assert packed[4:8] == bytes(4)


def test_modules_come_after_what_they_depend_on(linux: fetch_debian.Linux) -> None:
    order = initramfs.modules_in_order(linux.modules, initramfs.DISK_MODULES)
    names = [path.stem for path in order]
    assert len(set(names)) == len(names)
    for path in order:
        depends = initramfs.module_info(path)["depends"]
        needed = [name.replace("-", "_") for name in depends.split(",") if name]
        before = [name.replace("-", "_") for name in names[: names.index(path.stem)]]
        assert set(needed) <= set(before), f"{path.stem} needs {depends}"
    assert initramfs.module_info(order[0])["vermagic"].split()[0] == linux.release


def test_unknown_module_is_a_sentence(linux: fetch_debian.Linux) -> None:
    with pytest.raises(initramfs.ArchiveError) as caught:
        initramfs.modules_in_order(linux.modules, ["nothing"])
    assert str(caught.value) == (
        f"no kernel module nothing.ko is below {linux.modules}; the initial RAM disk needs it."
    )


def test_whole_disk_is_small_and_the_same_each_time(
    linux: fetch_debian.Linux, busybox: bytes, initrd: bytes
) -> None:
    modules = initramfs.modules_in_order(linux.modules, initramfs.DISK_MODULES)
    assert initramfs.build(busybox, modules) == initrd
    assert len(initrd) < 6 << 20
    found = dict(members(initrd))
    assert found["bin/busybox"].data == busybox
    names = busybox.decode("latin-1")  # a link to an applet that it has not would fail only when it is used
    assert all(f"\0{applet}\0" in names for applet in initramfs.APPLETS.split())
