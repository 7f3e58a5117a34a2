# SPDX-License-Identifier: GPL-2.0-only
"""``vmi prove``: execute a patched kernel's windows against the original's."""

from __future__ import annotations

from typing import Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.errors import ExitCode, UsageError

TRIALS = 8


@guarded
def command(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The kernel before it was patched.")],
    patched: Annotated[str, typer.Argument(metavar="PATCHED", help="What `vmi patch` made of it.")],
    trials: Annotated[
        int, typer.Option("--trials", metavar="N", help="States that each window starts from.")
    ] = TRIALS,
    window: Annotated[
        str | None,
        typer.Option("--window", metavar="ADDR", help="Only the window that holds this address."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Execute every window of a patched kernel and of its original, and compare.

    Each is run from several states, natively and with all slots connected to the native ROM. The exit
    status is 18 if anything differs: registers, flags, memory, ports, exceptions. -v adds the state in which
    each disagreement began.
    """
    ui = Ui(as_json, quiet, verbose)
    where = None if window is None else values.address(window)
    if trials < 1:
        raise UsageError(f"expected at least one trial, got {trials}")
    first, second = values.kernel(original), values.kernel(patched)

    from vmi.proof import prove

    with ui.steps(f"proving {second.name}") as progress:
        found = prove(first.data, second.data, trials=trials, window=where, progress=progress)
    if ui.json:
        ui.facts(found)
    elif not ui.quiet:
        ui.show(found.to_text())
    for one in found.disagreements:
        if one.state:
            ui.detail(f"{one.window:#x} trial {one.trial}: {one.state}")
    if not found.agrees:
        raise typer.Exit(ExitCode.DIFFERENT)
