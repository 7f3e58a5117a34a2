# SPDX-License-Identifier: GPL-2.0-only
"""Measure patching: what becomes of each kernel's sites, how long it takes, what the output costs natively.

    python bench/patch.py KERNEL[,APPEND[,INITRD]]... [--until TEXT] [--rounds N] [--json FILE] [--run]

Each kernel is patched by the command in a process of its own (time and most memory are the system's count
for it; processor time tells more than real time on a computer that does other things too), ``rounds`` times;
the outputs must be equal. With ``--run`` the original and the patched file then
boot on our machine and, if it is installed, under QEMU, without a ROM, to the text on the serial console:
instructions are our machine's count, and the wall times are compared as ratios within this one run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import qemu
import sides

MEMORY = 128 << 20


def patch(kernel: Path, out: Path, report: Path) -> tuple[float, float, int]:
    """Seconds, processor seconds and most MiB of one run of the command."""
    command = [sys.executable, "-m", "vmi", "patch", str(kernel), "-o", str(out)]
    command += ["--report", str(report), "-q"]
    peaks: list[int] = []
    passed = sides.run_process(command, 0, sides.installed(), peaks)
    return passed.wall, passed.cpu, peaks[0]


def boot_ours(kernel: Path, append: str, initrd: Path | None, until: str) -> tuple[int, float]:
    """Instructions up to the text on our machine, and the seconds they took."""
    command = [sys.executable, "-m", "vmi", "run", str(kernel), "-m", str(MEMORY >> 20), "--append", append]
    command += ["--initrd", str(initrd)] if initrd is not None else []
    command += ["--until", until, "--serial", "none", "--timeout", "none", "--json", "-q"]
    done = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    facts = json.loads(done.stdout)
    return int(facts["instructions"]), float(facts["wall_s"])


def boot_theirs(kernel: Path, append: str, initrd: Path | None, until: str) -> float:
    """Seconds to the text under QEMU."""
    more = ["-initrd", str(initrd)] if initrd is not None else []
    return qemu.boot("pc", kernel, append, until.encode(), MEMORY, more)


def cost(
    original: Path, patched: Path, append: str, initrd: Path | None, until: str, rounds: int
) -> dict[str, float]:
    """What the patched file costs without a ROM, against the original, in turns."""
    files = {"original": original, "patched": patched}
    counts: dict[str, int] = {}
    ours: dict[str, list[float]] = {name: [] for name in files}
    theirs: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, file in files.items():
            counts[name], seconds = boot_ours(file, append, initrd, until)
            ours[name].append(seconds)
            if shutil.which(qemu.NAME):
                theirs[name].append(boot_theirs(file, append, initrd, until))
    found = {f"{name}_instructions": float(count) for name, count in counts.items()}
    found["instructions_ratio"] = counts["patched"] / counts["original"]
    for machine, times in (("ours", ours), ("qemu", theirs)):
        if times["original"]:
            first, second = (statistics.median(times[name]) for name in files)
            found |= {f"{machine}_original_s": first, f"{machine}_patched_s": second}
            found[f"{machine}_ratio"] = second / first
    return found


def measure(text: str, until: str, rounds: int, run: bool, folder: Path) -> dict[str, object]:
    """All figures of one kernel."""
    name, append, initrd = (*text.split(","), "", "")[:3]
    kernel, out, report = Path(name), folder / "out", folder / "report.json"
    runs, hashes = [], set()
    for _ in range(rounds):
        runs.append(patch(kernel, out, report))
        hashes.add(hashlib.sha256(out.read_bytes()).hexdigest())
    if len(hashes) != 1:
        raise SystemExit(f"{rounds} runs on {kernel} gave {len(hashes)} different outputs")
    before, after = kernel.stat().st_size, out.stat().st_size
    summary = json.loads(report.read_text())["summary"]
    found: dict[str, object] = {
        "kernel": kernel.name,
        "sha256": hashes.pop(),
        "summary": summary,
        "seconds": statistics.median(seconds for seconds, _, _ in runs),
        "processor_seconds": statistics.median(seconds for _, seconds, _ in runs),
        "peak_mib": max(peak for _, _, peak in runs),
        "growth": after / before - 1,
    }
    print(
        f"\n{kernel.name}: {found['seconds']:.1f} s ({found['processor_seconds']:.1f} s of processors),"
        f" at most {found['peak_mib']} MiB, file {found['growth']:+.2%}"
    )
    print(
        f"  {summary['sites']:,} sites, {summary['slots']:,} in slots ({summary['percent_of_all']} %;"
        f" {summary['percent_of_replaceable']}% of those that can be), {summary['windows']:,} windows"
    )
    for tactic, share in summary["by_tactic"].items():
        print(f"  {tactic:12} {share['count']:6,} {share['percent']:6.1f} %")
    if run:
        found["cost"] = cost(kernel, out, append, Path(initrd) if initrd else None, until, rounds)
        print(json.dumps(found["cost"], indent=1), flush=True)
    return found


def main() -> None:
    """Run the measurement."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("kernels", nargs="+", metavar="KERNEL[,APPEND[,INITRD]]")
    options.add_argument("--until", default="# ")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", type=Path)
    options.add_argument("--run", action="store_true")
    given = options.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(text, given.until, given.rounds, given.run, Path(folder)) for text in given.kernels]
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
