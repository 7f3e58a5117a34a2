# SPDX-License-Identifier: GPL-2.0-only
"""A line to a running guest: wait for a text, type an answer. One form for QEMU and for our machine.

The same script can then be held with both, and a difference is the machine's and not the script's.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from vmi.native.machine import Machine, Outcome


class Silence(AssertionError):
    """The text that was waited for did not come; says what came instead."""


class Line(ABC):
    """Text from a guest, and the way to type.

    ``log`` holds all that has come; the first ``read`` bytes of it have been waited for already.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.log = bytearray()
        self.read = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.name}, {len(self.log)} bytes>"

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Type something."""

    @abstractmethod
    def clock(self) -> float:
        """Seconds, on the clock that timeouts are measured with."""

    @abstractmethod
    def listen(self, wanted: re.Pattern[bytes] | None, seconds: float) -> str:
        """Let bytes come into ``log`` for so long, or until ``wanted`` matches in what is unread.

        Gives nothing, or why the guest has ended.
        """

    def expect(self, pattern: bytes, seconds: float) -> bytes:
        """Wait until a regular expression matches in what has come since the last one did.

        Gives all up to the match's end. Raises Silence after so many seconds (the guest's own on our
        machine, this computer's with QEMU), or as soon as the guest ends.
        """
        wanted = re.compile(pattern, re.DOTALL)
        deadline = self.clock() + seconds
        why = ""
        while (found := wanted.search(self.log, self.read)) is None:
            left = deadline - self.clock()
            if left <= 0:
                why = f"{seconds:g} s have passed"
            if why:
                rest = bytes(self.log[self.read :])[-2000:]
                raise Silence(f"{self.name} did not show {pattern!r}, but {why}; it showed {rest!r}")
            why = self.listen(wanted, left)
        text = bytes(self.log[self.read : found.end()])
        self.read = found.end()
        return text

    def expect_end(self, seconds: float) -> str:
        """Wait until the guest ends and give the reason; raises Silence if it does not within that time."""
        deadline = self.clock() + seconds
        while not (why := self.listen(None, deadline - self.clock())):
            if self.clock() >= deadline:
                raise Silence(
                    f"{self.name} has not ended within {seconds:g} s; it showed {self.log[-2000:]!r}"
                )
        return why


class MachineLine(Line):
    """Our machine's serial console; its time is the guest's, so a slow computer changes no verdict."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("our machine")
        self.machine = machine
        self._wanted: re.Pattern[bytes] | None = None
        machine.console.add_listener(self._heard)

    def send(self, data: bytes) -> None:
        self.machine.console.feed(data)

    def clock(self) -> float:
        return self.machine.clock.now() / 1e9

    def listen(self, wanted: re.Pattern[bytes] | None, seconds: float) -> str:
        self._wanted = wanted
        end = self.machine.run(max(1, int(seconds * 1e9)))
        self._wanted = None
        return "" if end.outcome in (Outcome.CONSOLE, Outcome.TIMEOUT) else end.reason

    def _heard(self, byte: int) -> None:
        self.log.append(byte)
        # words and digits go on: looking at their ends only saves most of the time
        if self._wanted is None or chr(byte).isalnum():
            return
        if self._wanted.search(self.log, self.read) is not None:
            self.machine.finish(Outcome.CONSOLE, "the console showed what was waited for")
