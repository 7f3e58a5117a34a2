# SPDX-License-Identifier: GPL-2.0-only
"""The interval timer against the 8254 data sheet, and the exactness of its edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.native.devices.counter import BOTH, Counter
from vmi.native.devices.pit import PIT_HZ, Pit, tick_at, time_of


@pytest.fixture
def pit(wire, clock):
    return Pit(wire, clock)


def program(pit, control, *count):
    pit.write(0x43, 1, control)
    for byte in count:
        pit.write(0x40 | control >> 6, 1, byte)


def running(mode, count, gate=True, at=0):
    counter = Counter(gate)
    counter.control(BOTH, mode, False)
    counter.write(at, count & 0xFF)
    counter.write(at, count >> 8)
    return counter


@given(st.integers(0, 10**14))
def test_pulse_k_happens_at_the_first_nanosecond_that_counts_it(tick):
    at = time_of(tick)
    assert at == -(-tick * 10**9 // PIT_HZ)
    assert tick_at(at) == tick
    assert tick == 0 or tick_at(at - 1) == tick - 1


@pytest.mark.parametrize("mode", [2, 3])
def test_periodic_edges_never_drift(pit, wire, clock, mode):
    program(pit, 0x30 | mode << 1, 0xA9, 0x04)  # 1193 pulses: about 1000 Hz
    wire.rises.clear()  # OUT went up with the control word
    clock.advance_to(3 * 10**9)
    assert wire.rises == [time_of(1 + 1193 * k) for k in range(1, len(wire.rises) + 1)]
    assert len(wire.rises) == (3 * PIT_HZ - 1) // 1193
    assert pit.stats() == {"ticks": len(wire.rises)}


def test_mode_0_rises_once_n_plus_1_pulses_after_the_count(pit, wire, clock):
    program(pit, 0x30, 0xE8, 0x03)
    assert not wire.level
    clock.advance_to(10**9)
    assert wire.rises == [time_of(1001)]
    program(pit, 0x30)
    assert not wire.level


def test_mode_4_strobes_low_for_one_pulse(pit, wire, clock):
    program(pit, 0x38, 0x10, 0x00)
    wire.rises.clear()
    clock.advance_to(10**9)
    assert wire.rises == [time_of(1 + 16 + 1)]


def test_mode_2_outputs_one_low_pulse_and_counts_down():
    counter = running(2, 4)
    assert [counter.out(t) for t in range(1, 10)] == [1, 1, 1, 0, 1, 1, 1, 0, 1]
    assert [counter.value(t) for t in range(1, 10)] == [4, 3, 2, 1, 4, 3, 2, 1, 4]


def test_mode_3_is_a_square_wave_counting_by_two():
    even, odd = running(3, 4), running(3, 5)
    assert [even.out(t) for t in range(1, 9)] == [1, 1, 0, 0, 1, 1, 0, 0]
    assert [even.value(t) for t in range(1, 9)] == [4, 2, 4, 2, 4, 2, 4, 2]
    assert [odd.out(t) for t in range(1, 11)] == [1, 1, 1, 0, 0, 1, 1, 1, 0, 0]
    assert [odd.value(t) for t in range(1, 11)] == [4, 2, 0, 4, 2, 4, 2, 0, 4, 2]


def test_mode_0_counts_on_round_after_the_end():
    counter = running(0, 2)
    assert [counter.out(t) for t in range(1, 6)] == [0, 0, 1, 1, 1]
    assert [counter.value(t) for t in range(1, 6)] == [2, 1, 0, 0xFFFF, 0xFFFE]


def test_mode_0_first_byte_of_a_new_count_stops_it():
    counter = running(0, 2)
    assert counter.out(100)
    counter.write(100, 5)
    assert not counter.out(200)
    counter.write(200, 0)
    assert [counter.out(t) for t in (205, 206)] == [0, 1]


def test_mode_1_is_triggered_and_retriggered_by_the_gate():
    counter = running(1, 3, gate=False)
    assert counter.out(50)
    counter.set_gate(50, True)
    assert [counter.out(t) for t in range(50, 56)] == [1, 0, 0, 0, 1, 1]
    counter.set_gate(60, False)
    counter.set_gate(60, True)
    counter.set_gate(61, False)
    counter.set_gate(62, True)
    assert [counter.out(t) for t in range(62, 67)] == [1, 0, 0, 0, 1]


def test_mode_5_strobes_after_the_trigger():
    counter = running(5, 3, gate=False)
    counter.set_gate(10, True)
    assert [counter.out(t) for t in range(11, 17)] == [1, 1, 1, 0, 1, 1]


def test_gate_stops_modes_0_and_4_and_restarts_2_and_3():
    counter = running(0, 10)
    counter.set_gate(5, False)
    assert counter.value(5) == counter.value(500) == 6
    counter.set_gate(500, True)
    assert counter.value(502) == 4
    square = running(3, 10)
    square.set_gate(7, False)
    assert square.out(8)
    square.set_gate(100, True)
    assert [square.value(t) for t in (101, 102)] == [10, 8]


def test_new_count_of_mode_2_waits_for_the_end_of_the_period():
    counter = running(2, 4)
    counter.write(2, 3)
    counter.write(2, 0)
    assert [counter.out(t) for t in range(2, 12)] == [1, 1, 0, 1, 1, 0, 1, 1, 0, 1]


def test_new_count_of_mode_3_waits_for_the_end_of_the_half_period():
    counter = running(3, 8)
    counter.write(2, 4)
    counter.write(2, 0)
    assert [counter.out(t) for t in range(2, 12)] == [1, 1, 1, 0, 0, 1, 1, 0, 0, 1]


def test_irq_follows_a_count_changed_on_the_run(pit, wire, clock):
    program(pit, 0x36, 100, 0)
    clock.advance_to(time_of(20))
    wire.rises.clear()
    pit.write(0x40, 1, 40)
    pit.write(0x40, 1, 0)
    clock.advance_to(time_of(200))
    # High until pulse 51, then the low half of the new count, then periods of 40.
    assert wire.rises == [time_of(t) for t in (71, 111, 151, 191)]


def test_count_latch_holds_until_both_bytes_are_read(pit, clock):
    program(pit, 0x34, 0x00, 0x10)
    clock.advance_to(time_of(1 + 0x123))
    pit.write(0x43, 1, 0x00)
    clock.advance_to(time_of(2000))
    pit.write(0x43, 1, 0x00)  # already latched
    assert [pit.read(0x40, 1), pit.read(0x40, 1)] == [0x1000 - 0x123 & 0xFF, 0x1000 - 0x123 >> 8]
    live = 0x1000 - 1999
    assert [pit.read(0x40, 1), pit.read(0x40, 1)] == [live & 0xFF, live >> 8]


def test_single_byte_access(pit, clock):
    program(pit, 0x14, 0x20)  # low byte only
    clock.advance_to(time_of(1 + 5))
    assert [pit.read(0x40, 1), pit.read(0x40, 1)] == [0x1B, 0x1B]
    program(pit, 0x24, 0x02)  # high byte only: 0x200
    clock.advance_to(time_of(6 + 1 + 0x101))
    assert pit.read(0x40, 1) == 0x00
    assert pit.counters[0].reload == 0x200


def test_read_back_gives_status_first(pit, clock):
    program(pit, 0x36, 0x00, 0x00)
    pit.write(0x43, 1, 0xC2)
    assert pit.read(0x40, 1) == 0xF6  # OUT, null count until the next pulse, both bytes, mode 3
    assert [pit.read(0x40, 1), pit.read(0x40, 1)] == [0, 0]
    clock.advance_to(time_of(1))
    pit.write(0x43, 1, 0xE2)
    assert pit.read(0x40, 1) == 0xB6
    pit.write(0x43, 1, 0xEE)  # all three; 1 and 2 have had no count since power-on
    assert [pit.read(0x40 + n, 1) for n in range(3)] == [0xB6, 0xF6, 0xF6]


def test_bcd_counts_in_decimal(pit, clock):
    program(pit, 0x35, 0x00, 0x10)  # 1000
    clock.advance_to(time_of(1 + 1))
    assert [pit.read(0x40, 1), pit.read(0x40, 1)] == [0x99, 0x09]
    program(pit, 0x31, 0x00, 0x00)  # 10000
    assert pit.counters[0].reload == 10000


def test_port_61_gates_and_shows_counter_2(pit, clock):
    program(pit, 0xB0, 0x0A, 0x00)
    assert pit.read(0x61, 1) & 0x2F == 0x00
    clock.advance_to(time_of(100))
    assert pit.read(0x61, 1) & 0x20 == 0
    pit.write(0x61, 1, 0x01)
    clock.advance_to(time_of(109))
    assert pit.read(0x61, 1) & 0x21 == 0x01
    clock.advance_to(time_of(110))
    assert pit.read(0x61, 1) & 0x21 == 0x21


def test_refresh_bit_toggles_every_18_pulses(pit, clock):
    seen = []
    for tick in range(0, 90, 18):
        clock.advance_to(time_of(tick))
        seen.append(pit.read(0x61, 1) >> 4 & 1)
    assert seen == [0, 1, 0, 1, 0]


def test_control_register_is_write_only(pit):
    assert pit.read(0x43, 1) == 0xFF


@given(
    st.sampled_from([0, 2, 3, 4]),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40)), max_size=3),
)
def test_next_rise_is_where_out_rises(mode, count, changes):
    counter, tick = running(mode, count), 0
    for wait, new in changes:
        tick += wait
        counter.sync(tick)
        counter.write(tick, new)
        counter.write(tick, 0)
    for _ in range(3):
        counter.out(tick)
        expected = counter.next_rise(tick)
        limit = tick + 130
        while tick < limit:
            before = counter.out(tick)
            tick += 1
            if counter.out(tick) and not before:
                break
            # A change of count is the only other moment the timer asks to be woken at.
            if tick == expected:
                expected = counter.next_rise(tick)
        else:
            assert expected is None or expected >= limit
            return
        assert tick == expected


def test_control_word_calls_off_the_coming_edge(pit, wire, clock):
    program(pit, 0x34, 0x00, 0x10)
    program(pit, 0x30)
    assert clock.next_deadline() is None
    program(pit, 0x34, 0x00, 0x10)
    program(pit, 0x3A)  # mode 5 waits for a trigger, and the gate of counter 0 is tied high
    pit.write(0x40, 1, 0x10)
    pit.write(0x40, 1, 0x00)
    assert clock.next_deadline() is None


@pytest.mark.parametrize(("mode", "period"), [(0, 1), (2, 2), (3, 2), (4, 1)])
def test_count_of_1_is_not_allowed_in_the_cyclic_modes(mode, period):
    assert running(mode, 1).period == period


def test_gate_that_stops_a_cycle_shows_in_out_and_takes_the_newest_count(pit):
    counter = running(2, 4)
    counter.write(2, 9)
    counter.write(2, 0)
    counter.set_gate(3, False)
    assert [counter.out(t) for t in range(3, 9)] == [1] * 6
    counter.set_gate(20, True)
    assert [t for t in range(20, 40) if not counter.out(t)] == [29, 38]


def test_gate_falling_after_a_change_of_count_counts_the_new_one():
    counter = running(2, 4)
    counter.write(2, 9)
    counter.write(2, 0)
    counter.set_gate(8, False)  # the new count was taken at pulse 5
    assert counter.value(100) == 6


def test_read_back_may_latch_counts_alone(pit, clock):
    program(pit, 0x34, 0x21, 0x43)
    clock.advance_to(time_of(1))
    pit.write(0x43, 1, 0xD2)
    assert [pit.read(0x40, 1), pit.read(0x40, 1)] == [0x21, 0x43]


def test_bcd_digits_reach_the_thousands(pit, clock):
    program(pit, 0x31, 0x21, 0x43)
    clock.advance_to(time_of(1))
    assert [pit.read(0x40, 1), pit.read(0x40, 1)] == [0x21, 0x43]


def test_reset_stops_the_timer_and_closes_the_gate(pit, wire, clock):
    program(pit, 0x34, 0x00, 0x10)
    pit.write(0x61, 1, 0x0F)
    pit.reset()
    assert not wire.level
    assert clock.next_deadline() is None
    assert pit.read(0x61, 1) & 0x0F == 0
    assert not pit.counters[2].gate
