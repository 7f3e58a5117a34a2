# SPDX-License-Identifier: GPL-2.0-only
"""The ``vmi`` command: one file per verb, each a thin layer over one function of the library.

Libraries that take long to load (the emulator, the ELF writer, the assembler) are imported inside
the verbs that need them, so that help and the small verbs answer at once. The command itself loads only
the verb that it was called with; ``app`` has all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmi.version import __version__

if TYPE_CHECKING:
    app: typer.Typer

__all__ = ["app", "main"]

_ROM = "rom"
VERBS = (
    _ROM, "patch", "unpatch", "prove", "inspect", "run", "compare", "stat", "conform", "fuzz", "demo",
    "header", "abi", "version",
)  # fmt: skip


def application(verbs: Sequence[str] = VERBS) -> typer.Typer:
    """The command with these verbs, each in a module of its name."""
    made = typer.Typer(
        name="vmi",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(root)
    for verb in verbs:
        module = import_module(f"{__name__}.{verb}")
        if verb == _ROM:
            made.add_typer(module.app, name=verb)
        else:
            made.command(verb)(module.command)
    return made


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'vmi.cli' has no attribute {name!r}")
    globals()["app"] = made = application()
    return made


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vmi {__version__}")
        raise typer.Exit


def root(
    show: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Transparent paravirtualization of i386 kernels: patch once, run natively or under any hypervisor."""


def main() -> None:
    """Entry point of the console script; ends the process with a documented exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe in an old encoding must not turn a table's line or a file's name into an error.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    application([verb] if verb in VERBS else VERBS)(prog_name="vmi")
