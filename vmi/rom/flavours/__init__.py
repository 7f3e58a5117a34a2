# SPDX-License-Identifier: GPL-2.0-only
"""The ROM flavours: each module in this folder holds one, in its constant FLAVOUR.

A new flavour is a new file here; nothing else has to learn its name.
"""

from __future__ import annotations

import importlib
import pkgutil

from vmi.errors import RomError
from vmi.rom.template import Flavour


def _find() -> dict[str, Flavour]:
    found: dict[str, Flavour] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        flavour = getattr(importlib.import_module(f"{__name__}.{name}"), "FLAVOUR", None)
        if not isinstance(flavour, Flavour) or flavour.name != name:
            raise RomError(f"the flavour file {name}.py must define FLAVOUR with the name '{name}'")
        found[name] = flavour
    return found


FLAVOURS: dict[str, Flavour] = _find()


def get(name: str) -> Flavour:
    """The flavour of that name; raises RomError with the names that exist."""
    try:
        return FLAVOURS[name]
    except KeyError:
        raise RomError(f"there is no ROM flavour '{name}'; known are {', '.join(FLAVOURS)}") from None
