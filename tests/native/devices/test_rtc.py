# SPDX-License-Identifier: GPL-2.0-only
"""The clock chip against the MC146818 data sheet, and the CMOS memory of a PC."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.native.clock import Clock
from vmi.native.devices.rtc import DEFAULT_EPOCH, Rtc

S = 10**9
A, B, C, D = 10, 11, 12, 13
TIME = (0x32, 9, 8, 7, 4, 2, 0)


class Chip:
    """Register access by number."""

    def __init__(self, wire, clock, epoch=DEFAULT_EPOCH, ram=64 << 20):
        self.rtc = Rtc(wire, clock, ram, epoch)

    def __getitem__(self, register):
        self.rtc.write(0x70, 1, register)
        return self.rtc.read(0x71, 1)

    def __setitem__(self, register, value):
        self.rtc.write(0x70, 1, register)
        self.rtc.write(0x71, 1, value)

    def time(self):
        return "".join(f"{self[register]:02x}" for register in TIME)


@pytest.fixture
def chip(wire, clock):
    return Chip(wire, clock)


class Quiet:
    def set(self, level, /):
        pass


def test_starts_at_the_same_date_every_time_and_runs(chip, clock):
    assert chip.time() == "20240101000000"
    clock.advance_to((86400 * 60 - 1) * S)
    assert chip.time() == "20240229235959"
    clock.advance_to(86400 * 60 * S)
    assert chip.time() == "20240301000000"


@given(st.integers(-(10**10), 2 * 10**11), st.booleans(), st.booleans())
def test_date_in_every_format_is_the_calendars(seconds, binary, hours_24):
    expected = datetime.fromtimestamp(0, UTC).timestamp() + seconds
    chip = Chip(Quiet(), Clock(), epoch=seconds)
    chip[B] = binary << 2 | hours_24 << 1

    def value(register):
        raw = chip[register] & (0x7F if register == 4 else 0xFF)
        return raw if binary else int(f"{raw:x}")

    hours = value(4)
    if not hours_24:
        hours = hours % 12 + (12 if chip[4] & 0x80 else 0)
    when = datetime(value(0x32) * 100 + value(9), value(8), value(7), hours, value(2), value(0), tzinfo=UTC)
    assert when.timestamp() == expected
    assert value(6) == when.isoweekday() % 7 + 1


@given(
    st.datetimes(datetime(1600, 1, 1), datetime(9999, 12, 31)), st.booleans(), st.booleans(), st.booleans()
)
def test_setting_the_date_reads_back(when, binary, hours_24, stopped):
    clock = Clock()
    chip = Chip(Quiet(), clock)
    clock.advance_to(S // 3)
    chip[B] = mode = binary << 2 | hours_24 << 1
    if stopped:
        chip[B] = mode | 0x80
    encode = int if binary else lambda value: int(str(value), 16)
    hour = encode(when.hour) if hours_24 else encode(when.hour % 12 or 12) | (when.hour >= 12) << 7
    # Day before month could carry over on the run, as on the chip: year and month first.
    fields = {0x32: encode(when.year // 100), 9: encode(when.year % 100), 7: 1, 8: encode(when.month)}
    for register, value in {**fields, 7: encode(when.day), 4: hour, 2: encode(when.minute)}.items():
        chip[register] = value
    chip[7] = encode(when.day)
    chip[0] = encode(when.second)
    if stopped:
        clock.advance_to(10 * S + S // 3)
        chip[B] = mode
    assert chip.rtc.unix_time() == int(when.replace(tzinfo=UTC, microsecond=0).timestamp())
    # The divider was not touched: the second ends when it would have ended.
    clock.advance_to(clock.now() + S - S // 3)
    assert chip.rtc.unix_time() == int(when.replace(tzinfo=UTC, microsecond=0).timestamp()) + 1


def test_set_bit_stops_the_date_and_clears_update_interrupts(chip, clock):
    chip[B] = 0x12
    chip[B] = 0x92
    assert chip[B] == 0x82
    clock.advance_to(10 * S)
    assert chip.time() == "20240101000000"
    chip[B] = 0x02
    clock.advance_to(11 * S)
    assert chip.time() == "20240101000001"


def test_divider_reset_makes_the_first_update_half_a_second_later(chip, clock):
    chip[A] = 0x76
    clock.advance_to(20 * S + 123)
    chip[A] = 0x26
    clock.advance_to(20 * S + 123 + S // 2 - 1)
    assert chip.time() == "20240101000000"
    clock.advance_to(20 * S + 123 + S // 2)
    assert chip.time() == "20240101000001"


def test_update_in_progress_shortly_before_the_second(chip, clock):
    seen = []
    for at in (S - 244_141, S - 244_140, S - 1, S, 2 * S - 100):
        clock.advance_to(at)
        seen.append(chip[A] >> 7)
    assert seen == [0, 1, 1, 0, 1]
    chip[B] = 0x82
    assert chip[A] == 0x26


def test_periodic_interrupt(chip, clock, wire):
    chip[A] = 0x26  # 1024 Hz
    chip[B] = 0x42
    for _ in range(1024):
        clock.advance_to(clock.next_deadline())
        assert chip[C] & 0xC0 == 0xC0
        assert chip[C] == 0
    assert wire.rises == [-(-k * 32 * S // 32768) for k in range(1, 1025)]
    assert wire.rises[-1] == S


@pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates(chip, clock, rate, hertz):
    chip[A] = 0x20 | rate
    chip[B] = 0x42
    assert clock.next_deadline() == -(-S // hertz)


def test_rate_0_and_a_stopped_divider_give_no_periodic_interrupt(chip, clock):
    chip[B] = 0x42
    chip[A] = 0x20
    assert clock.next_deadline() is None
    chip[A] = 0x66
    assert clock.next_deadline() is None


def test_line_stays_up_until_register_c_is_read(chip, clock, wire):
    chip[B] = 0x12
    clock.advance_to(5 * S)
    assert wire.rises == [S]
    assert wire.level
    assert chip[C] & 0x90 == 0x90
    assert not wire.level
    clock.advance_to(6 * S)
    assert wire.rises == [S, 6 * S]
    assert chip.rtc.stats() == {"interrupts": 2}


def test_flags_come_up_without_being_enabled(chip, clock, wire):
    chip[1] = chip[3] = chip[5] = 0xFF  # every second matches
    clock.advance_to(S)
    assert chip[C] == 0x70
    assert wire.rises == []


def test_enabling_an_interrupt_whose_flag_is_up_requests_at_once(chip, clock, wire):
    clock.advance_to(S)
    chip[B] = 0x12
    assert wire.level


@pytest.mark.parametrize(
    ("hours", "minutes", "seconds", "due"),
    [
        (0x00, 0x00, 0x05, 5),
        (0x01, 0x02, 0x03, 3723),
        (0xFF, 0xFF, 0x00, 60),
        (0xC0, 0x30, 0xFF, 1800),
        (0x00, 0x00, 0x00, 86400),
        (0xFF, 0xFF, 0xFF, 1),
    ],
)
def test_alarm(chip, clock, wire, hours, minutes, seconds, due):
    chip[5], chip[3], chip[1] = hours, minutes, seconds
    chip[B] = 0x22
    assert clock.next_deadline() == due * S
    clock.advance_to(due * S)
    assert wire.level
    assert chip[C] & 0xA0 == 0xA0


def test_impossible_alarm_never_comes(chip, clock):
    chip[1] = 0x61
    chip[B] = 0x22
    assert clock.next_deadline() is None


@given(
    st.integers(0, 86399),
    *[st.one_of(st.integers(0, limit), st.just(0xFF)) for limit in (26, 61, 61)],
)
def test_next_alarm_is_the_first_matching_second(start, hours, minutes, seconds):
    chip = Chip(Quiet(), Clock())
    chip[B] = 0x06
    chip[5], chip[3], chip[1] = hours, minutes, seconds
    today = DEFAULT_EPOCH - DEFAULT_EPOCH % 86400

    def matches(t):
        parts = (t // 3600 % 24, t // 60 % 60, t % 60)
        return all(want in (0xFF, part) for want, part in zip((hours, minutes, seconds), parts, strict=True))

    expected = next((t for t in range(start + 1, start + 86401) if matches(t)), None)
    found = chip.rtc._next_alarm(today + start)
    assert found == (None if expected is None else today + expected)


def test_memory_sizes(wire, clock):
    chip = Chip(wire, clock, ram=64 << 20)
    words = [chip[n] | chip[n + 1] << 8 for n in (0x15, 0x17, 0x30, 0x34)]
    assert words == [640, 63 << 10, 63 << 10, 48 << 4]
    small = Chip(wire, clock, ram=8 << 20)
    assert [small[n] | small[n + 1] << 8 for n in (0x17, 0x34)] == [7 << 10, 0]
    big = Chip(wire, clock, ram=1 << 30)
    assert [big[n] | big[n + 1] << 8 for n in (0x17, 0x34)] == [0xFFFF, 1008 << 4]


def test_firmware_finds_the_number_of_processors(wire, clock):
    assert [Rtc(wire, clock, 64 << 20, cpus=cpus)._ram[0x5F] for cpus in (1, 2, 8)] == [0, 1, 7]


def test_memory_keeps_bytes_and_reset_keeps_memory(chip, clock, wire):
    chip[0x40] = 0xA5
    chip[B] = 0x72
    clock.advance_to(S)
    chip.rtc.reset()
    assert not wire.level
    assert (chip[0x40], chip[B], chip[C], chip[D]) == (0xA5, 0x02, 0, 0x80)
    chip[D] = chip[C] = 0xFF
    assert (chip[D], chip[C]) == (0x80, 0)


def test_index_is_write_only_and_its_nmi_bit_ignored(chip):
    assert chip.rtc.read(0x70, 1) == 0xFF
    chip[0xC1] = 0x12
    assert chip[0x41] == 0x12
    assert chip[0x37] == 0x20  # the century by its other name
