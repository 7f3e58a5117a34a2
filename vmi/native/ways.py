# SPDX-License-Identifier: GPL-2.0-only
"""Ways into handlers that were found before: the quick half of the delivery of events.

Most events of a guest go the same few ways: a 32-bit gate, a code segment, and either the stack in use or
the one that the task has for the kernel. What is entered here by such a way is what
:class:`~vmi.native.interrupts.Delivery` would have entered: that does whatever is not remembered, and all
that can fault.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import NamedTuple

from vmi.memory import PAGE_SIZE
from vmi.native.known import OFFSET, Gather, Known, Unsuitable, gather
from vmi.native.privilege import Privilege
from vmi.native.registers import ENTRY, HF_CPL, HF_CS32, HF_SS32, Segment, segment_words
from vmi.x86 import D_BIT, TSS_32, U32, Cr0, Eflags, Gate, GateType, GuestFault, Vector

_KEPT = ~(Eflags.TF | Eflags.NT | Eflags.RF | Eflags.VM)
_FRAMES = tuple(Struct(f"<{count}I") for count in range(7))
_GIVEN = 1 << 28  # of the key of a way: the kernel gave the stack other than by its TSS
_LOCAL = 4  # of a selector: in the LDT
_STACK_OF_RING_0 = 4  # where a TSS has ESP and, behind it, SS
_GATES = (GateType.INTERRUPT_32, GateType.TRAP_32)

# What it was found by; the handler's offset; whether interrupts are masked; CS, and SS if the stack is not
# the one in use, as words; what they make of the CPU's mode; base of that other stack, or -1; number of the
# dword of memory that its ESP is in, if the TSS has it.
_Way = tuple[Gather, object, int, bool, memoryview, int, int, int]


class Found(NamedTuple):
    """A way into a handler.

    :ivar places: dwords of memory, by number, that it was found by.
    :ivar offset: the handler's.
    :ivar masks: interrupts are masked.
    :ivar words: CS, and SS if the stack is not the one in use.
    :ivar mode: what they make of the CPU's mode.
    :ivar base: of that other stack, or -1.
    :ivar place: number of the dword that its ESP is in, if the TSS has it.
    """

    places: dict[int, int]
    offset: int
    masks: bool
    words: list[int]
    mode: int
    base: int
    place: int


class Ways(Known[_Way]):
    """The ways of one processor into handlers."""

    def __init__(self, privilege: Privilege) -> None:
        super().__init__(privilege, stores=True)

    def enter(self, vector: int, software: bool, error: int | None) -> bool:
        """Enter the handler of an event; False if it is to be done the long way, and nothing has changed.

        :param software: INT n, so that the gate's DPL counts.
        :param error: the error code that is pushed, None for none.
        """
        p, cpu, dwords = self._p, self._cpu, self._dwords
        esp, eip, flags, hflags, cs, ss, ss_base, ss_flags, *rest = ENTRY.unpack_from(self._environment)
        if flags & Eflags.VM:
            return False
        state = (*rest, cpu.a20_mask, p.stamp())
        if state != self._state:
            self._change_state(state)
        ring = hflags & HF_CPL
        key = vector << 4 | software << 3 | (error is not None) << 2 | ring
        given = p.given_stack() if ring > 1 else None
        if given is not None:
            key |= given[0] << 12 | _GIVEN
        way = self._ways.get(key)
        if way is None or way[0](dwords) != way[1]:
            found = self.find(vector, software, given)
            if found is None:
                return False
            places, offset, masks, words, mode, base, place = found
            way = *gather(places), offset, masks, memoryview(array("I", words)), mode, base, place
            self._remember(key, way)
        _, _, offset, masks, segments, mode, base, place = way
        shown = p.frame_flags()
        frame = [shown, p.frame_selector(cs), eip]
        if error is not None:
            frame.append(error)
        if base >= 0:
            frame[:0] = p.frame_selector(ss), esp
            esp = dwords[place] if given is None else given[1]
        elif ss_flags & D_BIT:
            base, mode = ss_base, mode | HF_SS32 | ss_flags >> 13 & HF_CPL
        else:
            return False
        size = 4 * len(frame)
        top = esp - size & U32
        at = base + top & U32
        if 0 < esp < size or at & OFFSET > PAGE_SIZE - size:
            return False
        page = self._pages.get(at >> 12)
        if page is None or page[0](dwords) != page[1]:
            page = self._find_page(at)
            if page is None:
                return False
        start = page[2]
        if start >> 12 in cpu.code_pages:
            return False
        # nothing below can fault: the guest's state changes from here on
        frame.reverse()
        _FRAMES[len(frame)].pack_into(self._ram, start | at & OFFSET, *frame)
        p.settle_flags(shown & _KEPT, mask_interrupts=masks)
        cpu.enter(segments, mode, top, offset)
        return True

    def find(self, vector: int, software: bool, given: tuple[int, int] | None) -> Found | None:
        """The way of a vector, by the stack that the kernel gave; None if it is to be gone the long way."""
        p = self._p
        table = p.idt()
        if not self._cpu.cr(0) & Cr0.PE or 8 * vector + 7 > table.limit:
            return None
        places: dict[int, int] = {}
        try:
            low, high = self._words(table.base + 8 * vector, places)
            gate, cpl = Gate(low, high), p.cpl()
            selector = gate.selector
            allowed = gate.dpl >= cpl or not software
            if gate.type not in _GATES or not gate.present or not allowed:
                return None
            if selector & _LOCAL or not selector & ~3:
                return None
            self._words(p.linear.descriptor_address(selector), places)
            code = p.descriptor(selector)
            if not code.is_code or code.dpl > cpl or not code.present:
                return None
            target = cpl if code.conforming else code.dpl
            loaded = p.handler_code(selector, code, target)
            words, mode = list(segment_words(loaded)), HF_CS32 if loaded.flags & D_BIT else 0
            base, place = -1, 0
            if target < cpl:
                stack, place = self._find_stack(target, given, places)
                if not stack.flags & D_BIT:
                    return None
                words += segment_words(stack)
                mode |= HF_SS32 | stack.flags >> 13 & HF_CPL
                base = stack.base
        except (GuestFault, Unsuitable):
            return None
        masks = gate.type == GateType.INTERRUPT_32
        return Found(places, gate.offset, masks, words, mode, base, place)

    def _find_stack(
        self, ring: int, given: tuple[int, int] | None, places: dict[int, int]
    ) -> tuple[Segment, int]:
        """SS for an inner ring, and where ESP is if the kernel did not give it."""
        p = self._p
        task, place = p.task(), 0
        if ring:
            raise Unsuitable
        if given is None:
            if task.flags >> 8 & 15 not in TSS_32 or task.limit < _STACK_OF_RING_0 + 7:
                raise Unsuitable
            at = task.base + _STACK_OF_RING_0
            place = self._place(at, 8, places)
            places[place + 1] = self._dwords[place + 1]
        stack, _ = p.inner_stack(ring)
        selector = p.kernel_stack(ring)[0]
        if selector & _LOCAL:
            raise Unsuitable
        self._words(p.linear.descriptor_address(selector, Vector.TS), places)
        return stack, place
