# SPDX-License-Identifier: GPL-2.0-only
"""What firmware leaves behind: read back the way a kernel would."""

from __future__ import annotations

from vmi.memory import PhysicalMemory
from vmi.native.boot import firmware
from vmi.native.devices.pit import time_of


def test_devices_as_firmware_leaves_them(board):
    firmware.settle(board.bus, PhysicalMemory(1 << 20))
    assert (board.bus.read(0x21, 1), board.bus.read(0xA1, 1)) == (0xB8, 0x8E)
    board.clock.advance_to(time_of(1 + 65536))
    assert board.pic.acknowledge() == 0x08
    board.bus.write(0x43, 1, 0xE2)
    assert board.bus.read(0x40, 1) == 0xB4  # mode 2, OUT high
    board.bus.write(0x43, 1, 0xE8)
    assert board.bus.read(0x42, 1) & 0x3F == 0x30
    assert board.bus.read(0x61, 1) & 0x0F == 0


def test_data_area(board):
    memory = PhysicalMemory(1 << 20)
    memory.write(0x400, b"\xcc" * 0x100)
    firmware.settle(board.bus, memory)
    words = {at: int.from_bytes(memory.read(at, 2), "little") for at in (0x400, 0x402, 0x40E, 0x410, 0x413)}
    assert words == {0x400: 0x3F8, 0x402: 0x2F8, 0x40E: 0x9FC0, 0x410: 0x0406, 0x413: 639}
    assert memory.read(0x420, 0xE0) == bytes(0xE0)
