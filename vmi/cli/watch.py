# SPDX-License-Identifier: GPL-2.0-only
"""What a user watches of a run, and leaves behind of it: console, log, screenshot, snapshot, typed keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmi.cli import values
from vmi.cli.console import ConsoleSession
from vmi.cli.log import LogOutput
from vmi.cli.profiled import Profiled
from vmi.errors import UsageError
from vmi.files import check_writable, write_atomically

if TYPE_CHECKING:
    from vmi.native.clock import Callback
    from vmi.native.event_log import EventLog
    from vmi.native.keyboard import KeyEvent
    from vmi.native.machine import Machine
    from vmi.native.screen import Screen


class Watch:
    """The observer of one run, see :class:`vmi.run.Observer`; a context manager that closes everything.

    :raises UsageError: a word of ``log`` or a key of ``keys`` is none.
    :raises OutputError: a file that is to be written can't be.
    """

    def __init__(
        self,
        session: ConsoleSession,
        *,
        log: str | None = None,
        log_file: Path | None = None,
        screenshot: Path | None = None,
        save: Path | None = None,
        keys: str | None = None,
        profiled: Profiled | None = None,
    ) -> None:
        self._session = session
        if log_file is not None and log is None:
            raise UsageError("--log-file needs --log, which says what is logged")
        self._categories = None if log is None else _categories(log)
        self._log_file = log_file
        self._output: LogOutput | None = None
        self._log: EventLog | None = None
        self._screenshot = screenshot
        self._save = save
        self._profiled = profiled
        self._keys = [] if keys is None else values.typed(keys)
        for path in (log_file, screenshot):
            if path is not None:
                check_writable(path)
        if save is not None:
            from vmi.native.snapshot_folder import check_target

            check_target(save)

    def __enter__(self) -> Watch:
        self._session.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._session.close()
        finally:
            if self._output is not None:
                self._output.close(self._log.close() if self._log is not None else None)

    def begin(self, machine: Machine) -> None:
        """See :class:`vmi.run.Observer`."""
        from vmi.native.machine import Outcome

        if self._profiled is not None:
            self._profiled.begin(machine)
        if self._categories is not None:
            # not before there is something to log: an older log under that name is not lost for nothing
            self._output = LogOutput(self._log_file)
            self._log = machine.log = _log(machine, self._categories, self._output)
        self._session.attach(
            machine.console,
            machine.clock.now,
            lambda: machine.finish(Outcome.STOPPED, "the user ended the run"),
            {"s": ("show the screen of the guest as text", lambda: self._show_screen(machine))},
        )
        at = machine.clock.now()
        for pause, events in self._keys:
            at += pause
            machine.clock.schedule(at, _typist(machine, events))

    def on_slice(self) -> None:
        """See :class:`vmi.run.Observer`."""
        self._session.on_slice()

    def on_idle(self, ns: int | None) -> int | None:
        """See :class:`vmi.run.Observer`."""
        return self._session.on_idle(ns)

    def end(self, machine: Machine) -> None:
        """See :class:`vmi.run.Observer`: writes the snapshot and the screenshot."""
        try:
            if self._save is not None:
                machine.save(self._save)
        finally:
            if self._screenshot is not None:
                self._write_screenshot(machine, self._screenshot)
            if self._profiled is not None:
                self._profiled.end(machine)

    def _write_screenshot(self, machine: Machine, path: Path) -> None:
        screen = _screen(machine)
        picture = path.suffix.lower() == ".png"
        write_atomically(path, screen.png() if picture else f"{screen.text()}\n".encode())

    def _show_screen(self, machine: Machine) -> None:
        self._session.write(f"\n{_screen(machine).text()}\n".encode())


def _categories(text: str) -> frozenset[str]:
    from vmi.native.event_log import EventLog

    return EventLog.parse(text)


def _log(machine: Machine, categories: frozenset[str], output: LogOutput) -> EventLog:
    from vmi.native.event_log import EventLog
    from vmi.x86 import Seg

    cpu, turns = machine.cpu, machine.turns
    return EventLog(
        categories,
        output.write,
        machine.clock.now,
        lambda: (cpu.segment(Seg.CS).selector, cpu.eip),
        machine.board.ports.name_of,
        None if turns is None else lambda: turns.current.number,
    )


def _typist(machine: Machine, events: list[KeyEvent]) -> Callback:
    return lambda _due: machine.board.keyboard.type(events)


def _screen(machine: Machine) -> Screen:
    from vmi.native.screen import Screen

    return Screen.capture(machine.memory, machine.board.vga)
