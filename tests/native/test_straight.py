# SPDX-License-Identifier: GPL-2.0-only
"""Events that the accelerator delivers end where Python's long way ends, and leave the same behind."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.native.accelerator import accelerated
from tests.native.entries import STEPS, Change, compare, prepare
from tests.native.guest import (
    CODE,
    CODE0,
    CODE1,
    CODE3,
    CODE16,
    CONFORMING,
    DATA0,
    DATA1,
    DATA3,
    GDT,
    IDT,
    KERNEL_STACK,
    STACK,
    TASK,
    TSS,
    Guest,
)
from vmi.native.interrupts import Event, Origin
from vmi.x86 import Cr0, Seg

INT = Event(0x30, Origin.SOFTWARE, length=2)
WIDE = 0x30000
pytestmark = accelerated.only


def ready() -> Guest:
    guest = Guest("nop")
    prepare(guest)
    return guest


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_c_and_python_agree(steps):
    guest = ready()
    for changes, event in steps:
        for change in changes:
            change.make(guest)
        compare(guest, guest.machine.delivery, event, in_c=True)


@pytest.mark.parametrize("event", [INT, Event(14, Origin.EXCEPTION, 2, 0x1234), Event(0x30, Origin.EXTERNAL)])
@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("paging", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_the_usual_ones_are_done_in_c(event, ring, paging, inside):
    guest = ready()
    Change("paging", (paging, True)).make(guest)
    Change("ring", (ring, True, 0)).make(guest)
    Change("inside", (inside,)).make(guest)
    assert compare(guest, guest.machine.delivery, event, in_c=True)
    stack = STACK if ring == 0 else KERNEL_STACK
    assert guest.cpu.esp == stack - 4 * (3 + (event.vector == 14) + 2 * (ring == 3))


SELECTORS = (0, 3, 4, CODE0 | 3, CODE3, CONFORMING, 0xFFF8, DATA0, TASK, CODE16, CODE1)
STACKS = (0, DATA0 | 1, DATA0 | 3, DATA0 | 4, DATA3, DATA1, CODE0, 0xFFF8)
CHANGES = [
    Change("gate", (0x30, CODE0, 0x8E, 0x40)),
    Change("gate", (0x30, CODE0, 0xCE, 0x40)),
    *(Change("gate", (0x30, CODE0, access, 0)) for access in (0xEF, 0x86, 0x85, 0x6E, 0xFE, 0xE0)),
    *(Change("gate", (0x30, selector, 0xEE, 0)) for selector in SELECTORS),
    *(Change("segment", (CODE0, 0, rights, 0xC)) for rights in (0x1A, 0x92, 0x9E, 0xBA, 0xDA, 0x8A)),
    Change("segment", (CODE0, 0x10, 0x9A, 0xC)),
    Change("segment", (CODE0, 0, 0x9A, 8)),
    Change("segment", (CODE0, 0, 0x9A, 4)),
    *(Change("segment", (DATA0, 0, rights, 0xC)) for rights in (0x90, 0x12, 0x9A, 0xB2, 0x96, 0x82)),
    Change("segment", (DATA0, 0x10, 0x92, 0xC)),
    Change("segment", (DATA0, 0, 0x92, 8)),
    *(Change("task", (esp, DATA0)) for esp in (0, 8, 0x9008, 0x8010, 0x100004, 0xF0100, 0x10200, 0x1FFFF8)),
    *(Change("task", (KERNEL_STACK, ss)) for ss in STACKS),
    *(Change("register_of_task", to) for to in ((7, 9), (11, 9), (12, 9), (0x67, 1), (0x67, 11))),
    *(Change("tables", (0, limit, 0xFFF)) for limit in (0x186, 0x187)),
    *(Change("tables", to) for to in ((4, 0x7FF, 0xFFF), (0, 0x7FF, 14), (0, 0x7FF, 15))),
    *(Change("entry", ((KERNEL_STACK - 4) >> 12, rights)) for rights in (7, 5, 1, 0, 0x67, 0x27)),
    *(Change("entry", (page >> 12, rights)) for page in (IDT, GDT, TSS) for rights in (0, 1, 0x21)),
    *(Change("directory", (rights,)) for rights in (0, 1, 5, 0x27)),
    *(Change("paging", to) for to in ((False, True), (True, False))),
    Change("line_20", (False,)),
    *(Change("base", (seg, 0x100)) for seg in (Seg.ES, Seg.DS, Seg.FS)),
    *(Change("registers", (STACK, 0x10000, flags, 0x8D5)) for flags in (0x200, 0x4100, 0x10400, 0x243000)),
    *(Change("registers", (esp, 0x10000, 2, 0)) for esp in (0, 8, 0x8008, 0xFFFFFFFC)),
]  # fmt: skip


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("inside", [False, True])
def test_one_thing_is_another(ring, inside):
    """Each thing that an entry depends on, alone."""
    guest = ready()
    Change("paging", (True, True)).make(guest)
    Change("ring", (ring, True, 0)).make(guest)
    Change("inside", (inside,)).make(guest)
    ram, state = bytes(guest.memory.ram), guest.cpu.freeze()
    done = 0
    for change in CHANGES:
        for event in (INT, Event(0x30, Origin.EXTERNAL), Event(14, Origin.EXCEPTION, 6, 0x4321)):
            Change("paging", (True, True)).make(guest)
            Change("line_20", (True,)).make(guest)
            guest.memory.ram[:] = ram
            guest.cpu.thaw(state)
            change.make(guest)
            done += compare(guest, guest.machine.delivery, event, in_c=True)
    assert 3 * len(CHANGES) > done > len(CHANGES)


def wide(guest: Guest) -> None:
    """PAE tables over the first 4 MiB: of 4 KiB below 2 MiB, one of 2 MiB above."""
    put = guest.memory.put_u32
    put(WIDE, WIDE + 0x1000 | 1)
    put(WIDE + 0x1000, WIDE + 0x2000 | 7)
    put(WIDE + 0x1008, 2 << 20 | 0x87)
    for page in range(512):
        put(WIDE + 0x2000 + 8 * page, page << 12 | 7)
    guest.cpu.set_cr(0, Cr0.PE)
    guest.cpu.set_cr(4, 0x20)
    guest.cpu.set_cr(3, WIDE)
    guest.cpu.set_cr(0, Cr0.PE | Cr0.PG | Cr0.WP)


ENTRY = WIDE + 0x2000 + 8 * ((STACK - 4) >> 12)


@pytest.mark.parametrize("no_execute", [False, True])
@pytest.mark.parametrize(
    "stores",
    [
        *([(ENTRY, STACK - 0x1000 | rights)] for rights in (7, 5, 3, 0x67, 0x27, 6)),
        *([(ENTRY + 4, high)] for high in (1, 1 << 4, 1 << 8, 1 << 20, 1 << 31)),
        *([(WIDE + 0x1004, high)] for high in (1, 1 << 8, 1 << 31)),
        *([(WIDE + 0x1000, entry)] for entry in (0x87, 0x83, 0x85, 0x2087, WIDE + 0x2000 | 5, WIDE + 0x2000)),
        *([(WIDE, pointer)] for pointer in (0, WIDE + 0x1000, WIDE + 0x1000 | 0xE1)),
        [(WIDE + 4, 1 << 31)],
        [],
    ],
    ids=lambda stores: ",".join(f"{at:x}={value:x}" for at, value in stores),
)
def test_wide_tables(stores, no_execute):
    guest = ready()
    wide(guest)
    guest.cpu.efer = 0x800 if no_execute else 0
    for at, value in stores:
        guest.memory.put_u32(at, value)
    done = compare(guest, guest.machine.delivery, INT, in_c=True)
    assert done or stores


def test_a_frame_on_a_page_of_code_is_left_to_python():
    """Its translations have to be dropped."""
    guest = Guest(f"mov esp,{CODE + 0x20} | int 0x30 | h: hlt", {0x30: "h"})
    guest.run()
    assert not compare(guest, guest.machine.delivery, INT, in_c=True)
    guest.cpu.esp = STACK
    assert compare(guest, guest.machine.delivery, INT, in_c=True)
