# SPDX-License-Identifier: GPL-2.0-only
"""Tasks and call gates: the same programs natively, trapped, and with the ROM's IRET."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import LANDING, MODES, Lab, exit_value, flags
from tests.hypervisor.test_transfer import DONE, fault_frame, to_user
from tests.native.guest import (
    CODE0,
    CODE3,
    DATA0,
    DATA3,
    GDT,
    KERNEL_STACK,
    STACK,
    TASK,
    TSS,
    USER_STACK,
    descriptor,
    gate,
)
from vmi.x86 import Eflags

TASK2, TSS2, GATE = 0x68, 0x3100, 0x70


def with_task(source: str, mode: str, vector: int = 6) -> Lab:
    """A guest with a second task at label ``task``, reached by a task gate in IDT and GDT."""
    lab = Lab(source, {}, mode, taken=False)
    lab.describe(TASK2, descriptor(TSS2, 0x67, 0x89, 0))
    lab.describe(GATE, gate(TASK2, 0, 0x85))
    lab.describe(TASK, descriptor(TSS, 0x67, 0x8B, 0))
    lab.memory.write(0x2000 + 8 * vector, gate(TASK2, 0, 0x85))
    words = [0] * 26
    words[8:10] = lab.labels["task"], 2
    words[14:16] = 0x7800, 0x5555
    words[18:24] = [DATA0, CODE0, DATA0, DATA0, 0, 0]
    for i, word in enumerate(words):
        lab.memory.put_u32(TSS2 + 4 * i, word)
    lab.take()
    return lab


@pytest.mark.parametrize("mode", MODES)
def test_a_task_gate_and_the_return_from_it(mode: str) -> None:
    """Twice, so that the handler's task goes on where it returned."""
    source = f"""
    start:  mov ebx, 1
            ud2
            ud2
            mov ebx, 7
            {DONE}
    task:   inc dword ptr [0x7000]
            add dword ptr [{TSS + 0x20:#x}], 2
            @iret
    again:  inc dword ptr [0x7004]
            add dword ptr [{TSS + 0x20:#x}], 2
            @iret
            hlt
    """
    lab = with_task(source, mode)
    assert exit_value(lab) == 1
    assert (lab.cpu.ebx, lab.u32(0x7000), lab.u32(0x7004)) == (7, 1, 1)
    assert lab.cpu.tr.selector == TASK and lab.cpu.cr(0) & 8
    busy = [lab.memory.read(GDT + selector + 5, 1)[0] for selector in (TASK, TASK2)]
    assert busy == [0x8B, 0x89]
    assert not flags(lab, Eflags.NT)
    assert lab.u32(TSS2 + 0x38) == 0x7800, "its stack is as it was"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", [TASK2, GATE])
@pytest.mark.parametrize("how", ["jmp", "call"])
def test_far_transfers_to_a_task(mode: str, how: str, target: int) -> None:
    back_again = (
        "@iret" if how == "call" else f"mov word ptr [esi + 0x604], {TASK}\njmp fword ptr [esi + 0x600]"
    )
    source = f"""
    start:  mov esi, 0x600
            mov dword ptr [esi], 0x1234
            mov word ptr [esi + 4], {target}
            {how} fword ptr [esi]
    back:   {DONE}
    task:   pushfd
            pop ecx
            mov [0x7000], ecx
            mov dword ptr [0x7004], 9
            {back_again}
    """
    lab = with_task(source, mode)
    assert exit_value(lab) == 1
    assert lab.u32(0x7004) == 9 and bool(lab.u32(0x7000) & Eflags.NT) == (how == "call")
    assert lab.cpu.tr.selector == TASK and lab.cpu.esp == STACK


@pytest.mark.parametrize("mode", ["full", "paravirt"])
@pytest.mark.parametrize("link", [0, TASK2, 0x7FF8, CODE0, 0x0C])
def test_a_return_to_no_task_is_refused_and_changes_nothing(mode: str, link: int) -> None:
    lab = Lab("start: @iret\nbehind: nop\nfault: hlt", {10: "fault"}, mode)
    lab.describe(TASK2, descriptor(TSS2, 0x67, 0x89, 0))
    lab.memory.put_u32(TSS, link)
    lab.push(0x202, CODE0, LANDING)
    esp = lab.cpu.esp
    lab.cpu.eflags |= Eflags.NT
    assert lab.step_to(lab.labels["fault"])
    frame = fault_frame(lab, 4)
    assert frame[:3] == [link & 0xFFFC, lab.labels["start"], CODE0] and frame[3] & Eflags.NT
    assert lab.cpu.esp == esp - 16 and lab.cpu.tr.selector == TASK


# -- call gates --------------------------------------------------------------------------------


def with_gate(source: str, mode: str, kind: int, entry: bytes) -> Lab:
    lab = Lab(source, {10: "fault", 11: "fault", 13: "fault"}, mode, taken=False)
    lab.describe(0x70, entry)
    lab.memory.put_u32(USER_STACK - 8, 0xAAAA)
    lab.memory.put_u32(USER_STACK - 4, 0xBBBB)
    lab.take()
    assert kind in (0x8C, 0xEC, 0x84, 0xE4)
    return lab


GATE_SOURCE = f"""
start:  {to_user("user")}
user:   sub esp, 8
        .byte 0x9a
        .long 0
        .word 0x73
after:  int 0x30
kernel: {DONE}
fault:  mov al, 2
        out 0xf4, al
"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [0xEC, 0xE4])
def test_user_code_calls_the_kernel_through_a_gate(mode: str, kind: int) -> None:
    size = 4 if kind & 8 else 2
    lab = with_gate(GATE_SOURCE, mode, kind, bytes(8))
    entry = bytearray(gate(CODE0, lab.labels["kernel"], kind))
    entry[4] = 2  # parameters
    if size == 2:
        lab.memory.write(lab.labels["kernel"] & 0xFFFF, lab.memory.read(lab.labels["kernel"], 16))
    lab.describe(0x70, bytes(entry))
    assert exit_value(lab) == 1
    raw = lab.memory.read(lab.cpu.esp, 6 * size)
    words = [int.from_bytes(raw[i : i + size], "little") for i in range(0, 6 * size, size)]
    parameters = [0xAAAA, 0xBBBB] if size == 4 else [0xAAAA, 0]
    mask = (1 << 8 * size) - 1
    assert words == [lab.labels["after"] & mask, CODE3, *parameters, USER_STACK - 8 & mask, DATA3]
    assert lab.cpu.esp == KERNEL_STACK - 6 * size
    assert lab.virtual_if, "a call changes no flags"


@pytest.mark.parametrize("mode", MODES)
def test_a_gate_whose_stack_is_bad(mode: str) -> None:
    lab = with_gate(GATE_SOURCE, mode, 0xEC, bytes(8))
    lab.describe(0x70, gate(CODE0, lab.labels["kernel"], 0xEC))
    lab.memory.put_u32(TSS + 8, 0x7FF8)
    end = lab.run()
    assert end.outcome == "triple_fault", "a fault finds no stack either"


@pytest.mark.parametrize("mode", MODES)
def test_a_gate_of_the_kernel_is_not_for_user_code(mode: str) -> None:
    lab = with_gate(GATE_SOURCE, mode, 0x8C, bytes(8))
    lab.describe(0x70, gate(CODE0, lab.labels["kernel"], 0x8C))
    assert exit_value(lab) == 2
    assert fault_frame(lab)[:3] == [0x70, lab.labels["after"] - 7, CODE3]


@pytest.mark.parametrize("mode", ["full", "paravirt"])
def test_a_guest_that_reaches_the_real_ring_0_is_brought_back(mode: str) -> None:
    """Code and stack descriptors that were rewritten and never used since: the CPU finds ring 0 there."""
    source = f"""
    start:  {to_user("user")}
    user:   .byte 0x9a
            .long 0
            .word 0x73
            hlt
    kernel: mov eax, cr0
            sidt [0x7000]
            nop
            int 0x30
    back:   {DONE}
    """
    lab = Lab(source, {0x30: "back"}, mode, silent=["start"] if mode == "full" else None)
    if mode == "full":
        lab.domain.breakpoints.remove(lab.labels["start"])  # type: ignore[union-attr]
        lab.cpu.eip = lab.labels["start"]
    lab.describe(0x70, gate(0x58, lab.labels["kernel"], 0xEC))
    lab.describe(0x58, descriptor(0, 0xFFFFF, 0x9A))
    lab.describe(0x60, descriptor(0, 0xFFFFF, 0x92))
    lab.memory.put_u32(TSS + 8, 0x60)
    assert exit_value(lab) == 1
    assert lab.cpu.cpl == 1 and lab.cpu.system_flags & 0x3200 == 0x200
    assert fault_frame(lab, 2) == [lab.labels["back"], 0x58]
