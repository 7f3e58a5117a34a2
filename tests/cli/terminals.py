# SPDX-License-Identifier: GPL-2.0-only
"""Real ptys for tests, with processes at their ends."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios

from tests.cli.conftest import ROOT, surroundings

PATIENCE = 60  # seconds that a loaded computer may take


def read_until(fd: int, end: bytes) -> bytes:
    """All that comes from a descriptor up to these bytes."""
    got = b""
    while end not in got:
        assert select.select([fd], [], [], PATIENCE)[0], got
        piece = os.read(fd, 4096)
        assert piece, got
        got += piece
    return got


class Terminal:
    """A pty with a process at its end."""

    def __init__(self) -> None:
        self.fd, self.other = pty.openpty()
        self.before = termios.tcgetattr(self.other)
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, *arguments: str, code: str = "", module: str = "tests.cli.shouter", **streams: int
    ) -> None:
        """Start a program, or a module of ours, with its input and output here."""
        command = [sys.executable, "-c", code] if code else [sys.executable, "-m", module]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env=surroundings(),
            **{"stdin": self.other, "stdout": self.other, "stderr": subprocess.PIPE} | streams,  # type: ignore[call-overload]
        )

    def finish(self) -> tuple[int, str]:
        """Exit status and what is on stderr."""
        assert self.process is not None
        said = self.process.communicate(timeout=PATIENCE)[1]
        return self.process.returncode, said.decode()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        for fd in (self.fd, self.other):
            os.close(fd)


def raw(fd: int) -> bool:
    return not termios.tcgetattr(fd)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
