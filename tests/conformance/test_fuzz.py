# SPDX-License-Identifier: GPL-2.0-only
"""Random sequences: the same from a seed, no difference where there is none, and seeded bugs are found."""

from __future__ import annotations

import pytest

from tests.conformance.mutants import MUTANTS
from vmi.conformance.findings import oracle
from vmi.conformance.fuzz import Fuzzer
from vmi.conformance.layout import Paging
from vmi.conformance.sequence import LONGEST, sequence
from vmi.conformance.subject import Environment
from vmi.conformance.suite import Target
from vmi.rom.build import build

VMWARE = Target("vmware", build("vmware").image)
OFF = Environment(Paging.OFF, "direct")


def fuzzer_of(name: str, environment: Environment = OFF) -> Fuzzer:
    """A seeded bug, against the bare machine."""
    mutant = next(each for each in MUTANTS if each.name == name)
    return Fuzzer.against(Target("vmware", mutant.rom()), oracle(), environment)


def test_a_seed_is_a_sequence() -> None:
    assert sequence(7, Paging.OFF) == sequence(7, Paging.OFF) != sequence(8, Paging.OFF)
    lengths = {len(sequence(seed, Paging.OFF)) for seed in range(200)}
    assert lengths == set(range(1, LONGEST + 1))


def test_a_seed_is_the_same_sequence_everywhere() -> None:
    """Files of findings name seeds: this changes when examples do, or the table, and for no other reason."""
    assert [str(step) for step in sequence(0, Paging.OFF)] == [
        "ReleasePage(eax=0x60, edx=0x1)",
        "INB(edx=0xe4)",
        "SetCR4(eax=0x0)",
        "OUTSL(esi=0x32878a3a, edx=0xe4, ecx=0x5)",
        "OUTW(eax=0x11223344, edx=0xe4)",
    ]


@pytest.mark.parametrize("paging", Paging)
@pytest.mark.parametrize("mmu", ["direct", "shadow"])
def test_no_difference_to_the_bare_machine(paging: Paging, mmu: str) -> None:
    fuzzer = Fuzzer.against(VMWARE, oracle(), Environment(paging, mmu))
    for seed in range(200):
        assert fuzzer.seed(seed) == "", [str(step) for step in sequence(seed, paging)]


@pytest.mark.parametrize("name", ["DisableInterrupts clobbers EAX", "INSB runs downwards"])
def test_a_seeded_bug_is_found_and_made_small(name: str) -> None:
    fuzzer = fuzzer_of(name)
    found = next((seed for seed in range(3000) if fuzzer.seed(seed)), None)
    assert found is not None
    small = fuzzer.shrink(sequence(found, Paging.OFF))
    assert len(small) <= 2 and fuzzer.run(small)
    assert all(not fuzzer.run(small[:n] + small[n + 1 :]) for n in range(len(small)))
