# SPDX-License-Identifier: GPL-2.0-only
"""Which code may run while most of the kernel is not mapped: the entry code of isolated page tables.

Such a kernel has two sets of page tables in a pair, of which user code sees the one that maps hardly more
than the entry code. Entering and leaving, the kernel computes CR3 from CR3: it sets or clears the bit that
tells the two apart. Nobody else does that, so the switches are found without symbols, and a kernel without
any needs no care.

What runs with the user's tables came from user mode and gets to a switch, or comes from a switch and gets to
IRET or SYSEXIT. So it hangs together with a switch or an IRET close by, by direct jumps and by falling
through, in one direction or the other: all that does so, near a switch, is taken for entry code, and so is
what lies between any two such instructions, since tables lead there too (interrupt gates, fault recovery).
User tables map whole pages, so it is whole pages that count. What entry code calls close by may be mapped as
well, so it counts too, though what lies between doesn't. One site too many only stays native.

Entry code is a section of its own, so the pages between two switches belong to it. They are mapped whichever
of the tables is in CR3, as the instructions before and behind a switch run with different ones.

On i386 that takes page tables with 64-bit entries (PAE). The code stands in other kernels too, where it
never runs; those are told by what they load into CR4 before they turn paging on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from iced_x86 import Mnemonic, OpKind, Register

from vmi.patcher.adaptorcode import same
from vmi.patcher.decode import Kind, Listing
from vmi.patcher.elf import PAGE
from vmi.patcher.flow import Flow
from vmi.patcher.model import EntryCode, Image

AROUND = 16 << 10
"""Bytes on either side of a switch that are searched; the entry code of a whole kernel is a third of that."""

LOOK_BACK = 8
"""Instructions from reading a control register to writing it."""

CR4_PAE = 1 << 5
CR4_PAE_BIT = 5

TEXT_START, TEXT_END = "__entry_text_start", "__entry_text_end"
LEAVES = frozenset(("iret", "iretw", "sysexit", "sysret"))
"""Forms of instructions that go back to user mode."""

_BIT_OPERATIONS = (Mnemonic.OR, Mnemonic.AND, Mnemonic.XOR, Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC)
_SETS_BIT = (Mnemonic.OR, Mnemonic.XOR)
_IMMEDIATES = frozenset(
    (OpKind.IMMEDIATE8, OpKind.IMMEDIATE16, OpKind.IMMEDIATE32, OpKind.IMMEDIATE8TO32, OpKind.IMMEDIATE8TO16)
)


def isolated(flow: Flow) -> EntryCode:
    """The entry code of a kernel that may isolate page tables; empty for all others."""
    switches = sorted(at for code in flow.codes for at in _switches(code.listing))
    if not switches or not _may_use_pae(flow):
        return EntryCode()
    ranges: list[range] = []
    mapped: list[range] = []
    for span in _merged(range(at - AROUND, at + AROUND) for at in switches):
        here = {at for at in switches if at in span}
        near = _Near(flow, span)
        together = near.components(sorted(here))
        low = min(min(one) for one in together)
        high = max(near.stop(max(one)) for one in together)
        ranges.append(_pages(low, high))
        for one in together:
            mine = one & here
            mapped.append(_pages(min(mine), near.stop(max(mine))))
        known = set().union(*together)
        for one in near.components(near.leaves):
            known |= one
        known |= near.called(known)
        ranges += [range(at, near.stop(at)) for at in known]
    named = {symbol.name: symbol.address for symbol in flow.scan.image.symbols}
    if TEXT_START in named and TEXT_END in named:
        text = range(named[TEXT_START], named[TEXT_END])
        if all(at in text for at in switches):
            ranges = [text]
    return EntryCode(tuple(_merged(ranges)), tuple(_merged(mapped)))


def _pages(low: int, high: int) -> range:
    """The whole pages that hold [low, high)."""
    return range(low // PAGE * PAGE, -(-high // PAGE) * PAGE)


def _merged(ranges: Iterable[range]) -> list[range]:
    """The same addresses in ranges that neither overlap nor touch, in order."""
    found: list[range] = []
    for one in sorted(ranges, key=lambda one: one.start):
        if found and one.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, one.stop))
        else:
            found.append(one)
    return found


class _Near:
    """The instructions in a span of addresses and how control goes between them; calls apart."""

    def __init__(self, flow: Flow, span: range) -> None:
        self._stops: dict[int, int] = {}
        self._next: dict[int, list[int]] = defaultdict(list)
        self._before: dict[int, list[int]] = defaultdict(list)
        self._calls: dict[int, int] = {}
        self.leaves: list[int] = []
        for code in flow.codes:
            listing = code.listing
            for index in listing.between(span.start, span.stop):
                self._add(flow, listing, index)

    def __repr__(self) -> str:
        return f"_Near({len(self._stops)} instructions)"

    def _add(self, flow: Flow, listing: Listing, index: int) -> None:
        address, stop = listing.starts[index], listing.stop(index)
        self._stops[address] = stop
        form = listing.forms.get(address)
        if form is not None and form.name in LEAVES:
            self.leaves.append(address)
        if listing.joined(index) or flow.is_rewritten(address):
            self._join(address, stop)
        target = listing.targets.get(address)
        if target is None:
            return
        if listing.kinds[index] == Kind.CALL:
            self._calls[address] = target
        else:
            self._join(address, target)

    def _join(self, one: int, other: int) -> None:
        self._next[one].append(other)
        self._before[other].append(one)

    def stop(self, address: int) -> int:
        """The end of the instruction at ``address``."""
        return self._stops[address]

    def components(self, addresses: Iterable[int]) -> list[set[int]]:
        """What hangs together with each of the instructions at ``addresses``, whichever way control goes."""
        found: list[set[int]] = []
        seen: set[int] = set()
        for address in addresses:
            if address not in seen:
                found.append(self._spread([address], (self._next, self._before)))
                seen |= found[-1]
        return found

    def called(self, addresses: Iterable[int]) -> set[int]:
        """What the instructions at ``addresses`` call within the span, and what that runs into or calls."""
        found: set[int] = set()
        todo = {self._calls[at] for at in addresses if at in self._calls}
        while todo:
            more = self._spread(todo - found, (self._next,)) - found
            found |= more
            todo = {self._calls[at] for at in more if at in self._calls}
        return found

    def _spread(self, addresses: Iterable[int], ways: tuple[dict[int, list[int]], ...]) -> set[int]:
        found: set[int] = set()
        todo = [at for at in addresses if at in self._stops]
        while todo:
            at = todo.pop()
            if at not in found:
                found.add(at)
                todo += [to for way in ways for to in way.get(at, ()) if to in self._stops]
        return found


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
