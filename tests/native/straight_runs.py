# SPDX-License-Identifier: GPL-2.0-only
"""Runs compared at many stops: with events that go straight to the guest, and with Python asked each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.native.guest import Guest, pic, timer
from vmi.native import cpu_state
from vmi.native.event_log import EventLog
from vmi.native.machine import Machine, Outcome
from vmi.native.straight import Path

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


#: All that a guest, or somebody beside it, can see of one stop.
Seen = tuple[object, ...]


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many events went straight, one number for each run of the CPU in which some did."""
    found: list[int] = []
    collect = Path.collect

    def note(self, exits):
        if self.parameters.entered:
            found.append(self.parameters.entered)
        collect(self, exits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "collect", note)
        yield found


@contextmanager
def all_asked() -> Iterator[None]:
    """Python sees every event, and delivers it itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "nobody_looks", lambda self: False)
        patch.setattr(Path, "serve", lambda self, enter, **places: _places(self, places))
        yield


def _places(path: Path, places: dict[str, int]) -> None:
    for name, value in places.items():
        setattr(path.parameters, name, value)


def seen(machine: Machine) -> Seen:
    """What there is to see between two runs."""
    cpu = machine.cpu
    return (
        machine.end,
        machine.instructions,
        machine.own_time(),
        dict(machine.exits),
        cpu.told_cr2,
        cpu_state.save(cpu),
        machine.memory.sha256(),
    )


def stops(make: Callable[[], Guest], seed: int, limit_ns: int) -> list[Seen]:
    """What is to be seen of a guest at stops that a seed chooses."""
    random = Random(seed)
    machine = make().machine
    found = []
    while machine.own_time() < limit_ns:
        end = machine.run(random.choice((10, 13, 990, 1_017, random.randrange(1, 9_000), 40_000, limit_ns)))
        found.append(seen(machine))
        if end.outcome is not Outcome.TIMEOUT:
            break
    return found


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
