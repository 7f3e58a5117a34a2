# SPDX-License-Identifier: GPL-2.0-only
"""SYSENTER and SYSEXIT: the way in and out, and what they refuse. SYSCALL is no instruction here."""

from __future__ import annotations

import pytest

from tests.e2e.qemu import needs_qemu
from tests.native.bare import put
from tests.native.corners import (
    ABSENT,
    CODE3,
    DATA3,
    FAST,
    KERNEL_STACK,
    LOW,
    USER_STACK,
    Case,
    differences,
    more,
    run,
    run_all,
    store,
)
from tests.native.guest import CODE
from vmi.native.wiring import Stop
from vmi.x86 import Seg

DB, UD, GP, PF, DONE, ENTERED = 1, 6, 13, 14, 0x20, 0x31
KERNEL = f"k@: nop | int {ENTERED}"


def msrs(selector, esp=KERNEL_STACK, eip="{k@}"):
    """Code that sets where SYSENTER goes."""
    values = enumerate((selector, esp, eip), 0x174)
    return " | ".join(f"mov ecx,{index} | mov eax,{value} | xor edx,edx | wrmsr" for index, value in values)


READY = msrs(FAST)
EXIT = f"mov edx,{{k@}} | mov ecx,{USER_STACK}"


# -- the way in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [2, 0x246, 0x3246, 0x4002, 0x40002, 0xED7, 0x202, 0x402])
def test_way_in_clears_if_and_nothing_else(flags):
    seen = run(Case("", READY, user=f"push {flags} | popfd | sysenter | hlt | {KERNEL}", flags=0x3002))
    event = seen.event
    assert (event.vector, event.eip, event.frame[1]) == (ENTERED, seen.at("k") + 3, FAST)
    assert event.frame[2] == flags & ~0x200 | 0x3002, "IOPL is not for ring 3 to change"
    assert (event.ss, event.esp) == (FAST + 8, KERNEL_STACK - 24)
    assert (event.es, event.ds) == (DATA3, DATA3), "the rest is as it was"


def test_from_ring_0():
    event = run(Case("", f"{READY} | stc | sysenter | hlt | {KERNEL}")).event
    assert (event.vector, event.frame[1:3], event.ss) == (ENTERED, (FAST, 0x47), FAST + 8)


def test_from_virtual_8086_mode():
    """VM is cleared; the data segments keep what they had."""
    code = f"{READY} | jmp go@ | {KERNEL} | go@: nop"
    event = run(Case("", code, low="stc | sysenter | hlt", v86=True, flags=0x3202)).event
    assert (event.vector, event.frame[1:3], event.ss) == (ENTERED, (FAST, 0x3003), FAST + 8)
    assert (event.es, event.ds) == (2, 3)


def test_way_out():
    out = f"{READY} | {EXIT} | stc | sysexit | hlt | {KERNEL}"
    event = run(Case("", out)).event
    assert (event.vector, event.frame[1:]) == (ENTERED, (FAST + 16 | 3, 0x47, USER_STACK, FAST + 24 | 3))


def test_there_and_back():
    user = (
        "mov ebx,esp | mov esi,{back@} | sub al,al | sysenter | hlt"
        " | k@: mov ecx,ebx | mov edx,esi | stc | sti | sysexit"
        " | back@: pushfd | pop eax | mov ebx,cs | mov ebp,ss | mov ecx,esp"
    )
    event = run(Case("", READY, user=user)).event
    assert event.vector == DONE
    assert (event.eax, event.ebx, event.ebp, event.ecx) == (0x247, FAST + 16 | 3, FAST + 24 | 3, USER_STACK)


def test_code_segments_are_flat_whatever_the_table_says(cpu):
    """No descriptor is read: base 0, all of 4 GiB, 32 bits."""
    put(cpu, "sysenter", CODE)
    put(cpu, "hlt", 0x20000)
    cpu.fast_call_target = (0x1230, 0x7000, 0x20000)
    cpu.eip = CODE
    assert cpu.run(10) is Stop.HALTED
    code, stack = cpu.segment(Seg.CS), cpu.segment(Seg.SS)
    assert (code.selector, code.base, code.limit, code.flags) == (0x1230, 0, 0xFFFFFFFF, 0xCF9B00)
    assert (stack.selector, stack.base, stack.limit, stack.flags) == (0x1238, 0, 0xFFFFFFFF, 0xCF9300)
    assert (cpu.cpl, cpu.esp, cpu.instructions) == (0, 0x7000, 2)


@pytest.mark.parametrize("prefix", [0x66, 0x67, 0xF3, 0xF2, 0x2E])
def test_prefixes_change_nothing(prefix):
    enter, leave = run_all(
        [
            Case("", READY, user=f".byte {prefix} | sysenter | hlt | {KERNEL}"),
            Case("", f"{READY} | {EXIT} | .byte {prefix} | sysexit | hlt | {KERNEL}"),
        ]
    )
    assert [(seen.event.vector, seen.event.frame[1]) for seen in (enter, leave)] == [
        (ENTERED, FAST),
        (ENTERED, FAST + 16 | 3),
    ]


def test_target_that_is_not_in_memory():
    event = run(Case("", msrs(FAST, eip=ABSENT), user="sysenter")).event
    assert (event.vector, event.error, event.cr2, event.frame[:2]) == (PF, 0, ABSENT, (ABSENT, FAST))


def test_single_step_into_the_kernel():
    """The step is told behind the first instruction, in front of the kernel's."""
    seen = run(Case("", READY, user=f"push 0x102 | popfd | sysenter | hlt | {KERNEL}"))
    event = seen.event
    assert (event.vector, event.frame[:3], event.dr6) == (DB, (seen.at("k"), FAST, 0x102), 0xFFFF4FF0)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", [0, 1, 2, 3])
def test_no_target_is_a_protection_fault(selector):
    """The manual asks for a selector but for its lowest two bits; QEMU takes any number but 0."""
    seen = run(Case("", msrs(selector), user=f"mov al,0x7f | add al,1 | here@: sysenter | hlt | {KERNEL}"))
    event = seen.event
    assert (event.vector, event.error) == (GP, 0)
    assert event.frame == (seen.at("here"), CODE3, 0x892, USER_STACK, DATA3)


def test_no_target_while_stepping_is_a_protection_fault_only():
    seen = run(
        Case("", more(1, coded=[GP], advance=2), user="push 0x102 | popfd | here@: sysenter | nop | nop")
    )
    fault, step = seen.events
    assert (fault.vector, fault.eip, fault.frame[2], fault.dr6) == (GP, seen.at("here"), 0x102, 0xFFFF0FF0)
    assert (step.vector, step.eip) == (DB, seen.at("here") + 3)


@pytest.mark.parametrize("v86", [False, True])
def test_no_target_from_elsewhere(v86):
    code = "here@: stc | sysenter"
    seen = run(Case("", low="stc | sysenter", v86=True) if v86 else Case("", code))
    wanted = (1, LOW >> 4) if v86 else (seen.at("here") + 1, 8)
    assert (seen.event.vector, seen.event.error, seen.event.frame[:2]) == (GP, 0, wanted)


def test_no_target_at_the_end_of_a_page_whose_next_is_absent():
    at = ABSENT - 2
    event = run(Case("", store(at, "0f34"), user=f"mov eax,{at} | jmp eax")).event
    assert (event.vector, event.error, event.eip) == (GP, 0, at)


def test_way_out_from_ring_3_and_without_target():
    outer, none = run_all(
        [Case("", READY, user=f"{EXIT} | here@: sysexit | {KERNEL}"), Case("", "here@: sysexit")]
    )
    for seen in (outer, none):
        assert (seen.event.vector, seen.event.error, seen.event.eip) == (GP, 0, seen.at("here"))


@pytest.mark.parametrize("ring", [0, 3])
def test_syscall_is_an_invalid_opcode(ring):
    source = "mov al,0x7f | add al,1 | here@: .byte 0x0f,0x05 | nop"
    seen = run(Case("", source) if ring == 0 else Case("", user=source))
    event = seen.event
    assert (event.vector, event.eip, event.frame[2], event.eax & 0xFF) == (UD, seen.at("here"), 0x892, 0x80)


def test_syscall_while_stepping():
    source = "push 0x102 | popfd | here@: .byte 0x0f,0x05 | nop | nop"
    seen = run(Case("", more(1, advance=2), user=source))
    fault, step = seen.events
    assert (fault.vector, fault.eip, fault.dr6) == (UD, seen.at("here"), 0xFFFF0FF0)
    assert (step.vector, step.eip) == (DB, seen.at("here") + 3)


# -- the judge ------------------------------------------------------------------------------------


def _cases():
    for flags in (2, 0x246, 0x3246, 0x4002, 0x40002, 0xAD7, 0x202, 0x402):
        user = f"push {flags} | popfd | sysenter | hlt | {KERNEL}"
        yield Case(f"ring 3, flags {flags:#x}", READY, user=user, flags=0x3002)
    yield Case("ring 0", f"{READY} | stc | sysenter | hlt | {KERNEL}")
    for selector in (0, 4, FAST | 3, FAST | 4, 0xFFFF, 0x10000 | FAST):
        yield Case(f"to {selector:#x}", msrs(selector), user=f"stc | sysenter | hlt | {KERNEL}")
    for selector in (0, 1, 2, 3, 4, FAST | 3, FAST | 4, 0xFFFF):
        yield Case(f"from {selector:#x}", f"{msrs(selector)} | {EXIT} | stc | sysexit | hlt | {KERNEL}")
    for prefix in (0x66, 0x67, 0xF3, 0xF2, 0x2E, 0xF0):
        yield Case(f"in with {prefix:#x}", READY, user=f".byte {prefix} | sysenter | hlt | {KERNEL}")
        yield Case(f"out with {prefix:#x}", f"{READY} | {EXIT} | .byte {prefix} | sysexit | hlt | {KERNEL}")
    yield Case("out from ring 3", READY, user=f"{EXIT} | sysexit | {KERNEL}")
    for name, code in (("with", READY), ("without", "nop")):
        step = "push 0x102 | popfd | sysenter | nop | nop | nop | hlt"
        yield Case(f"stepped {name} target", f"{code} | {more(3, coded=[GP])}", user=f"{step} | {KERNEL}")
        low = "stc | sysenter | hlt"
        yield Case(
            f"virtual 8086 {name} target", f"{code} | jmp go@ | {KERNEL} | go@: nop", low=low, v86=True
        )
        shadow = f"sti | sysenter | hlt | {KERNEL}"
        yield Case(f"shadow {name} target", code, user=shadow, flags=0x3002)
        edge = f"{code} | {store(ABSENT - 2, '0f34')}"
        yield Case(f"edge {name} target", edge, user=f"mov eax,{ABSENT - 2} | jmp eax | {KERNEL}")
        flags = f"mov al,0x7f | add al,1 | sysenter | hlt | {KERNEL}"
        yield Case(f"flags {name} target", code, user=flags)
    yield Case("stepped out", f"{READY} | {EXIT} | push 0x102 | popfd | sysexit | hlt | {KERNEL}")
    yield Case("absent target", msrs(FAST, eip=ABSENT), user="sysenter")
    armed = f"{READY} | mov eax,{{k@}} | mov dr0,eax | mov eax,3 | mov dr7,eax"
    yield Case("breakpoint at the target", armed, user=f"sysenter | hlt | {KERNEL}")
    look = " | ".join(
        f"mov ecx,{n} | rdmsr | mov {to},eax" for n, to in ((0x174, "ebx"), (0x175, "esi"), (0x176, "edi"))
    )
    yield Case("registers", f"{msrs(0x12345678, 0x23456789, 0x3456789A)} | {look}")
    wild = f"sysenter | hlt | k@: mov eax,esp | mov esp,{KERNEL_STACK} | int {ENTERED}"
    yield Case("any stack", msrs(FAST, 0x12345678), user=wild)
    for code in ("0x0f,0x05", "0x0f,0x07"):
        yield Case(code, user=f"stc | .byte {code} | nop")


@pytest.mark.e2e
@needs_qemu
def test_as_under_qemu(tmp_path):
    assert differences(tmp_path, list(_cases())) == []
