# SPDX-License-Identifier: GPL-2.0-only
"""Screens: what is captured from text memory and registers, and the dots of the picture."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vmi.memory import PhysicalMemory
from vmi.native import font
from vmi.native.clock import Clock
from vmi.native.devices.vga import Vga
from vmi.native.screen import Cell, Cursor, Screen

BLACK, GREY, WHITE = (0, 0, 0), (0xA8, 0xA8, 0xA8), (0xFF, 0xFF, 0xFF)
BLUE, RED, YELLOW, DARK = (0, 0, 0xA8), (0xA8, 0, 0), (0xFF, 0xFF, 0x57), (0x57, 0x57, 0x57)
BASE = 0xB8000
NO_GRAPHICS = "the screen shows graphics, and only text modes can be captured"


class Monitor:
    """A VGA in text mode with cleared memory, as a guest finds it."""

    def __init__(self):
        self.memory = PhysicalMemory(1 << 20)
        self.vga = Vga(Clock())
        self.vga.set_text_mode()
        self.memory.write(0xB0000, b" \x07" * 0x8000)

    def put(self, cell, text, attribute=7, base=BASE):
        codes = (font.CP437.index(character) if character != " " else 0x20 for character in text)
        self.memory.write(base + 2 * cell, b"".join(bytes((code, attribute)) for code in codes))

    def set(self, port, index, value):
        self.vga.write(port, 1, index)
        self.vga.write(port + 1, 1, value)

    def crtc(self, index, value):
        self.set(0x3D4, 0x11, 0x0E)  # not protected
        self.set(0x3D4, index, value)

    def attribute(self, index, value):
        self.vga.read(0x3DA, 1)
        for byte in (index, value, 0x20):
            self.vga.write(0x3C0, 1, byte)

    def screen(self):
        return Screen.capture(self.memory, self.vga)

    def picture(self):
        image = Image.open(io.BytesIO(self.screen().png()))
        assert image.format == "PNG"
        return image.convert("RGB")


@pytest.fixture
def monitor():
    return Monitor()


def dots(image, row, column, width=9, height=16):
    """A cell's dots as lines of colours."""
    return [
        [image.getpixel((column * width + x, row * height + y)) for x in range(width)] for y in range(height)
    ]


def drawn(character, ink, paper, ninth=False):
    """A cell's dots as they should be."""
    lines = font.shapes()[font.CP437.index(character)]
    return [
        [ink if line >> n & 1 else paper for n in range(7, -1, -1)] + [ink if ninth and line & 1 else paper]
        for line in lines
    ]


# --- text ---


def test_text_is_unicode_without_the_blanks_at_the_ends(monitor):
    monitor.put(0, "Grüße, «π»")
    monitor.put(80 * 2 + 78, "█☺")
    monitor.memory.write(BASE + 160 * 3, b"a\x07\x00\x07\xff\x07b\x07\x00\x07")
    screen = monitor.screen()
    assert screen.text() == "Grüße, «π»\n\n" + " " * 78 + "█☺\na  b" + "\n" * 21
    assert screen.lines()[3] == "a  b"
    assert (screen.rows, screen.columns, screen.note, screen.graphics, screen.blank) == (
        25,
        80,
        "",
        False,
        False,
    )
    assert repr(screen) == "<Screen 80x25 cursor 0,0>"


def test_cells_are_code_and_attribute(monitor):
    monitor.put(81, "é", 0x1E)
    screen = monitor.screen()
    assert screen.cell(1, 1) == Cell(0x82, 0x1E)
    assert screen.cell(24, 79) == Cell(0x20, 7)
    for row, column in ((25, 0), (0, 80), (-1, 0)):
        with pytest.raises(IndexError, match=f"^the screen has 25 rows of 80, there is no {row},{column}$"):
            screen.cell(row, column)


def test_a_capture_does_not_change_with_the_guest(monitor):
    monitor.put(0, "before")
    screen = monitor.screen()
    monitor.put(0, "after.")
    monitor.vga.reset()
    assert screen.lines()[0] == "before"
    assert monitor.screen() != screen


def test_start_address_scrolls(monitor):
    monitor.put(80 * 30, "thirty")
    monitor.crtc(0x0C, 80 * 30 >> 8)
    monitor.crtc(0x0D, 80 * 30 & 0xFF)
    monitor.crtc(0x0E, 80 * 31 + 5 >> 8)
    monitor.crtc(0x0F, 80 * 31 + 5 & 0xFF)
    screen = monitor.screen()
    assert screen.lines()[0] == "thirty"
    assert screen.cursor == Cursor(1, 5, 13, 14, True)


def test_beyond_the_window_is_nothing_and_then_the_start_again(monitor):
    monitor.put(0x4000 - 80, "last")
    monitor.put(0, "first")
    monitor.crtc(0x0C, 0x3F)
    monitor.crtc(0x0D, 0xB0)
    screen = monitor.screen()
    assert screen.text() == "last" + "\n" * 24
    assert screen.cell(1, 0) == Cell(0, 0)
    monitor.crtc(0x0C, 0xFF)
    assert monitor.screen().lines()[:2] == ("", "first")


def test_rows_may_be_farther_apart_than_they_are_wide(monitor):
    monitor.put(100, "next")
    monitor.crtc(0x13, 50)
    assert monitor.screen().lines()[:2] == ("", "next")


def test_split_screen_shows_the_start_of_memory_below(monitor):
    monitor.put(0, "status")
    monitor.put(80 * 40, "scrolled")
    monitor.crtc(0x0C, 80 * 40 >> 8)
    monitor.crtc(0x0D, 80 * 40 & 0xFF)
    monitor.crtc(0x18, 16 * 20 - 1 & 0xFF)
    monitor.crtc(0x09, 0x0F)
    screen = monitor.screen()
    assert (screen.lines()[0], screen.lines()[20]) == ("scrolled", "status")


def test_monochrome_memory(monitor):
    monitor.put(0, "mono", base=0xB0000)
    monitor.set(0x3CE, 6, 0x0A)
    assert monitor.screen().lines()[0] == "mono"


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (80, 25)),
        ({0x01: 39, 0x13: 20}, (40, 25)),
        ({0x09: 0x47}, (80, 50)),
        ({0x09: 0x4D}, (80, 28)),
        ({0x12: 0xDF, 0x07: 0x1F}, (80, 30)),
        ({0x01: 131, 0x13: 66}, (132, 25)),
    ],
)
def test_size_is_what_the_crt_controller_is_set_to(monitor, changes, size):
    for index, value in changes.items():
        monitor.crtc(index, value)
    monitor.put(size[0], "second")
    screen = monitor.screen()
    assert (screen.columns, screen.rows) == size
    assert screen.lines()[1] == "second"
    assert len(screen.lines()) == size[1]


# --- no text ---


def test_graphics_mode_is_said_instead_of_garbage(monitor):
    monitor.set(0x3CE, 6, 0x05)
    screen = monitor.screen()
    assert screen.graphics
    assert screen.note == screen.lines()[0] == NO_GRAPHICS
    assert screen.text().strip() == NO_GRAPHICS
    assert screen.to_json()["graphics"] is True
    assert {GREY, BLACK} == {colour for _, colour in monitor.picture().getcolors()}
    assert repr(screen) == "<Screen graphics 80x25 cursor 0,0>"


def test_screen_larger_than_text_memory_is_said(monitor):
    monitor.crtc(0x01, 0xFF)
    monitor.crtc(0x09, 0x41)
    screen = monitor.screen()
    assert screen.note == "the screen is set to 256x200 characters, but text memory holds 16384"
    assert screen.lines()[0] == screen.note
    assert not screen.graphics


def test_blank_screen_is_black_and_empty(monitor):
    monitor.put(0, "hidden")
    monitor.set(0x3C4, 1, 0x20)
    assert monitor.screen().blank
    monitor.set(0x3C4, 1, 0x00)
    assert monitor.screen().lines()[0] == "hidden"
    monitor.vga.reset()
    screen = monitor.screen()
    assert screen.blank
    assert screen.text() == "\n" * 24
    assert monitor.picture().getcolors() == [(720 * 400, BLACK)]
    assert repr(screen) == "<Screen blank 80x25 cursor 0,0>"


# --- the picture ---


def test_picture_has_the_size_and_colours_of_the_hardware(monitor):
    monitor.put(80 + 3, "A", 0x1E)
    monitor.put(80 + 4, "g", 0x4F)
    image = monitor.picture()
    assert image.size == (720, 400)
    assert dots(image, 1, 3) == drawn("A", YELLOW, BLUE)
    assert dots(image, 1, 4) == drawn("g", WHITE, RED)
    assert dots(image, 5, 5) == drawn(" ", GREY, BLACK)


def test_pictures_of_equal_screens_are_equal_files(monitor):
    monitor.put(0, "text")
    first = monitor.screen().png()
    assert monitor.screen().png() == first
    monitor.put(0, "tent")
    assert monitor.screen().png() != first


def test_line_drawing_goes_on_into_the_ninth_dot(monitor):
    monitor.put(80, "─█a░▒")
    image = monitor.picture()
    for column, character in enumerate("─█a░▒"):
        assert dots(image, 1, column) == drawn(character, GREY, BLACK, ninth=character != "a")
    monitor.attribute(0x10, 0x08)
    assert dots(monitor.picture(), 1, 0) == drawn("─", GREY, BLACK)


def test_bit_7_blinks_or_brightens(monitor):
    monitor.put(80, "x", 0x9E)
    assert dots(monitor.picture(), 1, 0) == drawn("x", YELLOW, BLUE)
    monitor.attribute(0x10, 0x04)
    assert dots(monitor.picture(), 1, 0) == drawn("x", YELLOW, (0x57, 0x57, 0xFF))


def test_palette_comes_from_the_card(monitor):
    monitor.put(80, "x")
    monitor.attribute(7, 0x38)
    assert dots(monitor.picture(), 1, 0) == drawn("x", DARK, BLACK)
    for value in (0x38, 0x01, 0x20, 0x3F):
        monitor.vga.write(0x3C8 if value == 0x38 else 0x3C9, 1, value)
    assert dots(monitor.picture(), 1, 0) == drawn("x", (0x07, 0x80, 0xFF), BLACK)


def cursor_lines(monitor, row, column):
    cell = dots(monitor.picture(), row, column)
    return [y for y, line in enumerate(cell) if line == [GREY] * 9]


@pytest.mark.parametrize(
    ("start", "end", "lines"),
    [
        (0x0D, 0x0E, [13, 14]),
        (0x00, 0x0F, list(range(16))),
        (0x04, 0x04, [4]),
        (0x0E, 0x1F, [14, 15]),
        (0x2D, 0x0E, []),
        (0x0E, 0x0D, []),
        (0x10, 0x1F, []),
    ],
)
def test_cursor_covers_its_lines(monitor, start, end, lines):
    monitor.crtc(0x0A, start)
    monitor.crtc(0x0B, end)
    monitor.crtc(0x0F, 163)
    assert cursor_lines(monitor, 2, 3) == lines
    assert monitor.screen().cursor.visible == bool(lines)
    assert cursor_lines(monitor, 2, 4) == cursor_lines(monitor, 1, 3) == []


def test_cursor_off_the_screen_is_not_visible(monitor):
    monitor.crtc(0x0E, 2000 >> 8)
    monitor.crtc(0x0F, 2000 & 0xFF)
    assert monitor.screen().cursor == Cursor(0, 0, 13, 14, False)
    assert cursor_lines(monitor, 0, 0) == []


def test_underline_in_monochrome_modes(monitor):
    monitor.crtc(0x14, 13)
    monitor.put(80, "xx", 0x07)
    monitor.put(81, "x", 0x01)
    assert dots(monitor.picture(), 1, 1)[13] == [BLACK] * 9
    monitor.attribute(0x10, 0x0E)
    cells = [dots(monitor.picture(), 1, column)[13] for column in (0, 1)]
    assert cells == [[BLACK] * 9, [BLUE] * 9]


def test_eight_dots_and_forty_columns(monitor):
    monitor.put(0, "─")
    monitor.set(0x3C4, 1, 0x01)
    assert monitor.picture().size == (640, 400)
    monitor.crtc(0x01, 39)
    monitor.set(0x3C4, 1, 0x08)
    monitor.put(1, "x")
    image = monitor.picture()
    assert image.size == (720, 400)
    doubled = [[colour for colour in line for _ in range(2)] for line in drawn("x", GREY, BLACK)]
    assert dots(image, 0, 1, width=18) == doubled


def test_low_cells_are_drawn_with_doubled_lines(monitor):
    monitor.crtc(0x09, 0x47)
    monitor.crtc(0x0A, 6)
    monitor.crtc(0x0B, 7)
    monitor.put(80, "x")
    image = monitor.picture()
    assert image.size == (720, 800)
    assert dots(image, 1, 0) == drawn("x", GREY, BLACK)
    assert [y for y, line in enumerate(dots(image, 0, 0)) if line[0] == GREY] == [12, 13, 14, 15]


@pytest.mark.parametrize(("lines", "cut"), [(2, slice(0, 2)), (14, slice(1, 15)), (15, slice(0, 15))])
def test_other_heights_show_a_part_of_the_shape(monitor, lines, cut):
    monitor.crtc(0x09, 0x40 | lines - 1)
    monitor.put(80, "▐")
    image = monitor.picture()
    assert image.height == 400 // lines * lines
    assert dots(image, 1, 0, height=lines) == drawn("▐", GREY, BLACK, ninth=True)[cut]


def test_cells_higher_than_the_font_end_empty(monitor):
    monitor.crtc(0x09, 0x53)
    monitor.put(80, "█")
    assert dots(monitor.picture(), 1, 0, height=20)[15:17] == [[GREY] * 9, [BLACK] * 9]


# --- data ---


def test_json_tells_all_of_it(monitor):
    monitor.put(0, "Hi", 0x1E)
    monitor.crtc(0x0F, 2)
    data = json.loads(json.dumps(monitor.screen().to_json()))
    assert data.pop("lines") == ["Hi", *[""] * 24]
    assert data.pop("attributes") == ["1e1e" + "07" * 78, *["07" * 80] * 24]
    assert data.pop("palette")[6:9] == ["#a85700", "#a8a8a8", "#575757"]
    assert data == {
        "rows": 25,
        "columns": 80,
        "cursor": {"row": 0, "column": 2, "visible": True},
        "blank": False,
        "graphics": False,
        "note": "",
    }


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_is_programmed_there_is_a_screen(data):
    monitor = Monitor()
    monitor.memory.write(BASE, bytes(range(256)) * 128)
    registers = st.lists(st.tuples(st.integers(0, 0x18), st.integers(0, 255)), max_size=8)
    for index, value in data.draw(registers):
        monitor.crtc(index, value)
    monitor.set(0x3C4, 1, data.draw(st.integers(0, 255)))
    monitor.attribute(0x10, data.draw(st.integers(0, 255)))
    screen = monitor.screen()
    assert len(screen.lines()) == screen.rows >= 1
    assert all(len(line) <= screen.columns for line in screen.lines())
    assert len(screen.cells) == 2 * screen.rows * screen.columns <= 0x8000
    cursor = screen.cursor
    assert cursor.row < screen.rows and cursor.column < screen.columns
    assert cursor.first <= cursor.last < screen.cell_lines
    assert Image.open(io.BytesIO(screen.png())).width == screen.columns * screen.cell_dots * screen.repeat
    json.dumps(screen.to_json())
