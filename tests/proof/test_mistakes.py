# SPDX-License-Identifier: GPL-2.0-only
"""A proof that finds nothing proves nothing: each kind of mistake that a patcher can make is found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from tests.proof import kernels
from tests.proof.kernels import adaptor, damaged, find, image, label, record, rel32, table, trampoline, window
from vmi import abi
from vmi.proof import prove
from vmi.proof.code import Step
from vmi.sitetable import LINK_SIZE, SITE_SIZE

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
