# SPDX-License-Identifier: GPL-2.0-only
"""The VGA's registers: what a guest reads back, what is protected, where the beam is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi.native.bus import PortBus
from vmi.native.clock import Clock
from vmi.native.devices.vga import Vga

PORTS = (0x3B4, 0x3B5, 0x3BA, *range(0x3C0, 0x3D0), 0x3D4, 0x3D5, 0x3DA)
CRTC, SEQUENCER, GRAPHICS = 0x3D4, 0x3C4, 0x3CE
RETRACE, BLANK = 8, 1
POLL_NS = 1000  # what reading the status takes


class Card:
    """Register access by index."""

    def __init__(self, clock):
        self.vga = Vga(clock)

    def read(self, port):
        return self.vga.read(port, 1)

    def write(self, port, *values):
        for value in values:
            self.vga.write(port, 1, value)

    def get(self, port, index):
        self.write(port, index)
        return self.read(port + 1)

    def set(self, port, index, value):
        self.write(port, index)
        self.write(port + 1, value)

    def all(self, port, count):
        return bytes(self.get(port, index) for index in range(count)).hex()

    def attributes(self):
        found = []
        for index in range(21):
            self.read(0x3DA)
            self.write(0x3C0, index)
            found.append(self.read(0x3C1))
        self.read(0x3DA)
        self.write(0x3C0, 0x20)
        return bytes(found).hex()

    def dac(self, first, count):
        self.write(0x3C7, first)
        return [self.read(0x3C9) for _ in range(3 * count)]


@pytest.fixture
def card(clock):
    return Card(clock)


@pytest.fixture
def text_card(card):
    card.vga.set_text_mode()
    return card


def test_after_reset_all_is_zero_and_blank(text_card):
    text_card.vga.reset()
    assert text_card.vga.blank
    assert [text_card.read(port) for port in range(0x3C0, 0x3D0)] == [0] * 6 + [0xFF] + [0] * 9
    assert text_card.all(0x3B4, 25) == "00" * 25
    assert text_card.all(SEQUENCER, 8) == "00" * 8
    assert text_card.all(GRAPHICS, 16) == "00" * 16


def test_text_mode_is_what_a_video_bios_leaves(text_card):
    assert text_card.read(0x3CC) == 0x67
    assert text_card.all(SEQUENCER, 5) == "0300030002"
    assert text_card.all(GRAPHICS, 9) == "0000000000100e0fff"
    assert text_card.all(CRTC, 25) == "5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff"
    assert text_card.attributes() == "000102030405140738393a3b3c3d3e3f0c000f0800"
    assert text_card.read(0x3C6) == 0xFF
    assert text_card.dac(0, 8) == [
        *(0, 0, 0), *(0, 0, 0x2A), *(0, 0x2A, 0), *(0, 0x2A, 0x2A),
        *(0x2A, 0, 0), *(0x2A, 0, 0x2A), *(0x2A, 0x2A, 0), *(0x2A, 0x2A, 0x2A),
    ]  # fmt: skip
    assert text_card.dac(0x14, 1) == [0x2A, 0x15, 0]
    assert text_card.dac(0x38, 1) == [0x15, 0x15, 0x15]
    assert text_card.dac(0x3F, 2) == [0x3F, 0x3F, 0x3F, 0, 0, 0]
    vga = text_card.vga
    assert not vga.blank and not vga.graphics_mode and vga.blinking and vga.line_graphics
    assert vga.underline is None
    assert vga.text_base == 0xB8000
    layout = vga.geometry
    assert (layout.columns, layout.rows, layout.cell_lines, layout.cell_dots) == (80, 25, 16, 9)
    assert (layout.start, layout.pitch, layout.split, layout.repeat) == (0, 80, 0x3FF, 1)
    assert vga.cursor_lines == range(13, 15)


def test_colours_are_those_of_a_pc(text_card):
    assert text_card.vga.colours() == (
        (0, 0, 0), (0, 0, 0xA8), (0, 0xA8, 0), (0, 0xA8, 0xA8),
        (0xA8, 0, 0), (0xA8, 0, 0xA8), (0xA8, 0x57, 0), (0xA8, 0xA8, 0xA8),
        (0x57, 0x57, 0x57), (0x57, 0x57, 0xFF), (0x57, 0xFF, 0x57), (0x57, 0xFF, 0xFF),
        (0xFF, 0x57, 0x57), (0xFF, 0x57, 0xFF), (0xFF, 0xFF, 0x57), (0xFF, 0xFF, 0xFF),
    )  # fmt: skip


def test_unimplemented_bits_read_as_zero(card):
    card.write(0x3C2, 0xFF)
    assert card.read(0x3CC) == 0xEF
    for port, count in ((SEQUENCER, 8), (GRAPHICS, 16)):
        for index in range(count):
            card.set(port, index, 0xFF)
    assert card.all(SEQUENCER, 8) == "033d0f3f0e0000ff"
    assert card.all(GRAPHICS, 16) == "0f0f0f1f037b0f0fff" + "00" * 7
    card.read(0x3DA)
    for index in range(32):
        card.write(0x3C0, index, 0xFF)
    assert card.attributes() == "3f" * 16 + "efff3f0f0f"
    card.write(0x3DA, 0xFF)
    assert card.read(0x3CA) == 0x10


def test_indices_beyond_the_registers_hold_nothing(card):
    card.write(0x3C2, 1)
    card.set(CRTC, 0x19, 0x5A)
    assert card.get(CRTC, 0x19) == 0
    assert card.get(CRTC, 0xFF) == 0
    card.read(0x3DA)
    card.write(0x3C0, 0x15, 0x5A)
    assert card.read(0x3C1) == 0
    card.write(SEQUENCER, 0xFF)
    card.write(GRAPHICS, 0xFF)
    assert (card.read(SEQUENCER), card.read(GRAPHICS)) == (7, 15)


def test_timings_are_write_protected_but_for_one_bit(text_card):
    before = text_card.all(CRTC, 8)
    for index in range(7):
        text_card.set(CRTC, index, 0)
    assert text_card.all(CRTC, 8) == before
    text_card.set(CRTC, 7, 0x00)
    assert text_card.get(CRTC, 7) == 0x0F
    text_card.set(CRTC, 7, 0xFF)
    assert text_card.get(CRTC, 7) == 0x1F
    text_card.set(CRTC, 8, 3)
    assert text_card.get(CRTC, 8) == 3
    text_card.set(CRTC, 0x11, 0x0E)
    text_card.set(CRTC, 7, 0xA5)
    assert text_card.get(CRTC, 7) == 0xA5


def test_misc_output_chooses_the_addresses_of_colour_or_monochrome(card):
    for misc, here, there in ((0x00, 0x3B0, 0x3D0), (0x01, 0x3D0, 0x3B0)):
        card.write(0x3C2, misc)
        card.set(here + 4, 0x0E, 0x12)
        card.set(there + 4, 0x0F, 0x34)
        assert card.get(here + 4, 0x0E) == 0x12
        assert card.read(there + 4) == card.read(there + 5) == card.read(there + 10) == 0xFF
        assert card.get(here + 4, 0x0F) == 0
        assert card.read(here + 10) & ~(RETRACE | BLANK) == 0


def test_status_read_makes_the_next_attribute_write_an_index(card):
    card.write(0x3C2, 1)
    card.read(0x3DA)
    card.write(0x3C0, 0x02)
    assert card.read(0x3C0) == 0  # in between, the data is expected
    card.write(0x3C0, 0x2A)
    assert card.read(0x3C0) == 0x02
    assert card.read(0x3C1) == 0x2A
    card.write(0x3C0, 0x03)
    card.read(0x3DA)
    card.write(0x3C0, 0x22)
    assert card.read(0x3C1) == 0x2A
    card.read(0x3BA)  # switched off, so it is not this register
    card.write(0x3C0, 0x15)
    assert card.read(0x3C0) == 0x22
    assert card.read(0x3C1) == 0x15


def test_dac_counts_components_and_entries(card):
    assert card.read(0x3C7) == 0
    card.write(0x3C8, 254)
    card.write(0x3C9, 1, 2, 0xFF, 4, 5, 6, 7)
    assert card.read(0x3C8) == 0
    assert card.dac(254, 2) == [1, 2, 0x3F, 4, 5, 6]
    assert card.read(0x3C7) == 3
    assert card.read(0x3C9) == 0  # entry 0 was not complete
    card.write(0x3C8, 0)
    card.write(0x3C9, 7, 8, 9)
    assert card.dac(255, 2) == [4, 5, 6, 7, 8, 9]
    card.write(0x3C7, 254)
    card.read(0x3C9)
    card.write(0x3C7, 255)
    assert card.read(0x3C9) == 4


def test_colours_go_through_attribute_registers_mask_and_select(text_card):
    def attribute(index, value):
        text_card.read(0x3DA)
        text_card.write(0x3C0, index, value, 0x20)
        text_card.read(0x3DA)

    black, blue, white = (0, 0, 0), (0, 0, 0xA8), (0xFF, 0xFF, 0xFF)
    colours = text_card.vga.colours
    attribute(2, 0x01)
    assert colours()[2] == blue
    attribute(0x14, 0x04)  # the upper entries, which are black
    assert set(colours()) == {black}
    attribute(0x14, 0x03)
    assert colours()[15] == white
    attribute(0x10, 0x8C)  # now bits 4 and 5 are the select register's, too
    assert colours()[15] == white
    assert colours()[0] == (0x57, 0x57, 0)
    attribute(0x14, 0x00)
    attribute(0x10, 0x0C)
    attribute(0x12, 0x01)  # one plane
    assert colours()[9] == colours()[1] == blue
    attribute(0x12, 0x0F)
    text_card.write(0x3C6, 0x01)
    assert text_card.read(0x3C6) == 1
    assert colours()[7] == colours()[15] == blue


@pytest.mark.parametrize(
    ("misc", "map_select", "base"),
    [(1, 3, 0xB8000), (0, 3, 0xB8000), (1, 2, 0xB0000), (1, 1, 0xB8000), (1, 0, 0xB8000), (0, 1, 0xB0000)],
)
def test_text_memory_is_where_the_map_says(text_card, misc, map_select, base):
    text_card.write(0x3C2, 0x66 | misc)
    text_card.set(GRAPHICS, 6, map_select << 2)
    assert text_card.vga.text_base == base


def test_word_writes_set_index_and_data(clock):
    bus, vga = PortBus(), Vga(clock)
    bus.attach(vga)
    bus.write(0x3C2, 1, 1)
    bus.write(CRTC, 2, 0x120E)
    bus.write(CRTC, 2, 0x340F)
    assert vga.cursor_cell == 0x1234
    assert bus.read(CRTC, 2) == 0x340F
    assert vga.stats() == {"reads": 2, "writes": 5}


# --- the beam ---

DOT_HZ = 28_322_000
LINE_DOTS, FRAME_LINES = 900, 449


def at(card, clock, line, column):
    """The status bits with the beam in the middle of a character of the next frame."""
    frame_dots = LINE_DOTS * FRAME_LINES
    now = clock.now() + (card.vga.polls + 1) * POLL_NS
    frame = now * DOT_HZ // 10**9 // frame_dots + 1
    dot = frame * frame_dots + line * LINE_DOTS + column * 9 + 4
    clock.advance_to(dot * 10**9 // DOT_HZ - (card.vga.polls + 1) * POLL_NS)
    return card.read(0x3DA)


def test_beam_follows_the_clock(text_card, clock):
    found = {place: at(text_card, clock, *place) for place in
             ((0, 0), (0, 79), (0, 80), (0, 99), (399, 79), (400, 0), (411, 99), (412, 0), (413, 99),
              (414, 0), (448, 99))}  # fmt: skip
    assert found == {
        (0, 0): 0, (0, 79): 0, (0, 80): BLANK, (0, 99): BLANK, (399, 79): 0, (400, 0): BLANK,
        (411, 99): BLANK, (412, 0): BLANK | RETRACE, (413, 99): BLANK | RETRACE, (414, 0): BLANK,
        (448, 99): BLANK,
    }  # fmt: skip


def test_polling_gets_on_even_if_the_clock_stands(text_card):
    def polls_until(bit, level):
        return next(n for n in range(20_000) if bool(text_card.read(0x3DA) & bit) == level)

    for _ in range(3):
        assert polls_until(RETRACE, False) < 100
        assert polls_until(RETRACE, True) < 14_300
        assert polls_until(BLANK, False) < 2_000
        assert polls_until(BLANK, True) < 40


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=25, max_size=25), st.integers(0, 255), st.integers(0, 255))
def test_retrace_comes_and_goes_whatever_is_programmed(crtc, clocking, misc):
    clock = Clock()
    card = Card(clock)
    card.write(0x3C2, misc)
    card.set(SEQUENCER, 1, clocking)
    base = 0x3D0 if misc & 1 else 0x3B0
    card.set(base + 4, 0x11, 0)
    for index, value in enumerate(crtc):
        card.set(base + 4, index, value)
    # every line of the longest frame, by steps shorter than the shortest line
    hertz = 28_322_000 if misc & 4 else 25_175_000
    line_ns = (crtc[0] + 5) * (8 if clocking & 1 else 9) * (2 if clocking & 8 else 1) * 10**9 // hertz
    seen = set()
    for _ in range(1100):
        clock.advance_to(clock.now() + max(0, line_ns - POLL_NS))
        seen.add(card.read(base + 10) & RETRACE)
    assert seen == {0, RETRACE}


# --- any sequence of accesses ---

BYTES = st.one_of(st.sampled_from([0, 1, 0x0C, 0x11, 0x20, 0x67, 0x80, 0xFF]), st.integers(0, 255))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(PORTS), st.sampled_from([1, 1, 2, 4]), BYTES),
        st.tuples(st.just("read"), st.sampled_from(PORTS), st.sampled_from([1, 1, 2, 4])),
        st.tuples(st.just("wait"), st.integers(0, 20_000_000)),
        st.tuples(st.just("mode")),
        st.tuples(st.just("reset")),
    ),
    max_size=40,
)


def play(bus, vga, clock, steps):
    """Run steps; give all that can be seen of them."""
    seen = []
    for name, *args in steps:
        if name == "write":
            port, size, value = args
            bus.write(port, size, value * 0x01010101)
        elif name == "read":
            seen.append(bus.read(*args))
            assert 0 <= seen[-1] < 1 << 8 * args[1]
        elif name == "wait":
            clock.advance_to(clock.now() + args[0])
        elif name == "mode":
            vga.set_text_mode()
        else:
            bus.reset()
        seen.append(
            (vga.colours(), vga.geometry, vga.cursor_cell, vga.cursor_lines, vga.text_base, vga.blank)
        )
    return seen


@settings(max_examples=100, deadline=None)
@given(STEPS, STEPS)
def test_saved_card_continues_identically(before, after):
    boards = []
    for _ in range(2):
        clock = Clock()
        bus, vga = PortBus(), Vga(clock)
        bus.attach(vga)
        boards.append((bus, vga, clock))
    play(*boards[0], before)
    state = json.loads(json.dumps([boards[0][2].save(), boards[0][1].save()]))
    play(*boards[1], after)  # whatever it was doing is replaced
    boards[1][2].load(state[0])
    boards[1][1].load(state[1])
    assert boards[1][1].save() == state[1]
    assert play(*boards[0], after) == play(*boards[1], after)
    assert boards[0][1].save() == boards[1][1].save()
