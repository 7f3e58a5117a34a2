# SPDX-License-Identifier: GPL-2.0-only
"""A PC keyboard as a person uses it: keys that go down and up, and which of them make a given text.

What a key sends is the business of :mod:`vmi.native.devices.ps2_keyboard`; here is what the keys are
called, where they are in the three sets of scan codes, and how a US layout prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmi.errors import UsageError


@dataclass(frozen=True)
class Key:
    """One key. ``code`` is its set 2 code, with E0h as its high byte if that goes before it; ``set3`` is
    its code in set 3, 0 if it has none there."""

    name: str
    code: int
    set3: int

    def __repr__(self) -> str:
        return f"Key({self.name!r})"


@dataclass(frozen=True)
class KeyEvent:
    """A key that goes down, or up again."""

    key: Key
    down: bool

    def __repr__(self) -> str:
        return f"KeyEvent({self})"

    def __str__(self) -> str:
        """``+a`` or ``-a``; :func:`event` reads it."""
        return f"{'+' if self.down else '-'}{self.key.name}"


# Name, set 2, set 3. A key that prints is called what it prints without Shift.
_TABLE = """
Esc 76 08  F1 05 07  F2 06 0F  F3 04 17  F4 0C 1F  F5 03 27  F6 0B 2F  F7 83 37  F8 0A 3F  F9 01 47
F10 09 4F  F11 78 56  F12 07 5E  Print E07C 57  ScrollLock 7E 5F  Pause E177 62
` 0E 0E  1 16 16  2 1E 1E  3 26 26  4 25 25  5 2E 2E  6 36 36  7 3D 3D  8 3E 3E  9 46 46  0 45 45
- 4E 4E  = 55 55  Backspace 66 66  Insert E070 67  Home E06C 6E  PageUp E07D 6F
Tab 0D 0D  q 15 15  w 1D 1D  e 24 24  r 2D 2D  t 2C 2C  y 35 35  u 3C 3C  i 43 43  o 44 44  p 4D 4D
[ 54 54  ] 5B 5B  \\ 5D 5C  Delete E071 64  End E069 65  PageDown E07A 6D
CapsLock 58 14  a 1C 1C  s 1B 1B  d 23 23  f 2B 2B  g 34 34  h 33 33  j 3B 3B  k 42 42  l 4B 4B
; 4C 4C  ' 52 52  Enter 5A 5A
Shift 12 12  z 1A 1A  x 22 22  c 21 21  v 2A 2A  b 32 32  n 31 31  m 3A 3A  , 41 41  . 49 49  / 4A 4A
RightShift 59 59  Up E075 63  Less 61 13
Ctrl 14 11  Alt 11 19  Space 29 29  RightAlt E011 39  RightCtrl E014 58  Left E06B 61  Down E072 60
Right E074 6A  Meta E01F 8B  RightMeta E027 8C  Menu E02F 8D
NumLock 77 76  Keypad/ E04A 4A  Keypad* 7C 7E  Keypad- 7B 4E  Keypad+ 79 7C  KeypadEnter E05A 79
Keypad7 6C 6C  Keypad8 75 75  Keypad9 7D 7D  Keypad4 6B 6B  Keypad5 73 73  Keypad6 74 74
Keypad1 69 69  Keypad2 72 72  Keypad3 7A 7A  Keypad0 70 70  Keypad. 71 71
"""

_words = _TABLE.split()

#: Every key by its name.
KEYS = {
    name: Key(name, int(code, 16), int(set3, 16))
    for name, code, set3 in zip(_words[0::3], _words[1::3], _words[2::3], strict=True)
}

_BY_LOWER = {name.lower(): key for name, key in KEYS.items()} | {
    other: KEYS[name]
    for other, name in (
        ("escape", "Esc"), ("return", "Enter"), ("del", "Delete"), ("ins", "Insert"), ("pgup", "PageUp"),
        ("pgdn", "PageDown"), ("control", "Ctrl"), ("win", "Meta"), ("lt", "Less"), ("minus", "-"),
    )
}  # fmt: skip

_PLAIN = "`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./"
_SHIFTED = '~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:"ZXCVBNM<>?'

# Which keys are down together while a character is typed, the last of them pressed last.
_CHORDS: dict[str, tuple[Key, ...]] = {char: (KEYS[char],) for char in _PLAIN}
_CHORDS |= {char: (KEYS["Shift"], KEYS[plain]) for plain, char in zip(_PLAIN, _SHIFTED, strict=True)}
_CHORDS |= {chr(ord(char) & 0x1F): (KEYS["Ctrl"], KEYS[char]) for char in "abcdefghijklmnopqrstuvwxyz[\\]"}
_CHORDS |= {
    " ": (KEYS["Space"],), "\n": (KEYS["Enter"],), "\r": (KEYS["Enter"],), "\t": (KEYS["Tab"],),
    "\b": (KEYS["Backspace"],), "\x7f": (KEYS["Backspace"],), "\x1b": (KEYS["Esc"],),
}  # fmt: skip

_NAMED = re.compile(r"<([^<>\s]{2,40})>", re.ASCII)


def event(text: str) -> KeyEvent:
    """The event that ``str`` of one gave; KeyError for any other text."""
    return KeyEvent(KEYS[text[1:]], text[0] == "+")


def chord(keys: Iterable[Key]) -> Iterator[KeyEvent]:
    """Press keys one after the other and let them go in the opposite order."""
    pressed = list(keys)
    yield from (KeyEvent(key, True) for key in pressed)
    yield from (KeyEvent(key, False) for key in reversed(pressed))


def text(characters: str) -> list[KeyEvent]:
    """What a typist does on a US keyboard to type this.

    A line end (either kind) is Enter, a tab Tab, an escape character Esc, 08h and 7Fh are Backspace, and
    any other control character is typed with Ctrl.

    :raises UsageError: a character is not on the keyboard.
    """
    events: list[KeyEvent] = []
    for char in characters.replace("\r\n", "\n"):
        if char not in _CHORDS:
            raise UsageError(f"the character {char!r} can't be typed on a US keyboard")
        events += chord(_CHORDS[char])
    return events


def keys(line: str) -> list[KeyEvent]:
    """As :func:`text`, but names in angle brackets are keys: ``ls<Enter><Ctrl-C><F1><Ctrl-Alt-Delete>``.

    Case does not count in names. A bracket that encloses no word (``a < b``) is itself.

    :raises UsageError: a character is not on the keyboard, or no key has the name.
    """
    events: list[KeyEvent] = []
    for number, piece in enumerate(_NAMED.split(line)):
        events += chord(map(_named, _parts(piece))) if number % 2 else text(piece)
    return events


def _parts(word: str) -> list[str]:
    """``Ctrl-Alt-F1`` in three, ``Keypad-`` and ``Ctrl-Keypad-`` with their own dash."""
    parts = word.removesuffix("-").split("-")
    if word.endswith("-"):
        parts[-1] += "-"
    return parts


def _named(name: str) -> Key:
    key = _BY_LOWER.get(name.lower())
    if key is None:
        known = ", ".join(name for name in KEYS if len(name) > 1)
        raise UsageError(f"no key is called {name!r}; besides those that print there are {known}")
    return key
