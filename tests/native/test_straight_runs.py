# SPDX-License-Identifier: GPL-2.0-only
"""A guest can't tell whether its events go straight to it, nor can anybody who looks at it between runs."""

from __future__ import annotations

from functools import partial

import pytest

from tests.native import hostile
from tests.native.accelerator import accelerated
from tests.native.guest import CODE, Guest
from tests.native.straight_runs import all_asked, busy, counted, looked_at, stops
from vmi.native.event_log import EventLog

pytestmark = accelerated.only


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
