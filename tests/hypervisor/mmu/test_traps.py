# SPDX-License-Identifier: GPL-2.0-only
"""What kernels of the interface's time do with their page tables, however odd: it works on every footing.

Each is something that a hypervisor with page tables of its own is tempted to get wrong.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.hypervisor.mmu.footing import (
    ALL,
    DATA,
    FOOTINGS,
    HYPERVISORS,
    PS,
    ROOT,
    RW,
    TABLES,
    US,
    A,
    D,
    Fault,
    Footing,
    P,
)  # fmt: skip
from vmi.abi import LazyMode, PageFlag, UpdateFlag
from vmi.rom.flavours import vmware
from vmi.x86 import Cr4

ONES = 0xFFFFFFFF
PARAVIRT = ("paravirt direct", "paravirt shadow")
VA = 0x00C00000  # entry 3 of a root of two levels, 6 of PAE's first directory
TABLE_2, TABLE_3 = TABLES + 0x2000, TABLES + 0x3000
everywhere = pytest.mark.parametrize("name", FOOTINGS)
behind_the_rom = pytest.mark.parametrize("name", PARAVIRT)
both_forms = pytest.mark.parametrize("wide", [False, True], ids=["two levels", "PAE"])


def page(number: int) -> int:
    """What a page of data begins with."""
    return 0xDA00B8 | number << 8


def mapped(name: str, *, wide: bool = False, rights: int = ALL) -> Footing:
    """A guest with a table for VA, whose first entry maps the first page of data."""
    guest = Footing(name, wide=wide)
    guest.fill(VA >> (21 if wide else 22), TABLES | ALL)
    guest.poke(TABLES, DATA | rights)
    return guest


@everywhere
@both_forms
def test_entries_changed_natively_and_never_reported(name: str, wide: bool) -> None:
    """Accessed bits cleared, write protection, and a whole address space torn down, by plain stores."""
    guest = mapped(name, wide=wide)
    assert guest.access("write", VA, value=page(0)) == page(0)
    assert guest.u32(TABLES) == DATA | ALL | A | D
    guest.plain(TABLES, DATA | ALL | D)
    guest.load("invlpg", VA)
    assert guest.access("read", VA) == page(0)
    assert guest.u32(TABLES) == DATA | ALL | A | D, "a cleared accessed bit comes back"
    guest.plain(TABLES, DATA | P | US)
    guest.load("invlpg", VA)
    refused = guest.access("write", VA, user=True)
    assert isinstance(refused, Fault) and (refused.error, refused.address) == (7, VA)
    guest.plain(TABLES, 0)
    guest.load("cr3", ROOT)
    gone = guest.access("read", VA)
    assert isinstance(gone, Fault) and (gone.error, gone.address) == (0, VA)


@everywhere
@both_forms
def test_a_directory_entry_changed_before_a_flush_and_used_in_between(name: str, wide: bool) -> None:
    """What was cached of the old table goes at the flush, though the new one has been seen before it."""
    guest = mapped(name, wide=wide)
    far = (512 if not wide else 256) * guest.width  # in the other half of what the entry maps
    for table, number in ((TABLES, 0), (TABLE_2, 1)):
        for at in (0, guest.width, far):
            guest.plain(table + at, DATA + 0x1000 * number | ALL)
    linear = VA + far // guest.width * 0x1000
    assert guest.access("read", linear) == guest.access("read", VA) == page(0)
    entry = ROOT + 0x1000 + 8 * (VA >> 21) if wide else ROOT + 4 * (VA >> 22)
    guest.plain(entry, TABLE_2 | ALL)
    assert guest.access("read", VA + 0x1000) == page(1), "never used before, so nothing can be cached"
    guest.load("cr3", ROOT)
    assert guest.access("read", linear) == guest.access("read", VA) == page(1)


@behind_the_rom
def test_a_live_root_that_is_announced_as_zeroed(name: str) -> None:
    guest = mapped(name)
    assert guest.access("read", VA) == page(0)
    before = bytes(guest.memory.ram[ROOT : ROOT + 0x2000])
    guest.ask("AllocatePage", 0, 0, eax=ROOT >> 12, edx=PageFlag.PD | PageFlag.ZEROED, ecx=0)
    assert bytes(guest.memory.ram[ROOT : ROOT + 0x2000]) == before
    assert guest.access("read", VA) == page(0)
    guest.load("cr3", ROOT)
    assert guest.access("read", VA) == page(0)


@behind_the_rom
def test_a_copy_of_a_root_holds_its_entries_already(name: str) -> None:
    """CLONE: the guest has copied, and the hypervisor does not copy over it."""
    guest = mapped(name)
    copy = TABLES + 0x4000
    for index in (0, VA >> 22):
        guest.plain(copy + 4 * index, guest.u32(ROOT + 4 * index))
    flags = PageFlag.PD | PageFlag.ZEROED | PageFlag.CLONE
    guest.ask("AllocatePage", VA >> 22, 1, eax=copy >> 12, edx=flags, ecx=ROOT >> 12)
    guest.load("cr3", copy)
    assert guest.access("read", VA) == page(0)
    guest.plain(copy + 4 * (VA >> 22), TABLE_2 | ALL)  # it is a copy, so the original stays
    guest.poke(TABLE_2, DATA + 0x1000 | ALL)
    guest.load("cr3", copy)
    assert guest.access("read", VA) == page(1)
    guest.load("cr3", ROOT)
    assert guest.access("read", VA) == page(0)


@behind_the_rom
@both_forms
@pytest.mark.parametrize("level", [UpdateFlag.PT, UpdateFlag.PD, UpdateFlag.PDP])
def test_the_level_in_the_flags_is_a_hint(name: str, wide: bool, level: int) -> None:
    guest = mapped(name, wide=wide)
    assert guest.access("read", VA) == page(0)
    entry = ROOT + 0x1000 + 8 * (VA >> 21) if wide else ROOT + 4 * (VA >> 22)
    guest.poke(TABLE_2, DATA + 0x2000 | ALL)
    if wide:
        guest.ask("SetPxELong", level, eax=TABLE_2 | ALL, edx=0, ecx=entry)
    else:
        guest.ask("SetPxE", eax=TABLE_2 | ALL, edx=entry, ecx=level)
    guest.ask("InvalPage", eax=VA)
    assert guest.access("read", VA) == page(2)


@behind_the_rom
@both_forms
@pytest.mark.parametrize("mode", LazyMode)
def test_an_update_is_in_memory_at_once_in_any_mode(name: str, wide: bool, mode: LazyMode) -> None:
    guest = mapped(name, wide=wide)
    guest.ask("SetLazyMode", eax=mode)
    guest.poke(TABLES + guest.width, DATA + 0x3000 | ALL | (7 << 32 if wide else 0))
    assert guest.u32(TABLES + guest.width) == DATA + 0x3000 | ALL
    if wide:
        assert guest.u32(TABLES + 12) == 7
    guest.poke(TABLES + guest.width, DATA + 0x3000 | ALL)
    assert guest.access("read", VA + 0x1000) == page(3), "and a fault of its own is not the guest's"
    guest.ask("SetLazyMode", eax=LazyMode.NONE)
    assert guest.access("read", VA + 0x1000) == page(3)


@behind_the_rom
def test_the_address_in_the_flags_is_for_the_current_space_only(name: str) -> None:
    """Without CURRENT_AS the flags' upper bits are anything, and another space's tables may be meant."""
    guest = mapped(name)
    assert guest.access("read", VA) == page(0)
    guest.poke(TABLE_3, DATA + 0x4000 | ALL)
    guest.ask("SetPxE", eax=DATA + 0x5000 | ALL, edx=TABLE_3 + 4, ecx=VA | UpdateFlag.PT)
    guest.ask("SetPxE", eax=0, edx=TABLE_3, ecx=VA | UpdateFlag.PT | UpdateFlag.DEFER)
    assert guest.access("read", VA) == page(0)
    guest.fill(VA >> 22, TABLE_3 | ALL)
    guest.load("cr3", ROOT)
    assert guest.access("read", VA + 0x1000) == page(5)
    assert isinstance(guest.access("read", VA), Fault)


@everywhere
def test_a_live_root_of_two_levels_becomes_the_top_of_pae(name: str) -> None:
    """Its first entries are overwritten and CR3 is loaded while paging is on; CR4.PAE is set only then."""
    guest = Footing(name)
    high = 0xC0000000
    guest.fill(high >> 22, guest.u32(ROOT))
    # the kernel runs there: what the root's first entries mean is nothing to it any more
    guest.kernel = {seg: replace(segment, base=high) for seg, segment in guest.kernel.items()}
    assert guest.access("read", DATA) == page(0)
    directory = TABLES + 0x4000
    for half in range(2):
        table = TABLES + 0x1000 * half
        guest.plain(directory + 8 * half, table | ALL)
        for index in range(512):
            guest.memory.put_u32(table + 8 * index, half << 21 | index << 12 | ALL)
    for at, value in ((ROOT, directory | P), (ROOT + 4, 0), (ROOT + 24, directory | P), (ROOT + 28, 0)):
        assert not isinstance(guest.plain(at, value), Fault)
    assert guest.access("read", DATA + 0x1000) == page(1)
    guest.load("cr3", ROOT)
    assert guest.access("read", DATA + 0x2000) == page(2)
    guest.load("cr4", Cr4.PAE)
    assert guest.access("read", DATA + 0x3000) == page(3)
    assert guest.u32(TABLES + 8 * (DATA >> 12) + 24) & A


@everywhere
@both_forms
def test_a_large_page_is_split_by_its_directory_entry(name: str, wide: bool) -> None:
    guest = Footing(name, wide=wide, features=Cr4.PSE | Cr4.PGE)
    index = VA >> (21 if wide else 22)
    guest.fill(index, PS | ALL)
    assert guest.access("read", VA + DATA) == page(0)
    assert guest.access("write", VA + DATA + 0x10, user=True) == 0x5EED
    entry = (ROOT + 0x1000 if wide else ROOT) + guest.width * index
    assert guest.u32(entry) == PS | ALL | A | D
    for number in range(8):
        guest.poke(TABLES + guest.width * (DATA // 0x1000 % (512 if wide else 1024) + number), DATA | ALL)
    guest.poke(entry, TABLES | ALL)  # by whatever call and level: here as an entry of a page table
    guest.load("invlpg", VA + DATA + 0x1000)
    assert guest.access("read", VA + DATA + 0x1000) == page(0)
    guest.load("cr3", ROOT)
    assert guest.access("read", VA + DATA + 0x7000) == page(0)
    assert isinstance(guest.access("read", VA), Fault)


@behind_the_rom
def test_a_top_of_pae_that_was_never_announced_and_shares_its_page(name: str) -> None:
    guest = mapped(name, wide=True)
    for number in (1, 3):
        top = TABLES + 0x5000 + 32 * number
        guest.ask("SetPxELong", UpdateFlag.PDP, eax=ROOT + 0x1000 | P, edx=0, ecx=top)
        guest.ask("SetPxELong", UpdateFlag.PDP, eax=ROOT + 0x1000 | P, edx=0, ecx=top + 8 * number)
        guest.load("cr3", top)
        assert guest.access("read", VA) == page(0)
        assert guest.access("read", (number << 30) + VA) == page(0)
        other = 4 - number
        assert isinstance(guest.access("read", (other << 30) + VA), Fault)
        assert guest.load("rdcr3", 0) == top, "its low bits are kept"


@behind_the_rom
@both_forms
def test_a_table_is_released_in_lazy_mode_with_updates_waiting(name: str, wide: bool) -> None:
    guest = mapped(name, wide=wide)
    pae = PageFlag.PAE if wide else 0
    guest.ask("AllocatePage", 0, 0, eax=TABLES >> 12, edx=PageFlag.PT | pae, ecx=0)
    assert guest.access("read", VA) == page(0)
    guest.ask("SetLazyMode", eax=LazyMode.MMU)
    guest.poke(TABLES, 0)
    guest.fill(VA >> (21 if wide else 22), 0)
    guest.ask("ReleasePage", eax=TABLES >> 12, edx=PageFlag.PT | pae)
    guest.ask("SetLazyMode", eax=LazyMode.NONE)
    guest.ask("FlushTLB", eax=3)
    gone = guest.access("read", VA)
    assert isinstance(gone, Fault) and gone.error == 0
    guest.plain(TABLES, DATA | ALL)  # ordinary memory now
    assert isinstance(guest.access("read", VA), Fault)


@pytest.mark.parametrize("slot", range(4))
def test_a_linear_slot_says_where_entries_are(slot: int) -> None:
    """Whatever the guest's own tables say of their addresses; a second call replaces the first."""
    guest = mapped("paravirt shadow")
    assert guest.access("read", VA) == page(0)
    mmu = guest.domain.mmu  # type: ignore[union-attr]
    guest.ask("SetLinearMapping", 0x300, eax=slot, edx=0xD0000000, ecx=1)
    guest.ask("SetLinearMapping", (TABLES >> 12) - 1, eax=slot, edx=0xD0000000, ecx=2)
    guest.memory.put_u32(TABLES, DATA + 0x1000 | ALL | A)  # to be seen only by who is told of it
    for elsewhere in (0xD0000000, 0xD0002000, 0xCFFFFFFC):
        mmu.entry_changed(elsewhere)
        assert guest.access("read", VA) == page(0)
    mmu.entry_changed(0xD0001000)
    assert guest.access("read", VA) == page(1)


@behind_the_rom
def test_linear_slots_leave_no_rom_and_are_never_trusted(name: str) -> None:
    guest = mapped(name)
    calls = dict(guest.domain.calls)  # type: ignore[union-attr]
    for slot, linear, pages in ((0, 0xC0000000, 0x38000), (4, 0, 1), (ONES, 0, 1), (3, ONES, ONES)):
        guest.ask("SetLinearMapping", ONES, eax=slot, edx=linear, ecx=pages)
        for entry in (0, linear, 0xC0000004, ONES):
            guest.domain.mmu.entry_changed(entry)  # type: ignore[union-attr]
    assert guest.domain.rom.linear_maps() == [  # type: ignore[union-attr]
        (0xC0000000, 0x38000, ONES), (0, 0, 0), (0, 0, 0), (ONES, ONES, ONES),
    ]  # fmt: skip
    assert guest.domain.calls == calls  # type: ignore[union-attr]
    assert guest.access("read", VA) == page(0)


def test_no_update_leaves_the_rom_with_direct_tables() -> None:
    guest = mapped("paravirt direct")
    calls = dict(guest.domain.calls)  # type: ignore[union-attr]
    guest.ask("SetLazyMode", eax=LazyMode.MMU)
    for index in range(600):
        guest.poke(TABLES + 4 * index, DATA | ALL)
        guest.ask("UpdatePxE", eax=TABLES + 4 * index, edx=UpdateFlag.PT)
    guest.ask("AllocatePage", 0, 0, eax=TABLES >> 12, edx=1, ecx=0)
    guest.ask("ReleasePage", eax=TABLES >> 12, edx=1)
    guest.ask("SetLazyMode", eax=LazyMode.NONE)
    assert guest.domain.calls == calls  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        (0, {}),
        (1, {"SetLazyMode": 1}),
        (256, {"SetLazyMode": 1}),
        (257, {"SetPxE": 1}),  # which found the list full, and left none behind
        (600, {"SetLazyMode": 1, "SetPxE": 2}),
    ],
)
def test_a_lazy_batch_is_one_call_out_with_shadow_tables(updates: int, expected: dict[str, int]) -> None:
    guest = mapped("paravirt shadow")
    guest.ask("SetLazyMode", eax=LazyMode.NONE)
    before = dict(guest.domain.calls)  # type: ignore[union-attr]
    guest.ask("SetLazyMode", eax=LazyMode.MMU)
    for index in range(updates):
        guest.poke(TABLES + 4 * index, DATA | ALL)
    guest.ask("SetLazyMode", eax=LazyMode.NONE)
    made = {name: n - before.get(name, 0) for name, n in guest.domain.calls.items()}  # type: ignore[union-attr]
    assert {name: n for name, n in made.items() if n} == expected
    assert guest.word(vmware.QUEUED) == 0


FLUSHES = {
    "the end of a mode": lambda guest: guest.ask("SetLazyMode", eax=LazyMode.NONE),
    "another mode": lambda guest: guest.ask("SetLazyMode", eax=LazyMode.CPU),
    "InvalPage": lambda guest: guest.ask("InvalPage", eax=0x12345000),
    "FlushTLB": lambda guest: guest.ask("FlushTLB", eax=1),
    "SetCR3": lambda guest: guest.load("cr3", ROOT),
    "AllocatePage": lambda guest: guest.ask("AllocatePage", 0, 0, eax=0x300, edx=1, ecx=0),
    "ReleasePage": lambda guest: guest.ask("ReleasePage", eax=0x300, edx=1),
    "a page fault": lambda guest: guest.access("read", 0x3FF00000),
}


@pytest.mark.parametrize("how", FLUSHES)
def test_where_queued_updates_come_into_force(how: str) -> None:
    guest = mapped("paravirt shadow")
    assert guest.access("read", VA) == page(0)
    guest.ask("SetLazyMode", eax=LazyMode.MMU)
    guest.poke(TABLES, DATA + 0x1000 | ALL | A)
    assert guest.word(vmware.QUEUED) == 1
    FLUSHES[how](guest)
    assert guest.word(vmware.QUEUED) == 0
    assert guest.access("read", VA) == page(1)


@pytest.mark.parametrize("name", HYPERVISORS)
def test_frames_are_the_machines_own(name: str) -> None:
    guest = Footing(name)
    if name.startswith("paravirt"):
        for frame in (0, 0x140, 0x3FF, 0x400, 0xFFFFF):
            for call_name in ("MachineToPhysical", "PhysicalToMachine"):
                assert guest.ask(call_name, eax=frame) == frame
    assert guest.access("write", DATA + 0x20, value=77) == 77
    assert guest.u32(DATA + 0x20) == 77


@pytest.mark.parametrize("name", HYPERVISORS)
def test_a_machine_frame_is_where_devices_find_a_page(name: str) -> None:
    """Both ways: what a device stores there the guest sees, and finds the frame again that it asked for."""
    guest = mapped(name)
    frame = DATA >> 12
    if name.startswith("paravirt"):
        machine = guest.ask("PhysicalToMachine", eax=frame)
        assert guest.ask("MachineToPhysical", eax=machine) == frame
        frame = machine
    assert guest.access("read", VA + 8) == page(0)
    guest.machine.store_memory((frame << 12) + 8, (0xDEADBEEF).to_bytes(4, "little"))
    assert guest.access("read", VA + 8) == 0xDEADBEEF
    assert guest.access("write", VA + 12, value=0x12345678) == 0x12345678
    assert guest.machine.load_memory((frame << 12) + 12, 4) == (0x12345678).to_bytes(4, "little")


@everywhere
def test_rights_and_faults_in_order(name: str) -> None:
    """Addresses, error codes and CR2 of faults are those of the guest's tables, in their order."""
    guest = mapped(name, rights=P | RW)
    seen = []
    for kind, linear, user in (
        ("read", VA, True), ("write", VA + 0x1000, False), ("write", VA + 0x1000, True), ("read", VA, False),
        ("fetch", VA + 8, True), ("add", VA + 0xFFE, False), ("write", VA, False),
        ("read", 0xFFFFF000, False),
    ):  # fmt: skip
        found = guest.access(kind, linear, user=user)
        seen.append((found.error, found.address) if isinstance(found, Fault) else None)
        assert not isinstance(found, Fault) or guest.load("rdcr2", 0) == found.address
    assert seen == [
        (5, VA), (2, VA + 0x1000), (6, VA + 0x1000), None, (5, VA + 8), (0, VA + 0x1000), None,
        (0, 0xFFFFF000),
    ]  # fmt: skip
