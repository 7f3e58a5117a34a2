# SPDX-License-Identifier: GPL-2.0-only
"""Descriptor tables, the LDT, the task register and the kernel's stack."""

from __future__ import annotations

from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.layout import (
    DATA0,
    FREE_PAGES,
    FREE_SELECTOR,
    GDT,
    IDT,
    KERNEL_STACK,
    LDT,
    SCRATCH,
    TASK,
    TSS,
    descriptor,
    entry_address,
    gate,
)
from vmi.conformance.rig import Called, Frame, Rig
from vmi.memory import PAGE_SIZE
from vmi.x86 import Eflags

_GP, _PF = 13, 14
_DPL, _ACCESSED = 3 << 13, 1 << 8  # in the upper dword of a descriptor
_LDT_BASE = SCRATCH + 0x800
_ELSEWHERE = FREE_PAGES  # a table that a case moves
_USER_DATA = 0x00CFF200
_INT30, _LOAD_DS, _OUT_80 = b"\xcd\x30", b"\x8e\xd8", b"\xe6\x80"


def _words(value: bytes) -> tuple[int, int]:
    return int.from_bytes(value[:4], "little"), int.from_bytes(value[4:], "little")


def _pointer(base: int, limit: int) -> bytes:
    return limit.to_bytes(2, "little") + base.to_bytes(4, "little")


def _stored(rig: Rig, call: str) -> bytes:
    """What GetGDT or GetIDT stores, checked to be 6 bytes."""
    rig.write(SCRATCH, b"\xee" * 16)
    rig.value(call, eax=SCRATCH + 4)
    return rig.read(SCRATCH, 16)


@case("SetGDT", "another table", 1, 2, 3, 5, more=("VMI-GetGDT-01", "VMI-GetGDT-02"))
def another_gdt(rig: Rig, found: Findings) -> None:
    """A copy of the table elsewhere, with one more descriptor, is read back and used."""
    found.equal("GDT at first", _stored(rig, "GetGDT"), b"\xee" * 4 + _pointer(GDT, 0x7FF) + b"\xee" * 6)
    rig.write(_ELSEWHERE, rig.read(GDT, 0x800))
    rig.write(_ELSEWHERE + FREE_SELECTOR, descriptor(0, 0xFFFFF, 0xF2))
    rig.write(SCRATCH + 32, _pointer(_ELSEWHERE, 0x3FF))
    rig.value("SetGDT", eax=SCRATCH + 32)
    rig.write(SCRATCH + 32, bytes(6))
    found.equal("GDT", _stored(rig, "GetGDT"), b"\xee" * 4 + _pointer(_ELSEWHERE, 0x3FF) + b"\xee" * 6)
    done = rig.go("load_fs", eax=FREE_SELECTOR | 3)
    found.equal("events of a load from the new table", done.vectors, [])
    rig.user(b"\x90")


@case("SetGDT", "RPL 0", 4)
def rpl_0(rig: Rig, found: Findings) -> None:
    """The kernel's data selector with RPL 0 goes into each data segment."""
    rig.write(SCRATCH + 32, _pointer(GDT, 0x7FF))
    rig.value("SetGDT", eax=SCRATCH + 32)
    for routine in ("load_ds", "load_es", "load_fs", "load_gs"):
        found.equal(f"events of {routine}", rig.go(routine, eax=DATA0).vectors, [])


@case("SetIDT", "another table", 1, 2, 3, more=("VMI-GetIDT-01", "VMI-GetIDT-02"))
def another_idt(rig: Rig, found: Findings) -> None:
    """Events go through the new table, and one beyond its limit is #GP with its error code."""
    found.equal("IDT at first", _stored(rig, "GetIDT"), b"\xee" * 4 + _pointer(IDT, 0x7FF) + b"\xee" * 6)
    rig.write(_ELSEWHERE, rig.read(IDT, 0x400))
    rig.write(_ELSEWHERE + 8 * 0x30, gate(rig.labels["v48"], 0xEE))
    rig.write(_ELSEWHERE + 8 * 3, gate(rig.labels["v4"], 0xEE))
    rig.write(SCRATCH + 32, _pointer(_ELSEWHERE, 8 * 0x32 - 1))
    rig.value("SetIDT", eax=SCRATCH + 32)
    found.equal("IDT", _stored(rig, "GetIDT"), b"\xee" * 4 + _pointer(_ELSEWHERE, 8 * 0x32 - 1) + b"\xee" * 6)
    done = rig.user(_INT30 + b"\xcc")
    found.equal("vectors through the new table", done.vectors, [0x30, 4])
    rig.resume_at("leave_user")
    done = rig.user(b"\xcd\x40")
    events = done.faults
    found.equal("events of INT 40h", events, [(_GP, 0x40 << 3 | 2)])


@case("SetLDT", "read back", 1, 3, 4, more=("VMI-GetLDT-01", "VMI-GetLDT-02"))
def ldt(rig: Rig, found: Findings) -> None:
    """Selectors of the table can be loaded while it is in use, and not without it."""
    rig.write(_LDT_BASE + 8, descriptor(0x123000, 0xF, 0xF2, 4))
    found.equal("LDT at first", rig.value("GetLDT"), 0)
    rig.value("SetLDT", eax=LDT)
    found.equal("LDT", rig.value("GetLDT"), LDT)
    found.equal("events of a load", rig.go("load_fs", eax=0xF).vectors, [])
    rig.go("load_fs", eax=0)
    rig.value("SetLDT", eax=0)
    found.equal("LDT", rig.value("GetLDT"), 0)
    rig.resume_at("done")
    done = rig.go("load_fs", eax=0xF)
    found.equal("events without it", done.faults, [(_GP, 0xC)])


@case("SetLDT", "no LDT", more=("VMI-SetLDT-01",))
def no_ldt(rig: Rig, found: Findings) -> None:
    """A selector of something else raises #GP with it as error code."""
    rig.resume_at("done")
    done = rig.call("SetLDT", eax=DATA0)
    found.equal("events", done.faults, [(_GP, DATA0)])
    found.equal("LDT", rig.value("GetLDT"), 0)


@case("SetLDT", "descriptor by WriteGDTEntry", 2)
def ldt_written(rig: Rig, found: Findings) -> None:
    """Base and limit are those that WriteGDTEntry has just left."""
    low, high = _words(descriptor(FREE_PAGES, 0xF, 0x82, 0))
    rig.write(FREE_PAGES + 8, descriptor(0, 0xFFFFF, 0xF2))
    rig.value("WriteGDTEntry", high, eax=GDT, edx=FREE_SELECTOR >> 3, ecx=low)
    rig.value("SetLDT", eax=FREE_SELECTOR)
    found.equal("events of a load", rig.go("load_fs", eax=0xF).vectors, [])
    rig.resume_at("done")
    done = rig.go("load_fs", eax=0x17)
    found.equal("events beyond its limit", done.faults, [(_GP, 0x14)])


@case("SetTR", "read back", 1, more=("VMI-GetTR-01", "VMI-GetTR-02"))
def task_register(rig: Rig, found: Findings) -> None:
    """The selector is read back, the one from before VMI_Init too."""
    found.equal("TR at first", rig.value("GetTR"), TASK)
    rig.write(GDT + FREE_SELECTOR, descriptor(TSS, 0x2067, 0x89, 0))
    rig.value("SetTR", eax=FREE_SELECTOR)
    found.equal("TR", rig.value("GetTR"), FREE_SELECTOR)


@case("SetTR", "busy", more=("VMI-SetTR-01",))
def busy_task(rig: Rig, found: Findings) -> None:
    """A TSS that is busy, and something else, raise #GP with the selector."""
    for selector in (TASK, DATA0):
        rig.resume_at("done")
        done = rig.call("SetTR", eax=selector)
        found.equal("events", done.faults, [(_GP, selector)])
    found.equal("TR", rig.value("GetTR"), TASK)


@case("SetTR", "I/O bitmap", 2)
def io_bitmap(rig: Rig, found: Findings) -> None:
    """A port of user code is checked against the bitmap as it is at that moment."""
    at = TSS + 104 + 0x80 // 8
    found.equal("events with the bit clear", rig.user(_OUT_80).vectors, [])
    rig.write(at, b"\x01")
    rig.resume_at("leave_user")
    done = rig.user(_OUT_80)
    found.equal("events with the bit set", done.faults, [(_GP, 0)])
    rig.write(at, b"\x00")
    found.equal("events with the bit clear again", rig.user(_OUT_80).vectors, [])


def _user_entry(rig: Rig) -> Frame:
    """The frame of an INT 30h from user code."""
    return rig.user(_INT30).first


def _frame_top(frame: Frame) -> int:
    """Where the stack began that a user frame was pushed on: SS, ESP, EFLAGS, CS, EIP, error, vector."""
    return frame.handler_esp + 28


@case("SetTR", "stack from memory", 3)
def stack_in_tss(rig: Rig, found: Findings) -> None:
    """An entry from user code uses esp0 of the TSS as it is then, unless UpdateKernelStack says another."""
    found.equal("the stack", _frame_top(_user_entry(rig)), KERNEL_STACK)
    if rig.offers("UpdateKernelStack"):
        rig.value("UpdateKernelStack", eax=DATA0, edx=KERNEL_STACK - 0x100)
    else:
        rig.put(TSS + 4, KERNEL_STACK - 0x100)
    found.equal("the stack", _frame_top(_user_entry(rig)), KERNEL_STACK - 0x100)


@case("SetTR", "stack of the kernel's level", 3)
def stack_of_level(rig: Rig, found: Findings) -> None:
    """A kernel that knows what level it runs on has that in ss0, and one that does not has 0 there."""
    level = rig.go("int30").first.cs & 3
    for selector in (DATA0 | level, DATA0):
        rig.put(TSS + 8, selector)
        found.equal("the stack", _frame_top(_user_entry(rig)), KERNEL_STACK)


@case("UpdateKernelStack", "next entry", 1, 2)
def kernel_stack(rig: Rig, found: Findings) -> None:
    """The next entry from user code is below esp0, on a kernel stack segment."""
    rig.need("UpdateKernelStack")
    for esp0 in (KERNEL_STACK - 0x40, KERNEL_STACK - 0x200, KERNEL_STACK):
        rig.value("UpdateKernelStack", eax=DATA0, edx=esp0)
        found.equal("the stack", _frame_top(_user_entry(rig)), esp0)


@case("UpdateKernelStack", "lazy", 3)
def lazy_kernel_stack(rig: Rig, found: Findings) -> None:
    """The last call counts, one in lazy CPU mode once the mode is left."""
    rig.need("UpdateKernelStack", "SetLazyMode")
    rig.value("SetLazyMode", eax=2)
    for esp0 in (KERNEL_STACK - 0x100, KERNEL_STACK - 0x80):
        rig.put(TSS + 4, esp0)
        rig.value("UpdateKernelStack", eax=DATA0, edx=esp0)
    rig.value("SetLazyMode", eax=0)
    found.equal("the stack", _frame_top(_user_entry(rig)), KERNEL_STACK - 0x80)


@case("UpdateKernelStack", "event in the kernel", 4)
def event_in_kernel(rig: Rig, found: Findings) -> None:
    """An event while the kernel runs stays on its stack."""
    done = rig.go("int30")
    found.equal("vectors", done.vectors, [0x30])
    found.equal("the stack of the frame", done.first.handler_esp + 20, done.registers["esp"])


def _write(rig: Rig, call: str, table: int, index: int, data: bytes) -> Called:
    low, high = _words(data)
    return rig.call(call, high, eax=table, edx=index, ecx=low)


@case("WriteGDTEntry", "memory", 1, 4, 5)
def gdt_entry(rig: Rig, found: Findings) -> None:
    """Memory holds the entry, bit for bit if its DPL is 3; but for DPL and accessed bit otherwise."""
    index = FREE_SELECTOR >> 3
    for data, exact in (
        (descriptor(0x12345678, 0xFEDC, 0xF2, 4), True),
        (descriptor(0x00ABC000, 0xFFFFF, 0xFA), True),
        (descriptor(0, 0xFFFFF, 0x92), False),
        (bytes(8), True),
    ):
        done = _write(rig, "WriteGDTEntry", GDT, index, data)
        found.equal("what the call took off the stack", done.popped, 0)
        got, wanted = _words(rig.read(GDT + 8 * index, 8)), _words(data)
        mask = 0xFFFFFFFF if exact else ~(_DPL | _ACCESSED)
        found.equal("the entry", (got[0], got[1] & mask), (wanted[0], wanted[1] & mask))


@case("WriteGDTEntry", "use", 2, 3)
def gdt_entry_used(rig: Rig, found: Findings) -> None:
    """A selector loaded behind the call gets the new descriptor, one in use when loaded again."""
    index = FREE_SELECTOR >> 3
    rig.put(FREE_PAGES, 0x1111)
    rig.put(FREE_PAGES + 0x100, 0x2222)
    for base, wanted in ((FREE_PAGES, 0x1111), (FREE_PAGES + 0x100, 0x2222)):
        _write(rig, "WriteGDTEntry", GDT, index, descriptor(base, 0xFFFFF, 0xF2))
        rig.go("load_fs", eax=FREE_SELECTOR | 3)
        found.equal("a load through FS", rig.go("load_by_fs").registers["eax"], wanted)


@case("WriteGDTEntry", "in use by GS", 1, 3, 5)
def gdt_entry_in_gs(rig: Rig, found: Findings) -> None:
    """The entry of the segment in GS alone, as kernels do for a thread: it is stored, and GS can be used."""
    rig.put(FREE_PAGES, 0x1111)
    rig.put(FREE_PAGES + 0x100, 0x2222)
    _write(rig, "WriteGDTEntry", GDT, FREE_SELECTOR >> 3, descriptor(FREE_PAGES, 0xFFFFF, 0xF2))
    rig.go("load_gs", eax=FREE_SELECTOR | 3)
    data = descriptor(FREE_PAGES + 0x100, 0xFFFFF, 0xF2)
    done = _write(rig, "WriteGDTEntry", GDT, FREE_SELECTOR >> 3, data)
    found.equal("events meanwhile", done.vectors, [])
    got, wanted = _words(rig.read(GDT + FREE_SELECTOR, 8)), _words(data)
    found.equal("the entry", (got[0], got[1] & ~_ACCESSED), (wanted[0], wanted[1] & ~_ACCESSED))
    rig.go("load_gs", eax=FREE_SELECTOR | 3)
    rig.go("load_fs", eax=FREE_SELECTOR | 3)
    found.equal("a load through the segment", rig.go("load_by_fs").registers["eax"], 0x2222)


@case("WriteLDTEntry", "memory and use", 1, 2, 3, 4)
def ldt_entry(rig: Rig, found: Findings) -> None:
    """An entry of the LDT in use counts at once, one of another table when that is selected."""
    rig.put(FREE_PAGES, 0x1111)
    rig.put(FREE_PAGES + 0x100, 0x2222)
    first, second = descriptor(FREE_PAGES, 0xFFFFF, 0xF2), descriptor(FREE_PAGES + 0x100, 0xFFFFF, 0xF2)
    _write(rig, "WriteLDTEntry", _LDT_BASE, 1, first)
    found.equal("the entry", _words(rig.read(_LDT_BASE + 8, 8)), _words(first))
    rig.value("SetLDT", eax=LDT)
    rig.go("load_fs", eax=0xF)
    found.equal("a load through FS", rig.go("load_by_fs").registers["eax"], 0x1111)
    _write(rig, "WriteLDTEntry", _LDT_BASE, 1, second)
    rig.go("load_fs", eax=0xF)
    found.equal("a load through FS", rig.go("load_by_fs").registers["eax"], 0x2222)


@case("WriteIDTEntry", "memory and use", 1, 2, 3)
def idt_entry(rig: Rig, found: Findings) -> None:
    """The entry is stored, and the next event of the vector goes through it."""
    data = gate(rig.labels["v4"], 0xEE)
    _write(rig, "WriteIDTEntry", IDT, 0x30, data)
    found.true(rig.read(IDT + 8 * 0x30, 8) == data, "memory must hold the gate as it was given")
    found.equal("vectors of INT 30h", rig.user(_INT30).vectors, [4])


@case("WriteIDTEntry", "interrupt and trap gates", 4)
def gate_kinds(rig: Rig, found: Findings) -> None:
    """An interrupt gate enters with interrupts off, a trap gate leaves them on."""
    for access, wanted in ((0xEE, 0), (0xEF, Eflags.IF)):
        _write(rig, "WriteIDTEntry", IDT, 0x30, gate(rig.labels["mask"], access))
        rig.user(_INT30)
        found.equal(f"the interrupt flag behind a gate {access:#x}", _mask(rig) & Eflags.IF, wanted)


def _mask(rig: Rig) -> int:
    """What the routine behind label ``mask`` has found: its run has ended there."""
    return rig.value("GetInterruptMask")


for _call in ("WriteGDTEntry", "WriteLDTEntry", "WriteIDTEntry"):
    _number = 6 if _call == "WriteGDTEntry" else 5

    @case(_call, "table not mapped", _number, paging=PAGED)
    def unmapped_table(rig: Rig, found: Findings, call: str = _call) -> None:
        """A page fault on the table is the guest's, and the call can be made again behind it."""
        entry = entry_address(rig.environment.paging, FREE_PAGES)
        data = descriptor(0, 0xFFFFF, 0xF2)
        rig.put(entry, 0)
        rig.value("InvalPage", eax=FREE_PAGES)
        rig.resume_at("done")
        done = _write(rig, call, FREE_PAGES, 2, data)
        found.equal("vectors", done.vectors, [_PF])
        found.equal("CR2", rig.value("GetCR2") & -PAGE_SIZE, FREE_PAGES)
        rig.put(entry, FREE_PAGES | 7)
        rig.value("InvalPage", eax=FREE_PAGES)
        found.equal("the entry", rig.read(FREE_PAGES + 16, 8), bytes(8))
        _write(rig, call, FREE_PAGES, 2, data)
        found.true(rig.read(FREE_PAGES + 16, 8) == data, "the call must work once the table is mapped")
