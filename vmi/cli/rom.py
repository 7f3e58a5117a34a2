# SPDX-License-Identifier: GPL-2.0-only
"""``vmi rom``: build, list and look into option ROMs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.errors import ExitCode, UsageError
from vmi.files import check_writable, write_atomically

app = typer.Typer(help="Build, list and inspect interface ROMs.", no_args_is_help=True)


@app.command("build")
@guarded
def build_command(
    flavour: Annotated[str, typer.Argument(metavar="FLAVOUR", help="One of `vmi rom list`.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the image goes.")],
    virtual_top: Annotated[
        str | None,
        typer.Option(
            "--virtual-top",
            metavar="HEX",
            help="The hypervisor keeps linear addresses from here on to itself.",
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Build one flavour's option-ROM image."""
    ui = Ui(as_json, quiet, verbose)
    check_writable(output)
    from vmi.rom.build import FLAVOURS, build

    if flavour not in FLAVOURS:
        raise UsageError(f"there is no ROM flavour {flavour!r}; there are {', '.join(sorted(FLAVOURS))}")
    image = build(flavour, 0 if virtual_top is None else values.address(virtual_top)).image
    write_atomically(output, image)
    if ui.json:
        ui.data({"flavour": flavour, "output": str(output), "size": len(image)})
    ui.note(f"{flavour} ROM, {len(image)} bytes, written to {output}")


@app.command("inspect")
@guarded
def inspect_command(
    image: Annotated[str, typer.Argument(metavar="FILE|FLAVOUR", help="A ROM image, or a flavour's name.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what is in a ROM and what is wrong with it.

    The exit status is 10 if a client would refuse it.
    """
    ui = Ui(as_json, quiet, verbose)
    data = values.rom(image)
    from vmi.rom.inspect import inspect

    inspection = inspect(data)
    if ui.json:
        ui.facts(inspection)
    else:
        ui.show(inspection.to_text())
    if inspection.faults:
        raise typer.Exit(int(ExitCode.ROM))


@app.command("list")
@guarded
def list_command(
    as_json: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False
) -> None:
    """List the flavours that can be built."""
    ui = Ui(as_json, quiet, verbose)
    from rich.table import Table

    from vmi.rom.build import FLAVOURS, build

    rows = [(name, len(build(name).image), FLAVOURS[name].summary) for name in sorted(FLAVOURS)]
    if ui.json:
        ui.data([{"flavour": name, "size": size, "summary": summary} for name, size, summary in rows])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("flavour", "bytes", "what"):
        table.add_column(heading, justify="right" if heading == "bytes" else "left")
    for name, size, summary in rows:
        table.add_row(name, str(size), summary)
    ui.show(table)
