# SPDX-License-Identifier: GPL-2.0-only
"""An interrupt at each instruction boundary: taken once, never where the guest has switched it off.

The guests guard a word: while it is set their interrupts are off, and a handler that finds it set counts
a mistake. The request comes at every instruction of the program in turn, natively, trapped, and with a ROM.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.hypervisor.lab import MODES, ROM, ROM_AT, Lab, exit_value
from tests.hypervisor.test_calls_time import PIC
from tests.native.guest import CODE, CODE0, CODE3, DATA0, DATA3, IDT, STACK, USER_STACK, gate
from vmi.native.machine import NS_PER_INSTRUCTION, Outcome
from vmi.rom import layout
from vmi.rom.flavours import vmware
from vmi.x86 import Eflags

GUARD, TAKEN, MISTAKES, EIP, CS, IMAGE, ROUNDS = (0x7000 + 4 * i for i in range(7))
ON, OFF = f"mov dword ptr [{GUARD}], 1", f"mov dword ptr [{GUARD}], 0"
DONE = "mov al, 1\nout 0xf4, al"

# Saves what it interrupted, and counts; IRQ 0 is vector 40h. Out of virtual-8086 mode DS is null.
HANDLER = f"""
handler: push eax
        inc dword ptr ss:[{TAKEN}]
        mov eax, [esp + 4]
        mov ss:[{EIP}], eax
        mov eax, [esp + 8]
        mov ss:[{CS}], eax
        mov eax, [esp + 12]
        mov ss:[{IMAGE}], eax
        mov eax, ss:[{GUARD}]
        add ss:[{MISTAKES}], eax
        mov al, 0x20
        out 0x20, al
        pop eax
        @iret
"""


@dataclass(frozen=True)
class Result:
    """What a run came to: how often the handler ran, mistakes, and what it interrupted."""

    taken: int
    mistakes: int
    eip: int
    cs: int
    image: int


def guest(program: str, mode: str) -> Lab:
    """A guest that stands at ``go`` with its interrupt controllers set up and interrupts off."""
    source = f"start: {PIC}\nmov al, 0\nout 0xf4, al\ngo: {program}\n{HANDLER}"
    lab = Lab(source, {0x40: "handler"}, mode)
    if lab.domain is not None:
        lab.domain.privilege.iopl_from_frames = True  # as for a patched kernel
    if "system" in lab.labels:
        lab.memory.write(IDT + 8 * 0x30, gate(CODE0, lab.labels["system"], 0xEE))
    assert exit_value(lab) == 0
    lab.cpu.eip, lab.cpu.esp = lab.labels["go"], STACK
    return lab


def request_at(lab: Lab, ns: int) -> None:
    """Ask for IRQ 0 at a moment."""
    line = lab.machine.interrupts.line(0)

    def pulse(_due: int) -> None:
        line.set(False)
        line.set(True)

    lab.machine.clock.schedule(ns, pulse)


def result_of(lab: Lab) -> Result:
    """Run to the end."""
    assert exit_value(lab) == 1
    result = Result(*(lab.u32(at) for at in (TAKEN, MISTAKES, EIP, CS, IMAGE)))
    if lab.mode == "paravirt" and result.taken:
        assert lab.word(vmware.PENDING) == 0
        assert outside_rom_or_at_a_gate(result.eip), hex(result.eip)
    return result


def run(program: str, mode: str, delay: int | None = None) -> Result:
    """Run to the end, with a request after ``delay`` instructions' time."""
    lab = guest(program, mode)
    if delay is not None:
        request_at(lab, lab.machine.clock.now() + delay * NS_PER_INSTRUCTION)
    return result_of(lab)


def boundaries(program: str, mode: str) -> list[int]:
    """The moment of each instruction boundary of an undisturbed run, ns from its start."""
    lab = guest(program, mode)
    start = lab.machine.clock.now()
    moments = [0]
    while lab.machine.run(NS_PER_INSTRUCTION).outcome is Outcome.TIMEOUT:
        moments.append(lab.machine.clock.now() - start)
        assert len(moments) < 3000, "the program does not end"
    return sorted(set(moments))


def everywhere(program: str, mode: str) -> list[Result]:
    """The results with the request at each boundary in turn; none of them a mistake."""
    plain = run(program, mode)
    assert (plain.taken, plain.mistakes) == (0, 0)
    results = []
    for moment in boundaries(program, mode):
        lab = guest(program, mode)
        request_at(lab, lab.machine.clock.now() + moment)
        result = result_of(lab)
        assert result.mistakes == 0 and result.taken <= 1, moment
        assert not result.taken or result.image & 0x200, "what is interrupted has interrupts on"
        results.append(result)
    return results


def outside_rom_or_at_a_gate(eip: int) -> bool:
    """ROM code is one step for the guest; only where it waits for the hypervisor may a handler come in."""
    offset = eip - ROM_AT
    return not 0 <= offset < (ROM.data_page or 0) or layout.gate_number(offset) is not None


def only_the_last_are_late(results: list[Result]) -> bool:
    """A request is served unless it comes when interrupts are off for good."""
    taken = [result.taken for result in results]
    return taken == sorted(taken, reverse=True) and 1 < taken.count(0) < 16 and taken.count(1) > 40


FLAGS = f"""
        mov dword ptr [{ROUNDS}], 2
        @sti
again:  nop
        @cli
        {ON}
        {OFF}
        @sti
        nop
        @pushf
        @cli
        {ON}
        nop
        {OFF}
        @popf
        nop
        @cli
        {ON}
        @pushf
        @popf
        push 0x202
        push {CODE0}
        push {{there}}
        {OFF}
        @iret
there:  nop
        @cli
        {ON}
        push 2
        push {CODE0}
        push {{still}}
        @iret
still:  {OFF}
        @sti
        dec dword ptr [{ROUNDS}]
        jnz again
        nop
        nop
        @cli
        {DONE}
"""


@pytest.mark.parametrize("mode", MODES)
def test_flags_instructions(mode: str) -> None:
    assert only_the_last_are_late(everywhere(FLAGS, mode))


HALT = f"""
        {ON}
        nop
        {OFF}
        @halt
        @cli
        {ON}
        nop
        {OFF}
        {DONE}
"""


@pytest.mark.parametrize("mode", MODES)
def test_no_wake_up_is_lost(mode: str) -> None:
    """The request before, at and long after HLT: the guest always comes out of it, by the handler."""
    lab = guest(HALT, mode)
    assert lab.machine.run().outcome is Outcome.HALTED, "without a request it halts for ever"
    for delay in [*range(40), 100, 10**6]:
        result = run(HALT, mode, delay)
        assert (result.taken, result.mistakes) == (1, 0), delay
        assert result.image & 0x200


@pytest.mark.parametrize("mode", MODES)
def test_a_halt_with_interrupts_off_is_for_ever(mode: str) -> None:
    lab = guest("hlt", mode)
    request_at(lab, lab.machine.clock.now() + 1000)
    assert lab.machine.run().outcome is Outcome.HALTED and lab.u32(TAKEN) == 0


USER = f"""
        mov dword ptr [{ROUNDS}], 5
        {ON}
again:  push {DATA3}
        push {USER_STACK}
        push 0x202
        push {CODE3}
        push {{user}}
        {OFF}
        @iret
user:   nop
        inc ebx
        int 0x30
        jmp user
system: {ON}
        dec dword ptr [{ROUNDS}]
        jz out
        {OFF}
        @iret
out:    add esp, 20
        push 0x202
        push {CODE0}
        push {{end}}
        {OFF}
        @iret
end:    nop
        nop
        @cli
        {DONE}
"""


@pytest.mark.parametrize("mode", MODES)
def test_user_code_is_interrupted_as_user_code(mode: str) -> None:
    results = everywhere(USER, mode)
    assert only_the_last_are_late(results)
    assert {result.cs for result in results if result.taken} == {CODE0, CODE3}


V86_CS, V86_STACK = CODE >> 4, 0x600
V86 = f"""
        mov dword ptr [{ROUNDS}], 3
        {ON}
again:  push 0
        push 0
        push 0
        push 0
        push {V86_STACK}
        push 0x800
        push 0x23202
        push {V86_CS}
        push {{low - CODE}}
        {OFF}
        @iret
low:    nop
        .byte 0x43, 0x90, 0x9c, 0x9d, 0xcd, 0x30
system: mov eax, ss
        mov ds, eax
        {ON}
        dec dword ptr [{ROUNDS}]
        jnz again
        @cli
        {DONE}
"""


@pytest.mark.parametrize("mode", MODES)
def test_virtual_8086_code_is_interrupted_as_such(mode: str) -> None:
    """At each of its instructions, and the handler's IRET goes back there."""
    results = everywhere(V86.replace("CODE", hex(CODE)), mode)
    inside = [result for result in results if result.image & Eflags.VM]
    assert {result.cs for result in inside} == {V86_CS}
    assert {result.image & 0x33200 for result in inside} == {0x23200}
    assert len({result.eip for result in inside}) >= 4, "before each of its instructions"
    assert all(result.taken for result in results[:10])


SHADOWS = {
    "sti; nop": "fb9090",
    "sti; sti; nop": "fbfb90",
    "sti; mov ss, ax; nop": "fb8ed090",
    "sti; pushf": "fb9c90",
    "popf": None,
}


@pytest.mark.parametrize("name", SHADOWS)
def test_where_a_waiting_interrupt_comes_in(name: str) -> None:
    """Trapped and natively at the same instruction: the shadow of STI and MOV SS is kept."""
    code = SHADOWS[name]
    body = ".byte " + ",".join(str(b) for b in bytes.fromhex(code)) if code else "push 0x202\n@popf\nnop"
    program = f"mov eax, {DATA0}\n" + "nop\n" * 8 + body + f"\nnop\nnop\n{DONE}"
    results = {mode: run(program, mode, 2) for mode in ("native", "full")}
    assert results["native"].taken == results["full"].taken == 1
    assert results["native"].eip == results["full"].eip
    assert results["native"].image & 0x200 and results["full"].image & 0x200


@pytest.mark.parametrize("mode", ["native", "full"])
def test_an_interrupt_does_not_come_between_sti_and_cli(mode: str) -> None:
    program = f"nop\nnop\nnop\nsti\ncli\nnop\nsti\ncli\n{DONE}"
    assert run(program, mode, 1).taken == 0


def test_the_pending_word_follows_what_waits() -> None:
    lab = guest("spin: jmp spin", "paravirt")
    line = lab.machine.interrupts.line(0)
    lab.run(ms=1)
    assert lab.word(vmware.PENDING) == 0
    line.set(True)
    lab.run(ms=1)
    assert lab.word(vmware.PENDING) == 1 and lab.u32(TAKEN) == 0
    line.set(False)
    lab.run(ms=1)
    assert lab.word(vmware.PENDING) == 0


def test_a_pending_word_that_lies_is_the_guests_own_trouble() -> None:
    """Set without anything waiting: a call-out for nothing."""
    lab = guest(
        f"mov dword ptr [{ROM_AT + (ROM.data_page or 0) + vmware.PENDING:#x}], 1\n@sti\n{DONE}", "paravirt"
    )
    assert exit_value(lab) == 1
    assert lab.domain is not None and lab.domain.calls["pending interrupt"] == 1


def test_the_handler_finds_the_pending_word_settled() -> None:
    """From its first instruction on: a word that is still set would make each of its calls come out."""
    word = ROM_AT + (ROM.data_page or 0) + vmware.PENDING
    lab = guest(f"@sti\n{DONE}", "paravirt")
    lab.machine.interrupts.line(0).set(True)
    assert lab.step_to(lab.labels["handler"]) and lab.machine.memory.u32(word) == 0
    lab = guest(f"mov dword ptr [{word:#x}], 1\nback: @sti\nend: {DONE}", "paravirt")
    assert lab.step_to(lab.labels["end"]) and lab.machine.memory.u32(word) == 0


@pytest.mark.parametrize("mode", ["full", "paravirt"])
def test_user_code_can_not_switch_interrupts_off(mode: str) -> None:
    """Not even with a frame that says so: what runs there can always be preempted."""
    program = f"""
        push {DATA3}
        push {USER_STACK}
        push 2
        push {CODE3}
        push {{user}}
        @iret
user:   jmp user
    """
    lab = guest(program, mode)
    request_at(lab, lab.machine.clock.now() + 10_000)
    lab.run(ms=1)
    assert lab.u32(TAKEN) == 1 and lab.u32(IMAGE) & 0x200 and lab.cpu.cpl == 3


def test_the_rom_takes_the_waiting_interrupt_itself() -> None:
    """EnableInterrupts, SetInterruptMask and IRET call out when something waits, and only then."""
    for opener in ("@sti", "push 0x202\n@popf", f"push 0x202\npush {CODE0}\npush {{on}}\n@iret\non: nop"):
        lab = guest(f"nop\n{opener}\nnop\n{DONE}", "paravirt")
        lab.machine.interrupts.line(0).set(True)
        assert exit_value(lab) == 1
        assert lab.u32(TAKEN) == 1 and lab.machine.exits["interrupt"] == 1
        assert lab.domain is not None
        assert sum(lab.domain.calls.values()) == 2, lab.domain.calls
