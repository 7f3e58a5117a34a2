# SPDX-License-Identifier: GPL-2.0-only
"""The user's side of a guest's serial line: the terminal in raw mode, a pty of our own, and host time.

Nothing in the library knows of any of this. The machine calls in between two pieces of guest code, and
whenever the guest idles; there, and only there, the host's clock is read and the user's keys are taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

from vmi.errors import OutputError
from vmi.files import reason

MS = 1_000_000  # ns
ESCAPE = 0x01  # Ctrl-A, as with QEMU's -nographic

_DEADLY = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LFLAG = 3  # index in what tcgetattr gives
_IFLAG, _CC = 0, 6


def in_foreground(fd: int) -> bool:
    """Whether this process may use a terminal: False for a job that runs in the background of a shell."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # it is not the terminal that controls us


def pause(ns: int) -> None:
    """Let the host's time pass."""
    time.sleep(ns / 1e9)


class RawMode:
    """A terminal whose keys all reach the guest: no line editing, no echo, no keys that send signals.

    Output is still processed, so that a line feed alone begins a line at its start. The terminal gets
    its old settings back when the block ends, when a signal ends or stops the process, and when the
    process goes on in the foreground it is raw again.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: Any = None  # what tcgetattr gave
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> RawMode:
        self._saved = termios.tcgetattr(self._fd)
        for number in (*_DEADLY, signal.SIGTSTP, signal.SIGCONT):
            if signal.getsignal(number) == signal.SIG_IGN:
                continue  # as under nohup
            # a thread other than the first can't have handlers, and has to do without
            with contextlib.suppress(ValueError):
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._make_raw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers.clear()

    def _make_raw(self) -> None:
        if not in_foreground(self._fd):
            return  # touching the terminal would stop the process
        with contextlib.suppress(termios.error):
            mode = termios.tcgetattr(self._fd)
            mode[_IFLAG] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
            mode[_LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
            mode[_CC][termios.VMIN], mode[_CC][termios.VTIME] = 1, 0
            termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)

    def _restore(self) -> None:
        with contextlib.suppress(termios.error):  # a terminal that is gone needs nothing
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGCONT:
            self._make_raw()
            return
        self._restore()
        # what the signal does without us: end the process with its status, or stop it here
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._on_signal)
        self._make_raw()


class EscapeKeys:
    """Takes the keys behind Ctrl-A out of what the user types and does what they mean.

    ``a``, or Ctrl-A once more, is a Ctrl-A for the guest. A key that means nothing is swallowed.

    :param commands: key to what is done.
    """

    def __init__(self, commands: Mapping[str, Callable[[], None]]) -> None:
        self._commands = {ord(key): action for key, action in commands.items()}
        self._escaped = False

    def feed(self, data: bytes) -> bytes:
        """The bytes that are for the guest."""
        kept = bytearray()
        for byte in data:
            if not self._escaped:
                self._escaped = byte == ESCAPE
                if not self._escaped:
                    kept.append(byte)
                continue
            self._escaped = False
            if byte in (ESCAPE, ord("a")):
                kept.append(ESCAPE)
            elif action := self._commands.get(byte):
                action()
        return bytes(kept)


class Input:
    """Bytes from a file descriptor, without ever waiting longer than asked.

    ``open`` turns False at the end of what there is to read. ``steady`` is whether the bytes are there in
    advance, so that when they are read does not depend on the host.
    """

    CHUNK = 4096

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self.open = True
        self.steady = not _may_wait(fd)

    def read(self, wait_ns: int | None = 0) -> bytes:
        """Up to ``CHUNK`` bytes, b"" if none came within ``wait_ns`` (None: however long it takes)."""
        ready = self._poll.poll(None if wait_ns is None else -(-wait_ns // MS))
        return self._take() if ready else b""

    def _take(self) -> bytes:
        try:
            data = os.read(self._fd, self.CHUNK)
        except BlockingIOError:
            return b""
        except OSError:  # the terminal is gone
            data = b""
        self.open = bool(data)
        return data


def _may_wait(fd: int) -> bool:
    """Whether reading could have to wait for somebody: a terminal, a pipe, a socket; not a file."""
    kind = os.fstat(fd).st_mode & 0o170000
    return kind not in (0o100000, 0o060000)  # regular file, block device


class Pty(Input):
    """A pseudo-terminal of our own: its other end, ``name``, is the guest's serial line for any program.

    Programs may come and go. What the guest says while none is there is kept, the last
    ``BACKLOG`` bytes of it, and told to the next.

    :raises OutputError: the system gives no pty.
    """

    BACKLOG = 64 << 10
    _LOOK_AGAIN = 100 * MS  # a terminal that nobody has open can't be waited for
    _PATIENCE = 100  # looks, a tenth of that apart

    def __init__(self) -> None:
        try:
            controller, terminal = os.openpty()
        except OSError as error:
            raise OutputError(f"a pseudo-terminal can't be opened: {reason(error)}") from error
        self.name = os.ttyname(terminal)
        tty.setraw(terminal)
        os.close(terminal)  # so that it can be told whether somebody else has it open
        os.set_blocking(controller, False)
        super().__init__(controller)
        self._backlog = bytearray()

    def connected(self) -> bool:
        """Whether a program has the other end open."""
        return not any(event & select.POLLHUP for _, event in self._poll.poll(0))

    def read(self, wait_ns: int | None = 0) -> bytes:
        """As :meth:`Input.read`, but comes back early from time to time while nobody is there."""
        if not self.connected():
            pause(self._LOOK_AGAIN if wait_ns is None else min(wait_ns, self._LOOK_AGAIN))
            return b""
        self.flush()
        if self._backlog and wait_ns != 0:
            wait_ns = self._LOOK_AGAIN if wait_ns is None else min(wait_ns, self._LOOK_AGAIN)
        data = super().read(wait_ns)
        self.open = True  # whoever left may come back
        return data

    def write(self, data: bytes) -> None:
        """Send bytes to whoever has the other end open; never waits and never fails."""
        self._backlog += data
        self.flush()
        if len(self._backlog) > self.BACKLOG:
            del self._backlog[: len(self._backlog) - self.BACKLOG]

    def flush(self) -> None:
        """Send what waits, as far as it is taken."""
        if self._backlog and self.connected():
            with contextlib.suppress(OSError):
                del self._backlog[: os.write(self._fd, self._backlog)]

    def close(self) -> None:
        """Hang up, once what was sent has been read, or nobody reads any of it for a second."""
        if self.connected():
            with contextlib.suppress(OSError):
                self._wait_for_reader()
        os.close(self._fd)

    def _wait_for_reader(self) -> None:
        # hanging up throws away what has not been read, and only the other end can tell how much that is
        terminal = os.open(self.name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            last, looks = -1, 0
            while looks < self._PATIENCE:
                self.flush()
                left = len(self._backlog) + _unread(terminal)
                if left == 0 and last == 0:
                    return
                looks = looks + 1 if left == last else 0
                last = left
                pause(self._LOOK_AGAIN // 10)
        finally:
            os.close(terminal)


def _unread(fd: int) -> int:
    """Bytes that a reader of a terminal would find."""
    count = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)


class Pacer:
    """Says how long the host has to wait so that the guest's time keeps to the host's.

    With ``realtime`` the guest's time never runs ahead of the host's by more than ``SLACK``. Without, only
    the guest's idling takes as long as it says, and code runs as fast as it can. A host that was too slow
    makes up for ``DEBT`` at most, so a process that was stopped does not make the guest race.

    :param now: the guest's time in ns.
    """

    SLACK = 1 * MS
    DEBT = 200 * MS

    def __init__(
        self, now: Callable[[], int], realtime: bool, host: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.realtime = realtime
        self._now = now
        self.host = host
        self._owed = 0  # without realtime: ns of idling that the host has not waited yet
        self._offset = host() - now()  # with realtime: the host's clock at the guest's zero

    def due(self, idle_ns: int = 0) -> int:
        """Host ns to wait, 0 for none, before the guest's time may be ``idle_ns`` later than it is."""
        if self.realtime:
            ahead = self._now() + self._offset - self.host()
            if ahead < -self.DEBT:
                self._offset -= ahead + self.DEBT
                ahead = -self.DEBT
        else:
            ahead = self._owed
        wait = ahead + idle_ns
        return wait if wait > self.SLACK else 0

    def idled(self, guest_ns: int, host_ns: int) -> None:
        """Note that the guest idled for so long and the host waited for so long."""
        self._owed = max(self._owed + guest_ns - host_ns, -self.DEBT)
