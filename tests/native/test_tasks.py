# SPDX-License-Identifier: GPL-2.0-only
"""Task switches through task gates of the IDT."""

from __future__ import annotations

import pytest

from tests.native.guest import (
    CODE0,
    CODE1,
    CODE3,
    DATA0,
    DATA3,
    FREE,
    GDT,
    STACK,
    TASK,
    TASK_GATE,
    TSS,
    Guest,
    descriptor,
)  # fmt: skip
from vmi.native.registers import NULL_SEGMENT, Segment, TableRegister
from vmi.x86 import Cr0, Seg

NEW, NEW_TSS, NEW_STACK = FREE, 0x5000, 0xB000
LDT = FREE + 8
PAGE = 0x30000


def tasked(source, vector, **fields):
    """A guest whose ``vector`` has a task gate; ``fields`` replace those of the new task's segment."""
    guest = Guest(source)
    image = {
        "cr3": 0, "eip": guest.labels["task"], "eflags": 2, "eax": 1, "ecx": 2, "edx": 3, "ebx": 4,
        "esp": NEW_STACK, "ebp": 6, "esi": 7, "edi": 8, "es": DATA0, "cs": CODE0, "ss": DATA0,
        "ds": DATA0, "fs": 0, "gs": DATA3, "ldt": 0,
    } | fields  # fmt: skip
    for number, value in enumerate(image.values()):
        guest.memory.put_u32(NEW_TSS + 0x1C + 4 * number, value)
    guest.describe(NEW, descriptor(NEW_TSS, 0x67, 0x89, 0))
    guest.memory.put_u32(GDT + TASK + 4, guest.u32(GDT + TASK + 4) | 0x200)
    guest.handle(vector, "task", NEW, TASK_GATE)
    for number in (0, 1, 2, 3, 5, 6, 7):
        guest.cpu.set_gpr(number, 0x1000 + number)
    return guest


def test_fault_with_an_error_code_enters_the_task():
    guest = tasked("mov ax,0x1234 | stc | bad: mov ds,ax | after: nop | task: hlt", 13)
    guest.run()
    cpu = guest.cpu
    assert [cpu.gpr(n) for n in range(8)] == [1, 2, 3, 4, NEW_STACK - 4, 6, 7, 8]
    assert guest.stack(1) == [0x1234]
    assert cpu.tr == Segment(NEW, NEW_TSS, 0x67, 0x8900)
    assert guest.u32(NEW_TSS) == TASK, "the link to the old task"
    assert guest.u32(GDT + NEW + 4) >> 8 & 15 == 11, "busy"
    assert guest.u32(GDT + TASK + 4) >> 8 & 15 == 11, "the old task stays busy"
    assert cpu.eflags & 0x4000, "nested"
    assert cpu.cr(0) & Cr0.TS
    assert cpu.segment(Seg.FS) == NULL_SEGMENT
    assert cpu.segment(Seg.GS).selector == DATA3
    old = [guest.u32(TSS + 0x20 + 4 * i) for i in range(16)]
    gprs = [0x1234, 0x1001, 0x1002, 0x1003, STACK, 0x1005, 0x1006, 0x1007]
    assert old == [guest.labels["bad"], 3, *gprs, DATA0, CODE0, DATA0, DATA0, DATA0, DATA0]


def test_return_from_the_task_by_iret():
    """The way back is the CPU core's; it must find what the way there left."""
    guest = tasked("mov esi,0x77 | int 0x30 | mov al,1 | out 0xf4,al | task: mov esi,0x99 | iretd", 0x30)
    assert guest.exit_value() == 1
    assert guest.cpu.esi == 0x77
    assert guest.cpu.tr.selector == TASK
    assert guest.u32(GDT + NEW + 4) >> 8 & 15 == 9, "no longer busy"


@pytest.mark.parametrize(
    ("code", "flags"),
    [
        ("xor eax,eax | cmp eax,1", 0x95),
        ("mov eax,0x7fffffff | xor ecx,ecx | inc eax", 0x894),
        ("mov eax,-1 | add eax,1", 0x55),
        ("stc | mov ecx,3 | sub ecx,2 | nop", 0x00),
    ],
)
def test_the_task_that_returns_keeps_its_flags(code, flags):
    guest = tasked(f"int 0x30 | mov al,1 | out 0xf4,al | task: {code} | iretd", 0x30)
    assert guest.exit_value() == 1
    assert guest.u32(NEW_TSS + 0x24) & 0x8D5 == flags


def test_interrupt_from_ring_3_and_back():
    guest = tasked("user: int 0x30 | after: int 0x31 | end: hlt | task: iretd", 0x30)
    guest.handle(0x30, "task", NEW, TASK_GATE | 0x60)
    guest.handle(0x31, "end", access=0xEE)
    guest.user("user")
    guest.run()
    assert guest.stack(2) == [guest.labels["after"] + 2, CODE3]


def test_task_on_ring_3():
    guest = tasked("int 0x30 | task: cli | h: hlt", 0x30, cs=CODE3, ss=DATA3, ds=DATA3, es=DATA3)
    guest.handle(13, "h")
    guest.memory.put_u32(NEW_TSS + 4, STACK)
    guest.memory.put_u32(NEW_TSS + 8, DATA0)
    guest.run()
    assert guest.stack(6) == [0, guest.labels["task"], CODE3, 0x4002, NEW_STACK, DATA3]


def test_page_tables_and_local_table_of_the_task():
    guest = tasked("int 0x30 | task: mov ax,[0x4000] | mov es,cx | hlt", 0x30, ldt=LDT, cr3=0x24000, ecx=4)
    guest.page()
    guest.memory.write(0x24000, guest.memory.read(0x20000, 0x1000))
    guest.describe(LDT, descriptor(0x6000, 0xF, 0x82, 0))
    guest.memory.write(0x6000, descriptor(0, 0xFFFFF, 0x92))
    guest.run()
    assert guest.cpu.cr(3) == 0x24000
    assert guest.cpu.ldt == Segment(LDT, 0x6000, 0xF, 0x8200)
    assert guest.cpu.segment(Seg.ES).selector == 4


@pytest.mark.parametrize(
    ("selector", "data", "vector", "error"),
    [
        (NEW | 4, None, 13, NEW | 4),
        (CODE0, None, 13, CODE0),
        (TASK, None, 13, TASK),  # busy
        (0x1000, None, 13, 0x1000),
        (NEW, descriptor(NEW_TSS, 0x67, 0x81, 0), 13, NEW),  # one of 16 bits is not served
        (NEW, descriptor(NEW_TSS, 0x67, 0x09, 0), 11, NEW),
        (NEW, descriptor(NEW_TSS, 0x66, 0x89, 0), 10, NEW),
    ],
)
def test_refused_before_the_switch(selector, data, vector, error):
    """The old task goes on to the handler, at its own instruction, and is untouched."""
    guest = tasked("bad: int 0x30 | h: hlt | task: hlt", 0x30)
    guest.handle(0x30, "task", selector, TASK_GATE)
    guest.handle(vector, "h")
    if data is not None:
        guest.describe(NEW, data)
    guest.run()
    assert guest.stack(3) == [error, guest.labels["bad"], CODE0]
    assert guest.cpu.tr.selector == TASK
    assert guest.memory.read(TSS + 0x20, 0x40) == bytes(0x40)


@pytest.mark.parametrize(
    ("fields", "vector", "error"),
    [
        ({"cs": 0}, 10, 0),
        ({"ss": 0}, 10, 0),
        ({"cs": DATA0}, 10, DATA0),
        ({"cs": CODE1 & ~3}, 10, CODE1 & ~3),
        ({"ss": DATA3}, 10, DATA3 & ~3),
        ({"ss": CODE0}, 10, CODE0),
        ({"ds": TASK}, 10, TASK),
        ({"ds": FREE + 16}, 11, FREE + 16),
        ({"ss": FREE + 16}, 12, FREE + 16),
        ({"gs": 0x1000}, 10, 0x1000),
        ({"ldt": 4}, 10, 4),
        ({"ldt": DATA0}, 10, DATA0),
    ],
)
def test_bad_state_is_the_new_task_s_fault(fields, vector, error):
    guest = tasked("bad: int 0x30 | h: hlt | task: hlt", 0x30, **fields)
    guest.handle(vector, "h")
    guest.describe(FREE + 16, descriptor(0, 0xFFFFF, 0x12))
    guest.run()
    assert guest.cpu.tr.selector == NEW
    assert guest.stack(2) == [error, guest.labels["task"]], "at the new task's instruction"


def test_no_room_for_the_error_code_is_the_new_task_s_fault():
    guest = tasked("mov ax,0x1234 | mov ds,ax | h: hlt | task: hlt", 13, esp=PAGE + 4)
    guest.handle(14, "h")
    guest.page(PAGE)
    guest.memory.put_u32(NEW_TSS + 0x1C, 0x20000)
    end = guest.run()
    # its page fault has no room either, but the way there shows
    assert end.reason == f"the guest triple-faulted at 0x8:{guest.labels['task']:#x}"
    assert guest.cpu.esp == PAGE + 4


def test_table_outside_memory():
    guest = tasked("bad: int 0x30 | h: hlt | task: hlt", 0x30)
    guest.handle(13, "h")
    guest.cpu.gdt = TableRegister(GDT, NEW + 6)
    guest.run()
    assert guest.stack(2) == [NEW, guest.labels["bad"]]
