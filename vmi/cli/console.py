# SPDX-License-Identifier: GPL-2.0-only
"""Where the guest's console goes while it runs: the terminal, a pipe, a file, or nowhere.

The emulator calls in here from inside a callback of a C library, where an exception would be lost. So a
sink never raises while the guest runs; it keeps the first error and raises it in ``close``.
"""

from __future__ import annotations

import sys

from vmi.cli.common import stdout_errors
from vmi.cli.terminal import TerminalFilter
from vmi.cli.values import Serial
from vmi.files import check_writable, write_atomically


class ConsoleSink:
    """Takes the guest's console bytes; ``close`` once, after the run, whatever its end."""

    def __init__(self, serial: Serial) -> None:
        """Raises OutputError at once if the file named can't be written."""
        if serial.file is not None:
            check_writable(serial.file)
        self._file = serial.file
        self._collected = bytearray()
        self._live = serial.terminal
        self._filter = TerminalFilter() if serial.terminal and sys.stdout.isatty() else None
        self._error: OSError | None = None
        self._last = "\n"

    def write(self, data: bytes) -> None:
        """Bytes from the guest, in order, as many at a time as the caller likes."""
        if self._file is not None:
            self._collected += data
        if not self._live or self._error is not None or not data:
            return
        try:
            if self._filter is not None:
                self._type(self._filter.feed(data))
            else:
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
        except OSError as error:
            self._error = error

    def _type(self, text: str) -> None:
        if text:
            self._last = text[-1]
            sys.stdout.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        """End the guest's last line on a terminal, write the file, raise what was kept."""
        with stdout_errors():
            if self._error is not None:
                raise self._error
            if self._filter is not None:
                self._type(self._filter.finish())
                if self._last != "\n":
                    sys.stdout.write("\n")
        if self._file is not None:
            write_atomically(self._file, bytes(self._collected))
