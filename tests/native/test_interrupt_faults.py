# SPDX-License-Identifier: GPL-2.0-only
"""Faults on the way to a handler: bad gates, segments and stacks, double and triple faults."""

from __future__ import annotations

import pytest

from tests.native.guest import (
    CODE0,
    CODE3,
    CONFORMING,
    DATA0,
    DATA3,
    FREE,
    IDT,
    INTERRUPT_32,
    KERNEL_STACK,
    STACK,
    TSS,
    USER_STACK,
    Guest,
    descriptor,
    gate,
)
from vmi.native.interrupts import Event, Origin, TripleFault
from vmi.native.machine import Outcome
from vmi.native.registers import Segment, TableRegister
from vmi.x86 import Vector

PAGE = 0x30000
USER_GATE = INTERRUPT_32 | 0x60


def ends(guest, outcome, reason):
    end = guest.run()
    assert (end.outcome, end.reason) == (outcome, reason)


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("access", [0x00, 0x80, 0x8C, 0x84, 0x8D, 0x9E, 0x8B])
def test_what_is_no_gate(access):
    """A refused INT faults at itself; the error code has the IDT bit and never EXT, as under QEMU."""
    guest = Guest("bad: int 0x30 | h: hlt", {13: "h"})
    guest.memory.write(IDT + 8 * 0x30, gate(CODE0, guest.labels["h"], access))
    guest.run()
    assert guest.stack(3) == [0x30 * 8 + 2, guest.labels["bad"], CODE0]


def test_gate_of_too_little_privilege():
    guest = Guest("user: nop | bad: int 0x30 | h: hlt", {13: "h", 0x30: "h"})
    guest.user("user")
    guest.run()
    assert guest.stack(3) == [0x30 * 8 + 2, guest.labels["bad"], CODE3]


@pytest.mark.parametrize(("source", "length"), [("int3", 1), (".byte 0xcd,3", 2)])
def test_refused_breakpoint_of_either_length(source, length):
    guest = Guest(f"user: nop | bad: {source} | after: nop | h: hlt", {13: "h", 3: "h"})
    assert guest.labels["after"] - guest.labels["bad"] == length
    guest.user("user")
    guest.run()
    assert guest.stack(3) == [3 * 8 + 2, guest.labels["bad"], CODE3]


def test_refused_into():
    guest = Guest("user: mov al,0x7f | add al,1 | bad: into | h: hlt", {13: "h", 4: "h"})
    guest.user("user")
    guest.run()
    assert guest.stack(3) == [4 * 8 + 2, guest.labels["bad"], CODE3]


def test_refused_breakpoint_whose_page_is_gone():
    """The CPU still knows the page that the tables no longer have."""
    guest = Guest(f"mov dword ptr [{0x21000 + 4 * 0x10}],0 | nop | bad: int3")
    guest.page()
    ends(guest, Outcome.TRIPLE_FAULT, f"the guest triple-faulted at 0x8:{guest.labels['bad']:#x}")


def test_gate_beyond_the_table():
    guest = Guest("bad: int 0x30 | h: hlt", {13: "h"})
    guest.cpu.idt = TableRegister(IDT, 0x30 * 8 + 6)
    guest.run()
    assert guest.stack(2) == [0x30 * 8 + 2, guest.labels["bad"]]


def test_absent_gate():
    guest = Guest("bad: int 0x30 | h: hlt", {11: "h"})
    guest.handle(0x30, "h", access=0x0E)
    guest.run()
    assert guest.stack(2) == [0x30 * 8 + 2, guest.labels["bad"]]


@pytest.mark.parametrize(
    ("selector", "data", "vector", "error"),
    [
        (0, None, 13, 0),
        (3, None, 13, 0),
        (FREE, descriptor(0, 0xFFFFF, 0x92), 13, FREE),
        (FREE, descriptor(0, 0xFFFFF, 0xFA), 13, FREE),
        (FREE, descriptor(0, 0xFFFFF, 0x1A), 11, FREE),
        (FREE, descriptor(0, 0x67, 0x89), 13, FREE),
        (0x1000, None, 13, 0x1000),
        (FREE | 4, None, 13, FREE | 4),
    ],
)
def test_bad_handler_segment(selector, data, vector, error):
    guest = Guest("bad: int 0x30 | h: hlt", {vector: "h"})
    guest.handle(0x30, "h", selector)
    if data is not None:
        guest.describe(FREE, data)
    guest.run()
    assert guest.stack(3) == [error, guest.labels["bad"], CODE0]


@pytest.mark.parametrize(
    ("selector", "data", "vector", "error"),
    [
        (0, None, 10, 0),
        (DATA3, None, 10, DATA3 & 0xFFFC),
        (CODE0, None, 10, CODE0),
        (DATA0 | 1, None, 10, DATA0),
        (0x1000, None, 10, 0x1000),
        (FREE, descriptor(0, 0xFFFFF, 0x90), 10, FREE),
        (FREE, descriptor(0, 0xFFFFF, 0x12), 12, FREE),
    ],
)
def test_bad_inner_stack(selector, data, vector, error):
    """The fault has no inner stack either, so only a task or a conforming segment could take it."""
    guest = Guest("user: int 0x30 | h: hlt")
    guest.handle(0x30, "h", access=USER_GATE)
    guest.handle(vector, "h", CONFORMING)
    guest.memory.put_u32(TSS + 8, selector)
    if data is not None:
        guest.describe(FREE, data)
    guest.user("user")
    guest.run()
    assert guest.stack(3)[0] == error or guest.u32(USER_STACK - 16) == error
    assert [guest.u32(USER_STACK - 16 + 4 * i) for i in range(3)] == [error, guest.labels["user"], CODE3]


def test_task_segment_that_is_too_short():
    guest = Guest("user: int 0x30 | h: hlt")
    guest.handle(0x30, "h", access=USER_GATE)
    guest.handle(10, "h", CONFORMING)
    guest.cpu.tr = Segment(0x28, TSS, 10, 0x8900)
    guest.user("user")
    guest.run()
    assert guest.u32(USER_STACK - 16) == 0x28


def test_stack_of_a_16_bit_task_segment():
    guest = Guest("user: int 0x30 | after: nop | h: hlt")
    guest.handle(0x30, "h", access=USER_GATE)
    guest.cpu.tr = Segment(0x28, TSS, 0x2B, 0x8100)
    guest.memory.write(TSS + 2, KERNEL_STACK.to_bytes(2, "little") + DATA0.to_bytes(2, "little"))
    guest.user("user")
    guest.run()
    assert guest.stack(5) == [guest.labels["after"], CODE3, 2, USER_STACK, DATA3]


# -- page faults while a frame is pushed --------------------------------------------------------


def test_frame_across_an_absent_page_is_all_or_nothing():
    guest = Guest("int 0x30 | h: hlt")
    guest.handle(0x30, "h")
    guest.handle(14, "h", CODE0)
    guest.page(PAGE)
    guest.cpu.esp = PAGE + 0x1004
    guest.memory.write(PAGE, b"\xee" * 0x2000)
    end = guest.run()
    assert end.outcome is Outcome.TRIPLE_FAULT, "the page fault's own frame has no room either"
    assert guest.memory.read(PAGE, 0x2000) == b"\xee" * 0x2000
    assert guest.cpu.esp == PAGE + 0x1004
    assert guest.cpu.eip == guest.labels["h"] - 2, "the INT has not happened"
    assert guest.cpu.cr2 == PAGE + 0xFFC, "where the first value has no page"


def test_page_fault_on_the_inner_stack_goes_to_its_handler():
    """From ring 3 the page fault of ring 0's stack can be taken on ring 3's, by a conforming handler."""
    guest = Guest("user: int 0x30 | h: hlt")
    guest.handle(0x30, "h", access=USER_GATE)
    guest.handle(14, "h", CONFORMING)
    guest.memory.put_u32(TSS + 4, PAGE + 0x1000)
    guest.page(PAGE)
    guest.user("user")
    guest.run()
    assert guest.cpu.cr2 == PAGE + 0xFFC
    frame = [guest.u32(USER_STACK - 16 + 4 * i) for i in range(3)]
    assert frame == [2, guest.labels["user"], CODE3], "a store of ring 0, at the INT"


@pytest.mark.parametrize("user", [False, True])
def test_supervisor_stack_may_be_a_supervisor_page(user):
    guest = Guest("int 0x30 | h: hlt", {0x30: "h"})
    guest.page(user=user)
    guest.run()
    assert guest.cpu.esp == STACK - 12


def test_delivery_sets_accessed_and_dirty():
    guest = Guest("int 0x30 | h: hlt", {0x30: "h"})
    guest.page()
    guest.run()
    table = 0x21000
    assert guest.u32(table + 4 * (IDT >> 12)) & 0x60 == 0x20
    assert guest.u32(table + 4 * ((STACK - 4) >> 12)) & 0x60 == 0x60


def test_frame_into_rom_is_lost():
    guest = Guest("int 0x30 | h: hlt", {0x30: "h"})
    guest.cpu.esp = 0xC8000
    before = guest.memory.read(0xC0000, 0x10000)
    guest.run()
    assert guest.cpu.esp == 0xC8000 - 12
    assert guest.memory.read(0xC0000, 0x10000) == before
    assert guest.machine.exits["ROM write"] == 1


# -- faults on the way to a handler -------------------------------------------------------------


def test_contributory_fault_twice_is_a_double_fault():
    guest = Guest("xor ecx,ecx | bad: div ecx | h: hlt", {8: "h"})
    guest.run()
    assert guest.stack(3) == [0, guest.labels["bad"], CODE0]


def test_benign_exception_with_a_bad_gate_is_a_protection_fault():
    guest = Guest("bad: ud2 | h: hlt", {13: "h", 8: "h"})
    guest.run()
    assert guest.stack(2) == [6 * 8 + 2, guest.labels["bad"]]


def test_page_fault_with_a_bad_gate_is_a_double_fault():
    guest = Guest(f"bad: mov eax,[{PAGE}] | h: hlt", {8: "h", 13: "h"})
    guest.page(PAGE)
    guest.run()
    assert guest.stack(2) == [0, guest.labels["bad"]]


def test_contributory_fault_then_page_fault_is_a_page_fault():
    """A division error whose gate lies on an absent page."""
    guest = Guest("xor ecx,ecx | bad: div ecx | h: hlt", {8: "h"})
    guest.cpu.idt = TableRegister(PAGE + 0x1000 - 8, 0x7FF)
    guest.memory.write(PAGE + 0x1000 - 8 + 14 * 8, gate(CODE0, guest.labels["h"]))
    guest.page(PAGE)
    guest.run()
    assert guest.stack(3) == [0, guest.labels["bad"], CODE0]
    assert guest.cpu.cr2 == PAGE + 0xFF8


def test_page_fault_then_page_fault_is_a_double_fault_with_the_last_address():
    guest = Guest(f"bad: mov eax,[{PAGE}] | h: hlt")
    guest.memory.write(PAGE + 0x2000 + 8 * 8, gate(CODE0, guest.labels["h"]))
    guest.cpu.idt = TableRegister(PAGE + 0x1000, 0x1FFF)
    guest.memory.write(PAGE + 0x1000 + 8 * 8, gate(CODE0, guest.labels["h"]))
    guest.page(PAGE, PAGE + 0x1000)
    ends(guest, Outcome.TRIPLE_FAULT, f"the guest triple-faulted at 0x8:{guest.labels['bad']:#x}")
    assert guest.cpu.cr2 == PAGE + 0x1000 + 8 * 8


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("bad: ud2", "0x8:0x10000"),
        ("nop | int 0x30", "0x8:0x10001"),
        ("xor ecx,ecx | div ecx", "0x8:0x10002"),
    ],
)
def test_no_table_at_all_is_a_triple_fault(source, where):
    guest = Guest(source)
    guest.cpu.idt = TableRegister(0, 0)
    ends(guest, Outcome.TRIPLE_FAULT, f"the guest triple-faulted at {where}")


def test_external_interrupt_with_a_bad_gate_is_a_protection_fault_not_a_double_one():
    guest = Guest("h: hlt", {13: "h", 8: "h"})
    guest.machine.delivery.deliver(Event(0x40, Origin.EXTERNAL))
    assert guest.stack(3) == [0x40 * 8 + 2, guest.labels["h"], CODE0]


def test_external_interrupt_pushes_no_error_code_whatever_its_vector():
    guest = Guest("h: hlt", {Vector.GP: "h"})
    guest.machine.delivery.deliver(Event(Vector.GP, Origin.EXTERNAL))
    assert guest.cpu.esp == STACK - 12


def test_software_interrupt_of_a_fault_s_vector_pushes_no_error_code():
    guest = Guest("int 13 | after: nop | h: hlt", {13: "h"})
    guest.run()
    assert guest.stack(2) == [guest.labels["after"], CODE0]


def test_int_6_is_an_int_and_not_an_invalid_instruction():
    guest = Guest("user: int 6 | after: nop | h: hlt", {13: "h"})
    guest.handle(6, "h", access=USER_GATE)
    guest.user("user")
    guest.run()
    assert guest.stack(2) == [guest.labels["after"], CODE3]
    assert guest.machine.exits["software interrupt"] == 1
    assert guest.machine.exits["#UD"] == 0


def test_triple_fault_is_an_exception_of_the_delivery():
    guest = Guest("hlt")
    guest.cpu.idt = TableRegister(0, 0)
    with pytest.raises(TripleFault):
        guest.machine.delivery.deliver(Event(Vector.DE, Origin.EXCEPTION))
