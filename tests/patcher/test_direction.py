# SPDX-License-Identifier: GPL-2.0-only
"""The direction flag is known to be clear everywhere but behind an STD."""

from __future__ import annotations

import pytest

from tests.patcher.images import source_image
from vmi.patcher.direction import set_direction
from vmi.patcher.flow import flow
from vmi.patcher.plan import make_plan
from vmi.patcher.scan import scan

CASES = [
    ("no std at all", "start: cld\nsite: cli\n ret", False),
    ("straight behind it", "start: std\nsite: cli\n cld\n ret", True),
    ("cleared before", "start: std\n cld\nsite: cli\n ret", False),
    ("the cld itself", "start: std\n rep movsb\nsite: cld\n ret", True),
    ("on one of two ways", "start: jecxz site\n std\nsite: cli\n cld\n ret", True),
    ("cleared on both ways", "start: std\n jecxz a\n cld\n jmp site\na: cld\nsite: cli\n ret", False),
    ("in a loop", "start: jmp b\nsite: cli\n cld\n ret\nb: std\n loop site\n cld\n ret", True),
    ("in a called function", "start: std\n call f\n cld\n ret\nf:\nsite: cli\n ret", True),
    ("behind a call", "start: std\n call f\nsite: cli\n cld\n ret\nf: ret", True),
    ("before it", "start:\nsite: cli\n std\n cld\n ret", False),
    ("behind a return", "start: std\n ret\nother:\nsite: cli\n jmp start", False),
    ("loaded from an older image", "start: pushfd\n std\n popfd\nsite: cli\n ret", False),
    ("loaded from an image that has it", "start: std\n pushfd\n cld\n popfd\nsite: cli\n cld\n ret", True),
]


@pytest.mark.parametrize(("source", "may"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_direction(source: str, may: bool) -> None:
    image, made = source_image(source)
    assert (made.labels["site"] in set_direction(flow(scan(image)))) is may


def test_an_std_that_nothing_leads_to_is_data() -> None:
    image, made = source_image("start: ret\ndead: std\nsite: cli\n ret")
    assert made.labels["site"] not in set_direction(flow(scan(image)))


def test_the_plan_says_so_at_the_site() -> None:
    image, _ = source_image("start: std\n cli\n cld\n cli\n nop\n nop\n nop\n nop\n ret")
    assert [site.direction for site in make_plan(image).sites] == [True, False]
