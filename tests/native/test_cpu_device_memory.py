# SPDX-License-Identifier: GPL-2.0-only
"""Loads and stores where devices are: each is done once, however the run is cut."""

from __future__ import annotations

import pytest

from tests.native.bare import new_cpu, put
from tests.native.guest import CODE
from vmi.native.wiring import Stop
from vmi.x86 import Cr0

DEVICE = 0xFEE00000
RAM_END = 0x200000


class Device:
    """A bus whose memory counts up at each load, keeps stores, and may do something on the way."""

    def __init__(self):
        self.log = []
        self.act = lambda: None

    def memory_read(self, address, size):
        self.log.append(("read", address, size))
        self.act()
        return len(self.log) * 0x0101010101010101 & (1 << 8 * size) - 1

    def memory_write(self, address, size, value):
        self.log.append(("write", address, size, value))
        self.act()

    def exception(self, vector, is_int, error):
        self.log.append((vector, error, self.cpu.eip))
        self.cpu.stop_soon()


@pytest.fixture
def bus():
    return Device()


@pytest.fixture
def cpu(bus):
    return new_cpu(bus)


@pytest.mark.parametrize(
    ("source", "length", "log"),
    [
        (f"mov eax,[{DEVICE}]", 5, [("read", DEVICE, 4)]),
        (f"mov [{DEVICE}],eax", 5, [("write", DEVICE, 4, 7)]),
        (f"add [{DEVICE}],eax", 6, [("read", DEVICE, 4), ("write", DEVICE, 4, 0x01010108)]),
        (f"xchg [{DEVICE}],eax", 6, [("read", DEVICE, 4), ("write", DEVICE, 4, 7)]),
        (f"push dword ptr [{DEVICE}]", 6, [("read", DEVICE, 4)]),
        (f"pop dword ptr [{DEVICE}]", 6, [("write", DEVICE, 4, 0)]),
        (f"fild qword ptr [{DEVICE}]", 6, [("read", DEVICE, 4), ("read", DEVICE + 4, 4)]),
    ],
)
@pytest.mark.parametrize("stop", ["stop_soon", "stop_within"])
def test_stop_from_inside(cpu, bus, source, length, log, stop):
    """It takes effect behind the instruction, which is not done again."""
    put(cpu, f"{source} | inc ebx | inc ebx | inc ebx")
    cpu.eax, cpu.ebx = 7, 0
    bus.act = cpu.stop_soon if stop == "stop_soon" else lambda: cpu.stop_within(2)
    assert cpu.run(100) is Stop.BUDGET
    more = 0 if stop == "stop_soon" else 2
    assert (cpu.instructions, cpu.eip, cpu.ebx) == (1 + more, CODE + length + more, more)
    assert bus.log == log


def test_copy_from_device_to_device_is_cut_between_two_rounds(cpu, bus):
    put(cpu, "rep movsb | hlt")
    cpu.esi, cpu.edi, cpu.ecx = DEVICE, DEVICE + 0x1000, 5
    bus.act = cpu.stop_soon
    rounds = 0
    while cpu.run(100) is Stop.BUDGET:
        rounds += 1
    accesses = [
        ("read", DEVICE + n // 2, 1) if n % 2 == 0 else ("write", DEVICE + 0x1000 + n // 2, 1)
        for n in range(10)
    ]
    assert [entry[:3] for entry in bus.log] == accesses
    assert 5 <= rounds <= 10


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_load_across_the_end_of_ram(cpu, bus, offset):
    cpu.memory.write(RAM_END - 4, b"\xaa\xbb\xcc\xdd")
    put(cpu, f"mov eax,[{RAM_END - offset}] | mov [{RAM_END - offset}],eax | hlt")
    assert cpu.run(10) is Stop.HALTED
    assert cpu.memory.read(RAM_END - offset, offset) == b"\xaa\xbb\xcc\xdd"[4 - offset :]
    assert cpu.eax.to_bytes(4, "little")[:offset] == b"\xaa\xbb\xcc\xdd"[4 - offset :]
    assert all(address >= RAM_END for _, address, *_ in bus.log)
    stored = b"".join(entry[3].to_bytes(entry[2], "little") for entry in bus.log if entry[0] == "write")
    assert stored == cpu.eax.to_bytes(4, "little")[offset:]


def test_instructions_count_once(cpu, bus):
    seen = []
    put(cpu, f"nop | mov eax,[{DEVICE}] | mov [{DEVICE}],eax | nop | mov eax,[{DEVICE}] | hlt")
    bus.act = lambda: seen.append(cpu.now_instructions())
    assert cpu.run(100) is Stop.HALTED
    assert (seen, cpu.instructions) == ([2, 3, 5], 6)


def test_flags_around_an_access(cpu, bus):
    put(
        cpu,
        f"mov al,0x7f | add al,1 | mov ecx,[{DEVICE}] | pushfd | pop ebx | inc dword ptr [{DEVICE}] | hlt",
    )
    bus.act = cpu.stop_soon
    while cpu.run(10) is Stop.BUDGET:
        pass
    assert cpu.ebx == 0x892


def test_page_fault_of_the_second_half(cpu, bus):
    """A store from a device's page into an absent one: nothing has gone to the device."""
    for index in range(512):
        cpu.memory.put_u32(0x21000 + 4 * index, index << 12 | 3)
    cpu.memory.put_u32(0x22000, DEVICE | 3)
    cpu.memory.put_u32(0x20000, 0x21003)
    cpu.memory.put_u32(0x20004, 0x22003)
    cpu.set_cr(3, 0x20000)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    put(cpu, f"nop | mov [{0x400FFE}],eax")
    cpu.run(10)
    assert bus.log == [(14, 2, CODE + 1)]
    assert cpu.cr2 == 0x401000


def test_error_of_a_device_comes_out_of_the_run(cpu, bus):
    put(cpu, f"mov eax,[{DEVICE}] | hlt")

    def fail():
        raise KeyError("in a device")

    bus.act = fail
    with pytest.raises(KeyError, match="in a device"):
        cpu.run(10)
    bus.act = lambda: None
    assert cpu.run(10) is Stop.HALTED
