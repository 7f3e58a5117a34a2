# SPDX-License-Identifier: GPL-2.0-only
"""Calls that the ROM answers by itself: no call-out, the same effect, faults reported as the call's own."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import LANDING, ROM, ROM_AT, SITE, Lab, call, place_call
from tests.hypervisor.test_calls import ABSENT, BUFFER, FAULT, READ_ONLY, lab_for_calls
from tests.native.guest import (
    CODE3,
    DATA0,
    DATA3,
    GDT,
    IDT,
    KERNEL_STACK,
    PAGES,
    STACK,
    TASK,
    TSS,
    USER_STACK,
    descriptor,
    gate,
)
from vmi.rom.flavours import vmware
from vmi.x86 import Cr0, Seg

TLS = 0x6B  # a free GDT entry with RPL 3
USER_DATA, KERNEL_DATA, CALL_GATE, NOTHING = 0x00CFF300, 0x00CF9300, 0x00008C00, 0


def call_outs(lab: Lab) -> dict[str, int]:
    """Call-outs but for VMI_Init."""
    assert lab.domain is not None
    return {name: count for name, count in lab.domain.calls.items() if name != "VMI_Init"}


def entry(lab: Lab, table: int, index: int) -> tuple[int, int]:
    """The two dwords of an entry."""
    return lab.u32(table + 8 * index), lab.u32(table + 8 * index + 4)


@pytest.mark.parametrize(
    ("name", "table", "high", "calls_out"),
    [
        ("WriteIDTEntry", IDT, 0x8E00, False),
        ("WriteIDTEntry", BUFFER, 0x8E00, False),
        ("WriteIDTEntry", BUFFER + 4, 0x8E00, True),  # may lie on two pages
        ("WriteLDTEntry", BUFFER, USER_DATA, False),
        ("WriteLDTEntry", BUFFER, KERNEL_DATA, False),
        ("WriteLDTEntry", 0x5000, USER_DATA, True),  # the one in use
        ("WriteLDTEntry", BUFFER + 1, USER_DATA, True),
        ("WriteGDTEntry", BUFFER, KERNEL_DATA, False),
        ("WriteGDTEntry", GDT, USER_DATA, False),
        ("WriteGDTEntry", GDT, NOTHING, False),
        ("WriteGDTEntry", GDT, CALL_GATE, False),
        ("WriteGDTEntry", GDT, KERNEL_DATA, True),  # to be raised
        ("WriteGDTEntry", GDT, USER_DATA & ~0x4000, True),
        ("WriteGDTEntry", BUFFER + 2, NOTHING, True),
    ],
)
def test_an_entry_is_stored_without_a_call_out_where_that_is_all(
    name: str, table: int, high: int, calls_out: bool
) -> None:
    lab = lab_for_calls()
    lab.domain.vcpu.load_ldt(0x60)  # type: ignore[union-attr]
    left = call(lab, name, high, eax=table, edx=TLS >> 3, ecx=0x1234FFFF)
    assert left.returned and left.registers["esp"] == STACK - 4
    assert call_outs(lab) == ({name: 1} if calls_out else {})
    raised = high | 0x2000 if high == KERNEL_DATA and table == GDT else high
    assert entry(lab, table, TLS >> 3) == (0x1234FFFF, raised)


@pytest.mark.parametrize("seg", [Seg.DS, Seg.ES, Seg.FS, Seg.GS])
@pytest.mark.parametrize("rpl", [0, 3])
def test_an_entry_that_a_segment_register_holds_reaches_it(seg: Seg, rpl: int) -> None:
    lab = lab_for_calls()
    lab.describe(TLS, descriptor(0, 0xFFFFF, 0xF2))
    assert lab.domain is not None
    lab.domain.vcpu.load_segment(seg, TLS & ~3 | rpl)
    left = call(lab, "WriteGDTEntry", 0x10CFF300, eax=GDT, edx=TLS >> 3, ecx=0xFFFF, ebx=5)
    assert left.returned and left.registers["esp"] == STACK - 4 and left.registers["ebx"] == 5
    assert entry(lab, GDT, TLS >> 3) == (0xFFFF, 0x10CFF300)
    assert call_outs(lab) == ({} if seg is Seg.GS else {"WriteGDTEntry": 1})
    held = lab.cpu.segment(seg)
    assert (held.selector, held.base, held.flags & 0xF0FF00) == (TLS & ~3 | rpl, 0x10000000, 0xC0F300)


def test_gs_is_not_loaded_with_what_could_be_refused() -> None:
    """Code that can't be read: the hypervisor leaves the register what it has."""
    lab = lab_for_calls()
    lab.describe(TLS, descriptor(0x4000, 0xFFFFF, 0xF2))
    assert lab.domain is not None
    lab.domain.vcpu.load_segment(Seg.GS, TLS)
    assert call(lab, "WriteGDTEntry", 0x00CFF900, eax=GDT, edx=TLS >> 3, ecx=0xFFFF).returned
    assert call_outs(lab) == {"WriteGDTEntry": 1} and lab.cpu.segment(Seg.GS).base == 0x4000
    assert entry(lab, GDT, TLS >> 3) == (0xFFFF, 0x00CFF900)


def test_the_local_descriptor_with_the_same_index_is_another() -> None:
    lab = lab_for_calls()
    lab.memory.write(0x5000 + 8, descriptor(0x3000, 0xFFFFF, 0xF2))
    assert lab.domain is not None
    lab.domain.vcpu.load_ldt(0x60)
    lab.domain.vcpu.load_segment(Seg.GS, 0x0F)
    assert call(lab, "WriteGDTEntry", USER_DATA, eax=BUFFER, edx=1, ecx=0xFFFF).returned
    assert not call_outs(lab) and lab.cpu.segment(Seg.GS).base == 0x3000


def test_the_table_in_use_is_known_after_each_change() -> None:
    """By SetLDT and SetGDT, and none after SetLDT of a null selector."""
    lab = lab_for_calls()
    assert lab.word(vmware.LDT) == vmware.NO_TABLE and lab.word(vmware.GDT) == GDT
    assert call(lab, "SetLDT", eax=0x60).returned
    assert lab.word(vmware.LDT) == 0x5000
    assert call(lab, "SetLDT", eax=0).returned
    assert lab.word(vmware.LDT) == vmware.NO_TABLE
    lab.memory.write(BUFFER, (0x7FF).to_bytes(2, "little") + GDT.to_bytes(4, "little"))
    assert call(lab, "SetGDT", eax=BUFFER).returned
    assert (lab.word(vmware.GDT), lab.word(vmware.GDT_LIMIT)) == (GDT, 0x7FF)


# -- faults in ROM code ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["WriteIDTEntry", "WriteLDTEntry", "WriteGDTEntry"])
@pytest.mark.parametrize(("table", "error"), [(ABSENT, 2), (READ_ONLY, 3)])
def test_a_table_without_a_page_faults_at_the_call(name: str, table: int, error: int) -> None:
    """And nothing is lost: the handler maps the page, returns, and the call is made again."""
    lab = lab_for_calls()
    registers = {"eax": table, "edx": 3, "ecx": 0xFFFF, "ebx": 77, "esi": 78}
    left = call(lab, name, USER_DATA, **registers)
    assert not left.returned and not call_outs(lab)
    frame = [lab.u32(left.registers["esp"] + 4 * i) for i in range(5)]
    assert (frame[:3], frame[4]) == ([error, SITE, 0x08], USER_DATA), "the stack as it was before the call"
    assert lab.cpu.cr2 == table + 24
    assert {name: left.registers[name] for name in registers} == registers
    lab.memory.put_u32(PAGES + 0x1000 + 4 * (table >> 12), table | 7)
    lab.cpu.flush_tlb()
    place_call(lab, name)
    lab.cpu.eip, lab.cpu.esp = frame[1], left.registers["esp"] + 16
    assert lab.step_to(LANDING) and entry(lab, table, 3) == (0xFFFF, USER_DATA)


def test_a_fault_of_a_call_by_pointer_is_reported_in_the_rom() -> None:
    """How long such a call is can't be told from behind it; going on in the ROM is making it again."""
    lab = lab_for_calls()
    pointer = 0x6F000
    lab.memory.put_u32(pointer, ROM_AT + ROM.offset("WriteIDTEntry"))
    lab.cpu.write_memory(LANDING - 6, b"\xff\x15" + pointer.to_bytes(4, "little"))
    lab.cpu.eax, lab.cpu.edx, lab.cpu.ecx, lab.cpu.esp = ABSENT, 2, 0xFFFF, STACK
    lab.push(0x8E00)
    lab.cpu.eip = LANDING - 6
    assert lab.step_to(lab.labels["fault"])
    error, eip, cs, _flags, behind, high = lab.stack(6)
    assert (error, cs, behind, high) == (2, 0x08, LANDING, 0x8E00)
    assert ROM_AT + ROM.offset("WriteIDTEntry") <= eip < ROM_AT + ROM.offset("WriteIDTEntry") + 32
    lab.memory.put_u32(PAGES + 0x1000 + 4 * (ABSENT >> 12), ABSENT | 7)
    lab.cpu.eip, lab.cpu.esp = eip, lab.cpu.esp + 16
    assert lab.step_to(LANDING) and entry(lab, ABSENT, 2) == (0xFFFF, 0x8E00)


def test_a_call_out_by_pointer_is_reported_at_the_gate() -> None:
    lab = lab_for_calls()
    pointer = 0x6F000
    lab.memory.put_u32(pointer, ROM_AT + ROM.offset("SetGDT"))
    lab.cpu.write_memory(LANDING - 6, b"\xff\x15" + pointer.to_bytes(4, "little"))
    lab.cpu.eax, lab.cpu.esp, lab.cpu.eip = ABSENT, STACK, LANDING - 6
    assert lab.step_to(lab.labels["fault"])
    error, eip, _cs, _flags, behind = lab.stack(5)
    assert (error, behind) == (0, LANDING)
    lab.memory.put_u32(PAGES + 0x1000 + 4 * (ABSENT >> 12), ABSENT | 7)
    lab.memory.write(ABSENT, (0x7FF).to_bytes(2, "little") + GDT.to_bytes(4, "little"))
    lab.cpu.eip, lab.cpu.esp = eip, lab.cpu.esp + 16
    assert lab.step_to(LANDING) and lab.cpu.gdt.limit == 0x7FF


# -- control registers ---------------------------------------------------------------------------


def test_control_registers_are_read_without_a_call_out() -> None:
    """Whoever changed them: a call, an instruction, a page fault."""
    lab = lab_for_calls()
    read = {n: lambda n=n: call(lab, f"GetCR{n}").registers["eax"] for n in (0, 2, 3, 4)}
    assert {n: read[n]() for n in read} == {n: lab.cpu.cr(n) for n in read}
    assert call(lab, "SetCR4", eax=0x80).returned and read[4]() == 0x80
    assert call(lab, "SetCR2", eax=0x1234).returned and read[2]() == 0x1234
    before = read[0]()
    assert call(lab, "SetCR0", eax=before | Cr0.TS).returned and read[0]() == before | Cr0.TS
    assert lab.cpu.cr(0) & Cr0.TS
    assert call(lab, "CLTS").returned and read[0]() == before and not lab.cpu.cr(0) & Cr0.TS
    assert call(lab, "SetCR3", eax=PAGES | 8).returned and read[3]() == PAGES | 8
    assert set(call_outs(lab)) == {"SetCR0", "SetCR2", "SetCR3", "SetCR4", "CLTS"}


def test_what_is_so_already_needs_no_call_out() -> None:
    lab = lab_for_calls()
    assert call(lab, "CLTS").returned and call(lab, "SetCR0", eax=lab.cpu.cr(0)).returned
    assert not call_outs(lab)


def test_a_page_fault_shows_in_cr2_and_one_that_the_guest_never_sees_does_not() -> None:
    lab = lab_for_calls()
    call(lab, "SetCR2", eax=7)
    lab.cpu.cr2 = 0xBAD000  # as a fault that the hypervisor deals with leaves it
    assert call(lab, "GetCR2").registers["eax"] == 7
    call(lab, "WriteIDTEntry", 0x8E00, eax=ABSENT, edx=1, ecx=0)
    assert lab.cpu.eip == lab.labels["fault"]
    assert call(lab, "GetCR2").registers["eax"] == ABSENT + 8


def test_reading_registers_by_instruction_and_by_call_agree() -> None:
    source = f"start: mov ebx, cr0\nmov esi, cr3\nmov edi, cr4\nmov ecx, cr2\nstop: jmp stop\n{FAULT}"
    lab = Lab(source, mode="paravirt")
    lab.cpu.eip = lab.labels["start"]
    lab.step_to(lab.labels["stop"])
    cpu = lab.cpu
    shown = (cpu.ebx, cpu.ecx, cpu.esi, cpu.edi)
    assert shown == tuple(call(lab, f"GetCR{n}").registers["eax"] for n in (0, 2, 3, 4))


# -- the kernel's stack and IOPL -------------------------------------------------------------------


def entering(selector: int, esp: int) -> Lab:
    """A guest that was told of a kernel stack and whose user code then makes an INT."""
    lab = Lab("user: int 0x30\nhandler: jmp handler\nfault: jmp fault", mode="paravirt")
    lab.memory.write(IDT + 8 * 0x30, gate(0x08, lab.labels["handler"], 0xEE))
    lab.memory.write(IDT + 8 * 10, gate(0x08, lab.labels["fault"]))
    assert call(lab, "UpdateKernelStack", eax=selector, edx=esp).returned
    lab.user("user", 0x202)
    assert lab.step_to(lab.labels["handler"], lab.labels["fault"])
    return lab


@pytest.mark.parametrize("selector", [DATA0, DATA0 | 1, DATA0 | 0xABCD0000])
def test_the_kernel_stack_is_where_the_last_call_said(selector: int) -> None:
    lab = entering(selector, 0x6000)
    assert lab.cpu.eip == lab.labels["handler"] and lab.cpu.esp == 0x6000 - 20 and not call_outs(lab)
    assert lab.stack(5)[1:] == [CODE3, 0x202, USER_STACK, DATA3]
    assert lab.cpu.segment(Seg.SS).selector == DATA0 | 1


@pytest.mark.parametrize("selector", [DATA3, 0x08, 0x7FF8, TASK])
def test_a_kernel_stack_that_can_not_be_is_refused_when_it_is_used(selector: int) -> None:
    """As one in a TSS is; here the handler for that has no stack either, so it is a triple fault."""
    lab = Lab("user: int 0x30\nhandler: jmp handler", mode="paravirt")
    lab.memory.write(IDT + 8 * 0x30, gate(0x08, lab.labels["handler"], 0xEE))
    call(lab, "UpdateKernelStack", eax=selector, edx=0x6000)
    lab.user("user", 0x202)
    end = lab.run(ms=1)
    assert end.outcome == "triple_fault"


def test_without_the_call_the_stack_is_that_of_the_task() -> None:
    lab = Lab("user: int 0x30\nhandler: jmp handler", mode="paravirt")
    lab.memory.write(IDT + 8 * 0x30, gate(0x08, lab.labels["handler"], 0xEE))
    lab.user("user", 0x202)
    assert lab.step_to(lab.labels["handler"]) and lab.cpu.esp == KERNEL_STACK - 20


@pytest.mark.parametrize(("mask", "level"), [(0, 0), (0x1000, 1), (0x3000, 3), (0xFFFFFFFF, 3)])
def test_iopl_is_set_without_a_call_out(mask: int, level: int) -> None:
    lab = Lab(f"user: in al, 0x60\nend: jmp end\n{FAULT}", {13: "fault"}, "paravirt")
    assert call(lab, "SetIOPLMask", eax=mask).returned and not call_outs(lab)
    assert lab.domain is not None and lab.domain.privilege.io_level() == level
    assert lab.domain.privilege.frame_flags() & 0x3000 == level << 12
    assert not lab.cpu.system_flags & 0x3000, "the real one stays 0"
    lab.memory.put_u32(TSS + 0x64, 0x680000)  # no bitmap of ports
    lab.user("user", 0x202)
    lab.step_to(lab.labels["end"], lab.labels["fault"])
    assert lab.cpu.eip == lab.labels["end" if level == 3 else "fault"]


def test_a_data_page_full_of_nonsense_misleads_its_own_guest_only() -> None:
    lab = lab_for_calls()
    for at in range(0, 128, 4):
        lab.set_word(at, 0xDEADBEEF ^ at)
    assert lab.domain is not None and lab.domain.privilege.io_level() in range(4)
    assert call(lab, "GetCR0").registers["eax"] == 0xDEADBEEF ^ vmware.CR0 != lab.cpu.cr(0)
    assert call(lab, "SetCR3", eax=PAGES).returned and lab.cpu.cr(3) == PAGES
    lab.user("fault", 0x202)
    lab.run(ms=1)
    assert lab.machine.end is not None and lab.machine.end.outcome == "timeout"
