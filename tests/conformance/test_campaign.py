# SPDX-License-Identifier: GPL-2.0-only
"""Campaigns: the same findings by any number of processes and however often they were left off."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.conformance.mutants import MUTANTS
from vmi.conformance import campaign, findings
from vmi.conformance.campaign import State
from vmi.conformance.findings import Finding
from vmi.conformance.layout import Paging
from vmi.conformance.sequence import sequence
from vmi.conformance.subject import Environment
from vmi.conformance.suite import Target
from vmi.errors import BadInput
from vmi.version import __version__

OFF = Environment(Paging.OFF, "direct")
SUBJECT = "ab" * 32
LONG = 1e9  # seconds


def seeded(name: str) -> Target:
    return Target("vmware", next(each for each in MUTANTS if each.name == name).rom())


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "PIECE", 40)


def last(target: Target, state: State, upto: int, jobs: int = 1) -> State:
    """Where a campaign has come."""
    return [state, *campaign.run(target, state, upto=upto, seconds=LONG, jobs=jobs)][-1]


def test_the_same_by_any_number_of_processes(small_pieces: None) -> None:
    target, begin = seeded("INSB runs downwards"), State(SUBJECT, OFF, most=3)
    alone = last(target, begin, 240)
    assert alone.findings
    assert last(target, begin, 240, jobs=2) == alone


def test_the_same_however_often_it_was_left_off(small_pieces: None) -> None:
    target, begin = seeded("INSB runs downwards"), State(SUBJECT, OFF, most=3)
    state = begin
    for upto in (30, 31, 170, 400):
        state = last(target, campaign.load(state.dump(), subject=SUBJECT, most=3), upto)
    assert state == last(target, begin, 400)


def test_bounds() -> None:
    target, begin = seeded("INSB runs downwards"), State(SUBJECT, OFF, next=7)
    assert list(campaign.run(target, begin, upto=100, seconds=0, jobs=1)) == []
    assert list(campaign.run(target, begin, upto=7, seconds=LONG, jobs=1)) == []
    full = replace(begin, findings=(finding(1),))
    assert list(campaign.run(target, full, upto=100, seconds=LONG, jobs=1)) == []


def finding(seed: int, of: int = 0, why: str = "because") -> Finding:
    return Finding(seed, OFF, sequence(of, Paging.OFF), why)


def test_a_finding_counts_once() -> None:
    state = State(SUBJECT, OFF, most=3).behind(100, [finding(3), finding(9), finding(12, of=1)])
    assert state.findings == (finding(3), finding(12, of=1)) and state.next == 100 and not state.full
    state = state.behind(200, [finding(101), finding(150, why="else"), finding(160, of=2)])
    assert state.findings[2:] == (finding(150, why="else"),) and state.full
    assert state.next == 151  # the rest has still to be tried by whoever wants more


def test_a_state_is_a_file_of_findings() -> None:
    state = State(SUBJECT, OFF, 4, 90, 2, (finding(5),))
    assert campaign.load(state.dump(), subject=SUBJECT, most=2) == state
    assert findings.load(state.dump()) == state.findings


def changed(**values: object) -> str:
    return json.dumps({**json.loads(State(SUBJECT, OFF, 4, 90).dump()), **values})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "this is no state of a campaign: JSONDecodeError Expecting value: line 1 column 1 (char 0)"),
        (State(SUBJECT, OFF).dump()[:-9], "this is no state of a campaign: JSONDecodeError Unterminated"),
        ("[]", "this is no state of a campaign: ValueError it says nothing of vmi fuzz"),
        (changed(what="x"), "this is no state of a campaign: ValueError it says nothing of vmi fuzz"),
        (changed(next=3), "this is no state of a campaign: ValueError its seeds are 4 to 3"),
        (
            changed(next=float("inf")),
            "this is no state of a campaign: OverflowError cannot convert float infinity to integer",
        ),
        (changed(first=None), "this is no state of a campaign: TypeError int() argument must be"),
        (changed(findings=[{}]), "this is no state of a campaign: KeyError 'paging'"),
        (changed(findings=7), "this is no state of a campaign: TypeError 'int' object is not iterable"),
        (
            changed(version="0.0"),
            "the campaign was begun with another version of vmi (0.0), whose seeds are other sequences",
        ),
        (
            changed(sequences="00"),
            f"the campaign was begun with another version of vmi ({__version__}), whose seeds are other "
            "sequences",
        ),
        (
            changed(subject="cd" * 32),
            f"the campaign is about the ROM with SHA-256 {'cd' * 32}, but this one has {SUBJECT}",
        ),
    ],
    ids=range(12),
)
def test_what_is_no_state_to_go_on_from(text: str, sentence: str) -> None:
    with pytest.raises(BadInput) as raised:
        campaign.load(text, subject=SUBJECT, most=1)
    assert str(raised.value).startswith(sentence)
