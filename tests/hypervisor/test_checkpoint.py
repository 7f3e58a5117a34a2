# SPDX-License-Identifier: GPL-2.0-only
"""Checkpoints of machines with a hypervisor: what it knows and has in memory goes back with the guest."""

from __future__ import annotations

import random

import pytest

import vmi
from tests.hypervisor import hostile, hostile_processors
from tests.native.test_checkpoint import prove, whole
from vmi import samples
from vmi.native.machine import Machine
from vmi.run import Setup, prepare

KERNEL = samples.get("workloads").path.read_bytes()


@pytest.fixture(scope="module")
def rom() -> bytes:
    return vmi.build_rom("vmware").image


@pytest.fixture(scope="module")
def patched() -> bytes:
    return vmi.patch(KERNEL).data


def machine_of(setup: Setup) -> Machine:
    return prepare(setup).machine


@pytest.mark.parametrize("mmu", ["direct", "shadow"])
@pytest.mark.parametrize("append", ["forks", "context-switches"])
def test_a_patched_kernel(rom, patched, append, mmu):
    machine = machine_of(Setup(patched, rom=rom, append=append, mmu=mmu, memory=16 << 20))
    start = machine.checkpoint()
    prove(machine, 100_000, 10**6, again=1)
    machine.run(2 * 10**6)
    assert machine.monitor.taken and machine.monitor.calls
    prove(machine, 200_000, 10**6, again=1)
    start.restore()
    assert not machine.monitor.taken and not machine.monitor.calls


@pytest.mark.parametrize("mmu", ["direct", "shadow"])
def test_a_kernel_whose_instructions_are_emulated(mmu):
    """The hypervisor has looked at each block of code before it was executed, and does so again."""
    machine = machine_of(Setup(KERNEL, full=True, append="returns", mmu=mmu, memory=16 << 20))
    prove(machine, 20_000, 10**6, again=1)
    machine.run(10**6)
    prove(machine, 200_000, 10**6, again=1)


def test_several_processors(rom):
    kernel = vmi.patch(samples.get("smp").path.read_bytes()).data
    machine = machine_of(Setup(kernel, rom=rom, cpus=3, memory=16 << 20))
    machine.console.expect(b"started")
    prove(machine, 200_000, 700_000, again=1)


@pytest.mark.parametrize("seed", range(6))
def test_guests_that_mean_harm(seed):
    machine, chance = hostile.make(seed).machine, random.Random(seed)
    if seed % 3:
        machine.run(chance.randrange(50_000))
    prove(machine, *(chance.randrange(1, 50_000) for _ in range(2)), again=1)


@pytest.mark.parametrize("seed", range(4))
def test_processors_that_mean_harm(seed):
    machine, chance = hostile_processors.make(seed).machine, random.Random(seed)
    if seed % 3:
        machine.run(chance.randrange(50_000))
    prove(machine, *(chance.randrange(1, 50_000) for _ in range(2)), again=1)


def test_hidden_memory_that_came_later():
    """It is as good as new when there is none of it in use once more."""
    machine = machine_of(Setup(KERNEL, memory=16 << 20))
    alone = machine.checkpoint()
    _, hidden = machine.cpu.hidden_memory(1 << 20)
    for _ in range(2):
        hidden[5000:5003] = b"xyz"
        alone.restore()
        assert bytes(hidden) == bytes(1 << 20)
    assert machine.monitor is None and whole(machine)["time"] == 0
