# SPDX-License-Identifier: GPL-2.0-only
"""The CPU's memory: code that changes, ROM, addresses where nothing is, cached translations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.native.bare import put
from tests.native.guest import CODE
from vmi.native.wiring import Stop
from vmi.x86 import Cr0, Cr4, Seg

# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [CODE, 0xC8000, 0xFFF00, 0x100000, 0x1FF000])
def test_code_written_by_the_host_is_seen(cpu, at):
    for value in (1, 2, 3):
        put(cpu, f"mov eax,{value}\nhlt", at)
        assert cpu.run(10) is Stop.HALTED
        assert cpu.eax == value


def test_code_written_by_the_host_in_the_middle_of_a_run(cpu, bus):
    labels = put(cpu, "call there\nint 0x30\ncall there\nhlt\nthere: mov eax,1\nret")
    bus.act = lambda: cpu.write_memory(labels["there"] + 1, b"\x09")
    assert cpu.run(100) is Stop.HALTED
    assert cpu.eax == 9


def test_code_written_by_code_is_seen(cpu):
    put(cpu, "mov byte ptr [{next}+1],7\nnext: mov eax,1\nhlt".replace("{next}+1", str(CODE + 8)))
    assert cpu.run(10) is Stop.HALTED
    assert cpu.eax == 7


@pytest.mark.parametrize("paging", [False, True])
def test_a_segment_whose_addresses_pass_4_gib_begins_again_at_0(cpu, paging):
    """As kernels do that run linked addresses through a segment's base before they have page tables."""
    base = 0x40000000
    put(cpu, "mov eax,[0xc0000500] | mov dword ptr [0xc0000600],7 | hlt", CODE)
    cpu.memory.put_u32(0x500, 0x1234)
    if paging:
        cpu.memory.put_u32(0x5000, 0x83)  # 4 MiB at 0
        cpu.set_cr(4, Cr4.PSE)
        cpu.set_cr(3, 0x5000)
        cpu.set_cr(0, cpu.cr(0) | Cr0.PG)
    for seg in (Seg.CS, Seg.DS):
        old = cpu.segment(seg)
        cpu.set_segment(seg, replace(old, base=base))
    cpu.eip = CODE + 0xC0000000
    assert cpu.run(10) is Stop.HALTED
    assert (cpu.eax, cpu.memory.u32(0x600)) == (0x1234, 7)


def test_writes_to_rom_are_dropped_and_reported(cpu, bus):
    cpu.write_memory(0xC0000, b"ROM!")
    put(
        cpu,
        "mov dword ptr [0xc0000],0x1234 | mov eax,[0xc0000]"
        " | mov byte ptr [0xfffff],1 | mov byte ptr [0xbffff],1 | hlt",
    )
    assert cpu.run(10) is Stop.HALTED
    assert cpu.eax.to_bytes(4, "little") == b"ROM!"
    assert bus.log == [("write", 0xC0000, 4, 0x1234), ("write", 0xFFFFF, 1, 1)]
    assert cpu.memory.read(0xBFFFF, 1) == b"\1"


def test_store_drops_what_hits_rom_or_nothing(cpu, bus):
    cpu.store(0xBFFFE, b"abcd")
    assert cpu.memory.read(0xBFFFE, 4) == b"ab\0\0"
    cpu.store(0xFFFFE, b"abcd")
    assert cpu.memory.read(0xFFFFE, 4) == b"\0\0cd"
    cpu.store(0x1FFFFE, b"abcd")
    assert cpu.memory.read(0x1FFFFE, 4) == b"ab\xff\xff"
    cpu.put_u32(0xC8000, 1)
    cpu.put_u32(0xFFFFFFF0, 1)
    assert cpu.memory.u32(0xC8000) == 0
    assert [entry[:3] for entry in bus.log] == [
        ("write", at, 4) for at in (0xBFFFE, 0xFFFFE, 0x1FFFFE, 0xC8000, 0xFFFFFFF0)
    ]
    cpu.put_u32(0x4000, 0x12345678)
    assert cpu.memory.u32(0x4000) == 0x12345678
    assert len(bus.log) == 5


def test_unmapped_loads_and_stores_are_reported(cpu, bus):
    put(cpu, "mov eax,[0x200000]\nmov bx,[0xfffffffe]\nmov [0x80000000],cl\nhlt")
    assert cpu.run(10) is Stop.HALTED
    assert (cpu.eax, cpu.ebx) == (0xFFFFFFFF, 0xFFFF)
    assert bus.log == [("read", 0x200000, 4), ("read", 0xFFFFFFFE, 2), ("write", 0x80000000, 1, 0)]


@pytest.mark.parametrize("wide", [0x20, 0x10])
def test_physical_addresses_above_4_gib_are_nowhere(cpu, bus, wide):
    """PAE tables and 4 MiB pages can name them."""
    if wide == 0x20:
        for at, value in (
            (0x20000, 0x21001),
            (0x20008, 0x22001),
            (0x21000, 0x83),
            (0x22000, 0x83),
            (0x22004, 1),
        ):
            cpu.memory.put_u32(at, value)
    else:
        cpu.memory.put_u32(0x20000, 0x83)
        cpu.memory.put_u32(0x20400, 0x2083)
    cpu.set_cr(4, wide)
    cpu.set_cr(3, 0x20000)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    put(cpu, "mov eax,[0x40000000]\nmov [0x40000004],eax\nhlt")
    assert cpu.run(10) is Stop.HALTED
    assert [entry[1] for entry in bus.log] == [0x100000000, 0x100000004]


@pytest.mark.parametrize("target", [0x200000, 0x300000, 0x80000000, 0xFFFFFFF0])
def test_jump_to_nowhere(cpu, target):
    put(cpu, f"mov eax,{target}\njmp eax")
    assert cpu.run(100) is Stop.UNMAPPED
    assert (cpu.eip, cpu.instructions) == (target, 2)


def test_instruction_that_runs_out_of_memory(cpu):
    cpu.write_memory(0x1FFFFD, b"\x90\x90\xb8")
    cpu.eip = 0x1FFFFD
    assert cpu.run(100) is Stop.UNMAPPED


def test_flush_of_cached_translations(cpu):
    cpu.memory.put_u32(0x20000, 0x21007)
    for index in range(1024):
        cpu.memory.put_u32(0x21000 + 4 * index, index << 12 | 7)
    cpu.memory.put_u32(0x5000, 5)
    cpu.memory.put_u32(0x6000, 6)
    cpu.set_cr(3, 0x20000)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    put(cpu, "l: mov eax,[0x5000]\nout 0x80,al\njmp l")
    cpu.run(1)
    assert cpu.eax == 5
    cpu.memory.put_u32(0x21000 + 4 * 5, 0x6007)
    put(cpu, "mov eax,[0x5000]\nhlt", 0x11000)
    cpu.run(1)
    assert cpu.eax == 5, "a stale translation, as on the real thing"
    cpu.flush_page(0x5000)
    cpu.eip = 0x11000
    cpu.run(1)
    assert cpu.eax == 6
    cpu.memory.put_u32(0x21000 + 4 * 5, 0x5007)
    cpu.flush_tlb()
    cpu.eip = 0x11000
    cpu.run(1)
    assert cpu.eax == 5
