# SPDX-License-Identifier: GPL-2.0-only
"""Virtual time and its event queue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmi.native.clock import Clock


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(0, 60))
def test_events_run_in_order_of_time_then_of_scheduling(times, until):
    clock, ran = Clock(), []
    for number, at in enumerate(times):
        clock.schedule(at, lambda due, number=number: ran.append((due, number)))
    clock.advance_to(until)
    assert ran == sorted((at, n) for n, at in enumerate(times) if at <= until)
    assert clock.next_deadline() == min((at for at in times if at > until), default=None)
    assert clock.now() == until


def test_event_scheduled_by_an_event_runs_in_the_same_advance_if_due(clock):
    ran = []

    def again(due):
        ran.append(due)
        clock.schedule(due + 10, again)

    clock.schedule(5, again)
    clock.advance_to(30)
    assert ran == [5, 15, 25]
    assert clock.next_deadline() == 35


def test_now_during_an_event_is_its_time_without_a_source(clock):
    seen = []
    clock.schedule(7, lambda due: seen.append((due, clock.now())))
    clock.advance_to(100)
    assert seen == [(7, 7)]


def test_source_answers_now(clock):
    clock.set_source(lambda: 42)
    assert clock.now() == 42


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=300))
def test_cancelled_events_never_run_and_are_forgotten(plan):
    clock, ran = Clock(), []
    events = [
        (clock.schedule(at, lambda due, n=n: ran.append(n)), cancel) for n, (at, cancel) in enumerate(plan)
    ]
    for event, cancel in events:
        if cancel:
            event.cancel()
            event.cancel()  # harmless
    assert clock.next_deadline() == min((at for at, cancel in plan if not cancel), default=None)
    clock.advance_to(20)
    assert sorted(ran) == [n for n, (_, cancel) in enumerate(plan) if not cancel]
    for event, _ in events:
        event.cancel()
    assert clock.next_deadline() is None


def test_rearming_in_a_loop_does_not_fill_the_queue(clock):
    for n in range(10_000):
        clock.schedule(n + 1_000_000, lambda due: None).cancel()
    assert len(clock._queue) < 200


def test_restored_event_keeps_its_place_among_equals():
    old = Clock()
    first, second = old.schedule(5, lambda due: None), old.schedule(5, lambda due: None)
    new, ran = Clock(), []
    new.load(old.save())
    new.restore(second.save(), lambda due: ran.append("second"))
    new.restore(first.save(), lambda due: ran.append("first"))
    new.schedule(5, lambda due: ran.append("third"))
    new.advance_to(5)
    assert ran == ["first", "second", "third"]


def test_load_drops_what_was_waiting(clock):
    ran = []
    event = clock.schedule(5, ran.append)
    clock.load({"reached": 3, "next_order": 9})
    event.cancel()
    clock.advance_to(10)
    assert ran == []
    assert clock.save() == {"reached": 10, "next_order": 9}
