# SPDX-License-Identifier: GPL-2.0-only
"""What the guest says on a character device, and the way to type something into it.

A script talks to a guest in pairs: :meth:`Console.expect` runs the machine until the console has shown
something, :meth:`Console.send` types the answer. Both count in the guest's own time, so the same script
gives the same run on any computer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, overload

from vmi.errors import ExitCode, GuestTimeout, UsageError, VmiError
from vmi.native.stamped import Stamped

LONGEST_MATCH = 4096  # bytes of the console that a regular expression is tried on with every new byte

_LINE_END = re.compile("\r\n|\n\r|\r")
_LAST_LINE = 100  # characters of the last line that an error shows


class ConsoleTimeout(GuestTimeout):
    """The console did not show in time what was waited for."""


class ConsoleEnded(VmiError):
    """The guest ended before its console showed what was waited for."""

    exit_code = ExitCode.GUEST_CRASH


#: Length of what was shown up to the end of a match, and what ``expect`` gives for it.
_Found = tuple[int, bytes | re.Match[bytes]]


class Ended(Protocol):
    """How a run of the machine ended: one word and one sentence."""

    @property
    def outcome(self) -> str: ...

    @property
    def reason(self) -> str: ...


class Console(Stamped):
    """Collects the bytes a guest transmits and hands input to it.

    Give ``transmit`` to a device as its output, the device's input function to ``connect``, and the
    machine's own functions to ``connect_runner``.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._listeners: list[Callable[[int], None]] = []
        self._sink: Callable[[bytes], None] | None = None
        self._queued: Callable[[], int] = _nothing_queued
        self._unsent = bytearray()
        self._run: Callable[[int], Ended] | None = None
        self._stop: Callable[[], None] = _no_stop
        self._matched = 0  # offset behind the last match
        self._waiting = False  # inside expect
        self._awaited: bytes | re.Pattern[bytes] | None = None
        self._since = bytearray()  # what has been shown since the last match, while one is awaited
        self._found: _Found | None = None

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"<Console {len(self._data)} bytes>"

    @property
    def data(self) -> bytes:
        """Everything transmitted so far."""
        return bytes(self._data)

    @property
    def matched(self) -> int:
        """Bytes up to the end of what was expected last."""
        return self._matched

    def load(self, data: bytes, matched: int) -> None:
        """Take over what another console had shown and matched; listeners don't hear of it."""
        self._data[:] = data
        self._matched = matched

    def text(self) -> str:
        """Everything transmitted so far as text: line ends are ``\\n``, undecodable bytes are escaped."""
        return _LINE_END.sub("\n", self._data.decode("utf-8", "backslashreplace"))

    def last_line(self) -> str:
        """The last line that is not empty, without its end; "" if there is none."""
        lines = (line for line in reversed(self.text().splitlines()) if line.strip())
        return next(lines, "")

    def find(self, pattern: bytes, start: int = 0) -> int:
        """Offset of the first ``pattern`` at or after ``start``, or -1."""
        return self._data.find(pattern, start)

    # -- output -----------------------------------------------------------------------------

    def transmit(self, byte: int) -> None:
        """Take one byte (0-255) from the device."""
        self._data.append(byte)
        if self._awaited is not None:
            self._since.append(byte)
            self._found = self._completed(self._awaited, byte)
            if self._found is not None:
                self._awaited = None
                self._stop()
        for listener in self._listeners:
            listener(byte)

    def add_listener(self, listener: Callable[[int], None]) -> None:
        """Call ``listener`` with every byte transmitted from now on."""
        self._listeners.append(listener)

    # -- input ------------------------------------------------------------------------------

    def connect(self, sink: Callable[[bytes], None], queued: Callable[[], int] | None = None) -> None:
        """Send input to ``sink``, first what has been sent before there was one.

        ``queued`` tells how many of those bytes the guest's device has not taken yet.
        """
        self._sink = sink
        self._queued = _nothing_queued if queued is None else queued
        if self._unsent:
            waiting, self._unsent = bytes(self._unsent), bytearray()
            sink(waiting)

    @property
    def queued(self) -> int:
        """Bytes of input that the guest has not taken yet."""
        return len(self._unsent) + self._queued()

    def send(self, data: bytes) -> None:
        """Type ``data`` into the guest's device, however long: it arrives as fast as the guest takes it.

        The Enter key of a terminal is ``b"\\r"``.
        """
        if self._sink is None:
            self._unsent += data
        else:
            self._sink(data)

    def feed(self, data: bytes) -> None:
        """Type ``data`` into the guest's device; another name of :meth:`send`."""
        self.send(data)

    # -- scripts ----------------------------------------------------------------------------

    def connect_runner(self, run: Callable[[int], Ended], stop: Callable[[], None]) -> None:
        """Let :meth:`expect` run the machine.

        :param run: runs it for so many ns of its own time at most and tells how that ended; the outcome
            is ``timeout`` when that was all.
        :param stop: ends the run in progress after the current instruction.
        """
        self._run, self._stop = run, stop

    @overload
    def expect(self, pattern: bytes, timeout_s: float = 60.0) -> bytes: ...
    @overload
    def expect(self, pattern: re.Pattern[bytes], timeout_s: float = 60.0) -> re.Match[bytes]: ...

    def expect(self, pattern: bytes | re.Pattern[bytes], timeout_s: float = 60.0) -> bytes | re.Match[bytes]:
        """Run the machine until the console has shown ``pattern`` after what was expected last.

        The machine stops at the very instruction that completes the pattern. So a regular expression gets
        no more than it needs: ``rb"\\d+"`` one digit, ``rb"(\\d+)\\s"`` the number. What it matches may be
        :data:`LONGEST_MATCH` bytes long.

        :param timeout_s: seconds of guest time to wait at most.
        :return: what was shown since the last match, up to the end of this one; for a regular expression
            its match, whose ``string`` begins there.
        :raises ConsoleTimeout: the time is over.
        :raises ConsoleEnded: the guest ended first.
        :raises UsageError: the pattern is empty, or there is no machine to run.
        """
        if not (pattern if isinstance(pattern, bytes) else pattern.pattern):
            raise UsageError("the pattern to wait for must not be empty")
        if self._waiting:
            raise UsageError("a console can't wait for two patterns at once")
        self._since = self._data[self._matched :]
        self._found = self._search(pattern)
        if self._found is None:
            end = self._run_for(pattern, timeout_s)
            if self._found is None:
                raise self._missed(pattern, timeout_s, end)
        length, value = self._found
        self._matched += length
        return value

    def _run_for(self, pattern: bytes | re.Pattern[bytes], timeout_s: float) -> Ended:
        if self._run is None:
            raise UsageError("the console belongs to no machine that could be run to wait for something")
        self._awaited, self._waiting = pattern, True
        try:
            return self._run(int(timeout_s * 1e9))
        finally:
            self._awaited, self._waiting = None, False

    def _completed(self, pattern: bytes | re.Pattern[bytes], byte: int) -> _Found | None:
        """What the byte just transmitted completes, if it does."""
        since = self._since
        if isinstance(pattern, bytes):
            ends = byte == pattern[-1] and since.endswith(pattern)
            return (len(since), bytes(since)) if ends else None
        start = max(0, len(since) - LONGEST_MATCH)
        return self._search(pattern, start) if pattern.search(since, start) is not None else None

    def _search(self, pattern: bytes | re.Pattern[bytes], start: int = 0) -> _Found | None:
        shown = bytes(self._since)
        if isinstance(pattern, bytes):
            end = shown.find(pattern, start) + len(pattern)
            return (end, shown[:end]) if end >= len(pattern) else None
        match = pattern.search(shown, start)
        return None if match is None else (match.end(), match)

    def _missed(self, pattern: bytes | re.Pattern[bytes], timeout_s: float, end: Ended) -> VmiError:
        wanted = repr(pattern if isinstance(pattern, bytes) else pattern.pattern)
        last = self.last_line()
        told = f"its last line is {last[-_LAST_LINE:]!r}" if last else "it showed nothing"
        if end.outcome == "timeout":
            return ConsoleTimeout(
                f"the console did not show {wanted} within {timeout_s:g} s of guest time; {told}"
            )
        return ConsoleEnded(f"the console did not show {wanted} before {end.reason}; {told}")


def _nothing_queued() -> int:
    return 0


def _no_stop() -> None:
    """No machine, nothing to stop."""
