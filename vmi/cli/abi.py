# SPDX-License-Identifier: GPL-2.0-only
"""``vmi abi``: the interface's calls, straight from the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from vmi import abi


@guarded
def command(
    call: Annotated[
        str | None, typer.Argument(help="Name or number of one call; all calls if absent.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show the calls of the VMI ABI, or everything about one of them."""
    from vmi import abi

    ui = Ui(as_json, quiet, verbose)
    chosen = abi.CALLS if call is None else (_find(call),)
    if ui.json:
        rows = [abi.call_to_json(one) for one in chosen]
        ui.data(rows if call is None else rows[0])
    elif call is None:
        ui.show(_overview())
    else:
        ui.show(abi.describe(chosen[0]))


def _find(name: str) -> abi.Call:
    from vmi import abi

    try:
        return abi.find(name)
    except KeyError:
        close = abi.suggest(name)
        hint = f"did you mean {' or '.join(close)}?" if close else "`vmi abi` lists all names and numbers"
        raise UsageError(f"there is no VMI call {name!r}; {hint}") from None


def _overview() -> Table:
    from rich.table import Table

    from vmi import abi

    table = Table(box=None, pad_edge=False)
    *headings, _summary = abi.SUMMARY_COLUMNS  # a sentence per call would not fit a terminal
    for heading in headings:
        table.add_column(heading, justify="right" if heading == headings[0] else "left")
    for row in abi.summary_rows():
        table.add_row(*row[:-1])
    return table
