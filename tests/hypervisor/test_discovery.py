# SPDX-License-Identifier: GPL-2.0-only
"""Silent instructions of an unpatched kernel are found before they are executed, wherever they come from."""

from __future__ import annotations

import pytest
from iced_x86 import Decoder

from tests.hypervisor.lab import SILENT_USER, Lab, exit_value
from tests.native.guest import CODE, CODE3, DATA3, DONE, IDT, USER_STACK, gate
from vmi.hypervisor import discovery
from vmi.hypervisor.discovery import is_silent

FAR = 0x40000


def full(source: str, handlers: dict[int, str] | None = None) -> Lab:
    """A guest without any breakpoint planted beforehand."""
    return Lab(source, handlers or {}, "full", silent=[])


def breakpoints(lab: Lab) -> dict[int, int]:
    assert lab.domain is not None
    return lab.domain.breakpoints.originals()


@pytest.mark.parametrize(
    ("code", "silent"),
    [
        ("9c", True), ("669c", True), ("9d", True), ("cf", True), ("66cf", True), ("8cc8", True),
        ("8cd0", True), ("8c0d00000000", True), ("0e", True), ("16", True), ("0f02c1", True),
        ("0f03c1", True), ("0f00e0", True), ("0f00e8", True), ("9a000000000800", True), ("ff18", True),
        ("8cd8", False), ("1e", False), ("0fa0", False), ("fa", False), ("fb", False), ("f4", False),
        ("0f20c0", False), ("8ed0", False), ("ff10", False), ("e800000000", False), ("cb", False),
        ("ea000000000800", False), ("0fa2", False), ("0f31", False), ("cd80", False), ("89c8", False),
    ],
)  # fmt: skip
def test_which_instructions_are_silent(code: str, silent: bool) -> None:
    assert is_silent(Decoder(32, bytes.fromhex(code)).decode()) == silent


def test_one_is_found_when_it_is_executed_and_no_sooner() -> None:
    lab = full(f"start: cli\ntaken: pushfd\npop ecx\njmp short over\nleft: pushfd\npop edx\nover: {DONE}")
    assert exit_value(lab) == 1
    assert not lab.cpu.ecx & 0x200, "the real flag would be set"
    assert breakpoints(lab) == {lab.labels["taken"]: 0x9C}
    assert lab.memory.read(lab.labels["left"], 1) == b"\x9c"


def test_the_first_instruction_of_all() -> None:
    lab = full(f"start: mov edx, cs\n{DONE}")
    assert exit_value(lab) == 1
    assert lab.cpu.edx == 8


def test_one_that_is_copied_over_another_when_the_kernel_knows_its_processor() -> None:
    """What is copied from is never executed; what it is copied over was, before and after."""
    source = f"""
    start:  mov ebp, 2
    again:  call site
            mov ax, word ptr [{{native}}]
            mov word ptr [{{site}}], ax
            dec ebp
            jnz again
            call site
            {DONE}
            jmp start
    native: pushfd
            pop ecx
    site:   mov ecx, ebp
            ret
    """
    lab = full(source)
    assert exit_value(lab) == 1
    assert lab.memory.read(lab.labels["native"], 2) == b"\x9c\x59"
    assert lab.memory.read(lab.labels["site"], 2) == b"\xcc\x59", "written over itself, and planted again"
    assert not lab.cpu.ecx & 0x200
    assert lab.machine.exits["breakpoint: pushfd"] == 2


def test_code_that_moves_itself_takes_its_breakpoints_along() -> None:
    source = f"""
    start:  call moved
            mov esi, {CODE}
            mov edi, {FAR}
            mov ecx, {{end}}
            sub ecx, esi
            rep movsb
            mov eax, {{moved}}
            add eax, {FAR - CODE}
            call eax
            {DONE}
    moved:  cli
            nop
            pushfd
            pop ecx
            mov edx, cs
            ret
    end:
    """
    lab = full(source)
    assert exit_value(lab) == 1
    assert lab.cpu.edx == 8 and not lab.cpu.ecx & 0x200
    originals = breakpoints(lab)
    assert originals == originals | {at - CODE + FAR: byte for at, byte in originals.items() if at < FAR}
    assert len(originals) == 4


def test_a_breakpoint_of_the_guests_own_stays_its_own() -> None:
    lab = full(f"start: pushfd\npop ecx\nown: int3\nback: {DONE}", {3: "back"})
    assert exit_value(lab) == 1
    assert lab.u32(lab.cpu.esp) == lab.labels["own"] + 1
    assert list(breakpoints(lab)) == [CODE]


def test_user_code_is_left_alone() -> None:
    lab = full(SILENT_USER)
    lab.memory.write(IDT + 8 * 0x30, gate(8, lab.labels["back"], 0xEE))
    assert exit_value(lab) == 1
    assert lab.cpu.ebx & 0x200 and lab.cpu.ecx == CODE3
    assert list(breakpoints(lab).values()) == [0xCF]


def test_code_that_user_and_kernel_share() -> None:
    """Each gets it right: the kernel's breakpoint goes when user code meets it, and comes back."""
    source = f"""
    start:  mov ebp, 2
    kernel: call both
            push {DATA3}
            push {USER_STACK}
            push 0x202
            push {CODE3}
            push {{user}}
            iretd
    user:   call both
            int 0x30
    back:   dec ebp
            jnz kernel
            cli
            call both
            {DONE}
    both:   pushfd
            pop ebx
            mov ecx, cs
            ret
    """
    lab = full(source)
    lab.memory.write(IDT + 8 * 0x30, gate(8, lab.labels["back"], 0xEE))
    assert exit_value(lab) == 1
    assert lab.cpu.ecx == 8 and not lab.cpu.ebx & 0x200
    assert lab.machine.exits["breakpoint: pushfd"] == 3


def test_a_kernel_that_is_unpacked_over_code_that_ran() -> None:
    source = f"""
    start:  pushfd
            pop eax
            mov esi, {{packed}}
            mov edi, {CODE}
            mov ecx, 16
            mov ebx, {CODE}
            rep movsb
            jmp ebx
    packed: cli
            nop
            pushfd
            pop ecx
            {DONE}
    """
    lab = full(source)
    assert exit_value(lab) == 1
    assert not lab.cpu.ecx & 0x200
    assert lab.machine.exits["breakpoint: pushfd"] == 2


def test_what_is_remembered_of_a_guest_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmi.hypervisor.breakpoints._MOST_FOUND", 3)
    calls = "\n".join(f"call f{n}" for n in range(5))
    functions = "\n".join(f"f{n}: pushfd\npop ecx\nor edx, ecx\nret" for n in range(5))
    lab = full(f"start: cli\nmov ebp, 2\nagain: {calls}\ndec ebp\njnz again\n{DONE}\njmp start\n{functions}")
    assert exit_value(lab) == 1
    assert not lab.cpu.edx & 0x200
    assert lab.machine.exits["breakpoint: pushfd"] == 10
    standing = breakpoints(lab)
    assert len(standing) <= 3
    assert [lab.memory.read(lab.labels[f"f{n}"], 1) for n in range(5)].count(b"\xcc") == len(standing)


def test_straight_code_is_decoded_once_in_however_many_blocks_it_comes(monkeypatch) -> None:
    """Each store goes to a device, which may end a block; one silent instruction is behind them all."""
    decoded = []

    def counted(*how):
        for instruction in Decoder(*how):
            decoded.append(instruction.mnemonic)
            yield instruction

    monkeypatch.setattr(discovery, "Decoder", counted)
    stores = "mov [edi], al\n" * 200
    lab = full(f"start: mov edi, 0xe0000000\n{stores}mov edx, cs\n{DONE}\nend: jmp end")
    assert exit_value(lab) == 1
    assert lab.cpu.edx == 8 and len(breakpoints(lab)) == 1
    assert len(decoded) < 250


def test_code_that_has_changed_is_looked_at_again() -> None:
    """What has been looked at, but for one byte behind a store to a device."""
    change = "mov byte ptr [{late}], 0x9c"
    lab = full(f"start: mov edi, 0xe0000000\nmov [edi], al\n{change}\nmov [edi], al\nlate: nop\n{DONE}\nhlt")
    assert exit_value(lab) == 1
    assert breakpoints(lab) == {lab.labels["late"]: 0x9C}
