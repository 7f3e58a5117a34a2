# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC against Intel's manual; times and counts are what QEMU 7.2 gave for the same registers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi.native.clock import Clock
from vmi.native.devices.apic_bus import ApicBus
from vmi.native.devices.lapic import EXTINT, FIXED, NMI, Lapic, Message
from vmi.native.devices.lapic_timer import SHORTEST_TICK

BASE = 0xFEE00000
ID, TPR, PPR, EOI, LDR, SVR, ESR, ICR, ICR_HIGH = 0x20, 0x80, 0xA0, 0xB0, 0xD0, 0xF0, 0x280, 0x300, 0x310
TIMER, THERMAL, PERF, LINT0, LINT1, ERROR = range(0x320, 0x380, 0x10)
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
DIVIDE_BY_1, DIVIDE_BY_128 = 0xB, 0xA
MASKED, PERIODIC = 0x10000, 0x20000


class Bench:
    """A local APIC as firmware leaves it, its clock, and what comes out of it."""

    def __init__(self, firmware=True):
        self.clock = Clock()
        self.lapic = Lapic(self.clock)
        self.bus = ApicBus([self.lapic])
        self.log = []
        self.lapic.on_nmi = lambda: self.log.append("nmi")
        self.lapic.on_change = lambda: self.log.append("change")
        self.lapic.on_eoi = self.log.append
        if firmware:
            self.lapic.virtual_wire()

    def read(self, offset):
        return self.lapic.memory_read(BASE + offset, 4)

    def write(self, *pairs):
        for offset, value in pairs:
            self.lapic.memory_write(BASE + offset, 4, value)

    def wait(self, ns):
        self.clock.advance_to(self.clock.now() + ns)

    def vectors(self, first):
        """Bits of the 256 that begin at register ``first``."""
        return [
            32 * word + bit
            for word in range(8)
            for bit in range(32)
            if self.read(first + 0x10 * word) >> bit & 1
        ]

    def requested(self):
        return self.vectors(0x200)


@pytest.fixture
def bench():
    return Bench()


def test_registers_after_reset():
    bench = Bench(firmware=False)
    values = {offset: value for offset in range(0, 0x400, 16) if (value := bench.read(offset))}
    assert values == {
        0x030: 0x50014,
        0x0E0: 0xFFFFFFFF,
        0x0F0: 0xFF,
        **{TIMER: MASKED, THERMAL: MASKED, PERF: MASKED, LINT0: 0x700, LINT1: MASKED, ERROR: MASKED},
    }
    assert bench.lapic.apic_base == 0xFEE00900


def test_registers_as_firmware_leaves_them(bench):
    values = {offset: value for offset in range(0, 0x400, 16) if (value := bench.read(offset))}
    assert values == {
        0x030: 0x50014,
        0x0E0: 0xFFFFFFFF,
        0x0F0: 0x1FF,
        ICR: 0xC4610,
        **{TIMER: MASKED, THERMAL: MASKED, PERF: MASKED, LINT0: 0x8700, LINT1: 0x8400, ERROR: MASKED},
    }


def test_only_words_are_registers_but_all_16_bytes_of_one_are_its():
    bench = Bench()
    bench.write((TPR, 0x23))
    for size in (1, 2):
        assert bench.lapic.memory_read(BASE + TPR, size) == 0
        bench.lapic.memory_write(BASE + TPR, size, 0x66)
    assert bench.read(TPR) == bench.read(TPR + 4) == bench.read(TPR + 12) == 0x23
    bench.write((TPR + 4, 0x44))
    assert bench.read(TPR) == 0x44


def test_eight_bytes_are_two_words(bench):
    bench.lapic.memory_write(BASE + ICR + 0xC, 8, 0x01000000_00040041)
    assert (bench.requested(), bench.read(ICR_HIGH)) == ([0x41], 0x01000000)
    assert bench.lapic.memory_read(BASE + ICR + 0xC, 8) == 0x01000000_00040041


def test_read_only_bits_of_entries_and_messages(bench):
    bench.write((TIMER, 0xFFFFFFFF), (LINT1, 0xFFFFFFFF), (ICR, 0x000C1241))
    assert (bench.read(TIMER), bench.read(LINT1), bench.read(ICR)) == (0xFFFFAFFF, 0xFFFFAFFF, 0x000C0241)


# --- timer ---


@pytest.mark.parametrize(
    ("code", "shift"), [(0, 1), (1, 2), (2, 3), (3, 4), (8, 5), (9, 6), (0xA, 7), (0xB, 0)]
)
def test_divider(bench, code, shift):
    bench.write((DIVIDE, code), (INITIAL, 1_000_000))
    bench.wait(200_000)
    assert bench.read(CURRENT) == 1_000_000 - (200_000 >> shift)


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_one_shot_is_due_one_count_after_zero(bench, count):
    bench.write((DIVIDE, DIVIDE_BY_128), (TIMER, 0x45), (INITIAL, count))
    bench.wait(128 * (count + 1) - 1)
    assert (bench.requested(), bench.read(CURRENT)) == ([], 0)
    bench.wait(1)
    assert bench.requested() == [0x45]
    bench.lapic.acknowledge()
    bench.wait(1_000_000)
    assert (bench.requested(), bench.read(CURRENT)) == ([], 0)
    assert bench.lapic.stats()["timer_ticks"] == 1


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_period_is_one_longer_than_the_count(bench, count):
    bench.write((DIVIDE, DIVIDE_BY_128), (TIMER, PERIODIC | 0x45), (INITIAL, count))
    period = 128 * (count + 1)
    if period < SHORTEST_TICK:
        period *= -(-SHORTEST_TICK // period)
    dues = []
    for _ in range(5):
        dues.append(bench.clock.next_deadline())
        bench.clock.advance_to(dues[-1])
        assert bench.requested() == [0x45]
        assert bench.lapic.acknowledge() == 0x45
        bench.write((EOI, 0))
    assert dues == [period * n for n in range(1, 6)]


def test_count_of_a_periodic_timer_goes_round(bench):
    bench.write((DIVIDE, DIVIDE_BY_128), (TIMER, MASKED | PERIODIC | 0x45), (INITIAL, 3))
    counts = []
    for _ in range(10):
        counts.append(bench.read(CURRENT))
        bench.wait(128)
    assert counts == [3, 2, 1, 0, 3, 2, 1, 0, 3, 2]


def test_masked_one_shot_does_not_make_up_for_it(bench):
    bench.write((DIVIDE, DIVIDE_BY_1), (TIMER, MASKED | 0x45), (INITIAL, 5000))
    bench.wait(20_000)
    bench.write((TIMER, 0x45))
    bench.wait(20_000)
    assert (bench.requested(), bench.read(CURRENT)) == ([], 0)


def test_timer_unmasked_in_time_is_due_when_it_always_was(bench):
    bench.write((DIVIDE, DIVIDE_BY_1), (TIMER, MASKED | 0x45), (INITIAL, 50_000))
    bench.wait(20_000)
    bench.write((TIMER, 0x45))
    assert bench.clock.next_deadline() == 50_001


def test_count_zero_stops_the_timer(bench):
    bench.write((DIVIDE, DIVIDE_BY_1), (TIMER, PERIODIC | 0x45), (INITIAL, 99_999))
    bench.wait(30_000)
    bench.write((INITIAL, 0))
    bench.wait(200_000)
    assert (bench.requested(), bench.read(CURRENT), bench.clock.next_deadline()) == ([], 0, None)


def test_new_divider_counts_on_from_where_it_is(bench):
    bench.write((DIVIDE, DIVIDE_BY_128), (TIMER, 0x45), (INITIAL, 1000))
    bench.wait(128 * 400)
    bench.write((DIVIDE, DIVIDE_BY_1))
    assert bench.read(CURRENT) == 600
    assert bench.clock.next_deadline() == 128 * 400 + 601


def test_one_shot_becomes_periodic_in_mid_count(bench):
    bench.write((DIVIDE, DIVIDE_BY_1), (TIMER, 0x45), (INITIAL, 9999))
    bench.wait(25_000)
    bench.write((TIMER, PERIODIC | 0x46))
    assert bench.clock.next_deadline() == 30_000
    bench.wait(5_000)
    assert bench.requested() == [0x45, 0x46]


def test_timer_faster_than_the_processor_ticks_once_a_microsecond(bench):
    bench.write((DIVIDE, DIVIDE_BY_1), (TIMER, PERIODIC | 0x45), (INITIAL, 1))
    bench.wait(100_000)
    assert bench.requested() == [0x45]
    assert bench.lapic.stats()["timer_ticks"] == 100
    assert bench.read(CURRENT) == 1


def test_timer_entry_may_ask_for_an_nmi(bench):
    bench.write((DIVIDE, DIVIDE_BY_1), (TIMER, NMI << 8), (INITIAL, 10))
    bench.wait(11)
    assert (bench.log, bench.lapic.stats()["nmis"]) == (["nmi"], 1)


# --- software and hardware switches ---


def test_switching_off_masks_the_local_entries_and_keeps_them_masked(bench):
    bench.write((DIVIDE, DIVIDE_BY_1), (TIMER, PERIODIC | 0x45), (INITIAL, 9999), (SVR, 0xFF))
    assert (bench.read(TIMER), bench.read(LINT0), bench.read(LINT1)) == (0x30045, 0x18700, 0x18400)
    assert bench.clock.next_deadline() is None
    bench.write((TIMER, 0x45), (LINT0, 0x700))
    assert (bench.read(TIMER), bench.read(LINT0)) == (0x10045, 0x10700)
    bench.lapic.set_lint0(True)
    assert not bench.lapic.pending()
    bench.write((SVR, 0x1FF), (LINT0, 0x700))
    assert bench.lapic.pending()


def test_pair_goes_through_before_any_software_knows_the_apic():
    bench = Bench(firmware=False)
    bench.lapic.external = lambda: 0x08
    bench.lapic.set_lint0(True)
    assert bench.lapic.pending()
    assert bench.lapic.acknowledge() == 0x08


def test_apic_base_switches_off_for_good_and_moves_nothing(bench):
    bench.lapic.external = lambda: 0x20
    bench.write((LINT0, MASKED), (ICR, 0x40061))
    bench.lapic.set_lint0(True)
    assert bench.lapic.acknowledge() == 0x61
    assert not bench.lapic.pending()
    bench.lapic.set_apic_base(0xFEE00100)
    assert (bench.lapic.apic_base, bench.lapic.enabled, bench.read(SVR)) == (0xFEE00100, False, 0xFF)
    assert bench.lapic.pending()  # the pair now has the processor to itself
    assert bench.lapic.acknowledge() == 0x20
    bench.lapic.set_apic_base(0xFEE00900)
    assert bench.lapic.apic_base == 0xFEE00100
    bench.write((SVR, 0x1FF))
    bench.bus.deliver(Message(0, False, FIXED, 0x71, False))
    bench.lapic.set_lint0(False)
    assert not bench.lapic.pending()
    bench.lapic.reset()
    bench.lapic.set_apic_base(0xFED00800)
    assert bench.lapic.apic_base == 0xFED00900
    assert bench.read(0x30) == 0x50014


# --- local inputs ---


def test_lint0_as_a_vector_takes_edges(bench):
    bench.write((LINT0, 0x62))
    bench.lapic.set_lint0(True)
    assert bench.lapic.acknowledge() == 0x62
    bench.write((EOI, 0))
    bench.lapic.set_lint0(True)
    assert not bench.lapic.pending()
    bench.lapic.set_lint0(False)
    bench.lapic.set_lint0(True)
    assert bench.lapic.acknowledge() == 0x62
    assert bench.vectors(0x180) == []


def test_lint0_as_a_level_is_withdrawn_with_the_line(bench):
    bench.write((LINT0, 0x8062))
    bench.lapic.set_lint0(True)
    assert bench.requested() == bench.vectors(0x180) == [0x62]
    bench.lapic.set_lint0(False)
    assert bench.requested() == []
    assert not bench.lapic.pending()


def test_lint0_masked_or_as_nmi_or_unusable(bench):
    for entry, expected in ((0x10062, []), (0x10400, []), (0x200, []), (0x500, []), (0x400, ["nmi"])):
        bench.write((LINT0, entry))
        bench.lapic.set_lint0(True)
        bench.lapic.set_lint0(False)
        assert (bench.log, bench.requested()) == (expected, [])


def test_lint1_is_the_nmi_of_the_board(bench):
    bench.lapic.pulse_nmi()
    bench.write((LINT1, 0x10400))
    bench.lapic.pulse_nmi()
    assert bench.log == ["nmi"]
    bench.write((LINT1, 0x55))
    bench.lapic.pulse_nmi()
    assert bench.requested() == [0x55]
    bench.lapic.set_apic_base(0)
    bench.lapic.pulse_nmi()
    assert bench.log == ["nmi", "change", "nmi"]


def test_extint_message_runs_one_acknowledge_cycle_of_the_pair(bench):
    bench.lapic.external = lambda: 0x24
    bench.bus.deliver(Message(0, False, EXTINT, 0xFF, False))
    assert bench.lapic.pending()
    assert bench.lapic.acknowledge() == 0x24
    assert not bench.lapic.pending()
    assert bench.lapic.stats()["external"] == 1


# --- requests ---


def test_on_change_comes_when_an_interrupt_gets_its_way(bench):
    bench.write((TPR, 0x60), (ICR, 0x40061))
    assert bench.log == []
    bench.write((TPR, 0x50))
    assert bench.log == ["change"]
    bench.write((ICR, 0x40071))
    assert bench.log == ["change"]  # the processor has been told
    assert [bench.lapic.acknowledge(), bench.lapic.pending()] == [0x71, False]
    bench.write((EOI, 0))
    assert bench.log == ["change", "change"]


def test_end_of_a_level_interrupt_is_told_to_the_board(bench):
    bench.bus.deliver(Message(0, False, FIXED, 0x61, True))
    bench.bus.deliver(Message(0xFF, False, FIXED, 0x62, False))
    assert [bench.lapic.acknowledge(), bench.lapic.acknowledge()] == [0x62, 0xFF]
    bench.write((EOI, 0))
    assert bench.lapic.acknowledge() == 0x61
    bench.log.clear()
    bench.write((EOI, 0))
    assert bench.log == [0x61]


def test_nothing_to_acknowledge_is_spurious_and_not_in_service(bench):
    bench.write((SVR, 0x13F))
    assert bench.lapic.acknowledge() == 0x3F
    assert bench.vectors(0x100) == []
    assert bench.lapic.stats()["spurious"] == 1


@pytest.mark.parametrize("mode", [2, 3, 5, 6, 7])
def test_messages_that_mean_nothing_to_one_processor(bench, mode):
    bench.write((ICR, 0x40051 | mode << 8))
    assert (bench.log, bench.requested(), bench.lapic.pending()) == ([], [], False)


# --- errors ---


def test_errors_show_after_a_write_to_the_register(bench):
    bench.read(0x2F0)
    assert bench.read(ESR) == 0
    bench.write((ESR, 0))
    assert (bench.read(ESR), bench.read(ESR)) == (0x80, 0x80)
    bench.write((ESR, 0))
    assert bench.read(ESR) == 0


def test_vectors_below_16_are_errors(bench):
    bench.write((ICR, 0x4000F), (ESR, 0))
    assert bench.read(ESR) == 0x20
    bench.bus.deliver(Message(0, False, FIXED, 0x0F, False))
    bench.write((0x400 - 0x10, 1), (ESR, 0))
    assert bench.read(ESR) == 0xC0
    assert bench.requested() == []


def test_error_interrupt_comes_once_per_kind_and_reading(bench):
    bench.write((ERROR, 0x99), (ICR, 0x40001), (ICR, 0x40001))
    assert bench.lapic.acknowledge() == 0x99
    bench.write((EOI, 0), (ICR, 0x40001))
    assert not bench.lapic.pending()
    bench.write((ESR, 0), (ICR, 0x40001))
    assert bench.lapic.acknowledge() == 0x99


def test_error_entry_with_a_bad_vector_ends(bench):
    bench.write((ERROR, 0x05), (ICR, 0x40001), (ESR, 0))
    assert bench.read(ESR) == 0x60


# --- state ---


def test_reset_stops_the_timer_and_leaves_the_wire(bench):
    bench.write((DIVIDE, DIVIDE_BY_1), (TIMER, PERIODIC | 0x45), (INITIAL, 9999), (ID, 7 << 24))
    bench.lapic.set_lint0(True)
    bench.lapic.reset()
    assert (bench.clock.next_deadline(), bench.read(ID), bench.read(LINT0)) == (None, 0, 0x700)
    assert bench.lapic.pending()  # LINT0 is still high


def test_reprs_are_short(bench):
    bench.write((TPR, 0x20))
    assert repr(bench.lapic) == "<Lapic 0x0 on, priority 0x20>"
    assert repr(bench.lapic.timer) == "<LapicTimer one-shot from 0 by 2>"
    assert repr(Message(3, True, FIXED, 0x61, True)) == "Message(0x61 to set 0x3, mode 0, level)"
    assert repr(Message(0, False, NMI, 0, False)) == "Message(0x0 to id 0x0, mode 4)"


WORDS = st.one_of(
    st.sampled_from([0, 1, 0xFF, 0x1FF, 0x45, 0x10045, 0x20045, 0x40061, 0x40005, 0x8700, 0xB, 999, 20_000]),
    st.integers(0, 0xFFFFFFFF),
)
STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 0x3F).map(lambda n: 16 * n), st.just(4), WORDS),
    st.tuples(st.just("write"), st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]), WORDS),
    st.tuples(st.just("read"), st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8])),
    st.tuples(st.just("accept"), st.integers(0, 255), st.booleans(), st.integers(0, 7), st.integers(0, 255)),
    st.tuples(st.just("wait"), st.integers(0, 30_000)),
    st.tuples(st.just("line"), st.booleans()),
    st.tuples(st.just("base"), WORDS),
    *(st.tuples(st.just(name)) for name in ("take", "nmi", "reset", "firmware")),
)


def play(bench, steps):
    """Run steps; give all that can be seen of them."""
    lapic, seen = bench.lapic, []
    for name, *args in steps:
        if name == "write":
            lapic.memory_write(BASE + args[0], args[1], args[2])
        elif name == "read":
            seen.append(lapic.memory_read(BASE + args[0], args[1]))
            assert 0 <= seen[-1] < 1 << 8 * args[1]
        elif name == "accept":
            destination, logical, mode, vector = args
            bench.bus.deliver(Message(destination, logical, mode, vector, bool(vector & 1)))
        elif name == "wait":
            bench.wait(args[0])
        elif name == "line":
            lapic.set_lint0(args[0])
        elif name == "base":
            lapic.set_apic_base(args[0])
        elif name == "take":
            seen.append(lapic.acknowledge())
        else:
            {"nmi": lapic.pulse_nmi, "reset": lapic.reset, "firmware": lapic.virtual_wire}[name]()
        seen.append((lapic.pending(), bench.clock.next_deadline()))
    return seen


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40), st.lists(STEPS, max_size=40))
def test_saved_apic_continues_identically(before, after):
    original, copy = Bench(), Bench(firmware=False)
    play(original, before)
    state = json.loads(json.dumps([original.clock.save(), original.lapic.save()]))
    play(copy, after)  # whatever it was doing is replaced
    copy.clock.load(state[0])
    copy.lapic.load(state[1])
    assert copy.lapic.save() == state[1]
    original.log.clear()
    copy.log.clear()
    assert play(copy, after) == play(original, after)
    assert copy.log == original.log
    assert copy.lapic.save() == original.lapic.save()
    assert copy.lapic.memory_read(BASE + PPR, 4) == original.lapic.memory_read(BASE + PPR, 4)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_pending_promises_a_vector_that_is_not_spurious(steps):
    bench = Bench()
    play(bench, steps)
    spurious, pending = bench.lapic.stats()["spurious"], bench.lapic.pending()
    bench.lapic.acknowledge()
    assert bench.lapic.stats()["spurious"] == spurious + (not pending)
