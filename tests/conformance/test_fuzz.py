# SPDX-License-Identifier: GPL-2.0-only
"""Random sequences on two guests: no difference where there is none, and seeded bugs are found."""

from __future__ import annotations

import pytest

from tests.conformance.mutants import MUTANTS
from vmi.conformance.findings import oracle
from vmi.conformance.fuzz import Fuzzer
from vmi.conformance.layout import FREE_PAGES, LOG, SCRATCH, USER, Paging
from vmi.conformance.sequence import Step, sequence
from vmi.conformance.subject import Environment
from vmi.conformance.suite import Target
from vmi.memory import PAGE_SIZE
from vmi.rom.build import build

VMWARE = Target("vmware", build("vmware").image)
OFF = Environment(Paging.OFF, "direct")
_SHOW = "GetIDT", SCRATCH


def fuzzer_of(name: str, environment: Environment = OFF) -> Fuzzer:
    """A seeded bug, against the bare machine."""
    mutant = next(each for each in MUTANTS if each.name == name)
    return Fuzzer.against(Target("vmware", mutant.rom()), oracle(), environment)


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


@pytest.mark.parametrize("page", [LOG, USER, SCRATCH, SCRATCH + PAGE_SIZE, FREE_PAGES])
def test_both_guests_begin_with_the_same_bytes_in_memory(page: int) -> None:
    """A call may take anything for a table, and show what it has read there."""
    fuzzer = Fuzzer.against(VMWARE, oracle(), OFF)
    assert not fuzzer.run([Step(name, 0, (("eax", at),), ()) for name, at in (("SetIDT", page), _SHOW)])
