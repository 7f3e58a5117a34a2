# SPDX-License-Identifier: GPL-2.0-only
"""Call-outs by gates that have been used before, where there is no accelerator: straight to the call.

Which gate an INT came from is remembered by the linear address, with the words of page tables that it was
found by, see :mod:`vmi.native.known`. All others come to :class:`~vmi.hypervisor.domain.Domain` as events.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from vmi import abi
from vmi.hypervisor.personality import Personality
from vmi.hypervisor.privilege import KERNEL_RING, CompressedPrivilege
from vmi.native.known import OFFSET, Gather, Known, gather
from vmi.native.machine import EVENT_NS, Machine
from vmi.native.registers import AT_CC_OP, AT_OLD_EXCEPTION, CC_OP_EFLAGS, HF_CPL
from vmi.x86 import U32

GATE_LENGTH = 2  # INT n
# EIP; mode flags; base of CS; CR0; CR3 and CR4; EFER; whether it is an INT
_PLACE = Struct("<128xI44xI36xI204x4s20x12s132x4s4792xI")

# What it was found by, and the call.
_Known = tuple[Gather, object, abi.Call]


class Gates(Known[_Known]):
    """The gates of one domain.

    :param call: does a call, as its gate asks for it.
    """

    def __init__(
        self,
        machine: Machine,
        rom: Personality,
        privilege: CompressedPrivilege,
        call: Callable[[abi.Call], None],
    ) -> None:
        super().__init__(privilege, stores=False)
        self._machine, self._rom, self._call = machine, rom, call
        self._registers = self._environment.cast("I")
        self._counter, self._budget, _ = machine.cpu.quick_words()
        machine.cpu.straight.set_quick(self.enter, self.forget, compressed=True)

    def enter(self, vector: int) -> bool:
        """The CPU reports an event; False if it isn't such a call-out: nothing has changed then."""
        if vector != self._rom.interrupt or self._counter[0] >= self._budget[0]:
            return False
        eip, mode, base, *paging, is_int = _PLACE.unpack_from(self._environment)
        if not is_int or mode & HF_CPL != KERNEL_RING:
            return False
        state = (*paging, self._cpu.a20_mask, self._p.stamp())
        if state != self._state:
            self._change_state(state)
        linear = base + eip - GATE_LENGTH & U32
        known = self._ways.get(linear)
        if known is None or known[0](self._ram) != known[1]:
            known = self._find(linear)
            if known is None:
                return False
        # see Registers.settle_flags() and forget_exception()
        self._registers[AT_CC_OP], self._registers[AT_OLD_EXCEPTION] = CC_OP_EFLAGS, U32
        self._call(known[2])
        self._machine.spend(EVENT_NS)
        if self._counter[0] >= self._budget[0]:
            self._cpu.leave()
        return True

    def _find(self, linear: int) -> _Known | None:
        places: dict[int, int] = {}
        page = self.find_page(linear, places)
        gate = None if page is None else self._rom.gate(page | linear & OFFSET)
        if not isinstance(gate, abi.Call):
            return None
        known = *gather(places), gate
        self._remember(linear, known)
        return known
