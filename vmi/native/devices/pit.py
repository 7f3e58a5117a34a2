# SPDX-License-Identifier: GPL-2.0-only
"""The interval timer: an 8254 at 40h-43h, and port 61h with the gate and output of its third counter.

Counter 0 requests IRQ 0, counter 1 is the memory refresh of old boards, counter 2 makes sounds and
measures short times. Pulse k of the 1.193182 MHz input happens at ceil(k * 10^9 / 1193182) ns: integer
arithmetic from power-on, so no error ever adds up.
"""

from __future__ import annotations

from vmi.native.bus import Device, IrqLine, State
from vmi.native.clock import NS_PER_S, Clock, Event
from vmi.native.devices.counter import Counter

PIT_HZ = 1193182
_REFRESH_PULSES = 18  # the refresh request toggles bit 4 of port 61h about every 15 us
_CONTROL, _PORT_B = 0x43, 0x61
_READ_BACK = 3


def tick_at(ns: int) -> int:
    """Pulses of the input clock that have happened by ``ns``."""
    return ns * PIT_HZ // NS_PER_S


def time_of(tick: int) -> int:
    """The ns at which pulse ``tick`` happens (the first at which ``tick_at`` counts it)."""
    return -(-tick * NS_PER_S // PIT_HZ)


class Pit(Device):
    """Three counters, IRQ 0 from the first, port 61h for the third.

    The IRQ line rises exactly when OUT of counter 0 does. Its falls are not events of their own: the
    line drops in the moment before it rises again, which no edge-triggered input can tell apart.
    """

    name = "pit"
    ports = (range(0x40, 0x44), range(0x61, 0x62))

    def __init__(self, irq: IrqLine, clock: Clock) -> None:
        self._irq = irq
        self._clock = clock
        self.counters = (Counter(True), Counter(True), Counter(False))
        self._port_b = 0
        self._event: Event | None = None
        self._ticks = 0

    # --- IRQ 0 ---

    def _rearm(self, tick: int) -> None:
        if self._event is not None:
            self._event.cancel()
        rise = self.counters[0].next_rise(tick)
        self._event = None if rise is None else self._clock.schedule(time_of(rise), self._rise)

    def _rise(self, due: int) -> None:
        tick = tick_at(due)
        # A count that waited may have changed at this moment in mid-cycle: then OUT fell, not rose.
        if self.counters[0].out(tick):
            self._ticks += 1
            self._irq.set(False)
            self._irq.set(True)
        self._rearm(tick)

    # --- registers ---

    def read(self, port: int, size: int) -> int:
        """Read a counter or port 61h; the control register is write-only."""
        tick = tick_at(self._clock.now())
        if port == _PORT_B:
            refresh = tick // _REFRESH_PULSES & 1
            return self._port_b | refresh << 4 | self.counters[2].out(tick) << 5
        if port == _CONTROL:
            return 0xFF
        return self.counters[port & 3].read(tick)

    def write(self, port: int, size: int, value: int) -> None:
        """Write a count, a control word or port 61h."""
        tick = tick_at(self._clock.now())
        if port == _PORT_B:
            self._port_b = value & 0x0F
            self.counters[2].set_gate(tick, bool(value & 1))
        elif port != _CONTROL:
            self.counters[port & 3].write(tick, value)
            if port & 3 == 0:
                self._irq.set(self.counters[0].out(tick))
                self._rearm(tick)
        elif value >> 6 == _READ_BACK:
            self._read_back(tick, value)
        elif not value & 0x30:
            self.counters[value >> 6].latch_count(tick)
        else:
            self.counters[value >> 6].control(value >> 4 & 3, value >> 1 & 7, bool(value & 1))
            if value >> 6 == 0:
                self._irq.set(self.counters[0].out(tick))
                self._rearm(tick)

    def _read_back(self, tick: int, value: int) -> None:
        for n, counter in enumerate(self.counters):
            if value & 2 << n:
                if not value & 0x20:
                    counter.latch_count(tick)
                if not value & 0x10:
                    counter.latch_status(tick)

    def reset(self) -> None:
        """Stop all counters; the gate of counter 2 goes low."""
        for n, counter in enumerate(self.counters):
            counter.reset(gate=n != 2)
        self._port_b = 0
        self._irq.set(False)
        self._rearm(0)

    def save(self) -> State:
        """Give counters, port 61h and the coming edge."""
        return {
            "counters": [counter.save() for counter in self.counters],
            "port_b": self._port_b,
            "event": self._event.save() if self._event is not None else None,
        }

    def load(self, state: State) -> None:
        """Take over counters, port 61h and the coming edge."""
        for counter, saved in zip(self.counters, state["counters"], strict=True):
            counter.load(saved)
        self._port_b = state["port_b"]
        if self._event is not None:
            self._event.cancel()
        saved_event = state["event"]
        self._event = None if saved_event is None else self._clock.restore(saved_event, self._rise)

    def stats(self) -> dict[str, int]:
        """Count the edges given to IRQ 0."""
        return {"ticks": self._ticks}
