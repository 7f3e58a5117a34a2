# SPDX-License-Identifier: GPL-2.0-only
"""Several processors that mean harm to each other end within their virtual time, the same way each time."""

from __future__ import annotations

import pytest

from tests import seeds
from tests.hypervisor import hostile_processors as hostile
from vmi.native.machine import Outcome

SEEDS = 100


def test_hostile_guests_come_to_an_end() -> None:
    counts = seeds.outcomes("tests.hypervisor.hostile_processors", 0, SEEDS, 250)
    assert counts[Outcome.TIMEOUT] > 50 and len(counts) >= 3, counts


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_one_run(seed: int) -> None:
    first, second = hostile.make(seed).machine, hostile.make(seed).machine
    assert first.run(hostile.LIMIT_NS) == second.run(hostile.LIMIT_NS)
    assert first.memory.sha256() == second.memory.sha256()
    assert (first.instructions, first.exits) == (second.instructions, second.exits)


def test_the_seeds_reach_all_processors() -> None:
    switches = [_ended(seed).exits["processor switch"] for seed in range(40)]
    assert sum(count > 1 for count in switches) > 15, switches


def _ended(seed: int):  # type: ignore[no-untyped-def]
    machine = hostile.make(seed).machine
    machine.run(hostile.LIMIT_NS)
    return machine
