# SPDX-License-Identifier: GPL-2.0-only
"""The user at the guest's serial console: what it prints goes to them, what they type goes to it.

The emulator calls ``write`` from inside a callback of a C library, where an exception would be lost. So
it never raises while the guest runs; the first error is kept, and ``close`` raises it.

On a terminal the console is interactive: keys go to the guest as they are typed, and what the guest
prints reaches the terminal as it is, control sequences too, as over a serial line with a terminal at its
end. Where keys come from elsewhere nobody would want a guest to command the terminal, so there its
control sequences are shown and not obeyed. A file or pipe always gets the guest's own bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Protocol

from vmi.cli.common import say, stdout_errors
from vmi.cli.terminal import TerminalFilter
from vmi.cli.tty import EscapeKeys, Input, Pacer, Pty, RawMode, in_foreground, pause
from vmi.cli.values import Serial
from vmi.files import check_writable, write_atomically

HINT = "keys go to the guest; Ctrl-A x ends the run, Ctrl-A h lists what else Ctrl-A does"

# What a guest that was stopped in the middle of something may have left on: colours, a hidden cursor,
# reports of mouse and paste, other codes from cursor keys and keypad.
_CALM = "\x1b[0m\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>"

_PIPE_AHEAD = 4096  # bytes of input that wait for the guest before more of a file or pipe is read
_TYPED_AHEAD = 64 << 10  # the same for keys; what is typed or pasted beyond is lost
_LOOK_AGAIN = 1_000_000  # ns of the host's time between two looks for keys while the guest is busy


class GuestConsole(Protocol):
    """What this needs of :class:`vmi.native.console.Console`."""

    @property
    def queued(self) -> int: ...

    def send(self, data: bytes) -> None: ...

    def add_listener(self, listener: Callable[[int], None]) -> None: ...


#: What a key behind Ctrl-A does: a few words for the list, and the deed.
Command = tuple[str, Callable[[], None]]


class ConsoleSession:
    """The serial console of one run: give it to the machine by ``attach``, and ``close`` it once.

    As a context manager it closes itself, whatever the run's end; a terminal is in raw mode inside only.

    :param serial: where the console is.
    :param realtime: keep the guest's time from running ahead of the host's.
    :param quiet: no notes on stderr.
    :raises OutputError: the file named can't be written, or there is no pty to be had.
    """

    def __init__(self, serial: Serial, *, realtime: bool = False, quiet: bool = False) -> None:
        self._file = serial.file
        if self._file is not None:
            check_writable(self._file)
        self._collected = bytearray()
        self._live = serial.terminal  # on standard output
        on_terminal = serial.terminal and sys.stdout.isatty()
        keyboard = _stdin() if serial.terminal else None
        self.interactive = False
        if keyboard is not None and sys.stdin.isatty():
            self.interactive = on_terminal and in_foreground(keyboard)
            if not self.interactive:
                keyboard = None  # the user types to somebody else
        self._filter = TerminalFilter() if on_terminal and not self.interactive else None
        self._pty = Pty() if serial.pty else None
        self._input: Input | None = self._pty or (Input(keyboard) if keyboard is not None else None)
        self._raw = RawMode(keyboard) if self.interactive and keyboard is not None else None
        self._escape = EscapeKeys({})
        self._realtime = realtime
        self._quiet = quiet
        self._pacer = Pacer(lambda: 0, realtime)
        self._console: GuestConsole | None = None
        self._held = b""  # read, but not yet the guest's
        self._looked_at = 0
        self._error: OSError | None = None
        self._last = "\n"
        self._escapes = False  # the guest has sent control sequences to the terminal

    def __repr__(self) -> str:
        return f"<ConsoleSession{' interactive' if self.interactive else ''}>"

    def __enter__(self) -> ConsoleSession:
        if self._raw is not None:
            self._raw.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def attach(
        self,
        console: GuestConsole,
        now: Callable[[], int],
        stop: Callable[[], None],
        commands: Mapping[str, Command] | None = None,
    ) -> None:
        """Connect to the machine, whose run is about to begin; tells the user how to reach it.

        :param now: the guest's time in ns.
        :param stop: ends the run in progress.
        :param commands: what further keys behind Ctrl-A do, between two pieces of guest code.
        """
        self._console = console
        self._pacer = Pacer(now, self._realtime)
        ours = {"x": ("end the run", stop)} | dict(commands or {})
        actions = {key: action for key, (_, action) in ours.items()}
        self._escape = EscapeKeys(actions | {"h": lambda: self._help(ours), "?": lambda: self._help(ours)})
        console.add_listener(lambda byte: self.write(bytes([byte])))
        if self._pty is not None and not self._quiet:
            say(f"the serial console is {self._pty.name}")
        if self.interactive and not self._quiet:
            say(HINT)
        self._look()
        self._feed()

    def _help(self, commands: Mapping[str, Command]) -> None:
        lines = [f"Ctrl-A {key}  {what}" for key, (what, _) in commands.items()]
        lines += ["Ctrl-A h  show this help", "Ctrl-A a  type a Ctrl-A"]
        self.write("".join(f"\n{line}" for line in lines).encode() + b"\n")

    # -- output -----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Bytes from the guest, in order, as many at a time as the caller likes."""
        if self._file is not None:
            self._collected += data
        if self._pty is not None:
            self._pty.write(data)
        if not self._live or self._error is not None or not data:
            return
        try:
            if self._filter is not None:
                self._type(self._filter.feed(data))
                return
            self._escapes |= b"\x1b" in data
            self._last = chr(data[-1])
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        except OSError as error:
            self._error = error

    def _type(self, text: str) -> None:
        if text:
            self._last = text[-1]
            sys.stdout.write(text)
            sys.stdout.flush()

    # -- input and time ---------------------------------------------------------------------

    def on_slice(self) -> None:
        """For the machine to call between two pieces of guest code."""
        if self._input is None and not self._realtime:
            return
        wait = self._pacer.due() if self._realtime else 0
        host = self._pacer.host()
        if wait or self._steady() or host - self._looked_at >= _LOOK_AGAIN:
            self._looked_at = host
            self._look(wait)
        self._feed()

    def on_idle(self, ns: int | None) -> int | None:
        """For the machine to call when the guest waits for an interrupt.

        :param ns: how long nothing will happen by itself; None if it never will.
        :return: how much of that has passed; there may be input then. None if nothing will ever happen.
        """
        if self._steady():
            self._look()
        if self._feed():
            return 0
        if ns is None:
            return self._idle_for_ever()
        if not self._realtime and not self._more_may_come():
            return ns
        wait = self._pacer.due(ns)
        began = self._pacer.host()
        self._look(wait)
        waited = self._pacer.host() - began
        passed = max(0, ns - max(0, wait - waited))
        self._pacer.idled(passed, waited)
        return passed

    def _idle_for_ever(self) -> int | None:
        if not self._more_may_come():
            return None
        began = self._pacer.host()
        self._look(None)
        return self._pacer.host() - began

    def _more_may_come(self) -> bool:
        """Whether there may be input later that is not there now."""
        source = self._input
        return source is not None and source.open and not source.steady and not self._held

    def _steady(self) -> bool:
        return self._input is not None and self._input.open and self._input.steady

    def _look(self, wait_ns: int | None = 0) -> None:
        """Read what there is, or comes within the time."""
        source = self._input
        if source is None or not source.open or (self._held and not self.interactive):
            if wait_ns:
                pause(wait_ns)
            return
        data = source.read(wait_ns)
        self._held += self._escape.feed(data) if self.interactive else data

    def _feed(self) -> bool:
        """Give the guest what was read, if it has taken the most of what it was given before."""
        if not self._held or self._console is None:
            return False
        room = (_TYPED_AHEAD if self.interactive else _PIPE_AHEAD) - self._console.queued
        if self.interactive:
            self._held = self._held[: max(0, room)]
        if room <= 0 or not self._held:
            return False
        data, self._held = self._held, b""
        self._console.send(data)
        return True

    # -- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Give the terminal back, write the file, raise what was kept. A second time does nothing."""
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.__exit__(None, None, None)
        pty, self._pty, self._input = self._pty, None, None
        if pty is not None:
            pty.close()
        self._finish_line()
        file, self._file = self._file, None
        if file is not None:
            write_atomically(file, bytes(self._collected))

    def _finish_line(self) -> None:
        with stdout_errors():
            error, self._error = self._error, None
            if error is not None:
                raise error
            if self._filter is not None:
                self._type(self._filter.finish())
            if self._escapes and self.interactive:
                sys.stdout.write(_CALM)
                self._escapes = False
            if (self._filter is not None or self.interactive) and self._last != "\n":
                self._type("\n")


def _stdin() -> int | None:
    """The descriptor of standard input; None if there is none."""
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or not a file at all
        return None
