# SPDX-License-Identifier: GPL-2.0-only
"""Guest-linear memory as the CPU sees it: translation, faults, all-or-nothing stores, descriptors."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from tests.native.guest import CODE3, DATA0, FREE, GDT, PAGES, Guest, descriptor
from vmi.native import walks
from vmi.native.registers import Segment, TableRegister
from vmi.x86 import Cr0, Descriptor, GuestFault

PAGE = 0x30000
TABLE = 0x21000


@pytest.fixture
def guest():
    return Guest("hlt")


@pytest.fixture
def paged(guest):
    guest.page(PAGE)
    return guest


@contextmanager
def faults(vector, error, address=0):
    """What is inside faults for the guest, just so."""
    with pytest.raises(GuestFault) as raised:
        yield
    fault = raised.value
    assert (fault.vector, fault.error, fault.address) == (vector, error, address)


def entry(guest, at):
    return guest.u32(TABLE + 4 * (at >> 12))


def test_without_paging_linear_is_physical(guest):
    linear = guest.machine.linear
    assert linear.physical(0x12345678) == 0x12345678
    linear.write(0x4000, b"abcdef")
    assert linear.read(0x4001, 3) == b"bcd"
    assert (linear.u16(0x4000), linear.u32(0x4000)) == (0x6261, 0x64636261)
    linear.put_u32(0x4000, -1)
    assert linear.u32(0x4000) == 0xFFFFFFFF


def test_addresses_wrap_at_4_gib(guest):
    guest.memory.write(0, b"low")
    assert guest.machine.linear.read(0xFFFFFFFE, 5) == b"\xff\xfflow"
    assert guest.machine.linear.read(0x1_0000_0000, 3) == b"low"


def test_accessed_and_dirty(paged):
    linear = paged.machine.linear
    linear.read(0x5000, 1)
    assert entry(paged, 0x5000) & 0x60 == 0x20
    linear.write(0x6000, b"x")
    assert entry(paged, 0x6000) & 0x60 == 0x60
    assert entry(paged, 0x7000) & 0x60 == 0


@pytest.mark.parametrize("large", [False, True])
def test_a_walk_is_remembered_as_long_as_its_entries_are_what_they_were(paged, large):
    linear, cpu = paged.machine.linear, paged.cpu
    if large:
        cpu.set_cr(4, 0x10)
        paged.memory.put_u32(PAGES, 0x83)
    at = PAGES if large else TABLE + 4 * 5
    assert [linear.physical(0x5010) for _ in range(2)] == [0x5010] * 2
    paged.memory.put_u32(at, paged.u32(at) & ~0x20)
    assert linear.physical(0x5010) == 0x5010 and paged.u32(at) & 0x60 == 0x20
    assert linear.physical(0x5010, write=True) == 0x5010 and paged.u32(at) & 0x60 == 0x60
    paged.memory.put_u32(at, paged.u32(at) & ~2)
    with faults(14, 3, 0x5010):
        linear.physical(0x5010, write=True)
    paged.memory.put_u32(TABLE + 4 * 5, 0x9000 | 1)
    paged.memory.put_u32(PAGES, TABLE | 1)
    assert linear.physical(0x5010) == 0x9010
    with faults(14, 5, 0x5010):
        linear.physical(0x5010, user=True)
    paged.memory.put_u32(PAGES, 0)
    with faults(14, 0, 0x5010):
        linear.physical(0x5010)


def test_remembered_walks_belong_to_the_registers_of_paging(paged):
    linear, cpu = paged.machine.linear, paged.cpu
    paged.memory.put_u32(TABLE + 4 * 5, 0x9001)
    with faults(14, 3, 0x5000):
        linear.physical(0x5000, write=True)
    cpu.set_cr(0, cpu.cr(0) & ~Cr0.WP)
    assert linear.physical(0x5000, write=True) == 0x9000
    cpu.set_cr(0, cpu.cr(0) | Cr0.WP)
    with faults(14, 3, 0x5000):
        linear.physical(0x5000, write=True)
    paged.memory.put_u32(0x40000, 0x41001)
    paged.memory.put_u32(0x41000 + 4 * 5, 0xA001)
    cpu.set_cr(3, 0x40000)
    assert linear.physical(0x5000) == 0xA000
    cpu.set_cr(3, PAGES)
    assert linear.physical(0x5000) == 0x9000
    cpu.set_cr(0, cpu.cr(0) & ~Cr0.PG)
    assert linear.physical(0x5000) == 0x5000


def test_remembered_walks_are_bounded(paged, monkeypatch):
    monkeypatch.setattr(walks, "_MOST", 4)
    linear = paged.machine.linear
    for page in range(16):
        assert linear.physical(page << 12) == page << 12
    assert 0 < len(linear._walks._found) <= 4


def test_store_over_two_pages(paged):
    paged.memory.put_u32(TABLE + 4 * 6, 0x9000 | 7)
    paged.machine.linear.write(0x5FFE, b"abcd")
    assert paged.memory.read(0x5FFE, 2) == b"ab"
    assert paged.memory.read(0x9000, 2) == b"cd"
    assert paged.machine.linear.read(0x5FFE, 4) == b"abcd"


@pytest.mark.parametrize(("write", "user", "error"), [(0, 0, 0), (1, 0, 2), (0, 1, 4), (1, 1, 6)])
def test_page_fault(paged, write, user, error):
    with faults(14, error, PAGE + 5):
        paged.machine.linear.physical(PAGE + 5, write=bool(write), user=bool(user))


def test_store_is_all_or_nothing(paged):
    paged.memory.write(PAGE - 16, b"\xee" * 32)
    linear = paged.machine.linear
    with faults(14, 2, PAGE):
        linear.write(PAGE - 4, bytes(8))
    with faults(14, 2, PAGE):
        linear.write_all([(PAGE - 16, bytes(4)), (PAGE - 8, bytes(4)), (PAGE, bytes(4))])
    assert paged.memory.read(PAGE - 16, 32) == b"\xee" * 32
    linear.write_all([(PAGE - 16, b"1234"), (PAGE - 8, b"5678")])
    assert paged.memory.read(PAGE - 16, 12) == b"1234\xee\xee\xee\xee5678"


def test_protection(guest):
    guest.page(user=False)
    linear = guest.machine.linear
    guest.memory.put_u32(TABLE + 4 * 5, 0x5001)
    with faults(14, 3, 0x5000):
        linear.write(0x5000, b"x")
    with faults(14, 5, 0x6000):
        linear.read(0x6000, 1, user=True)
    guest.cpu.set_cr(0, guest.cpu.cr(0) & ~Cr0.WP)
    linear.write(0x5000, b"x")
    assert guest.memory.read(0x5000, 1) == b"x"


def test_store_into_rom_or_nowhere_is_lost(guest):
    linear = guest.machine.linear
    before = guest.memory.read(0xC0000, 8)
    linear.write(0xC0000, b"12345678")
    linear.put_u32(0xF0000000, 5)
    assert guest.memory.read(0xC0000, 8) == before
    assert linear.u32(0xF0000000) == 0xFFFFFFFF
    assert guest.machine.exits == {"ROM write": 1, "device memory write": 1}


def test_page_tables_in_rom_get_no_marks(guest):
    guest.page()
    for at in range(0xC0000, 0xC3000, 0x1000):
        guest.cpu.write_memory(at, guest.memory.read(at - 0xC0000 + 0x20000, 0x1000))
    guest.cpu.write_memory(0xC0000, (0xC1007).to_bytes(4, "little"))
    guest.cpu.set_cr(3, 0xC0000)
    guest.machine.linear.write(0x5000, b"x")
    assert guest.u32(0xC1000 + 4 * 5) == 0x5007


def test_tables_outside_memory_read_as_ones(guest):
    guest.page()
    guest.memory.put_u32(0x20004, 0xF0000007)
    assert guest.machine.linear.physical(0x400123) == 0xFFFFF123


def test_store_drops_translated_code(guest):
    guest.cpu.write_memory(0x5000, b"\xb8\x01\0\0\0\xf4")
    guest.cpu.eip = 0x5000
    guest.run()
    guest.machine.linear.write(0x5001, b"\x02")
    guest.cpu.eip, guest.machine.halted = 0x5000, False
    guest.run()
    assert guest.cpu.eax == 2


# -- descriptors --------------------------------------------------------------------------------


def test_descriptor(guest):
    found = guest.machine.linear.descriptor(CODE3)
    assert found == Descriptor(0xFFFF, 0xCFFA00)
    assert guest.machine.linear.descriptor_address(CODE3) == GDT + 0x18


def test_descriptor_in_the_local_table(guest):
    linear = guest.machine.linear
    with faults(13, 4):
        linear.descriptor(4)
    guest.cpu.ldt = Segment(FREE, 0x6000, 0xF, 0x8200)
    guest.memory.write(0x6008, descriptor(0x1000, 5, 0x92, 0))
    assert linear.descriptor(0xC).base == 0x1000
    with faults(10, 0x14):
        linear.descriptor(0x14, 10)


@pytest.mark.parametrize(("limit", "good"), [(DATA0 + 7, True), (DATA0 + 6, False), (0, False)])
def test_descriptor_must_lie_in_its_table_whole(guest, limit, good):
    guest.cpu.gdt = TableRegister(GDT, limit)
    if good:
        assert guest.machine.linear.descriptor(DATA0).writable_data
        return
    with faults(13, DATA0):
        guest.machine.linear.descriptor(DATA0 | 3)


def test_descriptor_on_an_absent_page(paged):
    paged.cpu.gdt = TableRegister(PAGE, 0xFF)
    with faults(14, 0, PAGE + DATA0):
        paged.machine.linear.descriptor(DATA0)
