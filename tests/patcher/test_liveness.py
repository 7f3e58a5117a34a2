# SPDX-License-Identifier: GPL-2.0-only
"""Flags and registers are called dead only when every path overwrites them first."""

from __future__ import annotations

import pytest

from tests.patcher.images import BASE, source_image
from vmi.patcher.flow import flow
from vmi.patcher.liveness import Liveness, LivenessFinder
from vmi.patcher.scan import scan


def after(source: str, words: tuple[str, ...] = ()) -> Liveness:
    """Liveness after the instruction at the label `site`."""
    image, made = source_image(source, words=words)
    return LivenessFinder(flow(scan(image))).after(made.labels["site"])


FLAGS_CASES = [
    ("overwritten", "site: cli\n cmp eax, 1\n jz short site\n ret", False),
    ("read by a branch", "site: cli\n jz short site\n ret", True),
    ("read after moves", "site: cli\n mov eax, 1\n push eax\n sbb eax, eax\n ret", True),
    ("carry outlives inc", "site: cli\n inc eax\n adc edx, 0\n ret", True),
    ("inc and then a reader of zero", "site: cli\n inc eax\n jz short site\n stc\n ret", False),
    ("saved with pushf", "site: cli\n pushfd\n pop eax\n ret", True),
    ("saved with lahf", "site: cli\n lahf\n ret", True),
    ("a return", "site: cli\n pop ebx\n ret", False),
    (
        "read on the far side of a branch",
        "site: cli\n jecxz away\n cmp eax, 1\n ret\naway: sbb eax, eax\n ret",
        True,
    ),
    ("dead on both sides", "site: cli\n jecxz away\n cmp eax, 1\n ret\naway: test eax, eax\n ret", False),
    ("a call of a function that overwrites", "site: cli\n call f\n ret\nf: xor eax, eax\n ret", False),
    ("a call of a function that reads", "site: cli\n call f\n ret\nf: sbb eax, eax\n ret", True),
    ("an indirect call", "site: cli\n call eax\n ret", False),
    ("an indirect jump", "site: cli\n jmp eax", True),
    ("an interrupt return loads others", "site: cli\n iretd", False),
    ("a far return", "site: cli\n retf", True),
    ("a software interrupt", "site: cli\n int 0x80\n ret", True),
    ("the end of the text", "site: cli\n nop", True),
    ("a shift by cl may change nothing", "site: cli\n shl eax, cl\n jz short site\n ret", True),
    ("a shift by one", "site: cli\n shl eax, 1\n jz short site\n stc\n ret", False),
    ("a repeated comparison may change nothing", "site: cli\n repe cmpsb\n jz short site\n ret", True),
    ("a plain comparison", "site: cli\n cmpsb\n jz short site\n ret", False),
    ("a loop that never reads", "site: cli\n nop\nagain: loop again\n test eax, eax\n ret", False),
    ("other sites keep them", "site: cli\n sti\n jz short site\n ret", True),
]


@pytest.mark.parametrize(
    ("source", "live"), [case[1:] for case in FLAGS_CASES], ids=[c[0] for c in FLAGS_CASES]
)
def test_flags(source: str, live: bool) -> None:
    assert after(source).flags is live


def test_a_return_counts_as_a_reader_when_a_caller_looks_at_flags() -> None:
    function = "start: call f\n {}\n ret\nf: cmp eax, 1\nsite: cli\n ret"
    assert after(function.format("jz short start")).flags
    assert not after(function.format("test eax, eax")).flags
    assert not after(function.format("add esp, 4\n jz short start")).flags


def test_only_the_function_that_returns_flags_pays_for_it() -> None:
    source = "start: call g\n jz short start\n call f\n ret\nf: nop\nsite: cli\n ret\ng: cmp eax, 1\n ret"
    assert not after(source).flags


def test_every_return_counts_when_flags_are_read_after_an_indirect_call() -> None:
    assert after("start: call eax\n jc short start\n ret\nf: nop\nsite: cli\n ret", ("f",)).flags


def test_a_long_search_gives_up_and_calls_everything_live() -> None:
    assert after("site: cli\n" + "nop\n" * 200 + "test eax, eax\n ret") == Liveness(True, ())


REGISTER_CASES = [
    ("overwritten", "site: cli\n mov eax, 1\n xor edx, edx\n mov ecx, [ebx]\n ret", ("eax", "ecx", "edx")),
    ("read first", "site: cli\n mov [ebx], eax\n mov eax, 1\n ret", ()),
    ("used as an address", "site: cli\n mov eax, [eax]\n ret", ()),
    ("a part is overwritten", "site: cli\n mov al, 1\n ret", ()),
    ("a return keeps all", "site: cli\n ret", ()),
    ("a conditional move", "site: cli\n .byte 0x0f, 0x44, 0xc3\n ret", ()),
    ("one path only", "site: cli\n jecxz away\n mov eax, 1\naway: ret", ()),
    (
        "both paths",
        "site: cli\n test ebx, ebx\n jz short away\n mov edx, 1\n ret\naway: mov edx, 2\n ret",
        ("edx",),
    ),
    ("an interrupt", "site: cli\n int 0x80\n mov eax, 1\n ret", ()),
    ("a call", "site: cli\n call f\n ret\nf: mov ecx, 1\n ret", ("ecx",)),
]


@pytest.mark.parametrize(
    ("source", "dead"), [case[1:] for case in REGISTER_CASES], ids=[c[0] for c in REGISTER_CASES]
)
def test_registers(source: str, dead: tuple[str, ...]) -> None:
    assert after(source).dead == dead


def test_an_address_without_an_instruction_is_unknown() -> None:
    image, _ = source_image("mov eax, 1\n ret")
    finder = LivenessFinder(flow(scan(image)))
    assert finder.after(BASE + 1) == Liveness(True, ())
    assert finder.after(BASE - 1) == Liveness(True, ())
