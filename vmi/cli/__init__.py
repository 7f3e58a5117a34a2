# SPDX-License-Identifier: GPL-2.0-only
"""The ``vmi`` command: one file per verb, each a thin layer over one function of the library.

Libraries that take long to load (the emulator, the ELF writer, the assembler) are imported inside
the verbs that need them, so that help and the small verbs answer at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vmi.cli import abi, compare, demo, header, inspect, patch, prove, rom, run, stat, unpatch, version
from vmi.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="vmi",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(rom.app, name="rom")
for verb, command in (
    ("patch", patch.command),
    ("unpatch", unpatch.command),
    ("prove", prove.command),
    ("inspect", inspect.command),
    ("run", run.command),
    ("compare", compare.command),
    ("stat", stat.command),
    ("demo", demo.command),
    ("header", header.command),
    ("abi", abi.command),
    ("version", version.command),
):
    app.command(verb)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vmi {__version__}")
        raise typer.Exit


@app.callback()
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
    app(prog_name="vmi")
