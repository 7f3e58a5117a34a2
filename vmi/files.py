# SPDX-License-Identifier: GPL-2.0-only
"""Read input files whole and write output files so that they are either complete or not there.

Every failure is one sentence that names the file and the system's reason. An output goes to a
temporary file beside its target, is forced to disk, and takes the target's name in one step: a full
disk or a killed process never leaves half a kernel under the name of a whole one.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from vmi.errors import BadInput, OutputError

MAX_INPUT = 256 << 20
"""Largest input file in bytes: above any kernel or initial RAM disk an i386 machine would load."""


def read_input(path: str | os.PathLike[str], what: str = "input", limit: int = MAX_INPUT) -> bytes:
    """The bytes of a file or pipe; ``what`` names its role in the sentence of the BadInput raised."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise BadInput(f"{what} {name!r} can't be read: {reason(error)}") from error
    if len(data) > limit:
        raise BadInput(f"{what} {name!r} is larger than {limit} bytes")
    return data


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Put ``data`` under ``path``, all or nothing; raises OutputError.

    A symbolic link is followed. The permissions of a file that is replaced are kept. What is not a
    regular file (``/dev/null``, a pipe) is written to, not replaced.
    """
    name = os.fspath(path)
    try:
        target = Path(os.path.realpath(name))
        existing = target.stat() if target.exists() else None
        if existing is not None and not stat.S_ISREG(existing.st_mode):
            with open(target, "wb") as special:  # a directory refuses here
                special.write(data)
            return
        _replace(target, data, None if existing is None else stat.S_IMODE(existing.st_mode))
    except (OSError, ValueError) as error:
        raise OutputError(f"output {name!r} can't be written: {reason(error)}") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the OutputError that write_atomically would most likely raise, before hours of work are done."""
    name = os.fspath(path)
    target = Path(os.path.realpath(name))
    try:
        if target.is_dir():
            raise IsADirectoryError(None, "Is a directory")
        if target.exists() and not target.is_file():
            return
        if not target.parent.is_dir():
            raise FileNotFoundError(None, f"there is no folder {str(target.parent)!r}")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(None, f"no permission to create files in {str(target.parent)!r}")
    except (OSError, ValueError) as error:
        raise OutputError(f"output {name!r} can't be written: {reason(error)}") from error


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    temporary = target.with_name(f".{target.name[:200]}.{os.urandom(4).hex()}")
    # 0o666 lets the user's umask decide, as for any other new file.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The rename itself reaches the disk with the folder; not every file system lets one ask for that.
    with contextlib.suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def reason(error: BaseException) -> str:
    """The system's words for an error, without its number and without the file name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
