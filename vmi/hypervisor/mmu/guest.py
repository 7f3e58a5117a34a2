# SPDX-License-Identifier: GPL-2.0-only
"""The guest's own page tables, looked at in the guest's place: what all strategies have in common."""

from __future__ import annotations

from collections.abc import Sequence

from vmi.hypervisor.mmu.notices import Notices
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native.machine import Machine
from vmi.native.walks import Walked, Walks
from vmi.x86 import U32, Cr0, Paging, Translation, walk


class GuestTables:
    """Page walks by the control registers that the guest has loaded.

    :param virtual_top: the hypervisor's own linear addresses begin here; 0 if it has none. What the guest
        maps there is not to be seen: it reads as all ones and swallows stores.
    """

    def __init__(self, machine: Machine, notices: Notices, virtual_top: int) -> None:
        self._machine = machine
        self._cpu = machine.cpu
        self._memory = machine.memory
        self._notices = notices
        self._top = virtual_top or 1 << 32
        self._walks = Walks(machine.memory)

    def _hide(self) -> None:
        if self._top <= U32:
            self._cpu.hide_from(self._top)

    def read(self, number: int) -> int:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        return self._cpu.cr(number)

    @property
    def efer(self) -> int:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        return self._cpu.efer

    def faulted(self, linear: int, base: int | None) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""

    def _is_paged(self) -> bool:
        return bool(self._cpu.cr(0) & Cr0.PG)

    def _paging(self) -> Paging:
        """What the guest's tables mean now."""
        cpu = self._cpu
        return Paging(cpu.cr(0), cpu.cr(3), cpu.cr(4), cpu.efer, cpu.a20_mask | ~U32)

    def _pointers(self) -> Sequence[int] | None:
        """The four entries of PAE's top level; None to take those in memory."""
        return None

    def _registers(self) -> tuple[object, ...]:
        """All that a walk depends on apart from memory."""
        return self._cpu.paging()

    def _walk(
        self,
        linear: int,
        *,
        write: bool,
        user: bool,
        fetch: bool = False,
        memory: PhysicalMemory | None = None,
    ) -> Translation:
        """Walk as the CPU does for an access, while paging is on. :raises GuestFault: #PF."""
        return walk(
            memory or self._memory,
            self._paging(),
            linear,
            write=write,
            user=user,
            fetch=fetch,
            store=self._cpu.put_u32,
            pointers=self._pointers(),
        )

    def translate(self, linear: int, *, write: bool = False, user: bool = False) -> int:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        if not self._is_paged():
            return linear & self._cpu.a20_mask
        found = self._walks.find(self._registers(), linear, write, user)
        if found is None:
            found = self._walks.make(
                linear,
                write,
                user,
                lambda memory: self._walk(linear, write=write, user=user, memory=memory).physical,
            )
        return found if linear < self._top else self._cpu.nowhere | found & 0xFFF

    def walked(self, linear: int, *, write: bool = False) -> Walked | None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        physical = self.translate(linear, write=write)
        if linear >= self._top:
            return None
        return self._walks.made(linear, write) if self._is_paged() else (physical & -PAGE_SIZE, ())

    def stamp(self) -> object:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        return self._registers()
