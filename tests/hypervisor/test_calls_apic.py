# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC by calls and through memory: one device. Alarms that come by its timer's entry."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import Lab, call, exit_value
from tests.hypervisor.test_calls_time import alarm, cancel, now
from vmi.abi import AlarmFlag, Counter
from vmi.native.cpuid import I686_APIC
from vmi.native.devices.lapic import LAPIC_SPAN, MASKED
from vmi.native.msr import APIC_BASE
from vmi.rom.flavours import vmware

TPR, EOI, SPURIOUS, ICR, LVTT, LINT0, COUNT = 0x80, 0xB0, 0xF0, 0x300, 0x320, 0x350, 0x380
ENABLED = 0x1FF
PAGE = LAPIC_SPAN.start
HERE = 0x71

# Its local APIC is on, and interrupts come at the vector that the handler counts at.
SOURCE = f"""
start:  mov eax, 1
        cpuid
        mov al, 0
        out 0xf4, al
spin:   @sti
turn:   dec ecx
        jnz turn
        @cli
        mov al, 1
        out 0xf4, al
rest:   @halt
        mov al, 2
        out 0xf4, al
tick:   push eax
        push ecx
        push edx
        inc dword ptr [0x7000]
        mov eax, {EOI}
        xor edx, edx
        call APICWrite
        pop edx
        pop ecx
        pop eax
        @iret
"""


def ready() -> Lab:
    lab = Lab(SOURCE, {HERE: "tick", HERE + 1: "tick"}, "paravirt", model=I686_APIC)
    assert exit_value(lab) == 0 and lab.cpu.edx & 1 << 9, "CPUID tells of the APIC"
    write(lab, SPURIOUS, ENABLED)
    return lab


def write(lab: Lab, register: int, value: int) -> None:
    assert call(lab, "APICWrite", eax=register, edx=value).returned


def read(lab: Lab, register: int) -> int:
    return call(lab, "APICRead", eax=register).registers["eax"]


def spin(lab: Lab, turns: int = 3000) -> int:
    """Let it run with interrupts on; gives how many have come since the start."""
    lab.cpu.eip, lab.cpu.ecx = lab.labels["spin"], turns
    assert exit_value(lab) == 1
    return lab.u32(0x7000)


@pytest.mark.parametrize("form", [0, PAGE, 0xFFFFF000, 0xC0001000], ids=hex)
def test_a_register_is_named_by_its_offset_or_its_address(form: int) -> None:
    lab = ready()
    write(lab, form | TPR, 0x40)
    assert read(lab, form | TPR) == read(lab, TPR) == 0x40
    assert lab.machine.memory_read(PAGE + TPR, 4) == 0x40


def test_calls_and_memory_agree() -> None:
    lab = ready()
    assert lab.domain is not None and lab.machine.board.lapic is not None
    source = 0x12000
    lab.memory.write(source, bytes.fromhex("a38000e0fe a1f000e0fe ebfe"))  # store TPR, load SVR
    lab.cpu.eip, lab.cpu.eax = source, 0x20
    lab.cpu.run(2)
    assert lab.cpu.eax == ENABLED == read(lab, SPURIOUS) and read(lab, TPR) == 0x20
    write(lab, LVTT, MASKED | 0x55)
    assert lab.machine.memory_read(PAGE + LVTT, 4) == MASKED | 0x55


def test_the_base_register_is_read_and_written_by_call() -> None:
    lab = ready()
    left = call(lab, "RDMSR", ecx=APIC_BASE).registers
    assert (left["edx"], left["eax"]) == (0, 0xFEE00900)
    assert call(lab, "WRMSR", ecx=APIC_BASE, edx=0, eax=0xFEE00100).returned
    assert call(lab, "CPUID", eax=1).registers["edx"] & 1 << 9 == 0, "switched off, it is not there"


def test_without_an_apic_the_calls_find_nothing() -> None:
    lab = Lab("start: nop", mode="paravirt")
    write(lab, TPR, 0x40)
    assert read(lab, TPR) == 0xFFFFFFFF == lab.machine.memory_read(PAGE + TPR, 4)


def test_a_message_to_itself_is_taken_and_ended() -> None:
    lab = ready()
    write(lab, ICR, 0x40000 | HERE)
    assert spin(lab, 10) == 1 and lab.machine.board.lapic is not None
    assert lab.machine.board.lapic.isr == 0


# -- alarms ------------------------------------------------------------------------------------


def test_an_alarm_by_the_timer_entry_has_its_vector_at_that_moment() -> None:
    lab = ready()
    write(lab, LVTT, HERE)
    alarm(lab, Counter.REAL, now(lab) + 2000, flags=AlarmFlag.WIRED_LVTT)
    write(lab, LVTT, HERE + 1)
    lab.handle(HERE, "rest")  # would halt for ever
    assert spin(lab) == 1 and lab.machine.board.pic.master.irr & 1 == 0
    assert cancel(lab, Counter.REAL) == 0


def test_a_masked_timer_entry_holds_an_alarm_back_for_good() -> None:
    lab = ready()
    write(lab, LVTT, MASKED | HERE)
    alarm(lab, Counter.REAL, now(lab) + 2000, 1 << 20, AlarmFlag.WIRED_LVTT | AlarmFlag.PERIODIC)
    assert spin(lab) == 0
    write(lab, LVTT, HERE)
    assert spin(lab) == 0, "it is not made up for"
    assert lab.domain is not None and Counter.REAL in lab.domain.timer.alarms


def test_the_apics_own_count_has_nothing_to_do_with_it() -> None:
    lab = ready()
    write(lab, LVTT, HERE)
    alarm(lab, Counter.AVAILABLE, now(lab) + 500, 1000, AlarmFlag.WIRED_LVTT | AlarmFlag.PERIODIC)
    assert 4 <= spin(lab, 3000) <= 10 and read(lab, COUNT) == 0


def test_an_alarm_by_the_timer_entry_ends_a_halt() -> None:
    lab = ready()
    write(lab, LVTT, HERE)
    alarm(lab, Counter.REAL, now(lab) + 1_000_000, flags=AlarmFlag.WIRED_LVTT)
    lab.cpu.eip = lab.labels["rest"]
    assert exit_value(lab) == 2 and lab.u32(0x7000) == 1


def test_an_interrupt_of_low_priority_waits_and_is_told_of_when_it_may_come() -> None:
    lab = ready()
    write(lab, TPR, 0xF0)
    write(lab, ICR, 0x40000 | HERE)
    assert spin(lab, 50) == 0 and lab.word(vmware.PENDING) == 0
    write(lab, TPR, 0)
    lab.cpu.eip, lab.cpu.ecx = lab.labels["turn"], 40  # interrupts are off still
    assert exit_value(lab) == 1
    assert lab.word(vmware.PENDING) == 1 and lab.u32(0x7000) == 0
    assert spin(lab, 2) == 1
