# SPDX-License-Identifier: GPL-2.0-only
"""What is under test, as far as the suite can see it: a machine with a ROM in it.

Whoever has a hypervisor of their own writes these ten methods and a class that makes it, and names the class
with ``--backend package.module:Class``, or registers it as an entry point of the group ``vmi.backends`` and
names that. Nothing else of the suite knows what runs the guest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from vmi.conformance.layout import Paging
from vmi.errors import VmiError

#: The registers that a case sets and looks at; EFLAGS as the guest's own PUSHF natively shows it.
REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags")

#: What can execute the guest on our own machine, see docs/engine.md.
ENGINES = ("accelerated", "python")


@dataclass(frozen=True)
class Environment:
    """How the guest runs.

    :ivar paging: what the guest itself has switched on.
    :ivar mmu: what the hypervisor does about it, in its own words; "" where there is no choice.
    :ivar cpus: processors.
    :ivar engine: one of :data:`ENGINES`; "" for the one that there is.
    """

    paging: Paging = Paging.OFF
    mmu: str = ""
    cpus: int = 1
    engine: str = ""

    def __str__(self) -> str:
        several = f", {self.cpus} processors" if self.cpus > 1 else ""
        engine = f", {self.engine}" if self.engine else ""
        return f"{self.paging.value} {self.mmu}".rstrip() + several + engine


class End(StrEnum):
    """How a run of the guest ended."""

    DONE = "done"  # it wrote to port F4h
    CRASHED = "crashed"  # triple fault, a jump to nowhere, an instruction that nobody can do
    TIMEOUT = "timeout"
    RESET = "reset"
    OFF = "off"
    HALTED = "halted"  # it waits for an interrupt that never comes
    REFUSED = "refused"  # the hypervisor ended it with a reason
    UNKNOWN = "unknown"  # the subject itself went wrong


class Stop(NamedTuple):
    """The end of a run, with a sentence where there is one."""

    end: End
    reason: str = ""


class Subject(Protocol):
    """A machine with a ROM plugged in, that of the suite's guest. Its methods may raise VmiError only."""

    name: str

    def reset(self) -> None:
        """Power on: RAM as it was made, the ROM in its place between C0000h and DFFFFh, no VMI_Init yet.

        The processor is in flat protected mode at the most privileged level, paging and interrupts off. No
        device interrupts it before the guest has asked for that.
        """

    def read(self, address: int, size: int) -> bytes:
        """Guest-physical memory."""

    def write(self, address: int, data: bytes) -> None:
        """Store into guest-physical memory; code there is seen by the processor."""

    def registers(self) -> dict[str, int]:
        """All of :data:`REGISTERS`, between two instructions."""

    def set_registers(self, values: Mapping[str, int]) -> None:
        """Set some of :data:`REGISTERS`."""

    def run(self, limit_ns: int) -> Stop:
        """Go on from EIP until the guest writes to port F4h, or for so long in the guest's time."""

    def exits(self) -> int:
        """How often the guest has left for its hypervisor because it is de-privileged, from power-on."""

    def interrupt(self, line: int) -> None:
        """Pulse an ISA interrupt line, 0 to 15."""

    def mark(self) -> Callable[[], None] | None:
        """Keep the machine as it is between two runs; gives what brings it back, None if it can't be kept.

        It makes the suite quicker, nothing else. What it gives is called again and again, after a
        :meth:`reset` too.
        """

    def facts(self) -> dict[str, str]:
        """What it is, for the report."""


class NoSubject(VmiError):
    """There can't be such a machine for an environment; the sentence says why."""


#: Makes a subject for an environment; raises VmiError where there can't be one, whose sentence is then the
#: reason why the cases there are skipped. One that is named with ``--backend`` may take a ROM's image as a
#: second argument, which is then that of ``--rom``.
Maker = Callable[[Environment], Subject]
