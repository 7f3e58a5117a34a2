# SPDX-License-Identifier: GPL-2.0-only
"""The I/O APIC against its data sheet; what its registers answer is what QEMU 7.2 gave (by qtest)."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi.errors import UsageError
from vmi.native.devices.ioapic import IoApic
from vmi.native.devices.lapic import Message

BASE = 0xFEC00000
WINDOW, EOI = BASE + 0x10, BASE + 0x40
LEVEL, MASKED, REMOTE_IRR = 0x8000, 0x10000, 0x4000


class Bench:
    """An I/O APIC and the messages it sent."""

    def __init__(self):
        self.sent = []
        self.io_apic = IoApic(self.sent.append)

    def read(self, register):
        self.io_apic.memory_write(BASE, 4, register)
        return self.io_apic.memory_read(WINDOW, 4)

    def write(self, register, value):
        self.io_apic.memory_write(BASE, 4, register)
        self.io_apic.memory_write(WINDOW, 4, value)

    def entry(self, n, low, destination=0):
        self.write(0x11 + 2 * n, destination << 24)
        self.write(0x10 + 2 * n, low)

    def vectors(self):
        """Vectors sent since last asked."""
        vectors = [message.vector for message in self.sent]
        self.sent.clear()
        return vectors


@pytest.fixture
def bench():
    return Bench()


def test_registers_after_power_on(bench):
    assert bench.io_apic.memory_read(BASE, 4) == 0
    values = {register: value for register in range(256) if (value := bench.read(register))}
    assert values == {1: 0x170020, **dict.fromkeys(range(0x10, 0x40, 2), 0x10000)}


def test_selection_is_a_byte_of_any_access_size(bench):
    for size, written, selected in ((1, 0x12, 0x12), (2, 0x113, 0x13), (4, 0x114, 0x14), (8, 0x44, 0x44)):
        bench.io_apic.memory_write(BASE, size, written)
        assert [bench.io_apic.memory_read(BASE, read_size) for read_size in (1, 2, 4, 8)] == [selected] * 4


def test_window_takes_words_only_and_other_offsets_are_empty(bench):
    bench.write(0x10, 0x12345)
    for size in (1, 2):
        bench.io_apic.memory_write(WINDOW, size, 0x99)
        assert bench.io_apic.memory_read(WINDOW, size) == 0
    bench.io_apic.memory_write(BASE + 4, 4, 0x33)
    assert [bench.io_apic.memory_read(BASE + at, 4) for at in (4, 0x14, 0x20, 0x40)] == [0, 0, 0, 0]
    assert bench.read(0x10) == 0x12345


def test_registers_repeat_every_256_bytes(bench):
    bench.io_apic.memory_write(BASE + 0x100, 4, 1)
    assert bench.io_apic.memory_read(BASE + 0xF10, 4) == 0x170020


def test_writable_bits(bench):
    for register in (0, 1, 2, 0x10, 0x11, 0x3E, 0x3F, 0x40):
        bench.write(register, 0xFFFFFFFF)
    assert {register: bench.read(register) for register in (0, 1, 2, 0x10, 0x11, 0x3E, 0x3F, 0x40)} == {
        0: 0x0F000000, 1: 0x170020, 2: 0x0F000000,
        0x10: 0xFFFFAFFF, 0x11: 0xFFFFFFFF, 0x3E: 0xFFFFAFFF, 0x3F: 0xFFFFFFFF, 0x40: 0,
    }  # fmt: skip


def test_message_says_what_the_entry_says(bench):
    bench.entry(5, 0x0961 | LEVEL, destination=0x23)
    bench.io_apic.line(5).set(True)
    bench.entry(6, 0x0471, destination=0xFF)
    bench.io_apic.line(6).set(True)
    assert bench.sent == [Message(0x23, True, 1, 0x61, True), Message(0xFF, False, 4, 0x71, False)]
    assert bench.io_apic.stats() == {"input5": 1, "input6": 1}


def test_edge_is_told_once_and_lost_while_masked(bench):
    line = bench.io_apic.line(4)
    bench.entry(4, MASKED | 0x61)
    line.set(True)
    bench.entry(4, 0x61)
    assert bench.vectors() == []
    line.set(True)
    assert bench.vectors() == []  # no new edge
    line.set(False)
    line.set(True)
    assert bench.vectors() == [0x61]


def test_level_waits_for_the_end_of_the_interrupt(bench):
    line = bench.io_apic.line(4)
    bench.entry(4, LEVEL | 0x61)
    line.set(True)
    line.set(False)
    line.set(True)
    assert (bench.vectors(), bench.read(0x18)) == ([0x61], LEVEL | REMOTE_IRR | 0x61)
    bench.io_apic.end_of_interrupt(0x62)
    assert bench.vectors() == []
    bench.io_apic.end_of_interrupt(0x61)
    assert bench.vectors() == [0x61]
    line.set(False)
    bench.io_apic.end_of_interrupt(0x61)
    assert (bench.vectors(), bench.read(0x18)) == ([], LEVEL | 0x61)


def test_level_is_remembered_by_the_wire_while_masked(bench):
    line = bench.io_apic.line(4)
    line.set(True)
    bench.entry(4, MASKED | LEVEL | 0x61)
    assert bench.vectors() == []
    bench.entry(4, LEVEL | 0x61)
    assert bench.vectors() == [0x61]


def test_end_is_for_all_level_inputs_of_the_vector_but_masked_ones_stay_quiet(bench):
    for n in (3, 4, 5):
        bench.entry(n, LEVEL | 0x61)
        bench.io_apic.line(n).set(True)
    bench.entry(4, MASKED | LEVEL | 0x61)
    assert bench.vectors() == [0x61] * 3
    bench.io_apic.memory_write(EOI, 4, 0xFFFFFF61)
    assert bench.vectors() == [0x61] * 2
    assert bench.read(0x18) == MASKED | LEVEL | 0x61


def test_eoi_register_takes_words_only(bench):
    bench.entry(4, LEVEL | 0x61)
    bench.io_apic.line(4).set(True)
    bench.io_apic.memory_write(EOI, 1, 0x61)
    assert bench.read(0x18) & REMOTE_IRR
    bench.io_apic.memory_write(EOI, 4, 0x61)
    assert bench.vectors() == [0x61, 0x61]


def test_entry_made_an_edge_forgets_the_interrupt_in_service(bench):
    bench.entry(4, LEVEL | 0x61)
    bench.io_apic.line(4).set(True)
    bench.entry(4, MASKED | 0x61)
    assert bench.read(0x18) == MASKED | 0x61
    bench.entry(4, LEVEL | 0x61)
    assert bench.vectors() == [0x61, 0x61]


@pytest.mark.parametrize("n", [-1, 24])
def test_only_24_inputs(bench, n):
    sentence = f"an I/O APIC input must be 0 to 23, but {n} was asked for"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        bench.io_apic.line(n)


def test_reset_masks_and_keeps_the_wires(bench):
    bench.entry(4, LEVEL | 0x61)
    bench.io_apic.line(4).set(True)
    bench.write(0, 3 << 24)
    bench.io_apic.reset()
    assert (bench.read(0), bench.read(0x18), bench.vectors()) == (0, MASKED, [0x61])
    bench.entry(4, LEVEL | 0x62)
    assert bench.vectors() == [0x62]


def test_repr_counts_open_inputs(bench):
    bench.entry(4, 0x61)
    assert repr(bench.io_apic) == "<IoApic 0x0 with 1 of 24 inputs open>"


STEPS = st.one_of(
    st.tuples(st.just("drive"), st.integers(0, 23), st.booleans()),
    st.tuples(st.just("drive"), st.integers(3, 4), st.booleans()),
    st.tuples(st.just("entry"), st.integers(3, 4), st.sampled_from([0x61, 0x8061, 0x18061, 0x10061, 0x8062])),
    st.tuples(st.just("select"), st.integers(0, 0x50)),
    st.tuples(
        st.just("write"), st.integers(0, 0x50), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)
    ),
    st.tuples(st.just("read"), st.integers(0, 0x50), st.sampled_from([1, 2, 4, 8])),
    st.tuples(st.just("end"), st.sampled_from([0x61, 0x62])),
    st.tuples(st.just("reset")),
)


def play(bench, steps):
    """Run steps; give all that can be seen of them."""
    io_apic, seen = bench.io_apic, []
    for name, *args in steps:
        if name == "drive":
            io_apic.line(args[0]).set(args[1])
        elif name == "entry":
            bench.entry(*args)
        elif name == "select":
            io_apic.memory_write(BASE, 4, args[0])
        elif name == "write":
            io_apic.memory_write(BASE + args[0], args[1], args[2] & (1 << 8 * args[1]) - 1)
        elif name == "read":
            seen.append(io_apic.memory_read(BASE + args[0], args[1]))
            assert 0 <= seen[-1] < 1 << 8 * args[1]
        elif name == "end":
            io_apic.end_of_interrupt(args[0])
        else:
            io_apic.reset()
        seen.append(bench.vectors())
    return seen


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40), st.lists(STEPS, max_size=40))
def test_saved_io_apic_continues_identically(before, after):
    original, copy = Bench(), Bench()
    play(original, before)
    play(copy, after)
    copy.io_apic.load(json.loads(json.dumps(original.io_apic.save())))
    assert play(copy, after) == play(original, after)
    assert copy.io_apic.save() == original.io_apic.save()


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_an_open_level_that_is_high_has_been_told(steps):
    bench = Bench()
    play(bench, steps)
    for n in range(24):
        entry = bench.read(0x10 + 2 * n)
        if bench.io_apic.lines >> n & 1 and entry & LEVEL and not entry & MASKED:
            assert entry & REMOTE_IRR
