# SPDX-License-Identifier: GPL-2.0-only
"""Where the accelerator's library is found, or why there is none.

An installed package has the library that its installation made, or a file that says why not. In a checkout
it is beside its sources, and made here whenever it does not fit them.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from vmi.native.accelerator import build

SWITCH = "VMI_ACCELERATOR"  # 0 for none
_NOT_BUILT = "none was made at installation"


@dataclass(frozen=True)
class Finding:
    """The library's path, or None and a clause that says why.

    :ivar damaged: there is a library, and it is no good: worth telling without being asked.
    """

    path: Path | None
    why: str = ""
    damaged: bool = False


def find(folder: Path = build.FOLDER) -> Finding:
    """Look for the library; in a checkout make it if need be."""
    if os.environ.get(SWITCH) == "0":
        return Finding(None, f"{SWITCH}=0 switches it off")
    path = folder / build.LIBRARY
    there = path.exists()
    try:
        build.check_platform()
        build.check(path, build.stamp(folder))
    except build.Unfit as trouble:
        if in_checkout(folder):
            return _make(path, str(trouble) if there else "")
        if there:
            return Finding(None, str(trouble), damaged=True)
        return Finding(None, build.refusal(folder) or _NOT_BUILT)
    return Finding(path)


def in_checkout(folder: Path) -> bool:
    """The folder belongs to the project's sources, not to an installed package."""
    return (folder.parents[2] / "hatch_build.py").exists()


def _make(path: Path, trouble: str) -> Finding:
    """Compile beside the sources. :param trouble: what is wrong with the library there, empty if none is."""
    folder = path.parent
    reason = build.refusal(folder, same=True)
    if not reason:
        try:
            build.build(path, folder)
            return Finding(path)
        except build.Unfit as error:
            reason = str(error)
            with contextlib.suppress(OSError):
                build.refuse(folder, reason, folder)
    if trouble:
        return Finding(None, f"{trouble}, and no other can be made: {reason}", damaged=True)
    return Finding(None, reason)
