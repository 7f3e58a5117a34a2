# SPDX-License-Identifier: GPL-2.0-only
"""Whole kernels under both strategies: what they show, count and leave in memory is the same."""

from __future__ import annotations

import pytest

from vmi import samples
from vmi.patcher import patch
from vmi.rom.build import build
from vmi.run import Outcome, RunResult, run_kernel

LIMIT = 30 * 10**9  # guest time, ns
HIDDEN = {"shadow page fault", "shadow tables dropped", "VMI call"}


def run(name: str, mode: str, mmu: str) -> RunResult:
    image = samples.get(name).path.read_bytes()
    if mode == "full":
        return run_kernel(image, full=True, mmu=mmu, timeout_ns=LIMIT)
    return run_kernel(patch(image).data, rom=build("vmware").image, mmu=mmu, timeout_ns=LIMIT)


@pytest.mark.parametrize("mode", ["paravirt", "full"])
@pytest.mark.parametrize("name", ["hello", "paging", "paging-annotated", "traps", "interrupts"])
def test_kernels_see_no_difference(name: str, mode: str) -> None:
    direct, shadow = run(name, mode, "direct"), run(name, mode, "shadow")
    assert (direct.mmu, shadow.mmu) == ("direct", "shadow")
    assert direct.outcome is Outcome.DEBUG_EXIT
    assert shadow.console == direct.console
    assert (shadow.outcome, shadow.exit_status) == (direct.outcome, direct.exit_status)
    hidden = shadow.exits.get("shadow page fault", 0)
    assert (hidden > 0) == (name in ("paging", "paging-annotated", "traps"))
    if mode == "full":  # behind the ROM there are calls that direct tables don't need, and its words
        assert shadow.ram_sha256 == direct.ram_sha256
        assert shadow.instructions == direct.instructions
        assert shadow.virtual_ns == direct.virtual_ns
    for reason, count in direct.exits.items():
        if reason.startswith("#"):
            assert shadow.exits[reason] == count
