# SPDX-License-Identifier: GPL-2.0-only
"""Writes to page tables: each is seen, with the instruction that made it, and nothing else changes."""

from __future__ import annotations

import pytest

from tests.native.bare import Recorder, new_cpu, put
from tests.native.guest import CODE
from vmi import samples
from vmi.memory import PhysicalMemory
from vmi.native.machine import Machine
from vmi.native.pagetable_watch import Level, PageTableWatch, Write, tables
from vmi.x86 import Cr0, Cr4, Paging

DIRECTORY, TABLE, SECOND, OTHER, POINTERS = 0x100000, 0x101000, 0x102000, 0x103000, 0x104020
FLAGS = 3  # present, writable


def mapped_cpu():
    """Two-level tables that map the first 2 MiB to themselves; nothing is watched yet."""
    cpu = new_cpu(Recorder())
    words = b"".join((page << 12 | FLAGS).to_bytes(4, "little") for page in range(512))
    cpu.write_memory(TABLE, words)
    for directory in (DIRECTORY, OTHER):
        cpu.put_u32(directory, TABLE | FLAGS)
    cpu.set_cr(3, DIRECTORY)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    return cpu


def watched(cpu, source):
    """What a piece of code wrote: (label or offset, level, bytes of an entry, bytes stored) and how often."""
    watch, act = PageTableWatch(cpu), cpu.bus.act
    cpu.bus.act = lambda: (act(), cpu.stop_soon())
    names = {address: name for name, address in put(cpu, source).items()}
    while not cpu.bus.log:
        cpu.run(1000)
    return {
        (names.get(write.eip, hex(write.eip)), write.level, write.entry, write.size): count
        for write, count in watch.writes.items()
    }, watch


END = "out 0x80, al"


def test_each_store_is_seen_with_its_instruction_level_and_size():
    found, watch = watched(
        mapped_cpu(),
        f"""
        mov ecx, 3
        again:
        mov dword ptr [{TABLE + 0x600}], 7
        loop again
        word:
        or word ptr [{TABLE + 0x604}], 1
        byte:
        mov byte ptr [{TABLE + 0x608}], 1
        swap:
        lock xchg dword ptr [{TABLE + 0x60C}], eax
        top:
        mov dword ptr [{DIRECTORY + 0xFFC}], 0
        mov dword ptr [{SECOND}], 1
        {END}
        """,
    )
    assert found == {
        ("again", Level.TABLE, 4, 4): 3,
        ("word", Level.TABLE, 4, 2): 1,
        ("byte", Level.TABLE, 4, 1): 1,
        ("swap", Level.TABLE, 4, 4): 1,
        ("top", Level.DIRECTORY, 4, 4): 1,
    }
    assert watch.code[CODE + 5][:10] == bytes.fromhex("c70500161000 07000000")
    assert all(len(code) == 15 for code in watch.code.values())


def test_a_table_counts_from_the_store_that_links_it_in_to_the_one_that_takes_it_out():
    found, _ = watched(
        mapped_cpu(),
        f"""
        mov dword ptr [{SECOND}], 1
        link:
        mov dword ptr [{DIRECTORY + 4}], {SECOND | FLAGS}
        inside:
        mov dword ptr [{SECOND}], 2
        unlink:
        mov dword ptr [{DIRECTORY + 4}], 0
        mov dword ptr [{SECOND}], 3
        {END}
        """,
    )
    assert set(found) == {
        ("link", Level.DIRECTORY, 4, 4),
        ("inside", Level.TABLE, 4, 4),
        ("unlink", Level.DIRECTORY, 4, 4),
    }


def test_another_address_space_has_its_own_tables():
    found, _ = watched(
        mapped_cpu(),
        f"""
        mov dword ptr [{OTHER + 0xFFC}], 0
        mov eax, {OTHER}
        mov cr3, eax
        here:
        mov dword ptr [{OTHER + 0xFFC}], 0
        mov dword ptr [{DIRECTORY + 0xFFC}], 0
        {END}
        """,
    )
    assert found == {("here", Level.DIRECTORY, 4, 4): 1}


def test_nothing_counts_without_paging():
    cpu = mapped_cpu()
    found, _ = watched(
        cpu,
        f"""
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov dword ptr [{TABLE + 0x600}], 7
        or eax, 0x80000000
        mov cr0, eax
        on:
        mov dword ptr [{TABLE + 0x600}], 7
        {END}
        """,
    )
    assert found == {("on", Level.TABLE, 4, 4): 1}


def test_pae_has_a_level_more_and_entries_of_8_bytes():
    cpu = new_cpu(Recorder())
    cpu.put_u32(POINTERS, DIRECTORY | 1)
    cpu.put_u32(DIRECTORY, 0x83)  # 2 MiB
    cpu.set_cr(4, Cr4.PAE)
    cpu.set_cr(3, POINTERS)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    found, _ = watched(
        cpu,
        f"""
        third:
        mov dword ptr [{POINTERS + 24}], 0
        mov dword ptr [{POINTERS + 32}], 0
        high:
        mov dword ptr [{DIRECTORY + 12}], 0
        low:
        mov dword ptr [{DIRECTORY + 8}], {TABLE | FLAGS}
        both:
        cmpxchg8b [{TABLE + 8}]
        {END}
        """,
    )
    assert {name for name, *_ in found} == {"third", "high", "low", "both"}
    assert found[("third", Level.POINTERS, 8, 4)] == 1
    assert found[("low", Level.DIRECTORY, 8, 4)] == 1
    assert found[("both", Level.TABLE, 8, 8)] == 1


def test_bits_that_the_processor_sets_and_stores_of_the_host_count_for_nobody():
    cpu = mapped_cpu()
    cpu.bus.act = lambda: cpu.put_u32(TABLE + 0x7FC, 0)
    found, _ = watched(cpu, f"mov dword ptr [0x1A0000], 5 | {END}")
    assert found == {}
    assert cpu.memory.u32(TABLE + 4 * 0x1A0) & 0x60 == 0x60


def test_nothing_is_seen_after_the_watch_is_over():
    cpu = mapped_cpu()
    watch = PageTableWatch(cpu)
    watch.begin_run()
    watch.stop()
    put(cpu, f"mov dword ptr [{TABLE + 0x600}], 7 | {END}")
    cpu.run(10)
    assert not watch.writes
    assert repr(watch) == "<PageTableWatch 0 writes by 0 instructions>"


@pytest.mark.parametrize("cr3", [0x1FF000, 0xFFFFF000])
def test_tables_where_no_ram_is_are_left_out(cr3):
    memory = PhysicalMemory(1 << 20)
    memory.write(0, b"\xff" * 4096)
    assert tables(memory, Paging(Cr0.PG, cr3, 0)) == {}
    assert tables(memory, Paging(Cr0.PG, 0, 0)) == {0: Level.DIRECTORY}


def test_a_directory_that_is_a_table_too_counts_as_directory():
    memory = PhysicalMemory(1 << 20)
    memory.put_u32(0x5FFC, 0x5001)
    memory.put_u32(0x5000, 0x6001)
    memory.put_u32(0x5004, 0x7081)  # a large page
    assert tables(memory, Paging(Cr0.PG, 0x5000, Cr4.PSE)) == {5: Level.DIRECTORY, 6: Level.TABLE}
    assert tables(memory, Paging(Cr0.PG, 0x5000, 0))[7] is Level.TABLE


def test_a_watched_run_is_the_same_run():
    sample = samples.get("paging")
    runs = []
    for watch in (False, True):
        machine = Machine(ram=16 << 20)
        machine.load(sample.path.read_bytes())
        seen = PageTableWatch(machine.cpu) if watch else None
        end = machine.run(timeout_ns=10**10)
        digest = machine.memory.sha256()
        runs.append((end, machine.instructions, machine.clock.now(), machine.console.data, digest))
    assert runs[0] == runs[1]
    assert seen is not None
    assert seen.writes.total() > 200
    assert all(isinstance(write, Write) and write.entry == 4 for write in seen.writes)
