# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel on ring 1 must not notice, or must, where the easy way to serve it goes wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.hypervisor.lab import GPRS, LANDING, SITE, Called, Lab, call, exit_value, place_call
from tests.hypervisor.test_calls import BUFFER, lab_for_calls
from tests.native.guest import CODE0, DATA0, DATA3, GDT, STACK, TSS
from vmi import abi
from vmi.native.cpuid import FEATURES, I686, I686_APIC, MODELS
from vmi.native.machine import Outcome
from vmi.rom.flavours import vmware
from vmi.x86 import Eflags, Seg

FAULT = "fault: jmp fault"
WIDE = 0x8765432112345678


def all_registers(lab: Lab, name: str, *stack: int, **registers: int) -> Called:
    """A call with every register filled."""
    fill = {name: 0x11111111 * (n + 1) for n, name in enumerate(GPRS) if name != "esp"}
    return call(lab, name, *stack, **{**fill, **registers})


# -- registers and the stack ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EnableInterrupts", "DisableInterrupts", "SetInterruptMask"])
@pytest.mark.parametrize("data", [0, DATA3, 0x7FF8])
def test_calls_for_the_interrupt_flag_lose_no_register_and_need_no_data_segment(name: str, data: int) -> None:
    """Sites are patched into code that keeps values in all of them, with user code's DS and ES."""
    lab = Lab("start: nop", mode="paravirt")
    for seg in (Seg.DS, Seg.ES, Seg.FS, Seg.GS):
        held = lab.cpu.segment(seg)
        lab.cpu.set_segment(seg, replace(held, selector=data, base=0x7000 if data else 0))
    left = all_registers(lab, name)
    fill = {name: 0x11111111 * (n + 1) for n, name in enumerate(GPRS) if name != "esp"}
    assert left.returned and {**left.registers, "esp": 0} == {**fill, "esp": 0}


def test_getting_the_mask_loses_eax_only() -> None:
    lab = Lab("start: nop", mode="paravirt")
    left = all_registers(lab, "GetInterruptMask").registers
    assert left["eax"] & 0x200 == 0 and (left["ecx"], left["edx"]) == (0x22222222, 0x33333333)


def test_iret_is_entered_with_a_return_address_above_its_frame() -> None:
    """As answered: CALL_REL. With JUMP_REL the frame itself would be on top, and no code can do both."""
    lab = Lab("start: nop\nthere: jmp there", mode="paravirt")
    lab.cpu.esp = STACK
    lab.push(2, CODE0, lab.labels["there"])
    place_call(lab, "IRET")
    lab.cpu.eip = SITE
    assert lab.step_to(lab.labels["there"]) and lab.cpu.esp == STACK


def test_a_long_entry_is_in_two_registers_and_its_flags_on_the_stack() -> None:
    lab = lab_for_calls()
    assert call(lab, "SetPxELong", 0xFFFFFFFF, eax=0x12345060, edx=0xF, ecx=BUFFER + 64).returned
    assert (lab.u32(BUFFER + 64), lab.u32(BUFFER + 68)) == (0x12345060, 0xF)


def test_an_alarm_s_expiry_is_in_edx_and_ecx_and_its_period_on_the_callers_stack() -> None:
    lab = Lab("start: nop", mode="paravirt")
    left = call(lab, "SetAlarm", 0x1000, 7, eax=0x100, edx=WIDE & 0xFFFFFFFF, ecx=WIDE >> 32)
    assert left.returned and left.registers["esp"] == STACK - 8, "the caller takes the period away"
    assert lab.domain is not None and lab.domain.timer.alarms == {0: WIDE}


@pytest.mark.parametrize("name", ["GetTR", "GetLDT"])
def test_a_selector_comes_back_without_dirt_above_it(name: str) -> None:
    lab = lab_for_calls()
    assert call(lab, "SetLDT", eax=0x60).returned
    assert all_registers(lab, name).registers["eax"] == {"GetTR": 0x28, "GetLDT": 0x60}[name]


# -- VMI_Init ------------------------------------------------------------------------------------


def test_behind_init_cs_and_ss_are_those_of_the_new_ring() -> None:
    """A client looks at CS at once: it is how it learns of its ring."""
    lab = Lab("start: nop", mode="paravirt", taken=False)
    assert lab.cpu.segment(Seg.CS).selector & 3 == 0
    assert lab.initialise() == 0
    assert {lab.cpu.segment(seg).selector & 3 for seg in (Seg.CS, Seg.SS)} == {1} == {lab.cpu.cpl}


def test_an_init_that_says_no_has_changed_nothing() -> None:
    lab = Lab("start: nop\nreal: nop", mode="paravirt", taken=False)
    lab.memory.write(0x10000 - 0x8000, bytes(16))
    before = lab.memory.read(GDT, 0x100), lab.cpu.gdt, lab.cpu.idt
    lab.cpu.set_cr(0, lab.cpu.cr(0) & ~1)
    segments = [lab.cpu.segment(seg) for seg in Seg]
    assert lab.initialise() not in (0, None)
    assert [lab.cpu.segment(seg) for seg in Seg] == segments and lab.cpu.cpl == 0
    assert before == (lab.memory.read(GDT, 0x100), lab.cpu.gdt, lab.cpu.idt)
    assert lab.domain is not None and not lab.domain.active


# -- ring 1 --------------------------------------------------------------------------------------


def test_selectors_of_ring_0_go_on_working() -> None:
    """In a load of FS, in a gate, in UpdateKernelStack and in a frame."""
    source = f"""
    start:  mov eax, {DATA0}
            mov fs, ax
            mov eax, fs
            mov [0x7000], eax
            int 0x40
            mov al, 1
            out 0xf4, al
    handler: inc dword ptr [0x7004]
            @iret
    """
    lab = Lab(source, {0x40: "handler"}, "paravirt", client=True)
    assert exit_value(lab) == 1 and (lab.u32(0x7000), lab.u32(0x7004)) == (DATA0, 1)


def test_the_frame_shows_the_virtual_flag_and_the_processor_keeps_its_own_on() -> None:
    source = f"""
    start:  @cli
            push 0x3202
            popfd
            int 0x40
            @sti
            int 0x40
            mov al, 1
            out 0xf4, al
    handler: mov eax, [esp + 8]
            mov ecx, [0x7000]
            mov [0x7004 + ecx*4], eax
            inc dword ptr [0x7000]
            @iret
    {FAULT}
    """
    lab = Lab(source, {0x40: "handler", 13: "fault"}, "paravirt", client=True, silent=[])
    assert exit_value(lab) == 1
    shown = [lab.u32(0x7004 + 4 * n) & 0x3200 for n in range(2)]
    assert shown == [0, 0x200], "POPF of a kernel on ring 1 changes neither the flag nor IOPL"
    assert lab.cpu.system_flags & 0x3200 == 0x200


@pytest.mark.parametrize("selector", [0x7FF8, DATA0, 0])
def test_a_refused_return_is_reported_at_its_site_with_the_frame_on_top(selector: int) -> None:
    """The guest's table of sites that may fault knows the address of the patched instruction only."""
    lab = Lab(f"start: nop\n{FAULT}", {13: "fault"}, "paravirt")
    lab.cpu.esp = STACK
    lab.push(0x202, selector, LANDING)
    place_call(lab, "IRET")
    lab.cpu.eip = SITE
    assert lab.step_to(lab.labels["fault"])
    error, eip, cs, _flags, *frame = lab.stack(7)
    assert (error, eip, cs) == (selector & 0xFFFC, SITE, CODE0) and frame == [LANDING, selector, 0x202]


# -- what the processor says ---------------------------------------------------------------------


@pytest.mark.parametrize("model", [I686, I686_APIC, MODELS["pentium"], MODELS["486"]], ids=lambda m: m.name)
def test_cpuid_says_the_same_by_call_and_instruction(model: type[I686]) -> None:  # type: ignore[valid-type]
    """Early code asks by the instruction: what it saw there has to hold."""
    source = "start: mov eax, 1\ncpuid\nstop: jmp stop"
    lab = Lab(source, mode="paravirt", model=model)
    assert lab.step_to(lab.labels["stop"])
    raw = (lab.cpu.eax, lab.cpu.ebx, lab.cpu.ecx, lab.cpu.edx)
    left = call(lab, "CPUID", eax=1, ecx=0).registers
    assert raw == tuple(left[name] for name in ("eax", "ebx", "ecx", "edx"))


def test_cpuid_hides_what_nobody_serves() -> None:
    hidden = {"sep", "mtrr", "pae", "mce", "msr", "apic", "monitor", "vme", "de"}
    edx = call(Lab("start: nop", mode="paravirt"), "CPUID", eax=1).registers["edx"]
    shown = {name for name, (word, bit) in FEATURES.items() if word.name == "LEAF_1_EDX" and edx >> bit & 1}
    assert not shown & hidden and shown >= {"pse", "pge", "tsc", "cx8"}


@pytest.mark.parametrize("feature", [Eflags.ID, Eflags.AC])
def test_a_kernel_may_try_what_flags_the_processor_has(feature: int) -> None:
    source = f"start: pushfd\nxor dword ptr [esp], {int(feature)}\npopfd\npushfd\npop eax\nstop: jmp stop"
    lab = Lab(source, mode="paravirt", client=True, silent=[])
    assert lab.step_to(lab.labels["stop"]) and lab.cpu.eax & feature


@pytest.mark.parametrize("code", ["rdmsr", "wrmsr"])
@pytest.mark.parametrize("number", [0xC0000080, 0x174, 0x12345678])
def test_a_register_that_is_not_there_faults_at_the_instruction(code: str, number: int) -> None:
    """Clients use the instruction always, and let their fault table deal with what is missing."""
    lab = Lab(f"start: mov ecx, {number}\nsite: {code}\n{FAULT}", {13: "fault"}, "paravirt", model=I686_APIC)
    assert lab.step_to(lab.labels["fault"]) and lab.stack(2) == [0, lab.labels["site"]]


def test_a_register_that_is_there_is_read_by_the_instruction() -> None:
    lab = Lab("start: mov ecx, 0x1b\nrdmsr\nstop: jmp stop", mode="paravirt", model=I686_APIC)
    assert lab.step_to(lab.labels["stop"]) and lab.cpu.eax == 0xFEE00900


# -- tasks ---------------------------------------------------------------------------------------


def test_the_first_argument_of_update_kernel_stack_is_a_selector() -> None:
    """Not the address of a TSS, which older texts say; nothing is read or written there."""
    lab = Lab("start: nop", mode="paravirt")
    before = lab.memory.read(0, 0x10000)
    assert call(lab, "UpdateKernelStack", eax=DATA0, edx=0x6000).returned
    assert lab.memory.read(0, STACK - 0x40) == before[: STACK - 0x40]
    assert lab.domain is not None and lab.domain.rom.kernel_stack() == (DATA0, 0x6000)


def test_the_bitmap_of_ports_is_the_one_in_memory_at_that_moment() -> None:
    """A kernel changes it by plain stores, and tells nobody."""
    lab = Lab(f"user: in al, 0x60\nend: jmp end\n{FAULT}", {13: "fault"}, "paravirt")
    for allowed in (False, True, False):
        lab.memory.put_u32(TSS + 0x64, 0x580000 | (not allowed))  # it begins at 58h, port 60h is at 64h
        lab.user("user", 0x202)
        assert lab.step_to(lab.labels["end"], lab.labels["fault"])
        assert (lab.cpu.eip == lab.labels["end"]) is allowed


def test_limits_are_not_cut() -> None:
    """There is no hole above the guest: what LSL shows is what the kernel wrote."""
    lab = Lab(f"start: mov eax, {CODE0}\nlsl ecx, eax\nlar edx, eax\nstop: jmp stop", mode="paravirt")
    assert lab.step_to(lab.labels["stop"])
    assert lab.cpu.ecx == 0xFFFFFFFF and lab.cpu.edx & 0xFF00 & ~0x6100 == 0x9A00


# -- waiting and ending ----------------------------------------------------------------------------


def test_halt_lets_in_what_waits_already() -> None:
    """Between a last look for work and the wait no wake-up gets lost, and interrupts are on behind it."""
    source = """
    start:  call Halt
            inc ebx
            call Halt
            inc ebx
            mov al, 1
            out 0xf4, al
    wake:   inc esi
            @iret
    """
    lab = Lab(source, {0x20: "wake", 8: "wake"}, "paravirt")
    chip = lab.machine.board.pic.master
    lab.machine.board.ports.write(0x20, 1, 0x13)
    lab.machine.board.ports.write(0x21, 1, 0x20)
    lab.machine.board.ports.write(0x21, 1, 3)  # ends its interrupts by itself
    lab.machine.board.ports.write(0x21, 1, 0xFE)
    lab.machine.interrupts.line(0).set(True)
    assert chip.irr & 1 and lab.machine.run().outcome is Outcome.HALTED
    assert (lab.cpu.ebx, lab.cpu.esi) == (1, 1) and lab.virtual_if
    lab.machine.interrupts.line(0).set(False)
    lab.machine.interrupts.line(0).set(True)
    assert exit_value(lab) == 1 and (lab.cpu.ebx, lab.cpu.esi) == (2, 2)


@pytest.mark.parametrize(
    ("name", "eax", "outcome"), [("Reboot", 0, Outcome.RESET), ("Shutdown", 0, Outcome.SHUTDOWN)]
)
def test_nothing_runs_behind_the_end(name: str, eax: int, outcome: Outcome) -> None:
    lab = Lab(f"start: mov eax, {eax}\ncall {name}\nmov dword ptr [0x7000], 1\njmp start", mode="paravirt")
    assert lab.run().outcome is outcome and lab.u32(0x7000) == 0


def test_every_call_is_named_in_the_table_of_the_rom_or_left_out_for_a_reason() -> None:
    reasons = vmware.FLAVOUR.absent()
    assert set(reasons) <= {"SetCallbacks", "SetInitialAPState"}
    assert set(vmware.FLAVOUR.templates) == {row.name for row in abi.CALLS}
