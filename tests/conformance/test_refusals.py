# SPDX-License-Identifier: GPL-2.0-only
"""Every fault that the ABI table documents is provoked, in more than one way for each call."""

from __future__ import annotations

import pytest

from vmi import abi
from vmi.conformance import suite
from vmi.conformance.refusals import REFUSALS
from vmi.x86 import Vector

FAULTING = [call for call in abi.CALLS if call.faults]
BY_HAND = {"IRET": {"#GP", "#NP", "#SS"}, "RDPMC": {"#GP"}}
SEVERAL_IN_ONE = {"RDPMC"}  # a case about three counters


def provoked(call: abi.Call) -> set[str]:
    """Names of the exceptions that cases provoke."""
    rows = {f"#{Vector(row.vector).name}" for row in REFUSALS if row.call == call.name}
    return rows | BY_HAND.get(call.name, set())


@pytest.mark.parametrize("call", FAULTING, ids=lambda call: str(call.name))
def test_each_documented_fault_is_provoked(call: abi.Call) -> None:
    assert {fault.name for fault in call.faults} <= provoked(call)


@pytest.mark.parametrize("call", FAULTING, ids=lambda call: str(call.name))
def test_a_call_that_faults_has_two_negative_cases(call: abi.Call) -> None:
    rows = [row for row in REFUSALS if row.call == call.name]
    by_hand = [case for case in suite.all_cases() if case.name.startswith(f"{call.name}/fault,")]
    assert max(len(rows), len(by_hand)) >= 2 or call.name in SEVERAL_IN_ONE


def test_rows_have_names_of_their_own() -> None:
    names = [(row.call, row.what, row.paging) for row in REFUSALS]
    assert len(set(names)) == len(names)
