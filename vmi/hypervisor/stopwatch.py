# SPDX-License-Identifier: GPL-2.0-only
"""How long exits take: this computer's time, by the reason that each was counted under.

A stopwatch stands around what the CPU asks of the machine, for one run. It learns an exit's reason from the
counters, as they are raised while the exit is dealt with, so nothing else needs to know that it is there.
An exit within another (an interrupt let in by a call) has its time for itself.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import ParamSpec, TypeVar

from vmi.exits import Cause, cause
from vmi.hypervisor.domain import Domain
from vmi.native.machine import Machine

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: What the CPU asks of the machine while it runs, and the interrupts that come in between.
_REQUESTS = (
    "exception", "port_read", "port_write", "memory_read", "memory_write",
    "read_msr", "write_msr", "take_interrupt",
)  # fmt: skip

_UNNAMED = "refused access"
"""An access that nothing has counted: the guest had no right to it, and the fault is an exit of its own."""


@dataclass(frozen=True)
class Spent:
    """The exits of one reason; times are this computer's, in nanoseconds.

    ``deviation`` is the standard error of the mean, as a share of it.
    """

    reason: str
    cause: Cause
    count: int
    total: int
    least: int
    most: int
    deviation: float

    @property
    def mean(self) -> float:
        """Nanoseconds of one exit."""
        return self.total / self.count

    def to_json(self) -> dict[str, object]:
        """All fields as JSON values."""
        return {
            "reason": self.reason,
            "cause": self.cause.value,
            "count": self.count,
            "total_ns": self.total,
            "least_ns": self.least,
            "most_ns": self.most,
            "mean_ns": round(self.mean),
            "deviation": round(self.deviation, 4),
        }


@dataclass
class _Sum:
    count: int = 0
    total: int = 0
    squares: int = 0
    least: int = 1 << 62
    most: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.total += ns
        self.squares += ns * ns
        self.least = min(self.least, ns)
        self.most = max(self.most, ns)

    def deviation(self) -> float:
        if self.count < 2 or not self.total:
            return 0.0
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean * mean)
        return sqrt(variance / (self.count - 1)) / mean


@dataclass
class _Open:
    """An exit that is being dealt with."""

    reason: str = ""
    inner: int = 0  # ns of exits within it


class _Exits(Counter[str]):
    """A counter that tells which reason was counted."""

    def __init__(self, old: Counter[str], note: Callable[[str], None]) -> None:
        super().__init__(old)
        self._note = note

    def __setitem__(self, reason: str, count: int) -> None:
        super().__setitem__(reason, count)
        if note := self.__dict__.get("_note"):  # there is none yet while the old counts are taken over
            note(reason)


class _Calls(dict[str, int]):
    """The same for calls."""

    def __init__(self, old: dict[str, int], note: Callable[[str], None]) -> None:
        super().__init__(old)
        self._note = note

    def __setitem__(self, call: str, count: int) -> None:
        super().__setitem__(call, count)
        self._note(f"VMI call: {call}")


@dataclass(repr=False)
class Stopwatch:
    """Measures the exits of one machine from now on."""

    machine: Machine
    domain: Domain | None = None
    _sums: dict[str, _Sum] = field(default_factory=dict)
    _stack: list[_Open] = field(default_factory=list)

    def __post_init__(self) -> None:
        machine = self.machine
        machine.exits = _Exits(machine.exits, self._note)
        if self.domain is not None:
            self.domain.calls = _Calls(self.domain.calls, self._note)
        for name in _REQUESTS:
            # on the one object, not its class: other machines are not measured
            machine.__dict__[name] = self._timed(getattr(machine, name))

    def __repr__(self) -> str:
        return f"<Stopwatch {len(self._sums)} reasons>"

    def _note(self, reason: str) -> None:
        if self._stack and not self._stack[-1].reason:
            self._stack[-1].reason = reason

    def _timed(self, request: Callable[_P, _R]) -> Callable[_P, _R]:
        stack, clock = self._stack, time.perf_counter_ns

        @functools.wraps(request)
        def timed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            stack.append(_Open())
            began = clock()
            try:
                return request(*args, **kwargs)
            finally:
                took = clock() - began
                done = stack.pop()
                self._sums.setdefault(done.reason or _UNNAMED, _Sum()).add(max(0, took - done.inner))
                if stack:
                    stack[-1].inner += took

        return timed

    def spent(self) -> tuple[Spent, ...]:
        """Every reason, most time first."""
        rows = (
            Spent(reason, cause(reason), s.count, s.total, s.least, s.most, s.deviation())
            for reason, s in self._sums.items()
        )
        return tuple(sorted(rows, key=lambda row: (-row.total, row.reason)))
