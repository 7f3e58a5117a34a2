# SPDX-License-Identifier: GPL-2.0-only
"""Where an event log goes: stderr, or a file that grows while the guest runs."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TextIO

from vmi.errors import OutputError
from vmi.files import check_writable, reason


class LogOutput:
    """Give ``write`` to :class:`~vmi.native.event_log.EventLog`; ``close`` once, after the log's own.

    A log may be larger than memory, and is of use before the run ends: so it is written as it comes, in
    contrast to all other files.

    :param path: None for stderr.
    :raises OutputError: the file can't be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO = sys.stderr
        if path is not None:
            check_writable(path)
            try:
                self._file = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            except OSError as error:
                raise self._failure(error) from error

    def write(self, line: str) -> None:
        """Take a line with its end. May raise OSError."""
        self._file.write(line)

    def close(self, error: OSError | None = None) -> None:
        """Finish the file. Raises OutputError for ``error``, or if the file can't be finished.

        A stderr that is gone is no reason to fail.
        """
        if self._path is None:
            with contextlib.suppress(OSError):
                self._file.flush()
            return
        try:
            self._file.close()
        except OSError as late:
            error = error or late
        if error is not None:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"output {str(self._path)!r} can't be written: {reason(error)}")
