# SPDX-License-Identifier: GPL-2.0-only
"""The virtual timer that the time calls are about: cycle counters, alarms, the time of day.

Each virtual CPU has one. Its real counter is the machine's virtual time. While it is ready to run and
something else runs in its place, that time is stolen from it: the stolen counter grows, and the available
one, which is the difference, stands still. Whoever schedules virtual CPUs says when, by :meth:`suspend`
and :meth:`resume`, or how long, by :meth:`lose` (:mod:`vmi.hypervisor.share`); a CPU that has the machine for
itself never waits, and one that halts is not waiting.

An alarm comes as an edge on interrupt line 0, where the guest has programmed the interrupt controllers to
bring it, or as the local APIC's own timer would, by the entry that the guest has written for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmi.abi import Counter
from vmi.hypervisor.mirror import Told
from vmi.native.clock import NS_PER_S, Event
from vmi.native.devices.lapic import Lapic
from vmi.native.machine import TSC_HZ, Machine
from vmi.native.stamped import Stamped

NS_PER_CYCLE = NS_PER_S // TSC_HZ


@dataclass(frozen=True)
class Alarm:
    """What is armed: cycles, by its counter; ``period`` 0 for once, ``lvtt`` for the local APIC's way."""

    expiry: int
    period: int
    lvtt: bool


class WallClock(Stamped):
    """The time of day as the host knows it; the guest can't set it, as it can its clock chip."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._at_power_on = machine.epoch * NS_PER_S
        self._was_set = False

    def __repr__(self) -> str:
        return f"<WallClock {self.now()} ns>"

    def now(self) -> int:
        """Nanoseconds since 1970."""
        return self._at_power_on + self._machine.clock.now()

    def set(self, ns: int) -> None:
        """It is so many nanoseconds since 1970 now."""
        self._at_power_on = ns - self._machine.clock.now()
        self._was_set = True

    def was_set(self) -> bool:
        """The host has set it since this was asked last."""
        was_set, self._was_set = self._was_set, False
        return was_set


class VirtualTimer(Stamped):
    """Counters and alarms of one virtual CPU. Times are in cycles of :attr:`frequency`.

    :param tell: told what the ROM needs for answering by itself.
    :param wall: the machine's time of day.
    :param lapic: that of the virtual CPU, None if it has none.
    """

    frequency = TSC_HZ  # Hz

    def __init__(
        self,
        machine: Machine,
        tell: Callable[[Told, int], None],
        wall: WallClock,
        lapic: Lapic | None = None,
    ) -> None:
        self._machine = machine
        self._lapic = lapic
        self._tell = tell
        self._line = machine.interrupts.beside_timer()
        self._alarms: dict[Counter, Alarm] = {}
        self._events: dict[Counter, Event] = {}
        self._stolen = 0
        self._waits_since: int | None = None
        self.wall = wall

    def __repr__(self) -> str:
        return f"<VirtualTimer {len(self._alarms)} alarms, {self.count(Counter.STOLEN)} cycles stolen>"

    @property
    def alarms(self) -> dict[Counter, int]:
        """When each armed alarm is due, in cycles of its counter."""
        return {counter: alarm.expiry for counter, alarm in self._alarms.items()}

    # -- counters ---------------------------------------------------------------------------

    def _now(self) -> int:
        return self._machine.clock.now() // NS_PER_CYCLE

    def count(self, counter: int) -> int:
        """A counter's value; an unknown one reads as 0."""
        now = self._now()
        stolen = self._stolen + (0 if self._waits_since is None else now - self._waits_since)
        values: dict[int, int] = {Counter.REAL: now, Counter.AVAILABLE: now - stolen, Counter.STOLEN: stolen}
        return values.get(counter, 0)

    def publish(self) -> None:
        """Tell the ROM what the counters are more than the time stamp counter, which it reads itself."""
        ahead = self._now() - self._machine.msr.tsc()
        self._tell(Told.HERTZ, self.frequency)
        self._tell(Told.REAL, ahead)
        self._tell(Told.AVAILABLE, ahead - self._stolen)
        self._tell(Told.STOLEN, self._stolen)

    def suspend(self) -> None:
        """The virtual CPU is ready and does not run: from now on time is stolen from it."""
        if self._waits_since is None:
            self._waits_since = self._now()
            self._forget(Counter.AVAILABLE)

    def resume(self) -> None:
        """The virtual CPU runs again, or halts: from now on time is its own."""
        if self._waits_since is not None:
            self._stolen = self.count(Counter.STOLEN)
            self._waits_since = None
            self._schedule(Counter.AVAILABLE)
            self.publish()

    def lose(self, cycles: int) -> None:
        """The virtual CPU is ready and will not run for so many cycles: they are stolen from it."""
        self._stolen += cycles
        self._forget(Counter.AVAILABLE)
        self._schedule(Counter.AVAILABLE)

    # -- alarms -----------------------------------------------------------------------------

    def arm(self, counter: int, expiry: int, period: int, *, lvtt: bool = False) -> None:
        """Set the alarm of a counter, instead of one that is armed: once (period 0), or periodically.

        Counters without an alarm are ignored.
        """
        if counter not in (Counter.REAL, Counter.AVAILABLE):
            return
        self.cancel(counter)
        self._alarms[Counter(counter)] = Alarm(expiry, period, lvtt)
        self._schedule(Counter(counter))
        self._machine.cpu.stop_soon()  # the run in progress knows nothing of the new event

    def cancel(self, counter: int) -> bool:
        """Disarm the alarm of a counter; whether it was armed."""
        if counter not in list(Counter) or self._alarms.pop(Counter(counter), None) is None:
            return False
        self._forget(Counter(counter))
        return True

    def _forget(self, counter: Counter) -> None:
        event = self._events.pop(counter, None)
        if event is not None:
            event.cancel()

    def _schedule(self, counter: Counter) -> None:
        """Wait for a counter's alarm, if it is armed and the counter is running."""
        alarm = self._alarms.get(counter)
        if alarm is None or (counter is Counter.AVAILABLE and self._waits_since is not None):
            return
        real = alarm.expiry + (self._stolen if counter is Counter.AVAILABLE else 0)
        self._events[counter] = self._machine.clock.schedule(
            real * NS_PER_CYCLE, lambda _due: self._fire(counter, alarm)
        )

    def _fire(self, counter: Counter, alarm: Alarm) -> None:
        del self._alarms[counter], self._events[counter]
        if alarm.period:  # ticks that were missed fall together, and the phase stays
            missed = max(0, self.count(counter) - alarm.expiry) // alarm.period
            expiry = alarm.expiry + (missed + 1) * alarm.period
            self._alarms[counter] = Alarm(expiry, alarm.period, alarm.lvtt)
            self._schedule(counter)
        if not alarm.lvtt:
            self._line.set(False)
            self._line.set(True)  # an edge is what the interrupt controllers ask for
        elif self._lapic is not None:
            self._lapic.timer_alarm()
