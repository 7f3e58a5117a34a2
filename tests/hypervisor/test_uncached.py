# SPDX-License-Identifier: GPL-2.0-only
"""InvalPage leaves the ROM for every page but the one that a page fault has left with nothing cached."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import Lab, exit_value
from tests.native.guest import DATA0, DONE, FREE, IDT, PAGES, descriptor, gate
from vmi.rom.flavours.vmware import UNCACHED, UNCACHED_KNOWN
from vmi.x86 import Cr4

VA, FIRST, SECOND = 0x180000, 0x181000, 0x182000
ENTRY = PAGES + 0x1000 + 4 * (VA >> 12)
VALUES = {FIRST: 0x11111111, SECOND: 0x22222222}
STRATEGIES = ("direct", "shadow")

MAP_FIRST = f"mov dword ptr [{ENTRY}], {FIRST | 7}"
MAP_SECOND = f"mov dword ptr [{ENTRY}], {SECOND | 7}"
FLUSH = f"mov eax, {VA + 0x123}\ncall InvalPage"


def lab(handler: str, mmu: str = "direct", after: str = "") -> Lab:
    """A guest that reads a page which is not there, and answers the fault by ``handler``."""
    source = f"""
    start:  mov eax, [{VA + 4}]
            mov esi, eax
            {after}
            {DONE}
    fault:  add esp, 4
            {handler}
            @iret
    """
    made = Lab(source, {14: "fault"}, "paravirt", mmu=mmu, taken=False)
    for frame, value in VALUES.items():
        made.memory.write(frame, b"\xc3\x90\x90\x90" + value.to_bytes(4, "little"))
    made.page(VA)
    made.take()
    return made


def flushes(made: Lab) -> int:
    assert made.domain is not None
    return made.domain.calls.get("InvalPage", 0)


@pytest.mark.parametrize("mmu", STRATEGIES)
def test_an_answered_fault_has_nothing_to_flush(mmu: str) -> None:
    made = lab(f"{MAP_FIRST}\n{FLUSH}\n{MAP_SECOND}\n{FLUSH}", mmu)
    assert exit_value(made) == 1
    assert made.cpu.esi == VALUES[SECOND]
    assert flushes(made) == (0 if mmu == "direct" else 2)


@pytest.mark.parametrize("mmu", STRATEGIES)
@pytest.mark.parametrize(
    "use",
    [f"mov ebx, [{VA + 4}]", f"mov [{VA + 8}], ebx", f"mov eax, {VA}\ncall eax", f"bt dword ptr [{VA}], 1"],
)
def test_what_the_handler_itself_has_used_is_flushed(use: str, mmu: str) -> None:
    made = lab(f"{MAP_FIRST}\n{use}\n{MAP_SECOND}\n{FLUSH}", mmu)
    assert exit_value(made) == 1
    assert made.cpu.esi == VALUES[SECOND]
    assert flushes(made) == 1


@pytest.mark.parametrize("mmu", STRATEGIES)
def test_what_was_used_since_is_flushed(mmu: str) -> None:
    after = f"{MAP_SECOND}\n{FLUSH}\nmov edi, [{VA + 4}]"
    made = lab(MAP_FIRST, mmu, after)
    assert exit_value(made) == 1
    assert (made.cpu.esi, made.cpu.edi) == (VALUES[FIRST], VALUES[SECOND])
    assert flushes(made) == 1


@pytest.mark.parametrize("other", [VA + 0x1000, VA - 1, VA ^ 0x80000000, 0, 0xFFFFFFFF])
def test_another_page_is_flushed(other: int) -> None:
    made = lab(f"{MAP_FIRST}\nmov eax, {other:#x}\ncall InvalPage")
    assert exit_value(made) == 1
    assert flushes(made) == 1


def test_part_of_a_large_page_that_was_used() -> None:
    """While the page directory says that there is a large page, all its parts are cached as one."""
    handler = f"""
            mov ebp, [{PAGES}]
            mov dword ptr [{PAGES}], 0x87
            mov ebx, [{VA + 0x5000}]
            mov [{PAGES}], ebp
            {MAP_SECOND}
            {FLUSH}
    """
    made = lab(handler)
    made.cpu.set_cr(4, Cr4.PSE)
    assert exit_value(made) == 1
    assert made.cpu.esi == VALUES[SECOND]
    assert flushes(made) == 1


def test_another_processor_knows_nothing_of_it() -> None:
    made = lab(f"{MAP_FIRST}\nstop: nop")
    assert made.step_to(made.labels["stop"])
    domain = made.domain
    assert domain is not None

    def word() -> int:
        return int.from_bytes(domain.rom.save_words()[UNCACHED : UNCACHED + 4], "little")

    assert word() == VA | UNCACHED_KNOWN
    domain.leave_processor()
    assert word() == 0


BASE, BASED_CODE, BASED_DATA = 0x4000, FREE, FREE + 8


def based(address: int, mmu: str, use: str = "") -> Lab:
    """A handler in segments that begin elsewhere flushes ``address`` in them, and reads the page."""
    handler = f"""
            {MAP_FIRST}
            mov eax, {BASED_DATA}
            mov ds, eax
            sub esp, {BASE}
            mov ss, eax
            {use}
            mov dword ptr [{ENTRY - BASE}], {SECOND | 7}
            mov eax, {address}
            call InvalPage
            mov edi, [{VA + 4 - BASE}]
            mov eax, {DATA0}
            mov ss, eax
            add esp, {BASE}
            mov ds, eax
            iretd
    """
    made = lab(handler, mmu)
    made.describe(BASED_CODE, descriptor(BASE, 0xFFFFF, 0x9A))
    made.describe(BASED_DATA, descriptor(BASE, 0xFFFFF, 0x92))
    made.memory.write(IDT + 8 * 14, gate(BASED_CODE, made.labels["fault"] - BASE))
    assert exit_value(made) == 1
    return made


@pytest.mark.parametrize("mmu", STRATEGIES)
@pytest.mark.parametrize(("address", "flushed"), [(VA - BASE, True), (VA, False), (VA + BASE, False)])
def test_an_address_counts_from_the_base_of_the_segments(address: int, flushed: bool, mmu: str) -> None:
    made = based(address + 0x123, mmu, f"mov ebp, [{VA + 4 - BASE}]")
    assert made.cpu.ebp == VALUES[FIRST]
    assert made.cpu.edi == VALUES[SECOND if flushed else FIRST]
    assert flushes(made) == 1


@pytest.mark.parametrize(("address", "left"), [(VA - BASE, 0), (VA, 1), (VA + BASE, 1)])
def test_the_page_that_a_fault_has_left_is_known_by_such_an_address(address: int, left: int) -> None:
    made = based(address + 0x123, "direct")
    assert (made.cpu.edi, flushes(made)) == (VALUES[SECOND], left)


def test_no_page_is_known_where_segments_begin_within_one() -> None:
    made = lab(f"{MAP_FIRST}\nmov eax, {VA}\ncall InvalPage")
    made.describe(FREE, descriptor(0x4010, 0xFFFFF, 0x9A))
    made.memory.write(IDT + 8 * 14, gate(FREE, made.labels["fault"] - 0x4010))
    assert made.step_to(made.labels["fault"] - 0x4010)
    assert made.word(UNCACHED) == 0
