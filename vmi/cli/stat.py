# SPDX-License-Identifier: GPL-2.0-only
"""``vmi stat``: run a kernel and show its exits as ``perf kvm stat`` shows those of KVM's guests."""

from __future__ import annotations

from collections.abc import Sequence
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
    check_hypervisor,
)
from vmi.cli.tables import seconds
from vmi.errors import UsageError
from vmi.exits import Cause

if TYPE_CHECKING:
    from vmi.hypervisor.stopwatch import Spent

SORTS = ("time", "sample", "name")


@guarded
def command(
    kernel: KernelArgument,
    rom: Annotated[
        str | None, typer.Option("--rom", metavar="FLAVOUR|FILE", help="Plug this option ROM in.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="De-privilege the unpatched guest: trap and emulate, no ROM.")
    ] = False,
    event: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="CAUSE", help="Show exits of this cause only; may be repeated."),
    ] = None,
    key: Annotated[str, typer.Option("--key", metavar="KEY", help="Sort by time, sample or name.")] = "time",
    memory: MemoryOption = MEMORY,
    cpu: CpuOption = None,
    smp: SmpOption = 1,
    mmu: MmuOption = MMU,
    append: AppendOption = "",
    initrd: InitrdOption = None,
    timeout: TimeoutOption = TIMEOUT,
    until: UntilOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a kernel and show how often it exits, why, and how long that takes.

    Times are this computer's. The exit status is 0 however the guest ended; -v says how.
    """
    ui = Ui(as_json, quiet, verbose)
    causes = [_cause(one) for one in event or ()]
    if key not in SORTS:
        raise UsageError(f"sort key {key!r} is not understood: expected {', '.join(SORTS)}")
    check_hypervisor(full, rom, mmu)
    from vmi.run import Setup, run

    image = values.kernel(kernel)
    setup = Setup(
        image=image.data,
        rom=None if rom is None else values.rom(rom),
        memory=values.memory_size(memory),
        append=append,
        modules=[values.module(one) for one in initrd or ()],
        full=full,
        model=values.cpu(cpu),
        cpus=smp,
        mmu=mmu,
    )
    wanted, limit = values.text(until), values.duration(timeout)
    with ui.progress(f"running {image.name}"):
        result = run(setup, timeout_ns=limit, until=wanted, timed=True)
    ui.detail(f"{result.mode}: {result.reason}; {seconds(result.virtual_ns)} guest time")
    shown = [row for row in result.spent if not causes or row.cause in causes]
    shown.sort(key=lambda row: _rank(row, key))
    if ui.json:
        ui.data({"mode": result.mode, "exits": [row.to_json() for row in shown]})
    else:
        ui.show(text(shown))


def _rank(row: Spent, key: str) -> tuple[int, str]:
    return ({"time": -row.total, "sample": -row.count}.get(key, 0), row.reason)


def _cause(name: str) -> Cause:
    try:
        return Cause(name)
    except ValueError:
        known = ", ".join(Cause)
        raise UsageError(f"event {name!r} is not understood: expected one of {known}") from None


def text(rows: Sequence[Spent]) -> str:
    """The table, in the shape that ``perf kvm stat report`` has."""
    samples, total = sum(row.count for row in rows), sum(row.total for row in rows)
    width = max([len(row.reason) for row in rows] + [24])
    lines = [
        f"{'VM-EXIT':>{width}} {'Samples':>10} {'Samples%':>9} {'Time%':>8} "
        f"{'Min Time':>12} {'Max Time':>12} {'Avg time':>15}",
        "",
    ]
    for row in rows:
        lines.append(
            f"{row.reason:>{width}} {row.count:>10} {_percent(row.count, samples):>9} "
            f"{_percent(row.total, total):>8} {_us(row.least):>12} {_us(row.most):>12} "
            f"{_us(row.mean):>15} ( +- {100 * row.deviation:6.2f}% )"
        )
    lines += ["", f"Total Samples:{samples}, Total events handled time:{_us(total)}."]
    return "\n".join(lines)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "0.00%"


def _us(nanoseconds: float) -> str:
    return f"{nanoseconds / 1000:.2f}us"
