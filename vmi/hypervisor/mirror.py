# SPDX-License-Identifier: GPL-2.0-only
"""What the hypervisor keeps a ROM informed of, so that the ROM can answer the guest without calling out.

Nothing is ever read back from there: what the guest does to it misleads only the guest's own reads.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from vmi.hypervisor.mmu import Mmu
from vmi.native.cpu import Cpu
from vmi.native.registers import TableRegister
from vmi.native.stamped import Stamped

_LDT_PRESENT = 1 << 15


class Told(Enum):
    """One thing that a ROM may want to know; 32 bits if nothing else is said."""

    CR0 = auto()
    CR2 = auto()
    CR3 = auto()
    CR4 = auto()
    GDT = auto()  # linear base of the table in use
    GDT_LIMIT = auto()
    IDT = auto()
    IDT_LIMIT = auto()
    LDT = auto()  # linear base, NO_TABLE if none is loaded
    USER_CS = auto()  # SYSEXIT's selectors, 0 while they are not known
    USER_SS = auto()
    HERTZ = auto()  # cycles a second, 64 bits
    REAL = auto()  # what the real counter is more than the time stamp counter, modulo 2**64
    AVAILABLE = auto()  # the same of the available counter
    STOLEN = auto()  # the stolen counter, 64 bits

    # looked up for each page fault, and an enumeration's own hash is a function in Python
    __hash__ = object.__hash__


NO_TABLE = 0xFFFFFFFF  # no address of a table: entries there would not be aligned

_CONTROL = {0: Told.CR0, 2: Told.CR2, 3: Told.CR3, 4: Told.CR4}


class Listener(Protocol):
    """Who is told."""

    def tell(self, what: Told, value: int) -> None:
        """Something has a new value."""


class Mirror(Stamped):
    """Tells a listener of one CPU's registers, as the guest knows them."""

    def __init__(self, cpu: Cpu, mmu: Mmu, listener: Listener) -> None:
        self._cpu, self._mmu = cpu, mmu
        self._tell = listener.tell

    def control(self, number: int) -> None:
        """CR0, CR2, CR3 or CR4 was loaded."""
        self._tell(_CONTROL[number], self._cpu.cr2 if number == 2 else self._mmu.read(number))

    def gdt(self) -> None:
        """GDTR was loaded."""
        self._tell(Told.GDT, self._cpu.gdt.base)
        self._tell(Told.GDT_LIMIT, self._cpu.gdt.limit)

    def idt(self, table: TableRegister) -> None:
        """The guest's IDTR was loaded."""
        self._tell(Told.IDT, table.base)
        self._tell(Told.IDT_LIMIT, table.limit)

    def ldt(self) -> None:
        """LDTR was loaded."""
        ldt = self._cpu.ldt
        self._tell(Told.LDT, ldt.base if ldt.flags & _LDT_PRESENT else NO_TABLE)

    def user_segments(self, code: int, stack: int) -> None:
        """SYSEXIT goes to these selectors, 0 if that isn't known."""
        self._tell(Told.USER_CS, code)
        self._tell(Told.USER_SS, stack)

    def registers(self, idt: TableRegister) -> None:
        """Any of them may have changed."""
        for number in _CONTROL:
            self.control(number)
        self.gdt()
        self.idt(idt)
        self.ldt()
