# SPDX-License-Identifier: GPL-2.0-only
"""Measure the machine against QEMU: loops of one kind of instruction, and boots of real kernels.

    python bench/machine.py [--gnumach FILE] [--linux VMLINUZ --initrd FILE --until TEXT] [--json OUT]

The judge is ``qemu-system-i386`` without hardware acceleration. Both sides take turns within each round, and
each figure is the median over the rounds; wall times are this computer's and only their ratios within one
call mean anything. A loop is measured as the time of a long run less that of a short one, so that starting
up counts for neither side. A boot counts from the start of the process to a text on the serial console,
firmware included on QEMU's side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import qemu
import unicorn

from vmi.native.machine import Outcome
from vmi.rom.assemble import assemble
from vmi.run import run_kernel

SHORT, LONG = 1, 11  # a loop's two lengths, in units
MEMORY = 64 << 20
PEAKS: list[int] = []  # MiB of this computer's memory, for each boot of ours

HEAD = """
header:
  .long 0x1BADB002
  .long 0x00010000
  .long {checksum}
  .long header
  .long header
  .long 0
  .long 0
  .long start
gdt:
  .long 0
  .long 0
  .long 0x0000ffff
  .long 0x00cf9b00
  .long 0x0000ffff
  .long 0x00cf9300
gdt_pointer:
  .word 23
  .long gdt
idt_pointer:
  .word 0x7ff
  .long 0x200000
start:
  mov esp,0x300000
  lgdt [{gdt_pointer}]
  mov ax,0x10
  mov ds,ax
  mov es,ax
  mov ss,ax
"""
TAIL = """
  mov al,0x10
  out 0xf4,al
hang: jmp hang
"""

#: name -> (repetitions in one unit, source; ECX counts the repetitions)
LOOPS = {
    "register arithmetic": (4_000_000, "again: add eax,ecx\nxor ebx,eax\nrol ebx,3\ndec ecx\njnz again"),
    "stores": (
        2_000_000,
        "mov edi,0x400000\nagain: mov [edi],eax\nadd edi,4\nand edi,0x40ffff\ndec ecx\njnz again",
    ),
    "calls": (1_500_000, "jmp again\nsub: ret\nagain: call sub\ndec ecx\njnz again"),
    "int and iret": (
        6_000,
        "mov eax,{handler}\nmov [0x200200],ax\nmov word ptr [0x200202],8\nmov word ptr [0x200204],0x8e00\n"
        "shr eax,16\nmov [0x200206],ax\nlidt [{idt_pointer}]\njmp far_code\n"
        "handler: iretd\nfar_code: again: int 0x40\ndec ecx\njnz again",
    ),
    "port writes": (40_000, "again: out 0x80,al\ndec ecx\njnz again"),
    "port reads": (40_000, "again: in al,0x61\ndec ecx\njnz again"),
}


def loop(name: str, units: int) -> bytes:
    """A multiboot image that runs a loop and ends through the debug-exit port."""
    repetitions, source = LOOPS[name]
    code = f"{HEAD}  mov ecx,{repetitions * units}\n{source}{TAIL}".replace(
        "far_code: again:", "far_code:\nagain:"
    )
    checksum = -(0x1BADB002 + 0x00010000) & 0xFFFFFFFF
    return assemble(code, 0x100000, {"checksum": checksum}).code


def ours(image: bytes) -> float:
    """Seconds that our machine runs an image."""
    result = run_kernel(image, memory=MEMORY)
    if result.outcome is not Outcome.DEBUG_EXIT:
        raise SystemExit(f"a loop did not end: {result.reason}")
    return result.wall_s


def theirs(image: bytes, folder: Path) -> float:
    """Seconds of a whole QEMU process that runs an image."""
    kernel = folder / "kernel"
    kernel.write_bytes(image)
    exit_port = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4")
    started = time.perf_counter()
    command = [*qemu.COMMAND, "-M", "isapc", "-m", str(MEMORY >> 20), *exit_port, "-kernel", str(kernel)]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode != 33:
        raise SystemExit(f"QEMU ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return time.perf_counter() - started


def boot_theirs(kernel: Path, append: str, initrd: Path | None, until: bytes) -> float:
    """Seconds from QEMU's start to a text on the serial console."""
    more = ["-initrd", str(initrd)] if initrd is not None else []
    return qemu.boot("pc", kernel, append, until, MEMORY, more)


def boot_ours(kernel: Path, append: str, initrd: Path | None, until: bytes) -> float:
    """Seconds of our whole process that boots the same, in a process of its own as QEMU has."""
    command = [sys.executable, "-m", "vmi", "run", str(kernel), "-m", str(MEMORY >> 20), "--append", append]
    command += ["--initrd", str(initrd)] if initrd is not None else []
    command += ["--until", until.decode(), "--serial", "none", "--timeout", "none", "-q"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    PEAKS.append(usage.ru_maxrss // 1024)
    return time.perf_counter() - started


def in_turns(sides: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """The median of each side's figures."""
    figures: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, found in zip(sides, figures, strict=True):
            found.append(side())
    return [statistics.median(found) for found in figures]


def main() -> None:
    """Run the measurement."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--gnumach", type=Path)
    options.add_argument("--linux", type=Path)
    options.add_argument("--initrd", type=Path)
    options.add_argument("--append", default="console=ttyS0 cryptomgr.notests")
    options.add_argument("--until", default="# ")
    options.add_argument("--json", type=Path)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    if shutil.which(qemu.NAME) is None:
        options.error("qemu-system-i386 is not installed")
    rows: list[dict[str, object]] = []

    def row(name: str, mine: float, other: float) -> None:
        rows.append({"workload": name, "ours_s": mine, "qemu_s": other, "ratio": mine / other})
        print(f"{name:22} {mine:9.3f} s {other:9.3f} s {mine / other:8.1f} x", flush=True)

    asked = subprocess.run([qemu.NAME, "--version"], capture_output=True, text=True, check=True)
    version = asked.stdout.split("\n")[0]
    machine = (
        f"{platform.machine()}, Python {platform.python_version()}, unicorn {unicorn.__version__}, {version}"
    )
    print(machine)
    print(f"{'workload':22} {'vmi':>11} {'QEMU':>11} {'ratio':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in LOOPS:
            short, long = loop(kind, SHORT), loop(kind, LONG)

            def mine(short: bytes = short, long: bytes = long) -> float:
                return ours(long) - ours(short)

            def other(short: bytes = short, long: bytes = long) -> float:
                return theirs(long, folder) - theirs(short, folder)

            row(kind, *in_turns((mine, other), given.rounds))
        for kernel, title, append, initrd, until in (
            (given.gnumach, "GNU Mach to its panic", "console=com0", None, b"panic"),
            (given.linux, "Linux to its shell", given.append, given.initrd, given.until.encode()),
        ):
            if kernel is None:
                continue

            def ours_boots(k=kernel, a=append, i=initrd, u=until) -> float:  # type: ignore[no-untyped-def]
                return boot_ours(k, a, i, u)

            def theirs_boots(k=kernel, a=append, i=initrd, u=until) -> float:  # type: ignore[no-untyped-def]
                return boot_theirs(k, a, i, u)

            row(title, *in_turns((ours_boots, theirs_boots), given.rounds))
    peak = max(PEAKS, default=0)
    if peak:
        print(f"most memory that a boot took here, guests having {MEMORY >> 20} MiB: {peak} MiB")
    if given.json is not None:
        given.json.write_text(
            json.dumps({"machine": machine, "rows": rows, "peak_mib": peak}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
