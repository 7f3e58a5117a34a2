# SPDX-License-Identifier: GPL-2.0-only
"""``vmi patch``: turn a kernel into one that runs natively and under any VMI ROM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.cli.guest import KernelArgument
from vmi.cli.tables import misses_table
from vmi.errors import UsageError
from vmi.files import check_writable, write_atomically


@guarded
def command(
    kernel: KernelArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Where the patched kernel goes.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write every site and its tactic as JSON.")
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="ADDR", help="Say what becomes of the instruction there."),
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Accept a kernel without any sensitive instruction.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Patch a kernel, so that it runs natively and under any VMI ROM.

    The input is never changed. Without -o nothing but --report and --explain has an effect.
    """
    ui = Ui(as_json, quiet, verbose)
    if output is None and report is None and explain is None:
        raise UsageError("nothing to do: name an output with -o, or ask with --report or --explain")
    where = None if explain is None else values.address(explain)
    image = values.kernel(kernel)
    for target in (output, report):
        if target is not None:
            _keep_input(image, target)
            check_writable(target)

    from vmi.patcher import Options, patch

    with ui.progress(f"patching {image.name}"):
        done = patch(image.data, Options(allow_empty=allow_empty))
    if output is not None:
        write_atomically(output, done.data)
    if report is not None:
        write_atomically(report, done.report.to_json().encode())

    if where is not None:
        answer = done.report.explain(where)
        if ui.json:
            ui.data({"address": where, "explanation": answer.splitlines()})
        else:
            ui.show(answer)
    elif ui.json:
        ui.facts(done.report)
    elif not ui.quiet:
        ui.show(done.report.to_text())
    ui.detail(misses_table(done.report))
    ui.detail(", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in done.seconds.items()))


def _keep_input(image: values.Kernel, target: Path) -> None:
    if image.path is not None and target.exists() and target.samefile(image.path):
        raise UsageError(f"{str(target)!r} is the input; the output needs a name of its own")
