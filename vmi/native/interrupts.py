# SPDX-License-Identifier: GPL-2.0-only
"""Delivery of exceptions and interrupts by the architecture's own rules.

Gates, privilege checks, stack switch through the TSS, task gates, error codes, double fault and
triple fault, after the Software Developer's Manual, volume 3A, chapter 6. What differs between a
kernel on the bare machine and one that a hypervisor runs on another ring is behind
:class:`~vmi.native.privilege.Privilege`, so both are served by the same code.

Error codes never carry the EXT bit: QEMU, whose behaviour counts as native here, never sets it.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto
from typing import NamedTuple

from vmi.native.cpu import Cpu
from vmi.native.linear import Linear
from vmi.native.privilege import Privilege
from vmi.native.registers import NULL_SEGMENT, Segment
from vmi.native.stamped import Stamped
from vmi.native.tasks import switch_task
from vmi.native.ways import Ways
from vmi.x86 import (
    CONTRIBUTORY,
    HAS_ERROR_CODE,
    U32,
    Cr0,
    Eflags,
    Gate,
    GateType,
    GuestFault,
    Seg,
    Vector,
)

_GATES = frozenset(GateType)
# Found quickly: an enumeration's own members are looked up by a function.
_CS, _SS = Seg.CS, Seg.SS
_PF, _DF, _GP, _NP = Vector.PF, Vector.DF, Vector.GP, Vector.NP
_TASK = GateType.TASK
_INTERRUPT_GATES = (GateType.INTERRUPT_16, GateType.INTERRUPT_32)
_CLEARED = ~(Eflags.TF | Eflags.NT | Eflags.RF | Eflags.VM)


class Origin(Enum):
    """Where an event comes from; only software interrupts are checked against the gate's DPL."""

    EXCEPTION = auto()
    SOFTWARE = auto()  # INT n, INT3, INTO
    EXTERNAL = auto()


_ONE_BYTE = {int(Vector.BP): 0xCC, int(Vector.OF): 0xCE}  # INT3 and INTO
_EXCEPTION, _SOFTWARE = Origin.EXCEPTION, Origin.SOFTWARE


class Event(NamedTuple):
    """One event to deliver.

    ``error`` is the error code for vectors that push one, ``address`` is CR2 of a page fault,
    ``length`` the size of the INT instruction that EIP already stands behind.
    """

    vector: int
    origin: Origin
    error: int = 0
    address: int = 0
    length: int = 0


def int_length(vector: int, cpu: Cpu, linear: Linear) -> int:
    """Bytes of the INT instruction that ends at EIP: INT3 and INTO have one, INT n has two."""
    opcode = _ONE_BYTE.get(vector)
    if opcode is None:
        return 2
    try:
        last = linear.physical(cpu.code_address(-1))
    except GuestFault:
        return 1  # its page is gone from the tables, but not from the CPU's own memory of them
    return 1 if cpu.memory.read(last, 1)[0] == opcode else 2


class TripleFault(Exception):
    """A fault while a double fault was delivered: the CPU shuts down."""


class Delivery(Stamped):
    """Delivers events to the guest's own handlers. :ivar ways: those found before."""

    def __init__(self, privilege: Privilege) -> None:
        self._p = privilege
        self._cpu = privilege.cpu
        self._linear = privilege.linear
        self._straight = privilege.cpu.straight.enter
        self.ways = Ways(privilege)

    def deliver(self, event: Event) -> None:
        """Enter the handler of an event, or of the fault that its delivery raises.

        :raises TripleFault: a double fault could not be delivered either.
        """
        vector, origin, error, address, _ = event
        exception = origin is _EXCEPTION
        if exception and vector == _PF:
            self._p.page_fault_at(address)
        software, pushed = origin is _SOFTWARE, error if exception and vector in HAS_ERROR_CODE else -1
        straight = self._straight
        if straight is not None and straight(vector, software, pushed, self._cpu.running):
            return
        if not self.ways.enter(vector, software, None if pushed < 0 else pushed):
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        cpu = self._cpu
        resume, task = cpu.eip, cpu.tr
        while True:
            try:
                if cpu.cr(0) & Cr0.PE:
                    self._protected(event)
                else:
                    self._real(event)
                return
            except GuestFault as fault:
                if cpu.tr == task:
                    cpu.eip = resume = (resume - event.length) & U32
                else:  # a fault behind a task switch is the new task's own
                    resume, task = cpu.eip, cpu.tr
                if fault.vector == _PF:
                    self._p.page_fault_at(fault.address)
                event = self._escalate(event, fault)

    @staticmethod
    def _escalate(event: Event, fault: GuestFault) -> Event:
        """What a fault during the delivery of an event becomes."""
        first = event.vector if event.origin is _EXCEPTION else None
        if first == _DF:
            raise TripleFault
        second_contributes = fault.vector in CONTRIBUTORY
        double = (first in CONTRIBUTORY and second_contributes) or (
            first == _PF and (second_contributes or fault.vector == _PF)
        )
        if double:
            return Event(_DF, _EXCEPTION)
        return Event(fault.vector, _EXCEPTION, fault.error, fault.address)

    def _real(self, event: Event) -> None:
        cpu, vector = self._cpu, event.vector
        table = self._p.idt()
        if 4 * vector + 3 > table.limit:
            raise GuestFault(_GP)
        target = self._linear.u32(table.base + 4 * vector)
        flags = self._p.frame_flags()
        stack = replace(cpu.segment(_SS), flags=0)  # SP is 16 bits wide here, whatever SS was before
        frame = [flags, cpu.segment(_CS).selector, cpu.eip]
        cpu.esp = self._p.push_frame(stack, cpu.esp, frame, 2)
        selector = target >> 16
        cpu.set_segment(_CS, Segment(selector, selector << 4, 0xFFFF, 0x9B00))
        cpu.eip = target & 0xFFFF
        cpu.irq_shadow = False
        self._p.settle_flags(flags & ~(Eflags.TF | Eflags.AC | Eflags.RF), mask_interrupts=True)

    def _gate(self, event: Event) -> Gate:
        table, index = self._p.idt(), 8 * event.vector
        error = index | 2
        if index + 7 > table.limit:
            raise GuestFault(_GP, error)
        gate = Gate.parse(self._linear.read(table.base + index, 8))
        if gate.type not in _GATES:
            raise GuestFault(_GP, error)
        if event.origin is _SOFTWARE and gate.dpl < self._p.cpl():
            raise GuestFault(_GP, error)
        if not gate.present:
            raise GuestFault(_NP, error)
        return gate

    def _protected(self, event: Event) -> None:
        p, cpu = self._p, self._cpu
        pushes_error = event.origin is _EXCEPTION and event.vector in HAS_ERROR_CODE
        gate = self._gate(event)
        if gate.type == _TASK:
            switch_task(p, gate.selector)
            if pushes_error:
                cpu.esp = p.push_frame(cpu.segment(_SS), cpu.esp, [event.error], 4)
            return
        if not gate.selector & 0xFFFC:
            raise GuestFault(_GP)
        code = p.descriptor(gate.selector)
        cpl = p.cpl()
        if not code.is_code or code.dpl > cpl:
            raise GuestFault(_GP, gate.selector & 0xFFFC)
        if not code.present:
            raise GuestFault(_NP, gate.selector & 0xFFFC)
        virtual_8086 = bool(cpu.system_flags & Eflags.VM)
        target = cpl if code.conforming else code.dpl
        if virtual_8086 and target != 0:
            raise GuestFault(_GP, gate.selector & 0xFFFC)
        flags = p.frame_flags()
        old_cs, old_ss = cpu.segment(_CS), cpu.segment(_SS)
        frame: list[int] = []
        if target < cpl:
            stack, esp = p.inner_stack(target)
            if virtual_8086:
                frame += [cpu.segment(seg).selector for seg in (Seg.GS, Seg.FS, Seg.DS, Seg.ES)]
            frame += [p.frame_selector(old_ss.selector), cpu.esp]
        else:
            stack, esp = old_ss, cpu.esp
        frame += [flags, p.frame_selector(old_cs.selector), cpu.eip]
        if pushes_error:
            frame.append(event.error)
        esp = p.push_frame(stack, esp, frame, 4 if gate.type & 8 else 2)
        new_cs = p.handler_code(gate.selector, code, target)
        # nothing below can fault: the guest's state changes from here on
        if virtual_8086:
            for seg in (Seg.ES, Seg.DS, Seg.FS, Seg.GS):
                cpu.set_segment(seg, NULL_SEGMENT)
        p.settle_flags(flags & _CLEARED, mask_interrupts=gate.type in _INTERRUPT_GATES)
        cpu.set_segment(_SS, stack)
        cpu.esp = esp
        cpu.set_segment(_CS, new_cs)
        cpu.eip = gate.offset
        cpu.irq_shadow = False
