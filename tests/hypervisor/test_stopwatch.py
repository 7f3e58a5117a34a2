# SPDX-License-Identifier: GPL-2.0-only
"""A stopwatch finds every exit under the reason that counted it, and changes nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmi import build_rom, patch, samples
from vmi.exits import Cause
from vmi.hypervisor.stopwatch import Stopwatch
from vmi.native.machine import Machine
from vmi.run import RunResult, Setup, run

SAMPLE = samples.get("interrupts").path.read_bytes()
MODES = ("native", "paravirt", "full")


def result(mode: str, *, timed: bool) -> RunResult:
    paravirt = mode == "paravirt"
    setup = Setup(
        patch(SAMPLE).data if paravirt else SAMPLE,
        rom=build_rom("vmware").image if paravirt else None,
        full=mode == "full",
    )
    return run(setup, timed=timed)


@pytest.fixture(scope="module", params=MODES)
def timed(request: pytest.FixtureRequest) -> RunResult:
    return result(request.param, timed=True)


def test_run_is_the_same_as_without(timed: RunResult) -> None:
    plain = result(timed.mode, timed=False)
    assert plain.spent == ()
    assert replace(timed, spent=(), wall_s=0.0) == replace(plain, wall_s=0.0)


def test_each_exit_is_measured_under_its_reason(timed: RunResult) -> None:
    measured = {row.reason: row.count for row in timed.spent}
    calls = {
        name.removeprefix("VMI call: "): n for name, n in measured.items() if name.startswith("VMI call")
    }
    others = {name: n for name, n in measured.items() if not name.startswith("VMI call")}
    assert calls == timed.calls
    # a machine that halts by itself does so between two runs of its CPU: nothing is asked of it
    assert others == {name: n for name, n in timed.exits.items() if name not in ("VMI call", "halt")}
    assert set(timed.calls) > {"VMI_Init"} if timed.mode == "paravirt" else not timed.calls


def test_times_are_of_this_run(timed: RunResult) -> None:
    assert sum(row.total for row in timed.spent) < timed.wall_s * 1e9
    for row in timed.spent:
        assert 0 < row.least <= row.mean <= row.most <= row.total
        assert row.deviation >= 0
    assert list(timed.spent) == sorted(timed.spent, key=lambda row: (-row.total, row.reason))
    price = sum(row.count for row in timed.spent if row.cause in (Cause.HYPERCALL, Cause.TRAP))
    assert price == timed.price


def test_exit_within_an_exit_has_its_time_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("vmi.hypervisor.stopwatch.time.perf_counter_ns", lambda: next(clock))
    inner = machine.port_read

    def outer(port: int, size: int, value: int) -> None:
        machine.exits["port write"] += 1
        machine.port_read(port, size)

    monkeypatch.setattr(machine, "port_write", outer)
    stopwatch = Stopwatch(machine)
    assert inner is not machine.port_read
    machine.port_write(0x80, 1, 0)
    rows = {row.reason: (row.count, row.total) for row in stopwatch.spent()}
    assert rows == {"port read": (1, 10), "port write": (1, 20)}


def test_access_that_nothing_counts_has_a_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(machine, "port_read", lambda port, size: 0)
    stopwatch = Stopwatch(machine)
    machine.port_read(0x80, 1)
    assert [row.reason for row in stopwatch.spent()] == ["refused access"]
