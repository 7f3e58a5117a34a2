# SPDX-License-Identifier: GPL-2.0-only
"""``vmi version``: versions of everything that a run's result depends on."""

from __future__ import annotations

import platform

from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.errors import EngineError
from vmi.version import __version__

LIBRARIES = ("unicorn", "lief", "keystone-engine", "iced-x86")


@guarded
def command(as_json: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Show the versions of vmi, of the ABI and of the libraries below, and how the CPU is run."""
    from vmi import abi

    ui = Ui(as_json, quiet, verbose)
    facts = {
        "vmi": __version__,
        "abi": f"{abi.API_MAJOR}.{abi.API_MINOR}",
        "python": platform.python_version(),
    }
    facts |= {library: _version(library) for library in LIBRARIES}
    facts["engine"] = _engine()
    if ui.json:
        ui.data(facts)
    else:
        ui.show("\n".join(f"{name:16}{value}" for name, value in facts.items()))


def _version(library: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "missing"


def _engine() -> str:
    """How a guest's instructions are executed here: proving that it works is part of finding out."""
    try:
        from vmi.native import fitness
    except ImportError as error:
        return f"unusable: {error}"
    try:
        return fitness.describe()
    except EngineError as error:
        return f"unusable: {error}"
