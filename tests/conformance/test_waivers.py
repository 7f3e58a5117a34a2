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
from vmi.rom.build import build

TODAY = date(2030, 1, 15)
PLACES = suite.Target("vmware", build("vmware").image).environments()
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
    granted = waivers.parse(GOOD, suite.all_cases(), PLACES, TODAY)
    shadow = Environment(Paging.PAE, "shadow")
    results = [
        result("IRET/fault at the site", Verdict.FAIL, shadow),
        result("IRET/fault at the site", Verdict.FAIL, Environment(Paging.PAE, "direct")),
        result("IRET/IOPL", Verdict.CRASH, shadow),
    ]
    marked, unused = waivers.apply(results, granted)
    assert [each.verdict for each in marked] == [Verdict.WAIVED, Verdict.FAIL, Verdict.CRASH]
    assert marked[0].reasons == ("Fixed soon.", "it is broken")
    assert not unused, "what the other one is about has not been run"


def test_a_waiver_of_what_is_good_is_not_needed() -> None:
    granted = waivers.parse(GOOD, suite.all_cases(), PLACES, TODAY)
    _, unused = waivers.apply([result("SetCR0/WP", Verdict.PASS, Environment())], granted)
    assert [str(waiver) for waiver in unused] == ["VMI-SetCR0-03"]


def test_a_waiver_of_a_requirement_does_not_hide_others() -> None:
    """Case SetCR0/TS decides three; it may be any of them that isn't kept."""
    failed = [result("SetCR0/TS", Verdict.FAIL, Environment())]
    rows = [
        f'[[waiver]]\nrequirement = "{each}"\nreason = "{n}"\nexpires = 2031-01-01\n'
        for n, each in enumerate(failed[0].case.requirements)
    ]
    granted = waivers.parse("".join(rows[:2]), suite.all_cases(), PLACES, TODAY)
    assert waivers.apply(failed, granted) == (failed, [])
    granted = waivers.parse("".join(rows), suite.all_cases(), PLACES, TODAY)
    marked, unused = waivers.apply(failed, granted)
    assert (marked[0].verdict, marked[0].reasons) == (Verdict.WAIVED, ("0", "1", "2", "it is broken"))
    assert not unused


def test_level_0_is_not_waived_by_a_case_of_another_level() -> None:
    assert case("CPUID/relocation").level == 1
    text = GOOD.replace("IRET/fault at the site", "CPUID/relocation")
    with pytest.raises(BadInput, match=r"^waiver 1 is for CPUID/relocation, which is of level 0"):
        waivers.parse(text, suite.all_cases(), PLACES, TODAY)


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
        ("2030-01-15", "2030-02-15T00:00:00Z", "waiver 1 must have a reason and a date as expires"),
        ("Fixed soon.", " ", "waiver 1 must have a reason and a date as expires"),
        (
            "pae shadow",
            "pae",
            "waiver 1 is for the environment 'pae', but IRET/fault at the site is decided in off direct; "
            "off shadow; 2-level direct; 2-level shadow; pse direct; pse shadow; pae direct; pae shadow",
        ),
        ("case =", f"x = {'[' * 5000}\ncase =", "waivers must be a TOML file, but it can't be read: "),
        ("2030-01-15", "2030-01-14", "waiver 1 for IRET/fault at the site has expired on 2030-01-14"),
    ],
)
def test_bad_waivers(old: str, new: str, sentence: str) -> None:
    with pytest.raises(BadInput, match="^" + re.escape(sentence)):
        waivers.parse(GOOD.replace(old, new), suite.all_cases(), PLACES, TODAY)
