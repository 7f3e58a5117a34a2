# SPDX-License-Identifier: GPL-2.0-only
"""Measure one kernel: patch it, run it in every mode in turn, and print what each cost.

    python bench/kernel.py KERNEL [--append TEXT] [--until TEXT] [--qemu] [--rounds N]

Modes take turns within each round, and each figure is the median over the rounds; wall times are this
computer's and only their ratios within one call mean anything. ``--qemu`` adds the unpatched kernel under
``qemu-system-i386`` (software emulation), from its start to the same text on the serial console.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import tempfile
from pathlib import Path

import qemu
import unicorn

import vmi
from vmi.native.boot.multiboot import unpack
from vmi.run import RunResult

MODES = ("unpatched", "native", "paravirt", "full")


def main() -> None:
    """Run the measurement."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("kernel", type=Path)
    options.add_argument("--append", default="")
    options.add_argument("--until")
    options.add_argument("--qemu", action="store_true")
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    if given.qemu and not (given.until and shutil.which(qemu.NAME)):
        options.error("--qemu needs --until and an installed qemu-system-i386")
    memory = 64 << 20
    original = unpack(given.kernel.read_bytes())
    patched = vmi.patch(original)
    until = given.until.encode() if given.until else None
    rom = vmi.build_rom("vmware").image

    def run(mode: str) -> RunResult:
        return vmi.run_kernel(
            original if mode in ("unpatched", "full") else patched.data,
            rom=rom if mode == "paravirt" else None,
            full=mode == "full",
            append=given.append,
            until=until,
            memory=memory,
        )

    patching = [sum(vmi.patch(original).seconds.values()) for _ in range(given.rounds)]
    results: dict[str, list[RunResult]] = {mode: [] for mode in MODES}
    qemu_times: list[float] = []
    for _ in range(given.rounds):
        for mode in MODES:
            results[mode].append(run(mode))
        if given.qemu and until:
            with tempfile.NamedTemporaryFile() as file:
                file.write(original)
                file.flush()
                qemu_times.append(qemu.boot("isapc", Path(file.name), given.append, until, memory))

    print(f"{platform.machine()}, Python {platform.python_version()}, unicorn {unicorn.__version__}")
    print(patched.report.to_text())
    print(f"patching: {statistics.median(patching):.2f} s (median of {given.rounds})")
    base = statistics.median(r.wall_s for r in results["unpatched"])
    print(f"{'mode':10} {'instructions':>14} {'exits':>9} {'VMI calls':>9} {'wall s':>7} {'ratio':>6}")
    for mode, runs in results.items():
        first = runs[0]
        same = (first.instructions, first.console, first.exits)
        if any((r.instructions, r.console, r.exits) != same for r in runs):
            raise SystemExit(f"two runs in mode {mode} were not the same")
        wall = statistics.median(r.wall_s for r in runs)
        exits, calls = sum(first.exits.values()), sum(first.calls.values())
        print(f"{mode:10} {first.instructions:14,} {exits:9,} {calls:9,} {wall:7.2f} {wall / base:6.2f}")
    if qemu_times:
        wall = statistics.median(qemu_times)
        print(f"{'QEMU':10} {'':14} {'':9} {'':9} {wall:7.2f} {wall / base:6.2f}")
    for mode, runs in results.items():
        print(f"{mode}: " + ", ".join(f"{name} {count:,}" for name, count in runs[0].exits.items()))


if __name__ == "__main__":
    main()
