# SPDX-License-Identifier: GPL-2.0-only
"""Guests that mean harm end within their virtual time: no exception, no crash, no endless loop."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from tests import seeds
from tests.native import hostile
from tests.native.guest import CODE, IDT, MS, STACK, Guest, descriptor, gate, pic, timer
from vmi.native.machine import End, Outcome
from vmi.native.registers import Segment, TableRegister
from vmi.x86 import Seg

SEEDS = 4000
AT_ONCE = 500
APIC, IO_APIC = 0xFEE00000, 0xFEC00000


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_wild_guests(first):
    ends = seeds.outcomes("tests.native.hostile", first, AT_ONCE, 280)
    few = min(ends[outcome] for outcome in (Outcome.TIMEOUT, Outcome.TRIPLE_FAULT, Outcome.CRASHED))
    assert few > 5, f"the seeds don't reach far: {ends}"


def test_the_seeds_reach_the_devices():
    reached = Counter()
    for seed in range(150):
        guest = hostile.make(seed)
        guest.machine.run(hostile.LIMIT_NS)
        reached.update(kind for kind, count in guest.machine.exits.items() if count > 20)
    for kind in (
        "port read",
        "port write",
        "device memory read",
        "device memory write",
        "interrupt",
        "ROM write",
    ):
        assert reached[kind] >= 2, reached


def test_memory_that_guests_leave_behind_ends_the_program(monkeypatch, capsys):
    grown = iter(range(100 << 20, 1 << 30, 5 << 20))
    monkeypatch.setattr(hostile, "resident", lambda: next(grown))
    monkeypatch.setattr(sys, "argv", ["hostile", "0", "1000"])
    with pytest.raises(SystemExit, match=r"^memory grew from 100 MiB to 110 MiB over 150 guests$"):
        hostile.main(lambda seed: End(Outcome.HALTED, "a test"))
    assert capsys.readouterr().out.splitlines() == [f"{seed} halted" for seed in range(150)]


def test_a_seed_gives_the_same_guest_every_time():
    first, second = hostile.make(7), hostile.make(7)
    assert first.memory.sha256() == second.memory.sha256()
    assert first.machine.run(hostile.LIMIT_NS) == second.machine.run(hostile.LIMIT_NS)
    assert first.memory.sha256() == second.memory.sha256()
    assert first.machine.instructions == second.machine.instructions


def test_inner_call_without_a_task_register():
    """A call gate to ring 0 before any LTR: the library would end the process."""
    guest = Guest("user: call 0x58:0 | h: hlt", {10: "h"})
    guest.describe(0x58, gate(8, guest.labels["h"], 0xEC))
    guest.cpu.tr = Segment(0, 0, 0, 0)
    guest.user("user")
    assert guest.run().outcome is Outcome.TRIPLE_FAULT


def test_breakpoint_registers_everywhere():
    load = " | ".join(f"mov eax,{value} | mov {register},eax" for register, value in (
        ("dr0", "{l}"), ("dr1", "{l}"), ("dr2", "{h}"), ("dr7", 0x11110FFF), ("dr7", 0x3FF),
    ))  # fmt: skip
    guest = Guest(f"{load} | l: inc esi | jmp l | h: iretd", {1: "h"})
    guest.cpu.set_segment(Seg.CS, Segment(8, 0x8000, 0xFFFFFFFF, 0xCF9B00))
    guest.cpu.eip -= 0x8000
    assert guest.run(1).outcome in (Outcome.TIMEOUT, Outcome.TRIPLE_FAULT)


@pytest.mark.parametrize("esp", [0, 1, 4, 0xFFFFFFFF, 0xC8000, 0x200000, 0x80000000, APIC + 0x100, 0xB8000])
def test_no_stack(esp):
    guest = Guest("int 0x30 | h: pushad | int 0x30", {0x30: "h"})
    guest.cpu.esp = esp
    assert guest.run(1).outcome in (Outcome.TIMEOUT, Outcome.TRIPLE_FAULT)


@pytest.mark.parametrize("base", [0, 0xC0000, 0x1FFFF8, 0x200000, APIC, IO_APIC, 0xFFFFFFF8])
def test_tables_that_are_nowhere(base):
    for load in ("gdt", "idt"):
        guest = Guest("mov ax,0x10 | mov ds,ax | int 0x30 | h: hlt", {0x30: "h", 13: "h"})
        setattr(guest.cpu, load, TableRegister(base, 0xFFFF))
        assert guest.run(1).outcome in (Outcome.TRIPLE_FAULT, Outcome.HALTED)


@pytest.mark.parametrize("directory", [0, 0xC0000, 0x1FF000, 0x200000, APIC, IO_APIC, 0xFFFFF000])
@pytest.mark.parametrize("mode", [0, 0x10, 0x20])
def test_page_tables_that_are_nowhere(directory, mode):
    values = (("cr4", mode), ("cr3", directory), ("cr0", 0x80000011))
    load = " | ".join(f"mov eax,{value} | mov {register},eax" for register, value in values)
    guest = Guest(f"{load} | nop | hlt")
    assert guest.run(1).outcome in (Outcome.TRIPLE_FAULT, Outcome.CRASHED, Outcome.HALTED)


def test_page_tables_that_map_themselves():
    guest = Guest(f"l: add dword ptr [{0x20000}],0x1000 | mov eax,cr3 | mov cr3,eax | jmp l")
    guest.page()
    assert guest.run(1).outcome in (Outcome.TRIPLE_FAULT, Outcome.CRASHED, Outcome.TIMEOUT)


def test_task_segment_in_rom_and_tasks_that_enter_themselves():
    guest = Guest("l: int 0x30 | jmp l", {})
    guest.memory.write(IDT + 8 * 0x30, gate(0x58, 0, 0x85))
    for at in (0xD0000, 0x1FFFF0, 0x300000):
        guest.describe(0x58, descriptor(at, 0x67, 0x89, 0))
        guest.cpu.eip, guest.cpu.esp = CODE, STACK
        assert guest.run(1).outcome in (Outcome.TRIPLE_FAULT, Outcome.TIMEOUT, Outcome.CRASHED)


def test_interrupt_storm():
    """Handlers that come back at once, a timer at its fastest: time still passes."""
    guest = Guest(f"{pic(3)} | {timer(2, 0x34)} | sti | l: jmp l | h: iretd", {0x20: "h"})
    assert guest.run(1).outcome is Outcome.TIMEOUT
    assert guest.machine.clock.now() < MS + 10_000


@pytest.mark.parametrize("base", [0xC0000, 0x1FFFF0, 0x200000, APIC, 0xFFFFFFF0])
def test_interrupt_on_ring_3_with_a_task_segment_that_is_nowhere(base):
    guest = Guest("user: int 0x30 | h: hlt", {0x30: "h"})
    guest.memory.write(IDT + 8 * 0x30 + 5, b"\xee")
    guest.user("user")
    guest.cpu.tr = Segment(0x28, base, 0x67, 0x8900)
    assert guest.run(1).outcome is Outcome.TRIPLE_FAULT


@pytest.mark.parametrize("at", [APIC, IO_APIC, 0x200000, 0xE0000000, 0xFFFFF000])
def test_code_that_is_nowhere(at):
    guest = Guest(f"mov eax,{at} | jmp eax")
    end = guest.run(1)
    assert end.outcome is Outcome.CRASHED
    assert end.reason == f"the guest jumped to {at:#x}, where no memory is"


def store(address, value):
    """Code that stores a dword."""
    return f"mov dword ptr [{address}],{value}"


ON, END_OF_INTERRUPT = store(APIC + 0xF0, 0x1FF), store(APIC + 0xB0, 0)
TICKS = " | ".join((store(APIC + 0x3E0, 0xB), store(APIC + 0x320, 0x20031), store(APIC + 0x380, 1)))
CALL, NMI, INIT, SMI = (store(APIC + 0x300, command) for command in (0x40031, 0x40400, 0x40500, 0x40200))
NO_PIC = "mov al,0xff | out 0x21,al"
LEVEL = " | ".join((NO_PIC, store(IO_APIC, 0x14), store(IO_APIC + 16, 0x8031), timer(2, 0x34)))
RETURN = f"jmp l | h: {END_OF_INTERRUPT} | iretd"
STORMS = {  # and how many interrupts there are in a millisecond at least
    "timer": (f"{TICKS} | l: {RETURN}", 200),
    "timer while halted": (f"{TICKS} | l: hlt | {RETURN}", 200),
    "to itself": (f"l: {CALL} | {RETURN}", 200),
    "to itself without end": (f"l: {CALL} | jmp l | h: sti | {END_OF_INTERRUPT} | jmp l", 200),
    "level triggered": (f"{LEVEL} | l: {RETURN}", 200),
    "not maskable": (f"l: {NMI} | jmp l | h: {NMI} | iretd", 0),
    "INIT and SMI": (f"l: {INIT} | {SMI} | {RETURN}", 0),
}


@pytest.mark.parametrize("storm", STORMS)
def test_storm_of_the_local_apic(storm):
    """Time passes whatever the interrupts do, and no more than was given."""
    source, least = STORMS[storm]
    guest = Guest(f"{ON} | sti | {source}", {0x31: "h", 2: "h"})
    assert guest.run(1).outcome in (Outcome.TIMEOUT, Outcome.TRIPLE_FAULT)
    assert guest.machine.clock.now() < MS + 10_000
    assert guest.machine.exits["interrupt"] >= least


def test_code_that_changes_itself_without_end_takes_no_more_memory():
    """Each change is translated anew: 150 MB of translations, if they were all kept."""
    guest = Guest("l: inc ecx | mov [{p+1}],ecx | p: mov eax,0x12345678 | add ebx,eax | jmp l")
    before = hostile.resident()
    assert guest.run(6).outcome is Outcome.TIMEOUT
    assert hostile.resident() - before < 90 << 20
    last = guest.cpu.ecx
    assert guest.cpu.ebx in {n * (n + 1) // 2 & 0xFFFFFFFF for n in (last, last - 1)}
