# SPDX-License-Identifier: GPL-2.0-only
"""De-privileged, too, events that are delivered by ways found before end where the long way ends."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hypervisor.lab import Lab
from tests.native.entries import CHANGES, FLAGS, STEPS, Change, compare, prepare
from tests.native.guest import (
    CODE0,
    CODE1,
    CODE3,
    CONFORMING,
    DATA0,
    DATA3,
    DATA16,
    GDT,
    KERNEL_STACK,
    STACK,
    USER_STACK,
)  # fmt: skip
from vmi.native.interrupts import Event, Origin
from vmi.native.registers import Segment
from vmi.rom.flavours import vmware
from vmi.x86 import GuestFault, Seg

INT = Event(0x30, Origin.SOFTWARE, length=2)


def lab(mode: str, mmu: str) -> Lab:
    made = Lab("start: nop", mode=mode, mmu=mmu, taken=False)
    prepare(made)
    made.page()
    made.take()
    return made


def same(made: Lab, event: Event) -> bool:
    assert made.domain is not None
    return compare(made, made.domain._delivery, event, made.domain.rom.save_words)


@pytest.mark.parametrize("mmu", ["direct", "shadow"])
@pytest.mark.parametrize("mode", ["full", "paravirt"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_quick_and_long_way_agree(mode, mmu, steps):
    made = lab(mode, mmu)
    for changes, event in steps:
        for change in changes:
            if change.what not in ("paging", "line_20"):
                change.make(made)
        same(made, event)


def takes_the_usual(made, ring, same):
    """The usual events go to their handlers on ring 1, in the way that ``same`` compares."""
    Change("ring", (ring, True, 0)).make(made)
    for event in (INT, Event(14, Origin.EXCEPTION, 4, 0x5678), Event(0x30, Origin.EXTERNAL)):
        before = made.cpu.freeze()
        assert same(made, event)
        assert made.cpu.segment(1).selector == CODE0 | 1
        made.cpu.thaw(before)


def takes_the_given_stack(same):
    """The stack of UpdateKernelStack counts as long as there is one, in the way that ``same`` compares."""
    made = lab("paravirt", "direct")
    Change("ring", (3, True, 0)).make(made)
    before = made.cpu.freeze()
    for esp in (None, 0x7000, 0x7800, None):
        made.set_word(vmware.KERNEL_SS, 0 if esp is None else DATA0 | vmware.KERNEL_SS_GIVEN)
        made.set_word(vmware.KERNEL_ESP, esp or 0)
        assert same(made, INT)
        assert made.cpu.esp == (esp or KERNEL_STACK) - 20
        made.cpu.thaw(before)


@pytest.mark.parametrize("mmu", ["direct", "shadow"])
@pytest.mark.parametrize("mode", ["full", "paravirt"])
@pytest.mark.parametrize("ring", [1, 3])
def test_the_usual_ways_are_quick(mode, mmu, ring):
    made = lab(mode, mmu)
    takes_the_usual(made, ring, same)


def test_a_stack_that_the_kernel_gave_replaces_the_one_of_its_task():
    takes_the_given_stack(same)


# -- and back -----------------------------------------------------------------------------------

FRAMES = st.tuples(
    st.sampled_from((0x10000, 0x10100)),
    st.sampled_from(
        (CODE3, CODE3, CODE0, CODE0 | 1, CODE1, CONFORMING, CONFORMING | 3, CODE3 | 4, 0, 3, DATA3)
    ),
    FLAGS,
    st.sampled_from((USER_STACK, 0, 0xFFFFFFFF)),
    st.sampled_from((DATA3, DATA3, DATA0, DATA16 | 3, 3, DATA3 | 4)),
)
DATA = st.lists(
    st.tuples(
        st.sampled_from((Seg.ES, Seg.DS, Seg.FS, Seg.GS)),
        st.sampled_from(
            ((DATA3, 0xCFF300), (DATA0, 0xCF9300 | 1 << 13), (CONFORMING, 0xCF9E00), (0, 0), (3, 0))
        ),
    ),
    max_size=3,
)
RETURNS = st.lists(
    st.tuples(st.lists(CHANGES, max_size=2), FRAMES, DATA, st.sampled_from((0, 4)), st.booleans()),
    min_size=2,
    max_size=6,
)


def back(made: Lab, skip: int, *, take_iopl: bool = True) -> bool:
    """IRET as it is done, and the long way from the same state; True if the first was quick."""
    domain, cpu, memory = made.domain, made.cpu, made.memory
    assert domain is not None
    transfers, words = domain.emulator.transfers, domain.rom.save_words()
    state, ram = cpu.freeze(), bytes(memory.ram)
    quick, go, left = [], transfers._returns.go, []
    for way in (lambda *how, **more: quick.append(go(*how, **more)) or quick[-1], lambda *how, **more: False):
        transfers._returns.go = way  # type: ignore[method-assign]
        cpu.thaw(state)
        memory.ram[:] = ram
        domain.rom.load_words(words)
        try:
            transfers.iret(skip=skip, take_iopl=take_iopl)
            fault = ""
        except GuestFault as found:
            fault = f"{found} {found.address:x}"
        left.append((fault, bytes(cpu.raw), bytes(memory.ram), domain.rom.save_words()))
    transfers._returns.go = go  # type: ignore[method-assign]
    assert left[0] == left[1]
    return quick == [True]


@pytest.mark.parametrize("mmu", ["direct", "shadow"])
@pytest.mark.parametrize("mode", ["full", "paravirt"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=RETURNS)
def test_quick_and_long_way_back_agree(mode, mmu, steps):
    made = lab(mode, mmu)
    for changes, frame, data, skip, take_iopl in steps:
        for change in changes:
            if change.what not in ("paging", "line_20"):
                change.make(made)
        for seg, (selector, flags) in data:
            made.cpu.set_segment(seg, Segment(selector, 0, 0xFFFFFFFF if selector > 3 else 0, flags))
        at = made.cpu.segment(Seg.SS).base + made.cpu.esp + skip
        for number, value in enumerate(frame):
            made.memory.put_u32(at + 4 * number & 0xFFFFFFFF, value)
        back(made, skip, take_iopl=take_iopl)


def leaving(mode: str, code: int = CODE3, stack: int = DATA3) -> Lab:
    """In the kernel, with a frame for user code on the stack."""
    made = lab(mode, "direct")
    made.cpu.esp = STACK - 32
    for number, value in enumerate((0x10100, code, 0x202, USER_STACK, stack)):
        made.memory.put_u32(STACK - 32 + 4 * number, value)
    return made


@pytest.mark.parametrize("mode", ["full", "paravirt"])
@pytest.mark.parametrize(("code", "esp"), [(CODE3, USER_STACK), (CODE0, STACK - 20)])
def test_the_usual_ways_back_are_quick(mode, code, esp):
    made = leaving(mode, code)
    assert back(made, 0)
    assert (made.cpu.segment(Seg.CS).selector, made.cpu.esp) == (code | (code != CODE3), esp)


@pytest.mark.parametrize(
    "change",
    [
        Change("segment", (CODE3, 0x10, 0xFA, 0xC)),
        Change("segment", (CODE3, 0, 0x7A, 0xC)),
        Change("segment", (DATA3, 0x10, 0xF2, 0xC)),
        Change("segment", (DATA3, 0, 0xF0, 0xC)),
        Change("tables", (0, 0x7FF, 0x17)),
        Change("entry", (GDT >> 12, 0)),
        Change("entry", ((STACK - 32) >> 12, 0)),
        Change("directory", (0,)),
    ],
    ids=lambda change: f"{change.what}{change.to}",
)
def test_nothing_found_before_counts_on_the_way_back_after_a_change(change):
    made = leaving("full")
    before = made.cpu.freeze()
    assert back(made, 0)
    made.cpu.thaw(before)
    change.make(made)
    back(made, 0)


def test_a_segment_that_is_still_the_kernels_own_is_raised_first():
    made = leaving("full", CODE0)
    Change("segment", (CODE0, 0, 0x9A, 0xC)).make(made)
    before = made.cpu.freeze()
    assert not back(made, 0)
    made.cpu.thaw(before)
    assert back(made, 0)


def test_a_frame_that_reaches_the_next_page_goes_the_long_way():
    made = lab("full", "direct")
    made.cpu.esp = STACK - 16
    for number, value in enumerate((0x10100, CODE3, 0x202, USER_STACK, DATA3)):
        made.memory.put_u32(STACK - 16 + 4 * number, value)
    assert not back(made, 0) and made.cpu.esp == USER_STACK
