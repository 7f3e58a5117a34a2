# SPDX-License-Identifier: GPL-2.0-only
"""The report's page: it needs nothing else, shows what is wrong and how to see it, and can be read."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tests.conformance.test_report import OFF, REPORT, SHADOW
from tests.conformance.test_waivers import result
from vmi.conformance.coverage import Coverage, Entry, Gap
from vmi.conformance.page import to_html
from vmi.conformance.report import Report
from vmi.conformance.style import STYLE
from vmi.conformance.verdict import Verdict

PAGE = to_html(REPORT)
_VOID = {"meta", "input", "br"}


class Outline(HTMLParser):
    """Every element is closed, and where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in _VOID:
            if tag in ("tbody", "tr", "td") and self.open[-1] == tag:
                self.open.pop()
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "table" and self.open[-1] == "tbody":
            self.open.pop()
        assert self.open.pop() == tag


def outline(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Outline()
    parser.feed(page)
    assert not parser.open
    return parser.seen


def test_it_is_one_page_and_escapes() -> None:
    assert "&lt;mine&gt;" in PAGE and "<mine>" not in PAGE
    assert "http" not in PAGE and "<script" not in PAGE and "url(" not in PAGE
    assert {tag for tag, _ in outline(PAGE)}.isdisjoint({"link", "img", "iframe", "script"})


def test_each_failure_has_its_reasons_and_command() -> None:
    assert '<b class="v FAIL">FAIL</b> SetCR0/TS <small>off</small>' in PAGE
    assert "<li>it is broken</li>" in PAGE
    assert '<code class="command">vmi conform --rom mine --paging off SetCR0/TS</code>' in PAGE
    assert "What does not hold: 4 cases" in PAGE and "the waiver for X was not needed" in PAGE


def test_environments_that_fail_alike_are_told_once() -> None:
    both = Report({}, "vmi", tuple(result("SetCR0/TS", Verdict.FAIL, each) for each in (OFF, SHADOW)))
    page = to_html(both)
    assert "What does not hold: 1 case<" in page and "<small>2 environments</small>" in page
    assert page.count("<li>it is broken</li>") == 1 and "<small>off, pae shadow</small>" in page


def test_the_matrix() -> None:
    assert '<td class="v CRASH" title="CRASH">CRASH</td>' in PAGE and "VMI-SetCR0-03" in PAGE
    assert '<th scope="col"><span>pae<br>shadow</span></th>' in PAGE
    assert '<td class="v SKIP" title="SKIP">–</td>' in PAGE


def test_what_a_box_hides() -> None:
    seen = outline(PAGE)
    boxes = [attrs["id"] for tag, attrs in seen if tag == "input"]
    assert boxes[0] == "show-CRASH" and set(boxes) >= {"show-FAIL", "show-PASS"}
    labels = [attrs["for"] for tag, attrs in seen if tag == "label"]
    assert labels == boxes
    rows = {attrs["class"] for tag, attrs in seen if tag == "tr" and "class" in attrs} - {"group"}
    groups = {attrs["class"] for tag, attrs in seen if tag == "tbody"}
    rules = set(re.findall(r"~\.matrix \.(\S+?)\{display:none\}", PAGE))
    assert rules == rows | groups and "is-CRASH" in rows and "all-PASS" in groups


def test_coverage_and_notes() -> None:
    gap = Gap(0x102, 3, ("GetCR3",), ((0x102, "xor eax,<eax>"),))
    coverage = Coverage(5, 2, 3, (Entry("GetCR3", 0x100, 5, ((0x102, 3),)),), (gap,))
    report = Report({}, "", (), notes=("<so>",), environments={"off": {"MMU": "<x>"}}, coverage=coverage)
    page = to_html(report)
    assert "ROM code run: 40.0 %" in page and "3 bytes at 0x0102, of GetCR3" in page
    assert "<pre>0102  xor eax,&lt;eax&gt;</pre>" in page and "3 bytes more were run" in page
    assert "<p>&lt;so&gt;</p>" in page and "<td>&lt;x&gt;</td>" in page
    assert outline(page)


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_what_is_behind(theme: int) -> None:
    colours = dict(re.findall(r"--(\w+):(#\w+)", re.findall(r":root\{([^}]*)\}", STYLE)[theme]))
    for front in ("ink", "soft", "good", "waived", "error", "bad"):
        for back in ("paper", "badpaper" if front == "bad" else "band"):
            low, high = sorted((luminance(colours[front]), luminance(colours[back])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)
