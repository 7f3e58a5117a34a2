# SPDX-License-Identifier: GPL-2.0-only
"""A domain's part in how processors begin and take turns: what it does as the machine's monitor for that.

A processor that begins in real mode is not de-privileged there, see :mod:`vmi.hypervisor.processors`. It runs
on until it has switched protection on, and from then on a few instructions at a time, up to its first 32-bit
code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from iced_x86 import Instruction

from vmi.hypervisor.emulate import Emulator
from vmi.hypervisor.operands import M
from vmi.hypervisor.personality import Personality
from vmi.hypervisor.processors import Processors
from vmi.hypervisor.timer import VirtualTimer
from vmi.memory import PAGE_SIZE
from vmi.native.machine import Machine
from vmi.x86 import D_BIT, Cr0, GuestFault, Seg

_FEW = 2  # instructions; one that stores into its own code is done twice, and has to come to an end


class Beginning(ABC):
    """See :class:`vmi.hypervisor.domain.Domain`."""

    machine: Machine
    rom: Personality
    processors: Processors
    emulator: Emulator
    taken: bool
    active: bool

    @abstractmethod
    def compress(self) -> None:
        """De-privilege the processor that runs."""

    @abstractmethod
    def instruction(self) -> Instruction:
        """The instruction at EIP; an invalid one if nothing is mapped there."""

    @property
    def timer(self) -> VirtualTimer:
        """The timer of the virtual CPU that runs."""
        return self.processors.current.timer

    def publish(self) -> None:
        """Tell the ROM of the counters of the virtual CPU that runs."""
        self.timer.publish()

    def interrupt_waits(self, waits: bool) -> None:
        """See :class:`vmi.native.monitor.Monitor`."""
        if self.active:
            self.rom.set_pending(waits)

    def memory_write(self, address: int, size: int, value: int) -> bool:
        """See :class:`vmi.native.monitor.Monitor`: a ROM that runs in place has its data page in the bay."""
        if not self.active or not self.rom.holds_data(address):
            return False
        self.machine.memory.write(address, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        self.machine.rom_area.open(address & -PAGE_SIZE)  # this was the last that comes here
        return True

    def leave_processor(self) -> None:
        """See :class:`vmi.native.monitor.Monitor`."""
        if self.taken:
            self.processors.leave(active=self.active)

    def enter_processor(self, number: int) -> None:
        """See :class:`vmi.native.monitor.Monitor`."""
        self.processors.current = self.processors.all[number]
        if self.taken:
            self.processors.enter(number)

    def begin_processor(self) -> bool:
        """See :class:`vmi.native.monitor.Monitor`."""
        return self.taken and self.processors.begin()

    def most_instructions(self) -> int | None:
        """See :class:`vmi.native.monitor.Monitor`: few for one that may get to 32-bit code by the next."""
        cpu = self.machine.cpu
        if not self.taken or self.active or not cpu.cr(0) & Cr0.PE:
            return None
        if not cpu.segment(Seg.CS).flags & D_BIT:
            return _FEW
        self.compress()
        return None

    def control_changed(self) -> None:
        """A processor that is not de-privileged yet may be in protected mode from the next instruction on."""
        if self.taken and not self.active:
            self.machine.cpu.stop_soon()

    def enter_raised(self) -> bool:
        """#GP of a far jump from ring 0 to a code segment that was raised for another processor: do it."""
        instruction = self.instruction()
        if instruction.mnemonic != M.JMP:
            return False
        try:
            if not self.emulator.far_branch(instruction):
                return False
        except GuestFault:
            return False
        self.compress()
        return True
