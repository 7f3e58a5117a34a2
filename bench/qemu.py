# SPDX-License-Identifier: GPL-2.0-only
"""QEMU without hardware acceleration, as all measurements start it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

NAME = "qemu-system-i386"
COMMAND = (NAME, "-cpu", "qemu32", "-nodefaults", "-display", "none", "-no-reboot", "-monitor", "none")


def boot(
    machine: str, kernel: Path, append: str, until: bytes, memory: int, more: Sequence[str] = ()
) -> float:
    """Seconds from QEMU's start to a text on the serial console; ends the program if it never comes."""
    return boot_times(machine, kernel, append, until, memory, more)[0]


def boot_times(
    machine: str, kernel: Path, append: str, until: bytes, memory: int, more: Sequence[str] = ()
) -> tuple[float, float]:
    """As :func:`boot`: seconds on the wall, and of processors."""
    with tempfile.TemporaryDirectory() as folder:
        serial = Path(folder) / "serial"
        serial.touch()
        what = ("-M", machine, "-m", str(memory >> 20), "-kernel", str(kernel), "-append", append)
        started = time.perf_counter()
        with subprocess.Popen([*COMMAND, *what, *more, "-serial", f"file:{serial}"]) as process:
            while until not in serial.read_bytes():
                if process.poll() is not None:
                    raise SystemExit(f"QEMU ended with {process.returncode} before it showed {until!r}")
                time.sleep(0.005)
            passed = time.perf_counter() - started
            process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    return passed, usage.ru_utime + usage.ru_stime
