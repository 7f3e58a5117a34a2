# SPDX-License-Identifier: GPL-2.0-only
"""How privilege and the interrupt flag show to the guest: the seam between the machine and a hypervisor.

On the bare machine things are as they are. A hypervisor that runs a kernel on another ring derives
its own view, and delivery of events, task switches and returns then serve both.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

from vmi.native.cpu import Cpu
from vmi.native.linear import Linear
from vmi.native.registers import Segment, TableRegister
from vmi.native.stamped import Stamped
from vmi.x86 import D_BIT, TSS_32, U32, Descriptor, Eflags, GuestFault, Vector

_BITMAP_BASE = 0x66  # where the TSS says where its bitmap of ports begins
# Found quickly: an enumeration's own members are looked up by a function.
_GP, _TS = Vector.GP, Vector.TS


class Privilege(Stamped):
    """How privilege and the interrupt flag show on the bare machine: as they are."""

    def __init__(self, cpu: Cpu, linear: Linear | None = None) -> None:
        self.cpu = cpu
        self.linear = linear or Linear(cpu)

    def load_root(self, value: int) -> None:
        """Load CR3 with what the guest wants to have there."""
        self.cpu.set_cr(3, value)

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

    def io_level(self) -> int:
        """I/O privilege level, 0 to 3, as the guest believes it to be."""
        return self.cpu.system_flags >> 12 & 3

    def check_port(self, port: int, size: int) -> None:
        """Allow IN and OUT of ``size`` bytes by IOPL, else by the task's bitmap of ports.

        :raises GuestFault: #GP if neither does, #PF if the task's state is not in memory.
        """
        cpu = self.cpu
        if not cpu.cpl:  # as in real mode
            return
        if not cpu.system_flags & Eflags.VM and self.cpl() <= self.io_level():
            return
        task = self.task()
        if (task.flags >> 8) & 15 not in TSS_32 or task.limit < _BITMAP_BASE + 1:
            raise GuestFault(_GP)
        at = self.linear.u16(task.base + _BITMAP_BASE) + port // 8
        if at + 1 > task.limit or self.linear.u16(task.base + at) >> port % 8 & (1 << size) - 1:
            raise GuestFault(_GP)

    def frame_selector(self, selector: int) -> int:
        """A CS or SS value as a frame shows it."""
        return selector

    def kernel_selector(self, selector: int) -> int:
        """A selector that the kernel gives, with the RPL it would have on ring 0."""
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

    def page_fault_at(self, address: int) -> None:
        """A page fault is about to be delivered: its address is in CR2."""
        self.cpu.cr2 = address

    def task_changed(self) -> None:
        """A task switch has loaded control registers or LDTR."""

    def descriptor(self, selector: int, vector: int = _GP) -> Descriptor:
        """The guest's descriptor of a selector, DPL as the guest wrote it."""
        return self.linear.descriptor(selector, vector)

    def loaded(self, selector: int, descriptor: Descriptor) -> Segment:
        """A CS or SS with its descriptor's privilege, as :meth:`descriptor` gave it.

        The descriptor is not marked as accessed in memory: neither does QEMU, and a table may be read-only.
        """
        return _loaded(selector, descriptor.low, descriptor.high, self.ring(descriptor.dpl))

    def kernel_stack(self, ring: int) -> tuple[int, int]:
        """SS and ESP for entry to an inner ring, from the TSS. :raises GuestFault: #TS."""
        task = self.task()
        if (task.flags >> 8) & 15 in TSS_32:
            offset, wide = 4 + 8 * ring, True
        else:
            offset, wide = 2 + 4 * ring, False
        if offset + (7 if wide else 3) > task.limit:
            raise GuestFault(_TS, task.selector & 0xFFFC)
        base = task.base + offset
        if wide:
            data = self.linear.read(base, 6)
            return int.from_bytes(data[4:], "little"), int.from_bytes(data[:4], "little")
        return self.linear.u16(base + 2), self.linear.u16(base)

    def given_stack(self) -> tuple[int, int] | None:
        """SS and ESP for entry to ring 0 if the kernel gives them other than by the TSS."""
        return None

    def stamp(self) -> object:
        """What entries to handlers depend on besides the CPU's registers, memory and :meth:`given_stack`."""
        return None

    def handler_code(self, selector: int, code: Descriptor, ring: int) -> Segment:
        """CS for a handler: a conforming segment keeps the ring it is entered from."""
        loaded = self.loaded(selector, code)
        if not code.conforming:
            return loaded
        return Segment(selector & ~3 | self.ring(ring), loaded.base, loaded.limit, loaded.flags)

    def inner_stack(self, ring: int) -> tuple[Segment, int]:
        """SS loaded for entry to an inner ring, and ESP. :raises GuestFault: #TS, #SS."""
        selector, esp = self.kernel_stack(ring)
        error = selector & 0xFFFC
        if not error:
            raise GuestFault(_TS)
        stack = self.descriptor(selector, _TS)
        if selector & 3 != ring or stack.dpl != ring or not stack.writable_data:
            raise GuestFault(_TS, error)
        if not stack.present:
            raise GuestFault(Vector.SS, error)
        return self.loaded(selector, stack), esp

    def push_frame(self, stack: Segment, esp: int, values: list[int], size: int) -> int:
        """Store ``values`` of ``size`` bytes below ``esp``, the first one first; gives the new ESP.

        :raises GuestFault: #PF; nothing is stored then.
        """
        mask = U32 if stack.flags & D_BIT else 0xFFFF
        top = (esp - size * len(values)) & mask
        most = (1 << 8 * size) - 1
        data = _packing(len(values), size).pack(*[value & most for value in reversed(values)])
        starts = range(len(data) - size, -1, -size)
        try:
            if top + len(data) <= mask + 1:
                self.linear.write(stack.base + top, data)
            else:  # the stack pointer wraps between two values
                self.linear.write_all((stack.base + (top + at & mask), data[at : at + size]) for at in starts)
        except GuestFault:
            for at in starts:  # the address to report is that of the first value without a page
                self.linear.physical(stack.base + (top + at & mask) & U32, write=True)
            raise
        return esp & ~mask & U32 | top


@lru_cache(maxsize=1024)
def _loaded(selector: int, low: int, high: int, ring: int) -> Segment:
    found = Descriptor(low, high).with_dpl(ring)
    return Segment(selector & ~3 | ring, found.base, found.limit, found.high | 0x100)


@lru_cache(maxsize=64)
def _packing(count: int, size: int) -> Struct:
    return Struct(f"<{count}{'I' if size == 4 else 'H'}")
