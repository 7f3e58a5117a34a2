# SPDX-License-Identifier: GPL-2.0-only
"""Where the guest's handler of page faults counts its addresses from, which is asked at each page fault.

It is remembered with the gate and the descriptor that say so, see :mod:`vmi.native.known`.
"""

from __future__ import annotations

from vmi.native.known import Gather, Known, Unsuitable, gather
from vmi.native.privilege import Privilege
from vmi.native.registers import ENTRY, TableRegister
from vmi.x86 import GuestFault, Vector

_GATE = 8 * Vector.PF
_LOCAL = 4  # of a selector: in the LDT


class Handlers(Known[tuple[Gather, object, int]]):
    """What is known of the handlers of one virtual CPU."""

    def __init__(self, privilege: Privilege) -> None:
        super().__init__(privilege, stores=False)

    def base(self, idt: TableRegister) -> int | None:
        """Base of the segment that page faults are handled in, None if that isn't to be found."""
        cpu = self._cpu
        state = (*ENTRY.unpack_from(self._environment)[8:], cpu.a20_mask, self._p.stamp())
        if state != self._state:
            self._change_state(state)
        way = self._ways.get(0)
        if way is None or way[0](self._dwords) != way[1]:
            try:
                way = self._find(idt)
            except Unsuitable:
                return self._long_way(idt)
            except GuestFault:
                return None
            self._remember(0, way)
        return way[2]

    def _find(self, idt: TableRegister) -> tuple[Gather, object, int]:
        places: dict[int, int] = {}
        selector = self._words(idt.base + _GATE, places)[0] >> 16
        if selector & _LOCAL:
            raise Unsuitable
        linear = self._p.linear
        self._words(linear.descriptor_address(selector), places)
        return *gather(places), linear.descriptor(selector).base

    def _long_way(self, idt: TableRegister) -> int | None:
        linear = self._p.linear
        try:
            return linear.descriptor(linear.u16(idt.base + _GATE + 2)).base
        except GuestFault:
            return None
