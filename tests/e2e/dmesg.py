# SPDX-License-Identifier: GPL-2.0-only
"""Compare what two machines made a Linux kernel say: every line that only one of them has needs a reason.

Lines are compared as a collection, without their order: kernel threads report side by side, and which one
comes first depends on how long an instruction takes. A line's numbers that depend on the same, or on where
a table happens to lie, are replaced by N before; the table below says which, and why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_TIMESTAMP = re.compile(r"^\[ *\d+\.\d+\] ?")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_END = "userland is up"  # what init says; the rest is the session's


@dataclass(frozen=True)
class Number:
    """Groups of ``pattern`` are replaced by N, for a reason."""

    pattern: str
    reason: str

    def masked(self, line: str) -> str:
        found = re.search(self.pattern, line)
        if found is None:
            return line
        for group in range(len(found.groups()), 0, -1):
            begin, end = found.span(group)
            if begin >= 0:
                line = f"{line[:begin]}N{line[end:]}"
        return line


NUMBERS = (
    Number(
        r"^tsc: Detected ([\d.]+) MHz", "our processor has 100 MHz, QEMU's 1000 when it counts instructions"
    ),
    Number(r"([\d.]+) BogoMIPS(?: \(lpj=(\d+)\))?", "follows from the frequency"),
    Number(r"^clocksource: tsc(?:-early)?: .*max_cycles: (\w+), max_idle_ns: (\d+) ns", "likewise"),
    Number(r"^sched_clock: Marking stable \((.*)\)$", "is a measurement of time"),
    Number(r"audit\((\d+\.\d+):1\)", "is the time of day"),
    Number(r"setting system clock to (\S+) UTC \((\d+)\)", "is the time of day, seconds after the start"),
    Number(r"^found SMP MP-table at \[mem (.*)\]", "each firmware puts its table where it has room"),
    Number(r"^Memory: (\d+)K/.* (\d+)K reserved", "the boot data that is kept differs by a page"),
)


@dataclass(frozen=True)
class Difference:
    """Lines that may be in only one of two logs, and why. ``only`` is a log's name, or empty for either."""

    pattern: str
    reason: str
    only: str = ""

    def explains(self, log: str, line: str) -> bool:
        return self.only in ("", log) and re.search(self.pattern, line) is not None


def lines(log: bytes, numbers: Iterable[Number] = NUMBERS) -> list[str]:
    """The kernel's lines up to where init speaks, without time stamps, with differing numbers masked."""
    text = _ESCAPES.sub("", log.decode("utf-8", "backslashreplace")).replace("\r", "")
    result = []
    for line in text.partition(_END)[0].splitlines():
        if _TIMESTAMP.match(line) is None:
            continue  # what the boot loader or an init script prints
        line = _TIMESTAMP.sub("", line).strip()
        for number in numbers:
            line = number.masked(line)
        if line:
            result.append(line)
    return result


@dataclass(frozen=True)
class Verdict:
    """What one of two logs has more than the other: name, line, and the reason if there is one."""

    explained: tuple[tuple[str, str, str], ...]
    unexplained: tuple[tuple[str, str], ...]
    common: int

    def __repr__(self) -> str:
        return f"<Verdict {self.common} equal, {len(self.explained)} explained, {len(self.unexplained)} not>"

    def __str__(self) -> str:
        return "\n".join(f"only in {name}: {line}" for name, line in self.unexplained)


def compare(logs: dict[str, bytes], differences: Sequence[Difference]) -> Verdict:
    """Compare two logs, given by name."""
    (first, second) = ((name, Counter(lines(log))) for name, log in logs.items())
    explained, unexplained = [], []
    for (name, mine), (_, other) in ((first, second), (second, first)):
        for line in (mine - other).elements():
            reason = next((known.reason for known in differences if known.explains(name, line)), None)
            if reason is None:
                unexplained.append((name, line))
            else:
                explained.append((name, line, reason))
    return Verdict(tuple(explained), tuple(unexplained), (first[1] & second[1]).total())
