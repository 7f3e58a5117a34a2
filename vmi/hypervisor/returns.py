# SPDX-License-Identifier: GPL-2.0-only
"""Ways back from handlers that were gone before: the quick half of IRET.

As for the ways into them (:mod:`vmi.native.ways`): the usual returns go to the same few code segments and
stacks, and what these are is remembered. :class:`~vmi.hypervisor.transfer.Transfers` does whatever is not
remembered, and all that can fault.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from struct import Struct

from vmi.hypervisor.privilege import KERNEL_RING, USER_RING, CompressedPrivilege
from vmi.memory import PAGE_SIZE
from vmi.native.known import OFFSET, Gather, Known, Unsuitable, gather
from vmi.native.registers import ENTRY, HF_CPL, HF_CS32, HF_SS32, Segment, segment_words
from vmi.x86 import D_BIT, IOPL_MASK, U32, Descriptor, Eflags, GuestFault

# What IRET at ring 0 takes from the image: all but VM, VIF and VIP
IMAGE_FLAGS = 0x257FD5
_INNER, _OUTER = Struct("<3I"), Struct("<5I")  # a frame without a stack, and one with it
_LOCAL = 4  # of a selector: in the LDT
_TO_BE_RAISED = 0x7000, 0x1000  # of a descriptor's upper dword: code or data of ring 0

# What it was found by; CS, and SS on the way to user code, as words; what they make of the CPU's mode.
_Back = tuple[Gather, object, memoryview, int]


class Returns(Known[_Back]):
    """The ways back of one virtual CPU.

    :param stack: SS for an outer ring, checked.
    :param drop: clears the data segments that an outer ring may not use.
    """

    def __init__(
        self,
        privilege: CompressedPrivilege,
        stack: Callable[[int, int], Segment],
        drop: Callable[[int], None],
    ) -> None:
        super().__init__(privilege, stores=False)
        self._compressed = privilege
        self._outer_stack, self._drop = stack, drop

    def go(self, skip: int, *, take_iopl: bool) -> bool:
        """IRET with the frame at ESP + ``skip``; False if it is to be done the long way.

        :param take_iopl: IOPL comes from the image.
        """
        p, cpu, dwords = self._compressed, self._cpu, self._dwords
        esp, _, flags, hflags, _, _, base, ss_flags, *rest = ENTRY.unpack_from(self._environment)
        if flags & (Eflags.VM | Eflags.NT) or hflags & HF_CPL != KERNEL_RING or not ss_flags & D_BIT:
            return False
        state = (*rest, cpu.a20_mask, p.stamp())
        if state != self._state:
            self._change_state(state)
        at = base + esp + skip & U32
        room = PAGE_SIZE - (at & OFFSET)
        if room < _INNER.size or esp + skip > U32 - _OUTER.size:
            return False
        page = self._pages.get(at >> 12)
        if page is None or page[0](dwords) != page[1]:
            page = self._find_page(at)
            if page is None:
                return False
        place = page[2] | at & OFFSET
        eip, cs, image = _INNER.unpack_from(self._ram, place)
        if image & Eflags.VM:
            return False
        cs &= 0xFFFF
        outer_esp = outer_ss = 0
        outward = cs & 3 == USER_RING
        if outward:
            if room < _OUTER.size:
                return False
            _, _, _, outer_esp, outer_ss = _OUTER.unpack_from(self._ram, place)
            outer_ss &= 0xFFFF
        key = outer_ss << 16 | cs
        way = self._ways.get(key)
        if way is None or way[0](dwords) != way[1]:
            way = self._find(cs, outer_ss)
            if way is None:
                return False
            self._remember(key, way)
        _, _, segments, mode = way
        # nothing below can fault: the guest's state changes from here on
        p.restore_flags((image if take_iopl else image & ~IOPL_MASK | p.iopl) & IMAGE_FLAGS)
        if not outward:
            cpu.enter(segments, mode | HF_SS32 | ss_flags >> 13 & HF_CPL, esp + skip + _INNER.size, eip)
            return True
        cpu.enter(segments, mode, outer_esp, eip)
        if not cpu.data_segments_suit_users():
            self._drop(USER_RING)
        return True

    def _find(self, cs: int, ss: int) -> _Back | None:
        """The way to a code segment, and to a stack if that is user code's."""
        p, rpl = self._compressed, cs & 3
        if rpl == 2 or cs & _LOCAL or not cs & ~7:
            return None
        outward, places = rpl == USER_RING, dict[int, int]()
        rpl = USER_RING if outward else 0
        try:
            code = self._descriptor(cs, places)
            if not code.is_code or not code.present or code.conforming or code.dpl != rpl:
                return None
            loaded = p.loaded(cs, code)
            words, mode = list(segment_words(loaded)), HF_CS32 if loaded.flags & D_BIT else 0
            if outward:
                if ss & _LOCAL or not ss & ~7:
                    return None
                self._descriptor(ss, places)
                stack = self._outer_stack(ss, rpl)
                if not stack.flags & D_BIT:
                    return None
                words += segment_words(stack)
                mode |= HF_SS32 | stack.flags >> 13 & HF_CPL
        except (GuestFault, Unsuitable):
            return None
        return *gather(places), memoryview(array("I", words)), mode

    def _descriptor(self, selector: int, places: dict[int, int]) -> Descriptor:
        _, high = self._words(self._p.linear.descriptor_address(selector), places)
        mask, value = _TO_BE_RAISED
        if high & mask == value:
            raise Unsuitable
        return self._p.descriptor(selector)
