# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel on ring 1 is spared, and what it gets although the CPU core has no idea of it."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import MODES, SITE, Lab, call, exit_value
from tests.hypervisor.test_transfer import DONE, fault_frame
from tests.native.guest import CODE0, STACK
from vmi.native.cpuid import I686_APIC

DB, NMI = 1, 2
BD, GD = 1 << 13, 1 << 13
APIC, SPURIOUS, ICR_HIGH, ICR, AS_NMI = 0xFEE00000, 0xF0, 0x310, 0x300, 0x4400

# -- non-maskable interrupts -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flag", ["@sti", "@cli"])
def test_an_nmi_is_never_delivered(flag: str, mode: str) -> None:
    """One that the kernel sends to itself, and one from the board."""
    source = f"""
    start:  mov dword ptr [{APIC + SPURIOUS}], 0x1ff
            {flag}
            mov dword ptr [{APIC + ICR_HIGH}], 0
            mov dword ptr [{APIC + ICR}], {AS_NMI}
            nop
            {DONE}
    again:  nop
            nop
            {DONE}
    nmi:    mov al, 2
            out 0xf4, al
    """
    lab = Lab(source, {NMI: "nmi"}, mode, model=I686_APIC)
    assert exit_value(lab) == 1
    lapic = lab.machine.board.lapic
    assert lapic is not None and lapic.stats()["nmis"] == 1
    lapic.pulse_nmi()
    lab.cpu.eip = lab.labels["again"]
    assert exit_value(lab) == 1


# -- DR7.GD ------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", ["mov eax, dr0", "mov dr1, eax", "mov dr7, eax", "mov eax, dr6"])
def test_guarded_debug_registers(access: str) -> None:
    """The exception is at the instruction, says why, and finds the registers open."""
    source = f"""
    start:  mov eax, {GD | 0x400}
            mov dr7, eax
            mov eax, 0x5555
    bad:    {access}
            hlt
    debug:  mov ecx, dr6
            mov edx, dr7
            {DONE}
    """
    lab = Lab(source, {DB: "debug"}, "full")
    assert exit_value(lab) == 1
    assert (lab.cpu.ecx, lab.cpu.edx) == (0xFFFF0FF0 | BD, 0x400)
    assert fault_frame(lab, 2) == [lab.labels["bad"], CODE0]


@pytest.mark.parametrize(("name", "registers"), [("GetDR", {"eax": 0}), ("SetDR", {"eax": 1, "edx": 7})])
def test_guarded_debug_registers_are_guarded_from_calls_too(name: str, registers: dict[str, int]) -> None:
    """The call's own instruction is where it is reported, the stack as in front of it."""
    lab = Lab("start: nop\ndebug: jmp debug", {DB: "debug"}, "paravirt")
    assert call(lab, "SetDR", eax=7, edx=GD | 0x400).returned
    assert not call(lab, name, **registers).returned
    assert lab.cpu.eip == lab.labels["debug"]
    assert fault_frame(lab, 2) == [SITE, CODE0] and lab.cpu.esp == STACK - 12
    assert (lab.cpu.dr(6) & BD, lab.cpu.dr(7), lab.cpu.dr(1)) == (BD, 0x400, 0)
    assert call(lab, name, **registers).returned, "open until it is set again"
