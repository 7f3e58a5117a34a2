# SPDX-License-Identifier: GPL-2.0-only
"""What somebody outside the guest can do to a CPU's translation: tables out of reach, hidden addresses."""

from __future__ import annotations

import pytest

from tests.native.guest import DONE, PAGES, Guest
from vmi.native.engine import HIDDEN_START
from vmi.x86 import Cr0, Cr4, PfError

PAE_TABLE, PAGE = 1 << 21, 0x1000


class OneToOne:
    """Maps each page at its first use, in tables that the guest can't reach; refuses one."""

    def __init__(self, guest: Guest, refused: int = -1) -> None:
        self.cpu = guest.cpu
        self.refused = refused
        self.faults: list[tuple[int, int]] = []
        self.loads = 0
        base, memory = guest.cpu.hidden_memory(16 * PAGE)
        assert base == HIDDEN_START
        self.words = memory.cast("Q")
        self.words[0] = base + PAGE | 1
        for number in range(2):
            self.words[512 + number] = base + (2 + number) * PAGE | 0x27
        guest.cpu.pager = self
        guest.cpu.set_cr(4, Cr4.PAE)
        guest.cpu.load_root(base)
        assert guest.cpu.root == base
        guest.cpu.set_cr(0, guest.cpu.cr(0) | Cr0.PG | Cr0.WP)

    def page_fault(self, linear: int, error: int) -> int | None:
        self.faults.append((linear, error))
        if linear == self.refused:
            return error | PfError.P
        self.words[1024 + linear // PAGE] = linear & ~(PAGE - 1) | 0x67
        return None

    def control_changed(self) -> None:
        self.loads += 1


BODY = "mov eax, [0x5000] | mov dword ptr [0x180000], 77 | inc dword ptr [0x180010] | mov ecx, 8 | rep stosd"


def test_faults_that_the_pager_resolves_never_were() -> None:
    plain, paged = (
        Guest(f"mov edi, 0x1fff00 | {BODY} | {DONE}"),
        Guest(f"mov edi, 0x1fff00 | {BODY} | {DONE}"),
    )
    pager = OneToOne(paged)
    paged.cpu.cr2 = 0xC2C2
    assert paged.run() == plain.run()
    assert pager.faults == [(0x10000, 0), (0x5000, 0), (0x180000, 2), (0x1FFF00, 2)]
    assert paged.cpu.instructions == plain.cpu.instructions
    assert paged.machine.clock.now() == plain.machine.clock.now()
    assert paged.cpu.cr2 == 0xC2C2
    assert paged.machine.exits == plain.machine.exits
    assert bytes(paged.memory.ram) == bytes(plain.memory.ram)


def test_a_fault_that_is_the_guests_has_the_pagers_error_code(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest("mov dword ptr [0x180004], 1 | hlt")
    pager = OneToOne(guest, refused=0x180004)
    seen: list[tuple[int, int, int]] = []

    def exception(vector: int, _is_int: bool, error: int) -> None:
        seen.append((vector, error, guest.cpu.cr2))
        guest.cpu.stop_soon()

    monkeypatch.setattr(guest.machine, "exception", exception)
    guest.cpu.run(10)
    assert pager.faults == [(0x10000, 0), (0x180004, PfError.W)]
    assert seen == [(14, PfError.W | PfError.P, 0x180004)]


def test_the_pager_is_told_of_loads_of_control_registers() -> None:
    guest = Guest(f"mov eax, cr0 | mov cr0, eax | mov eax, cr4 | mov cr4, eax | {DONE}")
    pager = OneToOne(guest)
    before = pager.loads
    guest.exit_value()
    assert pager.loads == before + 2


def test_an_error_of_the_pager_ends_the_run() -> None:
    guest = Guest(DONE)
    pager = OneToOne(guest)

    def fail(_linear: int, _error: int) -> int | None:
        raise RuntimeError("the pager fails")

    pager.page_fault = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"^the pager fails$"):
        guest.run()


def test_hidden_memory_is_the_same_each_time() -> None:
    guest = Guest(DONE)
    base, memory = guest.cpu.hidden_memory(2 * PAGE)
    memory[5] = 7
    again, same = guest.cpu.hidden_memory(PAGE)
    assert (again, same[5], len(same)) == (base, 7, 2 * PAGE)


def test_what_is_mapped_at_hidden_addresses_is_not_seen() -> None:
    source = f"mov eax, [0x400000] | mov dword ptr [0x400000], 0 | mov ebx, [0x3ff000] | {DONE}"
    guest = Guest(source, ram=4 << 20)
    guest.page()
    guest.memory.put_u32(PAGES + 4, guest.u32(PAGES))
    guest.memory.put_u32(0, 0x1111)
    guest.memory.put_u32(0x3FF000, 0x2222)
    guest.cpu.set_cr(3, PAGES)
    guest.cpu.hide_from(0x400000)
    guest.exit_value()
    assert guest.cpu.gpr(3) == 0x2222
    assert guest.u32(0) == 0x1111
    assert guest.u32(PAGES + 0x1000) & 0x60 == 0x60, "accessed and dirty as without it"
