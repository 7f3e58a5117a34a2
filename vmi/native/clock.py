# SPDX-License-Identifier: GPL-2.0-only
"""Virtual time: an integer count of nanoseconds since power-on, and the events that wait for it.

The CPU decides how fast time passes; everything else only asks what time it is and what is due
next. No host clock is ever read, so the same input gives the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from vmi.native.bus import State

NS_PER_S = 1_000_000_000

#: Called when an event is due, with the time it was due at (ns), which may be before ``now()``.
Callback = Callable[[int], None]


class Event:
    """A callback waiting for its time. ``at`` is in ns, ``order`` breaks ties: lower runs first."""

    __slots__ = ("_clock", "at", "callback", "order", "waiting")

    def __init__(self, clock: Clock, at: int, order: int, callback: Callback) -> None:
        self._clock = clock
        self.at = at
        self.order = order
        self.callback = callback
        self.waiting = True

    def cancel(self) -> None:
        """Never run it. Harmless when it has run or is cancelled already."""
        if self.waiting:
            self.waiting = False
            self._clock._forget()

    def save(self) -> list[int]:
        """Give what ``Clock.restore`` needs to queue it again at the very same place."""
        return [self.at, self.order]

    def __lt__(self, other: Event) -> bool:
        return (self.at, self.order) < (other.at, other.order)

    def __repr__(self) -> str:
        return f"<Event at {self.at} ns #{self.order}{'' if self.waiting else ' done'}>"


class Clock:
    """Virtual nanoseconds and the queue of events.

    ``now()`` asks the source the machine has set, so it is exact in the middle of a slice of guest
    code; without a source it is the time that ``advance_to`` has reached.
    """

    def __init__(self, source: Callable[[], int] | None = None) -> None:
        self._queue: list[Event] = []
        self._next_order = 0
        self._cancelled = 0
        self._reached = 0
        self.fired = 0  # when the last event was due that has run, ns
        self.now: Callable[[], int] = self._time_reached
        if source is not None:
            self.set_source(source)

    def set_source(self, source: Callable[[], int]) -> None:
        """Make ``source`` answer ``now()``: ns, never running backwards."""
        self.now = source

    def _time_reached(self) -> int:
        return self._reached

    def schedule(self, at_ns: int, callback: Callback) -> Event:
        """Run ``callback(at_ns)`` once time has reached ``at_ns`` (at the next advance if it has)."""
        event = Event(self, at_ns, self._next_order, callback)
        self._next_order += 1
        heappush(self._queue, event)
        return event

    def restore(self, saved: list[int], callback: Callback) -> Event:
        """Queue an event that ``Event.save`` described, in its old place among equals."""
        at, order = saved
        event = Event(self, at, order, callback)
        self._next_order = max(self._next_order, order + 1)
        heappush(self._queue, event)
        return event

    def next_deadline(self) -> int | None:
        """When the earliest waiting event is due (ns), or None."""
        queue = self._queue
        while queue and not queue[0].waiting:
            heappop(queue)
            self._cancelled -= 1
        return queue[0].at if queue else None

    def advance_to(self, ns: int) -> None:
        """Run all events due at or before ``ns``, in order of time and then of scheduling.

        Events may schedule more; those that are due by ``ns`` run too.
        """
        while (due := self.next_deadline()) is not None and due <= ns:
            event = heappop(self._queue)
            event.waiting = False
            self._reached = self.fired = max(self._reached, due)
            event.callback(due)
        self._reached = max(self._reached, ns)

    def _forget(self) -> None:
        # Cancelled events stay in the heap until they surface; a guest that rearms a timer in a
        # loop would fill it, so sweep once they are the majority.
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._queue):
            self._queue = [event for event in self._queue if event.waiting]
            heapify(self._queue)
            self._cancelled = 0

    def save(self) -> State:
        """Give the time reached; the events themselves belong to the devices that wait for them."""
        return {"reached": self._reached, "next_order": self._next_order}

    def load(self, state: State) -> None:
        """Go to a saved time and drop all waiting events; devices loaded next queue theirs again."""
        for event in self._queue:
            event.waiting = False
        self._queue = []
        self._cancelled = 0
        self._reached = state["reached"]
        self._next_order = state["next_order"]
