# SPDX-License-Identifier: GPL-2.0-only
"""Task switches that the CPU has begun by itself.

The kernel's own are refused, as a TSS is for ring 0, and are emulated. User code may have a TSS or a task
gate of its own to call, and may return from a task that was called; the CPU then saves the old task and
stumbles over the code segment of the new one, whose selector says ring 0 and whose descriptor ring 1.
"""

from __future__ import annotations

from vmi.hypervisor.privilege import KERNEL_RING, USER_RING, CompressedPrivilege
from vmi.native.registers import Segment
from vmi.native.tasks import load_state
from vmi.x86 import IF_BIT, IOPL_MASK, TSS_32, Eflags, GuestFault, Seg, Vector

_SIZE = 0x68
_EFLAGS, _SEGMENTS = 0x24, 0x48


def finish_switch(p: CompressedPrivilege) -> None:
    """Enter the task that the task register names, which has none of its segments yet.

    :raises GuestFault: #TS, #NP, #SS or #PF of the new task.
    """
    cpu = p.cpu
    new, nested = cpu.tr, bool(cpu.eflags & Eflags.NT)
    _correct(p, p.running_task)
    p.running_task = new
    if not _is_wide(new):
        raise GuestFault(Vector.TS, new.selector & 0xFFFC)
    load_state(p, p.linear.read(new.base, _SIZE), nested=nested)


def _is_wide(task: Segment) -> bool:
    return task.flags >> 8 & 15 in TSS_32


def _correct(p: CompressedPrivilege, left: Segment) -> None:
    """The CPU has saved the real flags and rings in the task that was left: make them the virtual ones."""
    if not _is_wide(left):
        return
    linear = p.linear
    flags = linear.u32(left.base + _EFLAGS)
    rings = {seg: linear.u32(left.base + _SEGMENTS + 4 * seg) for seg in (Seg.CS, Seg.SS)}
    on = rings[Seg.CS] & 3 == USER_RING or p.words.get()
    linear.put_u32(left.base + _EFLAGS, flags & ~(IF_BIT | IOPL_MASK) | (IF_BIT if on else 0) | p.iopl)
    for seg, selector in rings.items():
        if selector & 3 == KERNEL_RING:
            linear.put_u32(left.base + _SEGMENTS + 4 * seg, p.frame_selector(selector))
