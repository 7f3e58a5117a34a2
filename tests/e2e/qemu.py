# SPDX-License-Identifier: GPL-2.0-only
"""QEMU as the judge: boot the same software there, talk with it, and look into its memory."""

from __future__ import annotations

import contextlib
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e import needs
from tests.e2e.line import Line

NAME = "qemu-system-i386"
PATIENCE = 120  # seconds of this computer's time; a guest that hangs must not hang the tests

#: A PC with PCI, but without ACPI, which our machine does not have: Linux then asks both the same questions.
PC = ("-M", "pc,acpi=off", "-cpu", "qemu32", "-nodefaults", "-display", "none", "-no-reboot")
MACHINE = (*PC, "-m", "64")
#: Firmware's older table of processors names the first one only, so ACPI is needed to find more.
PC_WITH_ACPI = ("-M", "pc", *PC[2:])

needs_qemu = pytest.mark.skipif(
    shutil.which(NAME) is None and not needs.ALL, reason=f"{NAME} is not installed"
)


class Boot:
    """One boot: ``log`` is the serial console, ``words`` holds the dwords asked for, by physical address."""

    def __init__(self, folder: Path, kernel: Path, append: str, until: bytes, *more: str) -> None:
        self.serial = folder / f"{kernel.name}.serial"
        self.until = until
        self.command = [NAME, *MACHINE, "-kernel", str(kernel), "-append", append, *more]
        self.command += ["-serial", f"file:{self.serial}", "-serial", "null", "-monitor", "stdio"]
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


class Qemu(Line):
    """A running QEMU: the line is its first serial port, ``ask`` its monitor."""

    def __init__(self, process: subprocess.Popen[bytes], monitor: Path, scratch: Path) -> None:
        super().__init__("QEMU")
        self.process = process
        self._monitor_path = monitor
        self._monitor: socket.socket | None = None
        self._scratch = scratch

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def clock(self) -> float:
        return time.monotonic()

    def listen(self, wanted: re.Pattern[bytes] | None, seconds: float) -> str:
        out = self.process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], max(0.0, seconds))
        if not ready:
            return ""
        data = out.read(65536)  # unbuffered: what there is
        self.log += data
        return "" if data else f"QEMU ended with status {self.process.wait(PATIENCE)}"

    def ask(self, command: str) -> str:
        """Give a command to the monitor; its answer."""
        if self._monitor is None:
            self._monitor = self._connected()
            self._answer()
        self._monitor.sendall(command.encode() + b"\n")
        return self._answer()

    def memory(self, address: int, size: int) -> bytes:
        """Physical memory of the guest, which runs on meanwhile."""
        file = self._scratch / "memory.bin"
        self.ask(f'pmemsave {address:#x} {size} "{file}"')
        return file.read_bytes()

    def press(self, key: str) -> None:
        """Press and release a key, by QEMU's name for it."""
        self.ask(f"sendkey {key}")

    def _connected(self) -> socket.socket:
        deadline = time.monotonic() + PATIENCE
        while True:
            line = socket.socket(socket.AF_UNIX)
            line.settimeout(PATIENCE)
            try:
                line.connect(str(self._monitor_path))
                return line
            except (FileNotFoundError, ConnectionRefusedError):
                line.close()  # QEMU is still starting
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _answer(self) -> str:
        assert self._monitor is not None
        answer = b""
        while not answer.endswith(b"(qemu) "):
            piece = self._monitor.recv(65536)
            assert piece, f"QEMU's monitor closed after {answer!r}"
            answer += piece
        return answer.decode("utf-8", "replace")

    def close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()


@contextlib.contextmanager
def running(folder: Path, *arguments: str | Path, machine: Sequence[str] = PC) -> Iterator[Qemu]:
    """Start QEMU with these arguments; it is killed at the end. The folder takes its scratch files."""
    needs.tool(NAME, "qemu-system-x86")
    monitor = folder / "monitor"
    command = [NAME, *machine, *map(str, arguments)]
    command += ["-serial", "stdio", "-serial", "null", "-monitor", f"unix:{monitor},server=on,wait=off"]
    with subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        qemu = Qemu(process, monitor, folder)
        try:
            yield qemu
        finally:
            process.kill()
            qemu.close()


def text_screen(memory: bytes) -> str:
    """The 25 lines of 80 characters that 4000 bytes of VGA text memory show, without trailing blanks."""
    characters = memory[:4000:2].decode("cp437")
    return "\n".join(characters[at : at + 80].rstrip("\0 ") for at in range(0, 2000, 80))
