# SPDX-License-Identifier: GPL-2.0-only
"""Arguments that a call refuses with an exception: what the generated cases about faults are made from.

Each row is what one word of the table's ``faults`` says, with the vector, the error code and the address that
the native instruction has, what must not have changed, and how a handler would put things right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vmi.conformance import layout
from vmi.conformance.case import ALL_PAGING, PAGED
from vmi.conformance.layout import (
    DATA0,
    FREE_PAGES,
    FREE_SELECTOR,
    GDT,
    LDT,
    TASK,
    Paging,
    control,
    entry_address,
)
from vmi.conformance.rig import Called, Rig, Unfit
from vmi.memory import PAGE_SIZE
from vmi.x86 import Cr0, Cr4

DB, UD, NP, GP, PF = 1, 6, 11, 13, 14
_PAE_ONLY = frozenset({Paging.PAE})
_TWO_LEVEL = frozenset({Paging.TWO_LEVEL, Paging.PSE})
_MSR, _DE, _MTRR, _PAT = 5, 2, 12, 16  # CPUID, EDX of leaf 1
_LEAF_7_ECX = {11: 2, 22: 3}  # bits of CR4 that features switch on, UMIP and PKU
_MTRRCAP, _PAT_MSR, _NO_SUCH, _LAST = 0xFE, 0x277, 0x00BADBAD, 0xFFFFFFFF
_GD = 1 << 13 | 1 << 10
_PAGE, _PRESENT_USER, _READ_ONLY = FREE_PAGES, 7, 5
_OUTSIDE = 0xE4  # a port that nothing answers
_WRITE = 2  # page-fault error codes
_PROTECTED = 3


def _nothing(_rig: Rig) -> None:
    pass


def _no_state(_rig: Rig) -> object:
    return None


@dataclass(frozen=True)
class Refusal:
    """One way in which a call is refused.

    :ivar numbers: of the call's requirements that say so.
    :ivar address: of a page fault, what CR2 is then.
    :ivar before: what the call needs first; raises Unfit where it can't be.
    :ivar kept: gives what must be the same behind the fault.
    :ivar cure: puts right what the call was refused for; None if that is in its registers.
    :ivar result: what must be true of the call once it has been done, as (is, must be).
    :ivar string: its registers show how far it has come.
    :ivar begun: what must be true behind the fault, as (is, must be).
    :ivar may: it need not be refused, but then it must be done.
    :ivar emulated: emulated processors refuse it too, so that no hypervisor is needed for that.
    """

    call: str
    what: str
    numbers: tuple[int, ...]
    vector: int
    error: int
    registers: dict[str, int] = field(default_factory=dict)
    stack: tuple[int, ...] = ()
    address: int | None = None
    before: Callable[[Rig], None] = _nothing
    kept: Callable[[Rig], object] = _no_state
    cure: Callable[[Rig], None] | None = None
    result: Callable[[Rig, Called], tuple[object, object]] = lambda _rig, _done: (0, 0)
    paging: frozenset[Paging] = ALL_PAGING
    string: bool = False
    begun: Callable[[Rig], tuple[object, object]] = lambda _rig: (0, 0)
    may: bool = False
    emulated: bool = True


def _reads(call: str, **registers: int) -> Callable[[Rig], object]:
    """The value of a call that reads, as something to be kept."""
    return lambda rig: rig.value(call, **registers)


def _feature(bit: int, what: str) -> Callable[[Rig], None]:
    def need(rig: Rig) -> None:
        if not rig.has(bit):
            raise Unfit(f"the processor has no {what}")

    return need


def _entry(rig: Rig, page: int, value: int) -> None:
    rig.put(entry_address(rig.environment.paging, page), value)
    rig.value("InvalPage", eax=page)


def _unmapped(rig: Rig) -> None:
    rig.write(_PAGE - 64, bytes(128))
    _entry(rig, _PAGE, 0)


def _read_only(rig: Rig) -> None:
    rig.write(_PAGE - 64, bytes(128))
    _entry(rig, _PAGE, _PAGE | _READ_ONLY)


def _mapped(rig: Rig) -> None:
    _entry(rig, _PAGE, _PAGE | _PRESENT_USER)


def _memory(rig: Rig) -> object:
    return rig.read(_PAGE - 64, 128)


# -- model-specific registers


def _pat(rig: Rig) -> object:
    return rig.call("RDMSR", ecx=_PAT_MSR).wide


_MSRS = (
    *(
        Refusal("RDMSR", f"register {number:x}h", (2,), GP, 0, {"ecx": number},
                before=_feature(_MSR, "registers"))
        for number in (_NO_SUCH, _LAST)
    ),
    *(
        Refusal("WRMSR", f"register {number:x}h", (2,), GP, 0, {"ecx": number, "eax": 0, "edx": 0},
                before=_feature(_MSR, "registers"))
        for number in (_NO_SUCH, _LAST)
    ),
    *(
        Refusal("WRMSR", f"reserved bits {low:x}h", (4,), GP, 0,
                {"ecx": _PAT_MSR, "eax": low, "edx": 0x00070406}, kept=_pat,
                before=_feature(_PAT, "page attribute table"))
        for low in (0x00070402, 0x08070406)
    ),
    Refusal("WRMSR", "read-only register", (5,), GP, 0, {"ecx": _MTRRCAP, "eax": 0, "edx": 0},
            before=_feature(_MTRR, "memory type ranges"),
            kept=lambda rig: rig.call("RDMSR", ecx=_MTRRCAP).wide),
)  # fmt: skip


# -- selectors


def _describe(access: int) -> Callable[[Rig], None]:
    """A descriptor of a system segment at the free selector."""
    limit = 0x2067 if access & 0xF == 9 else 0xFF
    base = layout.TSS if access & 0xF == 9 else layout.SCRATCH + 0x800
    return lambda rig: rig.write(GDT + FREE_SELECTOR, layout.descriptor(base, limit, access, 0))


def _selectors(
    call: str, read: str, numbers: tuple[int, int, int], wrong: tuple[int, ...], access: int
) -> tuple[Refusal, ...]:
    other, absent, outside = numbers
    kept = _reads(read)
    return (
        *(Refusal(call, f"selector {selector:x}h", (other,), GP, selector & ~3, {"eax": selector}, kept=kept)
          for selector in wrong),
        *(Refusal(call, f"selector {selector:x}h outside", (outside,), GP, selector & ~3, {"eax": selector},
                  kept=kept)
          for selector in (0x800, 0xFFF8, 0x34)),
        Refusal(call, "not present", (absent,), NP, FREE_SELECTOR, {"eax": FREE_SELECTOR}, kept=kept,
                before=_describe(access), cure=_describe(access | 0x80),
                result=lambda rig, _done: (rig.value(read), FREE_SELECTOR)),
    )  # fmt: skip


_SELECTORS = (
    *_selectors("SetLDT", "GetLDT", (5, 6, 7), (DATA0, DATA0 | 3, TASK), 0x02),
    *_selectors("SetTR", "GetTR", (4, 6, 7), (TASK, DATA0, LDT), 0x09),
    *(
        Refusal("SetTR", f"null selector {n}", (5,), GP, 0, {"eax": n}, kept=_reads("GetTR"), emulated=False)
        for n in (0, 3)
    ),
)


# -- control and debug registers

_BASE = {paging: control(paging) for paging in Paging}


def _cr0(what: str, number: int, change: Callable[[int], int]) -> tuple[Refusal, ...]:
    return tuple(
        Refusal("SetCR0", f"{what} {paging.value}", (number,), GP, 0, {"eax": change(_BASE[paging]["CR0"])},
                kept=_reads("GetCR0"), paging=frozenset({paging}))
        for paging in Paging
    )  # fmt: skip


def _lacks(bit: int) -> Callable[[Rig], None]:
    """The processor must not have a bit of CR4: CPUID leaf 7 ECX tells of some, the others nobody has."""

    def check(rig: Rig) -> None:
        if bit in _LEAF_7_ECX and rig.call("CPUID", eax=0, ecx=0).registers["eax"] >= 7:
            features = rig.call("CPUID", eax=7, ecx=0).registers["ecx"]
            if features >> _LEAF_7_ECX[bit] & 1:
                raise Unfit(f"the processor has what bit {bit} of CR4 switches on")

    return check


def _cr4(bit: int) -> tuple[Refusal, ...]:
    return tuple(
        Refusal("SetCR4", f"bit {bit} {paging.value}", (6,), GP, 0, {"eax": _BASE[paging]["CR4"] | 1 << bit},
                before=_lacks(bit), kept=_reads("GetCR4"), paging=frozenset({paging}))
        for paging in Paging
    )  # fmt: skip


_ROOT = FREE_PAGES + 8 * PAGE_SIZE


def _root(bits: int) -> Callable[[Rig], None]:
    """A root that is a copy of the one in use, with reserved bits in an entry."""

    def write(rig: Rig) -> None:
        data = rig.read(layout.PAGE_TABLES, 32)
        rig.write(_ROOT, data)
        rig.put(_ROOT, rig.word(layout.PAGE_TABLES) | bits)

    return write


def _cr3_and_load(rig: Rig) -> object:
    rig.put(_PAGE, 0x5EED)
    return rig.value("GetCR3"), rig.go("load", ebx=_PAGE).registers["eax"]


def _debug_extensions(rig: Rig) -> None:
    _feature(_DE, "debugging extensions")(rig)
    rig.value("SetCR4", eax=rig.value("GetCR4") | Cr4.DE)


def _general_detect(rig: Rig) -> None:
    rig.value("SetDR", eax=1, edx=0x1111)
    rig.value("SetDR", eax=6, edx=0)
    rig.value("SetDR", eax=7, edx=_GD)


def _debug_numbers(call: str, number: int) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(call, f"register {n} with DE", (number,), UD, 0, {"eax": n, "edx": 0x400},
                before=_debug_extensions)
        for n in (4, 5)
    )  # fmt: skip


_CONTROL = (
    *_cr0("PG without PE", 5, lambda value: (value | Cr0.PG) & ~Cr0.PE),
    *_cr0("NW without CD", 6, lambda value: value | Cr0.NW),
    *(row for bit in (11, 22, 31) for row in _cr4(bit)),
    *(
        Refusal("SetCR3", f"reserved bits {bits:x}h", (7,), GP, 0, {"eax": _ROOT}, before=_root(bits),
                kept=_cr3_and_load, cure=_root(0), result=lambda rig, _done: (rig.value("GetCR3"), _ROOT),
                paging=_PAE_ONLY, may=True)
        for bits in (0x02, 0x1E0)
    ),
    *_debug_numbers("SetDR", 4),
    *_debug_numbers("GetDR", 3),
    Refusal("SetDR", "general detect", (5,), DB, 0, {"eax": 1, "edx": 0x2222}, before=_general_detect,
            begun=lambda rig: (rig.value("GetDR", eax=1), 0x1111),
            cure=_nothing, result=lambda rig, _done: (rig.value("GetDR", eax=1), 0x2222), emulated=False),
    Refusal("GetDR", "general detect", (4,), DB, 0, {"eax": 1}, before=_general_detect,
            cure=_nothing, result=lambda _rig, done: (done.registers["eax"], 0x1111), emulated=False),
)  # fmt: skip


# -- memory


def _table_pointer(base: int) -> bytes:
    """What LGDT and LIDT load: limit and base."""
    return (0x7FF).to_bytes(2, "little") + base.to_bytes(4, "little")


def _set_table(call: str, read: str, number: int, base: int) -> tuple[Refusal, ...]:
    """LGDT and LIDT from a page that is not mapped, and from one that is only half there."""
    pointer = _table_pointer(base)

    def kept(rig: Rig) -> object:
        rig.value(read, eax=layout.SCRATCH)
        return rig.read(layout.SCRATCH, 6)

    def before(at: int) -> Callable[[Rig], None]:
        def write(rig: Rig) -> None:
            _unmapped(rig)
            rig.write(at, pointer)

        return write

    return tuple(
        Refusal(call, what, (number,), PF, 0, {"eax": at}, address=_PAGE, before=before(at), kept=kept,
                cure=_mapped, result=lambda rig, _done: (kept(rig), pointer), paging=PAGED)
        for what, at in (("pointer not mapped", _PAGE), ("pointer across pages", _PAGE - 3))
    )  # fmt: skip


def _get_table(call: str, number: int, base: int) -> tuple[Refusal, ...]:
    pointer = _table_pointer(base)

    def stored(at: int) -> Callable[[Rig, Called], tuple[object, object]]:
        return lambda rig, _done: (rig.read(at, 6), pointer)

    return tuple(
        Refusal(call, what, (number,), PF, error, {"eax": at}, address=max(at, _PAGE), before=before,
                kept=_memory if at >= _PAGE else _no_state, cure=_mapped, result=stored(at), paging=PAGED)
        for what, error, at, before in (
            ("pointer not mapped", _WRITE, _PAGE + 8, _unmapped),
            ("pointer read-only", _PROTECTED, _PAGE + 8, _read_only),
            *((f"pointer {n} bytes before a page", _WRITE, _PAGE - n, _unmapped) for n in (1, 2, 3, 5)),
        )
    )  # fmt: skip


_ENTRY = layout.descriptor(0x123000, 0xF, 0xF2, 4)
_LOW, _HIGH = int.from_bytes(_ENTRY[:4], "little"), int.from_bytes(_ENTRY[4:], "little")


def _written(at: int) -> Callable[[Rig, Called], tuple[object, object]]:
    return lambda rig, _done: (rig.read(at, 8), _ENTRY)


def _write_entry(call: str, number: int) -> tuple[Refusal, ...]:
    """A table that is not mapped, that is read-only, and an entry that lies on two pages."""
    return tuple(
        Refusal(call, what, (number,), PF, error, {"eax": table, "edx": index, "ecx": _LOW}, (_HIGH,),
                address=address, before=before, kept=_memory, cure=_mapped, paging=PAGED,
                result=_written(table + 8 * index))
        for what, error, table, index, address, before in (
            ("table unmapped", _WRITE, _PAGE, 2, _PAGE + 16, _unmapped),
            ("table read-only", _PROTECTED, _PAGE, 1, _PAGE + 8, _read_only),
            ("entry across pages", _WRITE, _PAGE - 12, 1, _PAGE, _unmapped),
            ("last byte on another page", _WRITE, _PAGE - 15, 1, _PAGE, _unmapped),
        )
    )  # fmt: skip


_IN_LDT = 0xF  # the LDT's second entry, of level 3
_LDT_BASE = layout.SCRATCH + 0x800


def _in_use(rig: Rig) -> None:
    """FS holds the free selector, and a copy of the GDT has nothing there."""
    rig.write(GDT + FREE_SELECTOR, layout.descriptor(0, 0xFFFFF, 0xF2))
    rig.go("load_fs", eax=FREE_SELECTOR | 3)
    rig.write(_PAGE, rig.read(GDT, 0x800))
    rig.write(_PAGE + FREE_SELECTOR, bytes(8))
    rig.write(layout.SCRATCH + 32, _table_pointer(_PAGE))


def _in_use_by_ldt(rig: Rig) -> None:
    rig.write(_LDT_BASE + 8, layout.descriptor(0, 0xFFFFF, 0xF2))
    rig.value("SetLDT", eax=LDT)
    rig.go("load_fs", eax=_IN_LDT)


def _gdt_in_use(rig: Rig) -> bytes:
    rig.value("GetGDT", eax=layout.SCRATCH)
    return rig.read(layout.SCRATCH, 6)


def _taken_away(call: str, number: int, table: int, selector: int, before: Callable[[Rig], None]) -> Refusal:
    """The entry of a segment in use becomes none."""
    at = table + (selector & ~7)
    return Refusal(call, "segment in use", (number,), GP, selector & ~3,
                   {"eax": table, "edx": selector >> 3, "ecx": 0}, (0,), before=before, may=True,
                   result=lambda rig, _done: (rig.read(at, 8), bytes(8)))  # fmt: skip


_SEGMENTS = (
    Refusal("SetGDT", "segment in use", (7,), GP, FREE_SELECTOR, {"eax": layout.SCRATCH + 32}, before=_in_use,
            kept=_gdt_in_use, may=True, result=lambda rig, _done: (_gdt_in_use(rig), _table_pointer(_PAGE))),
    _taken_away("WriteGDTEntry", 7, GDT, FREE_SELECTOR | 3, _in_use),
    _taken_away("WriteLDTEntry", 6, _LDT_BASE, _IN_LDT, _in_use_by_ldt),
)  # fmt: skip


def _page_table_entry(call: str, number: int) -> tuple[Refusal, ...]:
    long = call == "SetPxELong"
    at, value = _PAGE + 0x10, 0x77000
    registers = {"eax": value, "edx": 0, "ecx": at} if long else {"eax": value, "edx": at, "ecx": 1}
    return tuple(
        Refusal(call, what, (number,), PF, error, registers, (1,) if long else (), address=at, before=before,
                kept=_memory, cure=_mapped, paging=_PAE_ONLY if long else _TWO_LEVEL,
                result=lambda rig, _done: (rig.word(at), value))
        for what, error, before in (
            ("entry not mapped", _WRITE, _unmapped), ("entry read-only", _PROTECTED, _read_only)
        )
    )  # fmt: skip


def _string(call: str, size: int) -> tuple[Refusal, ...]:
    """Buffers that are not there, that are read-only, and of which the second half is not there."""
    out = call.startswith("OUT")
    pointer, error = ("esi", 0) if out else ("edi", _WRITE)

    def row(what: str, number: int, code: int, at: int, count: int, before: Callable[[Rig], None]) -> Refusal:
        def result(rig: Rig, done: Called) -> tuple[object, object]:
            wanted = bytes(size * count) if out else b"\xff" * (size * count)
            got = rig.read(at, size * count), done.registers[pointer], done.registers["ecx"]
            return got, (wanted, at + size * count, 0)

        def begun(rig: Rig) -> tuple[object, object]:
            there = 0 if out else max(0, _PAGE - at)
            return rig.read(at, size * count), b"\xff" * there + bytes(size * count - there)

        return Refusal(call, what, (number,), PF, code, {pointer: at, "edx": _OUTSIDE, "ecx": count},
                       address=max(at, _PAGE), before=before, cure=_mapped, result=result, paging=PAGED,
                       string=True, begun=begun)  # fmt: skip

    rows = [
        row("buffer not mapped", 5, error, _PAGE + 8, 3, _unmapped),
        row("buffer across pages", 6, error, _PAGE - 2 * size, 5, _unmapped),
    ]
    if not out:
        rows.append(row("buffer read-only", 5, _PROTECTED, _PAGE + 8, 3, _read_only))
    return tuple(rows)


_MEMORY = (
    *_set_table("SetGDT", "GetGDT", 6, GDT),
    *_set_table("SetIDT", "GetIDT", 4, layout.IDT),
    *_get_table("GetGDT", 3, GDT),
    *_get_table("GetIDT", 3, layout.IDT),
    *_write_entry("WriteGDTEntry", 6),
    *_write_entry("WriteLDTEntry", 5),
    *_write_entry("WriteIDTEntry", 5),
    *_page_table_entry("SetPxE", 7),
    *_page_table_entry("SetPxELong", 6),
    *(
        row
        for width, size in (("L", 4), ("B", 1), ("W", 2))
        for direction in ("IN", "OUT")
        for row in _string(f"{direction}S{width}", size)
    ),
)

REFUSALS = (*_MSRS, *_SELECTORS, *_CONTROL, *_SEGMENTS, *_MEMORY)
