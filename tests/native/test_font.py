# SPDX-License-Identifier: GPL-2.0-only
"""The font: every character is there, stands where it should and joins its neighbours."""

from __future__ import annotations

import string

import pytest

from vmi.native import font

LETTERS = string.ascii_letters + string.digits
TOP, BASE = 2, 11  # the lines of capitals
SINGLE, DOUBLE = "─│┌┐└┘├┤┬┴┼", "═║╔╗╚╝╠╣╦╩╬"


def shape(character):
    return font.shapes()[font.CP437.index(character)]


def used(character):
    """The lines that have ink."""
    return [line for line, dots in enumerate(shape(character)) if dots]


def column(character, number):
    return [dots >> 7 - number & 1 for dots in shape(character)]


def test_code_page_is_pythons_where_python_has_characters():
    assert len(font.CP437) == 256
    printable = [code for code in range(0x20, 0xFF) if code != 0x7F]
    assert "".join(font.CP437[code] for code in printable) == bytes(printable).decode("cp437")
    assert font.CP437[0x01] + font.CP437[0x10] + font.CP437[0x7F] == "☺►⌂"
    assert font.CP437[0x00] + font.CP437[0xFF] == "  "


def test_every_character_has_a_shape_of_its_own():
    shapes = font.shapes()
    assert len(shapes) == 256
    assert all(len(one) == 16 and all(0 <= dots <= 0xFF for dots in one) for one in shapes)
    inked = [one for one in shapes if any(one)]
    assert len(inked) == len(set(inked)) == 253
    assert not any(shapes[0x00]) and not any(shapes[0x20]) and not any(shapes[0xFF])


def test_art_is_what_is_drawn():
    assert shape("L") == (0, 0, *[0xC0] * 9, 0xFE, 0, 0, 0, 0)
    assert shape("-") == (0,) * 7 + (0x7E,) + (0,) * 8


@pytest.mark.parametrize("character", LETTERS)
def test_letters_and_digits_do_not_touch_their_neighbours(character):
    assert not any(column(character, 7))
    assert used(character)[0] >= TOP
    assert used(character)[-1] <= 14


@pytest.mark.parametrize("character", string.ascii_uppercase.replace("Q", "") + string.digits)
def test_capitals_and_digits_have_one_height(character):
    assert (used(character)[0], used(character)[-1]) == (TOP, BASE)


@pytest.mark.parametrize("character", "abcdefhiklmnorstuvwxz")
def test_small_letters_stand_on_the_line(character):
    assert used(character)[-1] == BASE


@pytest.mark.parametrize(
    ("accented", "letter"),
    list(zip("áàâäåéêëèóôöòúûüùñÿçÇÅ", "aaaaaeeeeoooouuuunycCA", strict=True)),
)
def test_accented_letter_is_letter_and_accent(accented, letter):
    both = zip(shape(accented), shape(letter), strict=True)
    assert all(whole & part == part for whole, part in both)
    assert shape(accented) != shape(letter)


@pytest.mark.parametrize("character", "áâäàéêëèíîïìóôöòúûüùñÿÄÖÜÉÑ")
def test_a_free_line_separates_the_accent(character):
    lines = used(character)
    assert lines != list(range(lines[0], lines[-1] + 1))


@pytest.mark.parametrize("character", "íîïì")
def test_the_accent_replaces_the_dot(character):
    assert shape(character)[4:] == shape("i")[4:]
    assert shape(character)[2:4] != shape("i")[2:4]


def edges(character):
    """The dots at the left, right, upper and lower edge."""
    rows = shape(character)
    return tuple(column(character, 0)), tuple(column(character, 7)), rows[0], rows[-1]


@pytest.mark.parametrize("character", SINGLE + DOUBLE + "╒╕╘╛╞╡╤╧╪╓╖╙╜╟╢╥╨╫")
def test_lines_meet_at_the_edges(character):
    """Every edge is empty, or that of a single or of a double line: so any two that should meet do."""
    left, right, up, down = edges(character)
    none = (0,) * 16
    assert left in (none, edges("─")[0], edges("═")[0])
    assert right in (none, edges("─")[0], edges("═")[0])
    assert up in (0, edges("│")[2], edges("║")[2])
    assert down in (0, edges("│")[2], edges("║")[2])
    assert sum(map(bool, (any(left), any(right), up, down))) >= 2


def test_corners_of_a_double_frame():
    """Inner and outer line turn apart from each other."""
    rows = [f"{dots:08b}".replace("0", ".").replace("1", "#") for dots in shape("╔")]
    assert rows == ["........"] * 6 + ["..######"] + ["..#....."] * 2 + ["..#..###"] + ["..#..#.."] * 6


def test_a_line_crosses_two_but_ends_at_two_that_pass():
    assert shape("╫")[7] == shape("╫")[8] == 0xFF
    assert shape("╢")[7] == 0b11100100
    assert shape("╟")[7] == 0b00100111
    assert shape("╪")[6] == shape("╪")[9] == 0xFF
    assert all(dots & 0b00011000 == 0b00011000 for dots in shape("╪"))
    assert (shape("╬")[6], shape("╬")[7]) == (0b11100111, 0)  # four corners


def test_blocks_and_shades():
    assert shape("█") == (0xFF,) * 16
    for one, other in ("▀▄", "▌▐", "░▓"):
        together = zip(shape(one), shape(other), strict=True)
        assert all(left ^ right == 0xFF for left, right in together)
    ink = {character: sum(dots.bit_count() for dots in shape(character)) for character in "░▒▓█"}
    assert ink == {"░": 32, "▒": 64, "▓": 96, "█": 128}


def test_turned_shapes():
    assert used("↓") == used("↑")
    assert shape("↓")[2:12] == shape("↑")[2:12][::-1]
    assert shape("◘") == tuple(dots ^ 0xFF for dots in shape("•"))
    assert [column("◄", n) for n in range(7)] == [column("►", n) for n in reversed(range(7))]
    assert shape("⌠")[-1] == shape("⌡")[0] == shape("│")[0]
