# SPDX-License-Identifier: GPL-2.0-only
"""Every seeded bug is found by the cases that are about it; without it they are good."""

from __future__ import annotations

import pytest

from tests.conformance.mutants import MUTANTS, Mutant
from vmi import abi
from vmi.conformance import runner, suite
from vmi.conformance.runner import Result
from vmi.hypervisor import calls, passing
from vmi.rom.build import build


def results(rom: bytes, mutant: Mutant) -> list[Result]:
    """What the mutant's cases come to on a ROM."""
    target = suite.Target("vmware", rom)
    wanted = suite.Selection(mutant.cases).pick(suite.all_cases())
    return list(runner.run(wanted, target.make, mutant.environment))


def seed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let wrong handlers serve the calls that the mutant names."""
    right = calls.load_all()
    numbers = {abi.BY_NAME[name].number: make for name, make in mutant.handlers.items()}
    served = {**right, **{number: make(right[number]) for number, make in numbers.items()}}
    monkeypatch.setattr(calls, "load_all", lambda: served)
    in_c = {service: name for service, name in passing.SERVED.items() if name not in mutant.handlers}
    monkeypatch.setattr(passing, "SERVED", in_c)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_seeded_bug_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(result.verdict.good for result in results(build("vmware").image, mutant))
    seed(mutant, monkeypatch)
    assert not all(result.verdict.good for result in results(mutant.rom(), mutant)), "nobody has noticed"


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 30 and len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
