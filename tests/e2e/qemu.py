# SPDX-License-Identifier: GPL-2.0-only
"""Boot a kernel under QEMU until its serial console shows a text, and look into its memory then."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

NAME = "qemu-system-i386"
MACHINE = ("-M", "isapc", "-cpu", "qemu32", "-nodefaults", "-m", "64", "-display", "none", "-no-reboot")
PATIENCE = 120  # seconds of this computer's time; a guest that hangs must not hang the tests

needs_qemu = pytest.mark.skipif(shutil.which(NAME) is None, reason=f"{NAME} is not installed")


class Boot:
    """One boot: ``log`` is the serial console, ``words`` holds the dwords asked for, by physical address."""

    def __init__(self, folder: Path, kernel: Path, append: str, until: bytes, *more: str) -> None:
        self.serial = folder / f"{kernel.name}.serial"
        self.until = until
        self.command = [NAME, *MACHINE, "-kernel", str(kernel), "-append", append, *more]
        self.command += ["-serial", f"file:{self.serial}", "-monitor", "stdio"]
        self.log = b""
        self.words: dict[int, int] = {}

    def run(self, addresses: Sequence[int] = ()) -> Boot:
        """Boot, wait for the text, read the memory, end QEMU. Fails the test if the text never comes."""
        self.serial.write_bytes(b"")
        pipe = subprocess.PIPE
        with subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                self._wait(process)
                questions = "".join(f"xp /1wx {address:#x}\n" for address in addresses)
                answer, _ = process.communicate(questions + "quit\n", timeout=PATIENCE)
            finally:
                process.kill()
        for at, word in re.findall(r"^([0-9a-f]{8,16}): 0x([0-9a-f]{8})", answer, re.MULTILINE):
            self.words[int(at, 16)] = int(word, 16)
        return self

    def _wait(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.until not in self.log:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{' '.join(self.command)} did not come to {self.until!r}: {self.log!r}")
            time.sleep(0.05)
            self.log = self.serial.read_bytes()
