# SPDX-License-Identifier: GPL-2.0-only
"""Calls that a kernel replaces by instructions: what they reach, what must be cleared, what must stay."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.patcher.images import DATA, function, source_image
from vmi.patcher import paravirt
from vmi.patcher.model import Access, Image, Section, Segment
from vmi.patcher.paravirt import Call
from vmi.patcher.plan import make_plan
from vmi.rom.assemble import Assembled
from vmi.sitetable import Tactic

TABLE = DATA + 0x1000
OFF, ON, SLOW, FLUSH = (DATA + 4 * n for n in range(4))  # slots of operations
SOURCE = f"""
    jmp main
disable:
    push ebp
    mov ebp, esp
    cli
    pop ebp
    ret
enable:
    sti
    ret
slow:
    cli
    call enable
    ret
flush:
    mov eax, 1
    ret
main:
    call dword ptr [{OFF}]
    nop
    push eax
    call dword ptr [{ON}]
    pop eax
    call dword ptr [{SLOW}]
    call dword ptr [{FLUSH}]
    .byte 0xb8
    .long piece_off
    .byte 0xba
    .long piece_on
    .byte 0xb9
    .long piece_cr3
    .byte 0xbb
    .long piece_end
copy:
    mov bl, byte ptr [eax]
    jmp copy
piece_off:
    cli
piece_on:
    sti
piece_cr3:
    mov cr3, eax
piece_end:
    nop
    nop
    nop
    nop
    nop
    nop
    nop
    nop
"""


def kernel(*, operations: list[str], records: list[tuple[int, int]]) -> tuple[Image, Assembled]:
    """Records are (offset from `main`, length)."""
    image, made = source_image(SOURCE, words=operations)
    raw = b"".join(struct.pack("<IBBH", made.labels["main"] + at, 1, length, 0) for at, length in records)
    segments = (*image.segments, Segment(TABLE, TABLE - 0xC0000000, raw, len(raw), Access.R, 0x12000))
    sections = (*image.sections, Section(".parainstructions", TABLE, len(raw), False, False))
    return replace(image, segments=segments, sections=sections), made


OPERATIONS = ["disable", "enable", "slow", "flush"]
RECORDS = [(0, 7), (7, 8), (15, 6), (21, 6), (27, 5)]


def test_records_lead_to_the_native_functions() -> None:
    image, made = kernel(operations=OPERATIONS, records=RECORDS)
    at, main = made.labels, made.labels["main"]
    assert paravirt.calls(image) == (
        Call(main, 7, OFF, at["disable"], ("cli",)),
        Call(main + 7, 8, ON, at["enable"], ("sti",)),
        Call(main + 15, 6, SLOW, at["slow"]),
        Call(main + 21, 6, FLUSH, at["flush"]),
        Call(main + 27, 5),
    )
    assert paravirt.lengths(image) == tuple(TABLE + 8 * n + 5 for n in range(5))


def test_a_kernel_without_sensitive_operations_may_replace_its_calls() -> None:
    image, _ = kernel(operations=["flush"] * 4, records=RECORDS[:4])
    assert len(paravirt.calls(image)) == 4
    assert paravirt.lengths(image) == ()


@pytest.mark.parametrize("size", [0, 12])
def test_a_table_of_another_layout_says_nothing(size: int) -> None:
    image, _ = kernel(operations=OPERATIONS, records=RECORDS)
    odd = replace(image.sections[-1], size=size)
    assert paravirt.calls(replace(image, sections=(*image.sections[:-1], odd))) == ()
    nowhere, _ = kernel(operations=OPERATIONS, records=[(0x10000000, 6)])
    assert paravirt.calls(nowhere) == ()
    assert paravirt.calls(replace(image, sections=image.sections[:-1])) == ()


def pieces(image: Image, made: Assembled) -> dict[str, tuple[Tactic, str]]:
    names = ("piece_off", "piece_on", "piece_cr3")
    found = {p.site.address: (p.tactic, p.reason) for p in make_plan(image).placements}
    return {name: found[made.labels[name]] for name in names if made.labels[name] in found}


@pytest.mark.parametrize("named", [False, True])
def test_pieces_that_the_kernel_copies_stay(named: bool) -> None:
    image, made = kernel(operations=OPERATIONS, records=RECORDS)
    if named:
        at = made.labels
        bounds = ["piece_off", "piece_on", "piece_cr3", "piece_end"]
        for name, start, end in zip("abc", bounds, bounds[1:], strict=False):
            image = replace(
                image,
                symbols=(
                    *image.symbols,
                    function(f"start_pv_irq_ops_{name}", at[start]),
                    function(f"end_pv_irq_ops_{name}", at[end]),
                ),
            )
    alone = (Tactic.LEFT, paravirt.REASON)
    assert pieces(image, made) == dict.fromkeys(("piece_off", "piece_on", "piece_cr3"), alone)


def test_without_such_a_table_pieces_are_code_like_any_other() -> None:
    image, made = kernel(operations=["flush"] * 4, records=RECORDS[:4])
    found = pieces(image, made)
    assert len(found) == 3
    assert paravirt.REASON not in {reason for _, reason in found.values()}
