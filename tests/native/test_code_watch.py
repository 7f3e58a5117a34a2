# SPDX-License-Identifier: GPL-2.0-only
"""Who watches code is told of each page before anything in it is executed, and again when it has changed."""

from __future__ import annotations

from tests.native.guest import DONE, Guest

FAR = 0x40000
ONE, TWO = FAR >> 12, (FAR >> 12) + 1


class Watch:
    """Records the pages with EIP and ECX of the moment, and does what a test says."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.seen: list[tuple[list[int], int, int]] = []
        self.change = b""
        guest.cpu.code_watch = self

    def code_appeared(self, pages: list[int]) -> None:
        cpu = self.guest.cpu
        self.seen.append((pages, cpu.eip, cpu.ecx))
        if self.change and ONE in pages:
            self.change, change = b"", self.change  # it is told of what it changes, too
            cpu.write_memory(FAR, change)


INC, DEC, RET = b"\x41", b"\x49", b"\xc3"


def test_it_is_told_before_the_first_instruction_and_may_change_it() -> None:
    guest = Guest(f"mov ecx, 5 | mov eax, {FAR:#x} | call eax | call eax | {DONE}")
    guest.memory.write(FAR, INC + RET)
    watch = Watch(guest)
    watch.change = DEC
    assert guest.exit_value() == 1
    assert guest.cpu.ecx == 3
    assert next(told for told in watch.seen if ONE in told[0]) == ([ONE], FAR, 5)


def test_it_is_told_of_code_that_the_guest_has_overwritten() -> None:
    guest = Guest(
        f"mov ecx, 5 | mov eax, {FAR:#x} | call eax | mov byte ptr [eax], {DEC[0]} | call eax | {DONE}"
    )
    guest.memory.write(FAR, INC + RET)
    watch = Watch(guest)
    assert guest.exit_value() == 1
    assert guest.cpu.ecx == 5
    assert [ecx for pages, _, ecx in watch.seen if ONE in pages] == [5, 6]


def test_a_block_over_two_pages_is_told_of_with_both() -> None:
    guest = Guest(f"mov eax, {FAR + 0xFFE:#x} | call eax | {DONE}")
    guest.memory.write(FAR + 0xFFE, INC * 4 + RET)
    watch = Watch(guest)
    assert guest.exit_value() == 1
    assert {page for pages, _, _ in watch.seen for page in pages} >= {ONE, TWO}


def test_watching_changes_neither_the_count_nor_the_end() -> None:
    runs = []
    for watched in (False, True):
        guest = Guest(f"mov ecx, 5 | mov eax, {FAR:#x} | call eax | call eax | {DONE}")
        guest.memory.write(FAR, INC + RET)
        if watched:
            Watch(guest)
        assert guest.exit_value() == 1
        runs.append((guest.machine.instructions, guest.machine.clock.now()))
    assert runs[0] == runs[1]
