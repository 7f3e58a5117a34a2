# SPDX-License-Identifier: GPL-2.0-only
"""Time that others take from a virtual CPU, alarms beside the timer chip, and the host's clock."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import Lab, call
from tests.hypervisor.test_calls_time import NS_PER_CYCLE, SLACK, alarm, cancel, counters, now, ready, spin
from vmi.abi import Counter
from vmi.hypervisor.timer import VirtualTimer
from vmi.native.cpuid import I686_APIC
from vmi.native.intc import SharedLine
from vmi.native.machine import TSC_HZ
from vmi.native.msr import TSC
from vmi.rom.flavours import vmware


def timer_of(lab: Lab) -> VirtualTimer:
    assert lab.domain is not None
    return lab.domain.timer


def pass_time(lab: Lab, cycles: int) -> None:
    """Virtual time passes in which nothing runs, as when another virtual CPU has its turn."""
    at = lab.machine.clock.now() + cycles * NS_PER_CYCLE
    lab.machine._time[0] += cycles * NS_PER_CYCLE
    lab.machine.clock.advance_to(at)


# -- stolen time -------------------------------------------------------------------------------


def test_time_ready_and_not_run_is_stolen() -> None:
    lab = Lab("start: nop", mode="paravirt")
    timer = timer_of(lab)
    before = counters(lab)
    timer.suspend()
    pass_time(lab, 5000)
    assert timer.count(Counter.STOLEN) == 5000
    timer.resume()
    pass_time(lab, 300)
    real, available, stolen = counters(lab)
    assert stolen == 5000 and 5300 <= real - before[0] <= 5300 + SLACK
    assert 300 <= available - before[1] <= 300 + SLACK


def test_real_is_available_plus_stolen_at_every_moment() -> None:
    lab = Lab("start: nop", mode="paravirt")
    timer = timer_of(lab)
    for turn in range(6):
        for change in (timer.suspend, timer.suspend, timer.resume, timer.resume):
            change()  # twice is as good as once
            pass_time(lab, 1000 * turn + 7)
            values = [timer.count(counter) for counter in Counter]
            assert values[0] == values[1] + values[2]
    assert timer.count(Counter.STOLEN) == 2 * sum(1000 * turn + 7 for turn in range(6))


def test_an_alarm_on_available_time_waits_while_time_is_stolen() -> None:
    lab = ready()
    timer = timer_of(lab)
    alarm(lab, Counter.AVAILABLE, timer.count(Counter.AVAILABLE) + 2000)
    timer.suspend()
    pass_time(lab, 50_000)
    assert timer.alarms and spin(lab, 1) == 0
    timer.resume()
    assert spin(lab, 200) == 0
    assert spin(lab, 3000) == 1 and not timer.alarms


def test_an_alarm_on_real_time_does_not() -> None:
    lab = ready()
    timer = timer_of(lab)
    alarm(lab, Counter.REAL, now(lab) + 2000)
    timer.suspend()
    pass_time(lab, 50_000)
    timer.resume()
    assert not timer.alarms and spin(lab, 5) == 1


def test_a_period_of_available_time_keeps_its_phase_over_stolen_time() -> None:
    lab = ready()
    timer = timer_of(lab)
    start = timer.count(Counter.AVAILABLE)
    alarm(lab, Counter.AVAILABLE, start + 1000, 1000, 0x100)
    for _ in range(5):
        spin(lab, 300)
        timer.suspend()
        pass_time(lab, 12_345)
        timer.resume()
    assert (timer.alarms[Counter.AVAILABLE] - start) % 1000 == 0
    assert lab.u32(0x7000) == (timer.alarms[Counter.AVAILABLE] - start) // 1000 - 1


def test_cancelled_while_suspended() -> None:
    lab = ready()
    timer = timer_of(lab)
    alarm(lab, Counter.AVAILABLE, timer.count(Counter.AVAILABLE) + 100)
    timer.suspend()
    assert timer.cancel(Counter.AVAILABLE) and not timer.cancel(Counter.AVAILABLE)
    timer.resume()
    assert spin(lab, 1000) == 0


# -- counters in the ROM -------------------------------------------------------------------------


def test_counters_are_read_without_a_call_out() -> None:
    lab = Lab("start: nop", mode="paravirt")
    counters(lab)
    call(lab, "GetCycleFrequency")
    assert lab.domain is not None and set(lab.domain.calls) == {"VMI_Init"}


def test_counters_do_not_follow_a_time_stamp_counter_that_the_guest_sets() -> None:
    lab = Lab("start: nop", mode="paravirt", model=I686_APIC)
    before = counters(lab)
    assert call(lab, "WRMSR", ecx=TSC, edx=0x1234, eax=0).returned
    left = call(lab, "RDTSC").registers
    assert left["edx"] == 0x1234
    after = counters(lab)
    assert before[0] <= after[0] <= before[0] + 4 * SLACK and after[2] == 0


def test_counters_go_over_32_bits() -> None:
    lab = Lab("start: nop", mode="paravirt")
    pass_time(lab, (1 << 32) - now(lab) - 5)
    first = counters(lab)
    pass_time(lab, 10_000)
    second = counters(lab)
    assert second[0] >> 32 == 1 and second[0] - first[0] == pytest.approx(10_000, abs=2 * SLACK)


def test_a_guest_that_lies_to_itself_about_time_changes_no_alarm() -> None:
    lab = ready()
    lab.set_word(vmware.REAL, 0x12345678)
    lab.set_word(vmware.STOLEN, 99)
    assert counters(lab)[2] == 99
    alarm(lab, Counter.REAL, now(lab) + 1000)
    assert spin(lab, 3000) == 1


# -- line 0 --------------------------------------------------------------------------------------


class Wire:
    """Counts the edges of a line."""

    def __init__(self) -> None:
        self.level, self.edges = False, 0

    def set(self, level: bool, /) -> None:
        self.edges += level and not self.level
        self.level = level


def test_each_edge_of_a_shared_line_is_one() -> None:
    wire = Wire()
    shared = SharedLine(wire)
    one, other = shared.driver(), shared.driver()
    for driver, level, edges, shown in (
        (one, True, 1, True),
        (one, True, 1, True),
        (other, True, 2, True),  # an edge, though the line is high
        (one, False, 2, True),  # does not take the other's request back
        (one, True, 3, True),
        (other, False, 3, True),
        (one, False, 3, False),
        (other, True, 4, True),
    ):
        driver.set(level)
        assert (wire.edges, wire.level) == (edges, shown)


def test_programming_the_timer_chip_takes_no_alarm_back() -> None:
    """The edge waits in the interrupt controller when the chip's output falls."""
    lab = ready()
    alarm(lab, Counter.REAL, now(lab) + 10)
    pass_time(lab, 20)
    lab.machine.board.ports.write(0x43, 1, 0x30)  # mode 0: low from now on
    lab.machine.board.ports.write(0x40, 1, 0)
    assert spin(lab, 50) == 1


def test_stopping_the_timer_chip_as_clients_do_makes_no_interrupt() -> None:
    lab = ready()
    before = spin(lab, 1)
    lab.machine.board.ports.write(0x43, 1, 0x3A)  # mode 5, never triggered
    ticks = spin(lab, 50)
    assert ticks - before <= 1, "at most the edge that the change of mode makes"
    alarm(lab, Counter.REAL, now(lab) + 100)
    assert spin(lab, 400) == ticks + 1


def test_chip_and_alarm_both_tick() -> None:
    """Ten of each, never at the same moment: none is lost, none comes twice."""
    lab = ready()
    ports = lab.machine.board.ports
    ports.write(0x43, 1, 0x34)
    for byte in (0x00, 0x40):  # 16384 pulses, 13.7 ms
        ports.write(0x40, 1, byte)
    period = TSC_HZ // 100
    alarm(lab, Counter.REAL, now(lab) + period // 2, period, 0x100)
    lab.cpu.eip, lab.cpu.ecx = lab.labels["spin"], 20_000_000
    lab.run(ms=139)
    chip = lab.machine.board.ports.stats()["pit"]["ticks"]
    assert chip == 10 and lab.u32(0x7000) == 1 + chip + 14, "and one edge by the choice of a mode"


# -- the time of day -----------------------------------------------------------------------------


def wall(lab: Lab) -> int:
    left = call(lab, "GetWallclockTime").registers
    return left["edx"] << 32 | left["eax"]


def test_the_host_sets_the_time_of_day() -> None:
    lab = Lab("start: nop", mode="paravirt")
    assert call(lab, "WallclockUpdated").registers["eax"] == 0
    timer_of(lab).wall.set(2_000_000_000 * 10**9)
    assert wall(lab) == pytest.approx(2_000_000_000 * 10**9, abs=100_000)
    assert call(lab, "WallclockUpdated", eax=9).registers["eax"] == 1
    assert call(lab, "WallclockUpdated").registers["eax"] == 0
    pass_time(lab, TSC_HZ)
    assert wall(lab) == pytest.approx(2_000_000_001 * 10**9, abs=200_000)
    assert call(lab, "WallclockUpdated").registers["eax"] == 0, "that time passes is no update"


def test_an_alarm_in_the_past_comes_at_once_and_keeps_its_phase() -> None:
    lab = ready()
    pass_time(lab, 20_000)
    expiry = now(lab) - 10_500
    alarm(lab, Counter.REAL, expiry, 1000, 0x100)
    assert spin(lab, 20) == 1, "the missed ones fall together"
    assert (timer_of(lab).alarms[Counter.REAL] - expiry) % 1000 == 0
    assert timer_of(lab).alarms[Counter.REAL] > now(lab) - 1000


def test_cancelling_says_whether_it_was_armed() -> None:
    lab = ready()
    assert cancel(lab, Counter.REAL) == 0
    alarm(lab, Counter.REAL, now(lab) + 10**6)
    assert cancel(lab, Counter.REAL | 0x10100) == 1 and cancel(lab, Counter.REAL) == 0
    assert [cancel(lab, counter) for counter in (Counter.STOLEN, 3, 0xFF)] == [0, 0, 0]
