# SPDX-License-Identifier: GPL-2.0-only
"""Silent instructions are found when they are about to be executed, and never too late.

A kernel is more than what its file shows: it unpacks and moves itself, copies one instruction over
another when it knows its processor, and loads modules. So nothing is planned ahead. Each block of code
is looked at before the CPU executes it for the first time, and where a silent instruction is among its own, a
breakpoint is planted there and nowhere else. Code that is only copied from, such as the instructions that a
kernel keeps to put in the place of others, is never executed and stays as it is.
"""

from __future__ import annotations

from iced_x86 import Decoder, FlowControl, Instruction

from vmi.hypervisor.breakpoints import Breakpoints
from vmi.hypervisor.operands import M, R
from vmi.hypervisor.privilege import KERNEL_RING
from vmi.memory import PAGE_SIZE
from vmi.native.cpu import Cpu
from vmi.x86 import D_BIT, Seg

_FLAGS_AND_RETURNS = frozenset((M.PUSHFD, M.PUSHF, M.POPFD, M.POPF, M.IRETD, M.IRET))
_DESCRIPTORS = frozenset((M.LAR, M.LSL, M.VERR, M.VERW))
_ALWAYS = _FLAGS_AND_RETURNS | _DESCRIPTORS
_RINGED = frozenset((R.CS, R.SS))


def is_silent(i: Instruction) -> bool:
    """Ring 1 would carry the instruction out, and not as ring 0: interrupt flag, ring or privileges show."""
    if i.mnemonic in _ALWAYS:
        return True
    if i.mnemonic == M.MOV:
        return i.op1_register in _RINGED
    if i.mnemonic == M.PUSH:
        return i.op0_register in _RINGED
    return i.is_call_far or i.is_call_far_indirect


class Discovery:
    """Plants breakpoints at one CPU's silent instructions from now on."""

    def __init__(self, cpu: Cpu, breakpoints: Breakpoints) -> None:
        self._cpu = cpu
        self._breakpoints = breakpoints
        self._found: list[tuple[int, bytes]] = []
        cpu.watch_code(self)

    def code_appeared(self, linear: int, size: int) -> bool:
        """See :class:`vmi.native.wiring.CodeWatch`."""
        if self._cpu.cpl != KERNEL_RING:
            return False
        breakpoints = self._breakpoints
        # as far as straight code goes: where the CPU ends its blocks depends on more than the guest
        code = breakpoints.code(linear, max(size, PAGE_SIZE - linear % PAGE_SIZE))
        bits = 32 if self._cpu.segment(Seg.CS).flags & D_BIT else 16
        for i in Decoder(bits, code):
            at, raw = linear + i.ip32, code[i.ip32 : i.next_ip32]
            if i.mnemonic == M.INT3:
                self._look_at_copy(at, bits)
            elif is_silent(i) and not breakpoints.stands_at(at):
                self._found.append((at, raw))
            if i.flow_control != FlowControl.NEXT:
                break
        return bool(self._found)

    def _look_at_copy(self, at: int, bits: int) -> None:
        """A breakpoint that the guest has, its own or one that it has copied with its code."""
        original = self._breakpoints.original_of(at)
        if original:
            code = original + self._breakpoints.code(at)[1:]
            self._found.append((at, code[: next(iter(Decoder(bits, code))).len]))

    def change_code(self) -> None:
        """See :class:`vmi.native.wiring.CodeWatch`."""
        found, self._found = self._found, []
        for at, code in found:
            self._breakpoints.plant_at(at, code)
