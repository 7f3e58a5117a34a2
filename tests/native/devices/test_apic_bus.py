# SPDX-License-Identifier: GPL-2.0-only
"""Messages between local APICs: who takes them, by destination and by delivery mode."""

from __future__ import annotations

import pytest

from vmi.native.clock import Clock
from vmi.native.devices.apic_bus import ApicBus
from vmi.native.devices.ioapic import IoApic
from vmi.native.devices.lapic import BASE_BSP, INIT, LOWEST_PRIORITY, NMI, STARTUP, Lapic, Message

BASE = 0xFEE00000
LDR, DFR, ICR, ICR_HIGH, LINT0 = 0xD0, 0xE0, 0x300, 0x310, 0x350
LOGICAL, ASSERT, LEVEL = 0x800, 0x4000, 0x8000
TO_SELF, TO_ALL, TO_OTHERS = 1 << 18, 2 << 18, 3 << 18


class Bench:
    """Four local APICs on a bus, switched on, each in a set of its own, and what they took."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.lapics = [Lapic(Clock(), number) for number in range(4)]
        self.bus = ApicBus(self.lapics)
        for number, lapic in enumerate(self.lapics):
            lapic.virtual_wire()
            self.write(number, LDR, 1 << 24 + number)
            lapic.on_nmi = self._noting(f"nmi {number}")
            lapic.on_init = self._noting(f"init {number}")
            lapic.on_startup = lambda vector, number=number: self.log.append(f"start {number} {vector:#x}")

    def _noting(self, text: str):  # type: ignore[no-untyped-def]
        return lambda: self.log.append(text)

    def write(self, number: int, register: int, value: int) -> None:
        self.lapics[number].memory_write(BASE + register, 4, value)

    def send(self, sender: int, destination: int, command: int) -> list[int]:
        """Send; gives who has got vector 40h."""
        self.write(sender, ICR_HIGH, destination << 24)
        self.write(sender, ICR, command)
        return self.asked(0x40)

    def asked(self, vector: int) -> list[int]:
        return [number for number, lapic in enumerate(self.lapics) if lapic.irr >> vector & 1]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("destination", "command", "takers"),
    [
        (2, 0x40, [2]),
        (0, 0x40, [0]),
        (7, 0x40, []),
        (0xFF, 0x40, [0, 1, 2, 3]),
        (0b0100, LOGICAL | 0x40, [2]),
        (0b1011, LOGICAL | 0x40, [0, 1, 3]),
        (0, LOGICAL | 0x40, []),
        (0, TO_SELF | 0x40, [1]),
        (0, TO_ALL | 0x40, [0, 1, 2, 3]),
        (0, TO_OTHERS | 0x40, [0, 2, 3]),
        (0b1100, LOGICAL | LOWEST_PRIORITY << 8 | 0x40, [2]),
        (0xFF, LOWEST_PRIORITY << 8 | 0x40, [0]),
    ],
)
def test_who_takes_a_message_of_processor_1(
    bench: Bench, destination: int, command: int, takers: list[int]
) -> None:
    assert bench.send(1, destination, command) == takers


def test_clusters(bench: Bench) -> None:
    for number in range(4):
        bench.write(number, DFR, 0x0FFFFFFF)
        bench.write(number, LDR, (1 + number // 2 << 4 | 1 << number % 2) << 24)
    assert bench.send(0, 0x23, LOGICAL | 0x40) == [2, 3]
    assert bench.send(0, 0x12, LOGICAL | 0x40) == [1, 2, 3]


def test_an_apic_that_is_switched_off_takes_nothing(bench: Bench) -> None:
    bench.lapics[0].set_apic_base(0)
    assert bench.send(1, 0xFF, 0x40) == [1, 2, 3]
    bench.lapics[1].set_apic_base(0)
    assert bench.send(2, 0b0011, LOGICAL | LOWEST_PRIORITY << 8 | 0x40) == [1, 2, 3]


def test_init_and_start_up_messages_reach_the_processors(bench: Bench) -> None:
    bench.send(0, 0, TO_OTHERS | INIT << 8 | LEVEL | ASSERT)
    bench.send(0, 0, TO_OTHERS | INIT << 8 | LEVEL)  # its end is no message of its own
    bench.send(0, 2, STARTUP << 8 | ASSERT | 0x9A)
    assert bench.log == ["init 1", "init 2", "init 3", "start 2 0x9a"]


def test_non_maskable_ones_too(bench: Bench) -> None:
    bench.send(3, 0b0110, LOGICAL | NMI << 8 | ASSERT)
    assert bench.log == ["nmi 1", "nmi 2"]


def test_what_init_leaves_of_an_apic(bench: Bench) -> None:
    lapic = bench.lapics[1]
    bench.send(0, 1, 0x40)
    lapic.init()
    assert (lapic.irr, lapic.ldr, lapic.svr, lapic.identity) == (0, 0, 0xFF, 1)
    assert lapic.enabled
    assert not lapic.pending()


def test_the_boot_processor_is_the_first_one(bench: Bench) -> None:
    assert [bool(lapic.apic_base & BASE_BSP) for lapic in bench.lapics] == [True, False, False, False]
    fresh = [Lapic(Clock(), number).memory_read(BASE + LINT0, 4) for number in range(2)]
    assert fresh == [0x700, 0x10000]  # the 8259A pair reaches it alone


def test_senders_are_told_of(bench: Bench) -> None:
    told: list[int] = []
    bench.bus.on_sent = lambda: told.append(1)
    bench.send(0, 0, TO_SELF | 0x40)
    assert not told
    bench.send(0, 3, 0x40)
    assert told == [1]


def test_a_level_that_another_than_the_boot_processor_ends() -> None:
    """The I/O APIC's entry goes to processor 2, and its end of interrupt opens the input again."""
    bench = Bench()
    io_apic = IoApic(bench.bus.deliver)
    lapic = bench.lapics[2]
    lapic.on_eoi = io_apic.end_of_interrupt
    for register, value in ((0x10 + 2 * 9 + 1, 2 << 24), (0x10 + 2 * 9, 0x8051)):
        io_apic.memory_write(0xFEC00000, 4, register)
        io_apic.memory_write(0xFEC00010, 4, value)
    io_apic.line(9).set(True)
    assert bench.asked(0x51) == [2]
    assert lapic.acknowledge() == 0x51
    assert bench.asked(0x51) == []
    lapic.memory_write(BASE + 0xB0, 4, 0)
    assert bench.asked(0x51) == [2]


def test_representation(bench: Bench) -> None:
    assert repr(bench.bus) == "<ApicBus of 4 processors>"
    assert repr(Message(3, False, 0, 0x40, False)) == "Message(0x40 to id 0x3, mode 0)"
