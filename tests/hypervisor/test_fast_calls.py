# SPDX-License-Identifier: GPL-2.0-only
"""SYSENTER and SYSEXIT: into the kernel on its real ring, and out by the call or the instruction."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.hypervisor.lab import MODES, Lab, call, exit_value
from tests.hypervisor.test_calls_time import PIC
from tests.native.guest import CODE3, DATA3, GDT, STACK, USER_STACK, descriptor
from vmi.native.cpuid import I686
from vmi.native.machine import Outcome
from vmi.native.msr import SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP
from vmi.rom.flavours import vmware
from vmi.x86 import Seg

WITH_SEP = replace(I686, name="i686-sep", judge=I686.judge | {"sep", "msr"})
FAST = 0x68  # four segments: kernel code, kernel stack, user code, user stack
EXIT = {"native": "sti\nsysexit", "full": "sti\nsysexit", "paravirt": "call SYSEXIT"}
INTERRUPT = 0x40


def guest(mode: str, extra: str = "") -> Lab:
    """A guest whose user code makes system calls by SYSENTER, each of which adds to EBX."""
    source = f"""
    start:  {PIC}
            mov al, 0
            out 0xf4, al
    user:   nop
    again:  sysenter
    back:   inc esi
            jmp user
    kernel: inc ebx
            {extra}
            cmp ebx, 3
            je out
            mov edx, {{back}}
            mov ecx, {USER_STACK - 64}
    leave:  {EXIT[mode]}
    out:    mov al, 1
            out 0xf4, al
    tick:   push eax
            mov al, 0x20
            out 0x20, al
            mov eax, [esp + 8]
            mov [0x7004], eax
            inc dword ptr [0x7000]
            pop eax
            @iret
    fault:  hlt
    """
    handlers = {INTERRUPT: "tick", 13: "fault", 6: "fault"}
    lab = Lab(source, handlers, mode, model=WITH_SEP, silent=() if mode == "full" else None, taken=False)
    for number, access in enumerate((0x9A, 0x92, 0xFA, 0xF2)):
        lab.describe(FAST + 8 * number, descriptor(0, 0xFFFFF, access))
    assert exit_value(lab) == 0
    lab.take()
    for register, value in ((SYSENTER_CS, FAST), (SYSENTER_ESP, STACK), (SYSENTER_EIP, lab.labels["kernel"])):
        if mode == "paravirt":
            assert call(lab, "WRMSR", ecx=register, edx=0, eax=value).returned
        else:
            lab.machine.write_msr(register, value)
    lab.user("user", 0x202)
    lab.cpu.ebx = lab.cpu.esi = 0
    return lab


@pytest.mark.parametrize("mode", MODES)
def test_in_and_out(mode: str) -> None:
    lab = guest(mode)
    assert exit_value(lab) == 1
    assert (lab.cpu.ebx, lab.cpu.esi, lab.cpu.esp) == (3, 2, STACK)
    ring = 0 if mode == "native" else 1
    assert lab.cpu.cpl == ring and not lab.virtual_if
    if mode == "paravirt":
        assert lab.domain is not None and "SYSEXIT" not in lab.domain.calls, "the ROM knew where to go"


@pytest.mark.parametrize("mode", MODES)
def test_user_code_has_its_segments_and_interrupts(mode: str) -> None:
    lab = guest(mode)
    assert lab.step_to(lab.labels["leave"])
    assert lab.step_to(lab.labels["back"])
    assert lab.cpu.segment(Seg.CS).selector == FAST + 16 | 3
    assert lab.cpu.segment(Seg.SS).selector == FAST + 24 | 3
    assert lab.cpu.esp == USER_STACK - 64 and lab.cpu.cpl == 3 and lab.virtual_if


@pytest.mark.parametrize("mode", MODES)
def test_no_interrupt_comes_between_the_flag_and_user_mode(mode: str) -> None:
    """One that waits is taken in user code, or at the first instruction of it."""
    lab = guest(mode)
    assert lab.step_to(lab.labels["kernel"])
    lab.machine.interrupts.line(0).set(True)
    assert exit_value(lab) == 1 and lab.u32(0x7000) == 1
    assert lab.u32(0x7004) == FAST + 16 | 3, "user code was interrupted"


@pytest.mark.parametrize("mode", MODES)
def test_a_null_selector_switches_both_off(mode: str) -> None:
    lab = guest(mode, "mov ecx, 0x174\nxor eax, eax\nxor edx, edx\nwrmsr")
    lab.run(ms=1)
    assert lab.cpu.eip in (lab.labels["fault"], lab.labels["fault"] + 1) and lab.cpu.ebx == 1
    lab = guest(mode, "mov ecx, 0x174\nxor eax, eax\nxor edx, edx\nwrmsr")
    lab.machine.write_msr(SYSENTER_CS, 0)
    lab.run(ms=1)
    assert lab.cpu.eip in (lab.labels["fault"], lab.labels["fault"] + 1) and lab.cpu.ebx == 0


# -- the call on a processor without SYSENTER ----------------------------------------------------


def test_the_call_finds_flat_user_segments_by_itself() -> None:
    lab = Lab("start: nop\nsite: call SYSEXIT\nuser: jmp user", mode="paravirt")
    lab.cpu.eip, lab.cpu.edx, lab.cpu.ecx = lab.labels["site"], lab.labels["user"], USER_STACK
    lab.cpu.eax, lab.cpu.ebx = 0x11, 0x22
    assert lab.step_to(lab.labels["user"])
    assert (lab.cpu.segment(Seg.CS).selector, lab.cpu.segment(Seg.SS).selector) == (CODE3, DATA3)
    assert (lab.cpu.esp, lab.cpu.eax, lab.cpu.ebx) == (USER_STACK, 0x11, 0x22)
    assert lab.word(vmware.USER_CS) == CODE3 and lab.word(vmware.USER_SS) == DATA3


def test_segments_that_are_no_more_are_looked_for_again() -> None:
    """The ROM goes by what it was told last; its IRETD is refused, and the hypervisor does the call."""
    lab = Lab("start: nop\nsite: call SYSEXIT\nuser: jmp user\nfault: hlt", {13: "fault"}, "paravirt")
    lab.set_word(vmware.USER_CS, 0x7FFB)
    lab.set_word(vmware.USER_SS, DATA3)
    lab.cpu.eip, lab.cpu.edx, lab.cpu.ecx = lab.labels["site"], lab.labels["user"], USER_STACK
    lab.cpu.eax = 0x5A
    assert lab.step_to(lab.labels["user"], lab.labels["fault"]) and lab.cpu.eip == lab.labels["user"]
    assert lab.cpu.eax == 0x5A and lab.word(vmware.USER_CS) == CODE3
    lab = Lab("start: nop\nsite: call SYSEXIT\nuser: jmp user\nfault: hlt", {13: "fault"}, "paravirt")
    lab.set_word(vmware.USER_CS, CODE3)
    lab.set_word(vmware.USER_SS, DATA3)
    lab.memory.write(GDT + (CODE3 & ~7), bytes(8))
    lab.cpu.eip, lab.cpu.edx, lab.cpu.ecx = lab.labels["site"], lab.labels["user"], USER_STACK
    assert lab.step_to(lab.labels["user"], lab.labels["fault"]) and lab.cpu.eip == lab.labels["fault"]
    assert lab.stack(3)[:2] == [0, lab.labels["site"]] and lab.cpu.esp == STACK - 16
    assert not lab.virtual_if


def test_user_code_can_not_reach_the_call_s_gate() -> None:
    lab = Lab("user: int 0x82\nfault: hlt", {13: "fault"}, "paravirt")
    lab.user("user", 0x202)
    end = lab.run(ms=1)
    assert end.outcome is Outcome.HALTED or lab.cpu.eip == lab.labels["fault"]
    assert lab.stack(2) == [0x82 * 8 + 2, lab.labels["user"]]
