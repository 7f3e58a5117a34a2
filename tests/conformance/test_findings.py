# SPDX-License-Identifier: GPL-2.0-only
"""Findings as files and as cases: what was written is read, anything else is one sentence."""

from __future__ import annotations

import json

import pytest

from tests.conformance.mutants import MUTANTS
from vmi.conformance import findings, runner
from vmi.conformance.findings import Finding
from vmi.conformance.layout import Paging
from vmi.conformance.sequence import Step, sequence
from vmi.conformance.subject import Environment
from vmi.conformance.suite import MMUS, Target
from vmi.conformance.verdict import Verdict
from vmi.errors import BadInput
from vmi.rom.build import build

OFF = Environment(Paging.OFF, "direct")
PAE = Environment(Paging.PAE, "shadow")
FINDING = Finding(5, OFF, sequence(0, Paging.OFF), "because")
CALL = Finding(0, PAE, (Step("DisableInterrupts", 0, (), ()),), "because")


def test_a_file() -> None:
    found = (FINDING, CALL, Finding(7, PAE, sequence(3, Paging.PAE), "é"))
    assert findings.load(findings.dump(found)) == found
    assert findings.load(findings.dump(())) == ()


def row(**changed: object) -> str:
    """A file of one finding, with something else in its only step, or in itself."""
    data = json.loads(findings.dump([CALL]))
    finding = data["findings"][0]
    for key, value in changed.items():
        (finding if key in finding else finding["steps"][0])[key] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "JSONDecodeError Expecting value: line 1 column 1 (char 0)"),
        ("{}", "KeyError 'findings'"),
        ("[1]", "TypeError list indices must be integers or slices, not str"),
        ("[" * 100_000, "RecursionError maximum recursion depth exceeded while decoding a JSON array"),
        (row(steps=[]), "ValueError a sequence has 1 to 20 calls, not 0"),
        (row(paging="4-level"), "ValueError '4-level' is not a valid Paging"),
        (row(call="Nothing"), "ValueError Nothing has no example 0 with paging pae"),
        (row(example=9), "ValueError DisableInterrupts has no example 9 with paging pae"),
        (row(registers={"eax": 1}), "ValueError DisableInterrupts takes other arguments"),
        (row(stack=[1]), "ValueError DisableInterrupts takes other arguments"),
        (row(stack=[1 << 32]), "ValueError a dword is needed, not 4294967296"),
        (row(stack=[True]), "ValueError a dword is needed, not True"),
        (row(stack=None), "TypeError 'NoneType' object is not iterable"),
        (row(seed=float("inf")), "OverflowError cannot convert float infinity to integer"),
    ],
    ids=range(14),
)
def test_what_is_no_file(text: str, why: str) -> None:
    with pytest.raises(BadInput) as raised:
        findings.load(text)
    assert str(raised.value).startswith(f"this is no file of findings of vmi fuzz: {why}")


def test_as_cases() -> None:
    mutant = next(each for each in MUTANTS if each.name == "DisableInterrupts clobbers EAX")
    (case,) = findings.as_cases([CALL], "some/f.json")
    assert case.name == "DisableInterrupts/finding 1 of f.json" and case.replay == "some/f.json"
    (bad,) = runner.run([case], Target("vmware", mutant.rom()).make, PAE)
    assert bad.verdict is Verdict.FAIL and bad.assertions == 1
    assert bad.reasons[0].startswith("DisableInterrupts(), call 0: it must return, but ")
    (good,) = runner.run([case], Target("vmware", build("vmware").image).make, PAE)
    assert good.verdict is Verdict.PASS and good.reasons == ()


def test_what_can_not_be_decided_any_more_is_skipped() -> None:
    """A finding of a version that knew less."""
    step = Step("WriteIDTEntry", 0, (("eax", 0x82000), ("edx", 0x8000), ("ecx", 0)), (0x8E00,))
    cases = findings.as_cases([Finding(0, PAE, (*CALL.steps, step), ""), CALL], "f.json")
    results = list(runner.run(cases, Target("vmware", build("vmware").image).make, PAE))
    assert [result.verdict for result in results] == [Verdict.SKIP, Verdict.PASS]
    why = "the table leaves open what comes of these calls, or the ROM has no code for them"
    assert results[0].reasons == (why,)


def test_where_it_is_run_again() -> None:
    ours = [Environment(paging, mmu) for paging in Paging for mmu in MMUS]
    assert CALL.places(ours) == [PAE]
    theirs = [Environment(paging) for paging in Paging]
    assert CALL.places(theirs) == [Environment(Paging.PAE)]
