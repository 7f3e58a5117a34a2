# SPDX-License-Identifier: GPL-2.0-only
"""The sample kernels that ship with the toolkit: where each image is, what it shows, how it must end.

They are the first thing a user runs and the guests that every end-to-end test runs, so they must be found
both beside the package, in a checkout, and inside it, once installed.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from vmi.errors import BadInput

_KEYS = {"name", "title", "shows", "expected", "exit_status", "annotated", "build"}


@dataclass(frozen=True)
class Sample:
    """One sample kernel, as its ``kernel.toml`` describes it."""

    name: str
    path: Path = field(repr=False)
    """The ELF image."""
    title: str = field(repr=False)
    shows: str = field(repr=False)
    """What it exercises, in one line."""
    expected: str = field(repr=False)
    """Everything it writes to COM1, lines ended by LF."""
    exit_status: int
    """``(value << 1) | 1`` for the value it writes to the debug-exit port, as QEMU reports it."""
    annotated: bool
    """Whether its sensitive instructions are marked by ``vmi_guest.h``."""


@cache
def directory() -> Path:
    """The directory of the sample kernels; BadInput if the installation has none."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_sample_kernels", package.parent / "sample_kernels"):
        if candidate.is_dir():
            return candidate
    raise BadInput("this installation of vmi holds no sample kernels")


def names() -> list[str]:
    """Names of all sample kernels, sorted."""
    return sorted(path.parent.name for path in directory().glob("*/kernel.toml"))


def get(name: str) -> Sample:
    """The sample kernel called `name`; BadInput if there is none, or if its files are damaged."""
    if name not in names():
        raise BadInput(f"no sample kernel is called {name!r}; there are {', '.join(names())}")
    home = directory() / name
    description = home / "kernel.toml"
    try:
        table = tomllib.loads(description.read_text(encoding="utf-8"))
        if table.keys() != _KEYS:
            different = ", ".join(sorted(table.keys() ^ _KEYS))
            raise BadInput(f"{description}: missing or unknown keys: {different}")
        if table["name"] != name:
            raise BadInput(f"{description}: expected the name {name!r} and got {table['name']!r}")
        expected = (home / table["expected"]).read_bytes().decode("ascii")
    except (OSError, ValueError) as error:
        raise BadInput(f"{description}: {error}") from error
    image = home / f"{name}.elf"
    if not image.is_file():
        raise BadInput(f"the sample kernel {name} is not built: {image} does not exist")
    return Sample(
        name=name,
        path=image,
        title=table["title"],
        shows=table["shows"],
        expected=expected,
        exit_status=table["exit_status"],
        annotated=table["annotated"],
    )


def load_all() -> list[Sample]:
    """Every sample kernel, by name."""
    return [get(name) for name in names()]
