# SPDX-License-Identifier: GPL-2.0-only
"""The bus master: sectors between drives and memory, its registers, tables that don't fit."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.devices.ide_host import (
    BASE,
    COMMAND,
    CONTROL,
    COUNT,
    DATA,
    FAILED,
    FEATURE,
    READY,
    SET_FEATURES,
    TOTAL,
    Host,
    contents,
    words_of,
)
from vmi.native.clock import Clock
from vmi.native.devices.ide import BUSY_NS, primary
from vmi.native.devices.ide_dma import BusMaster
from vmi.native.disk import Disk

MASTER = 0xC000
START, TO_MEMORY = 0x01, 0x08
ACTIVE, INTERRUPT = 0x01, 0x04
TABLE = 0x1000
READ_DMA, READ_DMA_EXT, WRITE_DMA, WRITE_DMA_EXT = 0xC8, 0x25, 0xCA, 0x35


class Moved:
    """A port bus that only moves."""

    def move(self, device, ports):
        device.ports = ports


class DmaHost(Host):
    """A driver of a drive behind a bus master, with 1 MiB of memory."""

    def __init__(self, wire, clock, sectors=TOTAL):
        super().__init__(wire, clock, Disk.from_bytes(contents(sectors)))
        self.memory = bytearray(1 << 20)
        self.master_ports = BusMaster(Moved(), self.load, self.store)
        self.master_ports.map(MASTER)
        self.ide = primary(wire, clock, self.master, dma=self.master_ports.engines[0])

    def load(self, address, size):
        return bytes(self.memory[address : address + size]).ljust(size, b"\xff")

    def store(self, address, data):
        room = max(0, len(self.memory) - address)
        self.memory[address : address + len(data)] = data[:room]

    def register(self, offset, value=None):
        if value is not None:
            self.master_ports.write(MASTER + offset, 1, value)
        return self.master_ports.read(MASTER + offset, 1)

    def prepare(self, *pieces, last=True):
        """Write a table of (address, size), and point the bus master to it."""
        for n, (address, size) in enumerate(pieces):
            end = last and n == len(pieces) - 1
            entry = struct.pack("<II", address, size | end << 31)
            self.memory[TABLE + 8 * n : TABLE + 8 * n + 8] = entry
        for n in range(4):
            self.register(4 + n, TABLE >> 8 * n & 0xFF)
        self.register(2, 0x66)

    def move(self, command, direction):
        """Give a command and start the bus master; the state of both after it."""
        assert self.do(command) == DATA
        assert not self.wire.level
        self.register(0, direction | START)
        assert self.register(2) & ACTIVE
        self.settle()
        return self.status, self.register(2) & (ACTIVE | INTERRUPT), self.wire.level


@pytest.fixture
def host(wire, clock):
    return DmaHost(wire, clock)


@pytest.mark.parametrize(
    ("command", "address"), [(READ_DMA, Host.lba), (0xC9, Host.lba), (READ_DMA_EXT, Host.lba48)]
)
def test_sectors_go_to_memory(host, command, address):
    host.prepare((0x20000, 700), (0x30000, 324))
    address(host, 77, 2)
    assert host.move(command, TO_MEMORY) == (READY, INTERRUPT, True)
    data = contents()[77 * 512 : 79 * 512]
    assert host.memory[0x20000 : 0x20000 + 701] == data[:700] + b"\0"
    assert host.memory[0x30000 : 0x30000 + 325] == data[700:] + b"\0"
    assert host[COMMAND] == READY
    assert host.register(2) & INTERRUPT
    assert host.register(2, 0x64) & INTERRUPT == 0
    assert host.master_ports.stats() == {"transfers": 1, "bytes": 1024}


@pytest.mark.parametrize(
    ("command", "address"), [(WRITE_DMA, Host.lba), (0xCB, Host.lba), (WRITE_DMA_EXT, Host.lba48)]
)
def test_sectors_come_from_memory(host, command, address):
    host.memory[0x20000:0x20400] = b"data" * 256
    host.prepare((0x20000, 1024))
    address(host, 77, 2)
    assert host.move(command, 0) == (READY, INTERRUPT, True)
    assert (
        host.master.read(76, 4)
        == contents()[76 * 512 : 77 * 512] + b"data" * 256 + contents()[79 * 512 : 80 * 512]
    )


def test_size_of_zero_is_64_kib(host):
    host.prepare((0x20000, 0), (0x40000, 0))
    host.lba(0, 256)
    assert host.move(READ_DMA, TO_MEMORY) == (READY, INTERRUPT, True)
    assert host.memory[0x20000:0x30000] == contents()[:0x10000]
    assert host.memory[0x40000:0x50000] == contents()[0x10000:0x20000]


def test_bus_master_may_be_started_first(host):
    host.prepare((0x20000, 512))
    host.lba(5, 1)
    host.register(0, TO_MEMORY | START)
    host[COMMAND] = READ_DMA
    host.clock.advance_to(2 * BUSY_NS)
    assert (host.status, host.register(2) & 5, host.wire.level) == (READY, INTERRUPT, True)


@pytest.mark.parametrize("pieces", [[(0x20000, 2048)], [(0x20000, 1024), (0x30000, 512)]])
def test_table_that_is_too_long_leaves_the_bus_master_active(host, pieces):
    host.prepare(*pieces)
    host.lba(5, 2)
    assert host.move(READ_DMA, TO_MEMORY) == (READY, ACTIVE | INTERRUPT, True)
    host.register(0, 0)
    assert host.register(2) & 5 == INTERRUPT


def test_table_that_is_too_short_moves_nothing(host):
    host.prepare((0x20000, 1022))
    host.lba(5, 2)
    assert host.move(READ_DMA, TO_MEMORY) == (READY, 0, False)
    assert host.memory[0x20000:0x20400] == bytes(1024)


def test_table_without_end_is_given_up(host):
    host.memory[:] = struct.pack("<II", 0x20000, 2) * (len(host.memory) // 8)
    host.prepare(last=False)
    host.lba(0, 256)
    assert host.move(READ_DMA, TO_MEMORY) == (READY, 0, False)


def test_memory_that_is_not_there(host):
    host.prepare((0xFFFFF000, 512))
    host.lba(5, 1)
    assert host.move(WRITE_DMA, 0) == (READY, INTERRUPT, True)
    assert host.master.read(5, 1) == b"\xff" * 512
    host.register(0, 0)
    assert host[COMMAND] == READY
    host.lba(5, 1)
    assert host.move(READ_DMA, TO_MEMORY) == (READY, INTERRUPT, True)


@pytest.mark.parametrize(("command", "direction"), [(READ_DMA, TO_MEMORY), (WRITE_DMA, 0)])
def test_sectors_that_are_not_there(host, command, direction):
    host.prepare((0x20000, 512))
    host.lba(TOTAL, 1)
    assert host.move(command, direction) == (FAILED, INTERRUPT, True)
    assert host[1] == 0x04


def test_stop_before_the_transfer(host):
    host.prepare((0x20000, 512))
    host.lba(5, 1)
    host.do(READ_DMA)
    host.register(0, START)
    host.register(0, 0)
    host.settle()
    assert (host.status, host.register(2) & 5) == (DATA, 0)
    host.register(0, START)
    host.settle()
    assert (host.status, host.register(2) & 5) == (READY, INTERRUPT)


def test_reset_of_the_drive_ends_the_transfer(host, clock):
    host.prepare((0x20000, 512))
    host.lba(5, 1)
    host.do(READ_DMA)
    host.ide.write(CONTROL, 1, 0x04)
    host.ide.write(CONTROL, 1, 0x00)
    host.settle()
    host.register(0, START)
    assert clock.next_deadline() is None
    assert host.memory[0x20000:0x20200] == bytes(512)


def test_other_interrupts_show_too(host):
    host.do(0xE7)
    assert host.register(2) & INTERRUPT
    host.register(2, INTERRUPT)
    host.ide.write(CONTROL, 1, 0x02)
    host.do(0xE7)
    assert not host.register(2) & INTERRUPT


def test_registers_keep_what_qemu_keeps(host):
    for register in range(16):
        host.register(register, 0xFF)
    seen = [host.register(register) for register in range(16)]
    assert seen == [0x09, 0xFF, 0x61, 0xFF, 0xFC, 0xFF, 0xFF, 0xFF] * 2
    for register in range(16):
        host.register(register, 0)
    assert [host.register(register) for register in range(16)] == [0, 0xFF, 0, 0xFF, 0, 0, 0, 0] * 2


def test_identify_tells_of_dma_as_in_qemu(host):
    words = words_of(host)
    assert (words[49], words[53], words[63], words[88]) == (0x0B00, 0x0007, 0x0007, 0x203F)
    for mode, multiword, ultra in ((0x22, 0x0407, 0x003F), (0x42, 0x0007, 0x043F), (0x0C, 0x0007, 0x003F)):
        host[FEATURE], host[COUNT] = 0x03, mode
        assert host.do(SET_FEATURES) == READY
        words = words_of(host)
        assert (words[63], words[88]) == (multiword, ultra)
    for mode in (0x10, 0x23, 0x46, 0x80):
        host[FEATURE], host[COUNT] = 0x03, mode
        assert host.do(SET_FEATURES) == FAILED


def test_ports_move(host):
    assert host.master_ports.ports == (range(0xC000, 0xC010),)
    host.master_ports.map(None)
    assert host.master_ports.ports == ()
    assert repr(host.master_ports) == "<BusMaster ide_dma ports >"


class Level:
    """An interrupt line's level."""

    level = False

    def set(self, level):
        self.level = level


STEPS = st.one_of(
    st.tuples(st.just("register"), st.sampled_from([0, 2, 8]), st.sampled_from([0, 1, 8, 9, 4, 0x66, 0xFF])),
    st.tuples(
        st.just("prepare"), st.lists(st.tuples(st.integers(0, 0x3F), st.integers(0, 0x7FF)), max_size=3)
    ),
    st.tuples(
        st.just("command"),
        st.sampled_from([READ_DMA, WRITE_DMA, READ_DMA_EXT, WRITE_DMA_EXT, 0x20, 0xE7]),
        st.integers(0, 30),
        st.integers(1, 3),
    ),
    st.tuples(st.just("ide"), st.integers(1, 7), st.integers(0, 255)),
    st.tuples(st.just("wait")),
    st.tuples(st.just("reset")),
)


def play(host, steps):
    """Run steps; give all that can be seen of them."""
    seen = []
    for name, *args in steps:
        if name == "register":
            seen.append(host.register(*args))
        elif name == "prepare":
            host.prepare(*((page << 12, size) for page, size in args[0]))
        elif name == "command":
            code, sector, count = args
            host.lba(sector, count)
            host[COMMAND] = code
        elif name == "ide":
            host.ide.write(BASE + args[0], 1, args[1])
        elif name == "wait":
            host.settle()
        else:
            host.ide.reset()
            host.master_ports.reset()
        seen.append((host.status, host.register(2), host.wire.level, host.clock.next_deadline()))
    return seen


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=15), st.lists(STEPS, max_size=15))
def test_saved_bus_master_continues_identically(before, after):
    original, copy = DmaHost(Level(), Clock(), 32), DmaHost(Level(), Clock(), 32)
    play(original, before)
    parts = (original.clock, original.ide, original.master_ports)
    state = json.loads(json.dumps([part.save() for part in parts]))
    play(copy, after)
    for part, saved in zip((copy.clock, copy.ide, copy.master_ports), state, strict=True):
        part.load(saved)
    copy.wire.level = original.wire.level
    copy.memory[:] = original.memory
    copy.master.load_overlay(original.master.overlay())
    assert play(copy, after) == play(original, after)
    assert copy.memory == original.memory
    assert copy.master.overlay() == original.master.overlay()
    assert copy.master_ports.save() == original.master_ports.save()
