# SPDX-License-Identifier: GPL-2.0-only
"""How privilege and the interrupt flag show to the guest: the seam between the machine and a hypervisor.

On the bare machine things are as they are. A hypervisor that runs a kernel on another ring derives
its own view, and delivery of events, task switches and returns then serve both.
"""

from __future__ import annotations

from vmi.native.cpu import Cpu
from vmi.native.linear import Linear
from vmi.native.registers import Segment, TableRegister
from vmi.x86 import TSS_AVAILABLE_32, TSS_BUSY_32, Descriptor, Eflags, GuestFault, Vector


class Privilege:
    """How privilege and the interrupt flag show on the bare machine: as they are."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.linear = Linear(cpu)

    def idt(self) -> TableRegister:
        """The interrupt descriptor table in force."""
        return self.cpu.idt

    def task(self) -> Segment:
        """The task register in force."""
        return self.cpu.tr

    def cpl(self) -> int:
        """Current privilege level as the guest believes it to be."""
        return self.cpu.cpl

    def ring(self, ring: int) -> int:
        """The CPU's ring that a guest's ring runs on."""
        return ring

    def frame_selector(self, selector: int) -> int:
        """A CS or SS value as a frame shows it."""
        return selector

    def frame_flags(self) -> int:
        """EFLAGS as a frame shows them."""
        return self.cpu.eflags

    def settle_flags(self, flags: int, *, mask_interrupts: bool) -> None:
        """Set EFLAGS for the handler; TF, NT, RF and VM are cleared already."""
        self.cpu.eflags = flags & ~Eflags.IF if mask_interrupts else flags

    def restore_flags(self, flags: int) -> None:
        """Set EFLAGS from an image that the kernel gives (IRET, task switch)."""
        self.cpu.eflags = flags

    def descriptor(self, selector: int, vector: int = Vector.GP) -> Descriptor:
        """The guest's descriptor of a selector, DPL as the guest wrote it."""
        return self.linear.descriptor(selector, vector)

    def loaded(self, selector: int, descriptor: Descriptor) -> Segment:
        """A CS or SS with its descriptor's privilege, as :meth:`descriptor` gave it; marks it accessed."""
        if not descriptor.high & 0x100:
            address = self.linear.descriptor_address(selector) + 4
            self.linear.put_u32(address, self.linear.u32(address) | 0x100)
        real = self.ring(descriptor.dpl)
        hidden = descriptor.with_dpl(real).high | 0x100
        return Segment(selector & ~3 | real, descriptor.base, descriptor.limit, hidden)

    def kernel_stack(self, ring: int) -> tuple[int, int]:
        """SS and ESP for entry to an inner ring, from the TSS. :raises GuestFault: #TS."""
        task = self.task()
        if (task.flags >> 8) & 15 in (TSS_AVAILABLE_32, TSS_BUSY_32):
            offset, wide = 4 + 8 * ring, True
        else:
            offset, wide = 2 + 4 * ring, False
        if offset + (7 if wide else 3) > task.limit:
            raise GuestFault(Vector.TS, task.selector & 0xFFFC)
        base = task.base + offset
        if wide:
            return self.linear.u16(base + 4), self.linear.u32(base)
        return self.linear.u16(base + 2), self.linear.u16(base)
