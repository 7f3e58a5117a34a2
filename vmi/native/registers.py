# SPDX-License-Identifier: GPL-2.0-only
"""The CPU's registers as a view on the emulator's own state structure.

Reading a register through the emulator's public functions costs microseconds; this view costs a
tenth of one. The offsets are those of the pinned library version, and :mod:`vmi.native.cpu` proves
each of them at start-up before anything relies on them.

The arithmetic flags are not here: the emulator computes them lazily, see :meth:`vmi.native.cpu.Cpu.eflags`.
"""

from __future__ import annotations

import ctypes
from array import array
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

from vmi.x86 import D_BIT, TSS_AVAILABLE_32, Seg

ENV_SIZE = 5568  # bytes of the state structure that a machine's state consists of

# offsets in dwords
AT_EIP = 128 // 4
AT_EFLAGS = 136 // 4
_CC_SRC = 152 // 4
AT_CC_OP = 168 // 4
_DF = 172 // 4
_HFLAGS = 176 // 4
_SEGS = 184 // 4
_LDT = 328 // 4
_TR = 352 // 4
_GDT = 376 // 4
_IDT = 400 // 4
AT_CR = 424 // 4
_EFER = 592 // 4
_FAST_CALL = 4800 // 4  # SYSENTER's CS, ESP and EIP
AT_ERROR_CODE = 5384 // 4
AT_IS_INT = 5388 // 4
_NEXT_EIP = 5392 // 4
_DR = 5400 // 4
AT_OLD_EXCEPTION = 5496 // 4
AT_RETURN_ADDRESS = 5560 // 4  # where in translated code the last page walk was asked for

#: What matters for the entry to a handler, from the start of the state structure: ESP, EIP, EFLAGS, mode
#: flags, selectors of CS and SS, base and flags of SS; TR, GDTR, IDTR and CR0; CR3 and CR4; EFER.
ENTRY = Struct("<32xI92xI4xI36xI28xI20xI4xI8xI96x88s8x16s128x4s")

#: The same for an entry in the middle of a run: ESP, EIP, EFLAGS and the arithmetic flags; mode flags with
#: ES, CS, SS and DS; TR, GDTR, IDTR and CR0; CR3 and CR4; EFER.
ENTRY_IN_RUN = Struct("<32xI92xI4xI12xI16x108s72x76s20x12s132x4s")
#: Of it: mode flags with ES, CS and SS.
MODE_AND_STACK = slice(172, 256)

CC_OP_EFLAGS = 1

TSS_AVAILABLE_16, TSS_BUSY_BIT = 1, 2
_PG_AND_WP = 1 << 31 | 1 << 16  # of CR0
# Found quickly: an enumeration's own members are looked up by a function.
_CS, _SS = Seg.CS, Seg.SS
_CS_PLACE = _SEGS + 6

_DATA = Struct(  # selector, base, limit and flags of ES, DS, FS and GS
    "<184xI4xI4xII48xI4xI4xIII4xI4xIII4xI4xII"
)
_DPL = 3 << 13  # of a descriptor's upper dword

HF_CPL = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
NO_MODE = ~(HF_CPL | HF_INHIBIT_IRQ | HF_CS32 | HF_SS32 | HF_ADDSEG)


@dataclass(frozen=True)
class Segment:
    """A segment register with its hidden part; ``flags`` is the descriptor's second dword."""

    selector: int
    base: int
    limit: int
    flags: int


NULL_SEGMENT = Segment(0, 0, 0, 0)

# segments and tables are looked at again and again, and making an object takes longer than finding it
_segment = lru_cache(maxsize=1024)(Segment)


@dataclass(frozen=True)
class TableRegister:
    """GDTR or IDTR: linear base and limit in bytes."""

    base: int
    limit: int


_table = lru_cache(maxsize=256)(TableRegister)


def segment_words(segment: Segment) -> array[int]:
    """A segment register with its hidden part, as the state structure has it: 6 dwords."""
    return array("I", (segment.selector, 0, segment.base, 0, segment.limit, segment.flags))


class Registers:
    """General, segment and table registers at a given host address of the state structure.

    :ivar a20_mask: what the gate of address line 20 leaves of an address.
    """

    a20_mask = 0xFFFFFFFF

    def __init__(self, address: int) -> None:
        self._raw = (ctypes.c_uint32 * (ENV_SIZE // 4)).from_address(address)
        self.raw = memoryview(self._raw).cast("B")  # the whole state structure
        self._d = self.raw.cast("I")
        self._told = ctypes.c_uint64()
        self._told_cr2 = memoryview(self._told).cast("B").cast("Q")

    def freeze(self) -> bytes:
        """The whole state structure, for :meth:`thaw` of the same CPU; only between runs.

        Cached translations of addresses are not in it, nor is memory.
        """
        return bytes(self._raw)

    def thaw(self, state: bytes) -> None:
        """Put back what :meth:`freeze` gave; only between runs."""
        ctypes.memmove(self._raw, state, ENV_SIZE)
        self._told_cr2[0] = self.cr2

    def gpr(self, number: int) -> int:
        """General register by encoding number (0 EAX, 1 ECX, 2 EDX, 3 EBX, 4 ESP, 5 EBP, 6 ESI, 7 EDI)."""
        return self._d[2 * number]

    def set_gpr(self, number: int, value: int) -> None:
        """Set a general register by encoding number."""
        self._d[2 * number] = value & 0xFFFFFFFF

    @property
    def eax(self) -> int:
        """EAX."""
        return self._d[0]

    @eax.setter
    def eax(self, value: int) -> None:
        self._d[0] = value & 0xFFFFFFFF

    @property
    def ecx(self) -> int:
        """ECX."""
        return self._d[2]

    @ecx.setter
    def ecx(self, value: int) -> None:
        self._d[2] = value & 0xFFFFFFFF

    @property
    def edx(self) -> int:
        """EDX."""
        return self._d[4]

    @edx.setter
    def edx(self, value: int) -> None:
        self._d[4] = value & 0xFFFFFFFF

    @property
    def ebx(self) -> int:
        """EBX."""
        return self._d[6]

    @ebx.setter
    def ebx(self, value: int) -> None:
        self._d[6] = value & 0xFFFFFFFF

    @property
    def esp(self) -> int:
        """ESP."""
        return self._d[8]

    @esp.setter
    def esp(self, value: int) -> None:
        self._d[8] = value & 0xFFFFFFFF

    @property
    def ebp(self) -> int:
        """EBP."""
        return self._d[10]

    @ebp.setter
    def ebp(self, value: int) -> None:
        self._d[10] = value & 0xFFFFFFFF

    @property
    def esi(self) -> int:
        """ESI."""
        return self._d[12]

    @esi.setter
    def esi(self, value: int) -> None:
        self._d[12] = value & 0xFFFFFFFF

    @property
    def edi(self) -> int:
        """EDI."""
        return self._d[14]

    @edi.setter
    def edi(self, value: int) -> None:
        self._d[14] = value & 0xFFFFFFFF

    @property
    def eip(self) -> int:
        """EIP (an offset in the code segment)."""
        return self._d[AT_EIP]

    @eip.setter
    def eip(self, value: int) -> None:
        self._d[AT_EIP] = value & 0xFFFFFFFF

    def code_address(self, offset: int = 0) -> int:
        """Linear address of EIP plus ``offset``."""
        return self._d[_CS_PLACE + 2] + self._d[AT_EIP] + offset & 0xFFFFFFFF

    @property
    def code_bits(self) -> int:
        """Size of operands and addresses in the code segment, 32 or 16."""
        return 32 if self._d[_CS_PLACE + 5] & D_BIT else 16

    @property
    def eip_marked(self) -> bool:
        """EIP is as :meth:`mark_eip` has left it: the emulator has not gone back to an instruction since."""
        return bool(self._d[AT_EIP + 1])

    def mark_eip(self, on: bool) -> None:
        """Leave a mark that is gone when the emulator goes back to an instruction, or take it away."""
        self._d[AT_EIP + 1] = on

    @property
    def system_flags(self) -> int:
        """EFLAGS without the arithmetic flags and DF."""
        return self._d[AT_EFLAGS]

    @system_flags.setter
    def system_flags(self, value: int) -> None:
        self._d[AT_EFLAGS] = value

    def load_flags(self, value: int) -> None:
        """Set all of EFLAGS while the emulator runs (arithmetic flags go to its lazy form)."""
        d = self._d
        d[_CC_SRC] = value & 0x8D5
        d[_CC_SRC + 1] = 0
        d[AT_CC_OP] = CC_OP_EFLAGS
        d[_DF] = 0xFFFFFFFF if value & 0x400 else 1
        d[AT_EFLAGS] = value & ~0xCD5 | 2

    @property
    def hflags(self) -> int:
        """The emulator's cached mode flags."""
        return self._d[_HFLAGS]

    @hflags.setter
    def hflags(self, value: int) -> None:
        self._d[_HFLAGS] = value

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self._d[_HFLAGS] & HF_CPL

    @property
    def irq_shadow(self) -> bool:
        """The instruction after STI or MOV SS is still to come."""
        return bool(self._d[_HFLAGS] & HF_INHIBIT_IRQ)

    @irq_shadow.setter
    def irq_shadow(self, on: bool) -> None:
        value = self._d[_HFLAGS]
        self._d[_HFLAGS] = value | HF_INHIBIT_IRQ if on else value & ~HF_INHIBIT_IRQ

    def _cache(self, at: int) -> Segment:
        d = self._d
        return _segment(d[at], d[at + 2], d[at + 4], d[at + 5])

    def _set_cache(self, at: int, segment: Segment) -> None:
        d = self._d
        d[at] = segment.selector
        d[at + 2] = segment.base
        d[at + 3] = 0
        d[at + 4] = segment.limit
        d[at + 5] = segment.flags

    def segment(self, which: Seg) -> Segment:
        """A segment register with its hidden part."""
        return self._cache(_SEGS + 6 * which)

    def set_segment(self, which: Seg, segment: Segment) -> None:
        """Load a segment register without any check; CPL follows SS, operand size follows CS."""
        self._set_cache(_SEGS + 6 * which, segment)
        flags = self.hflags
        if which == _CS:
            flags = flags & ~HF_CS32 | (HF_CS32 if segment.flags & D_BIT else 0)
        elif which == _SS:
            flags = flags & ~(HF_CPL | HF_SS32) | (segment.flags >> 13) & 3
            flags |= HF_SS32 if segment.flags & D_BIT else 0
        d = self._d
        segmented = (
            not d[AT_CR] & 1
            or d[AT_EFLAGS] & 1 << 17
            or not flags & HF_CS32
            or d[_SEGS + 2] | d[_SEGS + 12 + 2] | d[_SEGS + 18 + 2]
        )
        self.hflags = flags & ~HF_ADDSEG | (HF_ADDSEG if segmented else 0)

    def enter(self, segments: memoryview, mode: int, esp: int, eip: int) -> None:
        """Go to a handler in protected mode, nothing of which is checked.

        :param segments: CS, or CS and SS, as :func:`segment_words` gives them.
        :param mode: CPL and the sizes of code and stack, as mode flags.
        """
        d = self._d
        d[_CS_PLACE : _CS_PLACE + len(segments)] = segments
        d[8], d[AT_EIP] = esp, eip
        if not mode & HF_CS32 or d[_SEGS + 2] | d[_SEGS + 12 + 2] | d[_SEGS + 18 + 2]:
            mode |= HF_ADDSEG
        d[_HFLAGS] = d[_HFLAGS] & NO_MODE | mode

    def data_segments_suit_users(self) -> bool:
        """ES, DS, FS and GS are each of ring 3, or null with nothing behind it."""
        words = _DATA.unpack_from(self.raw)
        return all(
            flags & _DPL == _DPL or not selector | base | limit | flags
            for selector, base, limit, flags in (words[:4], words[4:8], words[8:12], words[12:])
        )

    @property
    def ldt(self) -> Segment:
        """LDTR."""
        return self._cache(_LDT)

    @ldt.setter
    def ldt(self, segment: Segment) -> None:
        self._set_cache(_LDT, segment)

    @property
    def tr(self) -> Segment:
        """Task register."""
        return self._cache(_TR)

    @tr.setter
    def tr(self, segment: Segment) -> None:
        # the emulator ends the whole process if it needs one that is busy, absent or no TSS
        kind = (segment.flags >> 8) & 15 & ~TSS_BUSY_BIT
        if kind not in (TSS_AVAILABLE_16, TSS_AVAILABLE_32):
            kind = TSS_AVAILABLE_32
        flags = segment.flags & ~0xF00 | kind << 8 | 1 << 15
        self._set_cache(_TR, Segment(segment.selector, segment.base, segment.limit, flags))

    @property
    def gdt(self) -> TableRegister:
        """GDTR."""
        return _table(self._d[_GDT + 2], self._d[_GDT + 4])

    @gdt.setter
    def gdt(self, table: TableRegister) -> None:
        self._set_cache(_GDT, Segment(0, table.base, table.limit, 0))

    @property
    def idt(self) -> TableRegister:
        """IDTR."""
        return _table(self._d[_IDT + 2], self._d[_IDT + 4])

    @idt.setter
    def idt(self, table: TableRegister) -> None:
        self._set_cache(_IDT, Segment(0, table.base, table.limit, 0))

    def cr(self, number: int) -> int:
        """Control register 0, 2, 3 or 4."""
        return self._d[AT_CR + 2 * number]

    def paging(self) -> tuple[int, int, int, int, int]:
        """CR0, CR3, CR4, EFER and the mask of address line 20: all that page tables are read by."""
        d = self._d
        return d[AT_CR] & _PG_AND_WP, d[AT_CR + 6], d[AT_CR + 8], d[_EFER], self.a20_mask

    @property
    def root(self) -> int:
        """CR3 as wide as the emulator has it: it may point above 4 GiB, see :mod:`vmi.native.translation`."""
        return self._d[AT_CR + 6] | self._d[AT_CR + 7] << 32

    @property
    def cr2(self) -> int:
        """CR2, the address of the last page fault."""
        return self._d[AT_CR + 4]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self._d[AT_CR + 4] = self._told_cr2[0] = value & 0xFFFFFFFF

    @property
    def told_cr2(self) -> int:
        """What CR2 was set to, not counting the page faults that the CPU finds itself."""
        return self._told_cr2[0]

    @told_cr2.setter
    def told_cr2(self, value: int) -> None:
        self._told_cr2[0] = value

    def dr(self, number: int) -> int:
        """Debug register 0 to 7."""
        return self._d[_DR + 2 * number]

    def set_dr(self, number: int, value: int) -> None:
        """Store a debug register (no breakpoint is armed)."""
        self._d[_DR + 2 * number] = value & 0xFFFFFFFF

    @property
    def efer(self) -> int:
        """EFER, the extended feature enable register, lower half."""
        return self._d[_EFER]

    @efer.setter
    def efer(self, value: int) -> None:
        self._d[_EFER] = value & 0xFFFFFFFF

    @property
    def fast_call_target(self) -> tuple[int, int, int]:
        """CS selector, ESP and EIP that SYSENTER loads."""
        d = self._d
        return d[_FAST_CALL], d[_FAST_CALL + 2], d[_FAST_CALL + 4]

    @fast_call_target.setter
    def fast_call_target(self, target: tuple[int, int, int]) -> None:
        d = self._d
        d[_FAST_CALL], d[_FAST_CALL + 2], d[_FAST_CALL + 4] = (word & 0xFFFFFFFF for word in target)

    @property
    def error_code(self) -> int:
        """Error code of the exception that is being reported."""
        return self._d[AT_ERROR_CODE]

    @property
    def exception_is_int(self) -> bool:
        """The exception that is being reported comes from an INT instruction."""
        return bool(self._d[AT_IS_INT])

    @property
    def exception_next_eip(self) -> int:
        """EIP behind the INT instruction that is being reported."""
        return self._d[_NEXT_EIP]

    @property
    def faulted_in_fetch(self) -> bool:
        """The page fault that is being reported came when code was fetched: no instruction has begun."""
        return not self._d[AT_RETURN_ADDRESS] | self._d[AT_RETURN_ADDRESS + 1]

    def settle_flags(self) -> None:
        """Tell the emulator where the arithmetic flags are, in the middle of an instruction.

        Counting instructions makes it gather them in one word at the start of each, but what it goes
        back to in a fault or a port access still names the way they were to be computed before that.
        """
        self._d[AT_CC_OP] = CC_OP_EFLAGS

    def settled_flags(self) -> int | None:
        """EFLAGS while the emulator runs, None if it has yet to compute the arithmetic ones."""
        d = self._d
        if d[AT_CC_OP] != CC_OP_EFLAGS:
            return None
        return d[AT_EFLAGS] & ~0xCD5 | d[_CC_SRC] & 0x8D5 | (0 if d[_DF] == 1 else 0x400)

    def forget_exception(self) -> None:
        """Tell the emulator that no exception is in flight: it never does so itself."""
        self._d[AT_OLD_EXCEPTION] = 0xFFFFFFFF
