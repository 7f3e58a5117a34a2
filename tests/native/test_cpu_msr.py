# SPDX-License-Identifier: GPL-2.0-only
"""RDMSR, WRMSR and RDTSC as a guest meets them; what each register holds is test_msr.py's matter."""

from __future__ import annotations

import pytest

from tests.native.bare import put
from tests.native.guest import CODE, CODE0, CODE3, PAGES, USER_STACK, Guest
from vmi.native.cpuid import MODELS
from vmi.native.msr import APIC_BASE, EFER, SYSENTER_EIP, TSC
from vmi.native.wiring import Stop
from vmi.x86 import Cr0, Cr4

DB, GP, PF = 1, 13, 14
UNKNOWN = 0x12345
NX = 1 << 63
DONE = "mov al,1 | out 0xf4,al"
WITH_NX = [name for name, model in MODELS.items() if model.has("nx")]


def read(index):
    return f"mov ecx,{index} | at: rdmsr"


def write(index, low, high=0):
    return f"mov ecx,{index} | mov eax,{low} | mov edx,{high} | at: wrmsr"


# -- what they do ---------------------------------------------------------------------------------


def test_what_is_written_is_read():
    lines = [f"mov ecx,{0x174 + n} | mov eax,{0x1230 + n} | xor edx,edx | wrmsr" for n in range(3)]
    lines += [
        f"mov ecx,{0x174 + n} | mov edx,9 | rdmsr | mov {to},eax"
        for n, to in enumerate(("ebx", "esi", "edi"))
    ]
    guest = Guest(" | ".join([*lines, DONE]))
    guest.exit_value()
    cpu = guest.cpu
    assert (cpu.ebx, cpu.esi, cpu.edi, cpu.edx) == (0x1230, 0x1231, 0x1232, 0)
    assert cpu.fast_call_target == (0x1230, 0x1231, 0x1232)
    assert guest.machine.exits["MSR read"] == guest.machine.exits["MSR write"] == 3


def test_registers_and_flags_around_them_are_untouched():
    source = f"mov al,0x7f | add al,1 | rdmsr | pushfd | pop ebp | wrmsr | pushfd | pop edi | {DONE}"
    guest = Guest(source)
    guest.cpu.ecx, guest.cpu.ebx, guest.cpu.esi = SYSENTER_EIP, 0x33, 0x66
    guest.exit_value()
    assert (guest.cpu.ecx, guest.cpu.ebx, guest.cpu.esi) == (SYSENTER_EIP, 0x33, 0x66)
    assert (guest.cpu.ebp, guest.cpu.edi) == (0x892, 0x892)


def test_time_stamp_counter_counts_instructions():
    guest = Guest(f"rdtsc | mov ebx,eax | nop | nop | mov ecx,{TSC} | rdmsr | mov esi,eax | {DONE}")
    guest.exit_value()
    assert guest.cpu.esi - guest.cpu.ebx == 5


def test_time_stamp_counter_that_is_set():
    """RDTSC goes on from there, into the upper half too."""
    guest = Guest(
        f"{write(TSC, 0xFFFFFFFE, 7)} | rdtsc | mov ebx,eax | mov esi,edx | rdtsc | mov edi,edx | {DONE}"
    )
    guest.exit_value()
    assert (guest.cpu.esi, guest.cpu.ebx, guest.cpu.edi) == (7, 0xFFFFFFFF, 8)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("name", WITH_NX)
def test_no_execute_follows_efer(name, on):
    """Its bit in a page table forbids fetches once WRMSR has set EFER.NXE, and is reserved before."""
    source = f"{write(EFER, 0x800 if on else 0)} | call edi | pf: hlt"
    guest = Guest(source, {PF: "pf"}, model=MODELS[name])
    for at, value in ((0, PAGES + 0x1001), (0x1000, PAGES + 0x2003)):
        guest.memory.write(PAGES + at, value.to_bytes(8, "little"))
    for page in range(512):
        value = page << 12 | 3 | (NX if page == 0x50 else 0)
        guest.memory.write(PAGES + 0x2000 + 8 * page, value.to_bytes(8, "little"))
    cpu = guest.cpu
    cpu.set_cr(3, PAGES)
    cpu.set_cr(4, Cr4.PAE)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    cpu.edi = 0x50000
    guest.run()
    assert guest.stack(2) == [0x11 if on else 9, 0x50000]
    assert cpu.cr2 == 0x50000


# -- refusals -------------------------------------------------------------------------------------

REFUSED = [read(UNKNOWN), write(UNKNOWN, 1), write(EFER, 1), write(APIC_BASE, 1, 1 << 31)]


@pytest.mark.parametrize("code", REFUSED)
def test_refused_on_ring_0(code):
    """An unknown register, or a value that one does not take: #GP(0) at the instruction, nothing changed."""
    guest = Guest(f"mov eax,0x55 | mov edx,0x66 | {code} | hlt | gp: hlt", {GP: "gp"})
    before = guest.cpu.efer, guest.machine.msr.save(), guest.machine.msr.read(APIC_BASE)
    guest.run()
    assert guest.stack(3) == [0, guest.labels["at"], CODE0]
    if "rdmsr" in code:
        assert (guest.cpu.eax, guest.cpu.edx) == (0x55, 0x66)
    assert (guest.cpu.efer, guest.machine.msr.save(), guest.machine.msr.read(APIC_BASE)) == before
    assert guest.machine.exits["#GP"] == 1


@pytest.mark.parametrize("code", [read(TSC), write(TSC, 1), read(UNKNOWN), write(UNKNOWN, 1)])
def test_ring_3_is_refused_always(code):
    """Before the owner is asked."""
    guest = Guest(f"user: {code} | hlt | gp: hlt", {GP: "gp"})
    guest.user("user", eflags=0x3002)
    guest.run()
    assert guest.stack(5) == [0, guest.labels["at"], CODE3, 0x3002, USER_STACK]
    assert guest.machine.exits["MSR read"] == guest.machine.exits["MSR write"] == 0


def test_handler_goes_on_behind():
    """As Linux does for registers that it only tries: the error code dropped, EIP advanced by two bytes."""
    guest = Guest(
        f"{read(UNKNOWN)} | mov ebx,0x77 | xor eax,eax | mov edx,eax | wrmsr | {DONE}"
        " | gp: inc esi | add dword ptr [esp+4],2 | add esp,4 | iretd",
        {GP: "gp"},
    )
    guest.cpu.esi = 0
    guest.exit_value()
    assert (guest.cpu.ebx, guest.cpu.esi) == (0x77, 2)


def test_flags_in_the_frame_of_a_refusal():
    guest = Guest(f"mov ecx,{UNKNOWN} | mov al,0x7f | add al,1 | rdmsr | gp: hlt", {GP: "gp"})
    guest.run()
    assert guest.stack(4)[3] == 0x892


def test_refusal_and_single_step():
    """The #GP only; its handler runs without TF, and DR6 knows of no step."""
    guest = Guest(
        f"mov ecx,{UNKNOWN} | push 0x102 | popfd | at: rdmsr | nop | nop | hlt"
        " | gp: mov ebx,dr6 | hlt | db: hlt",
        {GP: "gp", DB: "db"},
    )
    guest.run()
    assert guest.stack(4) == [0, guest.labels["at"], CODE0, 0x102]
    assert not guest.cpu.ebx & 0x4000
    assert guest.machine.exits["#DB"] == 0


def test_refusal_at_the_end_of_a_page_whose_next_is_absent():
    guest = Guest(f"mov ecx,{UNKNOWN} | mov edi,0x30ffe | jmp edi | gp: hlt", {GP: "gp"})
    guest.memory.write(0x30FFE, b"\x0f\x32")
    guest.page(0x31000)
    guest.run()
    assert guest.stack(2) == [0, 0x30FFE]
    assert guest.machine.exits["#PF"] == 0


def test_refusal_uses_one_instruction_of_the_budget(cpu, bus):
    put(cpu, "nop\nrdmsr\nnop\nnop")
    bus.act = lambda: cpu.refuse() if bus.log[-1] == ("rdmsr", 0) else None
    bus.read_msr = lambda index: None
    assert cpu.run(3) is Stop.BUDGET
    assert (cpu.instructions, cpu.eip) == (2, CODE + 1)
    assert bus.log == [(GP, False, 0, CODE + 1)]


def test_error_of_the_owner_comes_out_of_the_run(cpu, bus):
    put(cpu, "rdmsr\nnop")

    def fail():
        raise KeyError("no such register")

    bus.act = fail
    with pytest.raises(KeyError, match="no such register"):
        cpu.run(10)
