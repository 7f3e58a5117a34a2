# SPDX-License-Identifier: GPL-2.0-only
"""The real-time clock and CMOS memory: an MC146818 at 70h and 71h, interrupt request 8.

The date is a fixed epoch plus virtual time, so it is the same in every run unless the guest sets it.
Nothing ticks: the date, the update-in-progress bit and the three interrupt flags are computed from
the time when the guest looks, and an event is queued only for an interrupt that is enabled.
"""

from __future__ import annotations

from datetime import date

from vmi.native.bus import Device, IrqLine, State
from vmi.native.clock import NS_PER_S, Clock, Event

#: 2024-01-01 00:00:00 UTC in Unix seconds.
DEFAULT_EPOCH = 1704067200

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
_TIME = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
_PS2_CENTURY = 0x37
SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM = 1, 3, 5
REG_A, REG_B, REG_C, REG_D = 10, 11, 12, 13
A_UIP, B_SET, B_PIE, B_AIE, B_UIE, B_SQWE, B_BINARY, B_24H = 0x80, 0x80, 0x40, 0x20, 0x10, 8, 4, 2
C_IRQF, C_PF, C_AF, C_UF, _FLAGS = 0x80, 0x40, 0x20, 0x10, 0x70
D_VALID = 0x80

_OSCILLATOR = 32768
_UPDATE_WARNING = 8 * NS_PER_S // _OSCILLATOR  # UIP comes up 244 us before the update
_HALF = NS_PER_S // 2
_DAY_S = 86400
_OTHER_CPUS = 0x5F  # where QEMU's firmware finds how many it has to start
_EQUIPMENT = 0x06  # coprocessor, PS/2 pointing device; no floppy drive, display by its own ROM

_CYCLE_DAYS = 146097  # the calendar repeats every 400 years
_CYCLE_START = date(2000, 1, 1).toordinal()
_UNIX_TO_CYCLE = _CYCLE_START - date(1970, 1, 1).toordinal()


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01; month and day may be out of range and carry over."""
    years, month = divmod(month - 1, 12)
    cycles, year = divmod(year + years, 400)
    first = date(2000 + year, month + 1, 1).toordinal() - _CYCLE_START
    return first + day - 1 + (cycles - 5) * _CYCLE_DAYS + _UNIX_TO_CYCLE


def _calendar(days: int) -> tuple[int, date]:
    """Days since 1970-01-01 as the year and a date of the same month, day and weekday."""
    cycles, rest = divmod(days - _UNIX_TO_CYCLE, _CYCLE_DAYS)
    day = date.fromordinal(_CYCLE_START + rest)
    return day.year + 400 * cycles, day


class Rtc(Device):
    """Clock, calendar, alarm and 128 bytes of CMOS memory that describe ``ram_size`` bytes of RAM.

    Firmware finds the number of processors there, too: ``cpus``.

    ``epoch`` is the date at power-on in Unix seconds.
    """

    name = "rtc"
    ports = (range(0x70, 0x72),)

    def __init__(
        self, irq: IrqLine, clock: Clock, ram_size: int, epoch: int = DEFAULT_EPOCH, cpus: int = 1
    ) -> None:
        self._irq = irq
        self._clock = clock
        self._ram = bytearray(128)
        self._index = 0
        self._shift = epoch * NS_PER_S  # clock's own time minus virtual time, ns
        self._synced = 0  # the virtual time up to which the flags are right
        self._event: Event | None = None
        self._interrupts = 0
        self._describe(ram_size, cpus)

    def _describe(self, ram_size: int, cpus: int) -> None:
        """What firmware finds in the CMOS memory of a machine with this much RAM."""
        ram = self._ram
        ram[REG_A], ram[REG_B], ram[REG_D] = 0x26, B_24H, D_VALID
        ram[0x14] = _EQUIPMENT
        ram[0x15:0x17] = (640).to_bytes(2, "little")
        above_1m = min(max(ram_size - 0x100000, 0) >> 10, 0xFFFF)
        ram[0x17:0x19] = ram[0x30:0x32] = above_1m.to_bytes(2, "little")
        above_16m = min(max(ram_size - 0x1000000, 0) >> 16, 0xFFFF)
        ram[0x34:0x36] = above_16m.to_bytes(2, "little")
        ram[_OTHER_CPUS] = cpus - 1

    # --- time ---

    @property
    def _oscillating(self) -> bool:
        """Whether the divider chain runs (it is held in reset by values 11x)."""
        return self._ram[REG_A] & 0x70 <= 0x20

    @property
    def _running(self) -> bool:
        """Whether the date advances."""
        return self._oscillating and not self._ram[REG_B] & B_SET

    def unix_time(self) -> int:
        """The date as the guest would read it now, in Unix seconds."""
        return self._seconds(self._clock.now()) if self._running else self._decode_time()

    def _seconds(self, now: int) -> int:
        return (now + self._shift) // NS_PER_S

    def _encode(self, value: int) -> int:
        return value if self._ram[REG_B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._ram[REG_B] & B_BINARY else (value >> 4) * 10 + (value & 15)

    def _decode_hours(self, value: int) -> int:
        if self._ram[REG_B] & B_24H:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    def _encode_time(self, seconds: int) -> None:
        """Put a date into the time registers."""
        days, within = divmod(seconds, _DAY_S)
        year, day = _calendar(days)
        hours = within // 3600
        ram = self._ram
        ram[SECONDS] = self._encode(within % 60)
        ram[MINUTES] = self._encode(within // 60 % 60)
        if ram[REG_B] & B_24H:
            ram[HOURS] = self._encode(hours)
        else:
            ram[HOURS] = self._encode(hours % 12 or 12) | (0x80 if hours >= 12 else 0)
        ram[WEEKDAY] = self._encode(day.isoweekday() % 7 + 1)  # Sunday is 1
        ram[DAY] = self._encode(day.day)
        ram[MONTH] = self._encode(day.month)
        ram[YEAR] = self._encode(year % 100)
        ram[CENTURY] = self._encode(year // 100 % 100)

    def _decode_time(self) -> int:
        """The date in the time registers; the weekday is not used, excess carries over."""
        ram = self._ram
        year = self._decode(ram[CENTURY]) * 100 + self._decode(ram[YEAR])
        days = _days(year, self._decode(ram[MONTH]), self._decode(ram[DAY]))
        minutes = self._decode_hours(ram[HOURS]) * 60 + self._decode(ram[MINUTES])
        return days * _DAY_S + minutes * 60 + self._decode(ram[SECONDS])

    def _refresh(self, now: int) -> None:
        """Bring the time registers up to date; while the clock stands they are what was written."""
        if self._running:
            self._encode_time(self._seconds(now))

    def _start_from_registers(self, now: int, phase: int) -> None:
        """Let the date go on from the registers, ``phase`` ns into the second."""
        self._shift = self._decode_time() * NS_PER_S + phase - now

    # --- flags and interrupts ---

    def _period(self) -> int:
        """Oscillator pulses per periodic interrupt, or 0 for none."""
        rate = self._ram[REG_A] & 15
        if not rate or not self._oscillating:
            return 0
        return 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _pulses(self, now: int) -> int:
        return (now + self._shift) * _OSCILLATOR // NS_PER_S

    def _alarm_fields(self) -> tuple[range, range, range]:
        """Which hours, minutes and seconds match; C0h and above match all."""
        ram = self._ram

        def choices(register: int, limit: int) -> range:
            raw = ram[register]
            if raw & 0xC0 == 0xC0:
                return range(limit)
            value = self._decode_hours(raw) if register == HOURS_ALARM else self._decode(raw)
            return range(value, value + 1) if value < limit else range(0)

        return choices(HOURS_ALARM, 24), choices(MINUTES_ALARM, 60), choices(SECONDS_ALARM, 60)

    def _next_alarm(self, after: int) -> int | None:
        """The first second later than ``after`` that matches the alarm, or None."""
        hours, minutes, seconds = self._alarm_fields()
        if not seconds:
            return None
        midnight = after - after % _DAY_S
        for start in (midnight, midnight + _DAY_S):
            for hour in hours:
                for minute in minutes:
                    base = start + hour * 3600 + minute * 60
                    if base + seconds[-1] > after:
                        return max(base + seconds[0], after + 1)
        return None

    def _sync(self, now: int) -> None:
        """Set the flags of everything that has happened since the last look."""
        then, self._synced = self._synced, now
        flags = 0
        period = self._period()
        if period and self._pulses(now) // period > self._pulses(then) // period:
            flags |= C_PF
        if self._running and self._seconds(now) > self._seconds(then):
            flags |= C_UF
            if not self._ram[REG_C] & C_AF:
                alarm = self._next_alarm(self._seconds(then))
                if alarm is not None and alarm <= self._seconds(now):
                    flags |= C_AF
        self._ram[REG_C] |= flags

    def _update(self, now: int) -> None:
        """Drive the line, and wait for the next enabled cause unless it is up already."""
        ram = self._ram
        active = bool(ram[REG_B] & ram[REG_C] & _FLAGS)
        if active and not ram[REG_C] & C_IRQF:
            self._interrupts += 1
        ram[REG_C] = ram[REG_C] & ~C_IRQF | (C_IRQF if active else 0)
        self._irq.set(active)
        if self._event is not None:
            self._event.cancel()
        due = None if active else self._next_cause(now)
        self._event = None if due is None else self._clock.schedule(due, self._happen)

    def _next_cause(self, now: int) -> int | None:
        enabled = self._ram[REG_B]
        causes = []
        period = self._period()
        if enabled & B_PIE and period:
            pulse = (self._pulses(now) // period + 1) * period
            causes.append(-(-pulse * NS_PER_S // _OSCILLATOR))
        if self._running:
            if enabled & B_UIE:
                causes.append((self._seconds(now) + 1) * NS_PER_S)
            if enabled & B_AIE and (alarm := self._next_alarm(self._seconds(now))) is not None:
                causes.append(alarm * NS_PER_S)
        return min(causes) - self._shift if causes else None

    def _happen(self, due: int) -> None:
        self._event = None
        now = max(due, self._synced)
        self._sync(now)
        self._update(now)

    # --- registers ---

    def read(self, port: int, size: int) -> int:
        """Read the chosen register; the index itself is write-only."""
        if port & 1 == 0:
            return 0xFF
        now = self._clock.now()
        index, ram = self._index, self._ram
        if index == REG_A:
            near = self._running and (now + self._shift) % NS_PER_S >= NS_PER_S - _UPDATE_WARNING
            return ram[REG_A] | (A_UIP if near else 0)
        if index == REG_C:
            self._sync(now)
            self._update(now)
            value = ram[REG_C]
            ram[REG_C] = 0
            self._update(now)
            return value
        if index in _TIME:
            self._refresh(now)
        return ram[index]

    def write(self, port: int, size: int, value: int) -> None:
        """Choose a register (bit 7, the NMI mask, has no effect here) or write the chosen one."""
        if port & 1 == 0:
            index = value & 0x7F
            self._index = CENTURY if index == _PS2_CENTURY else index
            return
        index = self._index
        if index in (REG_C, REG_D):
            return
        now = self._clock.now()
        if index in _TIME:
            self._sync(now)
            self._refresh(now)
            self._ram[index] = value
            if self._running:
                self._start_from_registers(now, (now + self._shift) % NS_PER_S)
        elif index in (REG_A, REG_B):
            self._sync(now)
            self._control(index, value, now)
        elif index in (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM):
            self._sync(now)
            self._ram[index] = value
        else:
            self._ram[index] = value
            return
        self._update(now)

    def _control(self, index: int, value: int, now: int) -> None:
        """Write register A or B: the clock may stop or start again by it."""
        ram = self._ram
        self._refresh(now)
        was_running, was_oscillating = self._running, self._oscillating
        if index == REG_A:
            ram[REG_A] = value & 0x7F
        else:
            ram[REG_B] = value & ~B_UIE if value & B_SET else value
        phase = (now + self._shift) % NS_PER_S
        if self._oscillating and not was_oscillating:
            phase = _HALF  # the first update comes half a second after the divider's reset ends
            self._shift = phase - now
        if self._running and not was_running:
            self._start_from_registers(now, phase)

    def reset(self) -> None:
        """Disable and clear the interrupts; date and memory live on the battery."""
        now = self._clock.now()
        self._sync(now)
        self._ram[REG_B] &= ~(B_PIE | B_AIE | B_UIE | B_SQWE)
        self._ram[REG_C] = 0
        self._index = 0
        self._update(now)

    # --- state ---

    def save(self) -> State:
        """Give date, registers, memory and the coming event."""
        return {
            "ram": list(self._ram),
            "index": self._index,
            "shift": self._shift,
            "synced": self._synced,
            "event": self._event.save() if self._event is not None else None,
        }

    def load(self, state: State) -> None:
        """Take over date, registers, memory and the coming event."""
        self._ram[:] = bytes(state["ram"])
        self._index = state["index"]
        self._shift = state["shift"]
        self._synced = state["synced"]
        if self._event is not None:
            self._event.cancel()
        event = state["event"]
        self._event = None if event is None else self._clock.restore(event, self._happen)

    def stats(self) -> dict[str, int]:
        """Count the interrupt requests."""
        return {"interrupts": self._interrupts}
