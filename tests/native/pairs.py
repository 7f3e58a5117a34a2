# SPDX-License-Identifier: GPL-2.0-only
"""The same machine twice, with the accelerator and without, stopped at the same times and compared.

All that a guest or a user can see must be the same at each stop.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from unittest import mock

from vmi.native import accelerator, cpu_state
from vmi.native.machine import End, Machine, Outcome


def available() -> bool:
    """There is an accelerator to compare with."""
    return accelerator.load() is not None


def state(machine: Machine) -> dict[str, object]:
    """What must be the same, less memory."""
    return {
        "instructions": machine.instructions,
        "now": machine.clock.now(),
        "end": repr(machine.end),
        "halted": machine.halted,
        "exits": dict(machine.exits),
        "console": machine.console.data,
        **cpu_state.save(machine.cpu),
    }


class Pair:
    """One machine as it is without the accelerator, and one as it is with it.

    :param make: makes a machine, ready to run; called twice.
    """

    def __init__(self, make: Callable[[], Machine]) -> None:
        with mock.patch.object(accelerator, "load", lambda: None):
            self.plain = make()
        self.served = make()
        assert self.plain.cpu._core is None and self.served.cpu._core is not None

    def run(self, ns: int) -> End:
        """Run both for a time, and compare what they have become."""
        end = self.plain.run(ns)
        self.served.run(ns)
        expected, got = state(self.plain), state(self.served)
        assert got == expected, {
            name: (expected[name], got[name]) for name in got if got[name] != expected[name]
        }
        return end

    def compare_memory(self) -> None:
        """Compare RAM."""
        size = self.plain.memory.size
        expected, got = (bytes(machine.memory.read(0, size)) for machine in (self.plain, self.served))
        if expected != got:
            differ = [(hex(at), expected[at], got[at]) for at in range(size) if expected[at] != got[at]]
            raise AssertionError(differ[:10])

    def run_in_slices(self, random: Random, limit_ns: int, longest_ns: int) -> End:
        """Run to the end, or for ``limit_ns``, with stops at random times, and compare at each."""
        end = None
        while limit_ns > 0:
            ns = min(limit_ns, random.randint(1, max(1, longest_ns // 10)) * 10)
            limit_ns -= ns
            end = self.run(ns)
            if end.outcome is not Outcome.TIMEOUT:
                break
        assert end is not None
        self.compare_memory()
        return end
