# SPDX-License-Identifier: GPL-2.0-only
"""The event log: its lines, its categories, and what it calls things."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.errors import UsageError
from vmi.native.event_log import CATEGORIES, EventLog
from vmi.native.register_names import memory_name, port_name


class Log:
    """An event log with a guest that the test moves."""

    def __init__(self, categories: str = "all") -> None:
        self.ns = 0
        self.place = (8, 0xC0100ABC)
        self.lines: list[str] = []
        self.log = EventLog(
            EventLog.parse(categories), self.lines.append, lambda: self.ns, lambda: self.place, self.device
        )

    def device(self, port: int) -> str | None:
        return "ide0 bus master" if port == 0xC000 else None

    def text(self) -> str:
        assert self.log.close() is None
        return "".join(self.lines)


def test_lines() -> None:
    one = Log()
    log = one.log
    log.port_write(0x64, 1, 0xD1)
    one.ns, one.place = 1_234_567, (0x10, 0x123)
    log.port_read(0x3FD, 1, 0x60)
    log.port_write(0xCF8, 4, 0x80000000)
    log.port_read(0xC000, 2, 0x1)
    log.port_read(0x1234, 1, 0xFF)
    log.memory_read(0xFEE00030, 4, 0x50014)
    log.memory_write(0xFEC00010, 4, 0x10000)
    log.memory_write(0xA0010, 1, 0)
    log.memory_read(0xE0000000, 4, 0xFFFFFFFF)
    log.exception(0)
    log.exception(13, 0x18)
    log.exception(14, 6, 0xBEEF)
    log.exception(14, 1, 0xC0000000)
    log.exception(14, 0x19, 0)
    log.exception(30)
    log.refused("SetCR4", 13, 0)
    log.refused("a call-out by user code")
    log.software_interrupt(0x80)
    log.interrupt(0x30, 0)
    log.interrupt(0xEF)
    log.msr_read(0x1B, 0xFEE00900)
    log.msr_read(0x1C, None)
    log.msr_write(0x10, 1, True)
    log.msr_write(0x1B, 1, False)
    log.cpu("halts")
    log.note("here the test ends")
    assert one.text() == (
        "          0.000 0008:c0100abc out   64 <- d1            i8042 command\n"
        "       1234.567 0010:00000123 in    3fd -> 60           com1 LSR\n"
        "       1234.567 0010:00000123 out   cf8 <- 80000000     pci address\n"
        "       1234.567 0010:00000123 in    c000 -> 0001        ide0 bus master\n"
        "       1234.567 0010:00000123 in    1234 -> ff          nobody\n"
        "       1234.567 0010:00000123 read  fee00030 -> 00050014 lapic version\n"
        "       1234.567 0010:00000123 write fec00010 <- 00010000 io apic window\n"
        "       1234.567 0010:00000123 write 000a0010 <- 00      vga memory\n"
        "       1234.567 0010:00000123 read  e0000000 -> ffffffff nobody\n"
        "       1234.567 0010:00000123 exc   #DE\n"
        "       1234.567 0010:00000123 exc   #GP error 18\n"
        "       1234.567 0010:00000123 exc   #PF error 6 at 0000beef: write to an absent page by user code\n"
        "       1234.567 0010:00000123 exc   #PF error 1 at c0000000: read from a protected page\n"
        "       1234.567 0010:00000123 exc   #PF error 19 at 00000000: fetch from a page with reserved bits\n"
        "       1234.567 0010:00000123 exc   exception 30\n"
        "       1234.567 0010:00000123 no    SetCR4: #GP error 0\n"
        "       1234.567 0010:00000123 no    a call-out by user code\n"
        "       1234.567 0010:00000123 int   vector 80\n"
        "       1234.567 0010:00000123 irq   vector 30, irq 0\n"
        "       1234.567 0010:00000123 irq   vector ef\n"
        "       1234.567 0010:00000123 cpu   rdmsr 1b -> 00000000fee00900\n"
        "       1234.567 0010:00000123 cpu   rdmsr 1c -> refused\n"
        "       1234.567 0010:00000123 cpu   wrmsr 10 <- 0000000000000001\n"
        "       1234.567 0010:00000123 cpu   wrmsr 1b <- 0000000000000001 refused\n"
        "       1234.567 0010:00000123 cpu   halts\n"
        "       1234.567 0010:00000123 note  here the test ends\n"
    )


def test_what_repeats_is_counted() -> None:
    one = Log("ports")
    for time in range(3):
        one.ns = time * 1000
        one.log.port_read(0x64, 1, 0x1C)
    one.log.port_read(0x64, 1, 0x1D)
    one.log.port_read(0x64, 1, 0x1D)
    one.place = (8, 0)
    one.log.port_read(0x64, 1, 0x1D)
    assert one.text() == (
        "          0.000 0008:c0100abc in    64 -> 1c            i8042 status\n"
        "          2.000               ...   the same 2 times more\n"
        "          2.000 0008:c0100abc in    64 -> 1d            i8042 status\n"
        "          2.000               ...   the same once more\n"
        "          2.000 0008:00000000 in    64 -> 1d            i8042 status\n"
    )


@pytest.mark.parametrize(
    ("categories", "kinds"),
    [
        ("ports", "out in"),
        ("irq", "irq"),
        ("exceptions", "exc int"),
        ("mmio", "read write"),
        ("cpu", "cpu"),
        ("irq, cpu", "irq cpu"),
        ("all", "out in exc int irq read write cpu"),
    ],
)
def test_only_the_chosen_categories_are_written(categories: str, kinds: str) -> None:
    one = Log(categories)
    log = one.log
    log.port_write(0x80, 1, 0)
    log.port_read(0x80, 1, 0)
    log.exception(6)
    log.software_interrupt(3)
    log.interrupt(8)
    log.memory_read(0xFEE00020, 4, 0)
    log.memory_write(0xFEE00020, 4, 0)
    log.cpu("halts")
    assert [line.split()[2] for line in one.text().splitlines()] == kinds.split()


def test_parse() -> None:
    assert EventLog.parse("ports,irq") == {"ports", "irq"}
    assert EventLog.parse("all") == set(CATEGORIES)
    assert EventLog.parse("irq,all") == set(CATEGORIES)


@pytest.mark.parametrize(("text", "word"), [("", ""), ("ports,", ""), ("irq,port", "port"), ("ALL", "ALL")])
def test_unknown_category(text: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        EventLog.parse(text)
    assert str(caught.value) == (
        f"log category {word!r} is not understood: expected one or more of "
        "ports, irq, exceptions, mmio, cpu, refusals, with commas between them, or all"
    )


def test_a_full_disk_is_reported_at_the_end() -> None:
    def write(line: str) -> None:
        tried.append(line)
        raise OSError(errno.ENOSPC, "No space left on device")

    tried: list[str] = []
    log = EventLog(frozenset(["cpu"]), write, lambda: 0, lambda: (8, 0))
    log.cpu("halts")
    log.cpu("wakes")
    error = log.close()
    assert error is not None
    assert error.strerror == "No space left on device"
    assert len(tried) == 1


def test_repr() -> None:
    assert repr(Log("mmio,irq").log) == "<EventLog irq,mmio>"


@pytest.mark.parametrize(
    ("port", "read", "written"),
    [
        (0x20, "pic1 command", "pic1 command"),
        (0xA1, "pic2 mask", "pic2 mask"),
        (0x42, "pit counter2", "pit counter2"),
        (0x64, "i8042 status", "i8042 command"),
        (0x8B, "dma page channel5", "dma page channel5"),
        (0x3F8, "com1 RBR/DLL", "com1 THR/DLL"),
        (0x2FA, "com2 IIR", "com2 FCR"),
        (0x1F7, "ide0 status", "ide0 command"),
        (0x3CC, "vga misc", "vga misc"),
        (0x3DA, "vga status1", "vga feature"),
        (0x4D1, "elcr irq8-15", "elcr irq8-15"),
        (0xCFD, "pci data+1", "pci data+1"),
        (0x300, "", ""),
    ],
)
def test_port_names(port: int, read: str, written: str) -> None:
    assert (port_name(port, False), port_name(port, True)) == (read, written)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0xB8000, "vga memory"),
        (0xC0000, "option ROM"),
        (0xFFFFFFF0, "firmware"),
        (0xFEE000B0, "lapic EOI"),
        (0xFEE00320, "lapic LVT timer"),
        (0xFEE003E0, "lapic divide"),
        (0xFEE00321, "lapic"),
        (0xFEC00000, "io apic select"),
        (0xFEC00020, "io apic"),
        (0xFED00010, "hpet configuration"),
        (0x100000, ""),
    ],
)
def test_memory_names(address: int, name: str) -> None:
    assert memory_name(address, False) == memory_name(address, True) == name


@given(st.integers(0, 0xFFFF), st.integers(0, (1 << 64) - 1), st.integers(0, 255), st.integers(0, 1 << 32))
def test_any_event_is_one_line(port: int, address: int, vector: int, value: int) -> None:
    one = Log()
    one.log.port_read(port, 1, value & 0xFF)
    one.log.memory_write(address, 8, value)
    one.log.exception(vector, value, address & 0xFFFFFFFF)
    one.log.interrupt(vector, None)
    assert len(one.text().splitlines()) == 4
