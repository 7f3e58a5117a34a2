# SPDX-License-Identifier: GPL-2.0-only
"""Faults while something else is being done: in a delivery, on a small stack; the bare machine decides."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import MODES, Lab, exit_value, flags
from tests.hypervisor.test_gates import TASK2, TSS2, with_task
from tests.hypervisor.test_transfer import DONE, fault_frame, to_user
from tests.native.guest import CODE0, CODE3, DATA0, DATA16, IDT, STACK, TASK, TSS, descriptor, gate
from vmi.native.registers import Segment
from vmi.x86 import Cr0, Eflags, Seg


@pytest.mark.parametrize("mode", MODES)
def test_a_double_fault_by_a_task_gate(mode: str) -> None:
    """#UD finds no gate, nor does the #GP of that: the task has its error code on top of its own stack."""
    lab = with_task(f"start: @sti\nnop\nbad: ud2\ntask: pop ecx\n{DONE}", mode, vector=8)
    assert exit_value(lab) == 1
    assert (lab.cpu.ecx, lab.cpu.esp, lab.cpu.tr.selector) == (0, 0x7800, TASK2)
    assert lab.u32(TSS + 0x20) == lab.labels["bad"], "where the task that is left goes on"
    assert lab.u32(TSS + 0x24) & Eflags.IF and lab.u32(TSS + 0x4C) == CODE0
    assert lab.u32(TSS2) == TASK and flags(lab, Eflags.NT) and lab.cpu.cr(0) & Cr0.TS


@pytest.mark.parametrize("mode", MODES)
def test_a_page_fault_in_the_delivery_of_a_page_fault_is_a_double_fault(mode: str) -> None:
    """The kernel's stack for entries from ring 3 is not there; #DF has a task of its own."""
    source = f"""
    start:  {to_user("user")}
    user:   mov eax, [0x1ff000]
    task:   pop ecx
            mov edx, cr2
            {DONE}
    """
    lab = with_task(source, mode, vector=8)
    lab.handle(14, "user")
    lab.page(0x1FF000, 0x1FD000)
    lab.memory.put_u32(TSS2 + 0x1C, lab.cpu.cr(3))
    lab.memory.put_u32(TSS + 4, 0x1FE000)
    assert exit_value(lab) == 1
    assert (lab.cpu.ecx, lab.cpu.edx) == (0, 0x1FDFFC)
    assert lab.u32(TSS + 0x20) == lab.labels["user"] and lab.u32(TSS + 0x4C) == CODE3


@pytest.mark.parametrize("mode", MODES)
def test_a_fault_that_meets_another_is_the_other_where_the_first_was(mode: str) -> None:
    """#UD whose gate leads to an absent segment is #NP, with the selector."""
    lab = Lab(f"start: nop\nbad: ud2\nfault: {DONE}", {11: "fault"}, mode, taken=False)
    lab.describe(0x58, descriptor(0, 0xFFFFF, 0x1A))
    lab.memory.write(IDT + 8 * 6, gate(0x58, lab.labels["fault"]))
    lab.take()
    assert exit_value(lab) == 1
    assert fault_frame(lab, 3) == [0x58, lab.labels["bad"], CODE0]


@pytest.mark.parametrize("mode", MODES)
def test_an_event_on_a_16_bit_stack(mode: str) -> None:
    """As kernels have it who return to 16-bit code: SP counts, and the upper half of ESP stays as it is."""
    source = f"""
    start:  mov ecx, esp
            int 0x30
    back:   mov edx, esp
            {DONE}
    h:      mov ebx, esp
            @iret
    """
    lab = Lab(source, {0x30: "h"}, mode)
    access = 0x9300 if mode == "native" else 0xB300
    selector = DATA16 if mode == "native" else DATA16 | 1
    lab.cpu.set_segment(Seg.SS, Segment(selector, 0, 0xFFFF, access))
    lab.cpu.esp = 0xABCD0000 | STACK
    assert exit_value(lab) == 1
    assert (lab.cpu.ecx, lab.cpu.ebx, lab.cpu.edx) == (
        0xABCD0000 | STACK,
        0xABCD0000 | STACK - 12,
        0xABCD0000 | STACK,
    )
    assert [lab.u32(STACK - 12 + 4 * i) for i in range(2)] == [lab.labels["back"], CODE0]


@pytest.mark.parametrize("mode", ["full", "paravirt"])
def test_a_debug_register_that_is_guarded(mode: str) -> None:
    """DR7.GD: the access itself is a #DB, with DR6.BD, and takes the guard away (unknown to the CPU core)."""
    source = f"""
    start:  mov eax, 0x2400
            mov dr7, eax
    bad:    mov ebx, dr0
            {DONE}
    h:      mov ecx, dr6
            mov edx, dr7
            mov esi, [esp]
            @iret
    """
    lab = Lab(source, {1: "h"}, mode)
    assert exit_value(lab) == 1
    assert lab.cpu.ecx & 1 << 13 and not lab.cpu.edx & 1 << 13 and lab.cpu.esi == lab.labels["bad"]


@pytest.mark.parametrize("mode", MODES)
def test_a_conforming_segment_keeps_the_ring_of_who_enters_it(mode: str) -> None:
    """From ring 3 by a far jump: the privileged instruction there is refused."""
    source = f"""
    start:  {to_user("user")}
    user:   .byte 0xea
            .long {{there}}
            .word 0x43
    there:  mov ebx, cs
            cli
    fault:  {DONE}
    """
    lab = Lab(source, {13: "fault"}, mode)
    assert exit_value(lab) == 1
    assert lab.cpu.ebx == 0x43
    assert fault_frame(lab, 3) == [0, lab.labels["there"] + 2, 0x43]


@pytest.mark.parametrize("mode", MODES)
def test_tables_read_as_they_were_loaded(mode: str) -> None:
    """SGDT, SIDT, SLDT and STR in user code, which nothing stops: the guest's own values."""
    source = f"""
    start:  {to_user("user")}
    user:   sgdt [0x7000]
            sidt [0x7010]
            sldt ecx
            str edx
            int 0x30
    h:      {DONE}
    """
    lab = Lab(source, {}, mode)
    lab.handle(0x30, "h", access=0xEE)
    assert exit_value(lab) == 1
    assert lab.memory.read(0x7000, 6) == bytes.fromhex("ff0f00100000")
    assert lab.memory.read(0x7010, 6) == bytes.fromhex("ff0700200000")
    assert (lab.cpu.ecx & 0xFFFF, lab.cpu.edx & 0xFFFF) == (0, TASK)
    assert lab.cpu.segment(Seg.DS).selector != DATA0
