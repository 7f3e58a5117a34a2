# SPDX-License-Identifier: GPL-2.0-only
"""A guest that damages what it shares with the hypervisor, or anything else, harms itself only."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.hypervisor import hostile
from vmi.native.machine import Outcome

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 300


def test_hostile_guests_come_to_an_end() -> None:
    """In a process of its own: what is looked for includes crashes of the emulator, and endless loops."""
    command = [sys.executable, "-m", "tests.hypervisor.hostile", "0", str(SEEDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    lines = done.stdout.splitlines()
    last = lines[-1] if lines else "none"
    assert done.returncode == 0, f"seed {last}: {done.stderr[-2000:]}"
    seeds, outcomes = zip(*(line.split() for line in lines), strict=True)
    assert [int(seed) for seed in seeds] == list(range(SEEDS))
    counts = Counter(Outcome(outcome) for outcome in outcomes)
    assert counts[Outcome.TIMEOUT] > 20 and counts[Outcome.TRIPLE_FAULT] > 20, counts


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_one_run(seed: int) -> None:
    assert hostile.run(seed) == hostile.run(seed)
