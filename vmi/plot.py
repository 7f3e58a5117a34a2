# SPDX-License-Identifier: GPL-2.0-only
"""A comparison as a picture: exits by cause, and what a run takes relative to the first mode.

Counts lie orders of magnitude apart, so their bars have a logarithmic scale; the numbers stand beside them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from vmi.exits import Cause, by_cause

if TYPE_CHECKING:
    from vmi.run import Comparison

WIDTH = 960  # pixels
_MARGIN, _LEFT, _RIGHT = 24, 190, 130  # pixels; around all, before the bars, and for the numbers behind them
_BAR, _GAP, _HEAD = 14, 12, 34  # heights of a bar, of the space between groups, of a heading
_COLOURS = ("#4c6a92", "#5a9367", "#c0673d", "#8a5a9e", "#9a8f3d")
_INK, _PALE = "#222222", "#dddddd"

# A panel: its heading, and for each group of bars its name and one (length from 0 to 1, label) per mode.
_Bar = tuple[float, str]
_Panel = tuple[str, list[tuple[str, list[_Bar]]]]


def png(comparison: Comparison) -> bytes:
    """The picture as a PNG file."""
    panels = [_exits(comparison), _cost(comparison)]
    modes = [result.mode for result in comparison.results]
    group = len(modes) * _BAR + _GAP
    height = 2 * _MARGIN + _HEAD + sum(_HEAD + group * len(groups) + _GAP for _, groups in panels)
    image = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(image)
    at = _legend(draw, modes)
    for heading, groups in panels:
        draw.text((_MARGIN, at), heading, fill=_INK, font=_font(16))
        at += _HEAD
        for name, bars in groups:
            _group(draw, at, name, bars)
            at += group
        at += _GAP
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _exits(comparison: Comparison) -> _Panel:
    counts = [by_cause(result.exits) for result in comparison.results]
    most = max([count for column in counts for count in column.values()] + [1])

    def bar(count: int) -> _Bar:
        return math.log10(count + 1) / math.log10(most + 1), f"{count:,}"

    groups = [
        (cause.value, [bar(column.get(cause, 0)) for column in counts])
        for cause in Cause
        if any(cause in column for column in counts)
    ]
    return "exits by cause (logarithmic)", groups


def _cost(comparison: Comparison) -> _Panel:
    first, results = comparison.results[0], comparison.results
    rows: list[tuple[str, Sequence[float], float]] = [
        ("instructions", [r.instructions for r in results], first.instructions),
        ("guest time", [r.virtual_ns for r in results], first.virtual_ns),
        ("time here", [r.wall_s for r in results], first.wall_s),
    ]
    scaled = [(name, [value / base for value in values]) for name, values, base in rows if base]
    most = max([value for _, values in scaled for value in values] + [1.0])
    groups = [(name, [(value / most, f"{value:.3f}") for value in values]) for name, values in scaled]
    return f"relative to {first.mode}", groups


def _legend(draw: ImageDraw.ImageDraw, modes: Sequence[str]) -> int:
    x = _LEFT
    for index, mode in enumerate(modes):
        draw.rectangle((x, _MARGIN + 2, x + _BAR, _MARGIN + 2 + _BAR), fill=_colour(index))
        draw.text((x + _BAR + 8, _MARGIN), mode, fill=_INK, font=_font(14))
        x += _BAR + 40 + round(draw.textlength(mode, font=_font(14)))
    return _MARGIN + _HEAD


def _group(draw: ImageDraw.ImageDraw, top: int, name: str, bars: Sequence[_Bar]) -> None:
    middle = top + len(bars) * _BAR / 2
    draw.text((_LEFT - 12, middle), name, fill=_INK, font=_font(14), anchor="rm")
    draw.line((_LEFT, top - 3, _LEFT, top + len(bars) * _BAR + 2), fill=_PALE)
    room = WIDTH - _LEFT - _RIGHT - _MARGIN
    for index, (length, label) in enumerate(bars):
        y = top + index * _BAR
        end = _LEFT + round(room * length)
        if end > _LEFT:
            draw.rectangle((_LEFT, y, end, y + _BAR - 3), fill=_colour(index))
        draw.text((end + 8, y + _BAR / 2 - 1), label, fill=_INK, font=_font(12), anchor="lm")


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with the drawing library, so a picture is the same everywhere."""
    return ImageFont.load_default(size)
