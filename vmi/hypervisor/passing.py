# SPDX-License-Identifier: GPL-2.0-only
"""Which events of a guest need not come to its hypervisor: what the CPU's straight path is told of it.

An event that :class:`~vmi.hypervisor.domain.Domain` would only hand on to the guest goes straight to the
guest's handler where the accelerator is in use, with what ring compression makes of it. A call-out comes by
the number of its gate then, and those that a kernel makes all the time, for each page that it maps and each
process that it goes to, are only counted. Without the accelerator, call-outs go straight to the call
(:mod:`vmi.hypervisor.gates`), and all else comes as events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmi import abi
from vmi.hypervisor.mmu import Mmu
from vmi.hypervisor.personality import Gate, Personality
from vmi.native.stamped import Stamped
from vmi.native.straight import ALL, Path, Service
from vmi.x86 import Vector

#: What the CPU may refuse an instruction of the ROM's own with.
ROM_FAULTS = frozenset({Vector.GP, Vector.NP, Vector.SS, Vector.TS, Vector.PF})
# Exceptions that the domain looks at, by the CPU's ring.
_KERNEL, _USER = 1 << Vector.GP | 1 << Vector.DB, 1 << Vector.GP | 1 << Vector.TS
_ASKED = (ALL, _KERNEL, ALL, _USER)
#: Calls of which all is done where the CPU does them, as the direct strategy for page tables has it.
SERVED = {Service.LOAD_CR3: "SetCR3", Service.FLUSH_PAGE: "InvalPage", Service.FLUSH_ALL: "FlushTLB"}


class Passing(Stamped):
    """The events of one domain that pass it by.

    :param count: counts calls that pass it by: which, and how many.
    :ivar gates: what the gates in the ROM stand for, by number; None for one that there is not.
    """

    def __init__(self, path: Path, rom: Personality, mmu: Mmu, count: Callable[[str, int], None]) -> None:
        self._path, self._rom, self._mmu, self._count = path, rom, mmu, count
        path.on_served = self._served
        self.gates: tuple[abi.Call | Gate | None, ...] = ()
        self._gates_at = range(0)
        self.update(taken=False, active=False)

    def __repr__(self) -> str:
        return f"<Passing {self._path!r}>"

    def update(self, *, taken: bool, active: bool) -> None:
        """The guest has been taken over, or not; the processor that runs is de-privileged, or not."""
        path, rom = self._path, self._rom
        if not active:
            path.stay_bare(rom.interrupt, 1 << Vector.GP if taken else 0)
            return
        cells = rom.cells()
        if cells.gates != self._gates_at:
            self._gates_at = cells.gates
            self.gates = tuple(rom.gate(at) for at in cells.gates)
        path.compress(
            cells,
            gate=rom.interrupt,
            asked=_ASKED,
            in_rom=sum(1 << vector for vector in ROM_FAULTS),
            top=rom.virtual_top,
            enters=self._mmu.by_registers,
            served=self._served_gates() if self._mmu.by_registers else {},
        )

    def _served_gates(self) -> dict[Service, int]:
        numbers = {gate.name: n for n, gate in enumerate(self.gates) if isinstance(gate, abi.Call)}
        return {service: numbers[name] for service, name in SERVED.items() if name in numbers}

    def _served(self, counts: Mapping[Service, int]) -> None:
        for service, count in counts.items():
            if count:
                self._count(SERVED[service], count)
