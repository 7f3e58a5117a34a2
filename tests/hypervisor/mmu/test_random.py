# SPDX-License-Identifier: GPL-2.0-only
"""Random page tables and accesses: natively, with direct and with shadow tables a guest finds the same.

A guest that changes an entry in use flushes before it goes on, as processors demand it; what it sees
without a flush may differ and is no part of this.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hypervisor.mmu.footing import (
    DATA,
    DATA_COUNT,
    FOOTINGS,
    NX,
    PS,
    ROOT,
    RW,
    TABLE_COUNT,
    TABLES,
    US,
    A,
    D,
    Fault,
    Footing,
    G,
    P,
)  # fmt: skip
from vmi.memory import PAGE_SIZE
from vmi.native.engine import HIDDEN_START
from vmi.x86 import Cr0, Cr4, GuestFault, Paging, walk

END = DATA + PAGE_SIZE * DATA_COUNT

_frames = st.one_of(
    st.sampled_from([DATA + PAGE_SIZE * n for n in range(DATA_COUNT)]),
    st.sampled_from([ROOT, ROOT + 0x1000, TABLES, 0xC0000, 0x3FF000, 0x400000, 0xFEC00000, 0xFFFFF000]),
)
_tables = st.sampled_from([TABLES + PAGE_SIZE * n for n in range(TABLE_COUNT)])
_bits = st.one_of(
    st.just(P | RW | US),
    st.lists(st.sampled_from([P, P, P, RW, US, A, D, G, 0x200, 0x18]), max_size=7).map(
        lambda bits: sum(set(bits))
    ),
)
_places = st.sampled_from([0, 1, 2, 511, 512, 1023])
_kinds = st.sampled_from(["read", "write", "add", "fetch"])


def _entries(wide: bool) -> st.SearchStrategy[tuple[str, int, int]]:
    """Where, which entry, and its value."""
    high = st.sampled_from([0, 0, 0, NX, 1 << 39, 1 << 52, HIDDEN_START]) if wide else st.just(0)
    leaf = st.tuples(_frames, _bits, high).map(lambda parts: parts[0] | parts[1] | parts[2])
    link = st.tuples(_tables, _bits, high).map(lambda parts: parts[0] | parts[1] | parts[2])
    large = st.tuples(st.sampled_from([0, 0, 0x400000, 0x200000, 0xFE000000, 0x2000]), _bits, high).map(
        lambda parts: parts[0] | parts[1] | parts[2] | PS
    )
    return st.one_of(
        st.tuples(st.just("directory"), _places, st.one_of(link, link, link, large)),
        st.tuples(st.sampled_from([f"table {n}" for n in range(TABLE_COUNT)]), _places, leaf),
        st.tuples(st.just("table 0"), _places, leaf),
        *([st.tuples(st.just("pointers"), st.sampled_from([1, 2, 3]), link)] if wide else []),
    )


def _steps(wide: bool) -> st.SearchStrategy[tuple[object, ...]]:
    address = st.tuples(_places, _places, st.sampled_from([0, 0x10, 0xFFE]), st.integers(0, 3))
    access = st.tuples(st.just("access"), _kinds, address, st.booleans())
    return st.one_of(
        st.tuples(st.just("entry"), _entries(wide), st.sampled_from(["cr3", "cr3", "none"]), st.booleans()),
        access,
        access,
        st.tuples(st.just("protect"), st.booleans()),
        st.tuples(st.just("nx" if wide else "large"), st.booleans()),
        st.tuples(st.just("invlpg"), address),
    )


@cache
def guests(wide: bool) -> tuple[Footing, ...]:
    return tuple(Footing(name, wide=wide) for name in FOOTINGS)


class Run:
    """The same steps on all footings at once."""

    def __init__(self, wide: bool) -> None:
        self.wide = wide
        self.guests = guests(wide)
        for guest in self.guests:
            guest.start_again(Cr4.PGE)
        self.oracle = self.guests[0]
        self.protects, self.nx, self.large = True, False, False

    def same(self, what: object, results: list[object]) -> object:
        found = zip(self.guests, results, strict=True)
        wrong = {guest.name: got for guest, got in found if got != results[0]}
        assert not wrong, f"{what}: natively {results[0]}, but {wrong}"
        return results[0]

    def step(self, what: str, *details: object) -> None:
        getattr(self, f"do_{what}")(*details)

    def linear(self, address: tuple[int, int, int, int]) -> int:
        directory, table, offset, quarter = address
        if self.wide:
            return quarter << 30 | (directory & 511 or 2) << 21 | (table & 511) << 12 | offset
        return (directory or 3) << 22 | table << 12 | offset

    def do_entry(self, entry: tuple[str, int, int], flush: str, plain: bool) -> None:
        where, index, value = entry
        width, count = self.oracle.width, 512 if self.wide else 1024
        if where == "directory":
            at = (ROOT + 0x1000 if self.wide else ROOT) + width * max(index % count, 2 if self.wide else 1)
        elif where == "pointers":
            at = ROOT + width * index
        else:
            at = TABLES + PAGE_SIZE * int(where.split()[1]) + width * (index % count)
        was = self.oracle.memory.u32(at) & P
        for guest in self.guests:
            assert not isinstance((guest.plain if plain else guest.poke)(at, value), Fault)
        if was or flush == "cr3":
            self.reload()

    def reload(self) -> None:
        for guest in self.guests:
            guest.load("cr3", ROOT)

    def do_access(self, kind: str, address: tuple[int, int, int, int], user: bool) -> None:
        linear = self.linear(address)
        if kind == "fetch" and not self.is_code(linear, user):
            return
        found = [guest.access(kind, linear, user=user) for guest in self.guests]
        # where an instruction of the guest lies behind a ROM differs from where it lies without one
        self.same((kind, hex(linear), user), found)
        if kind in ("write", "add"):
            self.reload()  # it may have gone to a table

    def is_code(self, linear: int, user: bool) -> bool:
        """What is fetched there is known, or can't be fetched."""
        if linear & 0xFFF == 0xFFE:
            return False
        paging = Paging(
            Cr0.PG | (Cr0.WP if self.protects else 0), ROOT,
            (Cr4.PAE if self.wide else 0) | (Cr4.PSE if self.large else 0), 1 << 11 if self.nx else 0,
        )  # fmt: skip
        try:
            at = walk(self.oracle.memory, paging, linear, user=user, fetch=True).physical
        except GuestFault:
            return True
        return at in range(DATA, END) and self.oracle.memory.read(at, 1) == b"\xb8"

    def do_invlpg(self, address: tuple[int, int, int, int]) -> None:
        for guest in self.guests:
            guest.load("invlpg", self.linear(address))

    def do_protect(self, on: bool) -> None:
        self.protects = on
        for guest in self.guests:
            guest.load("cr0", Cr0.PE | Cr0.PG | (Cr0.WP if on else 0))

    def do_large(self, on: bool) -> None:
        self.large = on
        for guest in self.guests:
            guest.load("cr4", Cr4.PGE | (Cr4.PSE if on else 0))

    def do_nx(self, on: bool) -> None:
        self.nx = on
        for guest in self.guests:
            guest.no_execute(on)

    def end(self) -> None:
        wanted = self.oracle.memory.ram[ROOT:END].cast("I").tolist()
        for guest in self.guests:
            words = guest.memory.ram[ROOT:END].cast("I").tolist()
            wrong = {
                hex(ROOT + 4 * n): (hex(want), hex(got))
                for n, (want, got) in enumerate(zip(wanted, words, strict=True))
                if want != got
            }
            assert not wrong, (guest.name, wrong)
        self.same("CR2", [guest.load("rdcr2", 0) for guest in self.guests])
        self.same("CR0", [guest.load("rdcr0", 0) for guest in self.guests])
        self.same("CR4", [guest.load("rdcr4", 0) for guest in self.guests])


@pytest.mark.parametrize("wide", [False, True], ids=["two levels", "PAE"])
def test_any_tables_and_accesses(wide: bool) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(_steps(wide), min_size=4, max_size=30))
    def check(steps: list[tuple[object, ...]]) -> None:
        run = Run(wide)
        for step in steps:
            run.step(*step)  # type: ignore[arg-type]
        run.end()

    check()
