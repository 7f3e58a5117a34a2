# SPDX-License-Identifier: GPL-2.0-only
"""The processor's corners, de-privileged: what QEMU has judged on the bare machine is the same on ring 1.

Every case of the machine's own tests that stays in protected mode, and more that only matter here. User code
starts with interrupts on, as it has them behind a hypervisor in any case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.e2e.qemu import needs_qemu
from tests.hypervisor import corner_cases
from tests.hypervisor.footings import FOOTINGS, Footing, as_known, natively, run_on, with_ring_0
from tests.hypervisor.test_fast_calls import WITH_SEP
from tests.native import (
    test_cpu_debug,
    test_cpu_gates,
    test_cpu_modes,
    test_cpu_ports,
    test_cpu_sysenter,
)
from tests.native.corners import CODE0, CODE16, DATA0, FAST, FREE, Case, Event, Seen, differences
from vmi.native.cpuid import CpuModel
from vmi.native.machine import DEFAULT_MODEL
from vmi.x86 import IF_BIT

KERNEL = (CODE0, DATA0, CODE16, FAST, FAST + 8, FREE, 0xC, 0x14)

# What is known to be different, and why.
NULL_TASK = "xor eax,eax | ltr ax"  # #GP by the manual; the CPU core takes it
USER_FLAGS = "the real IOPL is 0, and user code that reads its flags sees that"
DIFFERENT = {
    "gates": {
        NULL_TASK: "#GP by the manual; the CPU core takes it",
        "ring 3, IOPL 3: push 0x247cd7 | popfd | pushfd | pop eax": USER_FLAGS,
        "ring 3, IOPL 3: mov eax,0x1000 | lsl esi,eax | pushfd | pop edi": USER_FLAGS,
    },
    "modes": {
        "to virtual 8086 mode from ring 3": "it is not for ring 3; the CPU core lets it in, IOPL and all",
    },
    "debug": {
        "mov eax,0xfc00 | mov dr7,eax | mov ebx,dr7 | xor eax,eax | mov dr7,eax | mov ecx,dr7": "DR7.GD",
        "mov eax,0x2000 | mov dr7,eax | mov ebx,dr0": "DR7.GD, which the CPU core doesn't have",
        "mov eax,0x2000 | mov dr7,eax | mov dr0,ebx": "DR7.GD",
    },
    "sysenter": {
        **{f"from {n:#x}": "the manual asks for a selector; the CPU core for any number" for n in (1, 2, 3)},
        "out with 0xf0": "no instruction; the CPU core takes it",
    },
}
# Calls leave the arithmetic flags as they like; and 16-bit frames have the ring in half a word.
DIFFERENT_BEHIND_A_ROM = {
    "gates": {f"pushfd | push {cs} | push 0 | iretd" for cs in (0, 16)},
    "debug": {"breakpoint, behind sti"},
}
# Code that the guest copies has no breakpoints of the site table; the last two read CS, which a client knows.
COPIED = {"push eax | push ax | push 0x11 | mov ebx,esp | pushfd | pushf | mov ecx,esp"}
COPIED_UNKNOWN = {"16 bits by IRET", "16 bits by RETF"}
DIFFERENT_FOR_A_CLIENT = {
    "modes": {"gate of 16 bits"},
    "debug": {"breakpoint, load"},
    "sysenter": {"to 0x4", "to 0x6c", "to 0xffff"},
    "own": {"arpl"},
}


def _prepared(cases: Iterable[Case]) -> list[Case]:
    chosen = [case for case in cases if "cr0" not in case.low]
    return [replace(case, flags=case.flags | IF_BIT) for case in chosen]


CASES = {
    "gates": test_cpu_gates._cases,
    "modes": test_cpu_modes._cases,
    "ports": test_cpu_ports._cases,
    "debug": test_cpu_debug._cases,
    "sysenter": test_cpu_sysenter._cases,
    "own": corner_cases.cases,
}


@cache
def _native(name: str) -> list[Seen]:
    return natively(_cases(name), _model(name))


@cache
def _cases(name: str) -> list[Case]:
    return _prepared(CASES[name]())


def _model(name: str) -> CpuModel:
    return WITH_SEP if name == "sysenter" else DEFAULT_MODEL


def _events(seen: Seen, footing: Footing) -> list[Event]:
    events = as_known(seen)
    return [with_ring_0(event, KERNEL) for event in events] if footing.client else events


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("footing", FOOTINGS, ids=str)
def test_as_on_the_bare_machine(footing: Footing, name: str) -> None:
    cases = _cases(name)
    pairs = zip(cases, _native(name), run_on(footing, cases, _model(name)), strict=True)
    found = {case.name for case, a, b in pairs if _events(a, footing) != _events(b, footing)}
    known = set(DIFFERENT.get(name, ()))
    if footing.rom:
        known |= DIFFERENT_BEHIND_A_ROM.get(name, set())
        if name == "modes":
            known |= COPIED if footing.client else COPIED | COPIED_UNKNOWN
    if footing.client:
        known |= DIFFERENT_FOR_A_CLIENT.get(name, set())
    assert found == known


@pytest.mark.e2e
@needs_qemu
def test_cases_of_our_own_are_as_under_qemu(tmp_path: Path) -> None:
    assert differences(tmp_path, corner_cases.cases()) == []
