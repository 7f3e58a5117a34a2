# SPDX-License-Identifier: GPL-2.0-only
"""Guests that mean harm end within their virtual time: no exception, no crash, no endless loop."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.native import hostile
from tests.native.guest import CODE, IDT, MS, STACK, Guest, descriptor, gate, pic, timer
from vmi.native.machine import Outcome
from vmi.native.registers import Segment, TableRegister
from vmi.x86 import Seg

SEEDS = 2000
AT_ONCE = 500


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_wild_guests(first):
    """In a process of their own, since what this looks for may take the process with it."""
    command = [sys.executable, str(Path(hostile.__file__)), str(first), str(AT_ONCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"seed {(error.stdout or b'').decode().splitlines()[-1]} does not come to an end")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"seed {lines[-1] if lines else first}: {done.stderr[-2000:]}"
    ends = Counter(line.split()[1] for line in lines)
    assert ends.total() == AT_ONCE
    assert min(ends["timeout"], ends["triple_fault"], ends["crashed"]) > 5, "the seeds still reach far"


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


@pytest.mark.parametrize("esp", [0, 1, 4, 0xFFFFFFFF, 0xC8000, 0x200000, 0x80000000])
def test_no_stack(esp):
    guest = Guest("int 0x30 | h: pushad | int 0x30", {0x30: "h"})
    guest.cpu.esp = esp
    assert guest.run(1).outcome in (Outcome.TIMEOUT, Outcome.TRIPLE_FAULT)


@pytest.mark.parametrize("base", [0, 0xC0000, 0x1FFFF8, 0x200000, 0xFFFFFFF8])
def test_tables_that_are_nowhere(base):
    for load in ("gdt", "idt"):
        guest = Guest("mov ax,0x10 | mov ds,ax | int 0x30 | h: hlt", {0x30: "h", 13: "h"})
        setattr(guest.cpu, load, TableRegister(base, 0xFFFF))
        assert guest.run(1).outcome in (Outcome.TRIPLE_FAULT, Outcome.HALTED)


@pytest.mark.parametrize("directory", [0, 0xC0000, 0x1FF000, 0x200000, 0xFFFFF000])
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
