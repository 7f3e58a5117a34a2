# SPDX-License-Identifier: GPL-2.0-only
"""What an IDE drive says about itself, its commands without data, and its failures."""

from __future__ import annotations

import struct

import pytest

from tests.native.devices.ide_host import (
    COMMAND,
    CONTROL,
    COUNT,
    DATA,
    FAILED,
    FEATURE,
    FLUSH,
    HIGH,
    IDENTIFY,
    LOW,
    READ,
    READ_EXT,
    READ_MULTIPLE,
    READY,
    SECTOR,
    SELECT,
    SET_FEATURES,
    SET_MULTIPLE,
    TOTAL,
    WRITE,
    WRITE_MULTIPLE,
    Host,
    new_host,
    sized,
    words_of,
)
from vmi.errors import BadInput
from vmi.native.disk import Disk


@pytest.fixture
def host(wire, clock):
    return new_host(wire, clock)


# --- identification ---


def test_identify_tells_what_qemu_tells(wire, clock):
    words = words_of(Host(wire, clock, Disk.from_bytes(bytes(10 << 20))))
    texts = struct.pack(">256H", *words)
    assert texts[20:40] == b"QM00001             "
    assert texts[46:54] == b"2.5+    "
    assert texts[54:94] == b"QEMU HARDDISK                           "
    seen = {n: word for n, word in enumerate(words) if word and not 10 <= n < 20 and not 23 <= n < 47}
    assert seen == {
        0: 0x0040, 1: 0x0014, 3: 0x0010, 4: 0x7E00, 5: 0x0200, 6: 0x003F, 20: 0x0003, 21: 0x0200, 22: 0x0004,
        47: 0x8010, 48: 0x0001, 49: 0x0A00, 51: 0x0200, 52: 0x0200, 53: 0x0003, 54: 0x0014, 55: 0x0010,
        56: 0x003F, 57: 0x4EC0, 59: 0x0110, 60: 0x5000, 64: 0x0003, 65: 0x0078, 66: 0x0078, 67: 0x0078,
        68: 0x0078, 80: 0x00F0, 81: 0x0016, 82: 0x4020, 83: 0x7400, 84: 0x4000, 85: 0x4020, 86: 0x3400,
        87: 0x4000, 93: 0x6001, 100: 0x5000, 106: 0x6000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "cylinders", "lba28", "lba48"),
    [
        (512, 2, 1, 1),
        (1000, 2, 2, 2),
        (504 << 20, 1024, 1032192, 1032192),
        (8 << 30, 16383, 16777216, 16777216),
        (128 << 30, 16383, 268435455, 268435456),
        (200 << 30, 16383, 268435455, 419430400),
    ],
)
def test_capacity_and_shape_by_size_as_in_qemu(wire, clock, size, cylinders, lba28, lba48):
    words = words_of(Host(wire, clock, sized(size)))
    assert (words[1], words[3], words[6]) == (cylinders, 16, 63)
    assert words[60] | words[61] << 16 == lba28
    assert sum(word << 16 * n for n, word in enumerate(words[100:104])) == lba48


@pytest.mark.parametrize(
    ("head", "sector", "length", "shape"),
    [
        (15, 63, 20000, (20, 16, 63)),
        (7, 32, 1000, (80, 8, 32)),
        (254, 63, 20000, (20, 16, 63)),  # as firmware sees large disks
        (0, 63, 100, (20, 16, 63)),
        (15, 0, 1000, (20, 16, 63)),
        (7, 32, 0, (20, 16, 63)),
        (3, 17, 100000000, (301, 4, 17)),
    ],
)
def test_shape_by_partition_table_as_in_qemu(wire, clock, head, sector, length, shape):
    entry = struct.pack("<8BII", 0x80, 1, 1, 0, 0x83, head, sector, 0, 63, length)
    first = (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"
    words = words_of(Host(wire, clock, sized(10 << 20, first)))
    assert (words[1], words[3], words[6]) == shape


def test_settings_show_in_identify(host):
    host[COUNT] = 4
    assert host.do(SET_MULTIPLE) == READY
    assert words_of(host)[59] == 0x0104
    host[COUNT] = 0
    assert host.do(SET_MULTIPLE) == READY
    assert words_of(host)[59] == 0
    host[FEATURE] = 0x82
    assert host.do(SET_FEATURES) == READY
    assert words_of(host)[85] == 0x4000
    host[FEATURE] = 0x02
    assert host.do(SET_FEATURES) == READY
    assert words_of(host)[85] == 0x4020
    host[COUNT], host[SELECT] = 10, 0xA4
    assert host.do(0x91) == READY
    assert words_of(host)[54:59] == (80, 5, 10, 4000, 0)
    assert words_of(host)[1:7] == (3, 0, 16, 0x7E00, 512, 63)


def test_slave_has_its_own_number(host):
    host[SELECT] = 0xB0
    assert struct.pack(">256H", *words_of(host))[20:27] == b"QM00002"


# --- other commands ---


@pytest.mark.parametrize("command", [0x10, 0x70, 0xE7, 0xEA, 0x40, 0x41, 0x42])
def test_commands_without_data(host, wire, command):
    host.lba48(0, 1)
    assert host.do(command) == READY
    assert wire.level
    assert host[1] == 0


@pytest.mark.parametrize("command", [0x94, 0x95, 0x96, 0x97, 0x99, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6])
def test_power_commands_end_without_the_seek_bit(host, command):
    assert host.do(command) == 0x40


@pytest.mark.parametrize("command", [0x98, 0xE5])
def test_power_check_says_active(host, command):
    assert host.do(command) == READY
    assert host[COUNT] == 0xFF


def test_native_capacity(host, wire, clock):
    host.lba(0, 1)
    assert host.do(0xF8) == READY
    assert host[SECTOR] | host[LOW] << 8 | host[HIGH] << 16 == TOTAL - 1
    large = Host(wire, clock, sized(200 << 30))
    large[SELECT] = 0xE0
    large.do(0xF8)
    assert (large[SELECT], large[HIGH], large[LOW], large[SECTOR]) == (0xEF, 0xFF, 0xFF, 0xFE)
    large.do(0x27)
    assert (large[HIGH], large[LOW], large[SECTOR]) == (0xFF, 0xFF, 0xFF)
    large.ide.write(CONTROL, 1, 0x80)
    assert (large[HIGH], large[LOW], large[SECTOR]) == (0, 0, 0x18)


@pytest.mark.parametrize("feature", [0x05, 0x55, 0x66, 0x85, 0xAA, 0xCC])
def test_features_that_change_nothing(host, feature):
    host[FEATURE] = feature
    assert host.do(SET_FEATURES) == READY


@pytest.mark.parametrize("mode", [0x00, 0x01, 0x08, 0x0C])
def test_pio_modes_can_be_set(host, mode):
    host[FEATURE], host[COUNT] = 0x03, mode
    assert host.do(SET_FEATURES) == READY


def test_high_order_bytes(host):
    host[COUNT], host[COUNT] = 0x12, 0x34
    assert host[COUNT] == 0x34
    host.ide.write(CONTROL, 1, 0x80)
    assert host[COUNT] == 0x12
    host[LOW] = 0
    assert host[COUNT] == 0x34


# --- failures ---


@pytest.mark.parametrize(
    "command", [0x00, 0x08, 0xA0, 0xA1, 0xB0, 0xC0, 0xF5, 0x25, 0x35, 0xC8, 0xC9, 0xCA, 0xCB]
)
def test_commands_that_the_drive_has_not(host, wire, command):
    assert host.do(command) == FAILED
    assert host[1] == 0x04
    assert wire.level


@pytest.mark.parametrize(("feature", "count"), [(0x03, 0x22), (0x03, 0x45), (0x03, 0x10), (0x99, 0), (0, 0)])
def test_features_that_the_drive_has_not(host, feature, count):
    host[FEATURE], host[COUNT] = feature, count
    assert host.do(SET_FEATURES) == FAILED


@pytest.mark.parametrize("count", [3, 17, 32, 255])
def test_block_sizes_that_can_not_be(host, count):
    host[COUNT] = count
    assert host.do(SET_MULTIPLE) == FAILED


@pytest.mark.parametrize("command", [READ_MULTIPLE, WRITE_MULTIPLE, 0x29, 0x39])
def test_no_blocks_without_their_size(host, command):
    host[COUNT] = 0
    host.do(SET_MULTIPLE)
    host.lba(0, 1)
    assert host.do(command) == FAILED


def test_tracks_without_sectors_can_not_be(host):
    host[COUNT] = 0
    assert host.do(0x91) == FAILED


@pytest.mark.parametrize("command", [READ, READ_MULTIPLE, READ_EXT, 0x40, 0x42])
@pytest.mark.parametrize(("sector", "count"), [(TOTAL, 1), (TOTAL - 1, 2), (0xFFFFFFF, 1)])
def test_sectors_that_are_not_there(host, command, sector, count):
    (host.lba48 if command in (READ_EXT, 0x42) else host.lba)(sector, count)
    status = host.do(command)
    if command in (READ, READ_EXT) and sector < TOTAL:
        assert status == DATA  # the first one is there
        host.take()
    assert host.status == FAILED
    assert host[1] == 0x04


def test_sector_0_of_a_track_is_not_there(host):
    host[SELECT], host[COUNT], host[SECTOR], host[LOW], host[HIGH] = 0xA0, 1, 0, 0, 0
    assert host.do(READ) == FAILED


def test_write_past_the_end_fails_after_its_data(host):
    host.lba(TOTAL, 1)
    assert host.do(WRITE) == DATA
    host.give(bytes(512))
    assert host[COMMAND] == FAILED


def test_trouble_with_the_image_is_an_error_of_the_drive(wire, clock):
    host = Host(wire, clock, sized(1 << 20))
    host.lba(0, 1)
    assert host.do(WRITE) == DATA
    host.give(bytes(512))
    assert host[COMMAND] == FAILED
    assert host.do(FLUSH) == FAILED

    def fail(offset, size):
        raise BadInput("this image can't be read")

    host.master._store.read = fail
    assert host.do(READ) == FAILED
    assert host.ide.stats() == {"commands": 3, "failures": 3, "interrupts": 3}
    assert Host(wire, clock, host.master).do(IDENTIFY) == DATA
