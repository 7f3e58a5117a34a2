# SPDX-License-Identifier: GPL-2.0-only
"""The sample kernels can't tell: natively, paravirtualized and fully virtualized they see the same.

That goes for both strategies of managing their memory.
"""

from __future__ import annotations

from functools import cache

import pytest

from vmi import samples
from vmi.patcher import patch
from vmi.rom.build import build
from vmi.run import Outcome, RunResult, run_kernel

LIMIT = 30 * 10**9  # guest time, ns

#: What a guest's own handlers were entered for; these counts must not depend on who runs the guest.
GUEST_VISIBLE = (
    "software interrupt",
    "#DE",
    "#DB",
    "#BR",
    "#UD",
    "#DF",
    "#TS",
    "#NP",
    "#SS",
    "#GP",
    "#PF",
    "#MF",
)

#: Preempted by a timer: where the interrupts fall depends on how long everything takes.
TIMED = {"sched", "sched-annotated", "interrupts"}

#: Patched, option ROM, and who manages memory if there is a hypervisor.
RUNS = {
    "unpatched": (False, None, None),
    "native": (True, None, None),
    "rom": (True, "native", None),
    "paravirt": (True, "vmware", "direct"),
    "paravirt, shadow": (True, "vmware", "shadow"),
    "full": (False, None, "direct"),
    "full, shadow": (False, None, "shadow"),
}


@cache
def patched(name: str) -> bytes:
    return patch(samples.get(name).path.read_bytes()).data


def fresh(name: str, mode: str) -> RunResult:
    is_patched, rom, mmu = RUNS[mode]
    image = patched(name) if is_patched else samples.get(name).path.read_bytes()
    return run_kernel(
        image,
        rom=None if rom is None else build(rom).image,
        full=mmu is not None and rom is None,
        mmu=mmu or "direct",
        timeout_ns=LIMIT,
    )


@cache
def run(name: str, mode: str) -> RunResult:
    return fresh(name, mode)


def oracle(name: str) -> RunResult:
    return run(name, "unpatched")


@pytest.mark.parametrize("name", samples.names())
@pytest.mark.parametrize("mode", RUNS)
def test_every_mode_gives_the_same(name: str, mode: str) -> None:
    sample, result = samples.get(name), run(name, mode)
    assert result.outcome is Outcome.DEBUG_EXIT
    assert result.exit_status == sample.exit_status
    assert result.console.decode().replace("\r\n", "\n") == sample.expected
    if name not in TIMED:
        seen = {event: result.exits.get(event, 0) for event in GUEST_VISIBLE}
        assert seen == {event: oracle(name).exits.get(event, 0) for event in GUEST_VISIBLE}


@pytest.mark.parametrize("mode", ["native", "paravirt", "full"])
def test_runs_are_the_same_to_the_byte(mode: str) -> None:
    first, second = run("sched", mode), fresh("sched", mode)
    assert (first.instructions, first.virtual_ns) == (second.instructions, second.virtual_ns)
    assert (first.console, first.ram_sha256) == (second.console, second.ram_sha256)
    assert (first.exits, first.calls) == (second.exits, second.calls)


@pytest.mark.parametrize("name", samples.names())
def test_paravirt_runs_on_the_hypervisor(name: str) -> None:
    result = run(name, "paravirt")
    assert result.calls["VMI_Init"] == 1
    assert oracle(name).calls == {}


def test_slots_spare_the_traps() -> None:
    """What full virtualization must trap, the ROM answers in the guest."""
    paravirt, full = run("sched", "paravirt"), run("sched", "full")
    for instruction in ("cli", "sti", "iretd", "popfd", "pushfd"):
        trapped = sum(n for reason, n in paravirt.exits.items() if reason.endswith(f": {instruction}"))
        assert trapped == 0, instruction
    assert full.exits["privileged instruction: cli"] > 500
    assert sum(paravirt.exits.values()) < 0.6 * sum(full.exits.values())


def test_both_ways_of_finding_sites_lead_to_the_same_calls() -> None:
    found, annotated = run("sched", "paravirt"), run("sched-annotated", "paravirt")
    assert found.console == annotated.console
    chance = {"pending interrupt"}  # it depends on where the ticks fall
    assert set(found.calls) - chance == set(annotated.calls) - chance
