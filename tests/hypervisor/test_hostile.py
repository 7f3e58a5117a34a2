# SPDX-License-Identifier: GPL-2.0-only
"""A guest that damages what it shares with the hypervisor, or anything else, harms itself only."""

from __future__ import annotations

from random import Random
from unittest import mock

import pytest

from tests import seeds
from tests.hypervisor import hostile
from tests.native.accelerator import accelerated
from tests.native.straight_runs import seen
from vmi.native import accelerator
from vmi.native.machine import Outcome

SEEDS = 300


def test_hostile_guests_come_to_an_end() -> None:
    counts = seeds.outcomes("tests.hypervisor.hostile", 0, SEEDS, 250)
    assert counts[Outcome.TIMEOUT] > 20 and counts[Outcome.TRIPLE_FAULT] > 20, counts


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_one_run(seed: int) -> None:
    assert hostile.run(seed) == hostile.run(seed)


def stops(seed: int) -> list[object]:
    """What is to be seen at each stop of a seed's run, less memory."""
    lab, random, found = hostile.make(seed), Random(-seed - 1), []
    machine = lab.machine
    end = machine.run(random.randrange(1000))
    while end.outcome == "timeout" and machine.clock.now() < hostile.LIMIT_NS:
        found.append(seen(machine)[:-1])
        hostile.damage(random, lab)
        end = machine.run(random.choice((10, 100, 1000, 20_000)))
    return [*found, seen(machine)[:-1]]


@accelerated.only
@pytest.mark.parametrize("seed", [17, 90, 230, 406, 920])
def test_the_run_is_the_same_without_the_accelerator(seed: int) -> None:
    """Straight code on devices, a task left by IRET, and stores into a device and the store's own block."""
    found = stops(seed)
    with mock.patch.object(accelerator, "load", lambda: None):
        assert stops(seed) == found
