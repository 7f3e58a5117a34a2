# SPDX-License-Identifier: GPL-2.0-only
"""``vmi abi``: the interface's calls, straight from the table."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any

import typer
from rich.table import Table

from vmi import abi
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.errors import UsageError


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
    ui = Ui(as_json, quiet, verbose)
    chosen = abi.CALLS if call is None else (_find(call),)
    if ui.json:
        rows = [row(one) for one in chosen]
        ui.data(rows if call is None else rows[0])
    elif call is None:
        ui.show(_overview())
    else:
        ui.show(_page(chosen[0]))


def _find(name: str) -> abi.Call:
    try:
        return abi.find(name)
    except KeyError:
        close = abi.suggest(name)
        hint = f"did you mean {' or '.join(close)}?" if close else "`vmi abi` lists all names and numbers"
        raise UsageError(f"there is no VMI call {name!r}; {hint}") from None


def row(call: abi.Call) -> dict[str, Any]:
    """One row of the table as JSON has it: enumerations by their names, not their numbers."""
    value = _plain(asdict(call))
    assert isinstance(value, dict)
    return value | {"preserves": list(call.preserves), "stack_words": call.stack_words}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value if isinstance(value, str) else value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _overview() -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("no", "call", "group", "kind", "level", "instructions"):
        table.add_column(heading, justify="right" if heading in ("no", "level") else "left")
    for call in abi.CALLS:
        table.add_row(
            str(call.number),
            call.name,
            call.group.value,
            call.kind.value,
            str(call.level),
            ", ".join(call.instructions),
        )
    return table


def _page(call: abi.Call) -> str:
    """Everything about one call as plain lines; a part that doesn't apply is not mentioned."""
    lines = [
        f"{call.name}  (call {call.number}, {call.group.value}, level {call.level})",
        call.summary,
        "",
        f"kind          {call.kind.value}",
        f"convention    {call.convention.value}",
        f"flags         {call.flags.value}",
        f"clobbers      {', '.join(call.clobbers) or 'nothing'}",
        f"preserves     {', '.join(call.preserves) or 'nothing'}",
        f"relocations   {', '.join(kind.name for kind in call.relocations)}",
        f"stands for    {', '.join(call.instructions) or 'no instruction'}",
        f"Linux         {call.linux.operation} ({call.linux.bind.value}); if NONE: {call.linux.if_none}",
    ]
    for title, items in (
        ("arguments", [f"{a.name}: {a.type} in {':'.join(a.places)}: {a.meaning}" for a in call.args]),
        ("results", [f"{r.name}: {r.type} in {':'.join(r.places)}: {r.meaning}" for r in call.results]),
        ("faults", [f"{fault.name} {fault.when}" for fault in call.faults]),
        ("requirements", [f"{one.id}  {one.text}" for one in call.requirements]),
        ("notes", list(call.notes)),
    ):
        if items:
            lines += ["", title, *(f"  {item}" for item in items)]
    return "\n".join(lines)
