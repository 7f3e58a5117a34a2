# SPDX-License-Identifier: GPL-2.0-only
"""Ring compression: the guest kernel believes in ring 0 and runs on ring 1.

The guest's own tables are used in place; a kernel descriptor's DPL 0 is raised to 1 in them, since
the CPU would refuse it otherwise. What the guest can see of itself on a frame or in a selector is
turned back: ring 1 shows as ring 0, the interrupt flag and IOPL are the virtual ones. A kernel that
speaks the interface itself has asked for its new ring, by reading CS behind VMI_Init, and sees it
everywhere. The real interrupt flag stays set and the real IOPL stays 0 for ever (virtual-8086 code
aside, which can't leave without the hypervisor, and whose own instructions depend on IOPL).
"""

from __future__ import annotations

from typing import Protocol

from vmi.hypervisor.handlers import Handlers
from vmi.hypervisor.mirror import Listener, Mirror
from vmi.hypervisor.mmu import Mmu
from vmi.memory import PAGE_SIZE
from vmi.native.cpu import Cpu
from vmi.native.linear import Linear
from vmi.native.privilege import Privilege
from vmi.native.registers import Segment, TableRegister
from vmi.native.walks import Walked
from vmi.x86 import IF_BIT, IOPL_MASK, U32, Descriptor, Eflags, GuestFault, Seg, Vector

KERNEL_RING = 1
USER_RING = 3
# Found quickly: an enumeration's own members are looked up by a function.
_GP = Vector.GP


class FlagWords(Listener, Protocol):
    """Where the virtual interrupt flag, IOPL and kernel stack live, and who wants to know of registers."""

    def get(self) -> bool:
        """Interrupts are on."""

    def set(self, on: bool) -> None:
        """Switch interrupts on or off."""

    def iopl(self) -> int:
        """The virtual IOPL, in EFLAGS position."""

    def set_iopl(self, iopl: int) -> None:
        """The virtual IOPL is another, in EFLAGS position."""

    def kernel_stack(self) -> tuple[int, int] | None:
        """Selector and ESP that the guest gave for entries from user mode, None for those of its TSS.

        Not to be trusted.
        """


class GuestLinear(Linear):
    """Linear memory as the guest maps it, whatever the CPU's own tables are."""

    def __init__(self, cpu: Cpu, mmu: Mmu) -> None:
        super().__init__(cpu)
        self._mmu = mmu

    def physical(self, linear: int, *, write: bool = False, user: bool = False) -> int:
        """See :class:`vmi.native.linear.Linear`."""
        return self._mmu.translate(linear & U32, write=write, user=user)

    def walked(self, linear: int, *, write: bool = False) -> Walked | None:
        """See :class:`vmi.native.linear.Linear`."""
        return self._mmu.walked(linear & U32, write=write)


class CompressedPrivilege(Privilege):
    """The view of a kernel on ring 1.

    ``iopl_from_frames`` says whether IRET calls take IOPL from the frame, as the instruction does. A
    kernel that speaks the interface itself sets it by SetIOPLMask alone; a patched one has no idea.

    ``running_task`` is the task register, as the hypervisor loaded it.
    """

    _shown_ring = 0

    def __init__(self, cpu: Cpu, words: FlagWords, mmu: Mmu) -> None:
        super().__init__(cpu, GuestLinear(cpu, mmu))
        self._mmu = mmu
        self.words = words
        self._straight = cpu.straight
        self.virtual_idt = TableRegister(0, 0)
        self.iopl_from_frames = True
        self.shown_ring = 0
        self.running_task = cpu.tr
        self.mirror = Mirror(cpu, mmu, words)
        self._handlers = Handlers(self)

    @property
    def virtual_idt(self) -> TableRegister:
        """The guest's IDT."""
        return self._virtual_idt

    @virtual_idt.setter
    def virtual_idt(self, table: TableRegister) -> None:
        self._virtual_idt = table
        self._straight.show(table, self._shown_ring)

    @property
    def shown_ring(self) -> int:
        """The ring that the kernel sees itself on: 0, or the real one for one that speaks the interface."""
        return self._shown_ring

    @shown_ring.setter
    def shown_ring(self, ring: int) -> None:
        self._shown_ring = ring
        self._straight.show(self._virtual_idt, ring)

    @property
    def iopl(self) -> int:
        """The virtual IOPL, in EFLAGS position."""
        return self.words.iopl() & IOPL_MASK

    @iopl.setter
    def iopl(self, value: int) -> None:
        self.words.set_iopl(value & IOPL_MASK)

    def load_root(self, value: int) -> None:
        """CR3 goes to where translation is decided."""
        self._mmu.write(3, value)

    def idt(self) -> TableRegister:
        """The guest's IDT; the real one is not used."""
        return self.virtual_idt

    def io_level(self) -> int:
        """The virtual IOPL, 0 to 3."""
        return self.iopl >> 12

    def check_port(self, port: int, size: int) -> None:
        """See :meth:`vmi.native.privilege.Privilege.check_port`; the kernel may use any."""
        if self.cpu.cpl != KERNEL_RING:
            super().check_port(port, size)

    def cpl(self) -> int:
        """Ring 1 counts as ring 0."""
        cpl = self.cpu.cpl
        return 0 if cpl == KERNEL_RING else cpl

    def ring(self, ring: int) -> int:
        """Ring 0 runs on ring 1."""
        return max(ring, KERNEL_RING)

    def frame_selector(self, selector: int) -> int:
        """RPL 1 shows as the ring that the kernel sees itself on."""
        return selector & ~3 | self.shown_ring if selector & 3 == KERNEL_RING else selector

    def kernel_selector(self, selector: int) -> int:
        """The real ring counts as ring 0 for a kernel that knows it."""
        return selector & ~3 if selector & 3 == KERNEL_RING == self.shown_ring else selector

    def interrupts_on(self) -> bool:
        """The virtual interrupt flag; user code always has it set."""
        return self.cpu.cpl == USER_RING or self.words.get()

    def frame_flags(self) -> int:
        """EFLAGS with the virtual interrupt flag and IOPL."""
        flags = self.cpu.eflags & ~(IF_BIT | IOPL_MASK)
        return flags | (IF_BIT if self.interrupts_on() else 0) | self.iopl

    def settle_flags(self, flags: int, *, mask_interrupts: bool) -> None:
        """Set the handler's flags; only the virtual interrupt flag is masked."""
        self.words.set(bool(flags & IF_BIT) and not mask_interrupts)
        self.cpu.eflags = flags & ~IOPL_MASK | IF_BIT

    def restore_flags(self, flags: int) -> None:
        """Set EFLAGS from an image: interrupt flag and IOPL go to their virtual places."""
        self.words.set(bool(flags & IF_BIT))
        self.iopl = flags & IOPL_MASK
        if not flags & Eflags.VM:
            flags &= ~IOPL_MASK
        self.cpu.eflags = flags | IF_BIT | Eflags.ONE

    def descriptor(self, selector: int, vector: int = _GP) -> Descriptor:
        """A descriptor as the guest wrote it: a raised one shows DPL 0."""
        found = super().descriptor(selector, vector)
        if found.is_segment and found.dpl == KERNEL_RING:
            return found.with_dpl(0)
        return found

    def given_stack(self) -> tuple[int, int] | None:
        """What UpdateKernelStack said last."""
        return self.words.kernel_stack()

    def stamp(self) -> object:
        """The guest's IDT is not by itself the CPU's, nor are its page tables."""
        return self.virtual_idt, self._mmu.stamp()

    def kernel_stack(self, ring: int) -> tuple[int, int]:
        """What UpdateKernelStack said last, else what the guest's TSS says; RPL 1 counts as 0."""
        given = self.words.kernel_stack() if ring == 0 else None
        if given is not None:
            return given
        selector, esp = super().kernel_stack(ring)
        return selector & ~3 if selector & 3 == KERNEL_RING else selector, esp

    def enter_by_sysenter(self, selector: int, esp: int, eip: int) -> None:
        """SYSENTER into flat segments of ring 1; the stack's selector is the one behind the code's."""
        cpu, flags = self.cpu, KERNEL_RING << 13
        self.words.set(False)
        cpu.system_flags &= ~(Eflags.VM | Eflags.RF)
        cpu.set_segment(Seg.CS, Segment(selector | KERNEL_RING, 0, U32, 0xCF9B00 | flags))
        cpu.set_segment(Seg.SS, Segment(selector + 8 & 0xFFFF | KERNEL_RING, 0, U32, 0xCF9300 | flags))
        cpu.esp, cpu.eip = esp, eip

    def page_fault_at(self, address: int) -> None:
        """CR2, as the guest sees it."""
        super().page_fault_at(address)
        self.mirror.control(2)
        self._mmu.faulted(address, self._handlers.base(self.virtual_idt))

    def task_changed(self) -> None:
        """CR0, CR3 and LDTR may be others."""
        self.running_task = self.cpu.tr
        self.mirror.registers(self.virtual_idt)

    # -- the guest's tables -----------------------------------------------------------------

    def raise_descriptor(self, selector: int) -> bool:
        """Raise a code or data descriptor from DPL 0 to ring 1; True if it was changed."""
        try:
            return self.raise_at(self.linear.descriptor_address(selector))
        except GuestFault:
            return False

    def raise_at(self, address: int) -> bool:
        """As :meth:`raise_descriptor`, by the descriptor's linear address. :raises GuestFault: #PF."""
        high = self.linear.u32(address + 4)
        if not _to_be_raised(high):
            return False
        # Byte by byte and through the physical address: the guest may hold its table read-only, and
        # the access byte may lie on another page than the rest.
        access = high >> 8 & 0xFF | KERNEL_RING << 5
        self.cpu.write_memory(self.linear.physical(address + 5), bytes([access]))
        return True

    def raise_table(self) -> None:
        """Raise every kernel descriptor in the GDT that is loaded now.

        What is not mapped yet, or written later by plain stores, is raised when its use is refused.
        """
        table = self.cpu.gdt
        end = table.base + (table.limit + 1) // 8 * 8
        address = table.base + 8
        while address < end:
            size = min(end - address, PAGE_SIZE - (address & U32) % PAGE_SIZE)
            size = max(size // 8 * 8, 8)
            try:
                access = self.linear.read(address, size)[5::8].translate(_TO_BE_RAISED)
                at = access.find(1)  # a table may have thousands of entries, most of them empty
                while at >= 0:
                    self.raise_at(address + 8 * at)
                    at = access.find(1, at + 1)
            except GuestFault:
                pass
            address += size


def _to_be_raised(high: int) -> bool:
    """A code or data descriptor of ring 0, present or not, by its upper dword.

    VERR and VERW don't care whether a segment is present, and are not refused.
    """
    return high & 0x7000 == 0x1000


_TO_BE_RAISED = bytes(_to_be_raised(access << 8) for access in range(256))  # by the access byte
