# SPDX-License-Identifier: GPL-2.0-only
"""Windows across jump targets, in hosts and with copies of sites that stay are emitted as planned."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from iced_x86 import Decoder

from tests.patcher import elfs
from tests.patcher.images import source_image
from tests.patcher.test_windows import layout, parts_of_code
from vmi.errors import VerifyError
from vmi.patcher import adaptors, elf, trampoline
from vmi.patcher.emit import emit
from vmi.patcher.model import Branch, Insn, Window
from vmi.patcher.place import place
from vmi.patcher.plan import make_plan
from vmi.patcher.rewrite import write
from vmi.patcher.verify import verify
from vmi.rom.assemble import assemble

HOME = 0xC0200000
FIRST = 0xC0100000


def inner_windows() -> tuple[Window, Window]:
    """`cli; back: mov ebx,1; pushf` with a jump to `back` and to the `pushf` in another window."""
    site = make_plan(elf.load(kernel(b"\x9c\x58\xfa\x90\x90\x90\x90\xc3"))).sites[0]
    moved = (
        Insn(FIRST, b"\x90"),
        Insn(FIRST + 1, b"\xbb\x01\0\0\0"),
        Insn(FIRST + 6, b"\x9c", "pushf"),
    )
    pushf = type(site)(FIRST + 6, b"\x9c", "pushf", site.call, True, False)
    first = Window(FIRST, 7, moved, (pushf,), (), FIRST + 7)
    jumps = (
        Insn(FIRST + 32, b"\x74\x00", branch=Branch.JCC, target=FIRST + 1),
        Insn(FIRST + 34, b"\xe9\0\0\0\0", branch=Branch.JMP, target=FIRST + 6),
    )
    second = Window(FIRST + 32, 7, jumps, (), (), None, inner=(FIRST + 1, FIRST + 6))
    return first, second


def kernel(code: bytes) -> bytes:
    return elfs.make(elfs.Plan([elfs.Piece(elfs.VADDR, code, section=".text")]))


def test_moved_jumps_lead_to_moved_instructions_and_to_whole_slots() -> None:
    first, second = inner_windows()
    built = trampoline.link([trampoline.build(first, HOME), trampoline.build(second, HOME + 64)])
    jcc, jmp = Decoder(32, built[1].code, ip=HOME + 64)
    (slot,) = built[0].slots
    assert (jcc.near_branch32, jmp.near_branch32) == (HOME + 1, slot.start)
    assert slot.start == HOME + 6
    assert slot.instruction == HOME + 10


@settings(max_examples=60, deadline=None)
@given(parts_of_code())
def test_whatever_is_planned_passes_the_check(parts: list[tuple[str, int]]) -> None:
    code, _, _ = layout(parts)
    image = elf.load(kernel(code + b"\xc3"))
    emission = emit(make_plan(image, adaptors.refusal), place(image))
    verify(emission, write(emission))


FRAGMENTS = (
    *("sti", "cli", "pushfd", "popfd", "mov eax, cr3", "mov cr3, eax", "hlt", "int3", "nop", "ret"),
    *("mov eax, [ebp - 16]", "sub eax, 7", "inc ecx", "mov ebx, ecx", "lea esp, [ebp - 12]", "call {at}"),
    *(
        "jnz {at}",
        "jnz short {at}",
        "jmp {at}",
        "jmp short {at}",
        "sti\n jmp short {at}",
        "cli\n jz short {at}",
    ),
    *("ret\n .byte 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc", "jmp short {at}\n nop\n nop\n nop\n nop"),
)
"""What branchy programs are made of: sites, short and long jumps to close by, padding."""


def branchy(seed: int) -> bytes:
    """Machine code of a program in which nearly each instruction is a jump's target."""
    rng = random.Random(seed)
    count = rng.randint(8, 60)
    lines = []
    for number in range(count):
        at = min(max(number + rng.randint(-10, 10), 0), count - 1)
        lines.append(f"L{number}: {rng.choice(FRAGMENTS).format(at=f'L{at}')}")
    return assemble("\n".join([*lines, "ret"]), elfs.VADDR).code


@pytest.mark.parametrize("start", (0, 10, 20, 30, 290, 430))
def test_programs_of_short_jumps_pass_the_check(start: int) -> None:
    for seed in range(start, start + 10):
        image = elf.load(kernel(branchy(seed)))
        emission = emit(make_plan(image, adaptors.refusal), place(image))
        verify(emission, write(emission))


LOOP = bytes.fromhex("90 fa 48 75fc ebfb")


def test_a_jump_into_a_window_that_misses_is_found() -> None:
    image = elf.load(kernel(LOOP))
    plan = make_plan(image, adaptors.refusal)
    (window,) = plan.windows
    (target,) = window.inner
    emission = emit(plan, place(image))
    output = bytearray(write(emission))
    (built,) = emission.trampolines
    jump = next(moved for moved in built.moved if moved.insn.target == target)
    at = output.index(built.code) + jump.at - built.start
    output[at + jump.size - 4] ^= 1
    with pytest.raises(VerifyError):
        verify(emission, bytes(output))


def test_what_a_failed_attempt_has_used_is_free_again_and_nothing_else() -> None:
    """Two jumps into a window need a springboard each, and there is room for one: behind a failed attempt
    the bytes of the window that was to be its host are no padding."""
    source = """
        wait: sti
        join: mov eax, [ebp - 0x10]
              sub eax, fs:[0xc1c966e0]
              jnz out
              lea esp, [ebp - 12]
              pop ebx
              ret
        one:  sti
              jmp short join
        two:  sti
              jmp short join
        out:  ret
    """
    plan = make_plan(source_image(source, words=("wait", "one", "two", "out"))[0])
    boards = [window.springboard for window in plan.windows if window.springboard is not None]
    assert len(set(boards)) == len(boards)
