# SPDX-License-Identifier: GPL-2.0-only
"""Many calls in one run: each leaves what it leaves alone, and every run begins from the same state."""

from __future__ import annotations

import pytest

from vmi.conformance.layout import GDT, IDT, RETURN, SCRATCH, STACK, Paging
from vmi.conformance.machine_subject import MachineSubject
from vmi.conformance.rig import Rig, fill
from vmi.conformance.sequence import usable
from vmi.conformance.subject import End, Environment
from vmi.conformance.walk import COMPARED, MOST_CALLS, Call, Walked, Walker, left
from vmi.rom.build import build

LIMIT_NS = 500_000
ENVIRONMENTS = [Environment(Paging.OFF, "direct"), Environment(Paging.PAE, "shadow")]


class Guest:
    """A walker, and its calls by name."""

    def __init__(self, environment: Environment, *, marks: bool = True) -> None:
        subject = MachineSubject("vmware", build("vmware").image, environment)
        if not marks:
            subject.mark = lambda: None  # type: ignore[method-assign,assignment,return-value]
        calls = [call for examples in usable(environment.paging) for call in examples]
        self.calls: dict[str, Call] = {call.name: call for call in reversed(calls)}
        self.walker = Walker(Rig(subject, environment), calls, LIMIT_NS)

    def make(self, *made: tuple[str, dict[str, int]]) -> Walked:
        """Make calls, with some registers other than the first example has them."""
        records = []
        for index, (name, registers) in enumerate(made):
            call = self.calls[name]
            values = [registers.get(key, value) for key, value in zip(call.keys, call.values, strict=True)]
            records.append(call.record(index, values, call.stack))
        return self.walker.walk(b"".join(records), len(made))


@pytest.fixture(scope="module", params=ENVIRONMENTS, ids=str)
def guest(request: pytest.FixtureRequest) -> Guest:
    """One for each of two environments; whoever uses it leaves nothing behind."""
    return Guest(request.param)


def test_what_calls_leave(guest: Guest) -> None:
    done = guest.make(("SetCR2", {"eax": 0x1234}), ("GetCR2", {}), ("GetGDT", {"eax": SCRATCH + 8}))
    assert (done.stop.end, done.returned, done.events) == (End.DONE, 3, 0)
    assert len(done.left) == 3 * RETURN and left(done.of(1))["eax"] == 0x1234
    assert {key: left(done.of(0))[key] for key in ("ebx", "esi", "edi", "ebp")} == {
        key: fill(0)[key] for key in ("ebx", "esi", "edi", "ebp")
    }
    assert all(left(done.of(index))["popped"] == STACK for index in range(3))
    assert int.from_bytes(guest.walker.read(SCRATCH + 10, 4), "little") == GDT


def test_what_a_call_needs_is_there(guest: Guest) -> None:
    for name, base in (("SetIDT", IDT), ("SetGDT", GDT)):
        done = guest.make(("GetGDT", {}), (name, {}))
        assert done.returned == 2
        assert guest.walker.read(SCRATCH, 6) == b"\xff\x07" + base.to_bytes(4, "little")


def test_stack_arguments(guest: Guest) -> None:
    done = guest.make(("WriteIDTEntry", {}), ("WriteLDTEntry", {}))
    assert done.returned == 2 and done.events == 0
    assert int.from_bytes(guest.walker.read(IDT + 60 * 8, 8), "little") == 0x00008E0000080123


def test_an_event_ends_the_run(guest: Guest) -> None:
    done = guest.make(("GetCR2", {}), ("SetLDT", {"eax": 0x7FFC}), ("GetCR2", {}))
    assert (done.stop.end, done.returned, done.events) == (End.DONE, 1, 1)
    assert guest.walker.event().vector == 13 and len(done.left) == RETURN


def test_each_run_begins_from_the_same_state(guest: Guest) -> None:
    asked = ("GetCR2", {}), ("GetGDT", {"eax": SCRATCH}), ("GetCR3", {}), ("GetInterruptMask", {})
    first, memory = guest.make(*asked), guest.walker.read(*COMPARED[0])
    for name, registers in (
        ("SetCR2", {"eax": 0x1234}),
        ("SetGDT", {"eax": 0xFFFFFFFD}),
        ("SetCR3", {"eax": 0x70000000}),
        ("EnableInterrupts", {}),
        ("INSB", {"edi": SCRATCH + 0x100, "ecx": 16}),
    ):
        guest.make((name, registers))
        assert guest.make(*asked) == first and guest.walker.read(*COMPARED[0]) == memory


def test_as_many_as_there_is_room_for(guest: Guest) -> None:
    done = guest.make(*[("GetCR3", {})] * MOST_CALLS)
    assert done.returned == MOST_CALLS
    shown = [{key: left(done.of(n))[key] for key in ("popped", "eax", "ebx")} for n in range(MOST_CALLS)]
    assert shown == [shown[0]] * MOST_CALLS


def test_a_subject_that_keeps_nothing() -> None:
    """It is begun anew for each run, and all is the same but the time that it takes."""
    asked = ("SetCR2", {"eax": 7}), ("GetCR2", {}), ("INSB", {"ecx": 5})
    without, usual = Guest(ENVIRONMENTS[0], marks=False), Guest(ENVIRONMENTS[0])
    assert without.make(*asked) == without.make(*asked) == usual.make(*asked)
