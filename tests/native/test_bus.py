# SPDX-License-Identifier: GPL-2.0-only
"""The port bus: dispatch, splitting of wide accesses, strays."""

from __future__ import annotations

import re

import pytest

from vmi.errors import UsageError
from vmi.native.bus import Device, PortBus


class Probe(Device):
    """Answers with the low byte of the port, remembers what it gets."""

    def __init__(self, name, *ports, wide=False):
        self.name = name
        self.ports = ports
        self.wide = wide
        self.seen = []

    def read(self, port, size):
        self.seen.append(("r", port, size))
        return port & 0xFF if size == 1 else 0x12345678 & (1 << 8 * size) - 1

    def write(self, port, size, value):
        self.seen.append(("w", port, size, value))

    def reset(self):
        self.seen.append("reset")

    def save(self):
        return {"seen": len(self.seen)}

    def load(self, state):
        self.seen = [None] * state["seen"]


def test_unclaimed_ports_read_all_ones_and_are_counted_by_port():
    bus = PortBus()
    assert [bus.read(0x300, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    bus.write(0x301, 2, 0)
    assert bus.unclaimed_reads == {0x300: 3, 0x301: 2, 0x302: 1, 0x303: 1}
    assert bus.unclaimed_writes == {0x301: 1, 0x302: 1}
    assert bus.stats()["bus"] == {"unclaimed_reads": 7, "unclaimed_writes": 2}


def test_wide_accesses_are_split_for_byte_devices():
    bus, device = PortBus(), Probe("p", range(0x10, 0x13))
    bus.attach(device)
    assert bus.read(0x10, 4) == 0xFF121110
    bus.write(0x11, 2, 0xABCD)
    assert device.seen[3:] == [("w", 0x11, 1, 0xCD), ("w", 0x12, 1, 0xAB)]
    assert bus.unclaimed_reads == {0x13: 1}


def test_wide_device_gets_accesses_that_begin_in_it_whole_and_no_others():
    bus, device = PortBus(), Probe("p", range(0xCF9, 0xCFA), wide=True)
    bus.attach(device)
    assert bus.read(0xCF8, 4) == 0xFFFFFFFF
    bus.write(0xCF8, 4, 0xFFFFFFFF)
    assert device.seen == []
    assert bus.read(0xCF9, 2) == 0x5678
    bus.write(0xCF9, 1, 0x1FF)
    assert device.seen == [("r", 0xCF9, 2), ("w", 0xCF9, 1, 0xFF)]


def test_ports_wrap_at_the_end():
    bus, device = PortBus(), Probe("p", range(0, 1))
    bus.attach(device)
    bus.write(0xFFFF, 2, 0x1122)
    assert device.seen == [("w", 0, 1, 0x11)]


def test_two_devices_cannot_share_a_port_or_a_name():
    bus = PortBus()
    bus.attach(Probe("one", range(0x60, 0x61)))
    with pytest.raises(UsageError, match=re.escape("port 0x60 of two is claimed by one already")):
        bus.attach(Probe("two", range(0x5F, 0x62)))
    with pytest.raises(
        UsageError, match=re.escape("device names must be unique, but 'one' is on the bus already")
    ):
        bus.attach(Probe("one", range(0x70, 0x71)))
    assert [device.name for device in bus.devices] == ["one"]
    assert bus.read(0x5F, 1) == 0xFF


def test_state_goes_by_name_and_must_fit():
    bus, device = PortBus(), Probe("p", range(1))
    bus.attach(device)
    bus.reset()
    assert bus.save() == {"p": {"seen": 1}}
    bus.load({"p": {"seen": 3}})
    assert len(device.seen) == 3
    assert bus.device("p") is device
    with pytest.raises(
        UsageError, match=re.escape("the saved state must be of the devices p, but it is of q")
    ):
        bus.load({"q": {}})


def test_repr_shows_the_ports():
    assert repr(Probe("p", range(0x60, 0x61), range(0x64, 0x68))) == "<Probe p ports 60,64-67>"
