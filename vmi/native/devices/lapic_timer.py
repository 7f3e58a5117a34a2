# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC's timer: a 32-bit counter that runs down once, or over and over.

It counts a bus clock of 1 GHz, divided by 1 to 128. As on QEMU it is due one count after it has reached
zero, so a period is one count longer than the initial count. Nothing ticks: the count is computed when
asked, and only an expiry that somebody waits for is an event.
"""

from __future__ import annotations

from collections.abc import Callable

from vmi.native.bus import State
from vmi.native.clock import Clock, Event
from vmi.native.stamped import Stamped

#: A timer that asks for more than the processor can take in is served this often, ns.
SHORTEST_TICK = 1_000

_FIELDS = ("initial_count", "divide", "loaded_at", "masked", "periodic")


class LapicTimer(Stamped):
    """Initial count, current count and divider; ``expire`` is called when the timer is due."""

    def __init__(self, clock: Clock, expire: Callable[[], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._event: Event | None = None
        self.ticks = 0
        self.reset()

    def reset(self) -> None:
        """Stop, masked."""
        self.initial_count = 0
        self.divide = 0  # the divide configuration register
        self.loaded_at = 0  # ns
        self.masked = True
        self.periodic = False
        self._rearm(0)

    @property
    def _shift(self) -> int:
        """Binary logarithm of the divider: the register's eight values mean 2, 4 ... 128, and 1."""
        return ((self.divide & 3 | self.divide >> 1 & 4) + 1) & 7

    def current_count(self) -> int:
        """The count now; it goes on while the timer is masked."""
        counted = self._clock.now() - self.loaded_at >> self._shift
        if self.periodic:
            return self.initial_count - counted % (self.initial_count + 1)
        return max(self.initial_count - counted, 0)

    def load_count(self, value: int) -> None:
        """Start from ``value``; 0 stops the timer."""
        self.initial_count = value
        self.loaded_at = self._clock.now()
        self._rearm(self.loaded_at)

    def set_divide(self, value: int) -> None:
        """Write the divide configuration register; what has been counted stays counted."""
        now = self._clock.now()
        counted = now - self.loaded_at >> self._shift
        self.divide = value & 0xB
        self.loaded_at = now - (counted << self._shift)
        self._rearm(now)

    def set_mode(self, *, masked: bool, periodic: bool) -> None:
        """Say whether expiries matter, and whether there is more than one."""
        self.masked = masked
        self.periodic = periodic
        self._rearm(self._clock.now())

    def _rearm(self, now: int) -> None:
        """Wait for the next expiry after ``now``. One that passed while masked is not made up for."""
        if self._event is not None:
            self._event.cancel()
            self._event = None
        if self.masked or not self.initial_count:
            return
        elapsed = now - self.loaded_at
        period = self.initial_count + 1 << self._shift
        if not self.periodic:
            if elapsed >> self._shift >= self.initial_count:
                return
            due = period
        elif period < SHORTEST_TICK:
            due = -(-(elapsed + SHORTEST_TICK) // period) * period
        else:
            due = (elapsed // period + 1) * period
        self._event = self._clock.schedule(self.loaded_at + due, self._due)

    def _due(self, due: int) -> None:
        self._event = None
        self.ticks += 1
        self._expire()
        if self.periodic:
            self._rearm(due)

    def save(self) -> State:
        """Give all registers and the coming expiry."""
        event = None if self._event is None else self._event.save()
        return {**{name: getattr(self, name) for name in _FIELDS}, "event": event}

    def load(self, state: State) -> None:
        """Take over all registers and the coming expiry."""
        if self._event is not None:
            self._event.cancel()
        for name in _FIELDS:
            setattr(self, name, state[name])
        event = state["event"]
        self._event = None if event is None else self._clock.restore(event, self._due)

    def __repr__(self) -> str:
        kind = "periodic" if self.periodic else "one-shot"
        return f"<LapicTimer {kind} from {self.initial_count} by {1 << self._shift}>"
