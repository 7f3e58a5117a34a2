# SPDX-License-Identifier: GPL-2.0-only
"""De-privileged, too, events that the accelerator delivers end where Python's long way ends."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.hypervisor.test_ways import INT, lab
from tests.native.accelerator import accelerated
from tests.native.entries import STEPS, Change, compare
from tests.native.guest import CODE0, DATA0, KERNEL_STACK
from vmi.native.interrupts import Event, Origin
from vmi.rom.flavours import vmware

pytestmark = accelerated.only


def same(made, event):
    return compare(made, made.domain._delivery, event, made.domain.rom.save_words, in_c=True)


@pytest.mark.parametrize("mode", ["full", "paravirt"])
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_c_and_python_agree(mode, steps):
    made = lab(mode, "direct")
    for changes, event in steps:
        for change in changes:
            if change.what not in ("paging", "line_20"):
                change.make(made)
        same(made, event)


@pytest.mark.parametrize("mode", ["full", "paravirt"])
@pytest.mark.parametrize("ring", [1, 3])
def test_the_usual_ones_are_done_in_c(mode, ring):
    made = lab(mode, "direct")
    Change("ring", (ring, True, 0)).make(made)
    for event in (INT, Event(14, Origin.EXCEPTION, 4, 0x5678), Event(0x30, Origin.EXTERNAL)):
        before = made.cpu.freeze()
        assert same(made, event)
        assert made.cpu.segment(1).selector == CODE0 | 1
        made.cpu.thaw(before)


def test_a_stack_that_the_kernel_gave_replaces_the_one_of_its_task():
    made = lab("paravirt", "direct")
    Change("ring", (3, True, 0)).make(made)
    before = made.cpu.freeze()
    for esp in (None, 0x7000, 0x7800, None):
        made.set_word(vmware.KERNEL_SS, 0 if esp is None else DATA0 | vmware.KERNEL_SS_GIVEN)
        made.set_word(vmware.KERNEL_ESP, esp or 0)
        assert same(made, INT)
        assert made.cpu.esp == (esp or KERNEL_STACK) - 20
        made.cpu.thaw(before)


def test_shadow_tables_are_left_to_python():
    made = lab("full", "shadow")
    assert not same(made, INT)
