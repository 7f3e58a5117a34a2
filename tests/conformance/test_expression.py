# SPDX-License-Identifier: GPL-2.0-only
"""Expressions over cases and environments: what they choose, and one sentence for each that is none."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.conformance import suite
from vmi.conformance.expression import KINDS, Expression
from vmi.conformance.layout import Paging
from vmi.conformance.selection import Selection
from vmi.conformance.subject import Environment
from vmi.errors import UsageError

CASES = {case.name: case for case in suite.all_cases()}
FAULT = CASES["IRET/fault at the site"]
OFF, PAE = Environment(engine="python"), Environment(Paging.PAE, "shadow")


@pytest.mark.parametrize(
    ("text", "off", "pae"),
    [
        ("IRET", True, True),
        ("iret and fault", True, True),
        ("'fault at the site'", True, True),
        ("'at the' and \"the site\"", True, True),
        ("IRET and not PAE", True, False),
        ("SetCR3 or shadow", False, True),
        ("SetCR3 or IRET and pae", False, True),
        ("(SetCR3 or IRET) and not pae", True, False),
        ("not not IRET", True, True),
        ("NOT IRET OR PAE", False, True),
        ("VMI-IRET-05", True, True),
        ("iret/*", True, True),
        ("fault?at*", False, False),
        ("paging=off and mmu=", True, False),
        ("mmu=shadow", False, True),
        ("engine=python", True, False),
        ("python", True, False),
        ("cpus=1 and level=1", True, True),
        ("cpus=2", False, False),
        ("call=IRET", True, True),
        ("call=IRE", False, False),
        ("name='IRET/fault at the site'", True, True),
        ("name=*SITE", True, True),
        ("group=rom", False, False),
        ("requirement=vmi-iret-*", True, True),
        ("not(SetCR3)and(pae)", False, True),
    ],
)
def test_what_an_expression_chooses(text: str, off: bool, pae: bool) -> None:
    expression = Expression(text)
    assert (expression.holds(FAULT, OFF), expression.holds(FAULT, PAE)) == (off, pae)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" ", "the expression must go on with a word, 'not' or '(', but it ends"),
        ("SetCR3 and", "the expression must go on with a word, 'not' or '(', but it ends"),
        ("and", "the expression must go on with a word, 'not' or '(' at character 1, but there is 'and'"),
        ("a or ()", "the expression must go on with a word, 'not' or '(' at character 7, but there is ')'"),
        ("(a", "the expression must go on with ')', but it ends"),
        ("(a b", "the expression must go on with ')' at character 4, but there is 'b'"),
        ("a)", "the expression must go on with 'and', 'or' or the end at character 2, but there is ')'"),
        ("a  b", "the expression must go on with 'and', 'or' or the end at character 4, but there is 'b'"),
        ("a or 'b", "the quote at character 6 of the expression is never closed"),
        ("a or ''", "the word at character 6 of the expression has nothing in it"),
        (
            "size=3",
            f"an expression can ask for {', '.join(KINDS)}, but not for 'size'",
        ),
        ("not " * 60 + "a", "an expression may be nested 50 deep, but this one goes deeper"),
        ("a" * 2001, "an expression may have 2000 characters, but this one has 2001"),
    ],
)
def test_what_is_none(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        Expression(text)


@given(st.text(alphabet="()'\"=*ab not or and", max_size=60))
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    try:
        Expression(text).holds(FAULT, OFF)
    except UsageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "SetCR9 or IRET",
            "'SetCR9' in the expression fits no case and no environment; `vmi conform --list` shows all",
        ),
        (
            "paging=4",
            "'paging=4' in the expression fits no case and no environment; `vmi conform --list` shows all",
        ),
        (
            "level=1 and level=2",
            "the expression 'level=1 and level=2' chooses none of the cases that are left",
        ),
        ("IRET and python", "the expression 'IRET and python' chooses none of the cases that are left"),
    ],
)
def test_what_chooses_nothing(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        Selection(expression=text).plan(suite.all_cases(), [PAE])


def test_a_plan_is_by_environment() -> None:
    wanted = Selection(("IRET",), expression="convention or fault and not PAE")
    off, pae = (cases for _, cases in wanted.plan(suite.all_cases(), [OFF, PAE]))
    assert FAULT in off and FAULT not in pae
    assert {case.name for case in pae} < {case.name for case in off}
    assert Selection(("IRET",)).plan(suite.all_cases(), [OFF]) == [
        (OFF, Selection(("IRET",)).pick(suite.all_cases()))
    ]
