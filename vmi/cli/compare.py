# SPDX-License-Identifier: GPL-2.0-only
"""``vmi compare``: the same kernel natively and paravirtualized, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.cli.guest import (
    MEMORY,
    MMU,
    TIMEOUT,
    AppendOption,
    CpuOption,
    InitrdOption,
    KernelArgument,
    MemoryOption,
    MmuOption,
    SmpOption,
    TimeoutOption,
    UntilOption,
)
from vmi.cli.tables import comparison_table, summary
from vmi.errors import ExitCode, UsageError
from vmi.files import check_writable, write_atomically

if TYPE_CHECKING:
    from vmi.run import Comparison

MODES = ("native", "paravirt", "full")
DEFAULT_ROM = "vmware"


@guarded
def command(
    kernel: KernelArgument,
    rom: Annotated[
        str, typer.Option("--rom", metavar="FLAVOUR|FILE", help="The option ROM of the paravirt run.")
    ] = DEFAULT_ROM,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode", metavar="MODE", help="native, paravirt or full; repeat it. The first is the oracle."
        ),
    ] = None,
    mmu: MmuOption = MMU,
    memory: MemoryOption = MEMORY,
    cpu: CpuOption = None,
    smp: SmpOption = 1,
    append: AppendOption = "",
    initrd: InitrdOption = None,
    timeout: TimeoutOption = TIMEOUT,
    until: UntilOption = None,
    no_patch: Annotated[
        bool,
        typer.Option(
            "--no-patch", help="Run the kernel as it is: it is a client of the interface by itself."
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the comparison too, as a PNG picture.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a kernel natively and paravirtualized and show both side by side.

    An unpatched kernel is patched in memory first, unless it is a client of the interface
    by itself, such as a Linux with CONFIG_VMI (--no-patch). The exit status is 18 if
    consoles or outcomes differ.
    """
    ui = Ui(as_json, quiet, verbose)
    modes = mode or ["native", "paravirt"]
    for one in modes:
        if one not in MODES:
            raise UsageError(f"mode {one!r} is not understood: expected native, paravirt or full")
    if len(set(modes)) != len(modes) or len(modes) < 2:
        raise UsageError("a comparison needs at least two modes, each of them once")
    if plot is not None:
        check_writable(plot)
    size, limit = values.memory_size(memory), values.duration(timeout)
    image = values.kernel(kernel)
    modules = [values.module(one) for one in initrd or ()]
    firmware = values.rom(rom)
    wanted, model = values.text(until), values.cpu(cpu)
    # a client's file may be of a kind that the patcher can't even read
    was_patched = not no_patch and image.patched
    if "full" in modes and was_patched:
        raise UsageError("mode full runs the kernel as it was before patching, so give that file")
    data = image.data if no_patch else patched(ui, image)

    from vmi.run import compare

    with ui.progress(f"running {image.name}: {', '.join(modes)}"):
        comparison = compare(
            data,
            modes,
            rom=firmware,
            memory=size,
            append=append,
            modules=modules,
            timeout_ns=limit,
            until=wanted,
            original=None if was_patched else image.data,
            model=model,
            cpus=smp,
            mmu=mmu,
        )
    if plot is not None:
        from vmi.plot import png

        write_atomically(plot, png(comparison))
    if ui.json:
        ui.facts(comparison)
    else:
        show(ui, comparison)
    finish(comparison)


def patched(ui: Ui, image: values.Kernel) -> bytes:
    """The kernel's bytes, patched in memory if they weren't yet."""
    from vmi.patcher import patch

    if image.patched:
        return image.data
    with ui.progress(f"patching {image.name}"):
        done = patch(image.data)
    ui.note(f"{image.name} is not patched; patched in memory for this comparison: {summary(done.report)}")
    return done.data


def show(ui: Ui, comparison: Comparison) -> None:
    """The table, and the difference if there is one."""
    ui.show(comparison_table(comparison, everything=ui.verbose))
    if comparison.diff:
        ui.show("The consoles differ:", comparison.diff)


def finish(comparison: Comparison) -> None:
    """End with the status for scripts: 18 if the runs differ in console or outcome."""
    if not comparison.equal:
        raise typer.Exit(int(ExitCode.DIFFERENT))
