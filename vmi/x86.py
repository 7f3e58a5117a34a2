# SPDX-License-Identifier: GPL-2.0-only
"""The i386 architecture's own words: flags, control bits, selectors, descriptors, gates, TSS, page walk.

Pure codecs over numbers and bytes: nothing here knows an emulator. Source: Intel 64 and IA-32
Architectures Software Developer's Manual, volume 3A, chapters 2 to 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from vmi.memory import GuestPhys, PhysicalMemory

U32 = 0xFFFFFFFF


class Eflags(IntEnum):
    """EFLAGS bits."""

    CF = 1 << 0
    ONE = 1 << 1
    PF = 1 << 2
    AF = 1 << 4
    ZF = 1 << 6
    SF = 1 << 7
    TF = 1 << 8
    IF = 1 << 9
    DF = 1 << 10
    OF = 1 << 11
    IOPL = 3 << 12
    NT = 1 << 14
    RF = 1 << 16
    VM = 1 << 17
    AC = 1 << 18
    VIF = 1 << 19
    VIP = 1 << 20
    ID = 1 << 21


ARITHMETIC_FLAGS = 0x8D5  # CF PF AF ZF SF OF
IF_BIT = 0x200
IOPL_MASK = 0x3000
IOPL_SHIFT = 12


class Cr0(IntEnum):
    """CR0 bits."""

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class Cr4(IntEnum):
    """CR4 bits that this machine knows."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10


class Vector(IntEnum):
    """Exception vectors."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19


HAS_ERROR_CODE = frozenset({Vector.DF, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.PF, Vector.AC})
CONTRIBUTORY = frozenset({Vector.DE, Vector.TS, Vector.NP, Vector.SS, Vector.GP})


class Seg(IntEnum):
    """Segment registers in the machine's encoding order."""

    ES = 0
    CS = 1
    SS = 2
    DS = 3
    FS = 4
    GS = 5


class GuestFault(Exception):
    """A fault that the guest itself must see: a vector with its error code, CR2 for #PF."""

    def __init__(self, vector: int, error: int = 0, address: int = 0) -> None:
        super().__init__(f"#{Vector(vector).name}({error:#x})")
        self.vector = vector
        self.error = error
        self.address = address


@dataclass(frozen=True)
class Descriptor:
    """A segment or system descriptor, from its two dwords."""

    low: int
    high: int

    @property
    def base(self) -> int:
        """Linear base address."""
        return (self.low >> 16) | ((self.high & 0xFF) << 16) | (self.high & 0xFF000000)

    @property
    def limit(self) -> int:
        """Limit in bytes (granularity applied)."""
        limit = (self.low & 0xFFFF) | (self.high & 0xF0000)
        return (limit << 12) | 0xFFF if self.high & 1 << 23 else limit

    @property
    def type(self) -> int:
        """The four type bits."""
        return (self.high >> 8) & 15

    @property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return (self.high >> 13) & 3

    @property
    def present(self) -> bool:
        """P bit."""
        return bool(self.high & 1 << 15)

    @property
    def is_segment(self) -> bool:
        """S bit: code or data, not a system descriptor."""
        return bool(self.high & 1 << 12)

    @property
    def is_code(self) -> bool:
        """Executable code segment."""
        return self.is_segment and bool(self.high & 1 << 11)

    @property
    def conforming(self) -> bool:
        """Conforming code segment."""
        return self.is_code and bool(self.high & 1 << 10)

    @property
    def writable_data(self) -> bool:
        """Writable data segment (fit for a stack)."""
        return self.is_segment and self.high & 0xA00 == 0x200

    @property
    def readable(self) -> bool:
        """Data, or code that may be read."""
        return self.is_segment and (not self.is_code or bool(self.high & 1 << 9))

    def with_dpl(self, dpl: int) -> Descriptor:
        """The same descriptor with another DPL."""
        return Descriptor(self.low, self.high & ~0x6000 | dpl << 13)


TSS_AVAILABLE_32 = 9
TSS_BUSY_32 = 11
LDT_TYPE = 2


class GateType(IntEnum):
    """IDT gate types."""

    TASK = 5
    INTERRUPT_16 = 6
    TRAP_16 = 7
    INTERRUPT_32 = 14
    TRAP_32 = 15


@dataclass(frozen=True)
class Gate:
    """An IDT gate, from its two dwords."""

    low: int
    high: int

    @property
    def offset(self) -> int:
        """Handler offset (16-bit gates: low half only)."""
        return (self.high & 0xFFFF0000 if self.type & 8 else 0) | (self.low & 0xFFFF)

    @property
    def selector(self) -> int:
        """Code selector, or TSS selector of a task gate."""
        return self.low >> 16

    @property
    def type(self) -> int:
        """Type with the S bit, so that only system gates match :class:`GateType`."""
        return (self.high >> 8) & 31

    @property
    def dpl(self) -> int:
        """Privilege needed for a software interrupt."""
        return (self.high >> 13) & 3

    @property
    def present(self) -> bool:
        """P bit."""
        return bool(self.high & 1 << 15)


class PfError(IntEnum):
    """#PF error code bits."""

    P = 1
    W = 2
    U = 4
    RSVD = 8
    I = 16  # noqa: E741 - the architecture's own name


PTE_P, PTE_RW, PTE_US, PTE_A, PTE_D, PTE_PS, PTE_G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100


@dataclass(frozen=True)
class Paging:
    """The control registers a translation depends on."""

    cr0: int
    cr3: int
    cr4: int


def translate(
    memory: PhysicalMemory,
    paging: Paging,
    linear: int,
    *,
    write: bool = False,
    user: bool = False,
    store: Callable[[int, int], None] | None = None,
) -> GuestPhys:
    """Guest-physical address of a linear address, as the MMU would find it.

    Two-level tables with 4 MiB pages, and PAE tables (without NX). ``store(address, value)``
    receives the accessed and dirty bits to set in 32-bit table words; without it none are set.

    :raises GuestFault: #PF with the architecture's error code.
    """
    linear &= U32
    if not paging.cr0 & Cr0.PG:
        return GuestPhys(linear)
    error = (PfError.W if write else 0) | (PfError.U if user else 0)
    wide = bool(paging.cr4 & Cr4.PAE)
    entries: list[tuple[int, int]] = []
    if wide:
        pdpte = memory.u32((paging.cr3 & ~31) + 8 * (linear >> 30))
        if not pdpte & PTE_P:
            raise GuestFault(Vector.PF, error, linear)
        address = (pdpte & ~0xFFF) + 8 * ((linear >> 21) & 511)
        page_bits = 21
    else:
        address = (paging.cr3 & ~0xFFF) + 4 * (linear >> 22)
        page_bits = 22
    entry = memory.u32(address)
    if not entry & PTE_P:
        raise GuestFault(Vector.PF, error, linear)
    entries.append((address, entry))
    rights = entry
    if entry & PTE_PS and (wide or paging.cr4 & Cr4.PSE):
        base = entry & ~((1 << page_bits) - 1)
        offset = linear & ((1 << page_bits) - 1)
    else:
        index = (linear >> 12) & (511 if wide else 1023)
        address = (entry & ~0xFFF) + (8 if wide else 4) * index
        entry = memory.u32(address)
        if not entry & PTE_P:
            raise GuestFault(Vector.PF, error, linear)
        entries.append((address, entry))
        rights &= entry
        base, offset = entry & ~0xFFF, linear & 0xFFF
    protected = (user and not rights & PTE_US) or (
        write and not rights & PTE_RW and (user or bool(paging.cr0 & Cr0.WP))
    )
    if protected:
        raise GuestFault(Vector.PF, error | PfError.P, linear)
    if store is not None:
        for number, (where, value) in enumerate(entries):
            leaf = number == len(entries) - 1
            wanted = value | PTE_A | (PTE_D if leaf and write else 0)
            if wanted != value:
                store(where, wanted)
    return GuestPhys(base | offset)
