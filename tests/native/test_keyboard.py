# SPDX-License-Identifier: GPL-2.0-only
"""Text and key names become keys going down and up."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.errors import UsageError
from vmi.native.keyboard import KEYS, KeyEvent, event, keys, text


def words(events: list[KeyEvent]) -> str:
    return " ".join(map(str, events))


@pytest.mark.parametrize(
    ("typed", "strokes"),
    [
        ("", ""),
        ("a", "+a -a"),
        ("A", "+Shift +a -a -Shift"),
        ("0)", "+0 -0 +Shift +0 -0 -Shift"),
        ("|\\", "+Shift +\\ -\\ -Shift +\\ -\\"),
        ("\"'", "+Shift +' -' -Shift +' -'"),
        ("\r\n\n\r", "+Enter -Enter +Enter -Enter +Enter -Enter"),
        ("\t\b\x7f\x1b ", "+Tab -Tab +Backspace -Backspace +Backspace -Backspace +Esc -Esc +Space -Space"),
        ("\x03\x1c", "+Ctrl +c -c -Ctrl +Ctrl +\\ -\\ -Ctrl"),
        ("<F1>", "+Shift +, -, -Shift +Shift +f -f -Shift +1 -1 +Shift +. -. -Shift"),
    ],
)
def test_text(typed: str, strokes: str) -> None:
    assert words(text(typed)) == strokes


@pytest.mark.parametrize(
    ("line", "strokes"),
    [
        ("<F1>", "+F1 -F1"),
        ("<ctrl-ALT-delete>", "+Ctrl +Alt +Delete -Delete -Alt -Ctrl"),
        ("x<Up><Esc>y", "+x -x +Up -Up +Esc -Esc +y -y"),
        ("<Keypad-><Ctrl-->", "+Keypad- -Keypad- +Ctrl +- -- -Ctrl"),
        ("<Ctrl-Keypad->", "+Ctrl +Keypad- -Keypad- -Ctrl"),
        ("<Ctrl-C>", "+Ctrl +c -c -Ctrl"),
        ("1<2", "+1 -1 +Shift +, -, -Shift +2 -2"),
        ("<a>", "+Shift +, -, -Shift +a -a +Shift +. -. -Shift"),
        ("< 1>", "+Shift +, -, -Shift +Space -Space +1 -1 +Shift +. -. -Shift"),
    ],
)
def test_named_keys(line: str, strokes: str) -> None:
    assert words(keys(line)) == strokes


def test_every_character_a_us_keyboard_prints_can_be_typed() -> None:
    typed = [tuple(text(char)) for char in string.printable if char not in "\n\x0b\x0c"]
    assert len(set(typed)) == len(typed) == len(string.printable) - 3


@given(st.text(alphabet=string.printable))
def test_every_key_that_goes_down_comes_up(typed: str) -> None:
    down: list[str] = []
    for one in text(typed):
        if one.down:
            down.append(one.key.name)
        else:
            assert down.pop() == one.key.name
    assert not down


@pytest.mark.parametrize("char", ["ä", "\x00", "\x1f", "→"])
def test_a_character_without_a_key(char: str) -> None:
    with pytest.raises(UsageError) as caught:
        text("a" + char)
    assert str(caught.value) == f"the character {char!r} can't be typed on a US keyboard"


def test_a_key_that_does_not_exist() -> None:
    with pytest.raises(UsageError) as caught:
        keys("<Ctrl-Any>")
    assert str(caught.value).startswith(
        "no key is called 'Any'; besides those that print there are Esc, F1, "
    )


def test_events_have_a_short_form() -> None:
    for key in KEYS.values():
        for down in (True, False):
            assert event(str(KeyEvent(key, down))) == KeyEvent(key, down)
    assert repr(text("a")[0]) == "KeyEvent(+a)"
    assert repr(KEYS["Enter"]) == "Key('Enter')"


def test_codes_are_unique() -> None:
    assert len({key.code for key in KEYS.values()}) == len(KEYS)
