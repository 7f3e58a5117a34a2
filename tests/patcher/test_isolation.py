# SPDX-License-Identifier: GPL-2.0-only
"""Entry code of isolated page tables is told by how it computes CR3, and only where PAE may be on."""

from __future__ import annotations

import pytest

from tests.patcher.images import BASE, DATA, OFFSET, source_image
from vmi.patcher.elf import PAGE
from vmi.patcher.flow import flow
from vmi.patcher.isolation import AROUND, isolated
from vmi.patcher.model import EntryCode, Symbol, SymbolKind
from vmi.patcher.plan import make_plan
from vmi.patcher.scan import scan

SWITCH = """
    start: mov eax, cr3
           {change}
    write: mov cr3, eax
           cli
           iretd
    boot:  {boot}
           ret
"""
PAE = f"mov eax, [{DATA - OFFSET + 8}]\n mov cr4, eax"
NO_PAE = f"mov eax, [{DATA - OFFSET + 4}]\n mov cr4, eax"


def ranges(change: str = "or eax, 0x1000", boot: str = "nop", **more: object) -> list[range]:
    image, made = source_image(SWITCH.format(change=change, boot=boot), words=("boot", 0x90, 0xB0), **more)
    assert made.labels["start"] == BASE
    return list(isolated(flow(scan(image))).ranges)


@pytest.mark.parametrize(
    "change", ["or eax, 0x1000", "and eax, 0xffffefff", "test eax, 0x1000\n jz write\n xor eax, 0x1000"]
)
def test_a_switch_computes_cr3_from_cr3(change: str) -> None:
    assert ranges(change) == [range(BASE, BASE + PAGE)]


@pytest.mark.parametrize("change", ["nop", "or eax, ecx", "add eax, 0x1000", "test eax, 0x1000"])
def test_other_writes_of_cr3_are_no_switch(change: str) -> None:
    assert ranges(change) == []


@pytest.mark.parametrize(
    ("boot", "count"),
    [
        (PAE, 1),
        (NO_PAE, 0),
        (NO_PAE + "\n mov eax, cr4\n or eax, 0x20\n mov cr4, eax", 1),
        ("mov eax, [ebx]\n mov cr4, eax", 1),
        (f"mov eax, [{DATA + 4}]\n mov cr4, eax", 1),
    ],
)
def test_without_pae_nothing_is_isolated(boot: str, count: int) -> None:
    assert len(ranges(boot=boot)) == count


def test_symbols_tell_the_entry_code_exactly() -> None:
    symbols = [
        Symbol("__entry_text_start", BASE, 0, SymbolKind.OTHER),
        Symbol("__entry_text_end", BASE + 15, 0, SymbolKind.OTHER),
    ]
    assert ranges(symbols=symbols) == [range(BASE, BASE + 15)]


def test_sites_of_entry_code_are_marked() -> None:
    image, _ = source_image(SWITCH.format(change="or eax, 0x1000", boot="nop"))
    assert all(site.isolated for site in make_plan(image).sites)
    image, _ = source_image(SWITCH.format(change="nop", boot="nop"))
    assert not any(site.isolated for site in make_plan(image).sites)


# ---------------------------------------------------------------- what hangs together with a switch

ENTER = "mov eax, cr3\n and eax, 0xffffefff\n mov cr3, eax"
LEAVE = "mov eax, cr3\n or eax, 0x1000\n mov cr3, eax"


def behind(offset: int, *lines: str) -> str:
    """Code at ``offset`` from the start; nothing runs into it, even if zeros before it take a byte of it."""
    return "\n".join((f".org {BASE + offset - 2}", "ret", "ret", *lines))


def entry_code(*lines: str) -> tuple[EntryCode, dict[str, int]]:
    image, made = source_image("\n".join(("start:", *lines)), words=("start",))
    return isolated(flow(scan(image))), made.labels


def pages(first: int, last: int) -> range:
    return range(BASE + first * PAGE, BASE + (last + 1) * PAGE)


@pytest.mark.parametrize(
    "lines",
    [
        ("jmp far", behind(0x2100, "far: nop")),
        ("jz far", "hlt", "ret", behind(0x2100, "far: nop")),
        ("ret", behind(0x2100, "jmp start")),
    ],
)
def test_what_jumps_join_is_entry_code_with_all_that_lies_between(lines: tuple[str, ...]) -> None:
    found, _ = entry_code(ENTER, *lines)
    assert found.ranges == (pages(0, 2),)


def test_code_that_no_jump_joins_is_not() -> None:
    found, _ = entry_code(ENTER, "ret", behind(0x1100, "cli", "call start", "ret"))
    assert found.ranges == (pages(0, 0),)


def test_a_way_back_to_user_mode_close_by_is_entry_code_and_nothing_between() -> None:
    found, labels = entry_code(
        ENTER, "ret", behind(0x1100, "cli", "ret"), behind(0x2100, "gate:", "cli", "iretd", "end: nop")
    )
    assert found.ranges == (pages(0, 0), range(labels["gate"], labels["end"]))


def test_what_is_too_far_is_not() -> None:
    found, _ = entry_code(ENTER, "jmp far", behind(AROUND + 0x1000, "far: iretd"))
    assert found.ranges == (pages(0, 0),)


def test_what_entry_code_calls_close_by_is_entry_code_and_nothing_between() -> None:
    found, labels = entry_code(
        ENTER,
        "call near",
        "ret",
        behind(0x1100, "cli", "ret"),
        behind(0x2100, "near: call other", "ret", "nop", "ret", "other: cli", "ret", "end: nop"),
    )
    near, other = labels["near"], labels["other"]
    assert found.ranges == (pages(0, 0), range(near, other - 2), range(other, labels["end"]))


def test_pages_from_switch_to_switch_are_mapped_together() -> None:
    found, _ = entry_code(
        ENTER, "jmp far", behind(0x2100, "far:", LEAVE, "jmp further"), behind(0x3100, "further: iretd")
    )
    assert (found.ranges, found.mapped) == ((pages(0, 3),), (pages(0, 2),))


def test_switches_that_nothing_joins_vouch_for_no_page_between() -> None:
    found, _ = entry_code(ENTER, "ret", behind(0x2100, LEAVE, "iretd"))
    assert (found.ranges, found.mapped) == ((pages(0, 2),), (pages(0, 0), pages(2, 2)))
