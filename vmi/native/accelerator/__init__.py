# SPDX-License-Identifier: GPL-2.0-only
"""The optional C part of the CPU: the same runs, several times faster.

``core.c`` next to this file is plain C; :func:`build` makes a shared object of it, ``_core*.so`` beside it,
and :func:`load` finds that. Without one, or with ``VMI_ACCELERATOR=0`` in the environment, the CPU does
everything in Python, and each run is the same, instruction by instruction.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from vmi.errors import EngineError
from vmi.native.accelerator.core import Core, Library, installed

__all__ = ["Core", "Library", "build", "forget", "give_up", "installed", "load", "refusal"]

SOURCE = Path(__file__).with_name("core.c")
FLAGS = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
SWITCH = "VMI_ACCELERATOR"  # 0 for none

#: Where the shared object is looked for; tests have their own place.
folder = SOURCE.parent
_PATTERN = "_core*.so"


_loaded: dict[Path, Library | None] = {}
_refusals: dict[Path, str] = {}


def load() -> Library | None:
    """The library, None if there is none or it can't be used; :func:`refusal` then says why."""
    if os.environ.get(SWITCH) == "0":
        return None
    if folder not in _loaded:
        _refusals.pop(folder, None)
        _loaded[folder] = _load()
    return _loaded[folder]


def _load() -> Library | None:
    for path in sorted(folder.glob(_PATTERN)):
        try:
            return Library(path)
        except (OSError, AttributeError) as error:
            _refusals[folder] = str(error)
    return None


def refusal() -> str | None:
    """Why a shared object that is there can't be used; None if that is not so."""
    return _refusals.get(folder)


def give_up(why: str) -> None:
    """Do without the library from now on. :param why: a clause."""
    _loaded[folder] = None
    _refusals[folder] = why


def forget() -> None:
    """Look for the shared object anew next time."""
    _loaded.clear()


def build(source: Path, out: Path) -> None:
    """Compile ``source`` to the shared object ``out`` with ``$CC``, else cc or gcc.

    :raises EngineError: there is no C compiler, or it fails; the sentence has its first complaint.
    """
    compiler = (
        shlex.split(os.environ.get("CC", ""))
        or [found for name in ("cc", "gcc") if (found := shutil.which(name))][:1]
    )
    if not compiler:
        raise EngineError("a C compiler is needed to build the accelerator, but there is neither cc nor gcc")
    try:
        done = subprocess.run(
            [*compiler, *FLAGS, "-o", str(out), str(source)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise EngineError(f"the C compiler {compiler[0]} can't be run: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it gave no reason"]
        raise EngineError(f"the accelerator can't be compiled with {compiler[0]}: {lines[0].strip()}")
