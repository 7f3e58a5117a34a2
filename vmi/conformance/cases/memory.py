# SPDX-License-Identifier: GPL-2.0-only
"""Page tables: updates and reports, lazy mode, flushes, announced pages, linear mappings."""

from __future__ import annotations

from vmi.abi import LazyMode, UpdateFlag
from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.layout import FREE_PAGES, PAGE_TABLES, WORDS, Paging, control, entry_address
from vmi.conformance.rig import Rig, fill
from vmi.memory import PAGE_SIZE

_PF = 14
_FIRST, _SECOND = FREE_PAGES, FREE_PAGES + PAGE_SIZE  # two pages, of which one shows 1 and the other 2
_WINDOW = FREE_PAGES + 4 * PAGE_SIZE  # where a case maps the one or the other
_USER = 7
_MANY = 300  # updates in a row, an even number
_ACCESSED, _DIRTY, _GLOBAL = 0x20, 0x40, 0x100
_PT, _NOW = int(UpdateFlag.PT), int(UpdateFlag.PT | UpdateFlag.CURRENT_AS)
_TWO_LEVEL = frozenset({Paging.TWO_LEVEL, Paging.PSE})
_WIDE = frozenset({Paging.PAE})


def _fill(rig: Rig) -> int:
    """Numbers in the two pages; gives the address of the window's entry."""
    rig.put(_FIRST, 1)
    rig.put(_SECOND, 2)
    return entry_address(rig.environment.paging, _WINDOW)


def _load(rig: Rig, address: int = _WINDOW) -> int | None:
    """What a load gives, None if it faults."""
    rig.resume_at("done")
    done = rig.go("load", ebx=address, eax=0)
    rig.put(WORDS["RESUME"], 0)
    return None if done.frames else done.registers["eax"]


def _set(rig: Rig, entry: int, value: int, flags: int = _PT) -> None:
    """SetPxE or SetPxELong, by what an entry's size is."""
    if rig.environment.paging is Paging.PAE:
        rig.value("SetPxELong", flags, eax=value, edx=0, ecx=entry)
    else:
        rig.value("SetPxE", eax=value, edx=entry, ecx=flags)


def _update(rig: Rig, entry: int, flags: int = _PT) -> None:
    name = "UpdatePxELong" if rig.environment.paging is Paging.PAE else "UpdatePxE"
    rig.value(name, eax=entry, edx=flags)


def _need_updates(rig: Rig) -> None:
    if rig.environment.paging is Paging.PAE:
        rig.need("SetPxELong", "UpdatePxELong")
    else:
        rig.need("SetPxE", "UpdatePxE")


def _both(name: str, *numbers: int, long: tuple[int, ...]) -> object:
    """Register a case for the calls with 4 bytes and those with 8."""

    def register(body: object) -> object:
        base = "SetPxE" if name.startswith("set") else "UpdatePxE"
        case(base, name, *numbers, paging=_TWO_LEVEL)(body)  # type: ignore[arg-type]
        case(base + "Long", name, *long, paging=_WIDE)(body)  # type: ignore[arg-type]
        return body

    return register


@_both("set and use", 1, 2, 4, long=(1, 3, 4))  # type: ignore[operator]
def set_and_use(rig: Rig, found: Findings) -> None:
    """An entry made present counts on return, whether or not the flags name the address."""
    entry = _fill(rig)
    _need_updates(rig)
    rig.put(entry, 0, *([0] if rig.environment.paging is Paging.PAE else []))
    rig.value("InvalPage", eax=_WINDOW)
    found.equal("a load before", _load(rig), None)
    for flags in (_PT, _NOW | _WINDOW, _PT | 0x70000000):
        _set(rig, entry, 0)
        rig.value("InvalPage", eax=_WINDOW)
        found.equal("a load behind 0", _load(rig), None)
        _set(rig, entry, _SECOND | _USER, flags)
        found.equal("the entry", rig.word(entry) & ~(_ACCESSED | _DIRTY), _SECOND | _USER)
        found.equal("a load", _load(rig), 2)


@_both("set in a table not in use", 5, long=(5,))  # type: ignore[operator]
def set_unused(rig: Rig, found: Findings) -> None:
    """An entry of a page that is no table yet is stored, and counts when it is one."""
    _fill(rig)
    _need_updates(rig)
    table = FREE_PAGES + 8 * PAGE_SIZE
    size = 8 if rig.environment.paging is Paging.PAE else 4
    _set(rig, table + size * 3, _SECOND | _USER)
    found.equal("the entry", rig.word(table + size * 3), _SECOND | _USER)
    if size == 8:
        rig.value("SetPxELong", _PT, eax=0x01234566, edx=0x89ABCDEF, ecx=table + 8 * 5)
        found.equal("a wide entry", rig.read(table + 8 * 5, 8), 0x89ABCDEF01234566.to_bytes(8, "little"))
    directory = PAGE_TABLES + (PAGE_SIZE if size == 8 else 0)
    span = 21 if size == 8 else 22
    _set(rig, directory + size * 0x80, table | _USER, int(UpdateFlag.PD))
    found.equal("a load through it", _load(rig, (0x80 << span) + 3 * PAGE_SIZE), 2)


@_both("set by any level", 3, long=(4,))  # type: ignore[operator]
def set_any_level(rig: Rig, found: Findings) -> None:
    """The level in the flags is a hint: another one changes nothing."""
    entry = _fill(rig)
    _need_updates(rig)
    for flags in (UpdateFlag.PD, UpdateFlag.PDP, UpdateFlag.PT | UpdateFlag.PD):
        _set(rig, entry, 0, int(flags))
        rig.value("InvalPage", eax=_WINDOW)
        _set(rig, entry, _SECOND | _USER, int(flags))
        found.equal(f"a load behind flags {flags:#x}", _load(rig), 2)


@_both("set lazily", 1, long=(1, 2))  # type: ignore[operator]
def set_lazily(rig: Rig, found: Findings) -> None:
    """In lazy mode memory holds the value at once, and it counts when the mode is left."""
    entry = _fill(rig)
    _need_updates(rig)
    rig.need("SetLazyMode")
    rig.value("SetLazyMode", eax=int(LazyMode.MMU))
    _set(rig, entry, _SECOND | _USER)
    found.equal("the entry", rig.word(entry) & ~(_ACCESSED | _DIRTY), _SECOND | _USER)
    rig.value("SetLazyMode", eax=0)
    rig.value("InvalPage", eax=_WINDOW)
    found.equal("a load", _load(rig), 2)


@_both("set in a long batch", 1, long=(1,))  # type: ignore[operator]
def set_in_a_long_batch(rig: Rig, found: Findings) -> None:
    """More updates in lazy mode than anybody keeps a list of: memory holds the last one, and it counts."""
    entry = _fill(rig)
    _need_updates(rig)
    rig.need("SetLazyMode")
    rig.value("SetLazyMode", eax=int(LazyMode.MMU))
    wide = rig.environment.paging is Paging.PAE
    own, stack = ({"ecx": entry, "edx": 0}, (_PT,)) if wide else ({"edx": entry, "ecx": _PT}, ())
    for number in range(_MANY):
        registers = {**fill(number % 2), "eax": (_SECOND if number % 2 else _FIRST) | _USER, **own}
        done = rig.call("SetPxELong" if wide else "SetPxE", *stack, **registers)
        changed = [name for name in ("ebx", "esi", "edi", "ebp") if done.registers[name] != registers[name]]
        if changed or done.popped:
            found.equal(
                f"registers that call {number} of them has changed, and its stack",
                (changed, done.popped),
                ([], 0),
            )
            break
    found.equal("the entry", rig.word(entry) & ~(_ACCESSED | _DIRTY), _SECOND | _USER)
    rig.value("SetLazyMode", eax=0)
    rig.value("InvalPage", eax=_WINDOW)
    found.equal("a load", _load(rig), 2)


@case("SetPxE", "accessed and dirty", 6, paging=_TWO_LEVEL)
def accessed_and_dirty(rig: Rig, found: Findings) -> None:
    """Accesses show in the entry itself."""
    entry = _fill(rig)
    rig.need("SetPxE")
    _set(rig, entry, _SECOND | _USER)
    rig.value("InvalPage", eax=_WINDOW)
    _load(rig)
    found.equal("bits after a load", rig.word(entry) & (_ACCESSED | _DIRTY), _ACCESSED)
    rig.go("store", ebx=_WINDOW, eax=5)
    found.equal("bits after a store", rig.word(entry) & (_ACCESSED | _DIRTY), _ACCESSED | _DIRTY)


@_both("report and use", 1, 3, long=(1, 3))  # type: ignore[operator]
def report_and_use(rig: Rig, found: Findings) -> None:
    """An entry that a plain store has made present counts once it is reported; the call changes nothing."""
    entry = _fill(rig)
    _need_updates(rig)
    rig.put(entry, 0)
    rig.value("InvalPage", eax=_WINDOW)
    rig.put(entry, _SECOND | _USER)
    _update(rig, entry)
    found.equal("the entry", rig.word(entry), _SECOND | _USER)
    found.equal("a load", _load(rig), 2)


@_both("report again and again", 1, long=(1,))  # type: ignore[operator]
def report_again_and_again(rig: Rig, found: Findings) -> None:
    """More reports than anybody keeps a list of: the last one counts."""
    entry = _fill(rig)
    _need_updates(rig)
    for _ in range(_MANY):
        _update(rig, entry)
    rig.put(entry, 0)
    rig.value("InvalPage", eax=_WINDOW)
    found.equal("a load before", _load(rig), None)
    rig.put(entry, _SECOND | _USER)
    _update(rig, entry)
    found.equal("a load", _load(rig), 2)


@_both("report by any level", 3, long=(2,))  # type: ignore[operator]
def report_any_level(rig: Rig, found: Findings) -> None:
    """PT is said of a page-directory entry too."""
    _fill(rig)
    _need_updates(rig)
    table = FREE_PAGES + 8 * PAGE_SIZE
    wide = rig.environment.paging is Paging.PAE
    size, span = (8, 21) if wide else (4, 22)
    rig.put(table + size * 3, _SECOND | _USER)
    at = PAGE_TABLES + (PAGE_SIZE if wide else 0) + size * 0x80
    rig.put(at, table | _USER)
    _update(rig, at, _PT)
    found.equal("a load", _load(rig, (0x80 << span) + 3 * PAGE_SIZE), 2)


@case("UpdatePxE", "deferred", 2, 4, paging=_TWO_LEVEL)
def deferred(rig: Rig, found: Findings) -> None:
    """With DEFER it counts no later than the flush that covers the page, a right taken away too."""
    entry = _fill(rig)
    rig.need("UpdatePxE")
    for flush, arguments in (("InvalPage", _WINDOW), ("FlushTLB", 1)):
        rig.put(entry, _FIRST | _USER)
        rig.value("FlushTLB", eax=3)
        found.equal("a load before", _load(rig), 1)
        rig.put(entry, _SECOND | 5)
        _update(rig, entry, int(UpdateFlag.PT | UpdateFlag.CURRENT_AS | UpdateFlag.DEFER) | _WINDOW)
        rig.value(flush, eax=arguments)
        found.equal(f"a load behind {flush}", _load(rig), 2)
        rig.resume_at("done")
        found.equal("events of a store", rig.go("store", ebx=_WINDOW).vectors, [_PF])


@case("InvalPage", "entry in memory", 1, paging=PAGED)
def invalidated(rig: Rig, found: Findings) -> None:
    """The next access uses the entry in memory, global or not."""
    entry = _fill(rig)
    for extra in (0, _GLOBAL):
        rig.put(entry, _FIRST | _USER | extra)
        rig.value("InvalPage", eax=_WINDOW + 0x123)
        found.equal("a load", _load(rig), 1)
        rig.put(entry, _SECOND | _USER | extra)
        rig.value("InvalPage", eax=_WINDOW)
        found.equal("a load behind the call", _load(rig), 2)


@case("InvalPage", "queued", 2, paging=PAGED)
def invalidated_queued(rig: Rig, found: Findings) -> None:
    """A queued update of the page counts on return, in lazy mode too."""
    entry = _fill(rig)
    _need_updates(rig)
    rig.need("SetLazyMode")
    found.equal("a load before", _load(rig, _FIRST), 1)
    rig.value("SetLazyMode", eax=int(LazyMode.MMU))
    _set(rig, entry, _SECOND | _USER)
    rig.value("InvalPage", eax=_WINDOW)
    found.equal("a load", _load(rig), 2)
    rig.value("SetLazyMode", eax=0)


@case("InvalPage", "nothing mapped", 3, paging=PAGED)
def invalidated_nothing(rig: Rig, found: Findings) -> None:
    """An address that nothing maps is no fault."""
    for address in (0x70000000, 0xFFFFFFFF, 0x3FFFF000):
        found.equal("events", rig.call("InvalPage", eax=address).vectors, [])


@case("InvalPage", "behind the fault of another page", 1, paging=PAGED)
def invalidated_behind_a_fault(rig: Rig, found: Findings) -> None:
    """What is flushed is the page that was named, wherever the last page fault was."""
    _fill(rig)
    absent = FREE_PAGES + 10 * PAGE_SIZE
    rig.put(entry_address(rig.environment.paging, absent), 0)
    rig.value("InvalPage", eax=absent)
    for page in (absent ^ PAGE_SIZE << bit for bit in range(5)):
        entry = entry_address(rig.environment.paging, page)
        rig.put(entry, _FIRST | _USER)
        rig.value("InvalPage", eax=page)
        found.equal("a load of the other page", _load(rig, absent), None)
        found.equal("a load", _load(rig, page), 1)
        rig.put(entry, _SECOND | _USER)
        rig.value("InvalPage", eax=page)
        found.equal("a load behind the call", _load(rig, page), 2)


@case("FlushTLB", "entries in memory", 1, 2, paging=PAGED)
def flushed(rig: Rig, found: Findings) -> None:
    """Non-global pages with TLB, all with GLOBAL."""
    entry = _fill(rig)
    for extra, flags in ((0, 1), (0, 3), (_GLOBAL, 3)):
        rig.put(entry, _FIRST | _USER | extra)
        rig.value("FlushTLB", eax=3)
        found.equal("a load", _load(rig), 1)
        rig.put(entry, _SECOND | _USER | extra)
        rig.value("FlushTLB", eax=flags)
        found.equal(f"a load behind flags {flags}", _load(rig), 2)
    found.equal("CR4", rig.value("GetCR4"), control(rig.environment.paging)["CR4"])


@case("FlushTLB", "queued", 3, paging=PAGED)
def flushed_queued(rig: Rig, found: Findings) -> None:
    """Queued updates count on return."""
    entry = _fill(rig)
    _need_updates(rig)
    rig.need("SetLazyMode")
    rig.value("SetLazyMode", eax=int(LazyMode.MMU))
    _set(rig, entry, _SECOND | _USER)
    rig.value("FlushTLB", eax=1)
    found.equal("a load", _load(rig), 2)
    rig.value("SetLazyMode", eax=0)


@case("SetLazyMode", "left", 1, 2, 6, paging=PAGED)
def lazy_left(rig: Rig, found: Findings) -> None:
    """Leaving the mode, by 0 or by the other mode, brings a batch into force."""
    _fill(rig)
    _need_updates(rig)
    rig.need("SetLazyMode")
    for leave in (0, int(LazyMode.CPU)):
        pages = [_WINDOW + n * PAGE_SIZE for n in range(8)]
        entries = [entry_address(rig.environment.paging, page) for page in pages]
        for entry in entries:
            _set(rig, entry, 0)
        rig.value("FlushTLB", eax=1)
        rig.value("SetLazyMode", eax=int(LazyMode.MMU))
        for number, entry in enumerate(entries):
            _set(rig, entry, (_SECOND if number & 1 else _FIRST) | _USER)
        rig.value("SetLazyMode", eax=leave)
        got = [_load(rig, page) for page in pages]
        found.equal(f"loads behind mode {leave}", got, [1, 2] * 4)
        rig.value("SetLazyMode", eax=0)


@case("SetLazyMode", "one exit a batch", paging=PAGED, more=("VMI-SetLazyMode-01", "VMI-Call-08"))
def one_exit(rig: Rig, found: Findings) -> None:
    """A batch of 64 updates leaves the guest once at most."""
    entry = _fill(rig)
    _need_updates(rig)
    rig.need("SetLazyMode")
    name, stack, registers = (
        ("SetPxELong", (_PT,), {"edx": 0, "ecx": entry})
        if rig.environment.paging is Paging.PAE
        else ("SetPxE", (), {"edx": entry, "ecx": _PT})
    )
    for measured in (False, True):
        exits = rig.call("SetLazyMode", eax=1).exits
        for number in range(64):
            exits += rig.call(name, *stack, eax=(_FIRST, _SECOND)[number & 1] | _USER, **registers).exits
        exits += rig.call("SetLazyMode", eax=0).exits
        if measured:
            found.true(exits <= 1, f"a batch must take one exit at most, but it took {exits}")


@case("SetLazyMode", "fault in the mode", 4, paging=PAGED)
def lazy_fault(rig: Rig, found: Findings) -> None:
    """An access in the mode to what a queued update has mapped is no fault of the guest's."""
    entry = _fill(rig)
    _need_updates(rig)
    rig.need("SetLazyMode")
    rig.put(entry, 0)
    rig.value("InvalPage", eax=_WINDOW)
    rig.value("SetCR2", eax=0x77)
    rig.value("SetLazyMode", eax=1)
    _set(rig, entry, _SECOND | _USER)
    found.equal("a load in the mode", _load(rig), 2)
    rig.value("SetLazyMode", eax=0)
    found.equal("CR2", rig.value("GetCR2"), 0x77)


@case("SetLazyMode", "CPU mode", 3)
def lazy_cpu(rig: Rig, found: Findings) -> None:
    """What is queued in CPU mode counts behind mode 0."""
    rig.need("SetLazyMode")
    base = rig.value("GetCR0")
    rig.value("SetLazyMode", eax=2)
    rig.value("SetCR0", eax=base | 8)
    rig.value("CLTS")
    rig.value("SetLazyMode", eax=0)
    found.equal("CR0", rig.value("GetCR0"), base)
    found.equal("events of an FPU instruction", rig.go("fpu").vectors, [])


@case("SetLazyMode", "left and entered again", 5, paging=PAGED)
def lazy_again(rig: Rig, found: Findings) -> None:
    """Left by 0 and entered again, updates before and after both count."""
    entry = _fill(rig)
    _need_updates(rig)
    rig.need("SetLazyMode")
    for mode, value in ((1, _FIRST), (1, _SECOND)):
        rig.value("SetLazyMode", eax=mode)
        _set(rig, entry, value | _USER)
        rig.value("SetLazyMode", eax=0)
        rig.value("InvalPage", eax=_WINDOW)
        found.equal("a load", _load(rig), 1 if value == _FIRST else 2)


@case("AllocatePage", "contents", 1, 2, 3, 4, 5, 6, paging=PAGED)
def announced(rig: Rig, found: Findings) -> None:
    """Announcing pages, the live root too, changes neither what they hold nor what they map."""
    entry = _fill(rig)
    rig.need("AllocatePage")
    root = rig.read(PAGE_TABLES, PAGE_SIZE)
    for flags in (0x01, 0x02, 0x42, 0x22, 0x03, 0x41, 0x12):
        done = rig.call("AllocatePage", 768, 256, eax=PAGE_TABLES >> 12, edx=flags, ecx=PAGE_TABLES >> 12)
        found.equal("what the call took off the stack", done.popped, 0)
    found.true(rig.read(PAGE_TABLES, PAGE_SIZE) == root, "the page must hold what it held")
    rig.value("AllocatePage", 0, 0, eax=entry >> 12, edx=0x41, ecx=0)
    rig.put(entry, _SECOND | _USER)
    rig.value("InvalPage", eax=_WINDOW)
    found.equal("a load by a plain store", _load(rig), 2)


@case("ReleasePage", "ordinary again", 1, 2, 3, 4, paging=PAGED)
def released(rig: Rig, found: Findings) -> None:
    """A released page keeps its contents, and stores to it map nothing."""
    _fill(rig)
    rig.need("AllocatePage", "ReleasePage")
    page = FREE_PAGES + 8 * PAGE_SIZE
    rig.write(page, bytes(range(256)) * 16)
    rig.value("AllocatePage", 0, 0, eax=page >> 12, edx=1, ecx=0)
    if rig.offers("SetLazyMode"):
        rig.value("SetLazyMode", eax=1)
        _set(rig, page + 8, _SECOND | _USER)
    rig.value("ReleasePage", eax=page >> 12, edx=1)
    if rig.offers("SetLazyMode"):
        rig.value("SetLazyMode", eax=0)
        found.equal("the entry", rig.word(page + 8), _SECOND | _USER)
    found.true(rig.read(page + 16, 4080) == (bytes(range(256)) * 16)[16:], "it must hold what it held")
    rig.go("store", ebx=page + 0x100, eax=_FIRST | _USER)
    found.equal("a store to it", rig.word(page + 0x100), _FIRST | _USER)
    found.equal("a load elsewhere", _load(rig, _FIRST), 1)


@case("MachineToPhysical", "inverse", 1, 2, more=("VMI-PhysicalToMachine-01", "VMI-PhysicalToMachine-02"))
def machine_frames(rig: Rig, found: Findings) -> None:
    """It gives back what PhysicalToMachine was asked, which is another answer for each frame."""
    rig.need("MachineToPhysical", "PhysicalToMachine")
    frames = [0, 1, FREE_PAGES >> 12, 0x3FF, *range(0x80, 0x90)]
    machine = [rig.value("PhysicalToMachine", eax=frame) for frame in frames]
    found.equal("different answers", len(set(machine)), len(frames))
    found.equal("frames", [rig.value("MachineToPhysical", eax=each) for each in machine], frames)


@case("SetLinearMapping", "entries", 1, 2, 4, 5, paging=_TWO_LEVEL)
def linear_mapping(rig: Rig, found: Findings) -> None:
    """Entries named by an address in a slot's range are found in its frames; the last range counts."""
    rig.need("SetLinearMapping", "SetPxE")
    entry = _fill(rig)
    for first in (0xC0000000, 0xD0000000):
        rig.put(entry, 0)
        rig.value("SetLinearMapping", 0, eax=0, edx=first, ecx=0x8000)
        rig.value("InvalPage", eax=_WINDOW)
        found.equal("a load before", _load(rig), None)
        # the guest maps its tables there too, as clients do, one page at the time
        directory = PAGE_TABLES + 4 * (first >> 22)
        rig.put(directory, PAGE_TABLES + PAGE_SIZE | _USER)
        rig.value("FlushTLB", eax=1)
        rig.value("SetPxE", eax=_SECOND | _USER, edx=first + entry, ecx=_PT)
        found.equal("the entry", rig.word(entry) & ~(_ACCESSED | _DIRTY), _SECOND | _USER)
        found.equal("a load", _load(rig), 2)
        rig.put(directory, 0)
        rig.value("FlushTLB", eax=1)
