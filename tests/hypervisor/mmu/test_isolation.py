# SPDX-License-Identifier: GPL-2.0-only
"""What a guest can't do by its page tables: reach the hypervisor, or make it spend without end."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import ROM_AT
from tests.hypervisor.mmu.footing import (
    ALL,
    DATA,
    FOOTINGS,
    PS,
    ROOT,
    SHADOWS,
    TABLES,
    A,
    D,
    Fault,
    Footing,
    P,
)
from tests.native.guest import CODE3, DATA3, FREE, TSS, USER_STACK, descriptor
from vmi.errors import RomError, UsageError
from vmi.hypervisor.mmu import create
from vmi.hypervisor.mmu.notices import NoNotices
from vmi.hypervisor.mmu.shadow import ShadowMmu
from vmi.native.engine import HIDDEN_SIZE, HIDDEN_START
from vmi.native.machine import Machine, Outcome
from vmi.rom.build import build
from vmi.x86 import Cr4

ONES = 0xFFFFFFFF
TOP = 0xF8000000
everywhere = pytest.mark.parametrize("name", FOOTINGS)
with_shadow = pytest.mark.parametrize("name", SHADOWS)


def shadow(guest: Footing) -> ShadowMmu:
    assert guest.domain is not None and isinstance(guest.domain.mmu, ShadowMmu)
    return guest.domain.mmu


@everywhere
def test_the_hypervisors_memory_is_no_guests(name: str) -> None:
    """Pages of 4 KiB and 2 MiB that name its addresses find nothing there, as natively."""
    guest = Footing(name, wide=True)
    before = bytes(guest.cpu.hidden_memory(0x1000)[1]) if name in SHADOWS else b""
    guest.fill(6, TABLES | ALL)
    for index, at in enumerate((HIDDEN_START, HIDDEN_START + 0x1000, HIDDEN_START + HIDDEN_SIZE - 0x1000)):
        guest.poke(TABLES + 8 * index, at | ALL)
        assert guest.access("write", 0xC00000 + 0x1000 * index, value=0x41414141) == 0x41414141
        assert guest.access("read", 0xC00000 + 0x1000 * index) == ONES
    guest.fill(7, HIDDEN_START | PS | ALL)
    for at in range(0xE00000, 0x1000000, 0x40000):
        assert guest.access("write", at, value=0x41414141) == 0x41414141
        assert guest.access("read", at) == ONES
    if name in SHADOWS:
        now = bytes(guest.cpu.hidden_memory(0x1000)[1])
        assert b"AAAA" not in now and len(now) == len(before)


@everywhere
@pytest.mark.parametrize("frame", [0x400000, 0xFEC00000, 0xFFFFF000, 0xC0000])
def test_tables_where_there_is_no_ram(name: str, frame: int) -> None:
    """They read as all ones, or as the ROM; accessed and dirty bits are not kept there."""
    guest = Footing(name)
    guest.fill(3, frame | ALL)
    oracle = Footing("native")
    oracle.fill(3, frame | ALL)
    for offset in (0, 0x1000, 0x3FF000):
        for kind in ("read", "write"):
            assert guest.access(kind, 0xC00000 + offset) == oracle.access(kind, 0xC00000 + offset)


@everywhere
@pytest.mark.parametrize(
    ("root", "outcome"),
    [(0x400000, Outcome.CRASHED), (0xFFFFF000, Outcome.CRASHED), (TABLES, Outcome.TRIPLE_FAULT)],
    ids=["behind the end of RAM", "at the end of it all", "empty"],
)
def test_a_root_that_maps_nothing_right_ends_the_run(name: str, root: int, outcome: Outcome) -> None:
    """Not in a hang, nor in an error of the host's. Where no RAM is, all pages map the last one."""
    guest = Footing(name)
    guest.cpu.eax = root
    if guest.mode == "paravirt":
        guest.push(guest.labels["cr3_end"])
        guest.cpu.eip = ROM_AT + guest.rom.offset("SetCR3")
    else:
        guest.cpu.eip = guest.labels["do_cr3"]
    assert guest.machine.run(10**6).outcome is outcome


@everywhere
@pytest.mark.parametrize("wide", [False, True], ids=["two levels", "PAE"])
def test_tables_that_name_themselves(name: str, wide: bool) -> None:
    """A directory as its own table, two tables that name each other: seen and changed through themselves."""
    guest = Footing(name, wide=wide)
    directory = ROOT + 0x1000 if wide else ROOT
    index = 511 if wide else 1023
    guest.fill(index, directory | ALL)
    window = (0x3FE00000 | 511 << 12) if wide else 0xFFFFF000
    assert guest.access("read", window) == guest.u32(directory)
    guest.fill(5, TABLES | ALL)
    own = window + guest.width * 5
    assert guest.access("write", own, value=TABLES + 0x1000 | ALL) == TABLES + 0x1000 | ALL
    guest.load("cr3", ROOT)
    guest.poke(TABLES + 0x1000, TABLES | ALL)
    guest.poke(TABLES, TABLES + 0x1000 | ALL)
    base = 5 << (21 if wide else 22)
    assert guest.access("read", base) == guest.u32(TABLES)
    assert guest.u32(TABLES + 0x1000) & A and not guest.u32(TABLES) & A


@everywhere
def test_large_pages_at_the_end_of_ram_and_of_the_address_space(name: str) -> None:
    guest = Footing(name, features=Cr4.PSE)
    guest.fill(3, 0 | PS | ALL)
    assert guest.access("write", 0xFFF000, value=3) == 3, "the last page of RAM"
    assert guest.u32(0x3FF000) == 3
    guest.fill(4, 0x400000 | PS | ALL)
    assert guest.access("read", 0x1000000) == ONES
    guest.fill(1023, 0xFFC00000 | PS | ALL)
    assert guest.access("read", 0xFFFFFFFC) == ONES
    assert guest.u32(ROOT + 4 * 1023) == 0xFFC00000 | PS | ALL | A
    guest.fill(5, 0x600000 | PS | ALL)  # bit 21 is reserved
    found = guest.access("read", 0x1400000)
    assert isinstance(found, Fault) and found.error == 9


@with_shadow
def test_pages_for_tables_are_limited_and_used_again(name: str) -> None:
    guest = Footing(name, features=Cr4.PSE)
    pool = shadow(guest).spaces.pool
    pool.size = 64
    for index in range(1, 1023, 5):
        guest.fill(index, index << 22 | PS | ALL)
    guest.fill(1023, TABLES | ALL)
    guest.poke(TABLES, DATA | ALL)
    for _ in range(2):
        for index in range(1, 1023, 5):
            assert guest.access("read", index << 22) == ONES
            assert guest.access("add", 0xFFC00000, value=1) == 1
            assert 0 < pool.used <= 64
    assert guest.u32(DATA) == 0xDA00B8 + 2 * 205
    assert guest.count("shadow tables dropped") >= 6


@with_shadow
def test_roots_are_limited_as_tables_are(name: str) -> None:
    guest = Footing(name, wide=True)
    pool = shadow(guest).spaces.pool
    pool.size = 64
    guest.plain(ROOT + 0x1000 + 8 * 6, TABLES | ALL)
    guest.plain(TABLES, DATA | ALL)
    for number in range(1, 128):
        top = TABLES + 0x5000 + 32 * number
        guest.plain(top, ROOT + 0x1000 | P)
        guest.load("cr3", top)
        assert guest.access("read", 0xC00000) == 0xDA00B8
        assert pool.used <= 64
    assert guest.count("shadow tables dropped") >= 2


@with_shadow
def test_released_tables_give_their_pages_back(name: str) -> None:
    guest = Footing(name)
    mmu = shadow(guest)
    assert guest.access("read", 0x3000) == guest.u32(0x3000)
    used = mmu.spaces.pool.used
    for index in range(1, 9):
        guest.fill(index, TABLES + 0x1000 * (index - 1) | ALL)
        guest.poke(TABLES + 0x1000 * (index - 1), DATA | ALL)
        assert guest.access("read", index << 22) == 0xDA00B8
    assert mmu.spaces.pool.used == used + 8
    for index in range(8):
        mmu.release((TABLES >> 12) + index)
        mmu.release(0xFFFFF)
    assert mmu.spaces.pool.used == used
    assert guest.access("read", 1 << 22) == 0xDA00B8
    mmu.release(ROOT >> 12)
    mmu.release((ROOT >> 12) + 1)
    assert guest.access("read", 1 << 22) == 0xDA00B8


@pytest.mark.parametrize(
    "words", [[0xFFFFFFFF], [0x80000000], [300], [1, 0xFFFFFFFF], [256] + [0xFFFFFFFC] * 256]
)
def test_a_list_of_updates_that_lies(words: list[int]) -> None:
    """Its length and addresses are the guest's to write: at most as many as it has room for are looked at."""
    guest = Footing("paravirt shadow")
    guest.set_word(108, words[0])
    for index, value in enumerate(words[1:]):
        guest.set_word(256 + 4 * index, value)
    seen: list[int] = []
    mmu = shadow(guest)
    mmu.entry_changed = seen.append  # type: ignore[method-assign]
    assert guest.ask("SetLazyMode", eax=0) is not None
    assert len(seen) <= 256 and len(seen) == min(words[0], 256)
    assert guest.word(108) == 0


@with_shadow
def test_updates_at_any_address_are_taken(name: str) -> None:
    guest = Footing(name)
    for entry in (0, 3, ROOT + 2, TABLES + 0xFFF, 0x400000, 0xC0000000, 0xFFFFFFFF, HIDDEN_START):
        shadow(guest).entry_changed(entry)
    assert guest.access("read", DATA) == 0xDA00B8


@everywhere
def test_a_task_switch_of_user_code(name: str) -> None:
    """A TSS of DPL 3 is entered by the processor itself, which loads CR3 from it."""
    guest = Footing(name)
    copy = TABLES + 0x2000
    guest.plain(copy, guest.u32(ROOT))
    guest.plain(copy + 4 * 9, TABLES | ALL)
    guest.plain(TABLES, DATA | ALL)
    state = bytearray(0x68)
    image = {0x1C: copy, 0x20: guest.labels["task_end"], 0x24: 0x202, 0x38: USER_STACK, 0x4C: CODE3}
    image |= dict.fromkeys((0x48, 0x50, 0x54, 0x58, 0x5C), DATA3)
    for at, value in image.items():
        state[at : at + 4] = value.to_bytes(4, "little")
    guest.memory.write(TSS + 0x100, bytes(state))
    guest.describe(FREE, descriptor(TSS + 0x100, 0x67, 0xE9, 0))
    missing = guest.access("read", 9 << 22, user=True)
    assert isinstance(missing, Fault) and missing.error == 4
    assert not isinstance(guest.do("task", user=True), Fault)
    assert guest.cpu.cpl == 3
    assert guest.access("read", 9 << 22, user=True) == 0xDA00B8
    assert guest.domain is None or guest.domain.mmu.read(3) == copy
    if name in SHADOWS:
        assert guest.cpu.root >= HIDDEN_START


@pytest.mark.parametrize("name", ["paravirt direct", "paravirt shadow"])
@pytest.mark.parametrize("wide", [False, True], ids=["two levels", "PAE"])
def test_what_is_mapped_at_the_hypervisors_addresses_is_not_seen(name: str, wide: bool) -> None:
    """Reads find all ones, stores go nowhere; below, all is as it was."""
    guest = Footing(name, wide=wide, rom=build("vmware", TOP))
    shift = 21 if wide else 22
    if wide:
        guest.plain(ROOT + 24, ROOT + 0x1000 | P)
    index = (TOP >> shift) % (512 if wide else 1024)
    for table, at in ((0, index - 1), (1, index), (2, 511 if wide else 1023)):
        guest.fill(at, TABLES + 0x1000 * table | ALL)
    last = TABLES + guest.width * (511 if wide else 1023)
    guest.poke(last, DATA | ALL)
    guest.poke(TABLES + 0x1000, DATA | ALL)
    guest.load("cr3", ROOT)
    assert guest.access("read", TOP - 0x1000) == 0xDA00B8
    for linear in (TOP, TOP + 0xFFC):
        assert guest.access("read", linear) == ONES
        assert guest.access("write", linear, value=0) == 0
        assert guest.access("read", linear, user=True) == ONES
    assert guest.u32(TABLES + 0x1000) == DATA | ALL | A | D
    assert guest.u32(DATA) == 0xDA00B8 and guest.u32(DATA + 0xFFC) != 0
    missing = guest.access("read", TOP + 0x1000)
    assert isinstance(missing, Fault) and missing.error == 0
    assert guest.domain is not None
    assert guest.domain.mmu.translate(TOP) >= 1 << 32
    assert guest.domain.mmu.translate(TOP - 0x1000) == DATA


@pytest.mark.parametrize("top", [1, 0x1000, 0xEFFFF000, 0xF0000800, 1 << 32])
def test_holes_that_no_guest_can_live_with(top: int) -> None:
    with pytest.raises(RomError) as caught:
        build("vmware", top)
    assert str(caught.value) == (
        f"virtual_top must be 0 or a whole page from 0xf0000000 to 0xfffff000, but it is {top:#x}"
    )


def test_strategies_have_names() -> None:
    with pytest.raises(UsageError) as caught:
        create("nested", Machine(ram=1 << 20), NoNotices(), 0)
    assert str(caught.value) == "the MMU strategy 'nested' is not one of direct, shadow"
