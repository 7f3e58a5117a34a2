# SPDX-License-Identifier: GPL-2.0-only
"""Calls that C serves leave what Python's handlers would, and only where nobody else needs to see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.hypervisor.lab import ROM_AT, Lab, exit_value
from tests.hypervisor.test_processors import two
from tests.native.accelerator import accelerated
from tests.native.guest import DATA0, DONE, FREE, MS, PAGES, descriptor
from tests.native.straight_runs import all_asked, seen
from vmi import abi
from vmi.hypervisor.calls import HANDLERS, load_all
from vmi.hypervisor.passing import SERVED
from vmi.hypervisor.stopwatch import Stopwatch
from vmi.native.event_log import EventLog
from vmi.native.machine import Outcome
from vmi.rom import layout
from vmi.rom.flavours import vmware
from vmi.x86 import Cr4

pytestmark = accelerated.only

VA, FIRST, SECOND = 0x180000, 0x181000, 0x182000
ENTRY = PAGES + 0x1000 + 4 * (VA >> 12)
OTHER = PAGES + 0x8000  # a second address space: the page is SECOND there
BASE = 0xFFFF0000  # of a data segment
READ = f"add esi, ss:[{VA}] | rol esi, 1"
GLOBAL = 0x100


def does(name: str, value: int) -> str:
    """A call with an argument in EAX, and a look at what is mapped after it."""
    return f"mov eax, {value} | call {name} | {READ}"


def maps(frame: int, flags: int = 7) -> str:
    """Another page, and a look at what is mapped still."""
    return f"mov dword ptr ss:[{ENTRY}], {frame | flags} | {READ}"


def joined(*parts: str) -> str:
    return " | ".join(parts)


# what makes up a turn of the guest's loop
TURNS = {
    "SetCR3": joined(does("SetCR3", OTHER), does("SetCR3", PAGES)),
    "odd values": joined(
        *(
            f"{does('SetCR3', value)} | call GetCR3 | add esi, eax"
            for value in (PAGES | 0x18, PAGES | 0xFE7, OTHER | 5, PAGES)
        )
    ),
    "InvalPage": joined(
        maps(SECOND), does("InvalPage", VA + 0x123), maps(FIRST), does("InvalPage", 0xFFFFF000),
        does("InvalPage", VA),
    ),
    "a data segment that begins elsewhere": joined(
        f"mov ax, {FREE} | mov ds, ax", maps(SECOND), does("InvalPage", VA),
        does("InvalPage", VA - BASE & 0xFFFFFFFF), maps(FIRST), f"mov ax, {DATA0} | mov ds, ax",
        does("InvalPage", VA),
    ),
    **{
        f"FlushTLB {flags}": joined(
            maps(SECOND, GLOBAL | 7), does("FlushTLB", flags), maps(FIRST), does("FlushTLB", 3)
        )
        for flags in (0, 1, 2, 3, 0x80000000)
    },
}  # fmt: skip


def guest(turn: str, *, turns: int = 12, mmu: str = "direct") -> Lab:
    """A guest that does something some times, with two address spaces to do it in."""
    source = f"start: mov ebp, {turns} | again: {turn} | dec ebp | jnz again | {DONE}"
    made = Lab(source, mode="paravirt", mmu=mmu, taken=False)
    made.page()
    made.describe(FREE, descriptor(BASE, 0xFFFFF, 0x92))
    for frame, value in ((FIRST, 0x11111111), (SECOND, 0x2345), (VA, 0x33)):
        made.memory.put_u32(frame, value)
    made.memory.put_u32(ENTRY, FIRST | 7)
    made.memory.write(OTHER, made.memory.read(PAGES, 0x2000))
    made.memory.put_u32(OTHER, OTHER + 0x1000 | 7)
    made.memory.put_u32(OTHER + ENTRY - PAGES, SECOND | 7)
    made.cpu.set_cr(4, Cr4.PGE)
    made.take()
    return made


@contextmanager
def asked() -> Iterator[list[str]]:
    """The calls that come to Python's handlers, by name, one after the other."""
    found: list[str] = []
    handlers = load_all()
    with pytest.MonkeyPatch.context() as patch:
        for name in SERVED.values():
            number = abi.BY_NAME[name].number
            handler = handlers[number]

            def noted(call, name=name, handler=handler):
                found.append(name)
                handler(call)

            patch.setitem(HANDLERS, number, noted)
        yield found


def history(make, seed: int):
    """All that is to be seen of a guest at stops that a seed chooses, and its calls."""
    random, made = Random(seed), make()
    found = []
    for _ in range(400):
        end = made.machine.run(random.choice((10, 30, 990, 1_010, random.randrange(1, 4_000), 40_000)))
        found.append((seen(made.machine), dict(made.domain.calls), made.domain.rom.save_words()))
        if end.outcome is not Outcome.TIMEOUT:
            return found
    raise AssertionError(made.machine.end)


@pytest.mark.parametrize("what", TURNS)
def test_they_are_the_handlers_calls(what):
    for seed in range(3):
        with asked() as few:
            found = history(lambda: guest(TURNS[what]), seed)
        with asked() as calls, all_asked():
            wanted = history(lambda: guest(TURNS[what]), seed)
        assert len(few) < len(calls) / 3  # those that a run ends with
        for got, expected in zip(found, wanted, strict=True):
            assert got == expected
        end, counts, _ = found[-1]
        assert end[0].outcome is Outcome.DEBUG_EXIT
        assert counts == {"VMI_Init": 1} | {name: calls.count(name) for name in set(calls)}


@pytest.mark.parametrize("what", ["SetCR3", "InvalPage", "FlushTLB 1"])
def test_who_wants_to_see_them_does(what):
    """A log, a stopwatch, and page tables that are not the processor's own."""

    def run(*, mmu="direct", log=False, watch=False):
        made = guest(TURNS[what], mmu=mmu)
        stopwatch = Stopwatch(made.machine, made.domain) if watch else None
        if log:
            made.machine.log = EventLog(
                frozenset({"refusals"}), lambda _: None, made.machine.own_time, lambda: (0, 0)
            )
        with asked() as calls:
            assert exit_value(made) == 1
        if stopwatch is not None:
            timed = {row.reason: row.count for row in stopwatch.spent()}
            assert all(timed[f"VMI call: {name}"] == calls.count(name) for name in set(calls))
        return calls, made.domain.calls, made.machine.instructions, made.machine.own_time(), made.cpu.esi

    none, *usual = run()
    assert not none
    for how in ({"log": True}, {"watch": True}):
        calls, *found = run(**how)
        assert calls and found == usual
    calls, _, *found = run(mmu="shadow")
    assert len(calls) >= 12 and found[-1] == usual[-1]


def test_a_table_nowhere_ends_both_alike():
    """Any value is taken, and the next fetch that has to look it up is the last."""
    turn = does("SetCR3", 0xFFC00000)
    found = history(lambda: guest(turn), 1)
    with all_asked():
        assert history(lambda: guest(turn), 1) == found
    end, counts, _ = found[-1]
    assert end[0].outcome is not Outcome.DEBUG_EXIT and counts["SetCR3"] == 1


@pytest.mark.parametrize("start", ["gate", "user"])
def test_an_interrupt_of_that_number_is_none_of_them(start):
    """Neither from a copy of a gate, nor of user code that jumps to one."""
    source = f"start: int {vmware.GATE_INTERRUPT:#x}\nfault: {DONE}"
    made = Lab(source, {13: "fault"}, mode="paravirt")
    made.cpu.eax = 0x123000
    if start == "user":
        made.user("start", 0x202)
        made.cpu.eip = ROM_AT + layout.gate_offset(abi.BY_NAME["SetCR3"].number)
    before = made.cpu.cr(3)
    assert exit_value(made) == 1
    assert made.cpu.cr(3) == before and "SetCR3" not in made.domain.calls


def test_each_processor_has_its_own():
    """Several processors, whose words the hypervisor exchanges: what GetCR3 shows is each one's."""
    turn = "mov eax, {0}\ncall SetCR3\ncall GetCR3\nadd esi, eax\nmov eax, 0x5000\ncall InvalPage"
    work = "mov ebp, 40\nl{0}: " + turn + "\npause\ndec ebp\njnz l{0}\n"
    source = (
        f"start: call start1\n{work.format(PAGES)}\nmov [0x7000], esi\n"
        f"wait: pause\ncmp dword ptr [0x7008], 0\nje wait\n{DONE}\n"
        f"start1: mov dword ptr [0xfee00310], 0x1000000\nmov dword ptr [0xfee00300], 0x4500\n"
        f"mov dword ptr [0xfee00300], 0x4612\nret\n"
        f"other: {work.format(OTHER)}\nmov [0x7004], esi\ninc dword ptr [0x7008]\nhalt: jmp halt"
    )

    def run():
        made = two(source)
        end = made.machine.run(100 * MS)
        assert end.outcome is Outcome.DEBUG_EXIT, end
        return seen(made.machine), made.domain.calls, made.u32(0x7000), made.u32(0x7004)

    with asked() as few:
        found = run()
    assert len(few) < 20
    with all_asked():
        assert run() == found
    _, counts, first, second = found
    assert counts["SetCR3"] == counts["InvalPage"] == 80
    assert (first, second) == (40 * PAGES, 40 * OTHER)
