# SPDX-License-Identifier: GPL-2.0-only
"""The i386 architecture's own words: flags, control bits, selectors, descriptors, gates, TSS, page walk.

Pure codecs over numbers and bytes: nothing here knows an emulator. Source: Intel 64 and IA-32
Architectures Software Developer's Manual, volume 3A, chapters 2 to 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import NamedTuple

from vmi.memory import PAGE_SIZE, GuestPhys, PhysicalMemory

U32 = 0xFFFFFFFF
GPR32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")  # as instructions number them


# Bits are plain numbers, since Python looks up a member of an enumeration by a function, which takes many
# times as long, and there are dozens of them on the way of each event.


class Eflags:
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


class Cr0:
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


class Cr4:
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
    """A segment or system descriptor, from its two dwords; what they mean is found out once."""

    low: int
    high: int

    @cached_property
    def base(self) -> int:
        """Linear base address."""
        return (self.low >> 16) | ((self.high & 0xFF) << 16) | (self.high & 0xFF000000)

    @cached_property
    def limit(self) -> int:
        """Limit in bytes (granularity applied)."""
        limit = (self.low & 0xFFFF) | (self.high & 0xF0000)
        return (limit << 12) | 0xFFF if self.high & 1 << 23 else limit

    @cached_property
    def type(self) -> int:
        """The four type bits."""
        return (self.high >> 8) & 15

    @cached_property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return (self.high >> 13) & 3

    @cached_property
    def present(self) -> bool:
        """P bit."""
        return bool(self.high & 1 << 15)

    @cached_property
    def is_segment(self) -> bool:
        """S bit: code or data, not a system descriptor."""
        return bool(self.high & 1 << 12)

    @cached_property
    def is_code(self) -> bool:
        """Executable code segment."""
        return self.is_segment and bool(self.high & 1 << 11)

    @cached_property
    def conforming(self) -> bool:
        """Conforming code segment."""
        return self.is_code and bool(self.high & 1 << 10)

    @cached_property
    def writable_data(self) -> bool:
        """Writable data segment (fit for a stack)."""
        return self.is_segment and self.high & 0xA00 == 0x200

    @cached_property
    def readable(self) -> bool:
        """Data, or code that may be read."""
        return self.is_segment and (not self.is_code or bool(self.high & 1 << 9))

    def with_dpl(self, dpl: int) -> Descriptor:
        """The same descriptor with another DPL."""
        return _descriptor(self.low, self.high & ~0x6000 | dpl << 13)

    @staticmethod
    def parse(data: bytes) -> Descriptor:
        """From the 8 bytes of a table's entry."""
        return _parse_descriptor(data)


_descriptor = lru_cache(maxsize=4096)(Descriptor)


@lru_cache(maxsize=4096)
def _parse_descriptor(data: bytes) -> Descriptor:
    return Descriptor(int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little"))


D_BIT = 1 << 22  # of a descriptor's upper dword: 32-bit code or stack
TSS_AVAILABLE_32 = 9
TSS_BUSY_32 = 11
TSS_32 = (TSS_AVAILABLE_32, TSS_BUSY_32)
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

    @cached_property
    def offset(self) -> int:
        """Handler offset (16-bit gates: low half only)."""
        return (self.high & 0xFFFF0000 if self.type & 8 else 0) | (self.low & 0xFFFF)

    @cached_property
    def selector(self) -> int:
        """Code selector, or TSS selector of a task gate."""
        return self.low >> 16

    @cached_property
    def type(self) -> int:
        """Type with the S bit, so that only system gates match :class:`GateType`."""
        return (self.high >> 8) & 31

    @cached_property
    def dpl(self) -> int:
        """Privilege needed for a software interrupt."""
        return (self.high >> 13) & 3

    @cached_property
    def present(self) -> bool:
        """P bit."""
        return bool(self.high & 1 << 15)

    @staticmethod
    def parse(data: bytes) -> Gate:
        """From the 8 bytes of a table's entry."""
        return _parse_gate(data)


@lru_cache(maxsize=1024)
def _parse_gate(data: bytes) -> Gate:
    return Gate(int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little"))


class PfError:
    """#PF error code bits."""

    P = 1
    W = 2
    U = 4
    RSVD = 8
    I = 16  # noqa: E741 - the architecture's own name


PTE_P, PTE_RW, PTE_US, PTE_A, PTE_D, PTE_PS, PTE_G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
PTE_NX = 1 << 63
PTE_FRAME = 0x000F_FFFF_FFFF_F000  # the address bits of an entry of 8 bytes
EFER_NXE = 1 << 11

_NO_SUCH_ADDRESS = 0xFFF << 40  # the processor has 40 address lines
_IGNORED_WIDE = 0x7FF << 52  # bits that IA-32e paging leaves to software; PAE paging wants zeros


class Paging(NamedTuple):
    """The registers a translation depends on.

    :ivar a20: mask of address line 20 for all addresses, -1 while its gate is open.
    """

    cr0: int
    cr3: int
    cr4: int
    efer: int = 0
    a20: int = -1


class Translation(NamedTuple):
    """What a walk of the page tables found, as it is after the walk has set its bits.

    :ivar physical: guest-physical address of the byte.
    :ivar directory: the page-directory entry.
    :ivar entry: the entry that maps the page: the directory's for a large page.
    :ivar rights: PTE_RW and PTE_US as far as all levels grant them, and PTE_NX if any has it.
    :ivar large: a page of 4 MiB, or 2 MiB with PAE.
    """

    physical: int
    directory: int
    entry: int
    rights: int
    large: bool


def walk(
    memory: PhysicalMemory,
    paging: Paging,
    linear: int,
    *,
    write: bool = False,
    user: bool = False,
    fetch: bool = False,
    store: Callable[[int, int], None] | None = None,
    pointers: Sequence[int] | None = None,
) -> Translation:
    """Find the page of a linear address as the CPU core does, while paging is on.

    ``store(address, value)`` receives the accessed and dirty bits to set in 32-bit table words; without
    it none are set. Tables where no RAM is read as all ones.

    :param pointers: the four entries of PAE's top level, instead of those in memory.
    :raises GuestFault: #PF with the architecture's error code.
    """
    wide = bool(paging.cr4 & Cr4.PAE)
    nx = bool(paging.efer & EFER_NXE)
    error = (
        (PfError.W if write else 0) | (PfError.U if user else 0) | (PfError.I if fetch and wide and nx else 0)
    )
    a20 = paging.a20
    reserved = _NO_SUCH_ADDRESS | (0 if nx else PTE_NX)
    if wide:
        number = linear >> 30
        pointer = memory.u64((paging.cr3 & ~31) + 8 * number & a20) if pointers is None else pointers[number]
        if not pointer & PTE_P:
            raise GuestFault(Vector.PF, error, linear)
        reserved |= _IGNORED_WIDE
        if pointer & (reserved | PTE_NX):
            raise GuestFault(Vector.PF, error | PfError.RSVD | PfError.P, linear)
        at = (pointer & PTE_FRAME) + (linear >> 18 & 0xFF8) & a20
        entry = memory.u64(at)
    else:
        at = (paging.cr3 & ~0xFFF) + (linear >> 20 & 0xFFC) & a20
        entry = memory.u32(at)
    if not entry & PTE_P:
        raise GuestFault(Vector.PF, error, linear)
    if wide and entry & reserved:
        raise GuestFault(Vector.PF, error | PfError.RSVD | PfError.P, linear)
    rights, directory = entry, entry
    large = bool(entry & PTE_PS and (wide or paging.cr4 & Cr4.PSE))
    if large:
        size = 2 << 20 if wide else 4 << 20
        if wide:
            reserved |= 0x1FE000
        else:  # bits 13 to 20 are those above 31 of the address
            reserved, entry = 0x200000, entry | (entry & 0x1FE000) << 19
    else:
        if not entry & PTE_A:
            directory |= PTE_A
            if store is not None:
                store(at, directory & U32)
        size = PAGE_SIZE
        if wide:
            at = (entry & PTE_FRAME) + (linear >> 9 & 0xFF8) & a20
            entry = memory.u64(at)
        else:
            at = (entry & ~0xFFF) + (linear >> 10 & 0xFFC) & a20
            entry, reserved = memory.u32(at), 0
        if not entry & PTE_P:
            raise GuestFault(Vector.PF, error, linear)
        rights = rights & entry & ~PTE_NX | (rights | entry) & PTE_NX
    if entry & reserved:
        raise GuestFault(Vector.PF, error | PfError.RSVD | PfError.P, linear)
    if (
        (user and not rights & PTE_US)
        or (write and not rights & PTE_RW and (user or paging.cr0 & Cr0.WP))
        or (fetch and wide and rights & PTE_NX)
    ):
        raise GuestFault(Vector.PF, error | PfError.P, linear)
    wanted = entry | PTE_A | (PTE_D if write else 0)
    if wanted != entry:
        entry = wanted
        if store is not None:
            store(at, entry & U32)
    physical = (entry & PTE_FRAME & ~(size - 1)) + (linear & size - 1) & a20
    rights &= PTE_RW | PTE_US | PTE_NX
    return Translation(physical, entry if large else directory, entry, rights, large)


def translate(
    memory: PhysicalMemory,
    paging: Paging,
    linear: int,
    *,
    write: bool = False,
    user: bool = False,
    store: Callable[[int, int], None] | None = None,
) -> GuestPhys:
    """Guest-physical address of a linear address, see :func:`walk`; the same address without paging.

    :raises GuestFault: #PF with the architecture's error code.
    """
    linear &= U32
    if not paging.cr0 & Cr0.PG:
        return GuestPhys(linear & paging.a20)
    return GuestPhys(walk(memory, paging, linear, write=write, user=user, store=store).physical)
