# SPDX-License-Identifier: GPL-2.0-only
"""A guest that damages what it shares with the hypervisor, or anything else, harms itself only."""

from __future__ import annotations

import pytest

from tests import seeds
from tests.hypervisor import hostile
from vmi.native.machine import Outcome

SEEDS = 300


def test_hostile_guests_come_to_an_end() -> None:
    counts = seeds.outcomes("tests.hypervisor.hostile", 0, SEEDS, 250)
    assert counts[Outcome.TIMEOUT] > 20 and counts[Outcome.TRIPLE_FAULT] > 20, counts


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_one_run(seed: int) -> None:
    assert hostile.run(seed) == hostile.run(seed)
