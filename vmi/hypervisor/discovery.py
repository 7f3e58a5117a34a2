# SPDX-License-Identifier: GPL-2.0-only
"""Silent instructions are found when they are about to be executed, and never too late.

A kernel is more than what its file shows: it unpacks and moves itself, copies one instruction over
another when it knows its processor, and loads modules. So nothing is planned ahead. Each block of code
is looked at before the CPU executes it for the first time, and where a silent instruction is among its own, a
breakpoint is planted there and nowhere else. Code that is only copied from, such as the instructions that a
kernel keeps to put in the place of others, is never executed and stays as it is.
"""

from __future__ import annotations

from typing import NamedTuple

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


class _Straight(NamedTuple):
    """Straight code that was decoded.

    :ivar starts: where its instructions begin, counted from its start.
    :ivar special: begin and end of those that have to be looked at, and whether it is a breakpoint.
    """

    linear: int
    bits: int
    code: bytes
    starts: list[int]
    special: list[tuple[int, int, bool]]


class Discovery:
    """Plants breakpoints at one CPU's silent instructions from now on."""

    def __init__(self, cpu: Cpu, breakpoints: Breakpoints) -> None:
        self._cpu = cpu
        self._breakpoints = breakpoints
        self._found: list[tuple[int, bytes]] = []
        self._last = _Straight(0, 0, b"", [], [])
        cpu.watch_code(self)

    def code_appeared(self, linear: int, size: int) -> bool:
        """See :class:`vmi.native.wiring.CodeWatch`."""
        if self._cpu.cpl != KERNEL_RING:
            return False
        breakpoints = self._breakpoints
        # as far as straight code goes: where the CPU ends its blocks depends on more than the guest
        code = breakpoints.code(linear, max(size, PAGE_SIZE - linear % PAGE_SIZE))
        bits = 32 if self._cpu.segment(Seg.CS).flags & D_BIT else 16
        straight = self._straight(linear, code, bits)
        ahead = linear - straight.linear
        for start, end, stops in straight.special:
            if start < ahead:
                continue
            at = straight.linear + start
            if stops:
                self._look_at_copy(at, bits)
            elif not breakpoints.stands_at(at):
                self._found.append((at, straight.code[start:end]))
        return bool(self._found)

    def _straight(self, linear: int, code: bytes, bits: int) -> _Straight:
        """The instructions up to the first that goes elsewhere, and perhaps some in front of them.

        Code may come in blocks of one instruction, each of which begins where the one before it ends.
        """
        last = self._last
        ahead = linear - last.linear
        if bits == last.bits and ahead in last.starts and code == last.code[ahead:]:
            return last
        starts, special = [], []
        for i in Decoder(bits, code):
            starts.append(i.ip32)
            stops = i.mnemonic == M.INT3
            if stops or is_silent(i):
                special.append((i.ip32, i.next_ip32, stops))
            if i.flow_control != FlowControl.NEXT:
                break
        self._last = _Straight(linear, bits, code, starts, special)
        return self._last

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
