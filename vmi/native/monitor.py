# SPDX-License-Identifier: GPL-2.0-only
"""The seat from which something outside the machine sees its events first: all that a hypervisor needs."""

from __future__ import annotations

from typing import Protocol

from vmi.native.interrupts import Event


class Monitor(Protocol):
    """What may stand between the machine's events and the guest.

    One with an attribute ``lets_pass`` that is true has told the CPU's :attr:`~vmi.native.cpu.Cpu.straight`
    which events it need not see.
    """

    def event(self, event: Event) -> bool:
        """See an event first; True if it was dealt with."""

    def call_out(self, vector: int) -> bool:
        """See an INT n before it is made an event; True if it was dealt with."""

    def accepts_interrupts(self) -> bool:
        """The guest would take an external interrupt now."""

    def interrupt_waits(self, waits: bool) -> None:
        """An interrupt is waiting that the guest does not accept yet (or no longer waits)."""

    def retry_after(self) -> int | None:
        """How a waiting interrupt is offered again: 0 as on the bare machine, n after n instructions.

        None when the monitor will call :meth:`~vmi.native.machine.Machine.take_interrupt` itself, or
        end a halt.
        """

    def deliver(self, event: Event) -> None:
        """Deliver an event to the guest."""

    def leave_processor(self) -> None:
        """The processor that runs makes room for another one on the CPU."""

    def enter_processor(self, number: int) -> None:
        """The CPU now holds the state of the processor with this number."""

    def begin_processor(self) -> bool:
        """The processor that runs begins at a start-up message; False to leave it to the message."""

    def most_instructions(self) -> int | None:
        """With several processors, how many instructions may be run before this is asked again."""

    def memory_write(self, address: int, size: int, value: int) -> bool:
        """See a store to ROM or to where no RAM is; True if it was dealt with."""
