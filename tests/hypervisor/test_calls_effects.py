# SPDX-License-Identifier: GPL-2.0-only
"""What a call does is what its instruction does: the same operation natively, trapped, and as a VMI call."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import LANDING, Lab, call
from tests.hypervisor.state import differences, snapshot
from tests.hypervisor.test_calls import ABSENT, BUFFER, FAULT, LDT_SELECTOR
from tests.native.guest import CODE0, DATA0, GDT, IDT, PAGES, STACK, TASK, TSS, descriptor, gate
from vmi.x86 import Cr0, Seg

HIDEOUT = PAGES + 0x8000  # page tables that map one page elsewhere
MOVED, ELSEWHERE = 0x64000, 0x65000

# call, its instruction with the operands where the call has them, arguments
OPERATIONS = [
    ("SetGDT", "lgdt [eax]", {"eax": BUFFER}),
    ("SetIDT", "lidt [eax]", {"eax": BUFFER + 8}),
    ("SetLDT", "lldt ax", {"eax": LDT_SELECTOR}),
    ("SetLDT", "lldt ax", {"eax": 0}),
    ("SetLDT", "lldt ax", {"eax": 0xABCD0000 | LDT_SELECTOR}),
    ("SetTR", "ltr ax", {"eax": 0x70}),
    ("GetGDT", "sgdt [eax]", {"eax": BUFFER + 32}),
    ("GetIDT", "sidt [eax]", {"eax": BUFFER + 32}),
    ("SetCR0", "mov cr0, eax", {"eax": 0x8001001B}),
    ("SetCR0", "mov cr0, eax", {"eax": 0x80000001}),
    ("SetCR2", "mov cr2, eax", {"eax": 0xDEADBEEF}),
    ("SetCR3", "mov cr3, eax", {"eax": HIDEOUT}),
    ("SetCR3", "mov cr3, eax", {"eax": PAGES | 0x18}),
    ("SetCR4", "mov cr4, eax", {"eax": 0x90}),
    ("CLTS", "clts", {}),
    ("WBINVD", "wbinvd", {}),
    ("InvalPage", "invlpg [eax]", {"eax": MOVED + 0x123}),
    ("InvalPage", "invlpg [eax]", {"eax": ABSENT}),
    *((("SetDR", f"mov dr{n}, edx", {"eax": n, "edx": 0x12340 + n})) for n in (0, 1, 2, 3, 6, 7)),
    ("EnableInterrupts", "sti", {}),
    ("DisableInterrupts", "cli", {}),
]
# call, instruction, arguments, registers with the result
READS = [
    ("GetCR0", "mov eax, cr0", {}, ["eax"]),
    ("GetCR2", "mov eax, cr2", {}, ["eax"]),
    ("GetCR3", "mov eax, cr3", {}, ["eax"]),
    ("GetCR4", "mov eax, cr4", {}, ["eax"]),
    ("GetLDT", "sldt eax", {"eax": 0xFFFFFFFF}, ["eax"]),
    ("GetTR", "str eax", {"eax": 0xFFFFFFFF}, ["eax"]),
    *((("GetDR", f"mov eax, dr{n}", {"eax": n}, ["eax"])) for n in range(8)),
    ("CPUID", "cpuid", {"eax": 0}, ["eax", "ebx", "ecx", "edx"]),
    ("CPUID", "cpuid", {"eax": 1}, ["eax", "ebx", "ecx", "edx"]),
]


def prepared(source: str, mode: str, *, silent: bool = False) -> Lab:
    """A guest with paging on, some state in every register that a call reads, and nothing of it a default."""
    lab = Lab(source, {14: "fault", 13: "fault"}, mode, silent=["start"] if silent else [], taken=False)
    lab.page(ABSENT)
    lab.memory.write(BUFFER, (0x7FF).to_bytes(2, "little") + GDT.to_bytes(4, "little"))
    lab.memory.write(BUFFER + 8, (0x3FF).to_bytes(2, "little") + IDT.to_bytes(4, "little"))
    lab.describe(LDT_SELECTOR, descriptor(0x5000, 0x3F, 0x82, 0))
    lab.describe(0x70, descriptor(0x5100, 0x67, 0x89, 0))
    lab.memory.write(HIDEOUT, lab.memory.read(PAGES, 0x1000))
    lab.memory.put_u32(HIDEOUT, HIDEOUT + 0x1000 | 7)
    lab.memory.write(HIDEOUT + 0x1000, lab.memory.read(PAGES + 0x1000, 0x1000))
    lab.memory.put_u32(HIDEOUT + 0x1000 + 4 * (MOVED >> 12), ELSEWHERE | 7)
    lab.memory.put_u32(MOVED, 1)
    lab.memory.put_u32(ELSEWHERE, 2)
    cpu = lab.cpu
    cpu.cr2, cpu.esp = 0x777, STACK
    cpu.set_cr(0, cpu.cr(0) | Cr0.TS)
    for number in (0, 1, 2, 3):
        cpu.load_dr(number, 0x1000 * number)
    lab.take()
    return lab


def after(name: str, instruction: str, registers: dict[str, int], mode: str, *, silent: bool) -> Lab:
    """A guest in which the operation has been done."""
    lab = prepared(f"start: {instruction}\n{FAULT}", mode, silent=silent)
    if mode == "paravirt":
        assert call(lab, name, **registers).returned
        return lab
    for register, value in registers.items():
        lab.cpu.set_gpr(["eax", "ecx", "edx"].index(register), value)
    lab.cpu.run(1)
    assert lab.cpu.eip == lab.labels["fault"], "the instruction did not fault"
    return lab


_NOT_COMPARED = ("eax", "ecx", "edx", "esp", "eip", "shadow")


def effects(lab: Lab) -> dict[str, object]:
    """What counts of a call: not registers it may clobber, the stack below it, or which pages it touched."""
    state = {key: value for key, value in snapshot(lab).items() if key not in _NOT_COMPARED}
    flags = int(str(state.pop("eflags")), 16)
    state["interrupt flag"] = bool(flags & 0x200)
    memory = state.pop("memory")
    assert isinstance(memory, bytes)
    state["memory"] = memory[: STACK - 0x100] + memory[STACK:PAGES] + memory[PAGES + 0xA000 :]
    return state


@pytest.mark.parametrize("mode", ["full", "paravirt"])
@pytest.mark.parametrize(("name", "instruction", "registers"), OPERATIONS, ids=str)
def test_an_operation(name: str, instruction: str, registers: dict[str, int], mode: str) -> None:
    silent = instruction.startswith(("sgdt", "sidt"))
    native = after(name, instruction, registers, "native", silent=silent)
    other = after(name, instruction, registers, mode, silent=silent)
    assert not differences(effects(native), effects(other))


@pytest.mark.parametrize("mode", ["full", "paravirt"])
@pytest.mark.parametrize(("name", "instruction", "registers", "places"), READS, ids=str)
def test_a_result(
    name: str, instruction: str, registers: dict[str, int], places: list[str], mode: str
) -> None:
    silent = instruction.startswith(("sldt", "str"))
    native = after(name, instruction, registers, "native", silent=silent)
    other = after(name, instruction, registers, mode, silent=silent)
    for place in places:
        number = ["eax", "ecx", "edx", "ebx"].index(place)
        assert native.cpu.gpr(number) == other.cpu.gpr(number), place
    assert not differences(effects(native), effects(other))


def load(lab: Lab, address: int) -> int:
    """What the guest's own load from an address gives."""
    source = LANDING + 0x100
    lab.cpu.write_memory(source, bytes.fromhex("8b03"))  # mov eax, [ebx]
    lab.cpu.eip, lab.cpu.ebx = source, address
    lab.cpu.run(1)
    return lab.cpu.eax


@pytest.mark.parametrize("switch", ["SetCR3", "InvalPage", "FlushTLB", "FlushTLB global"])
def test_translations_are_dropped(switch: str) -> None:
    lab = prepared(FAULT, "paravirt")
    entry = PAGES + 0x1000 + 4 * (MOVED >> 12)
    lab.memory.put_u32(entry, MOVED | 7)
    assert load(lab, MOVED) == 1
    lab.memory.put_u32(entry, ELSEWHERE | 7)
    assert load(lab, MOVED) == 1, "the CPU still remembers"
    name, _, how = switch.partition(" ")
    assert call(
        lab, name, eax={"SetCR3": PAGES, "InvalPage": MOVED + 5, "FlushTLB": 3 if how else 1}[name]
    ).returned
    assert load(lab, MOVED) == 2


def test_flush_of_nothing_flushes_nothing() -> None:
    lab = prepared(FAULT, "paravirt")
    entry = PAGES + 0x1000 + 4 * (MOVED >> 12)
    assert load(lab, MOVED) == 1
    lab.memory.put_u32(entry, ELSEWHERE | 7)
    assert call(lab, "FlushTLB", eax=0).returned
    assert load(lab, MOVED) == 1


def test_set_cr3_uses_the_new_tables() -> None:
    lab = prepared(FAULT, "paravirt")
    assert load(lab, MOVED) == 1
    assert call(lab, "SetCR3", eax=HIDEOUT).returned
    assert load(lab, MOVED) == 2


def test_debug_registers_beyond_the_last() -> None:
    lab = prepared(FAULT, "paravirt")
    assert call(lab, "GetDR", eax=8).registers["eax"] == 0
    before = [lab.cpu.dr(n) for n in range(8)]
    assert call(lab, "SetDR", eax=0xFFFFFFFF, edx=5).returned
    assert before == [lab.cpu.dr(n) for n in range(8)]


@pytest.mark.parametrize("mode", ["native", "full", "paravirt"])
def test_a_breakpoint_register_stops_the_guest(mode: str) -> None:
    source = """
    start:  nop
    here:   inc ebx
            jmp start
    trap:   hlt
    """
    lab = Lab(source, {1: "trap"}, mode)
    if mode == "paravirt":
        call(lab, "SetDR", eax=1, edx=lab.labels["here"])
        call(lab, "SetDR", eax=7, edx=0x404)
    else:
        lab.cpu.load_dr(1, lab.labels["here"])
        lab.cpu.load_dr(7, 0x404)
    lab.cpu.eip, lab.cpu.ebx = lab.labels["start"], 7
    lab.cpu.run(3)
    assert lab.cpu.eip == lab.labels["trap"] and lab.cpu.ebx == 7
    assert lab.u32(lab.cpu.esp) == lab.labels["here"]
    assert lab.cpu.dr(6) & 0xF == 2


def test_general_detect_guards_the_debug_registers() -> None:
    """By the manual; the CPU core's ring 0 does not do it."""
    lab = Lab("start: mov eax, dr3\ntrap: hlt", {1: "trap"}, "full")
    lab.cpu.load_dr(7, 0x2400)
    lab.cpu.eax = 5
    lab.cpu.run(1)
    assert lab.cpu.eip == lab.labels["trap"] and lab.cpu.eax == 5
    assert lab.cpu.dr(6) & 1 << 13 and not lab.cpu.dr(7) & 1 << 13
    assert lab.u32(lab.cpu.esp) == lab.labels["start"]


def test_write_entries_store_and_raise() -> None:
    lab = prepared(FAULT, "paravirt")
    kernel, user = 0x00CF9300, 0x00CFF300
    for index, high, stored in (
        (20, kernel, kernel | 0x2000),
        (21, user, user),
        (22, kernel & ~0x8000, kernel & ~0x8000),
    ):
        assert call(lab, "WriteGDTEntry", high, eax=GDT, edx=index, ecx=0x1234FFFF).returned
        assert (lab.u32(GDT + 8 * index), lab.u32(GDT + 8 * index + 4)) == (0x1234FFFF, stored)
    assert call(lab, "WriteIDTEntry", 0x8E00, eax=IDT, edx=9, ecx=0x80000 | 0x123).returned
    assert lab.memory.read(IDT + 72, 8) == gate(CODE0, 0x123)


@pytest.mark.parametrize("seg", [Seg.DS, Seg.ES, Seg.FS, Seg.GS, Seg.SS])
def test_a_rewritten_descriptor_reaches_segments_in_use(seg: Seg) -> None:
    lab = prepared(FAULT, "paravirt")
    held = lab.cpu.segment(seg)
    assert held.selector & ~3 == DATA0 and held.base == 0
    assert call(lab, "WriteGDTEntry", 0x00CF9300, eax=GDT, edx=DATA0 >> 3, ecx=0x7FFF).returned
    now = lab.cpu.segment(seg)
    assert (now.selector, now.base, now.limit, now.flags) == (held.selector, 0, 0xF7FFFFFF, 0xCFB300)


def test_a_descriptor_taken_away_leaves_segments_in_use() -> None:
    """As natively: the register keeps what it holds until it is loaded."""
    lab = prepared(FAULT, "paravirt")
    before = [lab.cpu.segment(seg) for seg in Seg]
    assert call(lab, "WriteGDTEntry", 0, eax=GDT, edx=DATA0 >> 3, ecx=0).returned
    assert before == [lab.cpu.segment(seg) for seg in Seg]


def test_a_table_that_is_not_loaded_is_only_written() -> None:
    lab = prepared(FAULT, "paravirt")
    before = [lab.cpu.segment(seg) for seg in Seg]
    assert call(lab, "WriteGDTEntry", 0x00CF9300, eax=BUFFER, edx=DATA0 >> 3, ecx=0x7FFF).returned
    assert call(lab, "WriteLDTEntry", 0x00CF9300, eax=GDT, edx=DATA0 >> 3, ecx=0x7FFF).returned
    assert before == [lab.cpu.segment(seg) for seg in Seg]
    assert lab.u32(BUFFER + (DATA0 & ~7)) == 0x7FFF


def test_a_local_descriptor_reaches_its_segment() -> None:
    lab = prepared(FAULT, "paravirt")
    lab.memory.write(0x5000 + 8, descriptor(0, 0xFFFFF, 0xF2))
    assert call(lab, "SetLDT", eax=LDT_SELECTOR).returned
    assert lab.domain is not None
    lab.domain.vcpu.load_segment(Seg.FS, 0x0F)
    assert call(lab, "WriteLDTEntry", 0x40CFF300, eax=0x5000, edx=1, ecx=0xFFFF).returned
    assert lab.cpu.segment(Seg.FS).base == 0x40000000


def test_set_gdt_keeps_segments_in_use() -> None:
    """An LGDT of a table in which the selectors mean something else."""
    lab = prepared(FAULT, "paravirt")
    before = [lab.cpu.segment(seg) for seg in Seg]
    lab.memory.write(BUFFER, (0x1F).to_bytes(2, "little") + (BUFFER + 0x100).to_bytes(4, "little"))
    lab.memory.write(BUFFER + 0x100 + 8, descriptor(0, 0xFFFFF, 0x92) + descriptor(0, 0xFFFFF, 0x9A))
    assert call(lab, "SetGDT", eax=BUFFER).returned
    assert before == [lab.cpu.segment(seg) for seg in Seg]
    assert [lab.memory.read(BUFFER + 0x100 + at + 5, 1)[0] >> 5 & 3 for at in (8, 16)] == [1, 1]


def test_a_table_that_is_not_mapped_in_full_is_raised_as_far_as_it_is() -> None:
    lab = prepared(FAULT, "paravirt")
    base = ABSENT - 16
    lab.memory.write(base + 8, descriptor(0, 0xFFFFF, 0x92))
    lab.memory.write(ABSENT + 0x1000, descriptor(0, 0xFFFFF, 0x92))
    lab.memory.write(BUFFER, (0x1FFF).to_bytes(2, "little") + base.to_bytes(4, "little"))
    assert call(lab, "SetGDT", eax=BUFFER).returned
    assert [lab.memory.read(at + 5, 1)[0] >> 5 & 3 for at in (base + 8, ABSENT + 0x1000)] == [1, 1]


def test_the_task_register_is_busy_once() -> None:
    lab = prepared(FAULT, "paravirt")
    assert call(lab, "SetTR", eax=TASK).returned
    assert lab.memory.read(GDT + TASK + 5, 1)[0] == 0x8B and lab.cpu.tr.base == TSS
    left = call(lab, "SetTR", eax=TASK)
    assert not left.returned and lab.cpu.eip == lab.labels["fault"]
