# SPDX-License-Identifier: GPL-2.0-only
"""Compiles the accelerator from the C files in its folder, and tells whether a compiled one fits them.

Installation runs this by its path, before there is a package: it needs the standard library only and imports
nothing of vmi. A library carries the stamp of what it was made from, and is looked at as a file before it is
loaded, since the dynamic linker would crash on one that is cut off.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = "_core.so"
#: Holds what could not be compiled with what, and on the next line the reason.
REFUSAL = "not-built.txt"
#: In a library, in front of its stamp.
MARK = b"vmi accelerator "

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = (
    "-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-strict-aliasing",
    "-Wall", "-Wextra", "-Wl,-z,now", "-Wl,-z,defs",
)  # fmt: skip
_LIBRARIES = ("-ldl",)
_PATIENCE = 120  # seconds
_LONGEST = 200  # characters of what a compiler says
_STAMP_DIGITS = 32
# in the header of a shared library (ELF, 64 bits)
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_MAGIC, _SHARED, _X86_64 = b"\x7fELF\x02\x01", 3, 62
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_STAMP = re.compile(re.escape(MARK) + b"([0-9a-f]{%d})\0" % _STAMP_DIGITS)


class Unfit(Exception):
    """There is no accelerator to be had this way; the text is a clause that says why."""


def sources(folder: Path = FOLDER) -> list[Path]:
    """The C files and their headers, in order."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".c", ".h"))


def stamp(folder: Path = FOLDER) -> str:
    """What a library is told by that was compiled from these sources in this way."""
    digest = hashlib.sha256(" ".join(_FLAGS + _LIBRARIES).encode())
    for path in sources(folder):
        data = path.read_bytes()
        digest.update(f"\n{path.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:_STAMP_DIGITS]


def check_platform() -> None:
    """Raise Unfit unless this is what the accelerator is written for."""
    here = f"{platform.system()} on {platform.machine()}"
    if not (sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 1 << 32):
        bits = 64 if sys.maxsize > 1 << 32 else 32
        raise Unfit(f"it is for 64-bit Python for Linux on x86_64, and this is {bits}-bit Python for {here}")


def check(path: Path, expected: str) -> None:
    """Look at a library as a file. :raises Unfit: it is damaged, of another kind, or of other sources."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unfit(f"{path} can't be read: {error.strerror}") from error
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise Unfit(f"{path} is no shared library of 64 bits")
    header = _HEADER.unpack_from(data)
    kind, machine, programs, sections = header[1], header[2], header[5], header[6]
    program_size, program_count, section_size, section_count = header[9:13]
    if (kind, machine) != (_SHARED, _X86_64):
        raise Unfit(f"{path} is no shared library for x86_64")
    ends = [sections + section_size * section_count, programs + program_size * program_count]
    if ends[1] <= len(data) and program_size >= _PROGRAM_HEADER.size:
        for number in range(program_count):
            _, _, offset, _, _, size, _, _ = _PROGRAM_HEADER.unpack_from(
                data, programs + program_size * number
            )
            ends.append(offset + size)
    if max(ends) > len(data):
        raise Unfit(f"{path} is cut off: it has {len(data)} bytes of {max(ends)}")
    found = _STAMP.search(data)
    if found is None:
        raise Unfit(f"{path} is a library of something else")
    if found[1].decode() != expected:
        raise Unfit(f"{path} was compiled from other sources")


def build(target: Path, folder: Path = FOLDER) -> None:
    """Compile the library, in one step for whoever looks at ``target`` meanwhile.

    :raises Unfit: the platform or the compiler, if there is one, can't do it, or ``target`` can't be written.
    """
    check_platform()
    made = stamp(folder)
    compiler = _compiler()
    try:
        handle, name = tempfile.mkstemp(suffix=".so", prefix=".core-", dir=target.parent)
    except OSError as error:
        raise Unfit(f"its folder can't be written to: {error.strerror}") from error
    os.close(handle)
    path = Path(name)
    try:
        _compile(compiler, path, made, folder)
        try:
            check(path, made)
        except Unfit as trouble:
            raise Unfit(f"the C compiler {compiler[0]} made something else: {trouble}") from None
        path.chmod(0o755)
        path.replace(target)
        (target.parent / REFUSAL).unlink(missing_ok=True)
    except OSError as error:
        raise Unfit(f"{target.name} can't be written: {error.strerror}") from error
    finally:
        path.unlink(missing_ok=True)


def refuse(into: Path, reason: str, folder: Path = FOLDER) -> Path:
    """Leave the reason why these sources can't be compiled here; gives the file. :raises OSError: no."""
    path = into / REFUSAL
    path.write_text(f"{_attempt(folder)}\n{reason}\n", encoding="utf-8")
    return path


def refusal(folder: Path = FOLDER, *, same: bool = False) -> str:
    """The reason that :func:`refuse` left in a folder, empty if there is none.

    :param same: only if the same would be attempted now.
    """
    try:
        first, _, reason = (folder / REFUSAL).read_text(encoding="utf-8", errors="replace").partition("\n")
    except OSError:
        return ""
    return "" if same and first != _attempt(folder) else reason.strip()


def _attempt(folder: Path) -> str:
    try:
        return f"{stamp(folder)} {shlex.join(_compiler())}"
    except Unfit:
        return "without a compiler"  # soon said again, and soon no longer true


def _compiler() -> list[str]:
    named = os.environ.get("CC", "").strip()
    try:
        command = shlex.split(named)
    except ValueError:
        command = [named]
    if command:
        if shutil.which(command[0]) is None:
            raise Unfit(f"there is no C compiler {command[0]}, which CC names")
        return command
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise Unfit(f"there is no C compiler ({', '.join(_COMPILERS[:-1])} or {_COMPILERS[-1]})")


def _compile(compiler: list[str], target: Path, made: str, folder: Path) -> None:
    # by their names alone, so that the library is the same bytes wherever it is compiled
    files = [path.name for path in sources(folder) if path.suffix == ".c"]
    mark = f'-DACCELERATOR_STAMP="{MARK.decode()}{made}"'
    command = [*compiler, *_FLAGS, mark, "-o", str(target), *files, *_LIBRARIES]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unfit(f"the C compiler {compiler[0]} took longer than {_PATIENCE} s") from None
    except OSError as error:
        raise Unfit(f"the C compiler {compiler[0]} can't be started: {error.strerror}") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line), lines[0] if lines else "no reason given")
        raise Unfit(f"the C compiler {compiler[0]} failed (status {done.returncode}): {said[:_LONGEST]}")
