# SPDX-License-Identifier: GPL-2.0-only
"""Who has a page's translation dropped is told when there is one again, once."""

from __future__ import annotations

import pytest

from tests.native.guest import DONE, PAGES, Guest
from vmi.x86 import Cr4

PAGE = 0x40000
OTHER = PAGE + 0x1000


def told(source: str, drop: int = PAGE, *, large: bool = False) -> list[int]:
    """EIPs at which a guest that maps its memory one to one is said to use a page again."""
    guest = Guest(f"{source} | {DONE}")
    guest.memory.write(PAGE, b"\xc3")
    guest.memory.write(OTHER, b"\xc3")
    guest.page()
    if large:
        guest.cpu.set_cr(4, Cr4.PSE)
        guest.memory.put_u32(PAGES, 0x87)
    seen: list[int] = []
    guest.cpu.drop_page(drop, lambda: seen.append(guest.cpu.uncached))
    assert guest.exit_value() == 1
    return seen


@pytest.mark.parametrize(
    "use",
    [
        f"mov ecx, [{PAGE + 0xFF0}]",
        f"mov [{PAGE + 4}], ecx",
        f"mov eax, {PAGE} | call eax",
        f"inc dword ptr [{PAGE}]",
    ],
)
def test_each_kind_of_use_counts_and_the_first_only(use: str) -> None:
    assert told(f"{use} | {use}", PAGE + 0x123) == [1 << 32]


def test_an_access_across_two_pages_is_a_use_of_both() -> None:
    assert told(f"mov ecx, [{PAGE - 2}]") == [1 << 32]


def test_another_page_is_none() -> None:
    assert told(f"mov ecx, [{OTHER}] | mov [{PAGE - 4}], ecx") == []


@pytest.mark.parametrize("large", [False, True])
def test_a_large_page_is_used_as_a_whole(large: bool) -> None:
    """Only as long as the code runs in another; here both are in the one."""
    assert told("nop", large=large) == ([1 << 32] if large else [])


def test_who_asks_no_more_is_not_told() -> None:
    guest = Guest(f"mov ecx, [{PAGE}] | {DONE}")
    guest.page()
    seen: list[str] = []
    guest.cpu.drop_page(OTHER, lambda: seen.append("first"))
    guest.cpu.drop_page(PAGE, lambda: seen.append("second"))
    guest.cpu.cached()
    assert seen == ["second"]
    assert guest.exit_value() == 1
    assert seen == ["second"]
