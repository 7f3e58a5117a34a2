# SPDX-License-Identifier: GPL-2.0-only
"""Measure `vmi fuzz`: sequences a second on one processor, with the accelerator, if it is there, and without.

    python bench/fuzz.py [--count N] [--rounds N] [--json OUT]

A sequence counts whole: made from its seed, run on the ROM's guest and on the bare machine, both brought
back to their beginning, and compared. Seconds are those of the processor. Each environment is measured in a
process of its own, in rounds of N sequences; the figure is that of the fastest round, since whatever else the
computer does can only add to it, and the median says how far that goes.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import sides
from figures import Side

from vmi.conformance.findings import oracle
from vmi.conformance.fuzz import Fuzzer
from vmi.conformance.layout import Paging
from vmi.conformance.subject import Environment
from vmi.conformance.suite import MMUS, Target
from vmi.rom.build import build

_WARM = 200  # sequences before the first that counts


def rounds(environment: Environment, count: int, times: int) -> list[float]:
    """Seconds for a sequence, round by round."""
    fuzzer = Fuzzer.against(Target("vmware", build("vmware").image), oracle(), environment)
    for seed in range(_WARM):
        fuzzer.seed(seed)
    gc.collect()
    gc.freeze()
    found = []
    for number in range(times):
        first = _WARM + number * count
        begun = time.process_time()
        for seed in range(first, first + count):
            fuzzer.seed(seed)
        found.append((time.process_time() - begun) / count)
    return found


def measured(environment: Environment, side: Side, count: int, times: int) -> list[float]:
    """The same, in a process with or without the accelerator."""
    command = [sys.executable, __file__, "--count", str(count), "--rounds", str(times)]
    command += ["--measure", environment.paging.value, environment.mmu]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=sides.environment(side))
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def row(environment: Environment, accelerated: bool, seconds: list[float]) -> dict[str, object]:
    """One line of the table."""
    return {
        "paging": environment.paging.value,
        "mmu": environment.mmu,
        "accelerated": accelerated,
        "best": round(1 / min(seconds)),
        "median": round(1 / statistics.median(seconds)),
    }


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--count", type=int, default=300, help="sequences of a round")
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--json", type=Path)
    options.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # paging and MMU, in this process
    given = options.parse_args()
    if given.measure:
        paging, mmu = given.measure
        print(json.dumps(rounds(Environment(Paging(paging), mmu), given.count, given.rounds)))
        return
    rows = []
    print("sequences a second, best and median of the rounds")
    for side in sides.available():
        accelerated = side is Side.ACCELERATED
        for environment in (Environment(paging, mmu) for paging in Paging for mmu in MMUS):
            seconds = measured(environment, side, given.count, given.rounds)
            rows.append(row(environment, accelerated, seconds))
            kind = "accelerated" if accelerated else "pure Python"
            print(f"{kind}  {environment!s:<16} {rows[-1]['best']:>6} {rows[-1]['median']:>6}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
