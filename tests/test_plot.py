# SPDX-License-Identifier: GPL-2.0-only
"""The picture of a comparison."""

from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image

from vmi import build_rom, patch, samples
from vmi.plot import WIDTH, png
from vmi.run import Comparison, compare

KERNEL = samples.get("hello").path.read_bytes()


def comparison(modes: tuple[str, ...] = ("native", "paravirt", "full")) -> Comparison:
    found = compare(patch(KERNEL).data, modes, rom=build_rom("vmware").image, original=KERNEL)
    # of this computer's time only the ratio is drawn
    return replace(found, results=tuple(replace(r, wall_s=2.0 + i) for i, r in enumerate(found.results)))


def colours(data: bytes) -> dict[object, int]:
    """How many pixels have each colour that more than a few have."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    counted = image.getcolors(1 << 16) or []
    return {colour: count for count, colour in counted if count > 200}


def test_same_comparison_gives_the_same_picture() -> None:
    first = comparison()
    assert png(first) == png(first)
    assert Image.open(io.BytesIO(png(first))).width == WIDTH


def test_each_mode_has_bars_of_its_colour() -> None:
    two, three = colours(png(comparison(("native", "paravirt")))), colours(png(comparison()))
    assert len(three) == len(two) + 1
    assert set(two) < set(three)


def test_longer_runs_have_longer_bars() -> None:
    base = comparison(("native", "paravirt"))
    first, second = base.results
    slow = replace(base, results=(first, replace(second, wall_s=80.0)))
    paravirt = (0x5A, 0x93, 0x67)
    native = (0x4C, 0x6A, 0x92)
    assert colours(png(slow))[paravirt] != colours(png(base))[paravirt]
    assert colours(png(slow))[native] < colours(png(base))[native]


def test_runs_without_exits_or_time_can_be_drawn() -> None:
    base = comparison(("native", "paravirt"))
    empty = tuple(replace(r, exits={}, instructions=0, virtual_ns=0, wall_s=0.0) for r in base.results)
    assert png(replace(base, results=empty)).startswith(b"\x89PNG")
