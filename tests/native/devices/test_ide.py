# SPDX-License-Identifier: GPL-2.0-only
"""IDE channels as drivers use them: sectors in and out, interrupts, resets."""

from __future__ import annotations

import pytest

from tests.native.devices.ide_host import (
    BASE,
    BUSY,
    COMMAND,
    CONTROL,
    COUNT,
    DATA,
    DIAGNOSE,
    FAILED,
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
    SET_MULTIPLE,
    WRITE,
    WRITE_EXT,
    WRITE_MULTIPLE,
    Host,
    contents,
    new_host,
    words_of,
)
from vmi.native.devices.ide import BUSY_NS, secondary
from vmi.native.disk import Disk


@pytest.fixture
def host(wire, clock):
    return new_host(wire, clock)


# --- reading and writing ---


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("command", "address"), [(READ, Host.lba), (0x21, Host.lba), (READ_EXT, Host.lba48)])
def test_sectors_are_read_one_by_one(host, wire, command, address, size):
    address(host, 1234, 3)
    assert host.do(command) == DATA
    for n in range(3):
        assert wire.level
        assert host[COMMAND] == DATA
        assert not wire.level
        assert host[COUNT] == 2 - n
        assert host.take(size=size) == contents()[(1234 + n) * 512 : (1235 + n) * 512]
    assert host.status == READY
    assert not wire.level
    assert host.ide.read(BASE, 2) == 0
    assert host[SECTOR] | host[LOW] << 8 | host[HIGH] << 16 == 1237
    assert len(wire.rises) == 3


@pytest.mark.parametrize(("command", "address"), [(READ_MULTIPLE, Host.lba), (0x29, Host.lba48)])
def test_blocks_of_sectors_are_read(host, wire, command, address):
    host[COUNT] = 4
    host.do(SET_MULTIPLE)
    wire.rises.clear()
    address(host, 50, 9)
    assert host.do(command) == DATA
    seen = b""
    for sectors in (4, 4, 1):
        assert host[COMMAND] == DATA
        seen += host.take(sectors)
    assert seen == contents()[50 * 512 : 59 * 512]
    assert host.status == READY
    assert len(wire.rises) == 3


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("command", "address"), [(WRITE, Host.lba), (0x31, Host.lba), (0x3C, Host.lba), (WRITE_EXT, Host.lba48)]
)
def test_sectors_are_written_one_by_one(host, wire, command, address, size):
    address(host, 1234, 2)
    assert host.do(command) == DATA
    assert not wire.level  # the first block is not asked for by interrupt
    host.give(b"one." * 128, size)
    assert wire.level
    assert host[COMMAND] == DATA
    host.give(b"two." * 128, size)
    assert wire.level
    assert host[COMMAND] == READY
    assert host.master.read(1233, 4) == (
        contents()[1233 * 512 : 1234 * 512]
        + b"one." * 128
        + b"two." * 128
        + contents()[1236 * 512 : 1237 * 512]
    )
    assert len(wire.rises) == 2


@pytest.mark.parametrize(("command", "address"), [(WRITE_MULTIPLE, Host.lba), (0x39, Host.lba48)])
def test_blocks_of_sectors_are_written(host, wire, command, address):
    host[COUNT] = 2
    host.do(SET_MULTIPLE)
    wire.rises.clear()
    address(host, 7, 5)
    host.do(command)
    for n, sectors in enumerate((2, 2, 1)):
        assert host[COMMAND] == DATA
        host.give(bytes([n]) * 512 * sectors)
    assert host[COMMAND] == READY
    assert host.master.read(7, 5) == bytes(1024) + b"\1" * 1024 + b"\2" * 512
    assert len(wire.rises) == 3


def test_count_of_zero_is_256_or_65536(host):
    host.lba(0, 0)
    host.do(READ)
    assert host[COUNT] == 0xFF
    for _ in range(256):
        assert host.status == DATA
        host.take()
    assert host.status == READY
    host.lba48(0, 0)
    host.do(READ_EXT)
    assert host.ide.drives[0].left == 0xFFFF


def test_cylinders_heads_and_sectors(host):
    host[SELECT], host[COUNT], host[SECTOR], host[LOW], host[HIGH] = 0xAF, 2, 63, 1, 0
    host.do(READ)  # the last sector of cylinder 1
    assert host.take() == contents()[2015 * 512 : 2016 * 512]
    assert host.take() == contents()[2016 * 512 : 2017 * 512]
    assert (host[LOW], host[SELECT], host[SECTOR]) == (2, 0xA0, 2)
    host[SELECT], host[COUNT] = 0xA3, 20  # now it shall have 4 heads and 20 sectors
    host.do(0x91)
    host[SELECT], host[COUNT], host[SECTOR], host[LOW] = 0xA3, 1, 20, 0
    host.do(READ)
    assert host.take() == contents()[79 * 512 : 80 * 512]


def test_each_drive_has_its_own_sectors(host):
    host.lba(99, 1, drive=1)
    assert host.do(READ) == DATA
    assert host.take() == contents(100, key=1)[99 * 512 :]
    host.lba(99, 1, drive=0)
    host.do(READ)
    assert host.take() == contents()[99 * 512 : 100 * 512]


def test_byte_from_the_data_port_costs_a_word(host):
    host.lba(0x0201, 1)
    host.do(READ)
    assert [host[0], host[0], host[0]] == [0x01, 0x00, 0x00]
    host[0] = 0xFF
    assert host.ide.read(BASE, 2) == 0
    assert host.ide.read(BASE, 2) == 0x0201


# --- time and interrupts ---


def test_interrupt_comes_after_the_busy_time(host, wire, clock):
    clock.advance_to(5000)
    host.lba(0, 2)
    host[COMMAND] = READ
    assert host.status & BUSY == BUSY
    clock.advance_to(5000 + BUSY_NS - 1)
    assert host.status & BUSY == BUSY
    assert not wire.level
    clock.advance_to(5000 + BUSY_NS)
    assert wire.rises == [5000 + BUSY_NS]
    for _ in range(256):
        host.ide.read(BASE, 2)
    assert host.status & BUSY == BUSY
    assert host.ide.read(BASE, 2) == 0


@pytest.mark.parametrize("command", [WRITE, WRITE_EXT, WRITE_MULTIPLE])
def test_first_block_of_a_write_is_taken_at_once(host, wire, command):
    host.lba48(7, 1) if command == WRITE_EXT else host.lba(7, 1)
    host[COMMAND] = command
    assert host.status == DATA
    for _ in range(128):
        host.ide.write(BASE, 4, 0x6E656B6F)
    assert host.status & BUSY == BUSY
    assert not wire.level
    host.settle()
    assert host.status == READY
    assert wire.level
    assert host.master.read(7, 1) == b"oken" * 128


def test_write_multiple_without_a_block_size_fails_after_the_busy_time(host, wire):
    host[COUNT] = 0
    host.do(SET_MULTIPLE)
    assert host[COMMAND] == READY
    host.lba(7, 1)
    host[COMMAND] = WRITE_MULTIPLE
    assert host.status & BUSY == BUSY
    assert not wire.level
    host.settle()
    assert host.status == FAILED
    assert wire.level


def test_line_falls_when_status_is_read_or_a_command_given(host, wire):
    host.do(0xE7)
    assert host.ide.read(CONTROL, 1) == READY
    assert wire.level
    assert host[COMMAND] == READY
    assert not wire.level
    host.do(0xE7)
    host[COMMAND] = 0xE7
    assert not wire.level


def test_interrupts_can_be_switched_off(host, wire):
    host.ide.write(CONTROL, 1, 0x02)
    assert host.do(FLUSH) == READY
    assert not wire.level
    host.ide.write(CONTROL, 1, 0)
    assert not wire.level
    host.do(FLUSH)
    assert wire.level


def test_busy_drive_takes_no_registers(host):
    host.lba(5, 1)
    host[COMMAND] = READ
    host[SECTOR] = 9
    host[SELECT] = 0xF0
    host[COMMAND] = IDENTIFY
    host.settle()
    host[SECTOR] = 9
    host[COMMAND] = IDENTIFY
    assert host.take() == contents()[5 * 512 : 6 * 512]
    assert host.status == READY
    assert (host[SECTOR], host[SELECT]) == (6, 0xE0)


# --- drives that are not there, resets ---


def test_channel_without_drives_reads_as_zeros(wire, clock):
    ide = secondary(wire, clock)
    for select in (0xA0, 0xB0):
        ide.write(0x176, 1, select)
        ide.write(0x172, 1, 0x55)
        assert [ide.read(port, 1) for port in (*range(0x170, 0x178), 0x376)] == [0] * 9
        ide.write(0x177, 1, IDENTIFY)
        assert clock.next_deadline() is None
    assert not wire.level


def test_slave_that_is_not_there(wire, clock):
    host = Host(wire, clock, Disk.from_bytes(contents(10)))
    host[SELECT] = 0xB0
    assert host.status == host[COMMAND] == 0
    host[COMMAND] = IDENTIFY
    assert host.status == 0
    assert clock.next_deadline() is None
    host[SELECT] = 0xA0
    assert host.status == READY


@pytest.mark.parametrize("drive", [0, 1])
def test_software_reset(host, wire, drive):
    host[COUNT] = 2
    host.do(SET_MULTIPLE)
    host.lba(3, 5, drive)
    host.do(READ)
    host.ide.write(CONTROL, 1, 0x04)
    assert host.status & 0x80
    assert not wire.level
    host[COMMAND] = IDENTIFY  # nobody listens
    host.ide.write(CONTROL, 1, 0x00)
    assert host.status & 0x80
    host.settle()
    for select in (0xA0, 0xB0):
        host[SELECT] = select
        assert host.status == READY
        assert [host[n] for n in range(1, 7)] == [1, 1, 1, 0, 0, select]
    assert not wire.level
    host[SELECT] = 0xA0
    assert words_of(host)[59] == 0x0110
    assert host.ide.read(BASE, 2) == 0


def test_diagnosis_concerns_both_drives(host, wire):
    host.lba(3, 5, drive=1)
    assert host.do(DIAGNOSE) == READY
    assert wire.level
    assert [host[n] for n in range(1, 7)] == [1, 1, 1, 0, 0, 0xA0]
    host[SELECT] = 0xB0
    assert [host[n] for n in range(1, 6)] == [1, 1, 1, 0, 0]


def test_reset_line(host, wire, clock):
    host.lba(3, 5, drive=1)
    host.do(READ)
    host.ide.reset()
    assert not wire.level
    assert clock.next_deadline() is None
    assert [host[n] for n in range(1, 7)] == [0, 1, 1, 0, 0, 0xA0]
    assert host.status == READY


def test_registers_are_bytes_of_wider_accesses(host):
    host.ide.write(BASE + COUNT, 4, 0x44332211)
    assert [host[n] for n in range(COUNT, SELECT)] == [0x11, 0x22, 0x33, 0x44]
    assert host.ide.read(BASE + COUNT, 4) == 0x44332211
    assert host.ide.read(BASE + COMMAND, 2) == 0xFF50
    assert host.ide.read(CONTROL, 4) == 0xFFFFFF50
