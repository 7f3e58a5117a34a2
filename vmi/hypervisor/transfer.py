# SPDX-License-Identifier: GPL-2.0-only
"""Control transfers of a kernel on ring 1: IRET, far return, far call and far jump, as ring 0 does them.

The CPU would refuse most of these (a selector of ring 0 is more privileged than ring 1) and would
carry out the others with the wrong interrupt flag. User code's calls through a call gate are here too,
as the CPU would look for the kernel's stack where the guest has none.

After the Software Developer's Manual, volume 2, for each instruction; every check comes first, so that
a fault leaves the guest's registers as they were.
"""

from __future__ import annotations

from struct import Struct

from vmi.hypervisor.returns import IMAGE_FLAGS, Returns
from vmi.hypervisor.vcpu import VirtualCpu
from vmi.memory import PAGE_SIZE
from vmi.native.registers import NULL_SEGMENT, Segment
from vmi.native.stamped import Stamped
from vmi.native.tasks import Switch, switch_task
from vmi.x86 import (
    D_BIT,
    IOPL_MASK,
    TSS_AVAILABLE_32,
    U32,
    Descriptor,
    Eflags,
    Gate,
    GateType,
    GuestFault,
    Seg,
    Vector,
)

# on the way to virtual-8086 mode these too; the CPU core takes no RF there
_VIRTUAL_8086_FLAGS = IMAGE_FLAGS & ~Eflags.RF | Eflags.VM | Eflags.VIF | Eflags.VIP
_SEP = 1 << 11  # of CPUID leaf 1, EDX
_LONGEST_SEARCH = 0x400  # bytes of a GDT
_CALL_GATE_16, _CALL_GATE_32 = 4, 12
_DWORDS = tuple(Struct(f"<{count}I") for count in range(32))
# Found quickly: an enumeration's own members are looked up by a function.
_CS, _SS = Seg.CS, Seg.SS
_GP, _NP = Vector.GP, Vector.NP


class Transfers(Stamped):
    """Far control transfers for one virtual CPU."""

    def __init__(self, vcpu: VirtualCpu) -> None:
        self._cpu = vcpu.cpu
        self._p = vcpu.privilege
        self._linear = vcpu.linear
        self._fast_return_selectors = vcpu.fast_return_selectors
        self._returns = Returns(vcpu.privilege, self._outer_stack, self._drop_inner_segments)

    # -- the stack --------------------------------------------------------------------------

    def stack_address(self, offset: int) -> int:
        """Linear address of ESP + ``offset``."""
        ss = self._cpu.segment(_SS)
        return ss.base + (self._cpu.esp + offset & (U32 if ss.flags & D_BIT else 0xFFFF))

    def move_esp(self, by: int) -> None:
        """Add to ESP, or to SP on a 16-bit stack."""
        self.set_esp(self._cpu.segment(_SS), self._cpu.esp + by)

    def set_esp(self, stack: Segment, esp: int) -> None:
        """Set ESP, or only SP where ``stack`` is a 16-bit one."""
        self._cpu.esp = esp if stack.flags & D_BIT else self._cpu.esp & ~0xFFFF | esp & 0xFFFF

    def _words(self, offset: int, count: int, size: int) -> list[int]:
        """``count`` values of ``size`` bytes from ESP + ``offset``; ESP stays."""
        address = self.stack_address(offset)
        if address % PAGE_SIZE + size * count <= PAGE_SIZE and size == 4:
            return list(_DWORDS[count].unpack(self._linear.read(address, size * count)))
        return [
            int.from_bytes(self._linear.read(self.stack_address(offset + size * i), size), "little")
            for i in range(count)
        ]

    # -- returns ----------------------------------------------------------------------------

    def iret(self, skip: int = 0, size: int = 4, *, resume: int = 0, take_iopl: bool = True) -> None:
        """IRET with the frame at ESP + ``skip`` and values of ``size`` bytes (4, or 2 with prefix).

        :param resume: EIP behind the instruction, where a task that is left goes on.
        :param take_iopl: IOPL comes from the image, as it does at ring 0.
        :raises GuestFault: as the instruction; nothing has changed then.
        """
        if size == 4 and self._returns.go(skip, take_iopl=take_iopl):
            return
        if self._cpu.eflags & Eflags.NT:
            self._return_to_task(skip, resume)
            return
        eip, cs, image = self._words(skip, 3, size)
        if size == 2:
            image |= self._p.frame_flags() & ~(Eflags.RF | 0xFFFF)
        if not take_iopl:
            image = image & ~IOPL_MASK | self._p.iopl
        if image & Eflags.VM and size == 4:
            self._to_virtual_8086(skip, eip, cs & 0xFFFF, image)
        else:
            self._return(eip, cs & 0xFFFF, skip, 3, size, image)

    def _return_to_task(self, skip: int, resume: int) -> None:
        cpu = self._cpu
        before, link = cpu.esp, self._linear.u16(self._p.task().base)
        if skip:  # an IRET call: the task goes on behind it, where the return address is gone
            resume = self._words(0, 1, 4)[0]
            self.move_esp(skip)
        eip = cpu.eip
        try:
            switch_task(self._p, link, Switch.RETURN, resume)
        except GuestFault:
            if cpu.eip == eip:
                cpu.esp = before
            raise

    def fast_return(self, *, search: bool = False) -> None:
        """SYSEXIT: flat user code at EDX with the stack at ECX; interrupts are not its business.

        :param search: on a processor without SYSENTER's registers, which say the segments, take the flat
            ones of ring 3 that come first in the GDT.
        :raises GuestFault: #GP, the segments are not known.
        """
        cpu = self._cpu
        found = self._fast_return_selectors()
        if found is None and search and not cpu.bus.cpuid(1, 0)[3] & _SEP:
            found = self._flat_user_segments()
        if found is None:
            raise GuestFault(Vector.GP)
        code, stack = found
        self._p.mirror.user_segments(code, stack)
        cpu.set_segment(Seg.CS, Segment(code, 0, U32, 0xCFFB00))
        cpu.set_segment(Seg.SS, Segment(stack, 0, U32, 0xCFF300))
        cpu.esp, cpu.eip = cpu.ecx, cpu.edx

    def _flat_user_segments(self) -> tuple[int, int] | None:
        code = stack = None
        for selector in range(8 | 3, min(self._cpu.gdt.limit + 1, _LONGEST_SEARCH), 8):
            try:
                found = self._linear.descriptor(selector)
            except GuestFault:
                continue
            flat = not found.base and found.limit == U32 and found.present and found.dpl == 3
            if flat and found.high & D_BIT:
                code = selector if code is None and found.is_code else code
                stack = selector if stack is None and found.writable_data else stack
        return None if code is None or stack is None else (code, stack)

    def far_return(self, pop: int = 0, size: int = 4) -> None:
        """RETF, then drop ``pop`` bytes. :raises GuestFault: as the instruction."""
        eip, cs = self._words(0, 2, size)
        self._return(eip, cs & 0xFFFF, 0, 2, size, None, pop)

    def _return(
        self, eip: int, cs: int, skip: int, words: int, size: int, image: int | None, pop: int = 0
    ) -> None:
        cpu, p = self._cpu, self._p
        error = cs & 0xFFFC
        if not error:
            raise GuestFault(_GP)
        code = p.descriptor(cs)
        rpl = cs & 3
        # a frame of the guest's own may carry the ring it really runs on
        rpl = 0 if rpl == 1 else rpl
        fits = code.is_code and (code.dpl <= rpl if code.conforming else code.dpl == rpl)
        if not fits or rpl < p.cpl():
            raise GuestFault(_GP, error)
        if not code.present:
            raise GuestFault(_NP, error)
        dropped = skip + size * words + pop
        stack, esp = None, 0
        if rpl > p.cpl():
            esp, ss = self._words(dropped, 2, size)
            stack = self._outer_stack(ss & 0xFFFF, rpl)
        loaded = p.loaded(cs, code)
        p.raise_descriptor(cs)
        if image is not None:
            p.restore_flags(image & IMAGE_FLAGS)
        if stack is None:
            self.move_esp(dropped)
        else:
            self.set_esp(stack, esp + pop)
            cpu.set_segment(_SS, stack)
            self._drop_inner_segments(rpl)
        self._set_code(cs, loaded, rpl)
        cpu.eip = eip

    def _outer_stack(self, selector: int, rpl: int) -> Segment:
        error = selector & 0xFFFC
        if not error:
            raise GuestFault(_GP)
        stack = self._p.descriptor(selector)
        if selector & 3 != rpl or stack.dpl != rpl or not stack.writable_data:
            raise GuestFault(_GP, error)
        if not stack.present:
            raise GuestFault(Vector.SS, error)
        return self._p.loaded(selector, stack)

    def _drop_inner_segments(self, rpl: int) -> None:
        """Return to an outer ring clears data segments that ring may not use."""
        for seg in (Seg.ES, Seg.DS, Seg.FS, Seg.GS):
            segment = self._cpu.segment(seg)
            if seg in (Seg.FS, Seg.GS) and not segment.selector & 0xFFFC:
                continue  # as the CPU core: only ES and DS lose the RPL of a null selector
            conforming = segment.flags & 0xC00 == 0xC00
            if not conforming and (segment.flags >> 13) & 3 < rpl:
                self._cpu.set_segment(seg, NULL_SEGMENT)

    def _to_virtual_8086(self, skip: int, eip: int, cs: int, image: int) -> None:
        esp, ss, es, ds, fs, gs = self._words(skip + 12, 6, 4)
        self._p.restore_flags(image & _VIRTUAL_8086_FLAGS)
        for seg, selector in zip(
            (_SS, _CS, Seg.ES, Seg.DS, Seg.FS, Seg.GS), (ss, cs, es, ds, fs, gs), strict=True
        ):
            selector &= 0xFFFF
            self._cpu.set_segment(seg, Segment(selector, selector << 4, 0xFFFF, 0xF300))
        self._cpu.esp = esp
        self._cpu.eip = eip & 0xFFFF

    # -- far jump and far call --------------------------------------------------------------

    def far_jump(self, selector: int, offset: int, resume: int) -> None:
        """JMP to a code segment, a call gate, a task gate or a task. :raises GuestFault: as the instruction.

        :param resume: EIP behind the instruction.
        """
        selector = self._p.kernel_selector(selector)
        target = self._target(selector)
        if target.is_segment:
            self._check_code(target, selector & 0xFFFC, selector & 3)
            self._enter(target, selector, offset)
        elif target.type in (_CALL_GATE_16, _CALL_GATE_32):
            gate = self._call_gate(target, selector)
            code = self._target(gate.selector)
            self._check_code(code, gate.selector & 0xFFFC, 0)
            self._enter(code, gate.selector, gate.offset)
        else:
            self._switch(target, selector, Switch.JUMP, resume)

    def far_call(self, selector: int, offset: int, size: int, resume: int) -> None:
        """CALL, as :meth:`far_jump`; pushed selectors show the ring that the kernel knows.

        :param size: bytes of each value pushed; a gate has a size of its own.
        """
        cpu = self._cpu
        selector = self._p.kernel_selector(selector)
        target = self._target(selector)
        if not target.is_segment and target.type not in (_CALL_GATE_16, _CALL_GATE_32):
            self._switch(target, selector, Switch.CALL, resume)
            return
        shown = self._p.frame_selector(cpu.segment(_CS).selector)
        stack = cpu.segment(_SS)
        if target.is_segment:
            self._check_code(target, selector & 0xFFFC, selector & 3)
            self._check_limit(target, offset)
            esp = self._p.push_frame(stack, cpu.esp, [shown, resume], size)
            cpu.esp = esp
            self._enter(target, selector, offset)
            return
        gate = self._call_gate(target, selector)
        code = self._target(gate.selector)
        self._check_code(code, gate.selector & 0xFFFC, 0, inward=True)
        self._check_limit(code, gate.offset)
        size, esp = 4 if gate.type & 8 else 2, cpu.esp
        frame = [shown, resume]
        inner = not code.conforming and code.dpl < self._p.cpl()
        if inner:
            frame[:0] = [
                self._p.frame_selector(stack.selector),
                esp,
                *reversed(self._words(0, target.high & 31, size)),
            ]
            stack, esp = self._p.inner_stack(code.dpl)
            self._p.raise_descriptor(stack.selector)
        esp = self._p.push_frame(stack, esp, frame, size)
        loaded = self._p.loaded(gate.selector, code)
        if inner:
            cpu.set_segment(_SS, stack)
        cpu.esp = esp
        self._p.raise_descriptor(gate.selector)
        self._set_code(gate.selector, loaded, code.dpl if inner else self._p.cpl())
        cpu.eip = gate.offset

    def _target(self, selector: int) -> Descriptor:
        if not selector & 0xFFFC:
            raise GuestFault(_GP)
        return self._p.descriptor(selector)

    def _check_code(self, code: Descriptor, error: int, rpl: int, *, inward: bool = False) -> None:
        """Code that may be entered from here: on the same ring, or ``inward`` as calls through gates do."""
        cpl = self._p.cpl()
        if not code.is_code or code.dpl > cpl:
            raise GuestFault(_GP, error)
        if not code.conforming and not inward and (rpl > cpl or code.dpl != cpl):
            raise GuestFault(_GP, error)
        if not code.present:
            raise GuestFault(_NP, error)

    @staticmethod
    def _check_limit(code: Descriptor, offset: int) -> None:
        if offset > code.limit:
            raise GuestFault(_GP)

    def _call_gate(self, found: Descriptor, selector: int) -> Gate:
        self._check_gate(found, selector)
        return Gate(found.low, found.high)

    def _check_gate(self, found: Descriptor, selector: int) -> None:
        error = selector & 0xFFFC
        if found.dpl < max(self._p.cpl(), selector & 3):
            raise GuestFault(_GP, error)
        if not found.present:
            raise GuestFault(_NP, error)

    def _switch(self, target: Descriptor, selector: int, how: Switch, resume: int) -> None:
        if target.type not in (GateType.TASK, TSS_AVAILABLE_32):
            raise GuestFault(_GP, selector & 0xFFFC)
        self._check_gate(target, selector)
        task = target.low >> 16 if target.type == GateType.TASK else selector
        switch_task(self._p, task, how, resume)

    def _enter(self, code: Descriptor, selector: int, offset: int) -> None:
        self._check_limit(code, offset)
        loaded = self._p.loaded(selector, code)
        self._p.raise_descriptor(selector)
        self._set_code(selector, loaded, self._p.cpl())
        self._cpu.eip = offset

    def _set_code(self, selector: int, loaded: Segment, ring: int) -> None:
        """CS with the RPL of the ring it runs on, which for a conforming segment is not its DPL."""
        real = self._p.ring(ring)
        self._cpu.set_segment(_CS, Segment(selector & ~3 | real, loaded.base, loaded.limit, loaded.flags))
