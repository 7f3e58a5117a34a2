# SPDX-License-Identifier: GPL-2.0-only
"""The guest's page tables are used as they are: the processor walks them itself.

Guest-physical addresses are the machine's own, so nothing has to be translated. Rings 0 to 2 are all the
"supervisor" of page tables, so they protect a kernel on ring 1 from its user code as they did on ring 0.
No change to an entry needs the hypervisor, and the ROM never calls out for one.
"""

from __future__ import annotations

from vmi.hypervisor.mmu.notices import Notices
from vmi.native.engine import NOWHERE
from vmi.native.interrupts import Event
from vmi.native.machine import Machine
from vmi.x86 import U32, Paging, translate


class DirectMmu:
    """See :class:`vmi.hypervisor.mmu.Mmu`."""

    name = "direct"

    def __init__(self, machine: Machine, notices: Notices, virtual_top: int) -> None:
        self._cpu = machine.cpu
        self._notices = notices
        self._top = virtual_top or 1 << 32

    def __repr__(self) -> str:
        return "<DirectMmu>"

    def start(self) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._notices.want(False)
        if self._top <= U32:
            self._cpu.hide_from(self._top)

    def read(self, number: int) -> int:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        return self._cpu.cr(number)

    def write(self, number: int, value: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._cpu.set_cr(number, value)

    @property
    def efer(self) -> int:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        return self._cpu.efer

    def write_efer(self, value: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._cpu.efer = value
        self._cpu.flush_tlb()

    def invalidate(self, linear: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._cpu.flush_page(linear)

    def flush(self, *, everything: bool) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        if everything:
            self._cpu.flush_tlb()
        else:
            self._cpu.set_cr(3, self._cpu.cr(3))

    def translate(self, linear: int, *, write: bool = False, user: bool = False) -> int:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        cpu = self._cpu
        paging = Paging(cpu.cr(0), cpu.cr(3), cpu.cr(4), cpu.efer, cpu.a20_mask | ~U32)
        found = translate(cpu.memory, paging, linear, write=write, user=user, store=cpu.put_u32)
        return found if linear < self._top or not paging.cr0 >> 31 else NOWHERE | found & 0xFFF

    def page_fault(self, event: Event) -> Event | None:
        """See :class:`vmi.hypervisor.mmu.Mmu`: the CPU has it from the guest's own tables."""
        return event

    def entry_changed(self, entry: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`: the CPU reads the entry itself when it needs it."""

    def catch_up(self) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`: nothing is ever behind."""

    def announce(self, frame: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""

    def release(self, frame: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
