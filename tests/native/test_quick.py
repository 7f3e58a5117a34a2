# SPDX-License-Identifier: GPL-2.0-only
"""Events that go straight to the guest in Python end where the long way ends, and leave the same behind."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings

from tests.native import hostile
from tests.native.entries import STEPS, Change, prepare
from tests.native.guest import CODE, IDT, KERNEL_STACK, STACK, Guest
from tests.native.straight_runs import all_asked, busy, looked_at, stops
from vmi.native.interrupts import Event, Origin
from vmi.native.quick import Quick
from vmi.native.registers import AT_ERROR_CODE, AT_IS_INT, AT_RETURN_ADDRESS
from vmi.x86 import IF_BIT

pytestmark = pytest.mark.usefixtures("plain_cpus")

INT = Event(0x30, Origin.SOFTWARE, length=2)
PAGE_FAULT = Event(14, Origin.EXCEPTION, 2, 0x1234)
BUDGET = 1_000


@pytest.fixture
def went(monkeypatch):
    """Vectors of the events that went this way."""
    found = []
    enter = Quick.enter

    def note(self, vector):
        done = enter(self, vector)
        if done:
            found.append(vector)
        return done

    monkeypatch.setattr(Quick, "enter", note)
    return found


def ready() -> Guest:
    guest = Guest("nop")
    prepare(guest)
    guest.cpu.straight.allow(True)
    Change("inside", (True,)).make(guest)
    return guest


def report(guest, event):
    """As the emulator library does, in the middle of a run."""
    words = guest.cpu.raw.cast("I")
    words[AT_IS_INT], words[AT_ERROR_CODE] = event.origin is Origin.SOFTWARE, event.error
    words[AT_RETURN_ADDRESS] = 1
    words[110] = event.address if event.vector == 14 else 7  # CR2
    counter, budget, _ = guest.cpu.quick_words()
    counter[0], budget[0] = 3, BUDGET
    guest.machine._time[1] = 20_000


def compare(guest: Guest, event: Event) -> bool:
    """Report an event, and deliver it the long way from the same state; True if the first was quick."""
    machine, cpu = guest.machine, guest.cpu
    report(guest, event)
    ram, state, told, idle = bytes(guest.memory.ram), cpu.freeze(), cpu.told_cr2, machine._time[0]
    exits = machine.exits.copy()

    def outcome():
        counter, budget, _ = cpu.quick_words()
        return (
            bytes(cpu.raw), cpu.told_cr2, bytes(guest.memory.ram), dict(machine.exits), machine._time[0],
            counter[0], budget[0],
        )  # fmt: skip

    before = outcome()
    quick = cpu.straight.quick(event.vector)
    found = outcome()
    if not quick:
        assert found == before or found[2] != before[2]  # page tables may have been marked
        return False
    guest.memory.ram[:] = ram
    cpu.thaw(state)
    cpu.told_cr2, machine._time[0] = told, idle
    machine.exits.clear()
    machine.exits.update(exits)
    report(guest, event)
    machine.delivery.ways.enter = lambda *how: False  # type: ignore[method-assign]
    cpu.settle_flags()
    cpu._report(event.vector, event.origin is Origin.SOFTWARE, event.error)
    del machine.delivery.ways.enter
    assert outcome() == found
    return True


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_quick_and_long_way_agree(steps):
    guest = ready()
    for changes, event in steps:
        for change in changes:
            change.make(guest)
        Change("inside", (True,)).make(guest)
        guest.cpu.straight.allow(True)
        compare(guest, event)


@pytest.mark.parametrize("event", [INT, PAGE_FAULT, Event(6, Origin.EXCEPTION)])
@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("paging", [False, True])
def test_the_usual_ways_are_quick(event, ring, paging):
    guest = ready()
    Change("paging", (paging, True)).make(guest)
    Change("ring", (ring, True, 0)).make(guest)
    for _ in range(3):  # found, and then remembered
        assert compare(guest, event)
        Change("ring", (ring, True, 0)).make(guest)
    del guest.machine.delivery  # nor is anybody else asked
    assert guest.cpu.straight.quick(event.vector)


@pytest.mark.parametrize(
    "change",
    [
        Change("gate", (0x30, 0, 0xEE, 0)),
        Change("gate", (0x30, 8, 0xE6, 0)),
        Change("segment", (8, 0, 0x1A, 0xC)),
        Change("task", (KERNEL_STACK, 0)),
        Change("entry", ((KERNEL_STACK - 4) >> 12, 5)),
        Change("entry", (IDT >> 12, 0)),
        Change("tables", (0, 0x6F, 0xFFF)),
        Change("register_of_task", (7, 9)),
        Change("base", (0, 0x100)),
        Change("registers", (STACK, CODE, 0x400, 0)),
    ],
)
def test_what_is_no_more_is_noticed(change):
    guest = ready()
    Change("paging", (True, True)).make(guest)
    Change("ring", (3, True, 0)).make(guest)
    assert compare(guest, INT)
    Change("ring", (3, True, 0)).make(guest)
    change.make(guest)
    assert not compare(guest, INT)


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("before, after", [(0xEE, 0xEF), (0xEF, 0xEE)])
def test_a_gate_of_the_other_kind_is_noticed_at_once(before, after, ring):
    guest = ready()
    for access in (before, after):
        Change("gate", (0x30, 8, access, 0)).make(guest)
        for _ in range(3):
            Change("ring", (ring, True, 0)).make(guest)
            guest.cpu.eflags |= IF_BIT
            quick = compare(guest, INT)
            assert not quick or bool(guest.cpu.eflags & IF_BIT) == (access == 0xEF)
        assert quick


def test_a_frame_at_the_end_of_a_run_ends_it():
    guest = ready()
    report(guest, INT)
    guest.machine._time[1] = 1_030
    assert guest.cpu.straight.quick(0x30)
    counter, budget, _ = guest.cpu.quick_words()
    assert (counter[0], budget[0]) == (3, 3)
    assert not guest.cpu.straight.quick(0x30)  # that instruction is not of this run


@pytest.mark.parametrize("seed", range(4))
def test_many_events(seed, went):
    def make():
        return busy(user=bool(seed & 1))

    found = stops(make, seed, 1_000_000)
    assert len(went) > 300
    with all_asked():
        assert stops(make, seed, 1_000_000) == found


def test_wild_guests(went):
    found = [stops(partial(hostile.make, seed), seed, 60_000) for seed in range(40)]
    assert len(went) > 20
    with all_asked():
        for seed, wanted in enumerate(found):
            assert stops(partial(hostile.make, seed), seed, 60_000) == wanted, seed


@pytest.mark.parametrize("how", ["log", "monitor"])
def test_who_looks_at_events_sees_all(how, went):
    guest = Guest("start: mov ecx,50 | l: int 0x40 | dec ecx | jnz l | hlt | system: iretd", {0x40: "system"})
    seen = looked_at(guest.machine, how)
    guest.machine.run(10_000_000)
    assert went == []
    assert guest.machine.exits["software interrupt"] == 50
    assert len(seen) >= (1 if how == "log" else 50)  # a log counts what repeats


def test_what_somebody_wants_to_see_is_asked_for_anew():
    guest = ready()
    path = guest.cpu.straight
    assert compare(guest, INT)
    assert compare(guest, PAGE_FAULT)
    path.stay_bare(0x30, 1 << 14)
    assert path.quick is None  # until the next run
    path.allow(True)
    assert not compare(guest, INT)
    assert not compare(guest, PAGE_FAULT)
    path.stay_bare(None, 0)
    path.allow(True)
    assert compare(guest, INT)
    guest.cpu.pager = object()
    path.allow(True)
    assert not compare(guest, PAGE_FAULT)
    assert compare(guest, INT)


def test_a_fetch_that_faults_is_left_alone():
    guest = ready()
    assert compare(guest, PAGE_FAULT)
    report(guest, PAGE_FAULT)
    guest.cpu.raw.cast("I")[AT_RETURN_ADDRESS] = 0
    assert not guest.cpu.straight.quick(14)


def test_a_page_of_code_is_not_stored_into():
    guest = ready()
    assert compare(guest, INT)
    guest.cpu.code_pages.add((guest.cpu.esp - 12) >> 12)
    assert not compare(guest, INT)
