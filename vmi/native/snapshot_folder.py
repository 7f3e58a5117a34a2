# SPDX-License-Identifier: GPL-2.0-only
"""The folder that a snapshot is: complete or not there, and checked against its manifest as it is read.

All files are written to a folder of another name and forced to the disk, the manifest last, with size and
hash of all others; then the folder gets its name. So a full disk or a killed process never leaves half a
snapshot under the name of a whole one, and a snapshot of that name that was there before stays until then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vmi.errors import BadInput, OutputError
from vmi.files import read_input, reason
from vmi.native import page_file
from vmi.version import __version__

FORMAT = "machine snapshot"
VERSION = 1  # of the folder and of all that is in its state; another one can't be restored

MANIFEST = "manifest.json"
_SUFFIXES = (".json", ".pages", ".log", ".bin")  # of all files that a snapshot may have
_LONGEST_MANIFEST = 1 << 20  # bytes


# -- write --------------------------------------------------------------------------------------


class Writer:
    """The folder while it is written; its files come into being one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, dict[str, Any]] = {}

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a file and force it to the disk."""
        digest, size = hashlib.sha256(), 0
        with (self._folder / name).open("xb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        self._files[name] = {"size": size, "sha256": digest.hexdigest()}

    def write_json(self, name: str, value: object) -> None:
        """Write values; the same ones give the same bytes."""
        self.write(name, [(json.dumps(value, indent=1, sort_keys=True) + "\n").encode()])

    def seal(self) -> None:
        """Write the manifest."""
        manifest = {"format": FORMAT, "version": VERSION, "program": __version__, "files": dict(self._files)}
        self.write_json(MANIFEST, manifest)


@contextlib.contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[Writer]:
    """Write a folder that is new, empty or an older snapshot; it is there when the block ends.

    :raises OutputError: it can't be written, or is something else; nothing has changed then.
    """
    target = Path(os.path.realpath(folder))
    with _complaint(folder):
        _check_replaceable(target)
        temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
        try:
            temporary.mkdir()
            writer = Writer(temporary)
            yield writer
            writer.seal()
            _sync(temporary)
            _rename(temporary, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_target(folder: str | os.PathLike[str]) -> None:
    """Raise the OutputError that :func:`writing` would most likely raise, before hours of work are done."""
    with _complaint(folder):
        target = Path(os.path.realpath(folder))
        if not target.parent.is_dir():
            raise FileNotFoundError(None, f"there is no folder {str(target.parent)!r}")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(None, f"no permission to create files in {str(target.parent)!r}")
        _check_replaceable(target)


@contextlib.contextmanager
def _complaint(folder: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise OutputError(f"snapshot {os.fspath(folder)!r} can't be written: {reason(error)}") from error


def _check_replaceable(target: Path) -> None:
    """Nobody's files are removed but a snapshot's."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(None, "there is a file of that name")
    names = [entry.name for entry in target.iterdir()]
    if names and not (MANIFEST in names and all(name.endswith(_SUFFIXES) for name in names)):
        raise FileExistsError(None, "the folder holds something else")


def _rename(temporary: Path, target: Path) -> None:
    old = temporary.with_name(f"{temporary.name}.old")
    if target.exists() and any(target.iterdir()):
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets one ask for that
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- read ---------------------------------------------------------------------------------------


class Reader:
    """A folder that is there. What is read is what was written, or an error."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        if not (self._folder / MANIFEST).is_file():
            raise BadInput(f"it has no {MANIFEST}")
        manifest = _parsed(MANIFEST, read_input(self._folder / MANIFEST, "file", _LONGEST_MANIFEST))
        if manifest.get("format") != FORMAT:
            raise BadInput(f"its {MANIFEST} is that of something else")
        if manifest["version"] != VERSION:
            raise BadInput(f"its version must be {VERSION}, but it is {manifest['version']}")
        self.program: str = manifest["program"]
        self._files: dict[str, dict[str, Any]] = manifest["files"]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str) -> bytes:
        """A whole file."""
        data = read_input(self._folder / name, "file", self._files[name]["size"])
        self._check(name, len(data), hashlib.sha256(data))
        return data

    def read_json(self, name: str) -> dict[str, Any]:
        """Values."""
        return _parsed(name, self.read(name))

    def pages(self, name: str) -> Iterator[tuple[int, bytes]]:
        """A file's pages; that they are those which were saved is known when all have been given."""
        digest, size = hashlib.sha256(), 0

        def counted(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
            def function(count: int) -> bytes:
                nonlocal size
                piece = read(count)
                digest.update(piece)
                size += len(piece)
                return piece

            return function

        with (self._folder / name).open("rb") as file:
            try:
                yield from page_file.decode(counted(file.read))
            except BadInput as error:
                raise BadInput(f"{name} is damaged: {error}") from error
        self._check(name, size, digest)

    def _check(self, name: str, size: int, digest: Any) -> None:
        wanted = self._files[name]
        if size != wanted["size"]:
            raise BadInput(f"{name} is damaged: it has {size} bytes and not {wanted['size']}")
        if digest.hexdigest() != wanted["sha256"]:
            raise BadInput(f"{name} is damaged: its bytes are not those that were saved")


@contextlib.contextmanager
def reading(folder: str | os.PathLike[str]) -> Iterator[Reader]:
    """Read a folder; whatever the block finds wrong with it is raised as one sentence.

    :raises BadInput: that is no snapshot, or a damaged one, or of another version.
    """
    name = os.fspath(folder)
    try:
        yield Reader(folder)
    except BadInput as error:
        raise BadInput(f"snapshot {name!r} can't be restored: {error}") from error
    except OSError as error:
        raise BadInput(f"snapshot {name!r} can't be read: {reason(error)}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadInput(f"snapshot {name!r} can't be restored: its state is not of this version") from error


def _parsed(name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"its {name} is not JSON") from error
    if not isinstance(value, dict):
        raise BadInput(f"its {name} is that of something else")
    return value
