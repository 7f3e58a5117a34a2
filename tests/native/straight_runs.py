# SPDX-License-Identifier: GPL-2.0-only
"""Runs compared at many stops: with events that go straight to the guest, and with Python asked each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.native.guest import Guest
from vmi.native import cpu_state
from vmi.native.machine import Machine, Outcome
from vmi.native.straight import Path

#: All that a guest, or somebody beside it, can see of one stop.
Seen = tuple[object, ...]


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many events went straight, one number for each run of the CPU in which some did."""
    found: list[int] = []
    collect = Path.collect

    def note(self, exits):
        if self.parameters.entered:
            found.append(self.parameters.entered)
        collect(self, exits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "collect", note)
        yield found


@contextmanager
def all_asked() -> Iterator[None]:
    """Python sees every event, and delivers it itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "nobody_looks", lambda self: False)
        patch.setattr(Path, "serve", lambda self, enter, **places: _places(self, places))
        yield


def _places(path: Path, places: dict[str, int]) -> None:
    for name, value in places.items():
        setattr(path.parameters, name, value)


def seen(machine: Machine) -> Seen:
    """What there is to see between two runs."""
    cpu = machine.cpu
    return (
        machine.end,
        machine.instructions,
        machine.own_time(),
        dict(machine.exits),
        cpu.told_cr2,
        cpu_state.save(cpu),
        machine.memory.sha256(),
    )


def stops(make: Callable[[], Guest], seed: int, limit_ns: int) -> list[Seen]:
    """What is to be seen of a guest at stops that a seed chooses."""
    random = Random(seed)
    machine = make().machine
    found = []
    while machine.own_time() < limit_ns:
        end = machine.run(random.choice((10, 13, 990, 1_017, random.randrange(1, 9_000), 40_000, limit_ns)))
        found.append(seen(machine))
        if end.outcome is not Outcome.TIMEOUT:
            break
    return found
