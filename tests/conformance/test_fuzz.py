# SPDX-License-Identifier: GPL-2.0-only
"""Random sequences: the same from a seed, no difference where there is none, and a seeded bug is found."""

from __future__ import annotations

import json
import re

import pytest

from tests.conformance.mutants import MUTANTS
from vmi.conformance import fuzz
from vmi.conformance.layout import Paging
from vmi.conformance.subject import Environment
from vmi.conformance.suite import Target
from vmi.errors import BadInput
from vmi.rom.build import build

NATIVE = Target("native", build("native").image)
VMWARE = Target("vmware", build("vmware").image)
OFF = Environment(Paging.OFF, "direct")


def test_a_seed_is_a_sequence() -> None:
    assert fuzz.sequence(7, OFF) == fuzz.sequence(7, OFF) != fuzz.sequence(8, OFF)
    assert all(1 <= len(fuzz.sequence(seed, OFF)) <= fuzz.LONGEST for seed in range(100))


@pytest.mark.parametrize("paging", Paging)
@pytest.mark.parametrize("mmu", ["direct", "shadow"])
def test_no_difference_to_the_bare_machine(paging: Paging, mmu: str) -> None:
    environment = Environment(paging, mmu)
    fuzzer = fuzz.Fuzzer(VMWARE, NATIVE, environment)
    for seed in range(60):
        steps = fuzz.sequence(seed, environment)
        assert fuzzer.run(steps) == "", [str(step) for step in steps]


@pytest.mark.parametrize("name", ["DisableInterrupts clobbers EAX", "INSB runs downwards"])
def test_a_seeded_bug_is_found_and_made_small(name: str) -> None:
    mutant = next(each for each in MUTANTS if each.name == name)
    fuzzer = fuzz.Fuzzer(Target("vmware", mutant.rom()), NATIVE, OFF)
    found = next((s for seed in range(3000) if fuzzer.run(s := fuzz.sequence(seed, OFF))), None)
    assert found is not None
    small = fuzzer.shrink(found)
    assert len(small) <= 2 and fuzzer.run(small)


def test_a_finding_is_a_file() -> None:
    finding = fuzz.Finding(5, OFF, fuzz.sequence(5, OFF), "because")
    assert fuzz.load(json.dumps(finding.to_json())) == finding


@pytest.mark.parametrize("text", ["", "{}", '{"seed": 1, "steps": [{}]}', "[1]"])
def test_what_is_no_finding(text: str) -> None:
    with pytest.raises(BadInput, match="^" + re.escape("this is no finding of vmi fuzz: ")):
        fuzz.load(text)
