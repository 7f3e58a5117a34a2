# SPDX-License-Identifier: GPL-2.0-only
"""The MP tables, read the way a kernel does, and entry by entry as firmware on QEMU 7.2 makes them."""

from __future__ import annotations

import re

import pytest

from vmi.errors import UsageError
from vmi.native.boot.mptable import PciInterrupt, build

AT = 0xF5BA0
SIGNATURE, FEATURES = 0x663, 0x0781ABFD

# Read from the memory of a booted machine.
CPU = "0000140363060000fdab81070000000000000000"
PCI_BUS, ISA_BUS_0, ISA_BUS_1 = "0100504349202020", "0100495341202020", "0101495341202020"
IO_APIC = "020011010000c0fe"
POWER_MANAGEMENT = "0300010000040009"
ISA_LINES_0 = [
    f"030000000{rest}"
    for rest in ("0000002", "0010001", "0030003", "0040004", "0060006", "0070007", "0080008")
] + [f"030000000{rest}" for rest in ("00c000c", "00d000d", "00e000e", "00f000f")]
ISA_LINES_1 = [line[:8] + "01" + line[10:] for line in ISA_LINES_0]


def read(writes, memory_start=0xF0000):
    """Find the table from the pointer as a kernel would; the pointer, the header, the entries in hex."""
    memory = bytearray(0x10000)
    for address, data in writes:
        memory[address - memory_start : address - memory_start + len(data)] = data
    (at,) = (at for at in range(0, len(memory), 16) if memory[at : at + 4] == b"_MP_")
    pointer = bytes(memory[at : at + 16])
    assert sum(pointer) % 256 == 0
    table = int.from_bytes(pointer[4:8], "little") - memory_start
    size = int.from_bytes(memory[table + 4 : table + 6], "little")
    assert sum(memory[table : table + size]) % 256 == 0
    header, entries, next_at = bytes(memory[table : table + 44]), [], table + 44
    for _ in range(int.from_bytes(header[34:36], "little")):
        length = 20 if memory[next_at] == 0 else 8
        entries.append(memory[next_at : next_at + length].hex())
        next_at += length
    assert next_at == table + size
    return pointer, header, entries


def test_tables_of_a_board_with_pci():
    pointer, header, entries = read(build(AT, signature=SIGNATURE, features=FEATURES))
    assert pointer.hex() == "5f4d505fb05b0f000104860000000000"
    assert header[:4] == b"PCMP"
    assert (header[6], header[8:16], header[16:28]) == (4, b"VMI     ", b"PC          ")
    assert header[28:34] == bytes(6)  # no table of the maker's
    assert header[36:40] == bytes.fromhex("0000e0fe")
    assert header[40:] == bytes(4)  # nothing behind the entries
    assert entries == [
        CPU, PCI_BUS, ISA_BUS_1, IO_APIC, *ISA_LINES_1, "0403000001000000", "040100000100ff01",
    ]  # fmt: skip


def test_tables_of_several_processors():
    """QEMU's with ``-smp 3,sockets=3``; cores of one socket would share an entry."""
    _, _, entries = read(build(AT, signature=SIGNATURE, features=FEATURES, cpus=3))
    assert entries[:4] == [CPU, "00011401" + CPU[8:], "00021401" + CPU[8:], PCI_BUS]
    assert len(entries) == 3 + 1 + 1 + 1 + len(ISA_LINES_1) + 2


def test_tables_of_a_board_without_pci():
    _, _, entries = read(build(AT, signature=SIGNATURE, features=FEATURES, pci=False))
    assert entries == [CPU, ISA_BUS_0, IO_APIC, *ISA_LINES_0, "0403000000000000", "040100000000ff01"]


def test_pci_interrupts_come_before_those_of_isa():
    route = PciInterrupt(slot=1, pin=0, io_apic_input=9)
    _, _, entries = read(build(AT, signature=SIGNATURE, features=FEATURES, pci_interrupts=[route]))
    assert entries == [
        CPU, PCI_BUS, ISA_BUS_1, IO_APIC, POWER_MANAGEMENT, *ISA_LINES_1, "0403000001000000",
        "040100000100ff01",
    ]  # fmt: skip


def test_processor_and_io_apic_are_the_callers():
    _, _, entries = read(build(AT, signature=0x12345678, features=0x9ABCDEF0, io_apic_id=2))
    assert entries[0] == "0000140378563412f0debc9a0000000000000000"
    assert entries[3] == "020211010000c0fe"
    assert {entry[12:14] for entry in entries if entry.startswith("03")} == {"02"}


@pytest.mark.parametrize("address", [0xEFFF0, 0xF0008, 0xFFFC0, 0x100000])
def test_place_where_no_kernel_looks(address):
    sentence = (
        f"the MP tables of 208 bytes must lie at a multiple of 16 in 0xf0000-0xfffff, "
        f"but {address:#x} was asked for"
    )
    with pytest.raises(UsageError, match=re.escape(sentence)):
        build(address, signature=SIGNATURE, features=FEATURES)


def test_last_place_that_fits():
    writes = build(0xFFF30, signature=SIGNATURE, features=FEATURES)
    assert max(address + len(data) for address, data in writes) == 0x100000


def test_pci_interrupts_need_pci():
    sentence = "a board without PCI has no PCI interrupts, but 1 were given"
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        build(AT, signature=SIGNATURE, features=FEATURES, pci=False, pci_interrupts=[PciInterrupt(1, 0, 9)])
