# SPDX-License-Identifier: GPL-2.0-only
"""A proof that finds nothing proves nothing: each kind of mistake that a patcher can make is found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from tests.patcher import loaded
from tests.patcher.elfs import PADDR, VADDR, Piece, Plan, make
from tests.proof import kernels
from tests.proof.kernels import adaptor, damaged, find, image, label, record, rel32, table, trampoline, window
from vmi import abi
from vmi.errors import BadInput
from vmi.memory import PAGE_SIZE
from vmi.patcher import elf, patch
from vmi.proof import prove
from vmi.proof.code import CodeView, Step
from vmi.proof.runner import Runner
from vmi.proof.setting import setting
from vmi.proof.stage import Ground, Stage
from vmi.rom.assemble import assemble
from vmi.sitetable import LINK_SIZE, SITE_SIZE
from vmi.x86 import Eflags

BOTH, CONNECTED, FILES = {"native", "connected"}, {"connected"}, {"files"}


def over(step: Step, raw: str | bytes, offset: int = 0) -> bytes:
    """The file with an instruction overwritten."""
    return damaged(step.address + offset, raw if isinstance(raw, bytes) else bytes.fromhex(raw))


def jump(step: Step, target: int, opcode: str = "e9") -> bytes:
    return over(step, rel32(bytes.fromhex(opcode), step.address, target))


def site_record(function: str, number: int = 0, **changes: object) -> bytes:
    """The file with another site record."""
    old = record(function, number)
    at = table().header.sites + sorted(table().sites, key=lambda r: r.slot).index(old) * SITE_SIZE
    return damaged(at, replace(old, **changes).pack())  # type: ignore[arg-type]


def link_record(function: str, call: str) -> bytes:
    """The file with the link of a function's first adaptor to another call."""
    inside = range(record(function).adaptor, adaptor(function)[-1].address)
    number, old = next((n, link) for n, link in enumerate(table().links) if link.address in inside)
    return damaged(
        table().header.links + number * LINK_SIZE, replace(old, call=abi.BY_NAME[call].number).pack()
    )


def swapped(first: Step, second: Step) -> bytes:
    raw = image().read(first.address, first.length + second.length)
    return damaged(first.address, raw[first.length :] + raw[: first.length])


def other_trampoline(function: str, other: str) -> bytes:
    at = window(function)
    return damaged(at, rel32(b"\xe9", at, trampoline(other)[0].address))


def back(steps: list[Step]) -> Step:
    return steps[-1]


Mistake = tuple[str, str, Callable[[], bytes], Iterable[str], str]
MISTAKES: tuple[Mistake, ...] = (
    # what, the function it is in, the damaged file, which runs show it, what is said
    (
        "a branch with another target", "branches",
        lambda: jump(find(trampoline("branches"), "jne"), label("branches") + 13, "0f85"), BOTH,
        "expected it arrived at .*, got .* instead",
    ),
    (
        "a branch on the opposite condition", "flags",
        lambda: over(find(trampoline("flags"), "jb"), "0f83"), BOTH,
        "expected it arrived at .*, got .* instead",
    ),
    (
        "a loop that jumps over its own jump", "counted",
        lambda: over(find(trampoline("counted"), "loop"), "07", 1), BOTH, "expected it arrived at .*",
    ),
    (
        "a lost instruction", "ports",
        lambda: over(find(trampoline("ports"), "mov cl"), "6690"), BOTH,
        "instruction 1 is `mov edx,3F8h` instead of `mov cl,al`",
    ),
    (
        "a lost instruction that no register shows", "tables",
        lambda: over(find(trampoline("tables"), "invlpg"), "0f1f0400"), {"native"},
        r"instruction 1 is `wbinvd` instead of `invlpg \[ebx\+esi\*2\]`",
    ),
    (
        "an instruction too many", "branches",
        lambda: over(trampoline("branches")[0], "43666690"), {"native"},
        "instruction 0 is `inc ebx` instead of `cli`",
    ),
    (
        "another number in an instruction", "shadow",
        lambda: over(find(trampoline("shadow"), "mov eax"), "79", 1), BOTH,
        "instruction 1 is `mov eax,12345679h` instead of `mov eax,12345678h`",
    ),
    (
        "two instructions in the other order", "ports",
        lambda: swapped(*(find(trampoline("ports"), text) for text in ("mov cl", "mov edx"))), {"native"},
        "instruction 1 is `mov edx,3F8h` instead of `mov cl,al`",
    ),
    (
        "a NOP that ends an interrupt shadow", "shadow",
        lambda: over(trampoline("shadow")[0], "666690fb90"), {"native"},
        "an interrupt can come in now before instruction 1, `mov eax,12345678h`",
    ),
    (
        "a slot with another instruction", "flags",
        lambda: over(find(trampoline("flags"), "cli"), "fb"), {"native"},
        "instruction 0 is `sti` instead of `cli`",
    ),
    (
        "a jump back that skips an instruction", "flags",
        lambda: jump(back(trampoline("flags")), label("below_mov")), BOTH, "expected it arrived at .*",
    ),
    (
        "a jump back into the window", "ports",
        lambda: jump(back(trampoline("ports")), window("ports")), BOTH, "expected it arrived at .*",
    ),
    (
        "a window with another's trampoline", "branches",
        lambda: other_trampoline("branches", "calls"), FILES,
        "the record for 0x[0-9a-f]+ leads to 0x[0-9a-f]+, but no window does",
    ),
    (
        "a call to another function", "calls",
        lambda: jump(find(trampoline("calls"), "call"), label("shadow"), "e8"), BOTH,
        "expected it arrived at .*",
    ),
    (
        "a call that comes back to another place", "calls",
        lambda: jump(back(trampoline("calls")), label("calls") + 9), BOTH,
        "the call returns to 0x[0-9a-f]+, which does not lead to 0x[0-9a-f]+",
    ),
    (
        "changed text that belongs to nothing", "shadow",
        lambda: damaged(label("shadow"), b"\x90"), FILES,
        "the text has changed at 0x[0-9a-f]+, and no window leads there",
    ),
    (
        "an adaptor that restores the wrong register", "counted",
        lambda: over(find(adaptor("counted"), "pop edx"), "5e"), CONNECTED, "e[ds][xi] is .* instead of .*",
    ),
    (
        "an adaptor that loses the flags", "flags",
        lambda: over(find(adaptor("flags"), "sahf"), "90"), CONNECTED, "eax is .*, ebx is .*, flags is .*",
    ),
    (
        "an adaptor without the stack's correction", "tables",
        lambda: over(find(adaptor("tables"), "lea eax"), "10", 3), CONNECTED, "expected gdt .*, got gdt .*",
    ),
    (
        "an adaptor that leaves a word on the stack", "counted",
        lambda: over(find(adaptor("counted"), "pop edx"), "90"), CONNECTED, "expected .*",
    ),
    (
        "an adaptor with another port", "counted",
        lambda: over(find(adaptor("counted"), "mov edx"), "84", 1), CONNECTED,
        "expected out 0x80 0x1 .*, got out 0x84 0x1 .*",
    ),
    (
        "an adaptor linked to another call", "counted",
        lambda: link_record("counted", "OUTW"), CONNECTED, "expected out 0x80 0x1 .*, got out 0x80 0x2 .*",
    ),
    (
        "a slot connected to another call", "branches",
        lambda: site_record("branches", call=abi.BY_NAME["EnableInterrupts"].number), CONNECTED,
        "eflags is .*",
    ),
    (
        "a slot with another's adaptor", "tables",
        lambda: site_record("tables", 3, adaptor=record("tables", 2).adaptor), CONNECTED,
        "expected 0f09 0x0 0x0, got invlpg .*",
    ),
    (
        "a slot recorded one byte too early", "ports",
        lambda: site_record("ports", 1, slot=record("ports", 1).slot - 1), FILES,
        "the record for 0x[0-9a-f]+ leads to 0x[0-9a-f]+, but no window does",
    ),
    (
        "a slot longer than it is", "flags",
        lambda: site_record("flags", length=7), CONNECTED, ".*",
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("function", "damage", "modes", "said"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_mistake_is_found(
    function: str, damage: Callable[[], bytes], modes: Iterable[str], said: str
) -> None:
    found = prove(kernels.original(), damage(), trials=8)
    start = label(function)
    assert not found.agrees
    assert {one.mode for one in found.disagreements} >= set(modes)
    for one in found.disagreements:
        assert start <= one.window < start + 64
    first = max(modes)  # "native" if that shows it: there nothing is masked by what follows
    sentences = [one.what for one in found.disagreements if one.mode == first]
    assert any(re.fullmatch(said, sentence) for sentence in sentences), sentences


def test_the_undamaged_kernel_agrees() -> None:
    found = prove(kernels.original(), kernels.patched(), trials=8)
    assert found.disagreements == ()
    assert found.windows == 10
    assert {mode: count.runs for mode, count in found.counts.items()} == {"native": 72, "connected": 80}
    assert all(count.arrived > 60 for count in found.counts.values())


def small(code: str, *others: Piece) -> bytes:
    text = Piece(VADDR, assemble(code, VADDR).code, section=".text")
    return make(Plan([*others, text], symbols=[("start", VADDR, 2)]))


@pytest.mark.parametrize("insn", ["fld dword ptr [ecx]", "fstp dword ptr [ecx]"])
def test_the_address_of_a_moved_fpu_instruction_may_differ(insn: str) -> None:
    kernel = small(f"cli\n{insn}\nmov eax, 1\nret")
    found = prove(kernel, patch(kernel).data, trials=2)
    assert (found.windows, found.disagreements) == (1, ())


def test_segments_of_an_image_may_lie_far_apart() -> None:
    kernel = small("cli\nmov eax, 1\nret", Piece(PADDR - 0x1000, bytes(16), flags=4, paddr=PADDR - 0x1000))
    found = prove(kernel, patch(kernel).data, trials=2)
    assert (found.windows, found.disagreements) == (1, ())


def test_segments_all_over_leave_no_room() -> None:
    with pytest.raises(BadInput) as caught:
        Ground.of([(0x10000000, 0x90000000), (0xA0000000, 0xB0000000)])
    assert str(caught.value) == (
        "the images at 0x10000000 to 0xb0000000 leave no room for a stage beside them"
    )


def test_load_addresses_in_the_text_are_no_code() -> None:
    found = prove(loaded.kernel(), patch(loaded.kernel()).data, trials=1)
    assert found.windows and found.disagreements == ()


BOARD_INSIDE = """
    sti
again:
    sub esp, 8
    push 1
    push 0xc0100000
    call sub
    add esp, 16
    test eax, eax
    je close
    call sub
    jmp short again
close:
    ret
sub:
    xor eax, eax
    ret
"""


def test_a_springboard_may_lie_inside_another_window() -> None:
    """The jump back is too short for another one, and leads through what is left of the first window."""
    kernel = small(BOARD_INSIDE)
    found = prove(kernel, patch(kernel).data, trials=2)
    assert (found.windows, found.disagreements) == (2, ())


@pytest.mark.parametrize("between", ["", "jmp short next"])
def test_pause_takes_what_holds_interrupts_off_no_further(between: str) -> None:
    """Be there a jump behind it or not: an interrupt may come before the third instruction."""
    view = CodeView(elf.load(small(f"sti\npause\n{between}\nnext: mov eax, ebx\nret")))
    ground = Ground.of([(VADDR, VADDR + PAGE_SIZE)])
    stage = Stage(ground, [*view.pieces()])
    begin = setting(VADDR, 0, ground.region)
    stage.begin(replace(begin, eflags=begin.eflags & ~Eflags.IF), VADDR)
    run = Runner(view, stage).run(lambda _: False, 4)
    assert [opened for _, opened in run.record][:3] == [False, False, True]
