# SPDX-License-Identifier: GPL-2.0-only
"""What the CPU asks the board for while it runs: ports, device memory, CPUID, time, special registers.

Each request is counted by reason, and logged if somebody wants a log. A device may ask for an earlier
event than the run of the CPU is planned for, so each access to one is followed by a look at that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING

from vmi.memory import PhysicalMemory
from vmi.native.board import Board
from vmi.native.cpu import Cpu
from vmi.native.cpuid import CpuModel
from vmi.native.monitor import Monitor
from vmi.native.msr import MsrFile
from vmi.native.privilege import Privilege
from vmi.native.turns import Turns
from vmi.x86 import GuestFault

if TYPE_CHECKING:
    from vmi.native.event_log import EventLog

# What an access to a port takes: a cycle of the ISA bus, as kernels that wait by such accesses count on.
PORT_NS = 1_000


class Traffic(ABC):
    """The machine's answers to its CPU, less exceptions; see :class:`vmi.native.wiring.Bus`.

    :ivar log: None for no log.
    """

    memory: PhysicalMemory
    board: Board
    cpu: Cpu
    model: CpuModel
    msr: MsrFile
    privilege: Privilege
    monitor: Monitor | None
    exits: Counter[str]
    turns: Turns | None  # with several processors
    log: EventLog | None = None

    @abstractmethod
    def meet_deadline(self, ns: int = 0) -> None:
        """End the run of the CPU in time for an event that is due earlier than planned.

        :param ns: how long what may have brought it about takes.
        """

    @abstractmethod
    def spend(self, ns: int) -> None:
        """Let time pass without instructions; the run in progress ends as planned, or at once."""

    def nobody_looks(self) -> bool:
        """No one wants to see each event, so that those that are the guest's may go straight to it."""
        monitor = self.monitor
        return (
            self.log is None
            and self.cpu.store_watch is None
            and (monitor is None or getattr(monitor, "lets_pass", False))
            and type(self.exits) is Counter
        )

    def port_read(self, port: int, size: int) -> int:
        """See :class:`vmi.native.wiring.Bus`."""
        try:
            self.privilege.check_port(port, size)
        except GuestFault as fault:
            self.cpu.refuse(fault)
            return 0
        self.exits["port read"] += 1
        value = self.board.ports.read(port, size)
        if self.log is not None:
            self.log.port_read(port, size, value)
        self.meet_deadline(PORT_NS)
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        """See :class:`vmi.native.wiring.Bus`."""
        try:
            self.privilege.check_port(port, size)
        except GuestFault as fault:
            self.cpu.refuse(fault)
            return
        self.exits["port write"] += 1
        if self.log is not None:
            self.log.port_write(port, size, value)
        self.board.ports.write(port, size, value)
        self.meet_deadline(PORT_NS)

    def memory_read(self, address: int, size: int) -> int:
        """See :class:`vmi.native.wiring.Bus`."""
        self.exits["device memory read"] += 1
        value = self.board.memory.read(address, size)
        self.meet_deadline()
        if self.log is not None:
            self.log.memory_read(address, size, value)
        return value

    def memory_write(self, address: int, size: int, value: int) -> None:
        """See :class:`vmi.native.wiring.Bus`: writes to ROM or to nowhere are lost."""
        if self.monitor is not None and self.monitor.memory_write(address, size, value):
            return
        if self.log is not None:
            self.log.memory_write(address, size, value)
        if address < self.memory.size:
            self.exits["ROM write"] += 1
            return
        self.exits["device memory write"] += 1
        self.board.memory.write(address, size, value)
        self.meet_deadline()

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """See :class:`vmi.native.wiring.Bus`."""
        if self.turns is not None:
            current = self.turns.current
            return self.model.cpuid(leaf, subleaf, apic=current.lapic.enabled, apic_id=current.number)
        lapic = self.board.lapic
        return self.model.cpuid(leaf, subleaf, apic=lapic is not None and lapic.enabled)

    def tsc(self) -> int:
        """See :class:`vmi.native.wiring.Bus`."""
        return self.msr.tsc()

    def read_msr(self, index: int) -> int | None:
        """See :class:`vmi.native.wiring.Bus`."""
        self.exits["MSR read"] += 1
        value = self.msr.read(index)
        if self.log is not None:
            self.log.msr_read(index, value)
        return value

    def write_msr(self, index: int, value: int) -> bool:
        """See :class:`vmi.native.wiring.Bus`."""
        self.exits["MSR write"] += 1
        taken = self.msr.write(index, value)
        if self.log is not None:
            self.log.msr_write(index, value, taken)
        return taken
