# SPDX-License-Identifier: GPL-2.0-only
"""Who watches code sees each block before anything in it is executed, and again when it has changed."""

from __future__ import annotations

from tests.native.guest import DONE, Guest

FAR = 0x40000
INC, DEC, RET = b"\x41", b"\x49", b"\xc3"
TWICE = f"mov ecx, 5 | mov eax, {FAR:#x} | call eax | call eax | {DONE}"


class Watch:
    """Records blocks with ECX of the moment, and changes what is at FAR when it is first seen."""

    def __init__(self, guest: Guest, change: bytes = b"") -> None:
        self.guest, self.change = guest, change
        self.seen: list[tuple[int, int, int]] = []
        guest.cpu.watch_code(self)

    def code_appeared(self, linear: int, size: int) -> bool:
        self.seen.append((linear, size, self.guest.cpu.ecx))
        return linear == FAR and bool(self.change)

    def change_code(self) -> None:
        assert not self.guest.cpu.running and self.guest.cpu.eip == FAR
        change, self.change = self.change, b""
        self.guest.cpu.write_memory(FAR, change)

    def at(self, address: int) -> list[tuple[int, int]]:
        return [(size, ecx) for linear, size, ecx in self.seen if linear == address]


def far(source: str, code: bytes, at: int = FAR) -> Guest:
    guest = Guest(source)
    guest.memory.write(at, code)
    return guest


def test_it_sees_a_block_before_the_first_instruction_and_may_change_it() -> None:
    guest = far(TWICE, INC + RET)
    watch = Watch(guest, DEC)
    assert guest.exit_value() == 1
    assert guest.cpu.ecx == 3
    assert watch.at(FAR) == [(2, 5), (2, 5)], "what it has changed is another block"


def test_a_block_is_shown_once() -> None:
    guest = far(TWICE, INC + RET)
    watch = Watch(guest)
    assert guest.exit_value() == 1
    assert guest.cpu.ecx == 7
    assert watch.at(FAR) == [(2, 5)]


def test_it_sees_code_that_the_guest_has_overwritten() -> None:
    source = f"mov ecx, 5 | mov eax, {FAR:#x} | call eax | mov byte ptr [eax], {DEC[0]} | call eax | {DONE}"
    guest = far(source, INC + RET)
    watch = Watch(guest)
    assert guest.exit_value() == 1
    assert guest.cpu.ecx == 5
    assert watch.at(FAR) == [(2, 5), (2, 6)]


def test_an_instruction_over_two_pages_is_a_block() -> None:
    at, load = FAR + 0xFFE, bytes.fromhex("b907000000")  # mov ecx, 7
    guest = far(f"mov eax, {at:#x} | call eax | {DONE}", load + RET, at)
    watch = Watch(guest)
    assert guest.exit_value() == 1
    assert guest.cpu.ecx == 7
    assert [size for size, _ in watch.at(at)] == [5]


def test_the_last_one_to_ask_watches() -> None:
    guest = far(TWICE, INC + RET)
    first, second = Watch(guest, DEC), Watch(guest)
    assert guest.exit_value() == 1
    assert guest.cpu.ecx == 7
    assert not first.seen and second.at(FAR)


def test_watching_changes_neither_the_count_nor_the_end() -> None:
    runs = []
    for change in (None, b"", INC):
        guest = far(TWICE, INC + RET)
        if change is not None:
            Watch(guest, change)
        assert guest.exit_value() == 1
        runs.append((guest.machine.instructions, guest.machine.clock.now()))
    assert runs[0] == runs[1] == runs[2]


DEVICE = 0xE0000000  # nothing answers there
SLED = bytes.fromhex("8807") * 500 + RET  # mov [edi], al


def test_straight_code_that_accesses_a_device_again_and_again_is_not_looked_at_again_and_again() -> None:
    guest = far(f"mov edi, {DEVICE:#x} | mov eax, {FAR:#x} | call eax | {DONE}", SLED)
    watch = Watch(guest)
    assert guest.exit_value() == 1
    assert guest.machine.exits["device memory write"] == 500
    assert sum(size for _, size, _ in watch.seen) < 8 * len(SLED)
    blocks = [linear for linear, _, _ in watch.seen if FAR <= linear < FAR + len(SLED)]
    assert len(blocks) == len(set(blocks))
