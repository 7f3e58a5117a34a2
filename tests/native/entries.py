# SPDX-License-Identifier: GPL-2.0-only
"""Deliveries the quick and the long way, compared: whatever memory and registers hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.native.guest import (
    CODE0,
    CODE1,
    CODE3,
    CODE16,
    CONFORMING,
    DATA0,
    DATA1,
    DATA3,
    DATA16,
    GDT,
    IDT,
    KERNEL_STACK,
    PAGES,
    STACK,
    TASK,
    TSS,
    Guest,
    descriptor,
    gate,
)
from vmi.native.interrupts import Delivery, Event, Origin, TripleFault
from vmi.native.registers import Segment, TableRegister
from vmi.x86 import Cr0, Seg

HANDLER = 0x10100
_ESP = (STACK, STACK, KERNEL_STACK, 0x8010, 0x8FF8, 0x9008, 0x100004, 0xF0100, 8, 0, 0x1FFFF0, 0x10200)
_SELECTORS = (CODE0, CODE0, CODE3, CONFORMING, CODE1, CODE16, DATA0, DATA1, 0, 4, 0x0F, 0xFFF8, TASK)
_STACKS = (DATA0, DATA0, DATA0, DATA0 | 1, DATA1, DATA3, DATA16, CODE0, 0, DATA0 | 4)
_ACCESS = (0x8E, 0xEE, 0xEE, 0x8F, 0xEF, 0x86, 0x85, 0xE6, 0x0E, 0x00, 0xAE)
_RIGHTS = (0x9A, 0x92, 0xFA, 0xF2, 0x1A, 0x12, 0x9E, 0xBA, 0xB2, 0x9B, 0x93, 0x82, 0x90)
_ENTRIES = (7, 7, 0x67, 0x27, 0x63, 0x61, 0x65, 5, 3, 1, 0)


@dataclass(frozen=True)
class Change:
    """One thing that is another from now on: what, and to what."""

    what: str
    to: tuple[Any, ...]

    def make(self, guest: Guest) -> None:
        """Make the change."""
        globals()[f"_{self.what}"](guest, *self.to)


def _gate(guest: Guest, vector: int, selector: int, access: int, offset: int) -> None:
    guest.memory.write(IDT + 8 * vector, gate(selector, HANDLER + offset, access))


def _segment(guest: Guest, selector: int, base: int, rights: int, flags: int) -> None:
    guest.describe(selector, descriptor(base, 0xFFFFF, rights, flags))


def _task(guest: Guest, esp: int, ss: int) -> None:
    guest.memory.put_u32(TSS + 4, esp)
    guest.memory.put_u32(TSS + 8, ss)


def _registers(guest: Guest, esp: int, eip: int, flags: int, arithmetic: int) -> None:
    guest.cpu.esp, guest.cpu.eip = esp, eip
    guest.cpu.eflags = flags | arithmetic | 2


def _ring(guest: Guest, ring: int, wide: bool, base: int) -> None:
    code, data = ((CODE0, DATA0), (CODE1, DATA1), (CODE3, DATA3))[(0, 1, 3).index(ring)]
    size, dpl = 0xC00000 if wide else 0x800000, ring << 13
    guest.cpu.set_segment(Seg.CS, Segment(code, 0, 0xFFFFFFFF, 0xCF9B00 | dpl))
    guest.cpu.set_segment(Seg.SS, Segment(data, base, 0xFFFFFFFF, size | 0xF9300 | dpl))


def _base(guest: Guest, seg: int, base: int) -> None:
    kept = guest.cpu.segment(Seg(seg))
    guest.cpu.set_segment(Seg(seg), Segment(kept.selector, base, kept.limit, kept.flags))


def _entry(guest: Guest, page: int, rights: int) -> None:
    guest.memory.put_u32(PAGES + 0x1000 + 4 * page, page << 12 | rights)


def _directory(guest: Guest, rights: int) -> None:
    guest.memory.put_u32(PAGES, PAGES + 0x1000 | rights)


def _paging(guest: Guest, on: bool, protects: bool) -> None:
    guest.cpu.set_cr(0, Cr0.PE | (Cr0.PG if on else 0) | (Cr0.WP if protects else 0))


def _tables(guest: Guest, idt: int, limit: int, gdt_limit: int) -> None:
    guest.cpu.idt = TableRegister(IDT + idt, limit)
    guest.cpu.gdt = TableRegister(GDT, gdt_limit)


def _register_of_task(guest: Guest, limit: int, kind: int) -> None:
    guest.cpu.tr = Segment(TASK, TSS, limit, 0x8000 | kind << 8)


def _line_20(guest: Guest, on: bool) -> None:
    guest.cpu.set_a20(on)


def _inside(guest: Guest, running: bool) -> None:
    """Between instructions, or in the middle of one."""
    guest.cpu._running = running
    if running:
        guest.cpu.settle_flags()


def _change(what: str, *to: st.SearchStrategy[Any]) -> st.SearchStrategy[Change]:
    return st.tuples(*to).map(lambda values: Change(what, values))


one_of = st.sampled_from
VECTORS = one_of((0x30, 0x30, 14, 13, 6, 8))
FLAGS = st.lists(one_of((0x200, 0x100, 0x400, 0x4000, 0x10000, 0x20000, 0x40000, 0x3000, 0x200000))).map(
    lambda bits: sum(set(bits))
)
PAGE_NUMBERS = one_of([each >> 12 for each in (IDT, GDT, TSS, STACK - 4, KERNEL_STACK - 4, STACK)])

CHANGES = st.one_of(
    _change("gate", VECTORS, one_of(_SELECTORS), one_of(_ACCESS), one_of((0, 4, 0x10000))),
    _change("segment", one_of((CODE0, DATA0, CONFORMING, CODE1)), one_of((0, 0, 0x10)), one_of(_RIGHTS),
            one_of((0xC, 0xC, 8))),
    _change("task", one_of(_ESP), one_of(_STACKS)),
    _change("registers", one_of(_ESP), one_of((0x10000, 0x10005)), FLAGS, one_of((0, 0x8D5, 0x41))),
    _change("ring", one_of((0, 1, 3, 3)), one_of((True, True, True, False)), one_of((0, 0, 0x10))),
    _change("base", one_of((Seg.ES, Seg.DS)), one_of((0, 0x100))),
    _change("entry", PAGE_NUMBERS, one_of(_ENTRIES)),
    _change("directory", one_of(_ENTRIES)),
    _change("paging", st.booleans(), st.booleans()),
    _change("tables", one_of((0, 0, 4, 2)), one_of((0x7FF, 0x7FF, 0x6F)), one_of((0xFFF, 0xFFF, 0x17, 7))),
    _change("register_of_task", one_of((0x67, 0x67, 7, 0x2B)), one_of((9, 9, 1))),
    _change("line_20", one_of((True, True, False))),
    _change("inside", st.booleans()),
)  # fmt: skip

EVENTS = st.builds(
    Event,
    VECTORS,
    one_of(tuple(Origin)),
    one_of((0, 4, 0xFFFC)),
    one_of((0, 0x12345)),
    one_of((0, 2)),
)

#: What happens to a guest: changes, and then an event.
STEPS = st.lists(st.tuples(st.lists(CHANGES, max_size=3), EVENTS), min_size=2, max_size=6)


def _outcome(guest: Guest, deliver: Any, event: Event) -> tuple[object, ...]:
    try:
        deliver(event)
    except TripleFault:
        return ("triple fault",)
    return bytes(guest.cpu.raw), guest.cpu.told_cr2, bytes(guest.memory.ram)


def prepare(guest: Guest) -> None:
    """Gates for a few vectors, and page tables that map everything."""
    for vector in (0x30, 14, 13, 6, 8):
        _gate(guest, vector, CODE0, 0xEE, 0)
    guest.page()
    guest.cpu.set_cr(0, Cr0.PE)


def compare(
    guest: Guest, delivery: Delivery, event: Event, extra: Any = lambda: None, *, in_c: bool = False
) -> bool:
    """Deliver an event a quick way, and the long way from the same state; True if the first was quick.

    :param extra: what else there is of the state.
    :param in_c: the quick way is the accelerator's, not Python's.
    """
    ram, state, cr2 = bytes(guest.memory.ram), guest.cpu.freeze(), guest.cpu.told_cr2
    ways, straight = delivery.ways, delivery._straight
    enter = ways.enter
    quick: list[object] = []

    def try_quickly(*how: Any) -> object:
        quick.append((straight if in_c else enter)(*how))  # type: ignore[misc]
        return quick[-1]

    delivery._straight = try_quickly if in_c else None  # type: ignore[assignment]
    ways.enter = (lambda *how: False) if in_c else try_quickly  # type: ignore[method-assign,assignment]
    found = _outcome(guest, delivery.deliver, event), extra()
    delivery._straight = None
    ways.enter = lambda *how: False  # type: ignore[method-assign]
    guest.memory.ram[:] = ram
    guest.cpu.thaw(state)
    guest.cpu.told_cr2 = cr2
    wanted = _outcome(guest, delivery.deliver, event), extra()
    ways.enter, delivery._straight = enter, straight  # type: ignore[method-assign]
    assert found == wanted
    return quick in ([True], [1])
