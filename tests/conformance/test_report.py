# SPDX-License-Identifier: GPL-2.0-only
"""One run, told in each form."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from xml.etree import ElementTree

from tests.conformance.test_waivers import result
from vmi.conformance.layout import Paging
from vmi.conformance.page import to_html
from vmi.conformance.report import Report, to_junit, to_tap, to_text
from vmi.conformance.subject import Environment
from vmi.conformance.verdict import Verdict

OFF, SHADOW = Environment(), Environment(Paging.PAE, "shadow")
REPORT = Report(
    {"ROM": "<mine>"},
    "vmi conform --rom mine",
    (
        result("GetTR/relocation", Verdict.PASS, OFF),
        result("SetCR0/TS", Verdict.FAIL, OFF),
        result("SetCR0/WP", Verdict.SKIP, OFF),
        result("SetCR0/WP", Verdict.CRASH, SHADOW),
        result("IRET/IOPL", Verdict.WAIVED, SHADOW),
        result("IRET/pending", Verdict.ERROR, SHADOW),
    ),
    ("the waiver for X was not needed",),
)


def test_sums() -> None:
    assert REPORT.verdict is Verdict.CRASH
    assert REPORT.counts == {"CRASH": 1, "FAIL": 1, "ERROR": 1, "SKIP": 1, "WAIVED": 1, "PASS": 1}
    rows = REPORT.requirement_verdicts()
    assert rows["VMI-SetCR0-03"] == {"off": Verdict.SKIP, "pae shadow": Verdict.CRASH}


def test_skipped_cases_hide_nothing() -> None:
    both = Report(
        {}, "", (result("GetTR/relocation", Verdict.PASS, OFF), result("SetCR0/WP", Verdict.SKIP, OFF))
    )
    assert both.verdict is Verdict.PASS
    assert Report({}, "", both.results[1:]).verdict is Verdict.SKIP
    assert Report({}, "", both.results, ("unused",)).verdict is Verdict.ERROR


def test_what_only_refutes_proves_nothing() -> None:
    by_code = result("GetTR/by its code", Verdict.PASS, OFF)
    assert Report({}, "", (by_code,)).requirement_verdicts()["VMI-Call-01"] == {"off": Verdict.SKIP}
    bad = Report({}, "", (replace(by_code, verdict=Verdict.FAIL),))
    assert bad.requirement_verdicts()["VMI-Call-01"] == {"off": Verdict.FAIL}
    ran = (by_code, result("GetTR/convention 0.0", Verdict.PASS, OFF))
    assert Report({}, "", ran).requirement_verdicts()["VMI-Call-01"] == {"off": Verdict.PASS}


def test_a_command_can_be_pasted() -> None:
    own = result("Exception/kernel's own", Verdict.FAIL, OFF)
    words = shlex.split(Report({}, "vmi conform --rom mine", (own,)).repro(own))
    assert words == ["vmi", "conform", "--rom", "mine", "--paging", "off", "Exception/kernel's own"]


def test_tap_has_reasons_as_yaml_strings() -> None:
    said = replace(result("SetCR0/TS", Verdict.FAIL, OFF), reasons=('it says "no\\"',))
    assert r'    - "it says \"no\\\""' in to_tap(Report({}, "", (said,))).splitlines()


def test_text() -> None:
    assert to_text(REPORT).splitlines() == [
        "FAIL    SetCR0/TS (off)",
        "        it is broken",
        "        VMI-SetCR0-02, VMI-CLTS-01, VMI-CLTS-02",
        "        vmi conform --rom mine --paging off SetCR0/TS",
        "CRASH   SetCR0/WP (pae shadow)",
        "        it is broken",
        "        VMI-SetCR0-03",
        "        vmi conform --rom mine --paging pae --mmu shadow SetCR0/WP",
        "WAIVED  IRET/IOPL (pae shadow)",
        "        it is broken",
        "ERROR   IRET/pending (pae shadow)",
        "        it is broken",
        "        VMI-IRET-03",
        "        vmi conform --rom mine --paging pae --mmu shadow IRET/pending",
        "ERROR   the waiver for X was not needed",
        "CRASH: 1 CRASH, 1 FAIL, 1 ERROR, 1 SKIP, 1 WAIVED, 1 PASS; 6 assertions",
    ]


def test_text_that_says_more() -> None:
    lines = to_text(REPORT, verbose=True).splitlines()
    assert lines[0] == "ROM: <mine>" and "PASS    GetTR/relocation (off)" in lines


def test_names_of_any_kind_break_no_form() -> None:
    name = "a\nb\x01\udcff #1\\.rom"
    made = replace(REPORT, facts={"ROM": name}, command=f"vmi conform --rom {shlex.quote(name)}")
    shown = r"a\nb\x01\udcff #1\.rom"
    for form in (to_text, to_tap, to_junit, to_html):
        text = form(made)
        text.encode()
        assert "\x01" not in text and (shown in text or form is to_html)
    found = ElementTree.fromstring(to_junit(made)).find(".//property")
    assert found is not None and found.get("value") == shown.replace(r"\n", "\n")
    assert name in json.loads(json.dumps(made.to_json()))["cases"][1]["repro"]


def test_a_name_in_tap_has_no_directive_in_it() -> None:
    own = result("SetCR0/TS", Verdict.PASS, OFF)
    named = replace(own, case=replace(own.case, name=r"SetCR0/finding 1 of a\b # SKIP"))
    assert to_tap(Report({}, "", (named,))).splitlines()[-1] == (
        r"ok 1 - SetCR0/finding 1 of a\\b \# SKIP (off)"
    )


def test_tap() -> None:
    lines = to_tap(REPORT).splitlines()
    assert lines[:3] == ["TAP version 14", "# ROM: <mine>", "1..6"]
    assert lines[3] == "ok 1 - GetTR/relocation (off)"
    assert lines[4] == "not ok 2 - SetCR0/TS (off)"
    assert lines[5:11] == [
        "  ---",
        "  verdict: FAIL",
        "  reasons:",
        '    - "it is broken"',
        '  requirements: ["VMI-SetCR0-02", "VMI-CLTS-01", "VMI-CLTS-02"]',
        '  repro: "vmi conform --rom mine --paging off SetCR0/TS"',
    ]
    assert "ok 3 - SetCR0/WP (off) # SKIP it is broken" in lines
    assert "ok 5 - IRET/IOPL (pae shadow) # TODO it is broken" in lines


def test_junit() -> None:
    suites = ElementTree.fromstring(to_junit(REPORT)).findall("testsuite")
    assert [(each.get("name"), each.get("tests"), each.get("failures")) for each in suites] == [
        ("off", "3", "1"),
        ("pae shadow", "3", "1"),
    ]
    assert suites[1].get("errors") == "1" and suites[1].get("skipped") == "1"
    assert [child.tag for case in suites[1].findall("testcase") for child in case] == [
        "failure",
        "skipped",
        "error",
    ]
    failure = suites[0].find("testcase/failure")
    assert failure is not None and failure.text == (
        "it is broken; VMI-SetCR0-02, VMI-CLTS-01, VMI-CLTS-02; vmi conform --rom mine --paging off SetCR0/TS"
    )
    told = replace(REPORT, environments={"off": {"engine": "python"}})
    first = ElementTree.fromstring(to_junit(told)).findall("testsuite")[0]
    named = {each.get("name"): each.get("value") for each in first.findall("properties/property")}
    assert named == {"ROM": "<mine>", "engine": "python"}


def test_json_says_it_all() -> None:
    data = json.loads(json.dumps(REPORT.to_json()))
    assert data["verdict"] == "CRASH" and len(data["cases"]) == 6
    assert data["cases"][3]["repro"] == "vmi conform --rom mine --paging pae --mmu shadow SetCR0/WP"
