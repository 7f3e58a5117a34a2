# SPDX-License-Identifier: GPL-2.0-only
"""Tables that several verbs show: counts, and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vmi.cli.terminal import safe
from vmi.exits import PRICE

if TYPE_CHECKING:
    from rich.table import Table

    from vmi.patcher.inspect import Cross
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
    table = _table(title)
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
    table = _plain("sites without a slot", "address", "instruction", "tactic", "reason")
    for site in report.sites:
        if site.reason:
            table.add_row(f"{site.address:08x}", safe(site.text), site.tactic, safe(site.reason))
    return table


def coverage_table(report: Report) -> Table:
    """Sites and slots by the call that stands for them, largest first."""
    table = _plain("slots by call", "call", "sites", "slots", "share", "")
    for name, row in report.coverage(lambda site: site.call or NOTHING).items():
        table.add_row(
            name, f"{row['sites']:,}", f"{row['slots']:,}", f"{row['percent']:.1f} %", bar(row["percent"])
        )
    return table


def tactics_table(counts: Mapping[str, int]) -> Table:
    """Sites by what was done with them, in the order in which the tactics are tried."""
    from vmi.sitetable import Tactic

    total = sum(counts.values())
    table = _plain("sites by tactic", "tactic", "sites", "share", "")
    for tactic in Tactic:
        if count := counts.get(tactic.value, 0):
            share = 100 * count / total
            table.add_row(tactic.value, f"{count:,}", f"{share:.1f} %", bar(share))
    table.add_row("total", f"{total:,}", "", "")
    return table


def cross_table(heading: str, cross: Cross) -> Table:
    """Sites by call or instruction, each with its tactics; the last column is the share with a slot."""
    from vmi.sitetable import Tactic

    tactics = [tactic for tactic in Tactic if any(tactic.value in row for row in cross.values())]
    table = _plain(f"sites by {heading}", heading, "sites", *(tactic.value for tactic in tactics), "in slots")
    for name, row in cross.items():
        total = sum(row.values())
        slots = sum(row.get(tactic.value, 0) for tactic in tactics if tactic.has_slot)
        counts = (f"{row[tactic.value]:,}" if tactic.value in row else NOTHING for tactic in tactics)
        table.add_row(safe(name), f"{total:,}", *counts, f"{100 * slots / total:.1f} %")
    return table


def reasons_table(reasons: Mapping[str, int]) -> Table:
    """Why sites have no slot, most frequent first."""
    table = _plain("sites without a slot", "count", "reason")
    for reason, count in by_count(reasons):
        table.add_row(f"{count:,}", safe(reason))
    return table


def bar(percent: float) -> str:
    """A share as a bar of up to 20 characters; anything above nothing shows."""
    return "█" * (max(1, round(percent / 5)) if percent else 0)


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def _plain(title: str, first: str, *others: str) -> Table:
    """A table without lines; columns of numbers are to the right."""
    table = _table(title)
    words = {"", "reason", "instruction", "tactic", "call", "address"}
    for heading in (first, *others):
        table.add_column(heading, justify="left" if heading in words else "right")
    return table


def comparison_table(comparison: Comparison, *, everything: bool = False) -> Table:
    """Runs side by side; each later one with its ratio to the first, the oracle."""
    from rich.table import Table

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
    table.add_section()
    counted("hypercalls and traps", [result.price for result in results])
    spent = [sum(row.total for row in result.spent if row.cause in PRICE) for result in results]
    row("  time in them", [seconds(span) if span else NOTHING for span in spent])
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
