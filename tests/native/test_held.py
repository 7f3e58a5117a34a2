# SPDX-License-Identifier: GPL-2.0-only
"""What objects held goes back into the same objects."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

from vmi.native.clock import Clock
from vmi.native.held import Held
from vmi.native.stamped import STAMP, Stamped


class Thing:
    """An object of this package, with any attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def method(self) -> None:
        """Something to refer to it by."""


class Told(Stamped):
    """The same, stamped."""

    def __init__(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)

    @property
    def twice(self) -> Any:
        """An attribute that is another's."""
        return self.one * 2

    @twice.setter
    def twice(self, value: Any) -> None:
        self.one = value // 2


class Slotted:
    __slots__ = ("absent", "one")

    def __init__(self) -> None:
        self.one: Any = 1


class Both(Slotted):
    __slots__ = ("two",)


@dataclass(frozen=True)
class Frozen:
    inside: list[int] = field(default_factory=list)


def test_attributes():
    thing = Thing(kept=1, changed=2, gone=3)
    held = Held([thing], ())
    thing.changed, thing.new = 5, 6
    del thing.gone
    held.put_back()
    assert vars(thing) == {"kept": 1, "changed": 2, "gone": 3}
    del thing.gone
    thing.other = 7  # as many as there were
    held.put_back()
    assert vars(thing) == {"kept": 1, "changed": 2, "gone": 3}


def _without_stamp(thing: Stamped) -> dict[str, Any]:
    return {name: value for name, value in vars(thing).items() if name != STAMP}


def test_attributes_of_stamped_objects():
    thing, other = Told(one=1, two=[2]), Told(one=1)
    inside = thing.two
    held = Held([thing, other], ())
    for change in (
        lambda: setattr(thing, "one", 5),
        lambda: setattr(thing, "two", None),
        lambda: setattr(thing, "new", 6),
        lambda: delattr(thing, "one"),
        lambda: setattr(thing, "twice", 8),
        lambda: thing.two.append(3),  # that sets none
    ):
        change()
        assert vars(thing) != {"one": 1, "two": [2], STAMP: vars(thing)[STAMP]}
        held.put_back()
        assert _without_stamp(thing) == {"one": 1, "two": [2]} and thing.two is inside
        assert _without_stamp(other) == {"one": 1}


def test_only_stamped_objects_that_were_set_are_put_back():
    thing, other = Told(one=1), Told(one=1)
    held = Held([thing, other], ())
    vars(thing)["one"] = 2  # not seen, as its documentation says
    vars(other)["one"] = 2
    other.two = 3
    held.put_back()
    assert _without_stamp(thing) == {"one": 2} and _without_stamp(other) == {"one": 1}


def test_several_know_of_each_other_what_they_put_back():
    thing = Told(one=1)
    first = Held([thing], ())
    thing.one = 2
    second = Held([thing], ())
    for held, value in ((first, 1), (second, 2), (second, 2), (first, 1), (first, 1), (second, 2)):
        held.put_back()
        assert thing.one == value
    thing.one = 3
    first.put_back()
    assert thing.one == 1


def test_what_a_read_only_view_shows_is_entered_and_stays():
    inside: list[int] = []
    thing = Thing(view=MappingProxyType({Thing(x=inside): inside}))
    held = Held([thing], ())
    view, thing.view = thing.view, None
    inside.append(1)
    held.put_back()
    assert thing.view is view and inside == []


def test_slots():
    thing, both = Slotted(), Both()
    both.two = [1]
    held = Held([thing, both], ())
    inside = both.two
    both.two.append(2)
    both.one, both.two, thing.absent = 8, 9, 1
    del thing.one
    held.put_back()
    assert thing.one == 1 and not hasattr(thing, "absent")
    assert both.one == 1 and both.two is inside and inside == [1]


def test_containers_stay_the_same_objects():
    made = {
        "list": [1, 2], "dict": {"b": 1, "a": 2}, "set": {1, 2}, "bytearray": bytearray(b"abc"),
        "deque": deque([1, 2, 3], maxlen=3), "Counter": Counter(a=3), "OrderedDict": OrderedDict(z=1, y=2),
    }  # fmt: skip
    thing = Thing(**made)
    texts = {name: repr(value) for name, value in made.items()}
    held = Held([thing], ())
    for _ in range(2):
        made["list"].append(3)
        made["dict"].clear()
        made["set"].discard(1)
        made["bytearray"] += b"def"
        made["deque"].append(4)
        made["Counter"].update("aab")
        made["OrderedDict"].move_to_end("z")
        thing.list = thing.dict = None
        held.put_back()
        assert {name: repr(value) for name, value in made.items()} == texts
        assert all(getattr(thing, name) is value for name, value in made.items())


def test_whatever_leads_there():
    """Tuples, frozen objects, keys, methods, functions with what they close over, and parts of calls."""
    lists: list[list[int]] = [[] for _ in range(9)]
    one, two, three, four, five, six, seven, eight, nine = lists

    holder = Thing(x=six)

    def default(_=holder) -> object:
        return seven, unset

    if not lists:
        unset = 1

    thing = Thing(
        a=((one,),),
        b=Frozen(two),
        c={Thing(x=three): 1},
        d=Thing(x=four).method,
        e=lambda: five,
        f=default,
        g=partial(print, eight, end=nine),
        h=seven.append,
    )
    held = Held([thing], ())
    for each in lists:
        each.append(1)
    held.put_back()
    assert lists == [[]] * 9


def test_circles_and_what_is_shared():
    shared: list[Any] = []
    one, two = Thing(x=shared), Thing(x=shared)
    one.other, two.other = two, one
    shared.append(one)
    held = Held([one], ())
    two.other, two.x = None, [5]
    shared.clear()
    held.put_back()
    assert two.other is one and two.x is shared and shared == [one]


def test_what_is_somebody_elses_is_left_alone():
    theirs, known = SimpleNamespace(x=[1]), Clock()
    thing = Thing(theirs=theirs, clock=known, exempt=Slotted(), set=set())
    held = Held([thing], (Slotted,), (thing.set,))
    thing.set.add(1)
    theirs.x.append(2)
    known.fired = 5
    thing.exempt.one = 2
    thing.theirs = None
    held.put_back()
    assert thing.theirs is theirs and theirs.x == [1, 2]
    assert known.fired == 5  # of another package than what was begun with
    assert thing.exempt.one == 2
    assert thing.set == {1}


def test_packages_are_those_of_what_is_begun_with():
    class Mine(Clock):
        """Derived from a class of the package."""

    clock, other = Mine(), Clock()
    thing = Thing(clock=clock)
    held = Held([thing, other, None, len], ())
    clock.fired = other.fired = 5
    held.put_back()
    assert (clock.fired, other.fired) == (0, 0)
    assert repr(held) == "<Held 5 objects>"
