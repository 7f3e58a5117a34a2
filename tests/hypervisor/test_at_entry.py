# SPDX-License-Identifier: GPL-2.0-only
"""Full virtualization of a kernel that unpacks itself: taken over where the kernel proper begins."""

from __future__ import annotations

import pytest

from tests.native.guest import CODE, Guest
from vmi.hypervisor.domain import Domain
from vmi.hypervisor.full import take_over_at_entry
from vmi.native.cpuid import I686
from vmi.native.machine import Outcome
from vmi.rom.assemble import assemble

LINKED = 0x60000  # where the kernel proper thinks that it is; its code does not mind
PACKED = 0x30000
KERNEL = """
start:  mov edx, cs
        cli
quiet:  pushfd
        pop ebx
        sti
loud:   pushfd
        pop ecx
        mov al, 1
        out 0xf4, al
"""


def unpacking(to: int, source: str = KERNEL) -> tuple[Guest, Domain, dict[int, bytes]]:
    """A guest whose loader, with a silent instruction of its own, moves the kernel and jumps to it."""
    loader = f"""
        pushfd
        pop ebp
        mov esi, {PACKED:#x}
        mov edi, {to:#x}
        mov ecx, 64
        rep movsb
        mov eax, {to:#x}
        jmp eax
    """
    kernel = assemble(source, LINKED)
    guest = Guest(loader, model=I686)
    guest.memory.write(PACKED, kernel.code.ljust(64, b"\x90"))
    code = kernel.code
    silent = {
        at: code[at - LINKED : at - LINKED + 2]
        for at in (LINKED, kernel.labels["quiet"], kernel.labels["loud"])
    }
    return guest, take_over_at_entry(guest.machine, LINKED, silent), silent


@pytest.mark.parametrize("to", [LINKED, LINKED + 0x5000, LINKED - 0x20000, CODE + 0x1000])
def test_it_is_found_wherever_it_is_unpacked_to(to: int) -> None:
    guest, domain, silent = unpacking(to)
    assert guest.exit_value() == 1
    cpu = guest.cpu
    assert domain.active and cpu.cpl == 1
    assert cpu.edx == 8, "CS as ring 0 sees it: the breakpoint at the first instruction was there in time"
    assert (cpu.ebx & 0x3200, cpu.ecx & 0x3200) == (0, 0x200)
    assert domain.breakpoints.originals() == {at - LINKED + to: code[0] for at, code in silent.items()}
    assert guest.machine.exits["breakpoint: pushfd"] == 2, "the loader's own is none of the kernel's"


def test_what_unpacks_it_runs_on_ring_0() -> None:
    guest, domain, _ = unpacking(LINKED)
    guest.cpu.run(5)
    assert not domain.active and guest.cpu.cpl == 0


def test_another_kernel_than_the_one_in_the_file_is_no_silent_native_run() -> None:
    guest, domain, _ = unpacking(LINKED)
    other = assemble(
        "start: mov eax, cr0\nor eax, 0x80000000\nmov cr0, eax\nmov eax, 0x62000\njmp eax", LINKED
    )
    guest.page()
    guest.cpu.set_cr(0, 1)
    guest.memory.write(PACKED, other.code.ljust(64, b"\x90"))
    end = guest.run()
    assert end.outcome is Outcome.CRASHED
    assert end.reason == (
        "the kernel that was unpacked is not the one in its file: it has switched paging on, "
        "but its sensitive instructions are not where they should be"
    )
    assert not domain.active
