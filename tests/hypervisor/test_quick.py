# SPDX-License-Identifier: GPL-2.0-only
"""Without the accelerator: a de-privileged kernel does the same whether its call-outs go straight or not."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import Lab
from tests.hypervisor.test_straight_runs import sample
from tests.native.guest import CODE
from tests.native.straight_runs import all_asked
from vmi import abi
from vmi.hypervisor.domain import Domain
from vmi.hypervisor.gates import Gates
from vmi.native import accelerator
from vmi.native.quick import Quick
from vmi.native.registers import AT_IS_INT

CALL = "GetWallclockTime"


@pytest.fixture(autouse=True)
def plain_cpus(monkeypatch):
    state = accelerator._State()
    state.looked = True
    monkeypatch.setattr(accelerator, "_state", state)


@pytest.fixture
def went(monkeypatch):
    """Which way events went straight, one name for each."""
    found = []

    def spy(kind):
        enter = kind.enter

        def note(self, vector):
            done = enter(self, vector)
            if done:
                found.append(kind.__name__)
            return done

        monkeypatch.setattr(kind, "enter", note)

    spy(Gates)
    spy(Quick)
    return found


@pytest.mark.parametrize(("mode", "ways"), [("native", {"Quick"}), ("paravirt", {"Gates"}), ("full", set())])
@pytest.mark.parametrize("name", ["interrupts", "paging"])
def test_samples(name, mode, ways, went):
    found = sample(name, mode)
    assert set(went) == ways
    with all_asked():
        assert sample(name, mode) == found


class Asked:
    """A kernel at a gate of the ROM, as the CPU emulator reports the INT in it."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(Domain, "_call", lambda domain, call: self.calls.append(call.name))
        self.lab = Lab("nop", mode="paravirt")
        self.lab.page()
        self.cpu = self.lab.cpu
        self.eip = self.cpu.eip = self.lab.domain.rom.gate_address(abi.BY_NAME[CALL]) + 2
        self.cpu.straight.allow(True)

    def report(self, vector=None, is_int=True, budget=1_000):
        """Whether that went straight."""
        self.cpu.raw.cast("I")[AT_IS_INT] = is_int
        counter, allowed, _ = self.cpu.quick_words()
        counter[0], allowed[0] = 3, budget
        self.lab.machine._time[1] = 1 << 30
        vector = self.lab.domain.rom.interrupt if vector is None else vector
        return self.cpu.straight.quick(vector)


def test_a_gate_goes_straight_to_its_call(monkeypatch):
    asked = Asked(monkeypatch)
    before = asked.lab.machine._time[0]
    assert asked.report()
    assert asked.report()
    assert asked.calls == [CALL, CALL]
    assert asked.lab.machine._time[0] - before == 2_000
    assert asked.cpu.eip == asked.eip


@pytest.mark.parametrize("how", ["vector", "fault", "ring", "elsewhere", "end", "page", "absent"])
def test_all_else_does_not(how, monkeypatch):
    asked = Asked(monkeypatch)
    assert asked.report()
    given = {}
    if how == "vector":
        given["vector"] = 0x80
    elif how == "fault":
        given["is_int"] = False
    elif how == "end":
        given["budget"] = 3
    elif how == "ring":
        asked.cpu.hflags |= 3
    elif how == "elsewhere":
        asked.cpu.eip = CODE + 2
    else:  # another page is where the ROM's was, or none
        table = 0x20000 + 0x1000
        asked.lab.memory.put_u32(table + 4 * (asked.eip >> 12), 0x30007 if how == "page" else 0)
    assert not asked.report(**given)
    assert asked.calls == [CALL]


def test_somebody_who_looks_sees_them(monkeypatch):
    asked = Asked(monkeypatch)
    asked.cpu.straight.allow(False)
    assert asked.cpu.straight.quick is None
    asked.cpu.straight.allow(True)
    asked.lab.domain._activate(False)  # of processors, one that is not de-privileged
    assert asked.cpu.straight.quick is None
