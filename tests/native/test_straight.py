# SPDX-License-Identifier: GPL-2.0-only
"""Events that the accelerator delivers end where Python's long way ends, and leave the same behind."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.native.accelerator import accelerated
from tests.native.entries import STEPS, Change, compare, prepare
from tests.native.guest import KERNEL_STACK, STACK, Guest
from vmi.native.interrupts import Event, Origin

INT = Event(0x30, Origin.SOFTWARE, length=2)
pytestmark = accelerated.only


def ready() -> Guest:
    guest = Guest("nop")
    prepare(guest)
    return guest


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
