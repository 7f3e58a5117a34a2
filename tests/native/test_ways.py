# SPDX-License-Identifier: GPL-2.0-only
"""Events that are delivered by ways found before end where the long way ends, and leave the same behind."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.native.entries import STEPS, Change, compare, prepare
from tests.native.guest import CODE, CODE0, DATA0, IDT, KERNEL_STACK, PAGES, STACK, Guest
from vmi.native.interrupts import Event, Origin

INT = Event(0x30, Origin.SOFTWARE, length=2)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_quick_and_long_way_agree(steps):
    guest = Guest("nop")
    prepare(guest)
    for changes, event in steps:
        for change in changes:
            change.make(guest)
        compare(guest, guest.machine.delivery, event)


def ready() -> Guest:
    guest = Guest("nop")
    prepare(guest)
    return guest


@pytest.mark.parametrize("event", [INT, Event(14, Origin.EXCEPTION, 2, 0x1234), Event(0x30, Origin.EXTERNAL)])
@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("paging", [False, True])
def test_the_usual_ways_are_quick(event, ring, paging):
    guest = ready()
    Change("paging", (paging, True)).make(guest)
    Change("ring", (ring, True, 0)).make(guest)
    assert compare(guest, guest.machine.delivery, event)
    assert guest.cpu.esp == (STACK if ring == 0 else KERNEL_STACK) - 4 * (
        3 + (event.vector == 14) + 2 * (ring == 3)
    )


@pytest.mark.parametrize(
    "change",
    [
        Change("gate", (0x30, CODE0, 0x8E, 0x40)),
        Change("gate", (0x30, CODE0, 0x86, 0)),
        Change("segment", (CODE0, 0x10, 0x9A, 0xC)),
        Change("segment", (CODE0, 0, 0x1A, 0xC)),
        Change("segment", (DATA0, 0x10, 0x92, 0xC)),
        Change("segment", (DATA0, 0, 0x90, 0xC)),
        Change("task", (0x7000, DATA0)),
        Change("task", (KERNEL_STACK, 0)),
        Change("register_of_task", (7, 9)),
        Change("tables", (4, 0x7FF, 0xFFF)),
        Change("tables", (0, 0x6F, 0xFFF)),
        Change("entry", ((KERNEL_STACK - 4) >> 12, 5)),
        Change("entry", ((KERNEL_STACK - 4) >> 12, 0)),
        Change("entry", (IDT >> 12, 0)),
        Change("directory", (0,)),
        Change("paging", (False, True)),
        Change("line_20", (False,)),
    ],
    ids=lambda change: f"{change.what}{change.to}",
)
def test_nothing_found_before_counts_after_a_change(change):
    """From user code, whose entry depends on most; a way and its stack are known already."""
    guest = ready()
    Change("paging", (True, True)).make(guest)
    Change("ring", (3, True, 0)).make(guest)
    before = guest.cpu.freeze()
    assert compare(guest, guest.machine.delivery, INT)
    guest.cpu.thaw(before)
    change.make(guest)
    compare(guest, guest.machine.delivery, INT)


def test_a_frame_on_a_page_of_code_has_its_translations_dropped():
    guest = Guest(f"mov esp,{CODE + 0x20} | int 0x30 | h: hlt", {0x30: "h"})
    guest.run()
    assert not compare(guest, guest.machine.delivery, INT)


def test_accessed_and_dirty_bits_are_those_of_the_long_way():
    guest = ready()
    Change("paging", (True, True)).make(guest)
    entry = PAGES + 0x1000 + 4 * ((STACK - 4) >> 12)
    for _ in range(2):
        assert compare(guest, guest.machine.delivery, INT)
        assert guest.u32(entry) & 0x60 == 0x60
        guest.memory.put_u32(entry, guest.u32(entry) & ~0x60)
