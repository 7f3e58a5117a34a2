# SPDX-License-Identifier: GPL-2.0-only
"""Several processors that mean harm to each other end within their virtual time, the same way each time."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.hypervisor import hostile_processors as hostile
from vmi.native.machine import Outcome

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 100


def test_hostile_guests_come_to_an_end() -> None:
    """In a process of its own: what is looked for includes crashes of the emulator, and endless loops."""
    command = [sys.executable, "-m", "tests.hypervisor.hostile_processors", "0", str(SEEDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    lines = done.stdout.splitlines()
    last = lines[-1] if lines else "none"
    assert done.returncode == 0, f"seed {last}: {done.stderr[-2000:]}"
    seeds, outcomes = zip(*(line.split() for line in lines), strict=True)
    assert [int(seed) for seed in seeds] == list(range(SEEDS))
    counts = Counter(Outcome(outcome) for outcome in outcomes)
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
