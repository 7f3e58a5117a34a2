# SPDX-License-Identifier: GPL-2.0-only
"""The guest's page tables are used as they are: the processor walks them itself.

Guest-physical addresses are the machine's own, so nothing has to be translated. Rings 0 to 2 are all the
"supervisor" of page tables, so they protect a kernel on ring 1 from its user code as they did on ring 0.
No change to an entry needs the hypervisor, and the ROM never calls out for one.

Nor does it for most flushes of a page. A kernel that answers a page fault by changing the page's entry
flushes the page before it returns, and there is nothing to flush: a page fault leaves nothing cached of its
page (Software Developer's Manual, volume 3, 4.10.4.1). The processor says when that is over, and until then
the ROM knows.
"""

from __future__ import annotations

from vmi.hypervisor.mmu.guest import GuestTables
from vmi.memory import PAGE_SIZE
from vmi.x86 import U32, Cr0


class DirectMmu(GuestTables):
    """See :class:`vmi.hypervisor.mmu.Mmu`."""

    name = "direct"
    by_registers = True

    def __repr__(self) -> str:
        return "<DirectMmu>"

    def start(self) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._notices.want(False)
        self._hide()

    def leave(self) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`: all there is are the CPU's registers.

        What the other processor caches, nobody would tell this one's words of.
        """
        self._cached()

    def enter(self, state: object) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""

    def write(self, number: int, value: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._cpu.set_cr(number, value)

    def write_efer(self, value: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._cpu.efer = value
        self._cpu.flush_tlb()

    def _registers(self) -> tuple[object, ...]:
        return self._cpu.paging()

    def translate(self, linear: int, *, write: bool = False, user: bool = False) -> int:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        registers = self._cpu.paging()
        if registers[0] & Cr0.PG and linear < self._top:
            found = self._walks.find(registers, linear, write, user)
            if found is not None:
                return found
        return super().translate(linear, write=write, user=user)

    def stamp(self) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`: the registers are the CPU's."""

    def invalidate(self, linear: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._cpu.flush_page(linear)

    def flush(self, *, everything: bool) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        if everything:
            self._cpu.flush_tlb()
        else:
            self._cpu.set_cr(3, self._cpu.cr(3))

    def faulted(self, linear: int, base: int | None) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._cpu.drop_page(linear, self._cached)
        known = base is not None and not base % PAGE_SIZE
        self._notices.show_uncached(self._cpu.uncached - (base or 0) & U32 if known else None)

    def _cached(self) -> None:
        self._notices.show_uncached(None)

    def entry_changed(self, entry: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`: the CPU reads the entry itself when it needs it."""

    def catch_up(self) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`: nothing is ever behind."""

    def announce(self, frame: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""

    def release(self, frame: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
