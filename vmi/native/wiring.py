# SPDX-License-Identifier: GPL-2.0-only
"""Between the CPU and the machine around it: what the CPU asks for, and how one of its runs ends."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol


class Stop(Enum):
    """Why :meth:`Cpu.run` came back."""

    BUDGET = auto()  # the instruction budget is used up, or the owner asked for a stop
    HALTED = auto()  # HLT
    WINDOW = auto()  # interrupts became acceptable
    UNMAPPED = auto()  # instruction fetch from where no memory is
    FAILED = auto()  # the guest did something that the library can't do, see :attr:`Cpu.failure`


class Bus(Protocol):
    """What the CPU needs from the machine around it. All of it may be called while it runs."""

    def exception(self, vector: int, is_int: bool, error: int) -> None:
        """An exception or INT: EIP is at the instruction, or behind an INT."""

    def port_read(self, port: int, size: int) -> int:
        """IN of ``size`` bytes."""

    def port_write(self, port: int, size: int, value: int) -> None:
        """OUT of ``size`` bytes."""

    def memory_read(self, address: int, size: int) -> int:
        """Load from where no RAM is."""

    def memory_write(self, address: int, size: int, value: int) -> None:
        """Store to where no RAM is, or into the ROM area."""

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX of CPUID with ``leaf`` in EAX and ``subleaf`` in ECX."""

    def tsc(self) -> int:
        """Time stamp counter, for RDTSC."""

    def read_msr(self, index: int) -> int | None:
        """RDMSR at CPL 0; None if there is no such register."""

    def write_msr(self, index: int, value: int) -> bool:
        """WRMSR at CPL 0; False if there is no such register, or it does not take the value."""


class Pager(Protocol):
    """Who provides the page tables that a CPU uses, if not its guest."""

    def page_fault(self, linear: int, error: int) -> int | None:
        """The tables don't allow an access: error code of the guest's page fault, None to try again."""

    def control_changed(self) -> None:
        """CR0, CR3 or CR4 was loaded."""


class StoreWatch(Protocol):
    """Who is told of stores into pages of RAM. Nothing it does may change what the guest sees."""

    def begin_run(self) -> None:
        """The CPU is about to execute instructions."""

    def control_changed(self) -> None:
        """CR0, CR3 or CR4 was loaded."""

    def storing(self, address: int, size: int) -> None:
        """The instruction at EIP is about to store ``size`` bytes at a guest-physical address."""


class CodeWatch(Protocol):
    """Who looks at code before it is executed."""

    def code_appeared(self, linear: int, size: int) -> bool:
        """The CPU is about to execute a block of code that it knows nothing of yet, at a linear address.

        It has not executed it with the present privilege, or what it had executed there was overwritten,
        or the code was forgotten. The block ends with its first branch, or sooner, after ``size`` bytes. None
        of it has been executed; True for a call of :meth:`change_code` before any of it is.
        """

    def change_code(self) -> None:
        """The CPU does not run, and code may be changed."""
