# SPDX-License-Identifier: GPL-2.0-only
"""Disks: an image that is never written to unless asked, changes in memory, and snapshots of them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi.errors import BadInput, OutputError, UsageError
from vmi.native.disk import BLOCK, SECTOR, Disk, open_image


def pattern(size: int) -> bytes:
    """Bytes that differ from sector to sector."""
    return b"".join((n * 2654435761 % 2**32).to_bytes(4, "little") for n in range(-(-size // 4)))[:size]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(20 * BLOCK + 3 * SECTOR))
    return path


def test_disk_reads_its_image(image):
    disk = open_image(image)
    assert disk.sectors == 163
    assert disk.read(0, 163) == image.read_bytes()
    assert disk.read(9, 2) == image.read_bytes()[9 * SECTOR : 11 * SECTOR]
    assert disk.read(163, 0) == b""


def test_changes_stay_in_memory(image):
    before = image.read_bytes()
    disk = open_image(str(image))
    disk.write(7, b"a" * 2 * SECTOR)
    disk.write(162, b"z" * SECTOR)
    disk.flush()
    assert disk.read(6, 4) == before[6 * 512 : 7 * 512] + b"a" * 1024 + before[9 * 512 : 10 * 512]
    assert disk.read(162, 1) == b"z" * 512
    assert image.read_bytes() == before
    assert {n: len(data) for n, data in disk.overlay().items()} == {0: 4096, 1: 4096, 20: 1536}


def test_writable_disk_writes_its_image(image):
    before = image.read_bytes()
    disk = open_image(image, writable=True)
    disk.write(7, b"a" * 2 * SECTOR)
    disk.flush()
    assert image.read_bytes() == before[: 7 * 512] + b"a" * 1024 + before[9 * 512 :]
    assert disk.read(7, 2) == b"a" * 1024
    assert disk.overlay() == {}


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 5 * BLOCK),
    accesses=st.lists(st.tuples(st.booleans(), st.integers(0, 45), st.integers(1, 20)), max_size=12),
)
def test_disk_is_a_row_of_bytes(size, accesses):
    disk = Disk.from_bytes(pattern(size))
    model = bytearray(pattern(size).ljust(disk.sectors * SECTOR, b"\0"))
    for n, (writes, lba, count) in enumerate(accesses):
        lba = min(lba, disk.sectors - 1)
        count = min(count, disk.sectors - lba)
        span = slice(lba * SECTOR, (lba + count) * SECTOR)
        if writes:
            model[span] = bytes([n + 1]) * count * SECTOR
            disk.write(lba, bytes(model[span]))
        assert disk.read(lba, count) == model[span]
    assert disk.read(0, disk.sectors) == model
    copy = Disk.from_bytes(pattern(size))
    copy.load(disk.save())
    copy.load_overlay(disk.overlay())
    assert copy.read(0, copy.sectors) == model


def test_last_sector_in_part_is_filled_up(tmp_path):
    path = tmp_path / "odd.img"
    path.write_bytes(b"x" * 1000)
    assert open_image(path).sectors == 2
    assert open_image(path).read(1, 1) == b"x" * 488 + bytes(24)
    disk = open_image(path, writable=True)
    disk.write(1, b"y" * 512)
    assert path.read_bytes() == b"x" * 512 + b"y" * 512
    saved = disk.save()
    disk.close()
    open_image(path).load(saved)


def test_image_that_shrinks_reads_as_zeros(image):
    disk = open_image(image)
    os.truncate(image, SECTOR)
    assert disk.read(0, 2) == pattern(SECTOR) + bytes(SECTOR)


# --- images that can't be used ---


def refused(path, **options):
    with pytest.raises(BadInput) as caught:
        open_image(path, **options)
    return str(caught.value)


def test_images_that_can_not_be_opened(tmp_path):
    missing, folder, empty = tmp_path / "no.img", tmp_path / "folder", tmp_path / "empty.img"
    folder.mkdir()
    empty.touch()
    assert refused(missing) == f"disk image {str(missing)!r} can't be read: No such file or directory"
    assert (
        refused(missing, writable=True)
        == f"disk image {str(missing)!r} can't be written to: No such file or directory"
    )
    assert refused(folder) == f"disk image {str(folder)!r} must be a file or a block device"
    assert refused("/dev/null") == "disk image '/dev/null' must be a file or a block device"
    assert refused(empty) == f"disk image {str(empty)!r} is empty"
    assert refused("a\0b") == "disk image 'a\\x00b' can't be read: embedded null byte"


def test_writer_is_alone_with_its_image(image):
    one, other = open_image(image), open_image(image)
    assert (
        refused(image, writable=True) == f"disk image {str(image)!r} can't be used: another program uses it"
    )
    one.close()
    other.close()
    writer = open_image(image, writable=True)
    assert refused(image) == f"disk image {str(image)!r} can't be used: another program writes to it"
    del writer
    assert open_image(image).sectors == 163


@pytest.mark.parametrize(("lba", "count"), [(0, 164), (163, 1), (-1, 1), (5, -1), (1 << 48, 1)])
def test_sectors_that_are_not_there(image, lba, count):
    with pytest.raises(UsageError) as caught:
        open_image(image).read(lba, count)
    assert str(caught.value) == f"disk sectors must lie in 0 to 162, but {count} from {lba} were asked for"


def test_writes_are_whole_sectors(image):
    with pytest.raises(UsageError) as caught:
        open_image(image).write(0, b"abc")
    assert str(caught.value) == "a disk write must be whole sectors of 512 bytes, but it is of 3"
    with pytest.raises(UsageError) as caught:
        open_image(image).write(162, bytes(1024))
    assert str(caught.value) == "disk sectors must lie in 0 to 162, but 2 from 162 were asked for"


def test_changes_in_memory_have_a_limit(image):
    disk = open_image(image, overlay_limit=2 * BLOCK)
    disk.write(0, b"a" * BLOCK)
    disk.write(4, b"b" * BLOCK)  # ends in the second block
    with pytest.raises(OutputError) as caught:
        disk.write(12, b"c" * BLOCK)
    assert str(caught.value) == f"disk image {str(image)!r} can't take more than 0 MiB of changes in memory"
    assert disk.read(12, 8) == pattern(20 * BLOCK)[12 * 512 : 20 * 512]
    disk.write(3, b"d" * SECTOR)


def test_image_in_memory_is_constant():
    disk = Disk.from_bytes(b"x" * 512)
    disk.writable = True
    with pytest.raises(OutputError) as caught:
        disk.write(0, bytes(512))
    assert str(caught.value) == "a disk image in memory can't be written to"


def test_trouble_of_the_host_is_told(image, monkeypatch):
    disk = open_image(image, writable=True)

    def fail(*args):
        raise OSError(5, "Input/output error")

    for name in ("pread", "pwrite", "fsync"):
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(BadInput) as caught:
        disk.read(0, 1)
    assert str(caught.value) == f"disk image {str(image)!r} can't be read: Input/output error"
    with pytest.raises(OutputError) as caught:
        disk.write(0, bytes(512))
    assert str(caught.value) == f"disk image {str(image)!r} can't be written: Input/output error"
    with pytest.raises(OutputError) as caught:
        disk.flush()
    assert str(caught.value) == f"disk image {str(image)!r} can't be written: Input/output error"


# --- snapshots ---


def test_saved_state_is_of_one_image(image, tmp_path):
    state = open_image(image).save()
    assert state["size"] == 20 * BLOCK + 3 * SECTOR
    open_image(image).load(state)
    longer = tmp_path / "longer.img"
    longer.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(BadInput) as caught:
        open_image(longer).load(state)
    assert (
        str(caught.value)
        == f"the saved state is of a disk image of 83456 bytes, but {str(longer)!r} has 83457"
    )
    other = tmp_path / "other.img"
    other.write_bytes(image.read_bytes()[:-1] + b"!")
    with pytest.raises(BadInput) as caught:
        open_image(other).load(state)
    assert str(caught.value) == f"the saved state is of other contents of disk image {str(other)!r}"


def test_large_image_is_known_by_samples(tmp_path):
    path = tmp_path / "large.img"
    with open(path, "wb") as file:
        file.truncate(40 << 20)
    state = open_image(path).save()
    assert open_image(path).save() == state
    for at in (0, (40 << 20) - 1):
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(b"!")
        assert open_image(path).save() != state
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(b"\0")


def test_changes_do_not_alter_what_the_image_is(image):
    disk = open_image(image)
    state = disk.save()
    disk.write(0, bytes(SECTOR))
    assert disk.save() == state


@pytest.mark.parametrize(("block", "size"), [(21, 4096), (-1, 4096), (0, 512), (20, 4096)])
def test_saved_blocks_must_fit(image, block, size):
    disk = open_image(image)
    disk.write(3, b"k" * SECTOR)
    with pytest.raises(BadInput) as caught:
        disk.load_overlay({0: bytes(4096), block: bytes(size)})
    assert str(caught.value) == f"saved block {block} ({size} bytes) is none of disk image {str(image)!r}"
    assert disk.read(3, 1) == b"k" * SECTOR


def test_writable_disk_takes_no_saved_changes(image):
    disk = open_image(image, writable=True)
    with pytest.raises(UsageError) as caught:
        disk.load_overlay({})
    assert str(caught.value) == f"disk image {str(image)!r} is writable, so that it takes no saved changes"


def test_accesses_are_counted(image):
    disk = open_image(image)
    disk.read(0, 3)
    disk.read(5, 1)
    disk.write(1, bytes(1024))
    disk.flush()
    assert disk.stats() == {
        "reads": 2, "writes": 1, "flushes": 1, "sectors_read": 4, "sectors_written": 2, "changed_blocks": 1,
    }  # fmt: skip
    assert repr(disk) == f"<Disk {str(image)!r} 163 sectors, 1 blocks changed>"
    disk.close()
    assert repr(open_image(image, writable=True)) == f"<Disk {str(image)!r} 163 sectors, writable>"
