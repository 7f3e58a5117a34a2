# SPDX-License-Identifier: GPL-2.0-only
"""Where control may arrive, which code is led to at all, and which bytes must stay where they are.

A window overwrites whole instructions, so nothing may ever jump into its middle. Labels are therefore
collected generously: direct branches, every number in code or data that looks like a text address, symbols,
function starts, tables. A label too many costs a window; one too few costs the guest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from operator import attrgetter

from iced_x86 import Mnemonic, OpKind

from vmi.patcher import paravirt
from vmi.patcher.decode import FALLS_THROUGH, Bounds, Kind, Listing, Reference, Role
from vmi.patcher.hints import Pin
from vmi.patcher.model import Image, Skipped
from vmi.patcher.scan import Scan
from vmi.patcher.textmarks import Marks, marked
from vmi.patcher.wordsearch import WORD, places

R_386_32 = 1
R_386_PC32 = 2
SIXTEEN_BIT_SHARE = 8
"""More than one instruction in so many with an address-size prefix: 16-bit code. Others have next to none."""

_MEMORY_PIN = "Other instructions read or write these bytes as data."
_INSIDE_PIN = "Something refers to the middle of this instruction."
_FAULT_PIN = "Data points at this instruction, which may fault: perhaps a recovery table."


@dataclass(frozen=True)
class Code:
    """One listing with what control flow says about it.

    ``labels``: a byte per text byte, 1 where control may arrive; ``hard`` are those of them at which it may
    arrive by other ways than direct jumps of the text and the fault table, and ``values`` those that stand in
    data or in an instruction as a number. ``reached``: a byte per entry, nonzero when a label leads there.
    ``pinned``: ranges that must stay, in address order.
    """

    listing: Listing
    labels: bytearray
    hard: bytearray
    values: bytearray
    reached: bytearray
    pinned: tuple[Pin, ...]

    def is_label(self, address: int) -> bool:
        return bool(self.labels[address - self.listing.start])

    def is_hard(self, address: int) -> bool:
        return bool(self.hard[address - self.listing.start])

    def is_value(self, address: int) -> bool:
        return bool(self.values[address - self.listing.start])

    def pin(self, start: int, end: int) -> Pin | None:
        """The first pin that holds a byte of [start, end)."""
        at = bisect_right(self._pin_ends, start)
        if at < len(self.pinned) and self.pinned[at].start < end:
            return self.pinned[at]
        return None

    @cached_property
    def _pin_ends(self) -> list[int]:
        return [pin.end for pin in self.pinned]

    def __repr__(self) -> str:
        return f"Code({self.listing!r}, {self.labels.count(1)} labels)"


@dataclass(frozen=True)
class Flow:
    """Control flow of a whole image, one Code per listing of the scan.

    ``recovered``: addresses of the instructions that the fault table names.
    """

    scan: Scan
    codes: tuple[Code, ...]
    sixteen_bit: tuple[Skipped, ...]
    recovered: frozenset[int] = frozenset()

    def is_rewritten(self, address: int) -> bool:
        """True when the kernel may put another instruction at ``address`` while it runs."""
        return address in self.scan.hints.rewritten

    def code_at(self, address: int) -> Code | None:
        at = bisect_right(self.codes, address, key=lambda code: code.listing.start) - 1
        return self.codes[at] if at >= 0 and address < self.codes[at].listing.end else None


def flow(scan: Scan) -> Flow:
    """Find labels, reached code and pins for every listing of ``scan``."""
    listings = scan.listings
    named = _named(scan)
    pointers, numbers = Marks(listings, word_pointers(scan)), Marks(listings, _numbers(scan))
    jumped, certain = scan.jumped | Marks(listings, scan.hints.fixups), scan.called | Marks(listings, named)
    if not _has_relocations(scan.image):
        labels = pointers | numbers | certain | jumped
        for listing in listings:
            reached = _reach(scan, listing, labels.of(listing))
            pointers.add(_unreached_words(listing, reached, scan.bounds))
    values = pointers | numbers
    hard = values | certain
    labels = hard | jumped
    inner = (certain | jumped | Marks(listings, scan.hints.locks)).no_starts(listings)
    branches = cache(lambda: named.union(scan.hints.fixups, *(each.targets.targets for each in listings)))
    references = [reference for listing in listings for reference in listing.references]
    read = [reference for reference in references if reference.role is Role.ABSOLUTE]
    codes = []
    sixteen: list[Skipped] = []
    for listing in listings:
        mine = labels.of(listing)
        sixteen.extend(_sixteen_bit(listing))
        copied = paravirt.templates(scan.image, listing, references, branches)
        pins = tuple(_pins(scan, listing, copied, read, inner, pointers))
        reached = _reach(scan, listing, mine)
        codes.append(Code(listing, mine, hard.of(listing), values.of(listing), reached, pins))
    return Flow(scan, tuple(codes), tuple(sixteen), frozenset(scan.hints.recovered))


def word_pointers(scan: Scan) -> Iterator[int]:
    """Text addresses that stand as words in loaded bytes outside the instructions.

    With kept relocations exactly the words they name; without, every word at any alignment outside the text.
    Tables inside the text count in both cases, in virtual and physical form.
    """
    image, bounds = scan.image, scan.bounds
    if _has_relocations(image):
        yield from _relocated(scan)
    else:
        yield from _scanned(scan)
    for one in scan.data:
        for address in range(one.start, one.end - 3, 4):
            value = bounds.normal(image.u32(address) or 0)
            if value is not None:
                yield value


def _has_relocations(image: Image) -> bool:
    return any(relocation.kind == R_386_32 for relocation in image.relocations)


def _relocated(scan: Scan) -> Iterator[int]:
    image, bounds, tables = scan.image, scan.bounds, _tables(scan)
    for relocation in image.relocations:
        word = image.u32(relocation.address)
        if word is None or any(low <= relocation.address < high for low, high in tables):
            continue
        if relocation.kind == R_386_32:
            value = bounds.normal(word)
        elif relocation.kind == R_386_PC32:
            value = bounds.normal((word + relocation.address) & 0xFFFFFFFF)
        else:
            continue
        if value is not None:
            yield value


def _tables(scan: Scan) -> list[tuple[int, int]]:
    """[start, end) of tables of which each entry is known: where control comes is, and is that."""
    faults, locks = scan.hints.fault_table, scan.hints.lock_table
    found = [] if faults is None else [(faults.start, faults.start + faults.count * faults.entry)]
    return found if locks is None else [*found, (locks.start, locks.start + WORD * locks.count)]


def _scanned(scan: Scan) -> Iterator[int]:
    text = [(listing.start, listing.end) for listing in scan.listings]
    inside = sorted([*text, *_tables(scan)])
    for segment in scan.image.segments:
        for start, end in _outside(segment.vaddr, segment.end, inside):
            data = segment.data[start - segment.vaddr : end - segment.vaddr]
            yield from (int.from_bytes(data[at : at + WORD], "little") for at in places(data, text))


def _outside(start: int, end: int, inside: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) that none of the ``inside`` ranges holds; those are in address order."""
    for low, high in inside:
        if low < end and high > start:
            if start < low:
                yield start, low
            start = max(start, high)
    if start < end:
        yield start, end


def _unreached_words(listing: Listing, reached: bytearray, bounds: Bounds) -> Iterator[int]:
    """Aligned words made of text bytes that no label leads to: perhaps tables of pointers."""
    index = reached.find(0)
    while index >= 0:
        stop = reached.find(1, index)
        last = (stop if stop >= 0 else len(reached)) - 1
        low, high = listing.starts[index], listing.stop(last)
        for address in range(low + -low % 4, high - 3, 4):
            at = address - listing.start
            value = bounds.normal(int.from_bytes(listing.data[at : at + 4], "little"))
            if value is not None:
                yield value
        index = reached.find(0, last + 1)


def _named(scan: Scan) -> set[int]:
    """Addresses that symbols, function starts, tables or far jumps name: these are certain."""
    image = scan.image
    labels = {pin.start for pin in scan.pins} | {symbol.address for symbol in image.symbols}
    labels.update(scan.hints.functions, scan.hints.labels)
    if image.entry_virtual is not None:
        labels.add(image.entry_virtual)
    for listing in scan.listings:
        for reference in listing.references:
            if reference.role is Role.FAR:
                labels.add(reference.value)
            elif reference.role is Role.FAR_POINTER:
                value = scan.bounds.normal(image.u32(reference.value) or 0)
                if value is not None:
                    labels.add(value)
    return labels


def _numbers(scan: Scan) -> set[int]:
    """Text addresses that instructions hold as numbers."""
    roles = (Role.IMMEDIATE, Role.DISPLACEMENT)
    return {r.value for listing in scan.listings for r in listing.references if r.role in roles}


_FALLS = bytes(0xFF if kind in FALLS_THROUGH else 0 for kind in range(256))
_GOOD = bytes(0 if kind == Kind.BAD else 0xFF for kind in range(256))
_ANY = bytes([0]) + bytes([1]) * 255


def _reach(scan: Scan, listing: Listing, labels: bytearray) -> bytearray:
    """Entries that some label leads to by falling through: 1 for each, else 0.

    Control doesn't go on behind an entry that doesn't fall through, nor into data, nor into bad bytes. A jump
    that the kernel may overwrite with NOPs falls through.
    """
    falls = bytearray(listing.kinds.translate(_FALLS))
    base, end, mask = listing.start, listing.end, listing.starting()
    for address in scan.hints.rewritten:
        if base <= address < end and mask[address - base]:
            index = listing.at(address)
            if listing.kinds[index] != Kind.BAD:
                falls[index] = 0xFF
    for index in listing.after_gaps:
        falls[index - 1] = 0
    # All entries at once, as long numbers with a byte for each. Where control may come from the entry before,
    # there stands FF, so that a 1 that is added to it carries over into the next one, and so on.
    good = int.from_bytes(listing.kinds.translate(_GOOD), "little")
    labelled = int.from_bytes(listing.at_starts(labels), "little") & good
    passing = int.from_bytes(falls, "little") << 8 & good
    carried = passing + (labelled & passing) + ((labelled & ~passing) << 8 & passing)
    reached = (carried ^ passing) & passing | labelled
    return bytearray(reached.to_bytes(len(falls), "little").translate(_ANY))


def _sixteen_bit(listing: Listing) -> list[Skipped]:
    """Runs of code around sites that make sense in 16-bit mode only.

    Two signs: a direct far jump with an operand-size prefix (how real mode enters protected mode), and
    instructions with an address-size prefix, which 16-bit compilers emit for most memory operands.
    """
    found: list[Skipped] = []
    done = listing.start
    for start in listing.forms:
        if start < done:
            continue  # in a run that was looked at
        first = last = listing.at(start)
        while first and listing.joined(first - 1):
            first -= 1
        while listing.joined(last):
            last += 1
        done = listing.stop(last)
        prefixed = 0
        if b"\x67" in listing.data[listing.starts[first] - listing.start : done - listing.start]:
            prefixed = sum(b"\x67" in _prefixes(listing.raw(i)) for i in range(first, last + 1))
        far_jump = listing.raw(last).startswith(b"\x66\xea")
        if far_jump or (prefixed > 1 and prefixed * SIXTEEN_BIT_SHARE > last - first + 1):
            found.append(Skipped(listing.starts[first], done, "This looks like 16-bit code."))
    return found


def _prefixes(raw: bytes) -> bytes:
    count = 0
    while count < len(raw) and raw[count] in b"\x66\x67\x2e\x36\x3e\x26\x64\x65\xf0\xf2\xf3":
        count += 1
    return raw[:count]


def _pins(
    scan: Scan,
    listing: Listing,
    copied: Iterable[tuple[int, int]],
    read: Sequence[Reference],
    inner: Iterable[int],
    pointers: Marks,
) -> list[Pin]:
    """The pins of a listing.

    ``read`` are absolute accesses to the text, ``inner`` the labels that may be in the middle of an
    instruction.
    """
    pins = [p for p in scan.hints.pins + scan.pins if p.start < listing.end and p.end > listing.start]
    pins += [Pin(start, end, paravirt.REASON, True) for start, end in copied]
    pins += [
        Pin(r.value, r.value + r.size, _MEMORY_PIN, True)
        for r in read
        if listing.start <= r.value < listing.end
    ]
    for label in listing.inside(inner):
        index = listing.covering(label)
        pins.append(Pin(listing.starts[index], listing.stop(index), _INSIDE_PIN))
    for index in marked(listing.at_starts(pointers.of(listing))):
        if index and listing.joined(index - 1) and _may_fault(listing, index):
            pins.append(Pin(listing.starts[index], listing.stop(index), _FAULT_PIN))
    return _disjoint(pins)


def _disjoint(pins: list[Pin]) -> list[Pin]:
    """Pins in address order without overlaps; where two overlap, the stricter one wins, then the first."""
    ranked = sorted(pins, key=attrgetter("start", "end", "reason"))
    strict = _first_wins(pin for pin in ranked if pin.untouchable)
    others = _first_wins(pin for pin in ranked if not pin.untouchable)
    return sorted([*strict, *_around(strict, others)], key=lambda p: p.start)


def _first_wins(pins: Iterable[Pin]) -> list[Pin]:
    """Pins that come in order of their starts, each without what those before it hold."""
    kept: list[Pin] = []
    for pin in pins:
        start = max(pin.start, kept[-1].end) if kept else pin.start
        if start < pin.end:
            kept.append(pin if start == pin.start else replace(pin, start=start))
    return kept


def _around(strict: list[Pin], others: list[Pin]) -> Iterator[Pin]:
    """What the ``strict`` pins leave of the ``others``; both are disjoint and in address order."""
    at = 0
    for pin in others:
        start = pin.start
        while at < len(strict) and strict[at].end <= start:
            at += 1
        inside = at
        while inside < len(strict) and strict[inside].start < pin.end:
            if start < strict[inside].start:
                yield replace(pin, start=start, end=strict[inside].start)
            start = strict[inside].end
            inside += 1
        if start < pin.end:
            yield pin if start == pin.start else replace(pin, start=start)


def _may_fault(listing: Listing, index: int) -> bool:
    """True for an instruction that accesses memory other than by its own stack push or pop."""
    if listing.kinds[index] != Kind.PLAIN or listing.starts[index] in listing.forms:
        return False
    insn = listing.decoded(index)
    if insn.mnemonic in (Mnemonic.LEA, Mnemonic.NOP):
        return False
    kinds = [insn.op_kind(operand) for operand in range(insn.op_count)]
    return any(kind == OpKind.MEMORY or OpKind.MEMORY_SEG_SI <= kind <= OpKind.MEMORY_ESRDI for kind in kinds)
