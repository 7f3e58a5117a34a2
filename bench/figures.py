# SPDX-License-Identifier: GPL-2.0-only
"""Figures of several sides, what they are measured against, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

NOTHING = "–"


class Side(StrEnum):
    """What a figure is of."""

    ACCELERATED = "accelerated"
    PYTHON = "python"
    QEMU = "qemu"


@dataclass(frozen=True)
class Time:
    """Seconds on the wall, and of processors."""

    wall: float
    cpu: float

    def __sub__(self, other: Time) -> Time:
        return Time(self.wall - other.wall, self.cpu - other.cpu)

    def over(self, times: float) -> Time:
        """One of so many."""
        return Time(self.wall / times, self.cpu / times)


#: Gives the time that something takes on a side of ours, once.
Ours = Callable[[Side], Time]


@dataclass(frozen=True)
class Target:
    """What a figure should be at most: with the C part, and in Python alone; None is for "stated".

    ``of``: a multiple of what: "QEMU" or "native"; "" for seconds.
    """

    accelerated: float | None = None
    python: float | None = None
    of: str = "QEMU"

    def limit(self, side: Side) -> float | None:
        """The target of a side of ours."""
        return self.accelerated if side is Side.ACCELERATED else self.python

    def text(self, side: Side) -> str:
        """For people."""
        limit = self.limit(side)
        if limit is None:
            return NOTHING
        return f"≤ {limit:g}{' native' if self.of == 'native' else ''}" if self.of else f"≤ {seconds(limit)}"


@dataclass(frozen=True)
class Row:
    """What one figure came to; times in seconds by side, and the native run's where that is the judge."""

    name: str
    target: Target
    times: Mapping[Side, float]
    native: Mapping[Side, float] = field(default_factory=dict)

    def ratio(self, side: Side) -> float | None:
        """A side of ours as a multiple of the judge's figure."""
        judge = self.native.get(side) if self.target.of == "native" else self.times.get(Side.QEMU)
        return self.times[side] / judge if side in self.times and judge else None

    def met(self, side: Side) -> bool | None:
        """Whether the target is; None where there is none, or no figure."""
        limit = self.target.limit(side)
        value = self.ratio(side) if self.target.of else self.times.get(side)
        return None if limit is None or value is None else value <= limit

    def to_json(self) -> dict[str, object]:
        """All there is, as JSON values; seconds."""
        found: dict[str, object] = {"workload": self.name, "target_of": self.target.of or "seconds"}
        found |= {f"{side}_s": time for side, time in self.times.items()}
        found |= {f"{side}_native_s": time for side, time in self.native.items()}
        for side in (Side.ACCELERATED, Side.PYTHON):
            if side in self.times:
                found |= {
                    f"{side}_ratio": self.ratio(side),
                    f"{side}_target": self.target.limit(side),
                    f"{side}_met": self.met(side),
                }
        return found


@dataclass(frozen=True)
class Figure:
    """Something to measure: ``ours`` on each side of ours, ``theirs`` on QEMU, ``native`` to compare with."""

    name: str
    target: Target
    ours: Ours
    theirs: Callable[[], Time] | None = None
    native: Ours | None = None

    def row(
        self,
        available: Sequence[Side],
        rounds: int,
        typical: Callable[[Iterable[float]], float],
        *,
        cpu: bool = False,
    ) -> Row:
        """Measure it on all sides, which take turns; ``typical`` makes one figure of each side's."""
        times: dict[Side, list[float]] = {}
        native: dict[Side, list[float]] = {}

        def note(where: dict[Side, list[float]], side: Side, time: Time) -> None:
            where.setdefault(side, []).append(time.cpu if cpu else time.wall)

        for _ in range(rounds):
            for side in available:
                note(times, side, self.ours(side))
                if self.native is not None:
                    note(native, side, self.native(side))
            if self.theirs is not None:
                note(times, Side.QEMU, self.theirs())
        return Row(
            self.name,
            self.target,
            {side: typical(found) for side, found in times.items()},
            {side: typical(found) for side, found in native.items()},
        )


def seconds(value: float | None) -> str:
    """A time span of its largest fitting unit with three digits."""
    if value is None:
        return NOTHING
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= scale * (0.1 if unit == "s" else 0.9995):  # 0.5 s is what people say
            return f"{_digits(value / scale)} {unit}"
    return f"{_digits(value / 1e-9)} ns"


def _digits(value: float) -> str:
    text = f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


HEADINGS = ("workload", "accelerated", "ratio", "target", "Python", "ratio", "target", "QEMU")


def cells(row: Row) -> list[str]:
    """A row's texts; a target that is missed has a mark."""
    found = [row.name]
    for side in (Side.ACCELERATED, Side.PYTHON):
        ratio = row.ratio(side)
        found += [
            seconds(row.times.get(side)),
            NOTHING if ratio is None else f"{ratio:.2f}",
            row.target.text(side) + (" missed" if row.met(side) is False else ""),
        ]
    return [*found, seconds(row.times.get(Side.QEMU))]


def table(rows: Sequence[Row]) -> str:
    """The figures as text."""
    lines = [list(HEADINGS), *map(cells, rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(text.rjust(width) if n else text.ljust(width) for n, (text, width) in enumerate(parts))
        for parts in (list(zip(line, widths, strict=True)) for line in lines)
    )


def markdown(rows: Sequence[Row]) -> str:
    """The figures as a table of Markdown."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
