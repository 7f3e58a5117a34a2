# SPDX-License-Identifier: GPL-2.0-only
"""The cases written by hand, one module per group of calls. Importing a module registers its cases."""

from __future__ import annotations

import importlib
import pkgutil


def load() -> None:
    """Import all modules here."""
    for found in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{found}")
