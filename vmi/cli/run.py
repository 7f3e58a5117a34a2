# SPDX-License-Identifier: GPL-2.0-only
"""``vmi run``: boot one kernel, on bare hardware or under a hypervisor."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.cli.console import ConsoleSink
from vmi.cli.guest import (
    MEMORY,
    TIMEOUT,
    AppendOption,
    InitrdOption,
    KernelArgument,
    MemoryOption,
    TimeoutOption,
    UntilOption,
)
from vmi.cli.tables import counts_table, seconds
from vmi.errors import BadInput, UsageError


@guarded
def command(
    kernel: KernelArgument,
    rom: Annotated[
        str | None,
        typer.Option("--rom", metavar="FLAVOUR|FILE", help="Plug this option ROM in (see `vmi rom list`)."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="De-privilege the unpatched guest: trap and emulate, no ROM.")
    ] = False,
    memory: MemoryOption = MEMORY,
    append: AppendOption = "",
    initrd: InitrdOption = None,
    timeout: TimeoutOption = TIMEOUT,
    until: UntilOption = None,
    serial: Annotated[
        str, typer.Option("--serial", metavar="WHERE", help="Serial console: stdio, file:PATH or none.")
    ] = "stdio",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Boot a kernel and show its serial console.

    The exit status is the guest's own if it ends through the debug-exit port. On a terminal, control
    sequences that the guest prints are shown, not obeyed; a file or pipe gets its bytes unchanged. With
    --json the console is part of the JSON value instead.
    """
    ui = Ui(as_json, quiet, verbose)
    if full and rom is not None:
        raise UsageError("--full runs without a ROM, so it can't be combined with --rom")
    size, limit, where = values.memory_size(memory), values.duration(timeout), values.serial(serial)
    if ui.json and where.terminal:
        where = values.Serial(terminal=False)
    image = values.kernel(kernel)
    firmware = None if rom is None else values.rom(rom)
    modules = [values.module(one) for one in initrd or ()]
    if firmware is not None:
        _note_unpatched(ui, image)
    sink = ConsoleSink(where)

    from vmi.run import run_kernel

    try:
        # A spinner would fight with the guest for the same terminal; the guest's own output is progress.
        with Ui(quiet=quiet or where.terminal).progress(f"running {image.name}"):
            result = run_kernel(
                image.data,
                rom=firmware,
                memory=size,
                append=append,
                modules=modules,
                timeout_ns=limit,
                until=values.text(until),
                on_console=sink.write,
                full=full,
            )
    finally:
        sink.close()

    if ui.json:
        ui.facts(result)
    ui.note(
        f"{result.mode}: {result.reason} ({result.outcome.value}; {result.instructions:,} instructions, "
        f"{seconds(result.virtual_ns)} guest time, {result.wall_s:.1f} s here)"
    )
    ui.detail(counts_table("exits by reason", result.exits))
    ui.detail(counts_table("VMI calls that left the ROM", result.calls))
    if result.exit_status:
        raise typer.Exit(result.exit_status)


def _note_unpatched(ui: Ui, image: values.Kernel) -> None:
    """A ROM that nobody looks for changes nothing; say so before the user wonders."""
    with contextlib.suppress(BadInput):  # the boot loader knows better what it can't load
        if not image.patched:
            ui.note(f"{image.name} is not patched; it uses the ROM only if it is a VMI client by itself")
