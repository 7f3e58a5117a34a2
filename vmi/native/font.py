# SPDX-License-Identifier: GPL-2.0-only
"""The project's own font for text screens: 256 characters of code page 437, 8x16 dots each.

A PC's font is in its video BIOS or loaded by the guest; pictures here are to look the same whatever the
guest does, so they are drawn with this one. ASCII and symbols are text art in :mod:`vmi.native.font_ascii`
and :mod:`vmi.native.font_symbols`; accented letters are put together from letter and accent, turned shapes
are turned, and lines and blocks follow from what their arms are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from vmi.native import font_ascii, font_symbols

WIDTH, HEIGHT = 8, 16

#: The 256 characters of code page 437 in Unicode. What shows nothing (0, 20h and FFh) is a space.
CP437 = (
    " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
    + bytes(range(0x20, 0x7F)).decode("ascii")
    + "⌂"
    + bytes(range(0x80, 0xFF)).decode("cp437")
    + " "
)

#: A character's dots: 16 lines from the top, bit 7 of each is the leftmost dot.
Shape = tuple[int, ...]

_EMPTY: Shape = (0,) * HEIGHT
_ART_TOP, _ART_LINES = 2, 13

# Each line, box character by box character: how many lines go to the left, right, up and down.
_BOXES = """
─1100 │0011 ┌0101 ┐1001 └0110 ┘1010 ├0111 ┤1011 ┬1101 ┴1110 ┼1111
═2200 ║0022 ╔0202 ╗2002 ╚0220 ╝2020 ╠0222 ╣2022 ╦2202 ╩2220 ╬2222
╒0201 ╕2001 ╘0210 ╛2010 ╞0211 ╡2011 ╤2201 ╧2210 ╪2211
╓0102 ╖1002 ╙0120 ╜1020 ╟0122 ╢1022 ╥1102 ╨1120 ╫1122
"""
# Where across the cell the dots of one line, or of two, are. The middle of the cell is between two dots,
# so what holds for the left and upper half holds for the others with positions counted from there.
_ACROSS = {1: (3, 4), 2: (2, 5)}  # columns of vertical lines
_DOWN = {1: (7, 8), 2: (6, 9)}  # lines of horizontal ones

# Accent: its lines over small letters, from line 2 (line 4 stays free), and over capitals, from line 0.
_ACCENTS = {
    "acute": ("....##..", "...##..."),
    "grave": ("..##....", "...##..."),
    "circumflex": ("..###...", ".##.##.."),
    "diaeresis": (".##.##..", ".##.##.."),
    "tilde": (".###.##.", "##.###.."),
    "ring": ("..###...", "..#.#..."),
}
_CEDILLA = ("...##...", "....##..", "..###...")  # from line 12
_ACCENTED = {
    "acute": "áa éeíi óo úu ÉE",
    "grave": "àa èe ìi òo ùu",
    "circumflex": "âa êe îi ôo ûu",
    "diaeresis": "äa ëe ïi öo üu ÿy ÄA ÖO ÜU",
    "tilde": "ñn ÑN",
    "ring": "åa ÅA",
}


@cache
def shapes() -> tuple[Shape, ...]:
    """The shapes of all 256 characters, by their code."""
    known = {" ": _EMPTY}
    for art in (font_ascii.SHAPES, font_symbols.SHAPES):
        known |= _parse(art)
    known |= _boxes()
    known |= _blocks()
    known |= _turned(known)
    known |= _accented(known)
    return tuple(known[character] for character in CP437)


def _parse(art: str) -> dict[str, Shape]:
    """Shapes from text art: blocks of a line of characters and the lines of dots below them."""
    found = {}
    for block in art.strip("\n").split("\n\n"):
        heading, *lines = block.splitlines()
        for at in range(0, len(heading), WIDTH + 1):
            found[heading[at]] = _shape([line[at : at + WIDTH] for line in lines], _ART_TOP)
    return found


def _shape(lines: list[str] | tuple[str, ...], top: int) -> Shape:
    """A shape from lines of text of which the first is line ``top`` of the cell."""
    dots = [int(line.replace(".", "0").replace("#", "1"), 2) for line in lines]
    return (*_EMPTY[:top], *dots, *_EMPTY[top + len(dots) :])


def _over(*layers: Shape) -> Shape:
    """Shapes on top of each other."""
    lines = list(_EMPTY)
    for layer in layers:
        lines = [line | dots for line, dots in zip(lines, layer, strict=True)]
    return tuple(lines)


# --- turned shapes ---


def _mirrored(shape: Shape) -> Shape:
    """Left and right swapped, in the columns where the shape is."""
    used = 0
    for dots in shape:
        used |= dots
    edges = [n for n in range(WIDTH) if used >> n & 1]
    shift = edges[0] - (WIDTH - 1 - edges[-1])
    swapped = [int(f"{dots:08b}"[::-1], 2) for dots in shape]
    return tuple(dots << shift if shift >= 0 else dots >> -shift for dots in swapped)


def _flipped(shape: Shape) -> Shape:
    """Top and bottom swapped, in the lines where the shape is."""
    used = [n for n, dots in enumerate(shape) if dots]
    first, last = used[0], used[-1]
    return shape[:first] + shape[first : last + 1][::-1] + shape[last + 1 :]


def _inverted(shape: Shape) -> Shape:
    return tuple(dots ^ 0xFF for dots in shape)


def _turned(known: dict[str, Shape]) -> dict[str, Shape]:
    """What is another character turned, filled or prolonged."""
    found: dict[str, Shape] = {}
    ways: dict[Callable[[Shape], Shape], str] = {
        _mirrored: "◄► ←→ ⌐¬ »« ≤≥",
        _flipped: "↓↑ ▼▲ ¡!",
        _inverted: "◘• ◙○",
    }
    for turn, pairs in ways.items():
        for new, old in _pairs(pairs):
            found[new] = turn(known[old])
    found["¿"] = _flipped(_mirrored(known["?"]))
    found["↨"] = _over(known["↕"], _shape(["########"], 12))
    # The halves of the integral meet at the edges of their cells.
    stem = "...##..."
    found["⌠"] = _over(known["⌠"], _shape([stem], HEIGHT - 1))
    found["⌡"] = _over(known["⌡"], _shape([stem, stem], 0))
    return found


# --- accents ---


def _accented(known: dict[str, Shape]) -> dict[str, Shape]:
    found = {letter: _over(known[base], _shape(_CEDILLA, 12)) for letter, base in (("Ç", "C"), ("ç", "c"))}
    for accent, pairs in _ACCENTED.items():
        lines = _ACCENTS[accent]
        for letter, base in _pairs(pairs):
            shape = known[base]
            if base.isupper():
                # a line less, so that one stays free below the accent; the ring closes at the letter's top
                body = shape if accent == "ring" else (0, *shape[:4], *shape[5:])
                found[letter] = _over(body, _shape(lines, 0))
                continue
            if base == "i":
                shape = _EMPTY[:4] + shape[4:]  # the accent takes the place of the dot
            closed = (*lines, lines[0]) if accent == "ring" else lines
            found[letter] = _over(shape, _shape(closed, 4 - len(closed)))
    return found


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    joined = text.replace(" ", "")
    yield from zip(joined[::2], joined[1::2], strict=True)


# --- lines and blocks ---


def _boxes() -> dict[str, Shape]:
    """Box characters from the number of lines in each of the four directions."""
    found = {}
    for entry in _BOXES.split():
        left, right, up, down = map(int, entry[1:])
        dots: set[tuple[int, int]] = set()
        for x, y in _arm(left, right, (up, down), _ACROSS, _DOWN):
            dots.add((x, y))
        for x, y in _arm(right, left, (up, down), _ACROSS, _DOWN):
            dots.add((WIDTH - 1 - x, y))
        for y, x in _arm(up, down, (left, right), _DOWN, _ACROSS):
            dots.add((x, y))
        for y, x in _arm(down, up, (left, right), _DOWN, _ACROSS):
            dots.add((x, HEIGHT - 1 - y))
        found[entry[0]] = tuple(sum(0x80 >> x for x in range(WIDTH) if (x, y) in dots) for y in range(HEIGHT))
    return found


def _arm(
    lines: int,
    opposite: int,
    sides: tuple[int, int],
    crossing: dict[int, tuple[int, int]],
    own: dict[int, tuple[int, int]],
) -> Iterator[tuple[int, int]]:
    """The dots of an arm, as distances from its edge of the cell and positions across.

    :param lines: how many lines the arm has, 0-2; ``opposite`` and ``sides`` say it of the three others.
    :param crossing: where the lines of the side arms are, by their number, counted from the edge.
    :param own: where across the cell the arm's lines are, by their number.
    """
    if not lines:
        return
    near, far = crossing[2]
    middle = crossing[1][1]
    for n, position in enumerate(own[lines]):
        if lines == 1:
            this, other = sides if sides[0] > sides[1] else sides[::-1]
            # one line ends at two that pass by, unless it crosses them
            stop = near if this == other == 2 and not opposite else far if this == 2 else middle
        else:
            this, other = sides[n], sides[1 - n]
            # each of two lines turns into the arm on its side, or goes round the one on the other side
            stop = near if this == 2 else far if not this and other == 2 else middle
        for distance in range(stop + 1):
            yield distance, position


def _blocks() -> dict[str, Shape]:
    """Full and half blocks, and the three shades."""
    half = HEIGHT // 2
    light = (0x22, 0x88) * half
    return {
        "█": (0xFF,) * HEIGHT,
        "▀": (0xFF,) * half + (0,) * half,
        "▄": (0,) * half + (0xFF,) * half,
        "▌": (0xF0,) * HEIGHT,
        "▐": (0x0F,) * HEIGHT,
        "░": light,
        "▒": (0x55, 0xAA) * half,
        "▓": _inverted(light),
    }
