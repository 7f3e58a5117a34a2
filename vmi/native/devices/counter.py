# SPDX-License-Identifier: GPL-2.0-only
"""One counter of an 8254 as a function of time: nothing ticks, every value is computed when asked.

Times here are CLK pulses since power-on. A count is loaded on the pulse after it was written, so a
counter is described by the pulse it was loaded at and the count it was loaded with. The behaviour is
that of the Intel 8254 data sheet: a count that is written while modes 2 and 3 run waits for the end of
the (half) cycle, and counters that have run out keep counting round.
"""

from __future__ import annotations

from vmi.native.bus import State
from vmi.native.stamped import Stamped

LOW, HIGH, BOTH = 1, 2, 3  # the access field of a control word: which bytes of the count travel

_FIELDS = (
    "mode_bits", "access", "bcd", "gate", "reload", "start", "period", "paused", "pending", "pending_due",
    "low_byte", "high_next", "read_high", "latched_count", "latched_status",
)  # fmt: skip


class Counter(Stamped):
    """One counter: control word, count, GATE and OUT.

    ``start`` is the pulse the counter was loaded at (None: waiting for a count or a trigger),
    ``period`` the count it was loaded with (2..65536 in the cyclic modes), ``paused`` the pulses it
    had counted when GATE stopped it.
    """

    def __init__(self, gate: bool) -> None:
        self.reset(gate)

    def reset(self, gate: bool) -> None:
        """Mode 3 with the longest count, waiting for its first load."""
        self.mode_bits = 3
        self.access = BOTH
        self.bcd = False
        self.gate = gate
        self.reload = 0x10000
        self.start: int | None = None
        self.period = 0x10000
        self.paused: int | None = None
        self.pending: int | None = None
        self.pending_due = 0  # the pulse at which ``pending`` takes effect
        self.low_byte = 0
        self.high_next = False  # the next write is the high byte
        self.read_high = False  # the next read is the high byte
        self.latched_count: int | None = None
        self.latched_status: int | None = None

    @property
    def mode(self) -> int:
        """The mode, 0-5 (6 and 7 are other names of 2 and 3)."""
        return self.mode_bits & 3 if self.mode_bits & 2 else self.mode_bits

    # --- time ---

    def _elapsed(self, tick: int) -> int:
        """Pulses counted since the load; -1 on the pulse before it. Only with ``start`` set."""
        if self.paused is not None:
            return self.paused
        return tick - (self.start or 0)

    def sync(self, tick: int) -> None:
        """Let a waiting count of the cyclic modes take effect if its moment has come."""
        if self.pending is None or self.start is None or self.paused is not None:
            return
        boundary = self.pending_due
        if tick >= boundary:
            half = self.mode == 3 and (boundary - self.start) % self.period != 0
            self.period = self.pending
            # Mode 3 may change in the middle: the new count then runs its low half.
            self.start = boundary - (self.period + 1) // 2 if half else boundary
            self.pending = None

    def _end_of_cycle(self, tick: int) -> int:
        """The pulse, after ``tick``, at which a new count would be taken (modes 2 and 3)."""
        start = self.start or 0
        done, within = divmod(max(tick - start, 0), self.period)
        high = (self.period + 1) // 2
        return start + done * self.period + (high if self.mode == 3 and within < high else self.period)

    def out(self, tick: int) -> bool:
        """The level of OUT."""
        self.sync(tick)
        if self.start is None:
            return self.mode != 0
        elapsed, period, mode = self._elapsed(tick), self.period, self.mode
        if mode == 0:
            return elapsed >= period
        if elapsed < 0:
            return True
        if mode == 1:
            return elapsed >= period
        if mode == 2:
            return self.paused is not None or elapsed % period != period - 1
        if mode == 3:
            return self.paused is not None or elapsed % period < (period + 1) // 2
        return elapsed != period

    def next_rise(self, tick: int) -> int | None:
        """The first pulse after ``tick`` at which OUT rises, or None if it won't by itself."""
        self.sync(tick)
        if self.start is None or self.paused is not None:
            return None
        start, period, mode = self.start, self.period, self.mode
        if mode in (0, 1, 4, 5):
            rise = start + period + (mode >= 4)
            return rise if rise > tick else None
        if self.pending is not None:
            # What comes after the change of count depends on it: look again when it happens.
            return self.pending_due
        return start + (max(tick - start, 0) // period + 1) * period

    def value(self, tick: int) -> int:
        """The counting element, as its 16 bits read (BCD digits in BCD mode)."""
        self.sync(tick)
        if self.start is None:
            count = self.reload
        else:
            elapsed, period = max(self._elapsed(tick), 0), self.period
            if self.mode == 2:
                count = period - elapsed % period
            elif self.mode == 3:
                within, high = elapsed % period, (period + 1) // 2
                count = (period & ~1) - 2 * (within if within < high else within - high)
            else:
                count = period - elapsed
        if not self.bcd:
            return count & 0xFFFF
        count %= 10000
        return count // 1000 << 12 | count // 100 % 10 << 8 | count // 10 % 10 << 4 | count % 10

    # --- programming ---

    def control(self, access: int, mode_bits: int, bcd: bool) -> None:
        """Take a control word (not a latch command): stop, OUT to its first level."""
        self.access = access
        self.mode_bits = mode_bits
        self.bcd = bcd
        self.start = None
        self.paused = None
        self.pending = None
        self.high_next = self.read_high = False
        self.latched_count = self.latched_status = None

    def write(self, tick: int, value: int) -> None:
        """Take one byte of a count."""
        if self.access == LOW:
            self._set_count(tick, value)
        elif self.access == HIGH:
            self._set_count(tick, value << 8)
        elif self.high_next:
            self.high_next = False
            self._set_count(tick, value << 8 | self.low_byte)
        else:
            self.low_byte = value
            self.high_next = True
            if self.mode == 0:
                self.start = self.paused = None  # counting stops until the second byte is there

    def _set_count(self, tick: int, raw: int) -> None:
        self.sync(tick)
        if self.bcd:
            count = (raw >> 12) * 1000 + (raw >> 8 & 15) * 100 + (raw >> 4 & 15) * 10 + (raw & 15) or 10000
        else:
            count = raw or 0x10000
        if self.mode in (2, 3):
            count = max(count, 2)  # 1 is not allowed
        self.reload = count
        if self.mode in (1, 5):
            return  # waits for the trigger
        if self.mode in (2, 3) and self.start is not None:
            if tick < self.start:
                self.period = count
            else:
                self.pending = count
                self.pending_due = self._end_of_cycle(tick)
        else:
            self._load(tick)

    def _load(self, tick: int) -> None:
        self.period = self.reload
        self.pending = None
        self.start = tick + 1
        self.paused = None if self.gate or self.mode in (1, 5) else 0

    def set_gate(self, tick: int, gate: bool) -> None:
        """Drive GATE: a level in modes 0, 2, 3 and 4, a trigger edge in 1, 2, 3 and 5."""
        if gate == self.gate:
            return
        self.sync(tick)
        self.gate = gate
        if self.mode in (1, 5):
            if gate:
                self._load(tick)
        elif self.start is None:
            return
        elif not gate:
            self.paused = max(self._elapsed(tick), 0)
        elif self.mode in (0, 4):
            self.start = tick - (self.paused or 0)
            self.paused = None
        else:
            self._load(tick)

    # --- reading ---

    def latch_count(self, tick: int) -> None:
        """Hold the count for the coming reads; a second latch before them does nothing."""
        if self.latched_count is None:
            self.latched_count = self.value(tick)

    def latch_status(self, tick: int) -> None:
        """Hold the status byte for the next read; a second latch before it does nothing."""
        if self.latched_status is None:
            out = self.out(tick)
            null = self.pending is not None or self.start is None or tick < self.start
            self.latched_status = (
                out << 7 | null << 6 | self.access << 4 | self.mode_bits << 1 | int(self.bcd)
            )

    def read(self, tick: int) -> int:
        """Give the next byte: latched status, then latched count, then the running count."""
        if self.latched_status is not None:
            status, self.latched_status = self.latched_status, None
            return status
        value = self.value(tick) if self.latched_count is None else self.latched_count
        if self.access == BOTH and not self.read_high:
            self.read_high = True
            return value & 0xFF
        self.read_high = False
        self.latched_count = None
        return value & 0xFF if self.access == LOW else value >> 8

    # --- state ---

    def save(self) -> State:
        """Give all fields."""
        return {name: getattr(self, name) for name in _FIELDS}

    def load(self, state: State) -> None:
        """Take over all fields."""
        for name in _FIELDS:
            setattr(self, name, state[name])
