# SPDX-License-Identifier: GPL-2.0-only
"""A guest can't tell whether its events go straight to it, nor can anybody who looks at it between runs."""

from __future__ import annotations

from functools import partial

import pytest

from tests.native import hostile
from tests.native.accelerator import accelerated
from tests.native.guest import CODE, Guest, pic, timer
from tests.native.straight_runs import all_asked, counted, stops
from vmi.native.event_log import EventLog
from vmi.native.machine import Machine

pytestmark = accelerated.only

TO_USER = "push 0x23 | push 0xa000 | push 0x202 | push 0x1b | mov eax,{l} | push eax | iretd"
BUSY = (
    "{pic} | {timer} | sti | {ring} | l: int 0x40 | mov eax,[{absent}] | add ecx,1 | into | int3 | "
    "rdtsc | add esi,eax | cpuid | rdtsc | int 0x40 | rdtsc | "
    "xor esi,eax | mov eax,ecx | and eax,7 | div al | k: jmp l | "
    "system: iretd | fault: add esp,4 | add dword ptr [esp],5 | iretd | tick: push eax | mov al,0x20 | "
    "out 0x20,al | pop eax | iretd | skip: add dword ptr [esp],2 | iretd"
)
ABSENT = 0x180000
VECTORS = {0x40: "system", 14: "fault", 0x20: "tick", 3: "system", 4: "system", 0: "skip"}


def busy(user: bool = False) -> Guest:
    """System calls, faults and interrupts, over and over, of the kernel or of user code."""
    guest = Guest(
        BUSY.format(pic=pic(), timer=timer(700, 0x34), ring=TO_USER if user else "nop", absent=ABSENT),
        VECTORS,
    )
    for vector, label in VECTORS.items():
        guest.handle(vector, label, access=0xEE)
    guest.page(ABSENT)
    return guest


@pytest.mark.parametrize("seed", range(6))
def test_many_events(seed):
    def make() -> Guest:
        return busy(user=bool(seed & 1))

    with counted() as straight:
        found = stops(make, seed, 3_000_000)
    with all_asked():
        assert stops(make, seed, 3_000_000) == found
    assert sum(straight) > 1000


def test_wild_guests():
    with counted() as straight:
        found = [stops(partial(hostile.make, seed), seed, 60_000) for seed in range(40)]
    with all_asked():
        for seed, wanted in enumerate(found):
            assert stops(partial(hostile.make, seed), seed, 60_000) == wanted, seed
    assert len(straight) > 20


def looked_at(machine: Machine, how: str) -> list[object]:
    """Have somebody look at events; gives where they are written to."""
    seen: list[object] = []
    if how == "log":
        machine.log = EventLog(
            frozenset(("exceptions",)), seen.append, machine.own_time, lambda: (8, machine.cpu.eip)
        )
    else:
        monitor = type("Seer", (), {})()
        monitor.event = seen.append
        monitor.call_out = lambda vector: False
        monitor.deliver = machine.delivery.deliver
        monitor.accepts_interrupts = monitor.retry_after = lambda: 0
        monitor.interrupt_waits = seen.append
        machine.monitor = monitor
    return seen


@pytest.mark.parametrize("how", ["log", "monitor"])
def test_who_looks_at_events_sees_all(how):
    guest = Guest("start: mov ecx,50 | l: int 0x40 | dec ecx | jnz l | hlt | system: iretd", {0x40: "system"})
    seen = looked_at(guest.machine, how)
    with counted() as straight:
        guest.machine.run(10_000_000)
    assert not straight
    assert guest.machine.exits["software interrupt"] == 50
    assert len(seen) >= (1 if how == "log" else 50)  # a log counts what repeats


def test_others_are_unaffected():
    """One machine that is looked at, beside one that is not."""
    first, second = busy(), busy()
    first.machine.log = EventLog(frozenset(), print, first.machine.own_time, lambda: (8, CODE))
    with counted() as straight:
        first.machine.run(300_000)
        assert not straight
        second.machine.run(300_000)
        assert straight
    assert first.machine.exits == second.machine.exits
    assert first.memory.sha256() == second.memory.sha256()
