# SPDX-License-Identifier: GPL-2.0-only
"""A driver for the tests of IDE channels, and disks for it."""

from __future__ import annotations

import struct

from vmi.errors import OutputError
from vmi.native.devices.ide import BUSY_NS, primary
from vmi.native.disk import Disk

BASE, CONTROL = 0x1F0, 0x3F6
FEATURE, COUNT, SECTOR, LOW, HIGH, SELECT, COMMAND = range(1, 8)
READ, READ_EXT, WRITE, WRITE_EXT = 0x20, 0x24, 0x30, 0x34
READ_MULTIPLE, WRITE_MULTIPLE, SET_MULTIPLE = 0xC4, 0xC5, 0xC6
IDENTIFY, SET_FEATURES, DIAGNOSE, FLUSH = 0xEC, 0xEF, 0x90, 0xE7
READY, DATA, FAILED, BUSY = 0x50, 0x58, 0x41, 0xC0
TOTAL = 4000  # sectors


def contents(sectors=TOTAL, key=0) -> bytes:
    return b"".join(struct.pack("<II", n, key) * 64 for n in range(sectors))


class Host:
    """A driver that asks for a drive's registers by number and lets time pass when it is busy."""

    def __init__(self, wire, clock, master=None, slave=None):
        self.clock, self.wire = clock, wire
        self.master, self.slave = master, slave
        self.ide = primary(wire, clock, master, slave)

    def __getitem__(self, register):
        return self.ide.read(BASE + register, 1)

    def __setitem__(self, register, value):
        self.ide.write(BASE + register, 1, value)

    @property
    def status(self):
        """The status register, without the side effect."""
        return self.ide.read(CONTROL, 1)

    def settle(self):
        self.clock.advance_to(self.clock.now() + BUSY_NS)

    def lba(self, sector, count, drive=0):
        self[SELECT] = 0xE0 | drive << 4 | sector >> 24
        self[COUNT] = count & 0xFF
        for register, shift in ((SECTOR, 0), (LOW, 8), (HIGH, 16)):
            self[register] = sector >> shift & 0xFF

    def lba48(self, sector, count, drive=0):
        self[SELECT] = 0xE0 | drive << 4
        self[COUNT], self[COUNT] = count >> 8 & 0xFF, count & 0xFF
        for register, shift in ((SECTOR, 0), (LOW, 8), (HIGH, 16)):
            self[register], self[register] = sector >> shift + 24 & 0xFF, sector >> shift & 0xFF

    def do(self, command):
        """Give a command and wait for its first outcome."""
        self[COMMAND] = command
        self.settle()
        return self.status

    def take(self, sectors=1, size=2):
        """Read a block; then wait for what comes next."""
        words = [self.ide.read(BASE, size) for _ in range(512 * sectors // size)]
        self.settle()
        return struct.pack(f"<{len(words)}{'H' if size == 2 else 'I'}", *words)

    def give(self, data, size=2):
        """Write a block; then wait for what comes next."""
        for at in range(0, len(data), size):
            self.ide.write(BASE, size, int.from_bytes(data[at : at + size], "little"))
        self.settle()


def new_host(wire, clock):
    """A channel with a drive of ``TOTAL`` sectors and one of 100."""
    return Host(wire, clock, Disk.from_bytes(contents()), Disk.from_bytes(contents(100, key=1)))


def words_of(host):
    assert host.do(IDENTIFY) == DATA
    return struct.unpack("<256H", host.take())


class Claimed:
    """An image that says how large it is and holds nothing but a first sector."""

    def __init__(self, size, first=b""):
        self.size, self.first = size, first

    def read(self, offset, size):
        return self.first[offset : offset + size].ljust(size, b"\0")

    def write(self, offset, data):
        raise OutputError("this image can't be written")

    def flush(self):
        raise OutputError("this image can't be written")

    def close(self):
        pass


def sized(size, first=b""):
    return Disk(Claimed(size, first), name="claimed", writable=True)
