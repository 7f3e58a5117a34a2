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
from tests.native.guest import Guest
from vmi.native.machine import Outcome
from vmi.native.registers import TableRegister

DF, GP, DONE = 8, 13, 0x20
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
    code = (
        f"{TASK_AT} | {FLAGS} | call {TASK_GATE}:0 | after@: mov eax,cr0 | clts | int {DONE} | task@: iretd"
    )
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
    look = f"mov esi,[{NEW_TSS}] | mov ecx,[{GDT + TASK + 4}] | mov edx,[{GDT + NEW + 4}]"
    code = f"{TASK_AT} | {FLAGS} | jmp {NEW}:0 | after@: hlt | task@: mov eax,[{TSS + 0x20}] | {look}"
    seen = run(Case("", code))
    event = seen.event
    assert (event.eax, event.esi, event.tr) == (seen.at("after"), 0, NEW)
    assert (event.ecx >> 8 & 15, event.edx >> 8 & 15) == (9, 11)
    assert event.frame[2] == 2, "NT is not set"


def test_page_tables_of_a_task():
    """Its CR3 counts from its first instruction on."""
    copy = f"mov esi,{DIRECTORY} | mov edi,{DATA + 0x2000} | mov ecx,4096 | cld | rep movsb"
    code = f"{TASK_AT} | {copy} | mov dword ptr [{NEW_TSS + 0x1C}],{DATA + 0x2000}"
    assert run(Case("", f"{code} | jmp {NEW}:0 | task@: mov eax,cr3")).event.eax == DATA + 0x2000


# -- double and triple faults ---------------------------------------------------------------------


def test_double_fault_without_a_stack_goes_to_a_task():
    code = f"{task_gate(DF)} | mov esp,{ABSENT + 0x1000} | here@: push eax | hlt"
    look = f"task@: mov ebx,[{TSS + 0x20}] | mov ecx,[{TSS + 0x38}]"
    seen = run(Case("", f"{code} | {look}"))
    event = seen.event
    assert (event.vector, event.tr, event.cr2) == (DONE, NEW, ABSENT + 0xFFC)
    assert (event.ebx, event.ecx) == (seen.at("here"), ABSENT + 0x1000)
    assert event.words[3] == 0, "the double fault's error code"
    assert event.esp == NEW_STACK - 4 - 12 - 12


def test_double_fault_of_a_gate_that_is_none():
    seen = run(Case("", f"mov word ptr [{IDT + 8 * GP + 4}],0 | mov eax,0x1234 | here@: mov ds,ax"))
    assert (seen.event.vector, seen.event.error, seen.event.eip) == (DF, 0, seen.at("here"))


@pytest.mark.parametrize("source", ["ud2", "int 0x30", "mov eax,[0x3ff000]", "mov cr0,eax"])
@pytest.mark.parametrize("user", [False, True])
def test_triple_fault_names_the_instruction(source, user):
    guest = Guest(f"start: nop | mov eax,1 | bad: {source} | ud2")
    guest.page(0x3FF000)
    guest.cpu.idt = TableRegister(0, 0)
    if user:
        guest.user("start")
    at = guest.labels["bad"] + (3 if source == "mov cr0,eax" and not user else 0)
    end = guest.run()
    reason = f"the guest triple-faulted at {'0x1b' if user else '0x8'}:{at:#x}"
    assert (end.outcome, end.reason) == (Outcome.TRIPLE_FAULT, reason)


# -- the judge ------------------------------------------------------------------------------------


def _list(text):
    return [piece.strip() for piece in text.replace("\n", ";").split(";") if piece.strip()]


_RING_3 = f"""
clts; mov cr3,eax; mov eax,cr4; lmsw ax; smsw ax; sgdt [{DATA}]; sidt [{DATA}]; sldt eax; str eax; lldt ax
ltr ax; invlpg [0]; wbinvd; invd; cli; sti; hlt; rdmsr; wrmsr; mov dr0,eax; lgdt [{DATA}]; lidt [{DATA}]
rdtsc | xor eax,eax | xor edx,edx; .byte 0x0f,0xaa; .byte 0x0f,0x01,0xc1; .byte 0x0f,0x0b; .byte 0x0f,0xff
.byte 0xf0,0x90; .byte 0x8e,0xc8; .byte 0xff,0xff; .byte 0xd6; .byte 0x0f,0x01,0xd0; .byte 0x0f,0x01,0xf9
push 0x247cd7 | popfd | pushfd | pop eax; push 0x7cd7 | push {CODE3} | push {{u@}} | iretd | u@: nop
pushfd | push {CODE0} | push 0 | iretd; jmp {NEW}:0; jmp {CODE0}:0; mov eax,{CODE0} | lar ebx,eax
mov eax,{CODE3} | lar ebx,eax | lsl ecx,eax; mov eax,0x1000 | lsl esi,eax | pushfd | pop edi
"""
_RING_0 = f"""
mov eax,{DATA0} | lldt ax; mov eax,{TASK} | ltr ax; xor eax,eax | ltr ax; jmp {TASK}:0
push 0x4002 | popfd | iretd; xor eax,eax | lldt ax | mov eax,0xc | mov fs,ax
push 0x247cd7 | popfd | pushfd | pop eax | push 2 | popfd
mov eax,{CODE3} | lar ebx,eax | lsl ecx,eax | mov eax,{TASK} | lar edx,eax | lsl esi,eax
mov eax,{CODE0} | verr ax | pushfd | pop ebx | verw ax | pushfd | pop ecx
mov eax,0 | verr ax | pushfd | pop edi
mov eax,0x10 | mov ebx,0x13 | .byte 0x63,0xd8 | pushfd | pop ecx | .byte 0x63,0xd8 | pushfd | pop edx
pushfd | push {DATA0} | push 0 | iretd; pushfd | push 0 | push 0 | iretd
push {DATA0} | push 0 | pushfd | push {CODE3} | push 0 | iretd
mov eax,4 | mov cr4,eax | rdtsc | xor eax,eax | xor edx,edx
mov word ptr [{IDT + 8 * GP + 4}],0 | mov eax,0x1234 | mov ds,ax
"""

# Exceptions of the FPU and SSE, BOUND, and segments that are not there.
_CR0 = "mov cr0,eax"
_DIVIDE = "fninit | push 0x37b | .byte 0xd9,0x2c,0x24 | fld1 | fldz | .byte 0xde,0xf9"  # 1 / 0, unmasked
_ABSENT = f"mov dword ptr [{GDT + FREE}],0xffff | mov dword ptr [{GDT + FREE + 4}],0xcf1200 | mov eax,{FREE}"
_OTHERS = f"""
fninit | mov eax,0x80010019 | {_CR0} | fld1; mov eax,0x80010015 | {_CR0} | fninit
mov eax,0x8001001b | {_CR0} | .byte 0x9b
mov eax,0x80010013 | {_CR0} | .byte 0x9b
.byte 0x0f,0x57,0xc0
mov eax,0x200 | mov cr4,eax | .byte 0x0f,0x57,0xc0; mov eax,0x200 | mov cr4,eax | clts | .byte 0x0f,0xae,0x10
mov eax,0x80010031 | {_CR0} | {_DIVIDE} | nop | .byte 0x9b
mov eax,0x80010031 | {_CR0} | {_DIVIDE} | fnstsw ax | fld1
mov eax,5 | .byte 0x62,0x05 | .long {DATA}; mov eax,0x5 | bound eax,[{DATA + 0x10}]
fninit | fnstcw word ptr [{DATA}] | fnstsw ax
{_ABSENT} | mov ds,ax
{_ABSENT} | mov ss,ax
mov eax,{TASK} | mov fs,ax; mov eax,{CODE3} | mov ss,ax; mov eax,0xfff8 | mov gs,ax; xor eax,eax | mov ss,ax
mov eax,0x33 | mov fs,ax; mov eax,{DATA3} | mov es,ax | mov ebx,es; mov eax,{DATA0 | 3} | mov es,ax
"""


def _cases():
    for count in (0, 1, 2, 31):
        pushes = "".join(f"push {0x100 + n} | " for n in range(count))
        user = f"{pushes}stc | {CALL} | hlt | gate@: mov eax,[esp] | mov ebx,[esp+4] | mov ecx,[esp+8]"
        yield Case(f"{count} parameters", call_gate("gate@", parameters=count), user=user)
    user = f"push 1 | push 2 | {CALL} | mov ebx,esp | mov ecx,ss | int 0x31 | gate@: retf 8"
    yield Case("gate and back", call_gate("gate@", parameters=2), user=user)
    user = f"push 0x102 | popfd | {CALL} | nop | int 0x31 | gate@: nop | retf"
    yield Case("gate stepped", f"{call_gate('gate@')} | {more(4)}", user=user)
    for jump in (CALL, f"jmp {GATE}:0"):
        yield Case(f"{jump}, ring 0", f"{call_gate('gate@', parameters=2)} | {jump} | gate@: mov ebx,cs")
        yield Case(f"{jump}, ring 3", call_gate("gate@", parameters=2), user=f"{jump} | gate@: mov ebx,cs")
    conforming = f"mov dword ptr [{GDT + FREE}],0xffff | mov dword ptr [{GDT + FREE + 4}],0xcf9e00"
    gate = call_gate("gate@", selector=FREE)
    yield Case("conforming", f"{conforming} | {gate}", user=f"{CALL} | gate@: mov ebx,cs")
    for odd in (
        {"access": 0x8C},
        {"access": 0x6C},
        {"selector": 0},
        {"selector": DATA0},
        {"selector": 0x1000},
    ):
        yield Case(f"gate with {odd}", call_gate("gate@", **odd), user=f"{CALL} | gate@: nop")
    yield Case("gate to ring 3", f"{call_gate('gate@', selector=CODE3)} | {CALL} | gate@: nop")
    at = GDT + (GATE & ~7)
    gate = f"mov dword ptr [{at}],{CODE16 << 16} | mov dword ptr [{at + 4}],0xe402"
    low = " | ".join(f"mov {to},[esp+{2 * n}]" for n, to in enumerate(("ax", "bx", "cx", "dx", "si", "di")))
    words = ".byte 0x66,0x68,0x11,0x11 | .byte 0x66,0x68,0x22,0x22"
    yield Case("gate of 16 bits", gate, user=f"{words} | {CALL}", low=f"{low} | mov ebp,esp | int 0x20")
    end = f"mov ebx,0x77 | mov ecx,[{NEW_TSS}] | mov eax,cr0 | clts | int {DONE} | task@: iretd"
    yield Case("task and back", f"{TASK_AT} | {FLAGS} | call {TASK_GATE}:0 | {end}")
    yield Case(
        "task and back, ring 3", TASK_AT, user=f"{FLAGS} | call {TASK_GATE}:0 | int 0x31 | task@: iretd"
    )
    yield Case("inside the task", f"{TASK_AT} | call {TASK_GATE}:0 | task@: nop")
    look = f"mov eax,[{TSS + 0x20}] | mov ebx,[{TSS + 0x24}] | mov ecx,[{GDT + TASK + 4}]"
    yield Case("jump to a task", f"{TASK_AT} | {FLAGS} | jmp {NEW}:0 | task@: {look}")
    link = f"mov dword ptr [{TSS}],{NEW} | mov byte ptr [{GDT + NEW + 5}],0x8b | {TASK_AT}"
    yield Case("return to a task", f"{link} | push 0x4002 | popfd | iretd | task@: nop")
    yield Case("task by a gate", f"{task_gate(0x30)} | {FLAGS} | int 0x30 | mov eax,0x99 | {end}")
    fault = f"mov eax,0x1234 | mov ds,ax | task@: pop eax | int {DONE}"
    yield Case("task by a fault", f"{task_gate(GP)} | {FLAGS} | {fault}")
    stack = f"mov esp,{ABSENT + 0x1000} | push eax | task@: pop eax | mov ebx,[{TSS + 0x20}]"
    yield Case("task by a double fault", f"{task_gate(DF)} | {FLAGS} | {stack}")
    table = f"mov dword ptr [{DATA + 0x808}],{(DATA & 0xFFFF) << 16 | 0xFFF}"
    table += f" | mov dword ptr [{DATA + 0x80C}],{DATA >> 16 | 0x409300} | mov eax,{LDT} | lldt ax"
    load = "mov eax,0xc | mov fs,ax | mov ebx,fs:[0x808] | sldt ecx | lsl edx,eax | lar esi,eax"
    yield Case("local table", f"{table} | {load}")
    frame = f"push {DATA3} | push {USER_STACK} | push 2 | push {CODE3} | push {{u@}} | iretd"
    outer = (
        f"mov eax,{DATA0} | mov fs,ax | mov ecx,{DATA3} | mov gs,cx | {frame} | u@: mov eax,fs | mov ebx,gs"
    )
    yield Case("segments on the way out", outer)
    for text in [*_list(_RING_0), *_list(_OTHERS)]:
        yield Case(text, text)
    for text in _list(_RING_3):
        for iopl in (0, 3):
            yield Case(f"ring 3, IOPL {iopl}: {text}", user=text, flags=iopl << 12 | 2)
    yield Case("time stamp withheld", "mov eax,4 | mov cr4,eax", user="rdtsc")


@pytest.mark.e2e
@needs_qemu
def test_as_under_qemu(tmp_path):
    assert differences(tmp_path, list(_cases())) == []
