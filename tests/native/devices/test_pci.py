# SPDX-License-Identifier: GPL-2.0-only
"""PCI configuration space as firmware and kernels walk it; values are those of QEMU's ``pc`` machine."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi.errors import UsageError
from vmi.native.bus import PortBus
from vmi.native.devices.misc import ResetControl
from vmi.native.devices.pci import ROM, Bar, Identity, PciFunction, PciHost
from vmi.native.devices.pci_functions import (
    DISPLAY,
    HOST_BRIDGE,
    HostBridge,
    RomFunction,
    Segment,
    ide_controller,
    isa_bridge,
    settle,
)
from vmi.native.memory_bus import MemoryBus

ADDRESS, WINDOW = 0xCF8, 0xCFC
ROM_IMAGE = bytes(range(256)) * 20  # 5 KiB: decoded as 8 KiB
CARRIER = Identity(0x15AD, 0x0801, 0x050000)


class Board:
    """The functions of the board behind their ports; ``log`` collects what they tell."""

    def __init__(self):
        self.log = []
        self.memory = MemoryBus()
        self.bus = PortBus()
        self.pci = PciHost()
        self.bridge = HostBridge(self.log.append)
        self.carrier = RomFunction(CARRIER, ROM_IMAGE, self.memory)
        self.pci.add(0, 0, self.bridge)
        self.pci.add(1, 0, isa_bridge())
        self.pci.add(1, 1, ide_controller(lambda port: self.log.append(("ide", port))))
        self.pci.add(2, 0, RomFunction(DISPLAY, None, self.memory))
        self.pci.add(3, 0, self.carrier)
        self.bus.attach(self.pci, ResetControl(lambda: self.log.append("reset")))

    def read(self, slot, number, register, size=4):
        self.bus.write(ADDRESS, 4, 1 << 31 | slot << 11 | number << 8 | register & ~3)
        return self.bus.read(WINDOW + (register & 3), size)

    def write(self, slot, number, register, value, size=4):
        self.bus.write(ADDRESS, 4, 1 << 31 | slot << 11 | number << 8 | register & ~3)
        self.bus.write(WINDOW + (register & 3), size, value)


@pytest.fixture
def board():
    return Board()


# --- what is there ---


@pytest.mark.parametrize(
    ("slot", "number", "expected"),
    [
        (0, 0, {0x00: 0x12378086, 0x08: 0x06000002, 0x2C: 0x11001AF4, 0x54: 0x10000000, 0x70: 0x00020000}),
        (
            1,
            0,
            {
                0x00: 0x70008086, 0x04: 0x02000000, 0x08: 0x06010000, 0x0C: 0x00800000, 0x2C: 0x11001AF4,
                0x4C: 0x0003004D, 0x60: 0x80808080, 0x68: 0x00000200, 0x70: 0x00000080, 0x74: 0x0C0C0000,
                0x78: 0x00000002, 0xA0: 0x00000008, 0xA8: 0x0000000F,
            },
        ),
        (1, 1, {0x00: 0x70108086, 0x04: 0x02800000, 0x08: 0x01018000, 0x20: 0x00000001, 0x2C: 0x11001AF4}),
        (2, 0, {0x00: 0x11111234, 0x08: 0x03000002, 0x2C: 0x11001AF4}),
        (3, 0, {0x00: 0x080115AD, 0x08: 0x05000000, 0x2C: 0x11001AF4}),
    ],
)  # fmt: skip
def test_registers_after_reset(board, slot, number, expected):
    space = {register: board.read(slot, number, register) for register in range(0, 256, 4)}
    assert {register: value for register, value in space.items() if value} == expected


@pytest.mark.parametrize(
    ("slot", "number", "expected"),
    [
        (0, 0, {0x04: 0x00000507, 0x0C: 0x000000FF, 0x3C: 0x000000FF}),
        (1, 0, {0x04: 0x02000507, 0x0C: 0x008000FF, 0x3C: 0x000000FF}),
        (1, 1, {0x04: 0x02800507, 0x0C: 0x000000FF, 0x20: 0xFFFFFFF1, 0x3C: 0x000000FF}),
        (3, 0, {0x04: 0x00000507, 0x0C: 0x000000FF, 0x30: 0xFFFFE001, 0x3C: 0x000000FF}),
    ],
)
def test_bits_that_can_be_written(board, slot, number, expected):
    before = {register: board.read(slot, number, register) for register in range(0, 256, 4)}
    changed = {}
    for register in range(0, 256, 4):
        board.write(slot, number, register, 0xFFFFFFFF)
        if (value := board.read(slot, number, register)) != before[register]:
            changed[register] = value
    assert changed == {**expected, **dict.fromkeys(range(0x40, 0x100, 4), 0xFFFFFFFF)}


@pytest.mark.parametrize("address", [0x80000100, 0x80000200, 0x80000A00, 0x80002000, 0x80010000, 0x00000000])
def test_where_no_function_is(board, address):
    board.bus.write(ADDRESS, 4, address)
    board.bus.write(WINDOW, 4, 0)
    assert [board.bus.read(WINDOW, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    assert board.pci.stats() == {"reads": 3, "writes": 1, "absent": 3}


def test_controller_without_bus_master():
    function = ide_controller()
    assert function.read(8, 4) == 0x01010000
    function.write(0x20, 4, 0xFFFFFFFF)
    assert function.read(0x20, 4) == 0


# --- ports ---


def test_kernels_find_mechanism_1(board):
    board.bus.write(0xCFB, 1, 0x01)
    before = board.bus.read(ADDRESS, 4)
    board.bus.write(ADDRESS, 4, 0x80000000)
    assert (before, board.bus.read(ADDRESS, 4)) == (0, 0x80000000)
    assert board.bus.unclaimed_writes.total() == 0


def test_address_takes_dwords_alone(board):
    board.bus.write(ADDRESS, 4, 0x12345678)
    board.bus.write(ADDRESS, 2, 0)
    board.bus.write(ADDRESS, 1, 0)
    board.bus.write(ADDRESS + 2, 2, 0)
    board.bus.write(ADDRESS + 2, 4, 0)
    assert board.bus.read(ADDRESS, 4) == 0x12345678
    assert [board.bus.read(ADDRESS, size) for size in (1, 2)] == [0x78, 0x5678]
    assert board.bus.read(ADDRESS + 2, 4) == 0xFFFF5678


def test_reset_register_lies_between(board):
    board.bus.write(ADDRESS, 4, 0x80000600)  # bit 2 of CF9h, but not for that register
    assert board.log == []
    board.bus.write(0xCF9, 1, 0x02)
    assert (board.bus.read(0xCF9, 1), board.bus.read(ADDRESS, 4)) == (0x02, 0x80000600)
    board.bus.write(0xCF9, 1, 0x06)
    assert board.log == ["reset"]


def test_window_shows_parts_of_a_register(board):
    board.bus.write(ADDRESS, 4, 0x80000000)
    assert [board.bus.read(WINDOW + n, 1) for n in range(4)] == [0x86, 0x80, 0x37, 0x12]
    assert [board.bus.read(WINDOW + n, 2) for n in range(4)] == [0x8086, 0x3780, 0x1237, 0xFF12]
    assert [board.bus.read(WINDOW + n, 4) for n in (1, 3)] == [0xFF123780, 0xFFFFFF12]
    board.bus.write(ADDRESS, 4, 0x80000040)
    board.bus.write(WINDOW, 4, 0)
    board.bus.write(WINDOW + 1, 4, 0x11223344)
    assert board.bus.read(WINDOW, 4) == 0x22334400
    board.bus.write(WINDOW + 3, 2, 0x5566)
    assert board.bus.read(WINDOW, 4) == 0x66334400


# --- decoding ---


def test_ports_of_the_bus_master(board):
    board.write(1, 1, 0x20, 0xC000)
    assert board.log == []
    board.write(1, 1, 0x04, 0x0001, 2)
    assert board.read(1, 1, 0x20) == 0xC001
    board.write(1, 1, 0x20, 0xFFFFFFFF)
    assert board.read(1, 1, 0x20) == 0xFFFFFFF1
    board.write(1, 1, 0x20, 0xC123)
    board.write(1, 1, 0x04, 0x0002, 2)
    assert board.log == [("ide", 0xC000), ("ide", None), ("ide", 0xC120), ("ide", None)]


@pytest.mark.parametrize("port", [0, 0x10000, 0xFFFFFFF0])
def test_ports_that_can_not_be(board, port):
    board.write(1, 1, 0x04, 0x0001, 2)
    board.write(1, 1, 0x20, port)
    assert board.log == []


def test_rom_is_seen_where_it_is_put(board):
    board.write(3, 0, 0x30, 0xFFFFF800)
    assert board.read(3, 0, 0x30) == 0xFFFFE000
    board.write(3, 0, 0x30, 0xFEB00001)
    assert board.memory.device(0xFEB00000) is None
    board.write(3, 0, 0x04, 0x0002, 2)
    assert board.memory.read(0xFEB00001, 4) == 0x04030201
    assert board.memory.read(0xFEB013FE, 4) == 0x0000FFFE
    assert board.memory.read(0xFEB01FFC, 8) == 0
    board.memory.write(0xFEB00000, 4, 0)
    assert board.memory.read(0xFEB00000, 1) == 0
    assert board.memory.read(0xFEB00001, 1) == 1
    assert board.carrier.where(ROM) == 0xFEB00000
    board.write(3, 0, 0x30, 0xFEA00001)
    assert board.memory.device(0xFEB00000) is None
    assert board.memory.read(0xFEA00001, 1) == 1
    board.write(3, 0, 0x30, 0xFEA00000)
    assert board.memory.device(0xFEA00000) is None


def test_rom_gives_way_to_other_devices(board):
    class Other:
        def memory_read(self, address, size):
            return 0x55

        def memory_write(self, address, size, value):
            pass

    other = Other()
    board.memory.map(range(0xFEE00000, 0xFEE01000), other)
    board.write(3, 0, 0x04, 0x0002, 2)
    board.write(3, 0, 0x30, 0xFEE00001)
    assert board.memory.read(0xFEE00000, 1) == 0x55
    assert board.memory.device(0xFEE01000) is None
    board.write(3, 0, 0x30, 0)
    assert board.memory.device(0xFEE00000) is other


@pytest.mark.parametrize(("length", "size"), [(1, 4096), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20)])
def test_rom_takes_a_power_of_two(length, size):
    function = RomFunction(CARRIER, b"r" * length, MemoryBus())
    function.write(0x30, 4, 0xFFFFFFFE)
    assert function.read(0x30, 4) == (1 << 32) - size


@pytest.mark.parametrize("length", [0, (1 << 20) + 1])
def test_rom_that_can_not_be(length):
    with pytest.raises(UsageError) as caught:
        RomFunction(CARRIER, bytes(length), MemoryBus())
    assert (
        str(caught.value) == f"an option ROM on PCI must have 1 to 1048576 bytes, but this one has {length}"
    )


@pytest.mark.parametrize(("size", "io", "least"), [(2, True, 4), (24, True, 4), (2048, False, 4096)])
def test_ranges_that_can_not_be(size, io, least):
    with pytest.raises(UsageError) as caught:
        Bar(size, io=io)
    assert str(caught.value) == (
        f"a base address register for {'ports' if io else 'memory'} must have a power of two of at least "
        f"{least} bytes, but {size} were asked for"
    )


def test_memory_bar():
    told = []
    bars = {0: Bar(16 << 20, prefetchable=True), 2: Bar(4096)}
    function = PciFunction(DISPLAY, bars=bars, pin=1, on_map=lambda *what: told.append(what))
    function.write(0x10, 4, 0xFFFFFFFF)
    function.write(0x18, 4, 0xFFFFFFFF)
    assert (function.read(0x10, 4), function.read(0x18, 4), function.read(0x3D, 1)) == (
        0xFF000008,
        0xFFFFF000,
        1,
    )
    function.write(0x10, 4, 0xFD000000)
    function.write(0x18, 4, 0xFEBF0000)
    function.write(0x04, 2, 2)
    function.write(0x13, 1, 0xFC)
    function.reset()
    assert told == [(0, 0xFD000000), (2, 0xFEBF0000), (0, 0xFC000000), (0, None), (2, None)]


# --- programmable attributes ---


def test_attributes_of_the_rom_area(board):
    assert [(s.start, s.size) for s in board.bridge.segments] == [
        *((start, 0x4000) for start in range(0xC0000, 0xF0000, 0x4000)),
        (0xF0000, 0x10000),
    ]
    assert not any(s.reads or s.writes for s in board.bridge.segments)
    board.write(0, 0, 0x59, 0x30, 1)
    board.write(0, 0, 0x5A, 0x12, 1)
    board.write(0, 0, 0x5F, 0x01, 1)
    board.write(0, 0, 0x59, 0x3F, 1)  # the low half means nothing
    assert len(board.log) == 3
    on = {s.start: s for s in board.bridge.segments if s.reads or s.writes}
    assert on == {
        0xC0000: Segment(0xC0000, 0x4000, False, True),
        0xC4000: Segment(0xC4000, 0x4000, True, False),
        0xE8000: Segment(0xE8000, 0x4000, True, False),
        0xF0000: Segment(0xF0000, 0x10000, True, True),
    }
    assert board.log[-1] == board.bridge.segments
    assert repr(on[0xF0000]) == "<f0000-fffff rw>"
    board.pci.reset()
    assert not any(s.reads or s.writes for s in board.log[-1])
    assert board.read(0, 0, 0x72, 1) == 0x02


# --- the host ---


def test_functions_have_their_places():
    pci = PciHost()
    with pytest.raises(UsageError) as caught:
        pci.add(1, 1, ide_controller())
    assert str(caught.value) == "PCI function 01.1 needs a function 0 that says that there are others"
    pci.add(0, 0, HostBridge())
    with pytest.raises(UsageError) as caught:
        pci.add(0, 1, ide_controller())
    assert str(caught.value) == "PCI function 00.1 needs a function 0 that says that there are others"
    with pytest.raises(UsageError) as caught:
        pci.add(0, 0, isa_bridge())
    assert str(caught.value) == "PCI function 00.0 is <HostBridge <8086:1237 class 060000 rev 2>> already"
    with pytest.raises(UsageError) as caught:
        pci.add(32, 0, isa_bridge())
    assert str(caught.value) == (
        "a PCI function must be at slots 0 to 31 and numbers 0 to 7, but slot 32, number 0 was asked for"
    )


def test_state_of_other_functions_is_refused(board):
    other = PciHost()
    other.add(0, 0, PciFunction(HOST_BRIDGE))
    with pytest.raises(UsageError) as caught:
        board.pci.load(other.save())
    assert str(caught.value) == (
        "the saved state must be of the PCI functions 00.0, 01.0, 01.1, 02.0, 03.0, but it is of 00.0"
    )


def test_settled_board_is_as_firmware_leaves_it(board):
    settle(board.pci)
    assert board.log == [("ide", 0xC000)]
    assert board.read(1, 1, 0x04) == 0x02800103
    assert board.read(1, 1, 0x20) == 0xC001
    assert board.read(1, 1, 0x40) == 0x80008000
    assert board.read(1, 0, 0x60) == 0x0B0B0A0A
    assert board.read(3, 0, 0x30) == 0xFEBFE000
    assert board.memory.device(0xFEBFE000) is None


# --- any sequence ---

DWORDS = st.one_of(
    st.sampled_from([0, 0xFFFFFFFF, 1, 2, 3, 7, 0xC001, 0xFEB00001, 0xFEE00001, 0xFFFFF800, 0x33333333]),
    st.integers(0, 2**32 - 1),
)
FUNCTIONS = st.sampled_from([(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (9, 0)])
REGISTERS = st.one_of(st.sampled_from([0, 4, 8, 0x10, 0x20, 0x30, 0x58, 0x5C, 0x70]), st.integers(0, 255))
STEPS = st.one_of(
    st.tuples(st.just("config"), FUNCTIONS, REGISTERS, st.sampled_from([1, 2, 4]), DWORDS),
    st.tuples(st.just("write"), st.integers(0xCF5, 0xD00), st.sampled_from([1, 2, 4]), DWORDS),
    st.tuples(st.just("read"), st.integers(0xCF5, 0xD00), st.sampled_from([1, 2, 4])),
    st.tuples(st.just("load"), st.sampled_from([0xFEB00000, 0xFEE00000]), st.sampled_from([1, 2, 4, 8])),
    st.tuples(st.just("reset")),
)


def play(board, steps):
    """Run steps; give all that can be seen of them."""
    seen = []
    for name, *args in steps:
        if name == "config":
            (slot, number), register, size, value = args
            board.write(slot, number, register, value & (1 << 8 * size) - 1, size)
            seen.append(board.read(slot, number, register, size))
        elif name == "write":
            board.bus.write(*args)
        elif name == "read":
            value = board.bus.read(*args)
            assert 0 <= value < 1 << 8 * args[1]
            seen.append(value)
        elif name == "load":
            seen.append(board.memory.read(*args))
        else:
            board.bus.reset()
        seen.append(board.carrier.where(ROM))
    return seen


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=30), st.lists(STEPS, max_size=30))
def test_saved_functions_continue_identically(before, after):
    original, copy = Board(), Board()
    play(original, before)
    state = json.loads(json.dumps(original.bus.save()))
    play(copy, after)  # whatever was mapped is mapped elsewhere
    copy.bus.load(state)
    assert copy.bus.save() == state
    original.log.clear()
    copy.log.clear()
    assert play(copy, after) == play(original, after)
    assert copy.log == original.log
    assert copy.bus.save() == original.bus.save()
