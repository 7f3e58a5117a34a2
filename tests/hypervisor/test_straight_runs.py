# SPDX-License-Identifier: GPL-2.0-only
"""A de-privileged kernel does the same whether its events go straight to it or by way of the hypervisor."""

from __future__ import annotations

from dataclasses import replace

import pytest

import vmi
from tests.native.accelerator import accelerated
from tests.native.straight_runs import all_asked, counted
from vmi import samples
from vmi.run import run_kernel

pytestmark = accelerated.only


def sample(name: str, mode: str):
    """A sample kernel's whole run, less what it took here."""
    kernel = samples.get(name).path.read_bytes()
    if mode == "paravirt":
        result = run_kernel(vmi.patch(kernel).data, rom=vmi.build_rom("vmware").image)
    else:
        result = run_kernel(kernel, full=mode == "full")
    return replace(result, wall_s=0.0)


@pytest.mark.parametrize("mode", ["native", "paravirt", "full"])
@pytest.mark.parametrize("name", ["sched", "traps", "paging", "interrupts", "hostile"])
def test_samples(name, mode):
    with counted() as straight:
        found = sample(name, mode)
    with all_asked():
        assert sample(name, mode) == found
    assert straight
