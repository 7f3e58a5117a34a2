# SPDX-License-Identifier: GPL-2.0-only
"""The virtual CPU's privileged operations, shared by the VMI calls and by trap-and-emulate.

Each method is what one privileged instruction does, carried out for a kernel on ring 1. Faults that
the instruction would raise come out as :class:`~vmi.x86.GuestFault`, before anything has changed.
"""

from __future__ import annotations

from collections.abc import Callable

from vmi.hypervisor.mmu import Mmu
from vmi.hypervisor.privilege import KERNEL_RING, USER_RING, CompressedPrivilege
from vmi.native import control
from vmi.native.machine import Machine, Outcome
from vmi.native.msr import EFER, SYSENTER_CS, TSC
from vmi.native.registers import Segment, TableRegister
from vmi.native.stamped import Stamped
from vmi.x86 import (
    LDT_TYPE,
    TSS_AVAILABLE_32,
    Cr0,
    Cr4,
    Descriptor,
    GuestFault,
    Seg,
    Vector,
)

_TSS_AVAILABLE_16 = 1
_TSS_BUSY_BIT = 0x200

# DR6 and DR7: bits that read as 1, and bits that read as 0 whatever is written
_DR_ONES = {6: 0xFFFF0FF0, 7: 0x400}
_DR6_BD = 1 << 13
_DR7_GD = 1 << 13

# Found quickly: an enumeration's own members are looked up by a function.
_CS, _SS = Seg.CS, Seg.SS
_GP = Vector.GP


class VirtualCpu(Stamped):
    """Privileged operations of one de-privileged CPU."""

    def __init__(self, machine: Machine, privilege: CompressedPrivilege, mmu: Mmu) -> None:
        self.machine = machine
        self.mmu = mmu
        self.cpu = machine.cpu
        self.privilege = privilege
        self.linear = privilege.linear
        self._features = machine.cpuid(1, 0)[3]
        self.on_tsc: Callable[[], None] = lambda: None  # the time stamp counter was written

    # -- descriptor tables ------------------------------------------------------------------

    def load_gdt(self, base: int, limit: int) -> None:
        """LGDT. Segments in use keep what they have, as they do after the instruction."""
        self.cpu.gdt = TableRegister(base, limit)
        self.privilege.mirror.gdt()
        self.privilege.raise_table()

    def load_idt(self, base: int, limit: int) -> None:
        """LIDT; the real IDTR is kept equal, for SIDT, which no ring check stops."""
        self.privilege.virtual_idt = TableRegister(base, limit)
        self.cpu.idt = TableRegister(base, limit)
        self.privilege.mirror.idt(self.cpu.idt)

    def _system_descriptor(self, selector: int, types: tuple[int, ...]) -> Descriptor:
        error = selector & 0xFFFC
        if selector & 4:
            raise GuestFault(_GP, error)
        found = self.linear.descriptor(selector)
        if found.is_segment or found.type not in types:
            raise GuestFault(_GP, error)
        if not found.present:
            raise GuestFault(Vector.NP, error)
        return found

    def load_ldt(self, selector: int) -> None:
        """LLDT."""
        if not selector & 0xFFFC:
            self.cpu.ldt = Segment(selector, 0, 0, 0)
        else:
            table = self._system_descriptor(selector, (LDT_TYPE,))
            self.cpu.ldt = Segment(selector, table.base, table.limit, table.high)
        self.privilege.mirror.ldt()

    def load_task(self, selector: int) -> None:
        """LTR."""
        if not selector & 0xFFFC:
            raise GuestFault(_GP)
        tss = self._system_descriptor(selector, (_TSS_AVAILABLE_16, TSS_AVAILABLE_32))
        self.linear.put_u32(self.linear.descriptor_address(selector) + 4, tss.high | _TSS_BUSY_BIT)
        # the CPU core aborts on a hidden part with the busy bit
        self.privilege.running_task = self.cpu.tr = Segment(selector, tss.base, tss.limit, tss.high)

    # -- control and debug registers --------------------------------------------------------

    def write_cr(self, number: int, value: int) -> None:
        """MOV to a control register; CR0, CR3 and CR4 go to where translation is decided."""
        if not control.takes(number, value, self._features):
            raise GuestFault(_GP)
        if number == 0 and not value & Cr0.PE:
            self.end_in_real_mode()
            return
        if number == 2:
            self.cpu.cr2 = value
        else:
            self.mmu.write(number, value)
        self.privilege.mirror.control(number)

    def end_in_real_mode(self) -> None:
        """There are no rings to compress without protected mode: the run ends."""
        self.machine.finish(
            Outcome.CRASHED, "the guest kernel left protected mode, which this hypervisor does not serve"
        )

    def read_cr(self, number: int) -> int:
        """MOV from a control register."""
        return self.cpu.cr2 if number == 2 else self.mmu.read(number)

    def clear_task_switched(self) -> None:
        """CLTS."""
        self.mmu.write(0, self.mmu.read(0) & ~Cr0.TS)
        self.privilege.mirror.control(0)

    def _debug_register(self, number: int) -> int:
        """The register that an access reaches. :raises GuestFault: it is not to be accessed."""
        if number in (4, 5):
            if self.cpu.cr(4) & Cr4.DE:
                raise GuestFault(Vector.UD)
            number += 2
        if self.cpu.dr(7) & _DR7_GD:
            self.cpu.set_dr(6, self.cpu.dr(6) | _DR6_BD)
            self.cpu.load_dr(7, self.cpu.dr(7) & ~_DR7_GD)
            raise GuestFault(Vector.DB)
        return number

    def write_dr(self, number: int, value: int) -> None:
        """MOV to debug register 0 to 7; breakpoints that DR7 enables are armed."""
        number = self._debug_register(number)
        self.cpu.load_dr(number, value | _DR_ONES.get(number, 0))

    def read_dr(self, number: int) -> int:
        """MOV from debug register 0 to 7."""
        return self.cpu.dr(self._debug_register(number))

    def read_msr(self, number: int) -> int:
        """RDMSR: the registers are those of the machine's processor model."""
        value = self.machine.read_msr(number)
        if value is None:
            raise GuestFault(_GP)
        return self.mmu.efer if number == EFER else value

    def write_msr(self, number: int, value: int) -> None:
        """WRMSR."""
        if not self.machine.write_msr(number, value):
            raise GuestFault(_GP)
        if number == EFER:
            self.mmu.write_efer(value)
        elif number == TSC:
            self.on_tsc()
        elif number == SYSENTER_CS:
            self.mirror_fast_return()

    def mirror_fast_return(self) -> None:
        """Tell the ROM where SYSEXIT goes, by the register that SYSENTER has; nowhere without that."""
        self.privilege.mirror.user_segments(*self.fast_return_selectors() or (0, 0))

    def fast_return_selectors(self) -> tuple[int, int] | None:
        """Code and stack of SYSEXIT, by the register that SYSENTER has; None if it names none."""
        kernel = self.cpu.fast_call_target[0] & 0xFFFC
        if not kernel:
            return None
        return kernel + 16 & 0xFFFF | USER_RING, kernel + 24 & 0xFFFF | USER_RING

    # -- interrupts -------------------------------------------------------------------------

    def enable_interrupts(self, *, shadow: bool) -> None:
        """STI: takes effect behind the next instruction, as on the bare machine.

        :param shadow: False in the shadow of another STI, which is not made longer.
        """
        self.privilege.words.set(True)
        self.cpu.irq_shadow = shadow
        self.offer_interrupt()

    def offer_interrupt(self) -> None:
        """The interrupt flag may have come on: what waits is offered at the next boundary, or later."""
        if self.machine.interrupts.pending():
            self.cpu.stop_soon()

    def disable_interrupts(self) -> None:
        """CLI."""
        self.privilege.words.set(False)

    def halt(self) -> None:
        """HLT: wait for an interrupt."""
        self.machine.halt()

    # -- segments ---------------------------------------------------------------------------

    def load_segment(self, seg: Seg, selector: int) -> None:
        """Load SS, DS, ES, FS or GS as ring 0 would do it. :raises GuestFault: as the instruction."""
        selector &= 0xFFFF
        error = selector & 0xFFFC
        if not error:
            if seg == _SS:
                raise GuestFault(_GP)
            self.cpu.set_segment(seg, Segment(selector, 0, 0, 0))
            return
        p = self.privilege
        descriptor = p.descriptor(selector)
        rpl = p.kernel_selector(selector) & 3
        if seg == _SS:
            if rpl or descriptor.dpl or not descriptor.writable_data:
                raise GuestFault(_GP, error)
            if not descriptor.present:
                raise GuestFault(Vector.SS, error)
            loaded = p.loaded(selector, descriptor)
            p.raise_descriptor(selector)
            self.cpu.set_segment(_SS, loaded)
            return
        if not descriptor.readable or (not descriptor.conforming and rpl > descriptor.dpl):
            raise GuestFault(_GP, error)
        if not descriptor.present:
            raise GuestFault(Vector.NP, error)
        loaded = p.loaded(selector, descriptor)
        p.raise_descriptor(selector)
        self.cpu.set_segment(seg, Segment(selector, loaded.base, loaded.limit, loaded.flags))

    def reload(self, local: bool, index: int) -> None:
        """A table entry was rewritten: segments in use that came from it get the new descriptor.

        One that the register could not be loaded with leaves the register as it is; the guest loads
        another selector before it takes a descriptor away.
        """
        for seg in Seg:
            selector = self.cpu.segment(seg).selector
            if selector >> 3 != index or bool(selector & 4) != local or not selector & 0xFFFC:
                continue
            try:
                if seg == _CS:
                    self._reload_code(selector)
                else:
                    self.load_segment(seg, selector & ~3 if seg == _SS else selector)
            except GuestFault:
                continue

    def _reload_code(self, selector: int) -> None:
        p = self.privilege
        code = p.descriptor(selector)
        if code.is_code and code.present and (code.conforming or code.dpl == p.cpl()):
            loaded = p.loaded(selector, code)
            self.cpu.set_segment(_CS, Segment(selector, loaded.base, loaded.limit, loaded.flags))

    # -- taking over ------------------------------------------------------------------------

    def deprivilege(self) -> None:
        """Move the running kernel from ring 0 to ring 1: the segments it has keep working.

        EFLAGS is the caller's business.
        """
        cpu = self.cpu
        self.privilege.raise_table()
        for seg in Seg:
            segment = cpu.segment(seg)
            flags = segment.flags
            if flags & 1 << 15 and not flags & 0x6000:
                flags |= KERNEL_RING << 13
            selector = segment.selector & ~3 | KERNEL_RING if seg in (_CS, _SS) else segment.selector
            cpu.set_segment(seg, Segment(selector, segment.base, segment.limit, flags))
        self.privilege.virtual_idt = cpu.idt
        self.privilege.running_task = cpu.tr
        self.privilege.mirror.registers(cpu.idt)
        self.mirror_fast_return()
        cpu.flush_tlb()
