# SPDX-License-Identifier: GPL-2.0-only
"""Waivers are data that can't rot: unknown, expired and unused ones are errors."""

from __future__ import annotations

import re
from datetime import date

import pytest

from vmi.conformance import suite, waivers
from vmi.conformance.case import Case
from vmi.conformance.layout import Paging
from vmi.conformance.runner import Result
from vmi.conformance.subject import Environment
from vmi.conformance.verdict import Verdict
from vmi.errors import BadInput

TODAY = date(2030, 1, 15)
GOOD = """
[[waiver]]
case = "IRET/fault at the site"
environment = "pae shadow"
reason = "Fixed soon."
expires = 2030-01-15

[[waiver]]
requirement = "VMI-SetCR0-03"
reason = "Nobody needs it."
expires = 2031-01-01
"""


def case(name: str) -> Case:
    """A case by name."""
    return next(each for each in suite.all_cases() if each.name == name)


def result(name: str, verdict: Verdict, environment: Environment) -> Result:
    """A made-up result."""
    return Result(case(name), environment, verdict, ("it is broken",), 1, 0.0)


def test_waivers_cover_what_they_name() -> None:
    granted = waivers.parse(GOOD, suite.all_cases(), TODAY)
    shadow = Environment(Paging.PAE, "shadow")
    results = [
        result("IRET/fault at the site", Verdict.FAIL, shadow),
        result("IRET/fault at the site", Verdict.FAIL, Environment(Paging.PAE, "direct")),
        result("IRET/IOPL", Verdict.CRASH, shadow),
    ]
    marked, unused = waivers.apply(results, granted)
    assert [each.verdict for each in marked] == [Verdict.WAIVED, Verdict.FAIL, Verdict.CRASH]
    assert marked[0].reasons == ("Fixed soon.", "it is broken")
    assert [str(waiver) for waiver in unused] == ["VMI-SetCR0-03"]


def test_a_waiver_of_what_is_good_is_not_needed() -> None:
    granted = waivers.parse(GOOD, suite.all_cases(), TODAY)
    _, unused = waivers.apply([result("SetCR0/WP", Verdict.PASS, Environment())], granted)
    assert [str(waiver) for waiver in unused] == ["IRET/fault at the site in pae shadow", "VMI-SetCR0-03"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[[waiver]]", "[[waiver", "waivers must be a TOML file, but it can't be read: "),
        ("[[waiver]]", "[[excuse]]", "a file of waivers must hold [[waiver]] tables and nothing else"),
        (
            "reason",
            "because",
            "waiver 1 must have the keys case, environment, expires, reason, requirement only",
        ),
        (
            "case =",
            'requirement = "VMI-IRET-05"\ncase =',
            "waiver 1 must name a case or a requirement, and not both",
        ),
        ("IRET/fault", "IRET/vault", "waiver 1 names 'IRET/vault at the site', which there is not"),
        ("SetCR0-03", "SetCR0-99", "waiver 2 names 'VMI-SetCR0-99', which there is not"),
        ("SetCR0-03", "ROM-02", "waiver 2 is for VMI-ROM-02, which is of level 0 and can't be waived"),
        ("2030-01-15", '"later"', "waiver 1 must have a reason and a date as expires"),
        ("2030-01-15", "2030-01-14", "waiver 1 for IRET/fault at the site has expired on 2030-01-14"),
    ],
)
def test_bad_waivers(old: str, new: str, sentence: str) -> None:
    with pytest.raises(BadInput, match="^" + re.escape(sentence)):
        waivers.parse(GOOD.replace(old, new), suite.all_cases(), TODAY)
