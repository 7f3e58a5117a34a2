# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that takes memory from its own end at once: where the segment lies decides whether it runs."""

from __future__ import annotations

import pytest

from tests.patcher import greedy
from vmi.patcher import Options, patch
from vmi.rom.build import build
from vmi.run import Outcome, RunResult, run_kernel


def run(kernel: bytes, rom: str | None = None) -> RunResult:
    return run_kernel(kernel, rom=None if rom is None else build(rom).image, timeout_ns=10**8)


@pytest.mark.parametrize("kludge", [False, True])
@pytest.mark.parametrize("rom", [None, "native", "vmware"])
def test_it_runs_as_the_original_does(rom: str | None, kludge: bool) -> None:
    original = greedy.kernel(kludge=kludge)
    assert run(original).console == greedy.EXPECTED
    done = patch(original)
    assert done.report.strategy == "low-memory"
    result = run(done.data, rom)
    assert (result.console, result.outcome) == (greedy.EXPECTED, Outcome.HALTED)


@pytest.mark.parametrize("rom", [None, "native"])
def test_behind_the_image_it_does_not_run(rom: str | None) -> None:
    result = run(patch(greedy.kernel(), Options(place="after-image")).data, rom)
    assert (result.console, result.outcome) == (b"", Outcome.TRIPLE_FAULT)
