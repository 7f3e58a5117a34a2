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


def words(memory, *offsets):
    return {at: int.from_bytes(memory.read(at, 2), "little") for at in offsets}


def test_data_areas(board):
    memory = PhysicalMemory(1 << 20)
    memory.write(0x400, b"\xcc" * 0x100)
    firmware.settle(board.bus, memory)
    assert words(memory, 0x400, 0x402, 0x40E, 0x410, 0x413, 0x41A, 0x41C, 0x480, 0x482, 0x496) == {
        0x400: 0x3F8, 0x402: 0x2F8, 0x40E: 0x9FC0, 0x410: 0x0406, 0x413: 639, 0x41A: 0x1E, 0x41C: 0x1E,
        0x480: 0x1E, 0x482: 0x3E, 0x496: 0x10,
    }  # fmt: skip
    assert memory.read(0x420, 0x60) == bytes(0x60)  # no display, no drives
    assert memory.read(0x9FC00, 1) == b"\x01"


class Display:
    """As much of a display adapter as firmware looks for."""

    name = "display"
    ports = (range(0x3D4, 0x3D6),)


def test_display_is_described_if_there_is_one(board):
    board.bus.attach(Display())
    memory = PhysicalMemory(1 << 20)
    firmware.settle(board.bus, memory)
    assert words(memory, 0x410, 0x449, 0x44A, 0x44C, 0x460, 0x463, 0x484, 0x485, 0x487, 0x488) == {
        0x410: 0x0426, 0x449: 0x5003, 0x44A: 80, 0x44C: 0x1000, 0x460: 0x0607, 0x463: 0x3D4,
        0x484: 0x1018, 0x485: 16, 0x487: 0xF960, 0x488: 0x51F9,
    }  # fmt: skip
    assert memory.read(0xB7FFF, 0x8002) == b"\0" + b" \x07" * 0x4000 + b"\0"
