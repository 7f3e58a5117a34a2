# SPDX-License-Identifier: GPL-2.0-only
"""What keeps guests apart: from the hypervisor, from each other, and user code from the kernel's calls."""

from __future__ import annotations

import re

import pytest

from tests.hypervisor import storm
from tests.hypervisor.lab import ROM, ROM_AT, Lab, call, exit_value
from tests.hypervisor.test_transfer import DONE, fault_frame, to_user
from tests.native.guest import CODE0, CODE3
from vmi.abi import BY_NAME
from vmi.native.event_log import EventLog
from vmi.native.machine import Outcome
from vmi.rom import layout
from vmi.rom.flavours import vmware

GATE = ROM_AT + layout.gate_offset(BY_NAME["SetCR3"].number)


def logged(lab: Lab) -> list[str]:
    """Start logging refusals; the list gets what they are called."""
    names: list[str] = []

    def write(line: str) -> None:
        found = re.search(r" no +(.*)\n", line)
        assert found is not None
        names.append(found[1])

    lab.machine.log = EventLog(EventLog.parse("refusals"), write, lambda: 0, lambda: (0, len(names)))
    return names


# -- user code ---------------------------------------------------------------------------------

USER = f"""
start:  {to_user("user")}
user:   mov eax, 0x5000
        int 0x82
after:  hlt
fault:  {DONE}
"""


def test_user_code_makes_no_call_by_the_gates_interrupt() -> None:
    """INT 82h goes to the guest's own gate, which is the kernel's: #GP, as for any gate with DPL 0."""
    lab = Lab(USER, {13: "fault"}, "paravirt")
    names = logged(lab)
    assert exit_value(lab) == 1
    assert fault_frame(lab, 3) == [8 * 0x82 | 2, lab.labels["after"] - 2, CODE3]
    assert names == ["a call-out by user code"] and lab.domain is not None
    assert set(lab.domain.calls) == {"VMI_Init"}


def test_user_code_that_jumps_to_a_gate_of_the_rom_makes_no_call() -> None:
    """The ROM's pages may be open to user code: the ring counts, not the place."""
    lab = Lab(USER.replace("int 0x82", f"mov ecx, {GATE:#x}\njmp ecx"), {13: "fault"}, "paravirt")
    names = logged(lab)
    assert exit_value(lab) == 1
    assert fault_frame(lab, 3) == [8 * 0x82 | 2, GATE, CODE3]
    assert names == ["a call-out by user code"]


def test_a_gate_for_user_code_leads_to_the_guests_own_handler() -> None:
    lab = Lab(USER, {13: "fault"}, "paravirt")
    lab.handle(0x82, "fault", access=0xEE)
    assert exit_value(lab) == 1
    assert fault_frame(lab, 2) == [lab.labels["after"], CODE3]


def test_what_the_rom_does_itself_has_no_gate() -> None:
    """A kernel that gets lost there meets a breakpoint; with an INT of its own it makes no call either."""
    gate = ROM_AT + layout.gate_offset(BY_NAME["CPUID"].number)
    lab = Lab(f"start: mov eax, {gate:#x}\njmp eax\nfault: {DONE}", {3: "fault"}, "paravirt")
    assert exit_value(lab) == 1
    assert fault_frame(lab, 2) == [gate + 1, CODE0]
    lab = Lab(f"start: mov eax, {gate:#x}\njmp eax\nown: {DONE}", mode="paravirt")
    lab.handle(0x82, "own")
    lab.memory.write(gate, b"\xcd\x82")
    names = logged(lab)
    assert exit_value(lab) == 1
    assert names == ["a call-out from outside the ROM"]


def test_the_kernel_makes_no_call_from_outside_the_rom() -> None:
    lab = Lab(f"start: mov eax, 0x5000\nint 0x82\n{DONE}\nown: mov ebx, 7\n@iret", {}, "paravirt")
    lab.handle(0x82, "own")
    names = logged(lab)
    assert exit_value(lab) == 1
    assert lab.cpu.ebx == 7 and lab.cpu.cr(3) == 0
    assert names == ["a call-out from outside the ROM"]


# -- refusals have names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "registers", "shown"),
    [
        ("SetCR4", {"eax": 0xFFFFFFFF}, "SetCR4: #GP error 0"),
        ("SetCR0", {"eax": 0x80000000}, "SetCR0: #GP error 0"),
        ("SetTR", {"eax": 0x1230}, "SetTR: #GP error 1230"),
        ("SetLDT", {"eax": 0x8}, "SetLDT: #GP error 8"),
        ("RDMSR", {"ecx": 0x12345}, "RDMSR: #GP error 0"),
        ("WRMSR", {"ecx": 0x12345}, "WRMSR: #GP error 0"),
        ("SetGDT", {"eax": 0x1FF000}, "SetGDT: #PF error 0 at 001ff000: read from an absent page"),
        ("SetIDT", {"eax": 0x1FEFFE}, "SetIDT: #PF error 0 at 001ff000: read from an absent page"),
    ],
)
def test_a_call_that_is_refused_is_named_in_the_log(name: str, registers: dict[str, int], shown: str) -> None:
    lab = Lab("start: nop\nfault: nop", {13: "fault", 14: "fault"}, "paravirt", taken=False)
    lab.page(0x1FF000)
    lab.take()
    names = logged(lab)
    made = call(lab, name, **registers)
    assert not made.returned
    assert names == [shown]


def test_an_instruction_that_is_refused_is_named_in_the_log() -> None:
    lab = Lab(f"start: mov eax, 0x1230\nltr ax\nfault: {DONE}", {13: "fault"}, "full")
    names = logged(lab)
    assert exit_value(lab) == 1
    assert names == ["ltr: #GP error 1230"]


# -- two domains -------------------------------------------------------------------------------


def test_two_domains_in_a_process_do_not_see_each_other() -> None:
    """They take turns; each is what it would be alone."""
    source = f"""
    start:  mov ecx, 200
    again:  mov eax, {{seed}}
            add [0x7000], eax
            @pushf
            @cli
            @popf
            int 0x30
            dec ecx
            jnz again
            {DONE}
    h:      add dword ptr [0x7004], ecx
            @iret
    """

    def make(seed: int) -> Lab:
        return Lab(source.replace("{seed}", str(seed)), {0x30: "h"}, "paravirt")

    def result(lab: Lab) -> tuple[object, ...]:
        return lab.memory.sha256(), lab.machine.instructions, dict(lab.machine.exits)

    alone = []
    for seed in (3, 5):
        lab = make(seed)
        lab.cpu.run(150)
        lab.cpu.run(150)
        assert exit_value(lab) == 1
        alone.append(result(lab))
    together = [make(3), make(5)]
    for lab in (*together, *reversed(together)):
        lab.cpu.run(150)
    for lab in reversed(together):
        assert exit_value(lab) == 1
    assert alone == [
        (lab.memory.sha256(), lab.machine.instructions, dict(lab.machine.exits)) for lab in together
    ]
    assert together[0].u32(0x7000) == 600 and together[1].u32(0x7000) == 1000


# -- a guest that damages what it shares -------------------------------------------------------


def test_a_guest_that_overwrites_its_rom_loses_the_rom() -> None:
    """What it has written is what it executes: here, #UD at each call, and nothing else."""
    lab = Lab("start: nop\nfault: nop", {6: "fault"}, "paravirt")
    lab.cpu.write_memory(ROM_AT + ROM.offset("SetCR3"), b"\x0f\x0b")
    assert not call(lab, "SetCR3", eax=0x5000).returned
    assert lab.cpu.cr(3) == 0 and lab.cpu.cpl == 1
    assert call(lab, "GetCR3").returned


def test_a_guest_that_overwrites_its_flag_word_deceives_itself_only() -> None:
    """Bits of the word that are no interrupt flag mean nothing; the real flag and IOPL stay what they are."""
    lab = Lab("start: nop", {}, "paravirt")
    for word in (0xFFFFFFFF, 0xFFFFFDFF, 0x200, 0):
        lab.set_word(vmware.VIF, word)
        assert lab.virtual_if == bool(word & 0x200)
        assert call(lab, "GetInterruptMask").returned
        assert lab.cpu.system_flags & 0x3200 == 0x200


def test_a_guest_that_unmaps_its_rom_faults_for_ever() -> None:
    lab = Lab(f"start: call GetCR2\n{DONE}", {}, "paravirt", taken=False)
    lab.page()
    lab.take()
    for page in range(0, len(ROM.image), 0x1000):
        lab.memory.put_u32(0x21000 + 4 * (ROM_AT + page >> 12), 0)
    lab.cpu.flush_tlb()
    end = lab.run()
    assert end.outcome is Outcome.TRIPLE_FAULT
    assert (
        end.reason
        == f"the guest triple-faulted at {lab.cpu.segment(1).selector:#x}:{ROM_AT + ROM.offset('GetCR2'):#x}"
    )


# -- calls without end -------------------------------------------------------------------------


def test_calls_in_random_order_with_arguments_at_every_boundary() -> None:
    """A short storm; ``python -m tests.hypervisor.storm 1000000`` is the long one."""
    report = storm.run(6000, seed=1)
    assert report.calls >= 6000 and report.guests > 2
    assert set(report.ends) <= {
        "triple_fault",
        "crashed",
        "debug_exit",
        "reset",
        "shutdown",
        "halted",
        "timeout",
    }
    assert set(report.refused) & set(BY_NAME), "refusals are named after the calls"
    assert sum(report.refused.values()) > 500
    assert report.growth_kib < 64 << 10


def test_a_storm_is_one_run_of_its_seed() -> None:
    one, two = (vars(storm.run(500, seed=3)) for _ in range(2))
    one.pop("growth_kib"), two.pop("growth_kib")
    assert one == two
