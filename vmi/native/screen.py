# SPDX-License-Identifier: GPL-2.0-only
"""What the monitor of a PC shows in a text mode: as text, as a picture, as data.

A capture is taken from text memory and the VGA's registers at one moment and never changes afterwards. The
picture has the size and colours that the hardware gives (720x400 for 80x25), but always the project's own
font and a cursor and blinking characters in the phase in which they are seen, so that equal screens are
equal files (of one version of Pillow, which packs them). Fonts that the guest has loaded, and scrolling by
less than a character, are not looked at.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from vmi.memory import PhysicalMemory
from vmi.native import font
from vmi.native.devices.vga import WINDOW_CELLS, Geometry, Vga

Colour = tuple[int, int, int]

_PLANE_CELLS = 0x10000  # the display's address counter has 16 bits
_HIDDEN = bytes(2 * (_PLANE_CELLS - WINDOW_CELLS))  # what the processor can't reach through the window
_CAN_DOUBLE, _AS_IT_IS = 8, 14  # heights of cells, see _lines

_USUAL = Geometry(80, 400, 16, 9, 1, 0, 80, 0x3FF)
_UNICODE = dict(enumerate(font.CP437))
# Characters that touch their right neighbour: their last column is shown in the ninth, too. The hardware does
# it from C0h on; the shades before that look better with it, and QEMU does it.
_EXTENDED = range(0xB0, 0xE0)

_BLACK: Colour = (0, 0, 0)
_GREY: Colour = (0xA8, 0xA8, 0xA8)
_IN_GRAPHICS = "the screen shows graphics, and only text modes can be captured"


class Cell(NamedTuple):
    """One character: its code in page 437, and colours (ink in bits 0-3, background in bits 4-7)."""

    code: int
    attribute: int


@dataclass(frozen=True)
class Cursor:
    """Where the cursor is, and the lines of its cell that it covers (``first`` to ``last``)."""

    row: int
    column: int
    first: int
    last: int
    visible: bool


_NO_CURSOR = Cursor(0, 0, 0, 0, False)


@dataclass(frozen=True, repr=False)
class Screen:
    """A screen of ``rows`` by ``columns`` characters.

    :param cells: code and attribute of each character, row by row, two bytes each.
    :param palette: red, green and blue, 0-255 each, of the 16 colours.
    :param blinking: bit 7 of an attribute makes the character blink; otherwise it is the background's.
    :param underline: the line of a cell on which characters of colours 1 and 9 are underlined, if any.
    :param blank: the display is off; the cells are empty.
    :param note: one sentence on why there is no text, which is then the text; empty if there is text.
    :param graphics: a graphics mode is set, so there is only a note.
    """

    rows: int
    columns: int
    cells: bytes
    cursor: Cursor
    palette: tuple[Colour, ...]
    cell_lines: int = 16
    cell_dots: int = 9
    repeat: int = 1
    blinking: bool = True
    line_graphics: bool = True
    underline: int | None = None
    blank: bool = False
    graphics: bool = False
    note: str = ""

    def __repr__(self) -> str:
        kind = "blank " if self.blank else "graphics " if self.graphics else ""
        return f"<Screen {kind}{self.columns}x{self.rows} cursor {self.cursor.row},{self.cursor.column}>"

    @classmethod
    def capture(cls, memory: PhysicalMemory, vga: Vga) -> Screen:
        """Take what is on the screen now. Whatever the guest has programmed, there is a result."""
        if vga.blank:
            return cls._standing_in("", blank=True)
        if vga.graphics_mode:
            return cls._standing_in(_IN_GRAPHICS, graphics=True)
        layout = vga.geometry
        rows, columns = layout.rows, layout.columns
        if rows * columns > WINDOW_CELLS:
            return cls._standing_in(
                f"the screen is set to {columns}x{rows} characters, but text memory holds {WINDOW_CELLS}"
            )
        bases = _bases(layout)
        plane = memory.read(vga.text_base, 2 * WINDOW_CELLS) + _HIDDEN
        plane += plane[: 2 * columns]
        return cls(
            rows=rows,
            columns=columns,
            cells=b"".join(plane[2 * base : 2 * (base + columns)] for base in bases),
            cursor=_cursor(vga, layout, bases),
            palette=vga.colours(),
            cell_lines=layout.cell_lines,
            cell_dots=layout.cell_dots,
            repeat=layout.repeat,
            blinking=vga.blinking,
            line_graphics=vga.line_graphics,
            underline=vga.underline,
        )

    @classmethod
    def _standing_in(cls, note: str, *, blank: bool = False, graphics: bool = False) -> Screen:
        """A screen of the usual size for one that can't be shown, with the reason on its first row."""
        rows, columns = _USUAL.rows, _USUAL.columns
        cells = b"".join(bytes((ord(character), 7)) for character in note.ljust(rows * columns))
        palette = (_BLACK,) * 7 + (_BLACK if blank else _GREY,) + (_BLACK,) * 8
        return cls(rows, columns, cells, _NO_CURSOR, palette, blank=blank, graphics=graphics, note=note)

    def cell(self, row: int, column: int) -> Cell:
        """The character at a place, counted from 0. IndexError if it is not on the screen."""
        if not (0 <= row < self.rows and 0 <= column < self.columns):
            raise IndexError(f"the screen has {self.rows} rows of {self.columns}, there is no {row},{column}")
        at = 2 * (row * self.columns + column)
        return Cell(self.cells[at], self.cells[at + 1])

    def lines(self) -> tuple[str, ...]:
        """The text row by row, in Unicode, without the blanks at the ends."""
        text = self.cells[::2].decode("latin-1").translate(_UNICODE)
        return tuple(text[at : at + self.columns].rstrip(" ") for at in range(0, len(text), self.columns))

    def text(self) -> str:
        """All rows with newlines between them; empty rows are kept, so that line n is row n."""
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """The screen as JSON-able data; attributes are two hexadecimal digits per character."""
        cursor = self.cursor
        width = 2 * self.columns
        attributes = self.cells[1::2].hex()
        return {
            "rows": self.rows,
            "columns": self.columns,
            "lines": list(self.lines()),
            "attributes": [attributes[at : at + width] for at in range(0, len(attributes), width)],
            "cursor": {"row": cursor.row, "column": cursor.column, "visible": cursor.visible},
            "palette": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in self.palette],
            "blank": self.blank,
            "graphics": self.graphics,
            "note": self.note,
        }

    # --- the picture ---

    def png(self) -> bytes:
        """The picture as a PNG file of 16 colours.

        A cell of 8 to 13 lines is drawn with every line twice, so that the 16-line font fits.
        """
        from PIL import Image  # heavy, and needed for pictures only

        shown = _lines(self.cell_lines)
        dots = b"".join(self._line(row, *line) for row in range(self.rows) for line in shown)
        size = (self.columns * self.cell_dots * self.repeat, self.rows * len(shown))
        image = Image.frombytes("P", size, dots)
        image.putpalette([value for colour in self.palette for value in colour])
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=9)
        return file.getvalue()

    def _line(self, row: int, line: int, shape_line: int | None) -> bytes:
        """One line of a row's picture, a byte for each dot; ``shape_line`` is that of the font to show."""
        shapes = font.shapes()
        wide, extended = self.cell_dots == 9, self.line_graphics
        cursor = self.cursor
        at_cursor = -1
        if cursor.visible and cursor.row == row and cursor.first <= line <= cursor.last:
            at_cursor = cursor.column
        parts = []
        begin = 2 * row * self.columns
        cells = self.cells[begin : begin + 2 * self.columns]
        for column, (code, attribute) in enumerate(zip(cells[::2], cells[1::2], strict=True)):
            ink, paper = attribute & 15, attribute >> 4
            if self.blinking:
                paper &= 7
            dots = 0 if shape_line is None else shapes[code][shape_line]
            if wide:
                dots = dots << 1 | (dots & 1 if extended and code in _EXTENDED else 0)
            if column == at_cursor or (line == self.underline and ink & 7 == 1):
                dots = 0x1FF if wide else 0xFF
            parts.append(_dots(dots, self.cell_dots, self.repeat, ink, paper))
        return b"".join(parts)


def _bases(layout: Geometry) -> list[int]:
    """The first cell of each row."""
    split = layout.split // layout.cell_lines + 1  # the first row below the split
    starts = [layout.start + row * layout.pitch for row in range(min(split, layout.rows))]
    starts += [row * layout.pitch for row in range(layout.rows - len(starts))]
    return [start % _PLANE_CELLS for start in starts]


def _cursor(vga: Vga, layout: Geometry, bases: list[int]) -> Cursor:
    covered = range(layout.cell_lines)[vga.cursor_lines.start : vga.cursor_lines.stop]
    first, last = (covered[0], covered[-1]) if covered else (0, 0)
    for row, base in enumerate(bases):
        column = (vga.cursor_cell - base) % _PLANE_CELLS
        if column < layout.columns:
            return Cursor(row, column, first, last, bool(covered))
    return Cursor(0, 0, first, last, False)


@cache
def _lines(height: int) -> tuple[tuple[int, int | None], ...]:
    """For each line of a row's picture: the line of the cell, and that of the font to show on it.

    Low cells are those of the tricks that make pictures from the tops of characters. Higher ones hold text:
    from 8 lines on each line is shown twice for the font to fit, from 14 on the font just loses a margin.
    """
    if height < _CAN_DOUBLE:
        return tuple((line, line) for line in range(height))
    if height < _AS_IT_IS:
        return tuple((line // 2, line if line < font.HEIGHT else None) for line in range(2 * height))
    cut = 1 if height == _AS_IT_IS else 0
    return tuple((line, line + cut if line + cut < font.HEIGHT else None) for line in range(height))


@cache
def _dots(dots: int, width: int, repeat: int, ink: int, paper: int) -> bytes:
    """Dots, the leftmost in the highest of ``width`` bits, as one byte of colour for each of ``repeat``."""
    colours = (paper, ink)
    return bytes(colours[dots >> n & 1] for n in reversed(range(width)) for _ in range(repeat))
