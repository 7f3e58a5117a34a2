# SPDX-License-Identifier: GPL-2.0-only
"""Which code may run while most of the kernel is not mapped: the entry code of isolated page tables.

Such a kernel has two sets of page tables in a pair, of which user code sees the one that maps hardly more
than the entry code. Entering and leaving, the kernel computes CR3 from CR3: it sets or clears the bit that
tells the two apart. Nobody else does that, so the switches are found without symbols, and a kernel without
any needs no care. All code around a switch counts as entry code: one site too many only stays native.

On i386 that takes page tables with 64-bit entries (PAE). The code stands in other kernels too, where it
never runs; those are told by what they load into CR4 before they turn paging on.
"""

from __future__ import annotations

from collections.abc import Iterator

from iced_x86 import Mnemonic, OpKind, Register

from vmi.patcher.adaptorcode import same
from vmi.patcher.decode import Listing
from vmi.patcher.flow import Flow
from vmi.patcher.model import Image

AROUND = 16 << 10
"""Bytes on either side of a switch; the entry code of a whole kernel is a third of that."""

LOOK_BACK = 8
"""Instructions from reading a control register to writing it."""

CR4_PAE = 1 << 5
CR4_PAE_BIT = 5

TEXT_START, TEXT_END = "__entry_text_start", "__entry_text_end"
_BIT_OPERATIONS = (Mnemonic.OR, Mnemonic.AND, Mnemonic.XOR, Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC)
_SETS_BIT = (Mnemonic.OR, Mnemonic.XOR)
_IMMEDIATES = frozenset(
    (OpKind.IMMEDIATE8, OpKind.IMMEDIATE16, OpKind.IMMEDIATE32, OpKind.IMMEDIATE8TO32, OpKind.IMMEDIATE8TO16)
)


def isolated(flow: Flow) -> list[range]:
    """The addresses of entry code in a kernel that may isolate page tables; empty for all others."""
    switches = [at for code in flow.codes for at in _switches(code.listing)]
    if not switches or not _may_use_pae(flow):
        return []
    named = {symbol.name: symbol.address for symbol in flow.scan.image.symbols}
    if TEXT_START in named and TEXT_END in named:
        text = range(named[TEXT_START], named[TEXT_END])
        if all(at in text for at in switches):
            return [text]
    return [range(at - AROUND, at + AROUND) for at in switches]


def _writes(listing: Listing, name: str) -> Iterator[tuple[int, range]]:
    """(entry, the few before it, the last one first) of each write of a control register."""
    for address, form in listing.forms.items():
        if form.name == name:
            index = listing.at(address)
            yield index, range(index - 1, max(-1, index - 1 - LOOK_BACK), -1)


def _switches(listing: Listing) -> Iterator[int]:
    """Where CR3 is written with what was CR3 and one bit changed."""
    for index, before in _writes(listing, "mov cr3,r"):
        changed = False
        for at in before:
            changed = changed or _bit_operation(listing, at, _BIT_OPERATIONS) is not None
            read = listing.forms.get(listing.starts[at])
            if changed and read is not None and read.name == "mov r,cr3":
                yield listing.starts[index]
                break


def _bit_operation(listing: Listing, index: int, mnemonics: tuple[int, ...]) -> int | None:
    """The number that entry ``index`` applies to its operand if it is one of ``mnemonics``, else None."""
    insn = listing.decoded(index)
    wanted = any(same(insn.mnemonic, mnemonic) for mnemonic in mnemonics)
    if not wanted or insn.op_count != 2 or insn.op1_kind not in _IMMEDIATES:
        return None
    return insn.immediate(1) & 0xFFFFFFFF


def _may_use_pae(flow: Flow) -> bool:
    """False when the kernel surely turns paging on without PAE."""
    without = False
    for code in flow.codes:
        listing = code.listing
        for _, before in _writes(listing, "mov cr4,r"):
            for at in before:
                if (_bit_operation(listing, at, _SETS_BIT) or 0) & CR4_PAE:
                    return True
                if _bit_operation(listing, at, (Mnemonic.BTS,)) == CR4_PAE_BIT:
                    return True
            value = _boot_value(flow.scan.image, listing, before[0]) if before else None
            if value is not None:
                if value & CR4_PAE:
                    return True
                without = True
    return not without


def _boot_value(image: Image, listing: Listing, index: int) -> int | None:
    """What entry ``index`` loads into a register from a physical address; None when it does something else.

    Only code that runs before paging names physical addresses.
    """
    insn = listing.decoded(index)
    loads = same(insn.mnemonic, Mnemonic.MOV) and same(insn.op1_kind, OpKind.MEMORY)
    fixed = same(insn.memory_base, Register.NONE) and same(insn.memory_index, Register.NONE)
    if not (loads and fixed) or image.segment_at(insn.memory_displacement) is not None:
        return None
    address = image.virtual(insn.memory_displacement & 0xFFFFFFFF)
    return None if address is None else image.u32(address)
