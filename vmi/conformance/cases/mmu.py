# SPDX-License-Identifier: GPL-2.0-only
"""Translation as the guest's tables say it: rights, aliases, accessed and dirty bits, large pages."""

from __future__ import annotations

from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.examples import EXAMPLES, Example
from vmi.conformance.layout import (
    FREE_PAGES,
    PAGE_TABLES,
    RAM,
    USER,
    USER_STACK,
    WORDS,
    Paging,
    control,
    entry_address,
)
from vmi.conformance.rig import Rig, Unfit
from vmi.memory import PAGE_SIZE
from vmi.x86 import Cr0

_PF = 14
_RESERVED = 8  # of an error code
_P, _RW, _US, _A, _D, _PS, _G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
_LOAD, _STORE = b"\x8b\x03", b"\x89\x03"
_FIRST, _SECOND, _THIRD = (FREE_PAGES + n * PAGE_SIZE for n in range(3))
_WINDOW = FREE_PAGES + 4 * PAGE_SIZE
_TABLE = FREE_PAGES + 8 * PAGE_SIZE
_ELSEWHERE = 0x20000000  # linear, where nothing is mapped
_ELSEWHERE_TOO = 0x2A000000  # nor is anything where one bit of it is another
_TWO = frozenset({Paging.TWO_LEVEL, Paging.PSE})


def _wide(rig: Rig) -> bool:
    return rig.environment.paging is Paging.PAE


def _directory(rig: Rig, linear: int) -> int:
    """Address of the page-directory entry of a linear address in the first GiB."""
    if _wide(rig):
        return PAGE_TABLES + PAGE_SIZE + 8 * (linear >> 21)
    return PAGE_TABLES + 4 * (linear >> 22)


def _fill(rig: Rig) -> int:
    for number, page in enumerate((_FIRST, _SECOND, _THIRD), 1):
        rig.put(page, number)
    return entry_address(rig.environment.paging, _WINDOW)


def _flush(rig: Rig) -> None:
    rig.value("FlushTLB", eax=3)


def _map_elsewhere(rig: Rig, upper: int, lower: int) -> None:
    """Map the first free page elsewhere, with these rights in directory and table."""
    size = 8 if _wide(rig) else 4
    rig.write(_TABLE, bytes(PAGE_SIZE))
    rig.put(_TABLE, _FIRST | lower)
    rig.put(_TABLE + size, _SECOND | lower)
    rig.put(_directory(rig, _ELSEWHERE), _TABLE | upper)
    _flush(rig)


def _kernel(rig: Rig, routine: str, address: int) -> list[tuple[int, int]]:
    rig.resume_at("done")
    done = rig.go(routine, ebx=address, eax=1)
    rig.put(WORDS["RESUME"], 0)
    return done.faults


def _user(rig: Rig, code: bytes, address: int) -> list[tuple[int, int]]:
    rig.resume_at("leave_user")
    done = rig.user(code, ebx=address, eax=1)
    rig.put(WORDS["RESUME"], 0)
    return done.faults


@case("Mmu", "rights of both levels", 1, paging=PAGED)
def rights(rig: Rig, found: Findings) -> None:
    """A right holds only where directory and table both give it."""
    _fill(rig)
    for upper in (_P, _P | _RW, _P | _US, _P | _RW | _US):
        for lower in (_P, _P | _RW, _P | _US, _P | _RW | _US):
            _map_elsewhere(rig, upper, lower)
            both = upper & lower
            what = f"with {upper:#x} and {lower:#x}"
            user, write = bool(both & _US), bool(both & _RW)
            found.equal(f"faults of a load of user code {what}", _user(rig, _LOAD, _ELSEWHERE),
                        [] if user else [(_PF, 5)])  # fmt: skip
            found.equal(f"faults of a store of user code {what}", _user(rig, _STORE, _ELSEWHERE),
                        [] if user and write else [(_PF, 7)])  # fmt: skip
            found.equal(f"faults of a store of the kernel {what}", _kernel(rig, "store", _ELSEWHERE),
                        [] if write else [(_PF, 3)])  # fmt: skip


@case("Mmu", "without WP", 2, paging=PAGED)
def without_wp(rig: Rig, found: Findings) -> None:
    """With WP clear the kernel stores to read-only pages, and user code still does not."""
    _fill(rig)
    _map_elsewhere(rig, _P | _RW | _US, _P | _US)
    rig.value("SetCR0", eax=control(rig.environment.paging)["CR0"] & ~Cr0.WP)
    found.equal("faults of a store of the kernel", _kernel(rig, "store", _ELSEWHERE), [])
    found.equal("faults of a store of user code", _user(rig, _STORE, _ELSEWHERE), [(_PF, 7)])


@case("Mmu", "table not present", 3, paging=PAGED)
def no_table(rig: Rig, found: Findings) -> None:
    """What a directory entry that is not present has in its other bits means nothing."""
    _fill(rig)
    _map_elsewhere(rig, _RW | _US, _P | _RW | _US)
    found.equal("faults of a load", _kernel(rig, "load", _ELSEWHERE), [(_PF, 0)])
    rig.put(_directory(rig, _ELSEWHERE), _TABLE | _P | _RW)
    found.equal("a load once it is present", rig.go("load", ebx=_ELSEWHERE).registers["eax"], 1)


@case("Mmu", "made present", 4, paging=PAGED)
def made_present(rig: Rig, found: Findings) -> None:
    """An entry that plain stores have made present counts at once, with no call."""
    entry = _fill(rig)
    rig.put(entry, 0)
    rig.value("InvalPage", eax=_WINDOW)
    for page, number in ((_FIRST, 1), (_SECOND, 2)):
        found.equal("faults of a load", _kernel(rig, "load", _WINDOW), [(_PF, 0)])
        rig.go("store", ebx=entry, eax=page | _P | _RW)
        found.equal("a load", rig.go("load", ebx=_WINDOW).registers["eax"], number)
        rig.go("store", ebx=entry, eax=0)
        rig.value("InvalPage", eax=_WINDOW)


@case("Mmu", "rights added", 5, paging=PAGED)
def rights_added(rig: Rig, found: Findings) -> None:
    """A page that plain stores have made writable can be stored to, at most after one fault."""
    entry = _fill(rig)
    rig.put(entry, _FIRST | _P | _US)
    rig.value("InvalPage", eax=_WINDOW)
    found.equal("faults of a store", _user(rig, _STORE, _WINDOW), [(_PF, 7)])
    rig.put(entry, _FIRST | _P | _RW | _US)
    faults = _user(rig, _STORE, _WINDOW)
    found.true(
        faults in ([], [(_PF, 7)]), f"it must be possible, or fault once more, but faults are {faults}"
    )
    found.equal("faults of a store made again", _user(rig, _STORE, _WINDOW), [])


@case("Mmu", "aliases", 6, paging=PAGED)
def aliases(rig: Rig, found: Findings) -> None:
    """What is stored by one of two addresses of a page is loaded by the other."""
    entry = _fill(rig)
    rig.put(entry, _FIRST | _P | _RW | _US)
    rig.value("InvalPage", eax=_WINDOW)
    for number, (at, other) in enumerate(((_FIRST, _WINDOW), (_WINDOW, _FIRST))):
        rig.go("store", ebx=at + 0x10, eax=0x1234 + number)
        found.equal("a load", rig.go("load", ebx=other + 0x10).registers["eax"], 0x1234 + number)


@case("Mmu", "accessed and dirty", 7, paging=PAGED)
def accessed(rig: Rig, found: Findings) -> None:
    """A load sets accessed in both levels, a store dirty in the table, and nothing else changes."""
    _fill(rig)
    _map_elsewhere(rig, _P | _RW | _US, _P | _RW | _US)
    directory = _directory(rig, _ELSEWHERE)
    rig.go("load", ebx=_ELSEWHERE)
    found.equal("the entry behind a load", rig.word(_TABLE), _FIRST | _P | _RW | _US | _A)
    found.equal("the directory behind a load", rig.word(directory) & ~_D, _TABLE | _P | _RW | _US | _A)
    rig.go("store", ebx=_ELSEWHERE, eax=1)
    found.equal("the entry behind a store", rig.word(_TABLE), _FIRST | _P | _RW | _US | _A | _D)
    size = 8 if _wide(rig) else 4
    found.equal("the next entry", rig.word(_TABLE + size), _SECOND | _P | _RW | _US)


@case("Mmu", "dirty again", 8, paging=PAGED)
def dirty_again(rig: Rig, found: Findings) -> None:
    """Bits that the guest has cleared are set again by the next access behind a flush."""
    entry = _fill(rig)
    for _ in range(2):
        rig.put(entry, _FIRST | _P | _RW | _US)
        rig.value("InvalPage", eax=_WINDOW)
        found.equal("the entry", rig.word(entry) & (_A | _D), 0)
        rig.go("store", ebx=_WINDOW, eax=1)
        found.equal("the entry behind a store", rig.word(entry) & (_A | _D), _A | _D)


@case("Mmu", "a table of two directories", 9, paging=PAGED)
def shared_table(rig: Rig, found: Findings) -> None:
    """A change in a table that two directory entries lead to counts by way of both."""
    _fill(rig)
    _map_elsewhere(rig, _P | _RW | _US, _P | _RW | _US)
    second = _ELSEWHERE + 0x400000
    rig.put(_directory(rig, second), _TABLE | _P | _RW | _US)
    places = (_ELSEWHERE, second)
    found.equal("loads", [rig.go("load", ebx=at).registers["eax"] for at in places], [1, 1])
    rig.put(_TABLE, _SECOND | _P | _RW | _US)
    for at in places:
        rig.value("InvalPage", eax=at)
    found.equal("loads behind the change", [rig.go("load", ebx=at).registers["eax"] for at in places], [2, 2])


@case("Mmu", "another table", 10, paging=PAGED)
def another_table(rig: Rig, found: Findings) -> None:
    """A directory entry that leads to another table counts behind a flush."""
    _fill(rig)
    _map_elsewhere(rig, _P | _RW | _US, _P | _RW | _US)
    found.equal("a load", rig.go("load", ebx=_ELSEWHERE).registers["eax"], 1)
    other = _TABLE + PAGE_SIZE
    rig.write(other, bytes(PAGE_SIZE))
    rig.put(other, _THIRD | _P | _RW | _US)
    rig.put(_directory(rig, _ELSEWHERE), other | _P | _RW | _US)
    rig.value("FlushTLB", eax=1)
    found.equal("a load by the other table", rig.go("load", ebx=_ELSEWHERE).registers["eax"], 3)


@case("Mmu", "tables in tables", 11, paging=_TWO)
def recursive(rig: Rig, found: Findings) -> None:
    """A directory that is one of its own tables shows all tables, and stores there change mappings."""
    entry = _fill(rig)
    slot = 0x300
    rig.put(PAGE_TABLES + 4 * slot, PAGE_TABLES | _P | _RW)
    _flush(rig)
    seen = (slot << 22) + 4 * (_WINDOW >> 12)
    value = rig.go("load", ebx=seen).registers["eax"]
    found.equal("the entry by way of the directory", value & -PAGE_SIZE, rig.word(entry) & -PAGE_SIZE)
    rig.go("store", ebx=seen, eax=_SECOND | _P | _RW)
    rig.value("InvalPage", eax=_WINDOW)
    found.equal("a load", rig.go("load", ebx=_WINDOW).registers["eax"], 2)
    top = (slot << 22) + (slot << 12) + 4 * slot
    found.equal(
        "the directory by way of itself", rig.go("load", ebx=top).registers["eax"] & -PAGE_SIZE, PAGE_TABLES
    )


@case("Mmu", "behind RAM", 12, paging=PAGED)
def behind_ram(rig: Rig, found: Findings) -> None:
    """A frame that nothing answers at is no fault: loads give what they give natively, stores nothing."""
    shown = RAM + 0x10000000 | _P | _RW
    rig.power_on()
    rig.put(entry_address(rig.environment.paging, _WINDOW), shown)
    native = rig.go("load", ebx=_WINDOW).registers["eax"]
    rig.again()
    entry = _fill(rig)
    rig.put(entry, shown)
    rig.value("InvalPage", eax=_WINDOW)
    found.equal("faults of a store", _kernel(rig, "store", _WINDOW), [])
    found.equal("a load", rig.go("load", ebx=_WINDOW).registers["eax"], native)
    for bit in range(32, 40) if _wide(rig) else ():
        rig.put(entry, _P | _RW, 1 << bit - 32)
        rig.value("InvalPage", eax=_WINDOW)
        faults = _kernel(rig, "load", _WINDOW)
        # from there on processors differ
        if bit < 36 or not any(vector == _PF and error & _RESERVED for vector, error in faults):
            found.equal(f"faults of a load with bit {bit}", faults, [])
            found.equal("a load", rig.go("load", ebx=_WINDOW).registers["eax"], native)


@case("Mmu", "large page", 13, paging=frozenset({Paging.PSE, Paging.PAE}))
def large_page(rig: Rig, found: Findings) -> None:
    """A large page has the rights of its one entry, gets its bits, and may give way to a table."""
    _fill(rig)
    directory = _directory(rig, _ELSEWHERE)
    rig.put(directory, _P | _RW | _US | _PS)
    _flush(rig)
    found.equal("a load", rig.go("load", ebx=_ELSEWHERE + _SECOND).registers["eax"], 2)
    found.equal("bits behind a load", rig.word(directory) & (_A | _D), _A)
    rig.go("store", ebx=_ELSEWHERE + _SECOND, eax=9)
    found.equal("memory", rig.word(_SECOND), 9)
    found.equal("bits behind a store", rig.word(directory) & (_A | _D), _A | _D)
    rig.put(directory, _P | _US | _PS)
    _flush(rig)
    found.equal("faults of a store to a read-only one", _user(rig, _STORE, _ELSEWHERE + _SECOND), [(_PF, 7)])
    _map_elsewhere(rig, _P | _RW | _US, _P | _RW | _US)
    found.equal("a load by a table", rig.go("load", ebx=_ELSEWHERE).registers["eax"], 1)


@case("Mmu", "pages of the kernel alone", 14, paging=PAGED)
def kernel_pages(rig: Rig, found: Findings) -> None:
    """Calls, events and ways to user code and back are the same where the kernel's pages are its own."""
    size = 8 if _wide(rig) else 4
    users = {USER, USER_STACK - PAGE_SIZE}
    entries = (page | _P | _RW | (_US if page in users else 0) for page in range(0, RAM, PAGE_SIZE))
    first = entry_address(rig.environment.paging, 0)
    rig.write(first, b"".join(entry.to_bytes(size, "little") for entry in entries))
    _flush(rig)
    for name, examples in EXAMPLES.items():
        example = next(each for each in (*examples, None) if each is None or _fits(rig, each))
        if example is not None and rig.offers(name) and _prepared(rig, example):
            done = rig.call(name, *example.stack, **example.registers)
            found.true(done.returned, f"{name} must return")
            found.equal(f"events of {name}", done.vectors, [])
    found.equal("an INT of user code", rig.user(b"\xcd\x30").faults, [(0x30, 0)])
    rig.put(WORDS["RESUME"], USER + len(_LOAD))  # where user code ends
    found.equal("a load of user code", rig.user(_LOAD, ebx=_SECOND).faults, [(_PF, 5)])
    found.equal("an INT of the kernel", _kernel(rig, "int30", 0), [(0x30, 0)])


@case("Mmu", "reserved bits", 16, paging=frozenset({Paging.PAE}))
def reserved_bits(rig: Rig, found: Findings) -> None:
    """They are a page fault that says so, in an entry that has been used before, too."""
    entry = _fill(rig)
    for bit in (51, 52, 62):
        rig.put(entry, _FIRST | _P | _RW, 0)
        rig.value("InvalPage", eax=_WINDOW)
        found.equal("a load", rig.go("load", ebx=_WINDOW).registers["eax"], 1)
        rig.put(entry + 4, 1 << bit - 32)
        rig.value("InvalPage", eax=_WINDOW)
        found.equal(
            f"faults of a load with bit {bit}", _kernel(rig, "load", _WINDOW), [(_PF, _P | _RESERVED)]
        )
        rig.value("FlushTLB", eax=1)
        found.equal(
            f"faults of a store with bit {bit}", _kernel(rig, "store", _WINDOW), [(_PF, _P | _RW | _RESERVED)]
        )


@case("Mmu", "each bit of an address", 15, paging=PAGED)
def each_bit(rig: Rig, found: Findings) -> None:
    """Pages whose addresses differ in one bit are where their own entries say, the second time, too."""
    wide, free = _wide(rig), iter(range(FREE_PAGES, FREE_PAGES + 32 * PAGE_SIZE, PAGE_SIZE))
    size, span = (8, 21) if wide else (4, 22)
    places = [_ELSEWHERE_TOO, *(_ELSEWHERE_TOO ^ 1 << bit for bit in range(12, 30))]
    made: dict[int, int] = {}
    for number, linear in enumerate(places, 1):
        if linear >> span not in made:
            made[linear >> span] = table = next(free)
            rig.write(table, bytes(PAGE_SIZE))
            rig.put(_directory(rig, linear), table | _P | _RW)
        page = next(free)
        rig.put(page, number)
        rig.put(made[linear >> span] + size * (linear >> 12 & PAGE_SIZE // size - 1), page | _P | _RW)
    for _ in range(2):
        loads = [rig.go("load", ebx=linear).registers["eax"] for linear in places]
        found.equal("loads", loads, [*range(1, len(places) + 1)])
        _flush(rig)


@case("Mmu", "a table taken away", 4, 10, paging=PAGED)
def table_taken_away(rig: Rig, found: Findings) -> None:
    """A directory entry that plain stores have made counts at once, and one that they took behind a flush."""
    _fill(rig)
    rig.write(_TABLE, bytes(PAGE_SIZE))
    halves = [_ELSEWHERE] if _wide(rig) else [_ELSEWHERE, _ELSEWHERE + 512 * PAGE_SIZE]
    for number, page in enumerate((_FIRST, _SECOND)[: len(halves)]):
        rig.put(_TABLE + 4 * 512 * number, page | _P | _RW)
    for flush, arguments in (("FlushTLB", [1]), ("InvalPage", halves)):
        rig.put(_directory(rig, _ELSEWHERE), _TABLE | _P | _RW)
        for number, linear in enumerate(halves, 1):
            found.equal("a load", rig.go("load", ebx=linear).registers["eax"], number)
        rig.put(_directory(rig, _ELSEWHERE), 0)
        for argument in arguments:
            rig.value(flush, eax=argument)
        for linear in halves:
            found.equal(f"faults of a load behind {flush}", _kernel(rig, "load", linear), [(_PF, 0)])


def _fits(rig: Rig, example: Example) -> bool:
    return rig.environment.paging in example.paging


def _prepared(rig: Rig, example: Example) -> bool:
    """What the call needs is in memory; False if there can be no such call."""
    try:
        example.before(rig)
    except Unfit:
        return False
    return True
