# SPDX-License-Identifier: GPL-2.0-only
"""De-privileged, too, events that the accelerator delivers end where Python's long way ends."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.hypervisor.test_ways import INT, lab, takes_the_given_stack, takes_the_usual
from tests.native.accelerator import accelerated
from tests.native.entries import STEPS, compare

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
    takes_the_usual(made, ring, same)


def test_a_stack_that_the_kernel_gave_replaces_the_one_of_its_task():
    takes_the_given_stack(same)


def test_shadow_tables_are_left_to_python():
    made = lab("full", "shadow")
    assert not same(made, INT)
