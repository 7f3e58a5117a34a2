# SPDX-License-Identifier: GPL-2.0-only
"""A guest made of Python, to try a console on: it shouts back what it is told, and ends at a ``q``.

Started as a process, it takes the word for ``--serial`` and then options for itself:
``realtime``, ``quiet``, and ``colour``, which makes it print in red.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from vmi.cli.common import guarded
from vmi.cli.console import ConsoleSession
from vmi.cli.values import serial

MS = 1_000_000


class Shouter:
    """Reads a byte per millisecond of its own time, and idles without input, for 60 s at most.

    Only 16 bytes of input wait in it, so that a session has to hold back more.
    """

    def __init__(self, greeting: bytes = b"> ") -> None:
        self.greeting = greeting
        self.ns = 0
        self.input = bytearray()
        self.most = 0
        self.listeners: list[Callable[[int], None]] = []
        self.end = ""

    @property
    def queued(self) -> int:
        return len(self.input)

    def send(self, data: bytes) -> None:
        self.input += data
        self.most = max(self.most, len(self.input))

    def add_listener(self, listener: Callable[[int], None]) -> None:
        self.listeners.append(listener)

    def show(self, data: bytes) -> None:
        for byte in data:
            for listener in self.listeners:
                listener(byte)

    def stop(self) -> None:
        self.end = "stopped by the user"

    def run(self, session: ConsoleSession, tick: int | None = 10 * MS) -> str:
        """Run as a machine does; ``tick`` is how long it idles at a time, None if nothing wakes it."""
        session.attach(
            self, lambda: self.ns, self.stop, {"t": ("show the time", lambda: self.show(b"[time]"))}
        )
        self.show(self.greeting)
        while not self.end:
            session.on_slice()
            if self.input:
                byte = self.input.pop(0)
                self.ns += MS
                self.show(bytes([byte]).upper())
                self.end = "ended by itself" if byte == ord("q") else self.end
                continue
            passed = session.on_idle(tick)
            if passed is None:
                self.end = "halted for ever"
            else:
                self.ns += passed
                self.end = self.end or ("out of time" if self.ns > 60_000 * MS else "")
        return self.end


@guarded
def main(where: str, *options: str) -> None:
    guest = Shouter(b"\x1b[31m> " if "colour" in options else b"> ")
    session = ConsoleSession(serial(where), realtime="realtime" in options, quiet="quiet" in options)
    with session:
        end = guest.run(session, None if "no-tick" in options else 10 * MS)
    print(f"{end} at {guest.ns // MS} ms", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
