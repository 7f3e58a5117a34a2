# SPDX-License-Identifier: GPL-2.0-only
"""Every seeded bug about events and activation is found by the cases that are about it."""

from __future__ import annotations

import importlib

import pytest

from tests.conformance.event_mutants import EVENT_MUTANTS, Replaced
from tests.conformance.mutants import MUTANTS, Mutant
from tests.conformance.test_mutants import results, seed
from vmi.conformance import patched
from vmi.conformance.verdict import Verdict
from vmi.patcher import activation, activation_multiboot
from vmi.rom.build import build

FOUND = {Verdict.FAIL, Verdict.CRASH, Verdict.TIMEOUT}


def forget() -> None:
    """Kernels are patched anew."""
    for made in (patched.patched, patched.image):
        made.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def elf_library() -> None:
    """Loaded here once; the patcher would have a process load it for each kernel that it patches."""
    importlib.import_module("lief")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patched kernel has five times as long as a good one takes; lost ones run up to that."""
    monkeypatch.setattr(patched, "_LIMIT_NS", 4_000_000)


@pytest.mark.parametrize("mutant", EVENT_MUTANTS, ids=str)
def test_a_seeded_bug_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = mutant.wrong if isinstance(mutant, Replaced) else ()
    patches = any(owner in (activation, activation_multiboot) for owner, _, _ in replaced)
    if patches:
        forget()
    else:
        patched.image()  # by the patcher as it is
    for owner, name, wrong in replaced:
        monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    seed(mutant, monkeypatch)
    try:
        if patches:
            forget()
        verdicts = {result.verdict for result in results(mutant.rom(), mutant)}
        assert verdicts & FOUND, f"nobody has noticed: {verdicts}"
    finally:
        if patches:
            forget()


def test_without_them_the_cases_are_good() -> None:
    for environment in sorted({mutant.environment for mutant in EVENT_MUTANTS}, key=str):
        names = {
            name for mutant in EVENT_MUTANTS if mutant.environment == environment for name in mutant.cases
        }
        probe = Mutant("none", tuple(sorted(names)), environment=environment)
        good = {result.case.name: result.verdict.good for result in results(build("vmware").image, probe)}
        assert all(good.values()), [name for name, well in good.items() if not well]


def test_names_are_their_own() -> None:
    names = [mutant.name for mutant in (*MUTANTS, *EVENT_MUTANTS)]
    assert len(set(names)) == len(names) and len(EVENT_MUTANTS) >= 40
