# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of a real kernel's boot: at any point of it they make no difference to it, to the byte."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmi.native.machine import End, Machine, Outcome

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

END = 5_500_000_000  # guest time, ns; GNU Mach has panicked by then, as it has nothing to start
PANIC = b"No bootstrap code loaded with the kernel!"
STOPS = 3


@dataclass(frozen=True)
class Outcomes:
    """What can be told of a machine when a run of it is over."""

    end: End
    console: bytes
    ram_sha256: str
    instructions: int
    virtual_ns: int
    exits: dict[str, int]
    devices: object


def booted(kernel: Path) -> Machine:
    machine = Machine()
    machine.load(kernel.read_bytes(), append="console=com0")
    return machine


def finish(machine: Machine) -> Outcomes:
    """Run to the end and look at everything."""
    end = machine.run(END - machine.clock.now())
    return Outcomes(
        end=End(end.outcome, ""),  # the reason names the length of the last run
        console=machine.console.data,
        ram_sha256=machine.memory.sha256(),
        instructions=machine.instructions,
        virtual_ns=machine.clock.now(),
        exits=dict(machine.exits),
        devices=machine.board.save(),
    )


def test_a_boot_with_snapshots_is_the_boot_without(gnumach: Path, tmp_path: Path) -> None:
    """One machine is saved and goes on itself, of the other only its snapshots go on."""
    whole = finish(booted(gnumach))
    assert PANIC in whole.console
    saved, restored = booted(gnumach), booted(gnumach)
    for at in sorted(random.Random(1).sample(range(END), STOPS)):
        for machine, folder in ((saved, tmp_path / "saved"), (restored, tmp_path / "restored")):
            assert machine.run(at - machine.clock.now()).outcome is Outcome.TIMEOUT
            machine.save(folder)
        restored = Machine.restore(tmp_path / "restored")
        manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("saved", "restored")]
        assert manifests[0] == manifests[1]
    assert finish(saved) == whole
    assert finish(restored) == whole
