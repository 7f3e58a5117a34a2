# SPDX-License-Identifier: GPL-2.0-only
"""Measure what paravirtualization gains: exits, instructions and time of each workload, in every mode.

    python bench/hypervisor.py [--kernel FILE [--original FILE] [--append TEXT] [--initrd FILE] [--until TEXT]
                                [--lines REGEX] [-m SIZE] [--cpu MODEL] [--smp N] [--mmu STRATEGY] [--qemu]]
                               [--rounds N] [--json OUT]

Without ``--kernel`` the sample kernel ``workloads`` is measured, each kind by itself, and page-table
updates by calls, in lazy modes and not, with both strategies of the hypervisor's MMU. With it, one kernel
of the user's: ``FILE`` is patched, or a client of the interface by itself, and ``--original`` is what mode
full runs (else ``FILE`` itself, if it is not patched). Each mode must show the same console; of a kernel
that says there what it runs on, ``--lines`` names the lines that count. What counts are the exits that
de-privileging costs, hypercalls and traps; they are exact. Wall times are this computer's and are compared
within one call only: the modes take turns, and each figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import client
import qemu
import unicorn

import vmi
from vmi import samples
from vmi.cli import values
from vmi.errors import BadInput
from vmi.hypervisor.mmu import DEFAULT, STRATEGIES
from vmi.patcher import inspect_file
from vmi.run import RunResult, Setup, run

SAMPLE = "workloads"
KINDS = ("flags", "returns", "system-calls", "faults", "updates", "context-switches", "forks")


@dataclass(frozen=True)
class Workload:
    """One thing to run in several modes, up to a text on the console if there is one to wait for."""

    name: str
    setups: Mapping[str, Setup]
    until: bytes | None = None
    lines: str = ""

    def shown(self, result: RunResult) -> list[bytes]:
        """The lines of the console that must be the same in all modes."""
        return [line for line in result.console.splitlines() if re.search(self.lines.encode(), line)]


def measured(workload: Workload, rounds: int) -> dict[str, tuple[RunResult, float]]:
    """Each mode's run and the median of its wall times; the runs of a mode must be the same."""
    runs: dict[str, list[RunResult]] = {mode: [] for mode in workload.setups}
    for _ in range(rounds):
        for mode, setup in workload.setups.items():
            runs[mode].append(run(setup, timeout_ns=None, until=workload.until))
    for mode, results in runs.items():
        same = {(r.instructions, r.console, tuple(r.exits.items())) for r in results}
        if len(same) != 1:
            raise SystemExit(f"two runs of {workload.name} in mode {mode} were not the same")
    return {
        mode: (results[0], statistics.median(r.wall_s for r in results)) for mode, results in runs.items()
    }


def row(workload: Workload, found: Mapping[str, tuple[RunResult, float]]) -> dict[str, object]:
    """What one workload came to."""
    name = workload.name
    first, first_s = next(iter(found.values()))
    result: dict[str, object] = {"workload": name}
    for mode, (one, wall) in found.items():
        if (workload.shown(one), one.exit_status) != (workload.shown(first), first.exit_status):
            raise SystemExit(f"the console of {name} in mode {mode} is not that of the first mode")
        result[mode] = {
            "price": one.price,
            "exits": sum(one.exits.values()),
            "instructions": one.instructions,
            "instruction_ratio": round(one.instructions / first.instructions, 4),
            "wall_s": round(wall, 3),
            "wall_ratio": round(wall / first_s, 3),
            "calls": one.calls,
        }
    return result


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """The figures as text."""
    lines = [
        f"{'workload':18} {'mode':12} {'hypercalls, traps':>17} {'all exits':>10} {'instructions':>14} "
        f"{'ratio':>6} {'wall s':>7} {'ratio':>6}"
    ]
    for one in rows:
        name = str(one["workload"])
        for mode, figures in one.items():
            if isinstance(figures, dict):
                lines.append(
                    f"{name:18} {mode:12} {figures['price']:17,} {figures['exits']:10,} "
                    f"{figures['instructions']:14,} {figures['instruction_ratio']:6.3f} "
                    f"{figures['wall_s']:7.2f} {figures['wall_ratio']:6.2f}"
                )
                name = ""
    return "\n".join(lines)


def sample_workloads() -> list[Workload]:
    """Each kind of the sample kernel by itself."""
    plain = samples.get(SAMPLE).path.read_bytes()
    annotated = samples.get(f"{SAMPLE}-annotated").path.read_bytes()
    rom = vmi.build_rom("vmware").image
    patched, marked = vmi.patch(plain).data, vmi.patch(annotated).data
    return [
        Workload(
            kind,
            {
                "native": Setup(patched, append=kind),
                "paravirt": Setup(patched, append=kind, rom=rom),
                "annotated": Setup(marked, append=kind, rom=rom),
                "full": Setup(plain, append=kind, full=True),
            },
        )
        for kind in KINDS
    ] + [
        Workload(
            "10000 SetPxE",
            {
                mmu + (", lazy" if lazy else ""): Setup(client.image(lazy=lazy), rom=rom, mmu=mmu)
                for mmu in ("direct", "shadow")
                for lazy in (False, True)
            },
        )
    ]


def own_workload(given: argparse.Namespace) -> Workload:
    """The user's kernel."""
    kernel = given.kernel.read_bytes()
    full = given.original.read_bytes() if given.original else kernel
    common = {
        "memory": values.memory_size(given.memory),
        "append": given.append,
        "modules": [values.module(one) for one in given.initrd],
        "model": values.cpu(given.cpu),
        "cpus": given.smp,
    }
    setups = {
        "native": Setup(kernel, **common),
        "paravirt": Setup(kernel, rom=vmi.build_rom("vmware").image, mmu=given.mmu, **common),
    }
    if given.original or not is_patched(kernel):
        setups["full"] = Setup(full, full=True, mmu=given.mmu, **common)
    until = given.until.encode() if given.until else None
    return Workload(given.kernel.name, setups, until, given.lines)


def is_patched(kernel: bytes) -> bool:
    """Whether there is something of the patcher's in a file; it has not touched what it can't read."""
    try:
        return inspect_file(kernel).patched
    except BadInput:
        return False


def main() -> None:
    """Run the measurement."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--kernel", type=Path)
    options.add_argument("--original", type=Path)
    options.add_argument("--append", default="")
    options.add_argument("--initrd", action="append", default=[])
    options.add_argument("--until")
    options.add_argument("-m", "--memory", default="64M")
    options.add_argument("--cpu")
    options.add_argument("--smp", type=int, default=1)
    options.add_argument("--mmu", choices=STRATEGIES, default=DEFAULT)
    options.add_argument("--lines", default="", help="compare only what this is found in")
    options.add_argument("--qemu", action="store_true", help="the same kernel under qemu-system-i386 too")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    if given.qemu and not (given.kernel and given.until and shutil.which(qemu.NAME)):
        options.error("--qemu needs --kernel, --until and an installed qemu-system-i386")
    rows = []
    for workload in [own_workload(given)] if given.kernel else sample_workloads():
        print(f"running {workload.name} ...", file=sys.stderr)
        rows.append(row(workload, measured(workload, given.rounds)))
    print(f"{platform.machine()}, Python {platform.python_version()}, unicorn {unicorn.__version__}")
    print(table(rows))
    if given.qemu:
        more = [argument for one in given.initrd for argument in ("-initrd", one)]
        more += ["-smp", f"{given.smp},sockets={given.smp}"]
        memory = values.memory_size(given.memory)
        until = given.until.encode()
        walls = [
            qemu.boot("pc", given.original or given.kernel, given.append, until, memory, more)
            for _ in range(given.rounds)
        ]
        wall = statistics.median(walls)
        (native,) = (one["native"] for one in rows)
        assert isinstance(native, dict)
        print(f"{'QEMU':28} {wall:.2f} s, with its firmware; native here {native['wall_s'] / wall:.2f} of it")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
