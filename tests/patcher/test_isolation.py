# SPDX-License-Identifier: GPL-2.0-only
"""Entry code of isolated page tables is told by how it computes CR3, and only where PAE may be on."""

from __future__ import annotations

import pytest

from tests.patcher.images import BASE, DATA, OFFSET, source_image
from vmi.patcher.flow import flow
from vmi.patcher.isolation import AROUND, isolated
from vmi.patcher.model import Symbol, SymbolKind
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
    return isolated(flow(scan(image)))


@pytest.mark.parametrize(
    "change", ["or eax, 0x1000", "and eax, 0xffffefff", "test eax, 0x1000\n jz write\n xor eax, 0x1000"]
)
def test_a_switch_computes_cr3_from_cr3(change: str) -> None:
    (found,) = ranges(change)
    assert len(found) == 2 * AROUND
    assert BASE in found


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
