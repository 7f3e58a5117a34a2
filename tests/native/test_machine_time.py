# SPDX-License-Identifier: GPL-2.0-only
"""Virtual time, timers and interrupts of the machine as a whole."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.native.guest import (
    CODE,
    CODE0,
    DONE,
    EOI,
    IDT,
    MS,
    STACK,
    Guest,
    gate,
    pic,
    timed,
    timer,
)  # fmt: skip
from vmi.native.cpuid import MODELS
from vmi.native.machine import EVENT_NS, NS_PER_INSTRUCTION, End, Outcome
from vmi.native.registers import Segment
from vmi.native.traffic import PORT_NS
from vmi.x86 import Seg

# -- time ---------------------------------------------------------------------------------------


def test_an_instruction_is_ten_nanoseconds():
    guest = Guest(f"mov ecx,1000 | l: loop l | rdtsc | mov esi,eax | {DONE}")
    guest.exit_value()
    machine = guest.machine
    assert machine.instructions == 1 + 1000 + 4
    assert machine.clock.now() == machine.instructions * NS_PER_INSTRUCTION + PORT_NS
    assert guest.cpu.esi == 1 + 1000 + 1


@pytest.mark.parametrize("ns", [10, 15, 1000, 123_456])
def test_timeout_is_exact(ns):
    guest = Guest("l: inc eax | jmp l")
    end = guest.machine.run(ns)
    assert end == End(Outcome.TIMEOUT, f"the guest was still running after {ns / 1e9:g} s")
    assert guest.machine.instructions == -(-ns // NS_PER_INSTRUCTION)


def test_timeout_counts_from_the_start_of_each_run():
    guest = Guest("l: jmp l")
    for runs in range(1, 4):
        assert guest.machine.run(MS).outcome is Outcome.TIMEOUT
        assert guest.machine.clock.now() == runs * MS


def test_timeout_of_nothing():
    guest = Guest("nop")
    assert guest.machine.run(0).outcome is Outcome.TIMEOUT
    assert guest.machine.instructions == 0


def test_halt_lets_time_pass_to_the_next_event_without_instructions():
    guest = timed(f"{timer(11932)} | sti | hlt | {DONE} | h: {EOI} | iretd")
    guest.exit_value()
    assert guest.machine.instructions < 50
    assert 10 * MS < guest.machine.clock.now() < 10.1 * MS
    assert guest.machine.exits["halt"] == 1
    assert guest.machine.exits["interrupt"] == 1


def test_halt_with_interrupts_off_is_for_ever():
    guest = timed(f"{timer(100)} | hlt | end: nop")
    assert guest.run() == End(Outcome.HALTED, f"the guest halted for ever at {guest.labels['end']:#x}")


def test_halt_with_nothing_that_could_come_is_for_ever():
    guest = Guest("sti | hlt | end: nop")
    assert guest.machine.run() == End(
        Outcome.HALTED, f"the guest halted for ever at {guest.labels['end']:#x}"
    )


def test_halt_with_a_limit_and_interrupts_on_times_out():
    guest = Guest("sti | hlt")
    assert guest.run(5).outcome is Outcome.TIMEOUT
    assert guest.machine.clock.now() == 5 * MS


def test_an_event_takes_time():
    guest = Guest("int 0x30 | mov al,1 | out 0xf4,al | h: iretd", {0x30: "h"})
    guest.exit_value()
    instructions = guest.machine.instructions * NS_PER_INSTRUCTION
    assert guest.machine.clock.now() == instructions + EVENT_NS + PORT_NS


@pytest.mark.parametrize(
    ("source", "ns"),
    [
        ("in al,0x80", PORT_NS),
        ("in eax,0x80", PORT_NS),
        ("out 0x80,al", PORT_NS),
        ("mov ecx,3 | mov edx,0x1234 | mov edi,0x20000 | rep insb", 3 * PORT_NS),
        ("rdtsc", 0),
        ("mov ecx,0x10 | rdmsr", 0),
        ("mov eax,[0xfee00020]", 0),
    ],
)
def test_what_takes_longer_than_an_instruction(source, ns):
    guest = Guest(f"{source} | {DONE}", model=MODELS["i686-apic"])
    guest.exit_value()
    machine = guest.machine
    assert machine.clock.now() == machine.instructions * NS_PER_INSTRUCTION + ns + PORT_NS


def test_a_refused_access_to_a_port_reaches_no_bus():
    guest = Guest(f"user: in al,0x80 | h: {DONE}", {13: "h"})
    guest.user("user")
    guest.exit_value()
    assert guest.machine.clock.now() == guest.machine.instructions * NS_PER_INSTRUCTION + EVENT_NS + PORT_NS


def test_a_timer_is_met_while_ports_are_waited_on():
    """A loop of so many accesses takes 20 ms by the timer, too."""
    wait = "mov ecx,20000 | l: in al,0x80 | loop l"
    guest = timed(
        f"{timer(1193, 0x34)} | sti | {wait} | {DONE} | h: push eax | inc ebx | {EOI} | pop eax | iretd"
    )
    guest.exit_value(200)
    assert 20 <= guest.cpu.ebx <= 21


@pytest.mark.parametrize("vector", [6, 14])
def test_faults_without_end_time_out(vector):
    """Each handler faults again before its first instruction; the stack never ends."""
    guest = Guest("ud2")
    absent = 0x1F0000
    guest.memory.write(IDT + 8 * 6, gate(CODE0, CODE if vector == 6 else absent))
    guest.memory.write(IDT + 8 * 14, gate(CODE0, absent))
    guest.page(absent)
    guest.cpu.set_segment(Seg.SS, Segment(0x38, 0xD0000, 0xFFFF, 0x9300))
    end = guest.run(1)
    assert end.outcome is Outcome.TIMEOUT
    assert guest.machine.instructions <= 1000
    assert MS <= guest.machine.clock.now() <= MS + EVENT_NS


def test_interrupts_without_end_time_out():
    """An endless handler behind a trap gate, with automatic end of interrupt."""
    guest = timed(f"{pic(3)} | {timer(2, 0x34)} | sti | l: jmp l | h: jmp h")
    guest.handle(0x20, "h", access=0x8F)
    guest.cpu.set_segment(Seg.SS, Segment(0x38, 0xD0000, 0xFFFF, 0x9300))
    assert guest.run(1).outcome is Outcome.TIMEOUT
    assert guest.machine.exits["interrupt"] > 500


# -- interrupts ---------------------------------------------------------------------------------


def watch(guest):
    """Record deadlines as they are set, and the time of each interrupt."""
    machine, deadlines, taken = guest.machine, [], []
    write, acknowledge = machine.board.ports.write, machine.interrupts.acknowledge

    def written(port, size, value):
        write(port, size, value)
        if port == 0x40:
            deadlines.append(machine.clock.next_deadline())

    def acknowledged():
        taken.append(machine.clock.now())
        return acknowledge()

    machine.board.ports.write, machine.interrupts.acknowledge = written, acknowledged
    return deadlines, taken


@pytest.mark.parametrize("count", [2, 3, 10, 100, 1193, 40000])
def test_one_shot_programmed_in_the_middle_of_a_run_fires_at_the_right_instruction(count):
    guest = timed(f"sti | mov ecx,500 | w: loop w | {timer(count)} | l: inc ebx | jmp l | h: {DONE}")
    deadlines, taken = watch(guest)
    guest.exit_value()
    assert len(taken) == 1
    assert 0 <= taken[0] - deadlines[-1] <= NS_PER_INSTRUCTION


def test_periodic_timer_keeps_its_times():
    guest = timed(f"{timer(1000, 0x34)} | sti | l: inc ebx | jmp l | h: push eax | {EOI} | pop eax | iretd")
    _, taken = watch(guest)
    guest.run(20)
    gaps = [later - earlier for earlier, later in pairwise(taken[1:])]  # programming it gives an edge too
    assert len(gaps) == 22
    assert all(abs(gap - 838_095.1) <= NS_PER_INSTRUCTION for gap in gaps)


def test_interrupt_waits_for_sti_and_its_shadow():
    guest = timed(f"{timer(2)} | mov ecx,1000 | w: loop w | sti | nop | here: hlt | h: {DONE}")
    guest.exit_value()
    assert guest.stack(1) == [guest.labels["here"]]


@pytest.mark.parametrize("load", ["mov ss,cx", "push ecx | pop ss"])
def test_interrupt_waits_for_the_shadow_of_a_stack_switch(load):
    """Fires while the loop runs, wherever in it; the pair is never split."""
    guest = timed(
        f"{timer(100, 0x34)} | mov ecx,0x10 | sti | nop | l: {load} | pair: mov esp,{STACK} | nop | jmp l"
        f" | h: inc esi | cmp dword ptr [esp],{{pair}} | je bad | {EOI} | iretd"
        " | bad: mov al,2 | out 0xf4,al"
    )
    assert guest.run(20).outcome is Outcome.TIMEOUT
    assert guest.cpu.esi > 200


def test_interrupt_comes_behind_popf_and_iret_at_once():
    for opening in ("push 0x202 | popfd", "push 0x202 | push 8 | push {here} | iretd"):
        guest = timed(f"{timer(2)} | mov ecx,1000 | w: loop w | {opening} | here: nop | hlt | h: {DONE}")
        guest.exit_value()
        assert guest.stack(1) == [guest.labels["here"]]


def test_unmasking_at_the_controller_lets_a_waiting_interrupt_through_at_once():
    guest = timed(
        f"mov al,0xff | out 0x21,al | {timer(2)} | sti | mov ecx,1000 | w: loop w"
        f" | mov al,0xfe | out 0x21,al | here: nop | hlt | h: {DONE}"
    )
    guest.exit_value()
    assert guest.stack(1) == [guest.labels["here"]]


def test_masked_interrupt_does_not_come():
    guest = timed(f"mov al,0xff | out 0x21,al | {timer(2)} | sti | l: jmp l | h: hlt")
    assert guest.run(1).outcome is Outcome.TIMEOUT
