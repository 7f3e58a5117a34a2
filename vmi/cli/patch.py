# SPDX-License-Identifier: GPL-2.0-only
"""``vmi patch``: turn a kernel into one that runs natively and under any VMI ROM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded, keep_inputs
from vmi.cli.guest import KernelArgument
from vmi.cli.tables import coverage_table, misses_table
from vmi.errors import UsageError
from vmi.files import check_writable, read_input, write_atomically

if TYPE_CHECKING:
    from vmi.patcher import Options, Patched
    from vmi.patcher.explain import Explanation

_PHASES = {
    "read": "reading", "plan": "planning", "emit": "making code", "write": "writing", "verify": "checking",
    "pack": "compressing", "report": "reporting",
}  # fmt: skip


_LARGEST_SYMBOLS = 1 << 30
"""Bytes; the debug files of distributions' kernels have a third of that."""


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
        typer.Option(
            "--explain", metavar="ADDR", help="Show what becomes of the code there: c0100000 or NAME+0x10."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do and check everything, but write nothing.")
    ] = False,
    place: Annotated[
        str,
        typer.Option(
            "--place", metavar="WHERE", help="auto, after-image, linux, low-memory, or an address (0x…)."
        ),
    ] = "auto",
    symbols: Annotated[
        Path | None,
        typer.Option("--symbols", metavar="FILE", help="A debug file or symbol map of the same build."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="What `vmi run --profile` recorded of the kernel."),
    ] = None,
    no_undo: Annotated[
        bool, typer.Option("--no-undo", help="Without the record that `vmi unpatch` needs.")
    ] = False,
    prove_undo: Annotated[
        bool,
        typer.Option(
            "--prove-undo", help="Try all of what `vmi unpatch` will do; some seconds for a bzImage."
        ),
    ] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Accept a kernel without any sensitive instruction.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Patch a kernel, so that it runs natively and under any VMI ROM.

    The input is never changed. An ELF file that goes to OUT.gz is compressed.
    Without -o nothing but --report, --explain and --dry-run has an effect.
    """
    ui = Ui(as_json, quiet, verbose)
    if output is None and report is None and explain is None and not dry_run:
        raise UsageError(
            "nothing to do: name an output with -o, or ask with --report, --explain or --dry-run"
        )
    if dry_run and report is not None:
        raise UsageError("--dry-run writes nothing: instead of --report FILE, --json prints the report")
    image = values.kernel(kernel)
    inputs = [path for path in (image.path, symbols, profile) if path is not None]
    for target in (output, report):
        if target is not None:
            keep_inputs(inputs, target)
            check_writable(target)

    from vmi.patcher.container import in_gzip, open_container
    from vmi.patcher.elf import MAGIC

    with ThreadPoolExecutor(1) as beside:
        opening = beside.submit(open_container, image.data)  # unpacks it while the rest is loaded
        from vmi.patcher import Options, patch
    # What is only looked at needs no record to be taken back by, which takes the most time for a bzImage.
    looked_at = output is None and report is None and not dry_run
    options = Options(
        allow_empty=allow_empty,
        place=place,
        symbols=None if symbols is None else read_input(symbols, "symbol file", _LARGEST_SYMBOLS),
        profile=None if profile is None else read_input(profile, "profile"),
        undo=not (no_undo or looked_at),
        prove_undo=prove_undo,
    )
    with ui.phases(f"patching {image.name}") as phase:
        done = patch(opening.result(), options, progress=lambda name: phase(_PHASES.get(name, name)))
        answer = None if explain is None else _explained(explain, image, done, options)
    if output is not None and not dry_run:
        compressed = output.suffix == ".gz" and done.data.startswith(MAGIC)
        write_atomically(output, in_gzip(done.data) if compressed else done.data)
    if report is not None:
        write_atomically(report, done.report.to_json().encode())

    if answer is not None:
        if ui.json:
            ui.data(answer.to_json())
        else:
            ui.show(answer.to_text(ui.width))
    elif ui.json:
        ui.facts(done.report)
    elif not ui.quiet:
        ui.show(done.report.to_text())
    if dry_run:
        ui.note("nothing was written")
    if ui.verbose:
        ui.detail(coverage_table(done.report))
        ui.detail(misses_table(done.report))
    ui.detail(", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in done.seconds.items()))


def _explained(text: str, image: values.Kernel, done: Patched, options: Options) -> Explanation:
    """What became of the code at the address that ``text`` names."""
    from vmi.patcher.explain import of_patch, parse_address

    explainer = of_patch(image.data, done.data, done.report, options.symbols)
    return explainer.explain(parse_address(text, explainer.symbols))
