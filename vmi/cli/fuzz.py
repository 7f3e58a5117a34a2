# SPDX-License-Identifier: GPL-2.0-only
"""``vmi fuzz``: random sequences of VMI calls, with the bare machine as the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.errors import ExitCode, UsageError
from vmi.files import check_writable, read_input, write_atomically

if TYPE_CHECKING:
    from vmi.conformance.fuzz import Finding

_STEP = 50  # sequences between two words of progress


@guarded
def command(
    rom: Annotated[
        str, typer.Option("--rom", metavar="FLAVOUR|FILE", help="The option ROM to test.")
    ] = "vmware",
    paging: Annotated[
        str, typer.Option("--paging", metavar="HOW", help="off, 2-level, pse or pae.")
    ] = "2-level",
    mmu: Annotated[str, typer.Option("--mmu", metavar="HOW", help="direct or shadow.")] = "direct",
    first: Annotated[
        int,
        typer.Option("--from", metavar="SEED", min=0, help="The first seed: go on where another run ended."),
    ] = 0,
    count: Annotated[int, typer.Option("-n", "--count", metavar="N", min=1, help="Sequences.")] = 1000,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where the first finding goes, as JSON."),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="FILE", help="Run the sequence of a finding again.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run random sequences of VMI calls on a ROM and on the bare machine, up to the first difference.

    The exit status is 22 if there is one. The sequence is made as short and plain as it can be.
    """
    ui = Ui(as_json, quiet, verbose)
    if output is not None:
        check_writable(output)
    from vmi.conformance import fuzz
    from vmi.conformance.layout import Paging
    from vmi.conformance.subject import Environment
    from vmi.conformance.suite import MMUS, Target
    from vmi.rom.build import build

    if paging not in {each.value for each in Paging}:
        raise UsageError(
            f"there is no paging {paging!r}; there is {', '.join(each.value for each in Paging)}"
        )
    if mmu not in MMUS:
        raise UsageError(f"there is no MMU {mmu!r}; there is {', '.join(MMUS)}")
    known = None
    environment = Environment(Paging(paging), mmu)
    if replay is not None:
        known = fuzz.load(read_input(replay, "finding").decode("utf-8", "replace"))
        environment = known.environment
    fuzzer = fuzz.Fuzzer(Target(rom, values.rom(rom)), Target("native", build("native").image), environment)
    found, last = None, first
    if known is not None:
        difference = fuzzer.run(known.steps)
        found = fuzz.Finding(known.seed, environment, known.steps, difference) if difference else None
    else:
        with ui.steps("trying sequences") as step:
            for last in range(first, first + count):
                steps = fuzz.sequence(last, environment)
                if fuzzer.run(steps):
                    steps = fuzzer.shrink(steps)
                    found = fuzz.Finding(last, environment, steps, fuzzer.run(steps))
                    break
                if not last % _STEP:
                    step(last - first, count)
    _tell(ui, found, first, last)
    if found is not None:
        if output is not None:
            write_atomically(output, (json.dumps(found.to_json(), indent=1) + "\n").encode())
            ui.note(f"the sequence was written to {output}; run it again with --replay {output}")
        raise typer.Exit(int(ExitCode.NOT_CONFORMING))


def _tell(ui: Ui, found: Finding | None, first: int, last: int) -> None:
    if ui.json:
        ui.data({"first": first, "last": last, "finding": None if found is None else found.to_json()})
    elif found is None:
        ui.show(f"no difference in the sequences of seeds {first} to {last}")
    else:
        lines = [f"seed {found.seed}, {found.environment}:", *(f"  {step}" for step in found.steps)]
        ui.show("\n".join([*lines, found.difference]))
