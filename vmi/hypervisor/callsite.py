# SPDX-License-Identifier: GPL-2.0-only
"""Where a fault of a VMI call is reported: as if the call were one instruction.

A call that a site makes by ``call`` to the entry itself is reported at that instruction, the stack as it
was before it: the guest's fault table knows the site, and an IRET from the handler makes the call again.
How many bytes any other way of calling has can't be told from behind, so those are reported where they
came to, in the ROM, return address on the stack: an IRET goes on there, which comes to the same.
"""

from __future__ import annotations

from iced_x86 import Instruction, OpKind, Register

from vmi.hypervisor.operands import M
from vmi.hypervisor.personality import Personality
from vmi.hypervisor.transfer import Transfers
from vmi.hypervisor.vcpu import VirtualCpu
from vmi.native.stamped import Stamped
from vmi.x86 import U32, GuestFault, Seg

CALL_LENGTH = 5
_CALL_OPCODE = 0xE8
_STRING = frozenset({M.INSB, M.INSW, M.INSD, M.OUTSB, M.OUTSW, M.OUTSD})


class CallSites(Stamped):
    """Finds the call instruction behind a call that has reached the ROM."""

    def __init__(self, vcpu: VirtualCpu, transfers: Transfers, rom: Personality) -> None:
        self._cpu = vcpu.cpu
        self._linear = vcpu.linear
        self._transfers = transfers
        self._rom = rom

    def leave(self) -> bool:
        """Go back to in front of the direct call whose return address is on top of the stack.

        False if there is no such call; nothing has changed then.
        """
        try:
            behind = self._linear.u32(self._transfers.stack_address(0))
            base = self._cpu.segment(Seg.CS).base
            code = self._linear.read(base + behind - CALL_LENGTH, CALL_LENGTH)
            target = behind + int.from_bytes(code[1:], "little") & U32
            entered = code[0] == _CALL_OPCODE and self._rom.is_entry(self._linear.physical(base + target))
        except GuestFault:
            return False
        if entered:
            self._transfers.move_esp(4)
            self._cpu.eip = behind - CALL_LENGTH
        return entered


def reaches_out(instruction: Instruction) -> bool:
    """An instruction of the ROM reads or writes memory for its caller: not by SS, or by ESP."""
    if instruction.mnemonic in _STRING:
        return True
    if instruction.mnemonic == M.LEA or not any(
        instruction.op_kind(n) == OpKind.MEMORY for n in range(instruction.op_count)
    ):
        return False
    segment, base = int(instruction.memory_segment), int(instruction.memory_base)
    return segment != int(Register.SS) or base == int(Register.ESP)
