# SPDX-License-Identifier: GPL-2.0-only
"""Measure the engine, with and without its C part, against QEMU: loops, round trips, boots, restores, start.

    python bench/engine.py [--gnumach FILE] [--linux VMLINUZ --initrd FILE [--append TEXT] [--until TEXT]]
                           [--paravirt VMLINUZ] [--client FILE [--client-append TEXT] [--client-initrd FILE]
                           [--client-until TEXT] [--client-memory MIB]] [--rounds N] [--only TEXT]
                           [--processor-time] [--markdown] [--json OUT]

The judge is ``qemu-system-i386`` without hardware acceleration. All sides take turns within each round, and
each figure is the median over the rounds: only ratios within one call mean anything. On a computer that does
other things too, ``--processor-time`` counts the seconds of processors instead of those on the wall.

A loop's figure is that of one turn of it: the time of a long run less that of a short one, so that starting
up counts for neither side. A boot counts from the start of the process to a text on the serial console, with
the firmware on QEMU's side. ``--paravirt`` is the Linux once more, patched, natively and on the ROM;
``--client`` is a kernel that speaks the interface by itself. A target is a multiple of QEMU's figure or,
where it says so, of the native run's, or an absolute time.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import figures
import guests
import qemu
import sides
from figures import Figure, Side, Target
from sides import Boot

_LOOP_TARGETS = {
    "register arithmetic": Target(1.6),
    "loads": Target(1.6),
    "stores": Target(2.5),
    "calls and returns": Target(2.0),
    "INT and IRET": Target(1.0, 12),
    "page fault and IRET": Target(1.0, 12),
}
_CALL_OUTS = {"SetCR3": Target(0.6e-6, 3e-6, of=""), "GetWallclockTime": Target(2e-6, 3e-6, of="")}
_NO_TARGET = Target()


def wanted(given: argparse.Namespace) -> list[Figure]:
    """All that can be measured with what was given."""
    found = []
    if given.linux:
        boot = Boot(given.linux, given.append, given.initrd, given.until)
        found.append(Figure("Linux to its shell", Target(1.5, 8), sides.boot(boot), sides.boot_qemu(boot)))
    if given.gnumach:
        boot = Boot(given.gnumach, "console=com0", None, "panic")
        found.append(Figure("GNU Mach to its panic", Target(1.2, 4), sides.boot(boot), sides.boot_qemu(boot)))
    if given.client:
        memory = given.client_memory << 20
        boot = Boot(given.client, given.client_append, given.client_initrd, given.client_until, memory)
        judge = sides.boot_qemu(boot)
        found.append(Figure("VMI client, natively", Target(0.8, 2.5), sides.boot(boot), judge))
        found.append(Figure("VMI client, on the ROM", Target(0.9, 3), sides.boot(boot, rom=True), judge))
    if given.paravirt:
        boot = Boot(given.paravirt, given.append, given.initrd, given.until)
        native = sides.boot(boot)
        target = Target(1.1, 1.4, of="native")
        found.append(Figure("patched Linux, on the ROM", target, sides.boot(boot, rom=True), native=native))
    for loop in guests.LOOPS:
        target = _LOOP_TARGETS.get(loop.name, _NO_TARGET)
        found.append(Figure(loop.name, target, sides.loop(loop), sides.loop_qemu(loop)))
    for name, target in _CALL_OUTS.items():
        found.append(Figure(f"call-out and back: {name}", target, sides.call_out(name)))
    found += [
        Figure("restore, 100 dirty pages of 64 MiB", Target(1e-3, of=""), sides.restore),
        Figure("start-up: vmi run sample:hello", Target(0.5, 0.5, of=""), sides.start_up, sides.hello_qemu),
    ]
    return [one for one in found if given.only in one.name]


def about(available: Sequence[Side]) -> str:
    """Machine and versions."""
    asked = subprocess.run([qemu.NAME, "--version"], capture_output=True, text=True, check=True)
    parts = [
        f"{platform.machine()}, {sides.processor()}",
        f"Python {platform.python_version()}",
        f"unicorn {metadata.version('unicorn')}",
        asked.stdout.split("\n")[0],
        "with and without accelerator" if Side.ACCELERATED in available else "no accelerator",
    ]
    return ", ".join(parts)


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--gnumach", type=Path)
    made.add_argument("--linux", type=Path)
    made.add_argument("--paravirt", type=Path, help="the same Linux, patched")
    made.add_argument("--initrd", type=Path)
    made.add_argument("--append", default="console=ttyS0 cryptomgr.notests")
    made.add_argument("--until", default="# ")
    made.add_argument("--client", type=Path, help="a kernel that speaks the interface by itself")
    made.add_argument("--client-initrd", type=Path)
    made.add_argument("--client-append", default="console=ttyS0")
    made.add_argument("--client-until", default="# ")
    made.add_argument("--client-memory", type=int, default=64, metavar="MIB")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--only", default="", help="just the figures with this in their name")
    made.add_argument("--processor-time", action="store_true")
    made.add_argument("--markdown", action="store_true")
    made.add_argument("--json", type=Path)
    made.add_argument("--measure", help=argparse.SUPPRESS)  # one figure of one side, in a process of its own
    return made


def main() -> None:
    """Run the measurement."""
    parser = options()
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(sides.measure_here(*json.loads(given.measure))))
        return
    if shutil.which(qemu.NAME) is None:
        parser.error("qemu-system-i386 is not installed")
    available = sides.available()
    machine = about(available)
    print(machine, flush=True)
    rows = []
    for figure in wanted(given):
        print(f"measuring {figure.name} ...", file=sys.stderr)
        rows.append(figure.row(available, given.rounds, statistics.median, cpu=given.processor_time))
    print(figures.markdown(rows) if given.markdown else figures.table(rows))
    if sides.PEAKS:
        print(f"most memory that a boot took here: {max(sides.PEAKS)} MiB")
    if given.json is not None:
        found = {
            "machine": machine,
            "seconds": "processors" if given.processor_time else "wall",
            "rows": [row.to_json() for row in rows],
            "peak_mib": max(sides.PEAKS, default=0),
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
