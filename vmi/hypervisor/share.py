# SPDX-License-Identifier: GPL-2.0-only
"""Another domain on the same processors: what a guest has of them is a share, and the rest is stolen from it.

The other domain is nothing but the time that it takes, so that a run depends on its input alone. It has each
processor for the first part of each period. A virtual CPU that is ready then waits, and all that time is
stolen from it; one that is halted loses nothing, unless an interrupt wakes it meanwhile: from then on it
waits, too. Devices don't wait. Their interrupts come late, and those that come twice come once.
"""

from __future__ import annotations

from vmi.hypervisor import WHOLE
from vmi.hypervisor.processors import Processors
from vmi.hypervisor.timer import NS_PER_CYCLE
from vmi.native.machine import Machine

PERIOD_NS = 10_000_000


class Share:
    """The virtual CPUs of a domain that has ``percent`` (1 to 100) of each processor from now on."""

    def __init__(self, machine: Machine, processors: Processors, percent: int) -> None:
        self._machine = machine
        self._processors = processors
        self._taken_ns = PERIOD_NS * (WHOLE - percent) // WHOLE
        # when each processor, by number, is free again; known only while its virtual CPU is halted
        self._free_at = [0] * machine.cpus
        machine.clock.schedule((machine.clock.now() // PERIOD_NS + 1) * PERIOD_NS, self._begin)

    def __repr__(self) -> str:
        return f"<Share of {WHOLE - WHOLE * self._taken_ns // PERIOD_NS} %>"

    def _begin(self, due: int) -> None:
        """A period begins."""
        for number in range(self._machine.cpus):
            if self._is_ready(number):
                self._free_at[number] = 0
                self._lose(number, self._taken_ns)
            else:
                self._free_at[number] = due + self._taken_ns
        self._machine.clock.schedule(due + PERIOD_NS, self._begin)

    def _is_ready(self, number: int) -> bool:
        machine = self._machine
        if self._runs(number):
            return not machine.halted
        assert machine.turns is not None
        other = machine.turns.processors[number]
        return not other.halted and not other.waits

    def _runs(self, number: int) -> bool:
        turns = self._machine.turns
        return turns is None or turns.current.number == number

    def _lose(self, number: int, ns: int) -> None:
        cycles = -(-ns // NS_PER_CYCLE)
        if cycles <= 0:
            return
        machine = self._machine
        machine.exits["processor lost"] += 1
        timer = self._processors.all[number].timer
        timer.lose(cycles)
        if self._runs(number):
            machine.spend(cycles * NS_PER_CYCLE)
            timer.publish()
        else:
            assert machine.turns is not None
            machine.turns.processors[number].at += cycles * NS_PER_CYCLE

    def woken(self) -> None:
        """The virtual CPU that runs takes an interrupt; if it was halted, it may have to wait first."""
        number = self._processors.all.index(self._processors.current)
        free_at, self._free_at[number] = self._free_at[number], 0
        self._lose(number, free_at - self._machine.own_time())
