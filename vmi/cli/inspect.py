# SPDX-License-Identifier: GPL-2.0-only
"""``vmi inspect``: what is in a kernel file, patched or not."""

from __future__ import annotations

from typing import Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.cli.guest import KernelArgument
from vmi.cli.tables import cross_table, reasons_table, tactics_table


@guarded
def command(
    kernel: KernelArgument,
    sites: Annotated[bool, typer.Option("--sites", help="List every record of a patched kernel.")] = False,
    tactics: Annotated[
        bool, typer.Option("--tactics", help="What was done with how many sites, and why not with others.")
    ] = False,
    calls: Annotated[
        bool, typer.Option("--calls", help="Tactics by VMI call; by instruction if not patched.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", metavar="ADDR", help="Show what became of the code there: c0100000 or NAME+0x10."
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show a kernel's layout, its sites and, if it is patched, its site table."""
    ui = Ui(as_json, quiet, verbose)
    image = values.kernel(kernel)
    from vmi.patcher import inspect_file
    from vmi.patcher.explain import parse_address

    with ui.progress(f"reading {image.name}"):
        found = inspect_file(image.data)
        explainer = None if explain is None else found.explainer()
    if explain is not None and explainer is not None:
        answer = explainer.explain(parse_address(explain, explainer.symbols))
        if ui.json:
            ui.data(answer.to_json())
        else:
            ui.show(answer.to_text(ui.width))
    elif ui.json:
        ui.facts(found)
    elif not (sites or tactics or calls):
        ui.show(found.to_text(sites=ui.verbose))
    else:
        if tactics:
            ui.show(tactics_table(found.counts))
            if found.reasons:
                ui.show("", reasons_table(found.reasons))
        if calls:
            ui.show(*[""] * tactics, cross_table("call" if found.patched else "instruction", found.cross))
        if sites:
            listed = "\n".join(found.site_lines()) or "there are no records: the file isn't patched"
            ui.show(*[""] * (tactics or calls), listed)
