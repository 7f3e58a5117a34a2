# SPDX-License-Identifier: GPL-2.0-only
"""The optional C part of the CPU: the same runs, several times faster.

The C files next to this one are plain C; :mod:`~vmi.native.accelerator.build` makes a shared object of
them, and :func:`load` loads that. Without one, or with ``VMI_ACCELERATOR=0`` in the environment, the CPU does
everything in Python, and each run is the same, instruction by instruction.
"""

from __future__ import annotations

import warnings

from vmi.errors import Notice
from vmi.native.accelerator import build
from vmi.native.accelerator.core import Core, Library, installed
from vmi.native.accelerator.finding import find

__all__ = ["Core", "Library", "forget", "give_up", "installed", "load", "put_aside", "refusal"]

#: Where the library is looked for; tests have their own place.
folder = build.FOLDER


class _State:
    """What this process knows of its accelerator."""

    library: Library | None = None
    looked = False
    why = ""


_state = _State()


def load() -> Library | None:
    """The library, None if there is none or it can't be used; :func:`refusal` then says why.

    One that is there and can't be used is told of in a :class:`~vmi.errors.Notice`, once.
    """
    if not _state.looked:
        _state.looked = True
        found = find(folder)
        _state.why = found.why
        if found.path is not None:
            try:
                _state.library = Library(found.path)
            except (OSError, AttributeError) as error:
                give_up(f"{found.path} can't be loaded: {error}")
        elif found.damaged:
            give_up(found.why)
    return _state.library


def put_aside() -> bool:
    """Do without the library from now on; False if it was not in use anyway."""
    used = _state.library is not None
    _state.looked, _state.library = True, None
    return used


def give_up(why: str) -> None:
    """Do without the library from now on, and tell the user. :param why: a clause."""
    put_aside()
    _state.why = why
    warnings.warn(Notice(f"running without the accelerator, so slower: {why}"), stacklevel=2)


def refusal() -> str:
    """Why there is no accelerator, once :func:`load` was called; empty if there is one."""
    return _state.why


def forget() -> None:
    """Look for the library anew next time."""
    global _state
    _state = _State()
