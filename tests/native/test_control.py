# SPDX-License-Identifier: GPL-2.0-only
"""MOV to CR0 and CR4 takes what the processor has features for, on ring 0 and on ring 1."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import Lab, exit_value
from tests.native.guest import DONE
from vmi.native import control
from vmi.native.cpuid import MODELS
from vmi.x86 import Cr0, Cr4

#: By model the bits of CR4 that it has.
TAKEN = {
    "486": Cr4.PSE | Cr4.PCE,
    "pentium": Cr4.DE | Cr4.PSE | Cr4.TSD | Cr4.MCE | Cr4.PCE,
    "i686": Cr4.PSE | Cr4.TSD | Cr4.PGE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT,
    "i686-pae": Cr4.PSE | Cr4.TSD | Cr4.PAE | Cr4.PGE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT,
    "qemu32": 0x7FC,
}
#: Tries each bit of CR4 for itself; EDI: what was taken, EBP: what was refused.
SOURCE = f"""
    start:  xor edi, edi
            xor ebp, ebp
            mov ebx, 1
    again:  mov cr4, ebx
    behind: mov eax, cr4
            or edi, eax
    next:   xor eax, eax
            mov cr4, eax
            shl ebx, 1
            jnz again
            {DONE}
    fault:  pop eax
            test eax, eax
            jnz wrong
            cmp dword ptr [esp], {{again}}
            jne wrong
            mov eax, cr4
            test eax, eax
            jnz wrong
            or ebp, ebx
            mov dword ptr [esp], {{next}}
            @iret
    wrong:  mov al, 7
            out 0xf4, al
"""
#: Loads CR0 with what is in ESI; EDI: CR0 behind it.
CR0 = f"""
    start:  mov ebx, cr0
            or esi, ebx
            mov cr0, esi
    behind: mov edi, cr0
            {DONE}
    fault:  add esp, 4
            mov dword ptr [esp], {{behind}}
            @iret
"""
MODES = ("native", "full")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TAKEN)
def test_bits_of_cr4_that_a_model_has_no_feature_for(name: str, mode: str) -> None:
    lab = Lab(SOURCE, {13: "fault"}, mode, model=MODELS[name])
    assert exit_value(lab) == 1
    assert (lab.cpu.edi, lab.cpu.ebp) == (TAKEN[name], 0xFFFFFFFF ^ TAKEN[name])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("bits", "taken"), [(Cr0.NW, False), (Cr0.CD, True), (Cr0.NW | Cr0.CD, True), (Cr0.WP | Cr0.AM, True)]
)
def test_what_does_not_go_together_in_cr0(bits: int, taken: bool, mode: str) -> None:
    lab = Lab(CR0, {13: "fault"}, mode)
    lab.cpu.esi = bits
    assert exit_value(lab) == 1
    assert (lab.cpu.edi & bits == bits) == taken
    assert lab.machine.exits["#GP"] == (not taken)


def test_paging_needs_protection() -> None:
    """On ring 0 only, as there are no rings without protection."""
    lab = Lab("mov cr0, esi\nhlt\nfault: add esp, 12\n" + DONE, {13: "fault"})
    before = lab.cpu.cr(0)
    lab.cpu.esi = Cr0.PG
    assert exit_value(lab) == 1
    assert lab.cpu.cr(0) == before
    assert not control.takes(0, Cr0.PG, 0) and control.takes(0, Cr0.PG | Cr0.PE, 0)


def test_other_registers_take_anything() -> None:
    assert all(control.takes(number, 0xFFFFFFFF, 0) for number in (2, 3))
