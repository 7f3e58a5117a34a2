# SPDX-License-Identifier: GPL-2.0-only
"""The virtual timer that the time calls are about: cycle counters, alarms, the time of day.

The guest has the virtual CPU for itself, so nothing is ever stolen from it: the available counter is the
real one, and both run on while it halts. Alarms pulse interrupt line 0, where the guest has programmed
the interrupt controllers to bring it; wiring to a local APIC does not exist.
"""

from __future__ import annotations

from vmi.abi import Counter
from vmi.native.clock import NS_PER_S, Event
from vmi.native.machine import TSC_HZ, Machine

_NS_PER_CYCLE = NS_PER_S // TSC_HZ


class VirtualTimer:
    """Counters and alarms of one virtual CPU. Times are in cycles of :attr:`frequency`."""

    frequency = TSC_HZ  # Hz

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._line = machine.interrupts.line(0)
        self._alarms: dict[Counter, Event] = {}

    def __repr__(self) -> str:
        return f"<VirtualTimer {len(self._alarms)} alarms>"

    @property
    def alarms(self) -> dict[Counter, int]:
        """When each armed alarm is due, in cycles."""
        return {counter: event.at // _NS_PER_CYCLE for counter, event in self._alarms.items()}

    def count(self, counter: int) -> int:
        """A counter's value; an unknown one reads as 0."""
        if counter in (Counter.REAL, Counter.AVAILABLE):
            return self._machine.clock.now() // _NS_PER_CYCLE
        return 0

    def wall_clock(self) -> int:
        """Nanoseconds since 1970, as the host knows it; the guest's own clock chip can be set, this can't."""
        return self._machine.epoch * NS_PER_S + self._machine.clock.now()

    def arm(self, counter: int, expiry: int, period: int) -> None:
        """Set the alarm of a counter, instead of one that is armed: once (period 0), or periodically.

        Counters without an alarm are ignored.
        """
        if counter not in (Counter.REAL, Counter.AVAILABLE):
            return
        self.cancel(counter)
        self._schedule(Counter(counter), expiry, period)
        self._machine.cpu.stop_soon()  # the run in progress knows nothing of the new event

    def cancel(self, counter: int) -> bool:
        """Disarm the alarm of a counter; whether it was armed."""
        event = self._alarms.pop(Counter(counter), None) if counter in list(Counter) else None
        if event is None:
            return False
        event.cancel()
        return True

    def _schedule(self, counter: Counter, expiry: int, period: int) -> None:
        def fire(_due: int) -> None:
            del self._alarms[counter]
            if period:
                missed = max(0, self.count(counter) - expiry) // period
                self._schedule(counter, expiry + (missed + 1) * period, period)
            self._line.set(False)
            self._line.set(True)  # an edge is what the interrupt controller asks for

        self._alarms[counter] = self._machine.clock.schedule(expiry * _NS_PER_CYCLE, fire)
