# SPDX-License-Identifier: GPL-2.0-only
"""Call gates, tasks, double faults, descriptors, and what ring 3 may not do."""

from __future__ import annotations

import pytest

from tests.e2e.qemu import needs_qemu
from tests.native.corners import (
    ABSENT,
    CODE0,
    CODE3,
    CODE16,
    DATA,
    DATA0,
    DATA3,
    DIRECTORY,
    FREE,
    GATE,
    GDT,
    IDT,
    KERNEL_STACK,
    LDT,
    NEW,
    NEW_STACK,
    NEW_TSS,
    STACK,
    TASK,
    TASK_GATE,
    TSS,
    USER_STACK,
    Case,
    call_gate,
    differences,
    more,
    run,
)
from tests.native.guest import FREE as GUEST_FREE
from tests.native.guest import PAGES, Guest
from vmi.native.machine import Outcome
from vmi.native.registers import TableRegister

DB, UD, DF, TS, GP, PF, DONE = 1, 6, 8, 10, 13, 14, 0x20
TASK_AT = f"mov dword ptr [{NEW_TSS + 0x20}],{{task@}}"
CALL = f"call {GATE}:0"
FLAGS = "push 7 | popfd"  # QEMU forgets at a task switch what it has not computed yet


def task_gate(vector):
    """Code that makes a vector a task."""
    at = IDT + 8 * vector
    return f"{TASK_AT} | mov dword ptr [{at}],{NEW << 16} | mov dword ptr [{at + 4}],0x8500"


# -- call gates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 31])
def test_call_gate_copies_parameters(count):
    pushes = "".join(f"push {0x100 + n} | " for n in range(count))
    user = f"{pushes}{CALL} | back@: hlt | gate@: mov esi,esp | mov ecx,[esp+8] | int {DONE}"
    seen = run(Case("", call_gate("gate@", parameters=count), user=user))
    event = seen.event
    assert (event.vector, event.frame[1], event.ss) == (DONE, CODE0, DATA0)
    assert event.esi == KERNEL_STACK - 16 - 4 * count
    wanted = [seen.at("back"), CODE3, *(0x100 + n for n in reversed(range(count)))]
    assert event.ecx == [*wanted, USER_STACK - 4 * count, DATA3][2]
    assert event.words[3:] == tuple([*wanted, USER_STACK - 4 * count, DATA3, 0, 0, 0][:6])


def test_call_gate_and_back_with_the_parameters_removed():
    user = f"push 1 | push 2 | {CALL} | mov ebx,esp | mov ecx,ss | mov edx,cs | int {DONE} | gate@: retf 8"
    event = run(Case("", call_gate("gate@", parameters=2), user=user)).event
    assert (event.vector, event.ebx, event.ecx, event.edx) == (DONE, USER_STACK, DATA3, CODE3)


def test_call_gate_on_the_same_ring_copies_nothing():
    code = f"{call_gate('gate@', parameters=3)} | {CALL} | back@: hlt | gate@: mov esi,esp | int {DONE}"
    seen = run(Case("", code))
    assert (seen.event.esi, seen.event.words[3:5]) == (STACK - 8, (seen.at("back"), CODE0))


@pytest.mark.parametrize(
    ("gate", "vector", "error"),
    [
        ({"access": 0x8C}, GP, GATE & ~3),
        ({"access": 0x6C}, 11, GATE & ~3),
        ({"selector": 0}, GP, 0),
        ({"selector": DATA0}, GP, DATA0),
        ({"selector": 0x1000}, GP, 0x1000),
    ],
)
def test_refused_call_gate(gate, vector, error):
    seen = run(Case("", call_gate("gate@", **gate), user=f"here@: {CALL} | gate@: nop"))
    event = seen.event
    assert (event.vector, event.error, event.frame) == (
        vector, error, (seen.at("here"), CODE3, 2, USER_STACK, DATA3)
    )  # fmt: skip


# -- tasks ----------------------------------------------------------------------------------------


def test_task_by_a_far_call_and_back():
    code = f"{TASK_AT} | {FLAGS} | call {TASK_GATE}:0 | after@: mov eax,cr0 | clts | int {DONE} | task@: iretd"
    seen = run(Case("", code))
    event = seen.event
    assert (event.vector, event.tr, event.frame[2]) == (DONE, TASK, 7)
    assert event.eax & 8, "CR0.TS"
    assert (event.ebx, event.ecx) == (0, 0x101)


def test_task_from_ring_3_and_back():
    user = f"{FLAGS} | call {TASK_GATE}:0 | mov eax,cs | mov ebx,0x77 | int {DONE} | task@: iretd"
    event = run(Case("", TASK_AT, user=user)).event
    assert (event.eax, event.ebx, event.frame[2], event.tr) == (CODE3, 0x77, 7, TASK)


def test_task_by_a_far_jump_has_no_way_back():
    look = f"mov eax,[{TSS + 0x20}] | mov esi,[{NEW_TSS}] | mov ecx,[{GDT + TASK + 4}] | mov edx,[{GDT + NEW + 4}]"
    seen = run(Case("", f"{TASK_AT} | {FLAGS} | jmp {NEW}:0 | after@: hlt | task@: {look}"))
    event = seen.event
    assert (event.eax, event.esi, event.tr) == (seen.at("after"), 0, NEW)
    assert (event.ecx >> 8 & 15, event.edx >> 8 & 15) == (9, 11)
    assert event.frame[2] == 2, "NT is not set"


def test_page_tables_of_a_task():
    """Its CR3 counts from its first instruction on."""
    other = f"mov esi,{DIRECTORY} | mov edi,{DATA + 0x2000} | mov ecx,1024 | cld | rep movsb"
    other = other.replace("ecx,1024", "ecx,4096")
    code = f"{TASK_AT} | {other} | mov dword ptr [{NEW_TSS + 0x1C}],{DATA + 0x2000} | jmp {NEW}:0 | task@: mov eax,cr3"
    assert run(Case("", code)).event.eax == DATA + 0x2000


# -- double and triple faults ---------------------------------------------------------------------


def test_double_fault_by_a_task_gate_when_there_is_no_stack():
    code = f"{task_gate(DF)} | mov esp,{ABSENT + 4} | push eax | here@: push eax | hlt"
    code += f" | task@: mov ebx,[{TSS + 0x20}] | mov ecx,[{TSS + 0x38}]"
    code = code.replace("push eax | here@", "nop | here@").replace(f"esp,{ABSENT + 4}", f"esp,{ABSENT}")
    code = code.replace(f"mov esp,{ABSENT}", f"mov dword ptr [{GDT + FREE}],0 | mov esp,{ABSENT + 0x1000}")
    seen = run(Case("", code))
    event = seen.event
    assert (event.vector, event.tr, event.ebx, event.ecx) == (DONE, NEW, seen.at("here"), ABSENT + 0x1000)
    assert event.esp == NEW_STACK - 4 - 24 + 4 - 4
    assert event.words[3] == 0, "the double fault's error code"
