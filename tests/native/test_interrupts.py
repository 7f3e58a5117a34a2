# SPDX-License-Identifier: GPL-2.0-only
"""Delivery of events by the architecture's rules, as a guest sees it in its frames."""

from __future__ import annotations

import pytest

from tests.native.guest import (
    CODE0,
    CODE1,
    CODE3,
    CODE16,
    CONFORMING,
    DATA0,
    DATA1,
    DATA3,
    DATA16,
    GDT,
    IDT,
    INTERRUPT_16,
    INTERRUPT_32,
    KERNEL_STACK,
    PAGES,
    STACK,
    TRAP_32,
    TSS,
    USER_STACK,
    Guest,
    gate,
)
from vmi.native.machine import End, Outcome
from vmi.native.registers import Segment, TableRegister
from vmi.x86 import Seg

PAGE = 0x30000
USER_GATE = INTERRUPT_32 | 0x60


# -- frames -------------------------------------------------------------------------------------


def test_int_on_the_same_ring():
    guest = Guest("stc | int 0x30 | after: hlt | h: hlt", {0x30: "h"})
    guest.cpu.eflags = 0x202
    guest.run()
    assert guest.cpu.esp == STACK - 12
    assert guest.stack(3) == [guest.labels["after"], CODE0, 0x203]
    assert guest.cpu.eflags & 0x200 == 0, "an interrupt gate masks interrupts"


def test_trap_gate_leaves_interrupts_on():
    guest = Guest("int 0x30 | h: hlt")
    guest.handle(0x30, "h", access=TRAP_32)
    guest.cpu.eflags = 0x202
    guest.run(1)
    assert guest.cpu.eflags & 0x200


@pytest.mark.parametrize(("flag", "seen"), [(0x100, 0x102), (0x4000, 0x4002), (0x10000, 0x10002)])
def test_handler_starts_without_tf_nt_and_rf(flag, seen):
    guest = Guest("ud2 | h: hlt", {6: "h", 1: "h"})
    guest.cpu.eflags = flag | 2
    guest.run()
    assert guest.stack(3) == [guest.labels["h"] - 2, CODE0, seen]
    assert guest.cpu.eflags == 2


def test_fault_with_an_error_code_stands_at_the_instruction():
    guest = Guest("mov ax,0x1234 | bad: mov ds,ax | h: hlt", {13: "h"})
    guest.run()
    assert guest.stack(4) == [0x1234, guest.labels["bad"], CODE0, 2]


def test_entry_from_ring_3_switches_the_stack():
    guest = Guest("user: int 0x30 | after: nop | h: hlt")
    guest.handle(0x30, "h", access=USER_GATE)
    guest.user("user")
    guest.run()
    assert guest.cpu.esp == KERNEL_STACK - 20
    assert guest.stack(5) == [guest.labels["after"], CODE3, 2, USER_STACK, DATA3]
    assert (guest.cpu.cpl, guest.cpu.segment(Seg.SS).selector) == (0, DATA0)
    assert guest.cpu.segment(Seg.DS).selector == DATA3


def test_exception_from_ring_3_needs_no_gate_privilege():
    guest = Guest("user: cli | h: hlt", {13: "h"})
    guest.user("user")
    guest.run()
    assert guest.stack(6) == [0, guest.labels["user"], CODE3, 2, USER_STACK, DATA3]


def test_handler_on_ring_1():
    guest = Guest("user: int 0x30 | h: cli | gp: hlt", {13: "gp"})
    guest.handle(0x30, "h", CODE1, USER_GATE)
    guest.memory.put_u32(TSS + 12, 0x7000)
    guest.memory.put_u32(TSS + 16, DATA1)
    guest.user("user")
    guest.run()
    assert guest.stack(6) == [0, guest.labels["h"], CODE1, 2, 0x7000 - 20, DATA1]


def test_delivery_stores_nothing_in_a_read_only_descriptor_table():
    """The descriptors are not marked as accessed, so a kernel may write-protect its table."""
    guest = Guest("user: int 0x30 | h: hlt")
    guest.handle(0x30, "h", access=USER_GATE)
    guest.user("user")
    guest.page()
    guest.memory.put_u32(PAGES + 0x1000 + 4 * (GDT >> 12), GDT | 5)
    guest.run()
    assert guest.stack(5) == [guest.labels["h"], CODE3, 2, USER_STACK, DATA3]
    assert guest.memory.read(GDT + CODE0 + 5, 1) == b"\x9a"


def test_conforming_handler_stays_on_the_ring():
    guest = Guest("user: int 0x30 | after: nop | h: cli | gp: hlt", {13: "gp"})
    guest.handle(0x30, "h", CONFORMING, USER_GATE)
    guest.user("user")
    guest.run()
    assert guest.stack(6) == [0, guest.labels["h"], CONFORMING | 3, 2, USER_STACK - 12, DATA3]
    frame = [guest.u32(USER_STACK - 12 + 4 * i) for i in range(3)]
    assert frame == [guest.labels["after"], CODE3, 2]


def test_gate_of_16_bits_pushes_words():
    guest = Guest("mov ax,0x1234 | bad: mov ds,ax | hlt | .align 16 | h: hlt")
    guest.cpu.eflags = 2
    guest.memory.write(IDT + 8 * 13, gate(CODE16, guest.labels["h"] - 0x10000, INTERRUPT_16))
    guest.run()
    assert guest.cpu.esp == STACK - 8
    words = [guest.memory.u32(guest.cpu.esp) & 0xFFFF, guest.memory.u32(guest.cpu.esp) >> 16]
    words += [guest.memory.u32(guest.cpu.esp + 4) & 0xFFFF, guest.memory.u32(guest.cpu.esp + 4) >> 16]
    assert words == [0x1234, guest.labels["bad"] & 0xFFFF, CODE0, 2]


def test_stack_of_16_bits_uses_sp_only():
    guest = Guest("int 0x30 | after: nop | h: hlt", {0x30: "h"})
    guest.cpu.set_segment(Seg.SS, Segment(DATA16, 0x20000, 0xFFFF, 0x9300))
    guest.cpu.esp = 0xABCD8000
    guest.run()
    assert guest.cpu.esp == 0xABCD8000 - 12
    assert [guest.u32(0x28000 - 12 + 4 * i) for i in range(3)] == [guest.labels["after"], CODE0, 2]


def test_stack_of_16_bits_wraps_between_two_values():
    guest = Guest("int 0x30 | after: nop | h: hlt", {0x30: "h"})
    guest.cpu.set_segment(Seg.SS, Segment(DATA16, 0x20000, 0xFFFF, 0x9300))
    guest.cpu.esp = 0x7FFF0004
    guest.run()
    assert guest.cpu.esp == 0x7FFFFFF8
    assert [guest.u32(at) for at in (0x20000, 0x2FFFC, 0x2FFF8)] == [2, CODE0, guest.labels["after"]]
    assert guest.u32(0x30000) == 0


def test_virtual_8086_mode():
    guest = Guest("v86: int 0x30 | h: hlt", {13: "h"})
    guest.handle(0x30, "h", access=USER_GATE)
    cpu = guest.cpu
    for seg, value in ((Seg.ES, 1), (Seg.CS, 0x1000), (Seg.SS, 0x800), (Seg.DS, 3), (Seg.FS, 4), (Seg.GS, 5)):
        cpu.set_segment(seg, Segment(value, value << 4, 0xFFFF, 0xF300))
    cpu.eflags = 0x23002  # VM, IOPL 3
    cpu.set_segment(Seg.SS, cpu.segment(Seg.SS))
    cpu.eip, cpu.esp = 0, 0x700
    guest.run()
    assert guest.stack(9) == [2, 0x1000, 0x23002, 0x700, 0x800, 1, 3, 4, 5]
    assert cpu.cpl == 0
    assert cpu.eflags & 0x20000 == 0
    for seg in (Seg.ES, Seg.DS, Seg.FS, Seg.GS):
        assert cpu.segment(seg) == Segment(0, 0, 0, 0)
    assert cpu.segment(Seg.SS).selector == DATA0


def test_virtual_8086_mode_enters_ring_0_only():
    guest = Guest("v86: int 0x30 | h: hlt", {13: "h"})
    guest.handle(0x30, "h", CODE1, USER_GATE)
    cpu = guest.cpu
    for seg in Seg:
        cpu.set_segment(seg, Segment(0x1000, 0x10000, 0xFFFF, 0xF300))
    cpu.eflags = 0x23002
    cpu.set_segment(Seg.SS, cpu.segment(Seg.SS))
    cpu.eip = 0
    guest.run()
    assert guest.stack(2) == [CODE1 & 0xFFFC, 0]


def test_real_mode():
    guest = Guest(".code16 | real: stc | int 0x30 | after: nop | h: hlt")
    guest.real_mode("real")
    guest.cpu.set_segment(Seg.CS, Segment(0x1000, 0x10000, 0xFFFF, 0x9B00))
    guest.cpu.eip, guest.cpu.eflags = 0, 0x302
    guest.memory.put_u32(4, 0x10000000 | guest.labels["h"] - 0x10000)
    guest.memory.put_u32(4 * 0x30, 0x10000000 | guest.labels["h"] - 0x10000)
    guest.cpu.eflags = 0x202
    guest.run()
    assert guest.cpu.esp == 0x7000 - 6
    assert guest.u32(0x6FFA) == 0x10000000 | guest.labels["after"] - 0x10000
    assert guest.u32(0x6FFE) & 0xFFFF == 0x203
    assert guest.cpu.eflags & 0x300 == 0
    assert guest.cpu.segment(Seg.CS) == Segment(0x1000, 0x10000, 0xFFFF, 0x9B00)


def test_real_mode_stack_wraps():
    guest = Guest(".code16 | real: int 0x30 | h: hlt")
    guest.real_mode("real")
    guest.cpu.set_segment(Seg.CS, Segment(0x1000, 0x10000, 0xFFFF, 0x9B00))
    guest.cpu.eip, guest.cpu.esp = 0, 2
    guest.cpu.set_segment(Seg.SS, Segment(0x2000, 0x20000, 0xFFFF, 0x9300))
    guest.memory.put_u32(4 * 0x30, 0x10000000 | guest.labels["h"] - 0x10000)
    guest.run()
    assert guest.cpu.esp == 0xFFFC
    assert guest.u32(0x2FFFC) == 0x10000002
    assert guest.u32(0x20000) & 0xFFFF == 2


def test_real_mode_table_that_is_too_short():
    guest = Guest(".code16 | real: int 0x30 | h: hlt")
    guest.real_mode("real")
    guest.cpu.idt = TableRegister(0, 4 * 8 + 2)
    assert guest.run() == End(Outcome.TRIPLE_FAULT, "the guest triple-faulted at 0x0:0x10000")
