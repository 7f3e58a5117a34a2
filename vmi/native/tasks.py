# SPDX-License-Identifier: GPL-2.0-only
"""Hardware task switch into a 32-bit TSS (Software Developer's Manual, volume 3A, chapter 7).

On the bare machine far jumps and calls to a TSS and the return by IRET are done by the CPU core itself;
only the way through the IDT needs the host, since the host delivers events. A hypervisor that runs the
kernel on another ring needs all of them here.
"""

from __future__ import annotations

from enum import Enum, auto

from vmi.native.privilege import Privilege
from vmi.native.registers import NULL_SEGMENT, Segment
from vmi.x86 import LDT_TYPE, TSS_AVAILABLE_32, TSS_BUSY_32, U32, Cr0, Eflags, GuestFault, Seg, Vector

_LINK, _CR3, _EIP, _EFLAGS, _GPRS, _SEGS, _LDT = 0x00, 0x1C, 0x20, 0x24, 0x28, 0x48, 0x60
_MINIMUM_LIMIT = 0x67
_BUSY = 0x200
_FLAGS = 0x277FD5  # what a task's image holds: all but the reserved, VIF and VIP


class Switch(Enum):
    """How a task is entered."""

    CALL = auto()  # the old task stays busy, and the new one is linked to it
    JUMP = auto()
    RETURN = auto()  # IRET with NT set


def switch_task(p: Privilege, selector: int, how: Switch = Switch.CALL, resume: int | None = None) -> None:
    """Leave the current task and enter the one that ``selector`` names.

    :param resume: EIP at which the current task goes on later; the present one if not given.
    :raises GuestFault: #GP, #NP or #TS with the selector as error code. EIP tells which task faulted: it
        is the new task's once the switch could not be stopped any more.
    """
    cpu, linear = p.cpu, p.linear
    error = selector & 0xFFFC
    returning = how is Switch.RETURN
    refusal = Vector.TS if returning else Vector.GP
    if selector & 4:
        raise GuestFault(refusal, error)
    tss = linear.descriptor(selector, refusal)
    if tss.is_segment or tss.type != (TSS_BUSY_32 if returning else TSS_AVAILABLE_32):
        raise GuestFault(refusal, error)
    if not tss.present:
        raise GuestFault(Vector.NP, error)
    if tss.limit < _MINIMUM_LIMIT:
        raise GuestFault(Vector.TS, error)
    image = linear.read(tss.base, _MINIMUM_LIMIT + 1)
    old = cpu.tr
    flags = p.frame_flags() & ~Eflags.NT if returning else p.frame_flags()
    selectors_now = (p.frame_selector(cpu.segment(seg).selector) for seg in Seg)
    words = (cpu.eip if resume is None else resume, flags, *(cpu.gpr(i) for i in range(8)), *selectors_now)
    linear.write(old.base + _EIP, b"".join((word & U32).to_bytes(4, "little") for word in words))
    if how is Switch.CALL:
        linear.write(tss.base + _LINK, old.selector.to_bytes(2, "little"))
    elif old.selector & 0xFFFC:
        _mark(p, old.selector, busy=False)
    if not returning:
        _mark(p, selector, busy=True)
    # the CPU core expects the hidden part without the busy bit
    cpu.tr = Segment(selector, tss.base, tss.limit, tss.high & ~_BUSY)
    cpu.set_cr(0, cpu.cr(0) | Cr0.TS)
    load_state(p, image, nested=how is Switch.CALL)


def load_state(p: Privilege, image: bytes, *, nested: bool) -> None:
    """Load the registers of the task that the task register names already, from the 104 bytes of its TSS.

    :param nested: it is linked to the task before: NT is set.
    :raises GuestFault: #TS, #NP or #SS of the new task.
    """
    cpu = p.cpu

    def field(offset: int) -> int:
        return int.from_bytes(image[offset : offset + 4], "little")

    if cpu.cr(0) & Cr0.PG:
        p.load_root(field(_CR3))
    p.task_changed()
    flags = field(_EFLAGS) & _FLAGS | Eflags.ONE
    p.restore_flags(flags | Eflags.NT if nested else flags)
    for number in range(8):
        cpu.set_gpr(number, field(_GPRS + 4 * number))
    cpu.eip = field(_EIP)
    _load_ldt(p, field(_LDT) & 0xFFFF)
    p.task_changed()
    selectors = {seg: field(_SEGS + 4 * seg) & 0xFFFF for seg in Seg}
    if not flags & Eflags.VM:
        selectors.update({seg: p.kernel_selector(selectors[seg]) for seg in (Seg.CS, Seg.SS)})
    ring = selectors[Seg.CS] & 3
    for seg in (Seg.SS, Seg.CS, Seg.ES, Seg.DS, Seg.FS, Seg.GS):
        at = selectors[seg]
        if flags & Eflags.VM:
            cpu.set_segment(seg, Segment(at, at << 4, 0xFFFF, 0xF300))
        else:
            cpu.set_segment(seg, _checked(p, seg, at, ring))


def _mark(p: Privilege, selector: int, *, busy: bool) -> None:
    """Set or clear the busy bit in a TSS descriptor."""
    at = p.linear.descriptor_address(selector) + 4
    high = p.linear.u32(at)
    p.linear.put_u32(at, high | _BUSY if busy else high & ~_BUSY)


def _load_ldt(p: Privilege, selector: int) -> None:
    if not selector & 0xFFFC:
        p.cpu.ldt = NULL_SEGMENT
        return
    table = p.linear.descriptor(selector, Vector.TS)
    if selector & 4 or table.is_segment or table.type != LDT_TYPE or not table.present:
        raise GuestFault(Vector.TS, selector & 0xFFFC)
    p.cpu.ldt = Segment(selector, table.base, table.limit, table.high)


def _checked(p: Privilege, seg: Seg, selector: int, ring: int) -> Segment:
    error = selector & 0xFFFC
    if not error:
        if seg in (Seg.CS, Seg.SS):
            raise GuestFault(Vector.TS, 0)
        return NULL_SEGMENT
    descriptor = p.descriptor(selector, Vector.TS)
    fits = {
        Seg.CS: descriptor.is_code and (descriptor.conforming or descriptor.dpl == ring),
        Seg.SS: descriptor.writable_data and descriptor.dpl == ring and selector & 3 == ring,
    }.get(seg, descriptor.readable and (descriptor.conforming or descriptor.dpl >= max(ring, selector & 3)))
    if not fits:
        raise GuestFault(Vector.TS, error)
    if not descriptor.present:
        raise GuestFault(Vector.SS if seg == Seg.SS else Vector.NP, error)
    loaded = p.loaded(selector, descriptor)
    if seg == Seg.SS:
        return loaded
    # a conforming segment keeps the ring it is entered from; other registers keep the RPL they are given
    shown = selector & ~3 | p.ring(ring) if seg == Seg.CS else selector
    return Segment(shown, loaded.base, loaded.limit, loaded.flags)
