# SPDX-License-Identifier: GPL-2.0-only
"""Returns, gates and tasks: the same programs natively, trapped, and with the ROM's IRET."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import LANDING, MODES, Lab, call, exit_value, flags
from tests.native.guest import (
    CODE0,
    CODE3,
    DATA0,
    DATA3,
    GDT,
    KERNEL_STACK,
    STACK,
    USER_STACK,
    descriptor,
    gate,
)
from vmi import sitetable
from vmi.rom.flavours import vmware
from vmi.x86 import IF_BIT, Seg

DONE = "mov al, 1\nout 0xf4, al"
TASK2, TSS2, GATE = 0x68, 0x3100, 0x70


def to_user(label: str, image: int = 0x202) -> str:
    """Code that returns to a label on ring 3."""
    return f"push {DATA3}\npush {USER_STACK}\npush {image:#x}\npush {CODE3}\npush {{{label}}}\n@iret\n"


def fault_frame(lab: Lab, count: int = 6) -> list[int]:
    """The top of the stack in a handler."""
    return [lab.u32(lab.cpu.esp + 4 * i) for i in range(count)]


# -- IRET --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("image", [0x2, 0x202, 0x8D7, 0xAD7, 0x40203])
def test_iret_within_the_kernel(mode: str, image: int) -> None:
    source = f"start: push {image:#x}\npush {CODE0}\npush {{there}}\n@iret\nhlt\nthere: {DONE}"
    lab = Lab(source, mode=mode)
    assert exit_value(lab) == 1 and lab.cpu.esp == STACK
    assert flags(lab, 0x247FD7) == image


@pytest.mark.parametrize("mode", MODES)
def test_iret_to_user_mode_and_back(mode: str) -> None:
    source = f"""
    start:  mov ebx, 0x11111111
            {to_user("user", 0x0A93)}
    user:   int 0x30
    back:   {DONE}
    """
    lab = Lab(source, {0x30: "back"}, mode)
    lab.memory.write(0x2000 + 8 * 0x30, gate(CODE0, lab.labels["back"], 0xEE))
    assert exit_value(lab) == 1
    assert fault_frame(lab, 5) == [lab.labels["back"], CODE3, 0x0A93, USER_STACK, DATA3]
    assert lab.cpu.esp == KERNEL_STACK - 20 and lab.cpu.ebx == 0x11111111
    assert lab.cpu.segment(Seg.DS).selector == 0, "a kernel segment is not for the user"


def test_the_stack_of_update_kernel_stack_is_used() -> None:
    lab = Lab("start: nop\nhandler: hlt", {0x20: "handler"}, "paravirt")
    for selector in (DATA0, DATA0 | 1, 0xABCD0000 | DATA0):
        assert call(lab, "UpdateKernelStack", eax=selector, edx=0x9800).returned
        assert lab.domain is not None and lab.domain.privilege.kernel_stack(0) == (DATA0, 0x9800)


BAD_FRAMES = [
    ([LANDING, 0x7FF8, 2], 13, 0x7FF8),
    ([LANDING, 0, 2], 13, 0),
    ([LANDING, DATA0, 2], 13, DATA0),
    ([LANDING, CODE3, 0x202, USER_STACK, DATA0], 13, DATA0),
    ([LANDING, CODE3, 0x202, USER_STACK, 0x7FFB], 13, 0x7FF8),
    ([LANDING, 0x58, 2], 11, 0x58),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("virtual_if", [0, 0x200])
@pytest.mark.parametrize(("words", "vector", "error"), BAD_FRAMES, ids=range(len(BAD_FRAMES)))
def test_a_refused_iret_leaves_its_frame(
    words: list[int], vector: int, error: int, virtual_if: int, mode: str
) -> None:
    source = "start: nop\nsite: @iret\nbehind: nop\nfault: hlt"
    lab = Lab(source, {11: "fault", 13: "fault"}, mode)
    lab.describe(0x58, descriptor(0, 0xFFFFF, 0x1A))
    lab.push(*reversed(words))
    lab.cpu.eip = lab.labels["site"]
    if lab.domain is None:
        lab.cpu.eflags = 2 | virtual_if
    else:
        lab.domain.privilege.restore_flags(2 | virtual_if)
    esp = lab.cpu.esp
    assert lab.step_to(lab.labels["fault"])
    got = fault_frame(lab, 4)
    assert got[:3] == [error, lab.labels["site"], CODE0] and lab.cpu.esp == esp - 16
    assert got[3] & IF_BIT == virtual_if, "the flag is still that of the code that returns"
    assert [lab.u32(esp + 4 * i) for i in range(len(words))] == words


def test_the_rom_itself_fixes_a_frame_of_ring_0() -> None:
    """The usual way does not leave the guest: one call-out for VMI_Init and none for IRET."""
    lab = Lab(f"start: push 2\npush {CODE0}\npush {{there}}\n@iret\nthere: {DONE}", mode="paravirt")
    assert exit_value(lab) == 1
    assert lab.domain is not None and lab.domain.calls == {"VMI_Init": 1}


@pytest.mark.parametrize("mode", ["full", "paravirt"])
def test_a_descriptor_that_was_rewritten_is_raised_when_iret_needs_it(mode: str) -> None:
    lab = Lab(f"start: push 2\npush {CODE0}\npush {{there}}\n@iret\nthere: {DONE}", mode=mode)
    lab.describe(CODE0, descriptor(0, 0xFFFFF, 0x9A))
    assert exit_value(lab) == 1
    assert lab.memory.read(GDT + CODE0 + 5, 1)[0] == 0xBA


# -- IOPL --------------------------------------------------------------------------------------


def iopl_lab(mode: str, image: int, *, patched: bool = True) -> Lab:
    """A guest that returns to user code with an image, which says CLI and STI and then calls back."""
    source = f"""
    start:  {to_user("user", image)}
    user:   cli
            sti
            int 0x30
    back:   {DONE}
    fault:  mov al, 2
            out 0xf4, al
    """
    lab = Lab(source, {13: "fault"}, mode, taken=False)
    lab.memory.write(0x2000 + 8 * 0x30, gate(CODE0, lab.labels["back"], 0xEE))
    if patched:
        header = sitetable.Header(0x1000, 0, 0, 0x90100, 0, 0x90100, 0, 0, 0, 0, 0)
        lab.memory.write(0x90000, header.pack())
        lab.cpu.ebx = 0x90000
    lab.take()
    return lab


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("image", "value"), [(0x3202, 1), (0x1202, 2), (0x202, 2)])
def test_iopl_of_the_frame_reaches_user_code(mode: str, image: int, value: int) -> None:
    """A patched kernel knows of no call that sets it."""
    lab = iopl_lab(mode, image)
    assert exit_value(lab) == value
    frame = fault_frame(lab)
    image_now = frame[2] if value == 1 else frame[3]
    assert image_now & 0x3200 == image & 0x3200


def test_a_guest_with_the_interface_of_its_own_sets_iopl_by_the_call() -> None:
    lab = iopl_lab("paravirt", 0x3202, patched=False)
    assert exit_value(lab) == 2, "IRET takes no IOPL from the frame"
    lab = iopl_lab("paravirt", 0x202, patched=False)
    eip = lab.cpu.eip
    assert call(lab, "SetIOPLMask", eax=0xFFFFFFFF).returned
    assert lab.word(vmware.IOPL) == 0x3000
    lab.cpu.eip = eip
    assert exit_value(lab) == 1
    assert fault_frame(lab)[2] & 0x3200 == 0x3200


def test_iopl_goes_away_with_a_frame_that_has_none() -> None:
    source = f"start: push 2\npush {CODE0}\npush {{there}}\n@iret\nthere: {DONE}"
    lab = Lab(source, mode="paravirt")
    assert lab.domain is not None
    lab.domain.privilege.iopl_from_frames = True
    lab.domain.privilege.iopl = 0x3000
    assert exit_value(lab) == 1
    assert lab.domain.calls["IRET"] == 1 and lab.word(vmware.IOPL) == 0


# -- virtual-8086 mode -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("iopl", [0, 0x3000])
def test_virtual_8086_mode_and_back(mode: str, iopl: int) -> None:
    """IOPL 3 lets its code push the flags; with less, that is the kernel's affair."""
    source = f"""
    start:  push 0x4444
            push 0x3333
            push 0x2222
            push 0x1111
            push 0x6000
            push 0xff0
            push {0x20202 | iopl:#x}
            push 0x1200
            push 0x10
            @iret
    fault:  {DONE}
    """
    lab = Lab(source, {13: "fault", 3: "fault"}, mode)
    lab.memory.write(0x2000 + 8 * 3, gate(CODE0, lab.labels["fault"], 0xEE))
    lab.memory.write(0x12010, bytes.fromhex("9ccc"))  # pushf; int3
    if lab.domain is not None:
        lab.domain.privilege.iopl_from_frames = True  # as for a patched kernel
    assert exit_value(lab) == 1
    frame = fault_frame(lab, 10)
    if iopl:
        # the breakpoint's gate is DPL 3, and its frame has no error code
        assert frame[:4] == [0x12, 0x1200, 0x20202 | iopl, 0xFEE], [hex(v) for v in frame]
        assert lab.memory.read(0x60000 + 0xFEE, 2) == (0x3202).to_bytes(2, "little")
        rest = frame[4:9]
    else:
        assert frame[:5] == [0, 0x10, 0x1200, 0x20202, 0xFF0], [hex(v) for v in frame]
        rest = frame[5:10]
    assert rest == [0x6000, 0x1111, 0x2222, 0x3333, 0x4444]
    assert [lab.cpu.segment(seg).selector for seg in (Seg.DS, Seg.ES, Seg.FS, Seg.GS)] == [0] * 4


# -- the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_sysexit_is_refused_without_sysenter(mode: str) -> None:
    """The call is, too, if there are no segments that it could go to."""
    source = "start: nop\nsite: " + ("call SYSEXIT" if mode == "paravirt" else "sysexit") + "\nfault: hlt"
    lab = Lab(source, {13: "fault"}, mode)
    lab.cpu.eip = lab.labels["site"]
    lab.memory.write(GDT + (DATA3 & ~7), bytes(8))
    assert lab.step_to(lab.labels["fault"])
    assert fault_frame(lab, 3) == [0, lab.labels["site"], CODE0] and lab.cpu.esp == STACK - 16


@pytest.mark.parametrize("mode", MODES)
def test_a_single_stepped_operation_is_one_step(mode: str) -> None:
    """A call of the ROM, a trapped instruction and a plain one: each stops once, right behind."""
    source = f"""
    start:  push 0x102
            push {CODE0}
            push {{one}}
            @iret
    one:    nop
    two:    @cli
    three:  @sti
    four:   nop
    five:   {DONE}
    step:   push eax
            push ebx
            mov ebx, [0x7000]
            mov eax, [esp + 8]
            mov [ebx + 0x7004], eax
            add dword ptr [0x7000], 4
            pop ebx
            pop eax
            iretd
    """
    lab = Lab(source, {1: "step"}, mode, silent=[])
    assert exit_value(lab) == 1
    count = lab.u32(0x7000) // 4
    stops = [lab.u32(0x7004 + 4 * i) for i in range(count)]
    labels = lab.labels
    assert stops[:4] == [labels["two"], labels["three"], labels["four"], labels["five"]]


@pytest.mark.parametrize("mode", MODES)
def test_no_trap_comes_between_a_stack_segment_and_its_pointer(mode: str) -> None:
    source = f"""
    start:  mov eax, {DATA0}
            push 0x102
            push {CODE0}
            push {{one}}
            @iret
    one:    mov ss, eax
    two:    mov esp, {STACK}
    three:  nop
            hlt
    step:   {DONE}
    """
    lab = Lab(source, {1: "step"}, mode)
    assert exit_value(lab) == 1
    assert lab.u32(lab.cpu.esp) == lab.labels["three"]


@pytest.mark.parametrize("mode", ["full", "paravirt"])
def test_a_return_frame_may_name_the_ring_the_kernel_runs_on(mode: str) -> None:
    """A guest that reads CS where nothing stands in its way sees ring 1, and may return to it."""
    lab = Lab(f"start: push 2\npush {CODE0 | 1}\npush {{there}}\n@iret\nthere: {DONE}", mode=mode)
    assert exit_value(lab) == 1
