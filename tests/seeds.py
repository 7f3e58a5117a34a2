# SPDX-License-Identifier: GPL-2.0-only
"""Runs a program of random guests in a process of its own: it may crash the emulator, or go on for ever."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from vmi.native.machine import Outcome

ROOT = Path(__file__).resolve().parents[1]


def outcomes(module: str, first: int, count: int, timeout: float) -> Counter[Outcome]:
    """How the guests of so many seeds from ``first`` on end; AssertionError if one does not.

    :param module: prints a line with seed and outcome for each, told the first seed and how many.
    :param timeout: seconds for all of them.
    """
    command = [sys.executable, "-m", module, str(first), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"seed {lines[-1] if lines else first}: {done.stderr[-2000:]}"
    seeds, ends = zip(*(line.split() for line in lines), strict=True)
    assert [int(seed) for seed in seeds] == list(range(first, first + count))
    return Counter(Outcome(end) for end in ends)
