# SPDX-License-Identifier: GPL-2.0-only
"""Tables that several verbs show: counts, and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from vmi.cli.terminal import safe

if TYPE_CHECKING:
    from vmi.patcher.report import Report
    from vmi.run import Comparison, RunResult

NOTHING = "–"
_SHOWN = 10
"""Rows of exits, and of calls, in a comparison; the rest is one row unless everything is asked for."""


def seconds(nanoseconds: int) -> str:
    """A time span with three places after the point of its largest fitting unit."""
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= scale:
            return f"{nanoseconds / scale:.3f} {unit}"
    return f"{nanoseconds} ns"


def ratio(value: float, base: float) -> str:
    """``value`` as a multiple of ``base``; nothing to say where one of them is zero."""
    return f"×{value / base:.2f}" if value and base else NOTHING


def by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Largest count first, then by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def counts_table(title: str, counts: Mapping[str, int]) -> Table:
    """Names and counts, largest first, with each one's share of the sum."""
    total = sum(counts.values())
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    for name, count in by_count(counts):
        table.add_row(safe(name), f"{count:,}", f"{100 * count / total:.1f} %" if total else NOTHING)
    table.add_row("total", f"{total:,}", "")
    return table


def summary(report: Report) -> str:
    """A patch run in half a line."""
    return f"{report.slotted} of {len(report.sites)} sensitive instructions in slots"


def misses_table(report: Report) -> Table:
    """Every site without a slot, and why."""
    table = Table(title="sites without a slot", title_justify="left", box=None, pad_edge=False)
    for heading in ("address", "instruction", "tactic", "reason"):
        table.add_column(heading)
    for site in report.sites:
        if site.reason:
            table.add_row(f"{site.address:08x}", site.text, site.tactic, site.reason)
    return table


def comparison_table(comparison: Comparison, *, everything: bool = False) -> Table:
    """Runs side by side; each later one with its ratio to the first, the oracle."""
    results = comparison.results
    first, *others = results
    table = Table(pad_edge=False)
    table.add_column("")
    for result in results:
        table.add_column(result.mode, justify="right")
    for other in others:
        heading = "ratio" if len(others) == 1 else f"{other.mode} : {first.mode}"
        table.add_column(heading, justify="right")

    def row(name: str, texts: list[str], numbers: list[float] | None = None) -> None:
        ratios = [NOTHING] * len(others)
        if numbers is not None:
            ratios = [ratio(number, numbers[0]) for number in numbers[1:]]
        table.add_row(safe(name), *texts, *ratios)

    def counted(name: str, numbers: list[int]) -> None:
        row(name, [f"{number:,}" if number else NOTHING for number in numbers], [float(n) for n in numbers])

    row("outcome", [result.outcome.value for result in results])
    row("console", [_console(result, first) for result in results])
    counted("instructions", [result.instructions for result in results])
    virtual = [result.virtual_ns for result in results]
    row("guest time", [seconds(span) for span in virtual], [float(span) for span in virtual])
    wall = [result.wall_s for result in results]
    row("time here", [f"{span:.2f} s" for span in wall], wall)
    for title, columns in (
        ("exits", [result.exits for result in results]),
        ("calls to the hypervisor", [result.calls for result in results]),
    ):
        table.add_section()
        counted(title, [sum(column.values()) for column in columns])
        names = [name for name, _ in by_count(_largest(columns))]
        shown = names if everything or len(names) <= _SHOWN + 1 else names[:_SHOWN]
        for name in shown:
            counted(f"  {name}", [column.get(name, 0) for column in columns])
        if rest := names[len(shown) :]:
            counted(f"  {len(rest)} more", [sum(column.get(n, 0) for n in rest) for column in columns])
    return table


def _console(result: RunResult, first: RunResult) -> str:
    if result is first:
        return f"{len(result.console):,} bytes"
    return "equal" if result.console == first.console else "differs"


def _largest(columns: list[dict[str, int]]) -> dict[str, int]:
    """Each name with the largest count it has in any column."""
    names = {name for column in columns for name in column}
    return {name: max(column.get(name, 0) for column in columns) for name in names}
