# SPDX-License-Identifier: GPL-2.0-only
"""Check the tables of a patched file: our own records, and the kernel's that name moved instructions.

The kernel's tables are compared with those of the original, with each address replaced by where the walk
through the trampolines (``verify_flow``) really found the instruction.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import lt
from typing import Any

from iced_x86 import FlowControl

from vmi.patcher import alternatives, paravirt
from vmi.patcher.adaptorcode import same
from vmi.patcher.displaced import unpack
from vmi.patcher.emit import Emission
from vmi.patcher.model import Branch, FaultTable, Image, Plan, Site
from vmi.patcher.readback import Memory, check, is_nop, open_elf
from vmi.patcher.verify_flow import Followed, Found
from vmi.sitetable import INLINE, SiteFlag, SiteRecord, Tactic

REL_ENTRY = struct.Struct("<II")
SHF_ALLOC = 2
LOCK = b"\xf0"


def check_records(emission: Emission, memory: Memory) -> None:
    """Each record against the plan and the bytes it names; each adaptor against its link."""
    image = emission.plan.image
    sites = {site.address: site for site in emission.plan.sites}
    copies = Counter(site.address for window in emission.plan.windows for site in window.edges)
    wanted: Counter[int] = Counter()
    for placement in emission.plan.placements:
        if placement.tactic is not Tactic.LEFT:
            wanted[placement.site.address] = copies.get(placement.site.address, 1)
    recorded = [record.site for record in emission.records]
    check(
        Counter(recorded) == wanted,
        f"there are {len(recorded)} records for {wanted.total()} sites with a slot or to be trapped",
    )
    adaptors = {placed.address: placed.call for placed in emission.adaptors}
    links = {link.address: link.call for link in emission.links}
    previous_end = 0
    for record in emission.records:
        check(record.slot >= previous_end, f"the slots before and at {record.slot:#x} overlap")
        previous_end = record.slot + record.length
        site = sites.get(record.site)
        check(site is not None, f"there is a record for {record.site:#x}, where no site is")
        assert site is not None
        unmoved = image.read(site.address, site.length) == site.raw
        check(unmoved, f"the site at {site.address:#x} isn't there in the original")
        if record.has_call:
            _check_slot(record, site, memory)
            check(
                record.adaptor == 0 or adaptors.get(record.adaptor) == record.call,
                f"the slot at {record.slot:#x} has no adaptor at {record.adaptor:#x} for call {record.call}",
            )
        else:
            unchanged = memory.read(record.slot, record.length) == site.raw
            check(unchanged, f"the instruction to be trapped is not at {record.slot:#x}")
    for address, call in adaptors.items():
        _check_adaptor(address, call, memory, links)


def _check_slot(record: SiteRecord, site: Site, memory: Memory) -> None:
    where = f"the slot at {record.slot:#x}"
    check(record.length >= 5, f"{where} has only {record.length} bytes")
    wanted = INLINE if site.inline else site.call and site.call.number
    check(wanted == record.call, f"{where} has the wrong call")
    check(record.adaptor != 0 or not site.inline, f"{where} needs an adaptor and has none")
    for flag, expected in (
        (SiteFlag.PAD_AFTER, site.pad_after),
        (SiteFlag.RECOVERED, site.recovered),
        (SiteFlag.ISOLATED, site.isolated),
        (SiteFlag.FLAGS_LIVE, site.flags_live),
        (SiteFlag.SILENT, site.silent),
    ):
        check(bool(record.flags & flag) == expected, f"{where} has the wrong flag {flag.name}")
    end = record.slot + record.length
    at = record.slot if site.pad_after else end - site.length
    held = memory.read(at, site.length) == site.raw
    side, low, high = ("after", at + site.length, end) if site.pad_after else ("before", record.slot, at)
    while low < high:
        insn = memory.decode(low)
        check(is_nop(insn), f"{where} has something else than NOPs {side} the instruction")
        low = insn.next_ip32
    ends = "start" if site.pad_after else "end"
    check(low == high, f"{where} does not {ends} with the original instruction")
    check(held, f"{where} does not hold the original instruction")


def _check_adaptor(address: int, call: int, memory: Memory, links: dict[int, int]) -> None:
    """Straight code with exactly one call, which is linked to the right entry, up to a return."""
    at, seen = address, 0
    while True:
        insn = memory.decode(at)
        if same(insn.flow_control, FlowControl.RETURN):
            break
        if same(insn.flow_control, FlowControl.CALL):
            seen += 1
            check(links.get(at) == call, f"the call at {at:#x} in an adaptor is not linked to call {call}")
            check(insn.next_ip32 == insn.near_branch32, f"the call at {at:#x} is not empty before linking")
        else:
            straight = same(insn.flow_control, FlowControl.NEXT)
            check(straight, f"the adaptor at {address:#x} is not straight code")
        at = insn.next_ip32
    inline = call == INLINE
    wanted = "none" if inline else "one"
    check(seen == (not inline), f"the adaptor at {address:#x} makes {seen} calls instead of {wanted}")


def check_cleared(emission: Emission, memory: Memory, sections: Sequence[Any]) -> None:
    """The bytes to be cleared are the length bytes of all calls, and of alternatives to slots in place."""
    header = emission.header
    calls = paravirt.lengths(emission.plan.image)
    others = tuple(_lengths_of_slots(emission.plan, sections))
    wanted = tuple(sorted((*calls, *others)))
    check(
        bool(header.cleared) == bool(wanted),
        "there is no list of bytes to be cleared where one is needed, or the other way round",
    )
    if not wanted:
        return
    found = unpack(memory.read(header.cleared, header.cleared_size))
    if calls:
        (table,) = (section for section in sections if section.name == paravirt.SECTION)
        start, size = table["sh_addr"], table["sh_size"]
        every = tuple(range(start + 5, start + size, 8))
        check(
            calls == every and set(every) <= set(found),
            f"the list of bytes to be cleared isn't that of the records at {start:#x}",
        )
    check(found == wanted, "the list of bytes to be cleared names others than the records' lengths")


def _lengths_of_slots(plan: Plan, sections: Sequence[Any]) -> Iterator[int]:
    """The length bytes of all records of alternatives to slots that are longer than their instructions."""
    starts = {slot.start for slot in plan.slots if slot.tactic is Tactic.IN_PLACE and slot.site.length < 5}
    named: set[int] = set()
    for table in (section for section in sections if section.name == alternatives.SECTION and starts):
        low, data = table["sh_addr"], table.data()
        size = next((size for size in (12, 13) if len(data) % size == 0), len(data))
        for at in range(0, len(data), size):
            code = (low + at + int.from_bytes(data[at : at + 4], "little", signed=True)) & 0xFFFFFFFF
            if code in starts:
                named.add(code)
                yield from range(low + at + 10, low + at + size)
    check(named == starts, "a slot is longer than its instruction, and there is no alternative to that")


# --- the kernel's own tables --------------------------------------------------------------------


def check_fault_table(plan: Plan, memory: Memory, found: Followed) -> None:
    """Sorted, and the original's entries with the addresses of moved instructions replaced, each once."""
    table = plan.fault_table
    if table is None:
        return
    size = table.count * table.entry
    before = _entries(table, plan.image.read(table.start, size))
    after = _entries(table, memory.read(table.start, size))
    kept = {copy.insn.address for copy in found.copies}
    for insn, *_ in before:
        check(
            insn not in kept, f"the fault table names {insn:#x}, of which there is a copy that it can't name"
        )
    starts = {window.start for window in plan.windows}
    expected = [
        (_moved_to(found, insn), fixup if fixup in starts else found.entries.get(fixup, fixup), *rest)
        for insn, fixup, *rest in before
    ]
    addresses = [insn for insn, *_ in after]
    check(addresses == sorted(addresses), f"the fault table at {table.start:#x} isn't sorted")
    check(Counter(after) == Counter(expected), "the fault table doesn't name the instructions where they are")


def check_lock_table(plan: Plan, memory: Memory, found: Followed) -> None:
    """The original's entries with the addresses of moved instructions replaced, and each a LOCK prefix."""
    table = plan.lock_table
    if table is None:
        return
    size = 4 * table.count
    before, after = (
        [
            (word + (table.start + 4 * number if table.relative else 0)) % (1 << 32)
            for number, word in enumerate(struct.unpack(f"<{table.count}I", raw))
        ]
        for raw in (plan.image.read(table.start, size), memory.read(table.start, size))
    )
    check(
        after == [_moved_to(found, at) for at in before] and all(memory.read(at, 1) == LOCK for at in after),
        "the table of LOCK prefixes doesn't name them where they are",
    )


def _entries(table: FaultTable, raw: bytes) -> list[tuple[int, ...]]:
    """The entries as absolute addresses (and a number)."""
    found = []
    words = table.entry // 4
    for at in range(0, len(raw), table.entry):
        values = list(struct.unpack_from(f"<{words}I", raw, at))
        for number in range(words):
            if table.relative_third if number == 2 else table.relative:
                values[number] = (values[number] + table.start + at + 4 * number) % (1 << 32)
        found.append(tuple(values))
    return found


def _moved_to(found: Followed, address: int) -> int:
    moved = found.moved.get(address)
    return address if moved is None else moved.start


def check_displaced(emission: Emission, memory: Memory, found: Followed) -> None:
    """The address words are the old ones where they are now, with the same contents, each once.

    Words of the `.vmi` segment that lie in no trampoline are not the plan's.
    """
    image = emission.plan.image
    header = emission.header
    if header.displaced:
        packed = memory.read(header.displaced, header.displaced_size)
        check(unpack(packed) == emission.displaced, "the list of address words reads back differently")
    taken = _Ranges(_taken(emission.plan))
    kept = taken.without(image.displaced, 4)
    expected: dict[int, int] = {}  # where a word moved to, and where it was
    for one in [*found.moved.values(), *found.copies]:
        first = bisect_left(image.displaced, one.insn.address)
        for word in image.displaced[first : bisect_left(image.displaced, one.insn.end)]:
            check(one.insn.branch is None, f"the word at {word:#x} is in a branch")
            expected[one.start + word - one.insn.address] = word
    trampolines = _Ranges(found.ranges)
    end = emission.base + emission.header.size
    check(
        all(map(lt, emission.displaced, emission.displaced[1:])),
        "the list of address words isn't in order",
    )
    first, stop = bisect_left(emission.displaced, emission.base), bisect_left(emission.displaced, end)
    ours = [word for word in emission.displaced[first:stop] if trampolines.holds(word, word + 4)]
    named = [*emission.displaced[:first], *ours, *emission.displaced[stop:]]
    wanted = sorted([*kept, *expected])
    check(named == wanted, "the list of address words isn't that of the original, moved")
    # A word that stayed is the same if no byte of it changed, and few bytes did.
    for low, high in memory.changed([(segment.vaddr, segment.data) for segment in image.segments]):
        for word in kept[bisect_right(kept, low - 4) : bisect_left(kept, high)]:
            check(False, f"the address word at {word:#x} isn't the one from {word:#x}")
    for word, origin in expected.items():
        if memory.read(word, 4) != image.read(origin, 4):
            check(False, f"the address word at {word:#x} isn't the one from {origin:#x}")


def check_relocations(plan: Plan, sections: Sequence[Any], found: Followed) -> None:
    """The relocations that the linker kept name moved words where they are now, and none that is gone."""
    if not plan.image.relocations:
        return
    moved = sorted(found.moved.values(), key=lambda one: one.insn.address)
    starts = [one.insn.address for one in moved]
    taken = _Ranges(_taken(plan))
    for before, after in zip(_relocations(_sections(plan.image)), _relocations(sections), strict=True):
        for (address, info), (new, new_info) in zip(before, after, strict=True):
            if not taken.holds(address, address + 1):
                wanted = (address, info)
            else:
                index = bisect_right(starts, address) - 1
                wanted = _relocated(moved[index], address, info) if index >= 0 else (address, info & ~0xFF)
            check((new, new_info) == wanted, f"the relocation of the word at {address:#x} names {new:#x}")


def _relocated(one: Found, address: int, info: int) -> tuple[int, int]:
    """What a relocation becomes; ``one`` is the last instruction before its word that moved."""
    insn = one.insn
    gone = (address, info & ~0xFF)
    if address >= insn.end:
        return gone
    if insn.branch is None:
        return one.start + address - insn.address, info
    wide = address + 4 == insn.end and one.end - one.start > 4 and insn.branch is not Branch.LOOP
    return (one.end - 4, info) if wide else gone


def _sections(image: Image) -> Sequence[Any]:
    return list(open_elf(image.data).iter_sections())


def _relocations(sections: Sequence[Any]) -> Iterable[list[tuple[int, int]]]:
    """The entries of each section of relocations for loaded bytes."""
    for section in sections:
        if section["sh_type"] != "SHT_REL" or section["sh_info"] >= len(sections):
            continue
        if sections[section["sh_info"]]["sh_flags"] & SHF_ALLOC:
            raw = section.data()
            yield list(REL_ENTRY.iter_unpack(raw[: len(raw) // 8 * 8]))


def _taken(plan: Plan) -> list[tuple[int, int]]:
    """[start, end) of all that the plan overwrites in the text."""
    ranges = [(window.start, window.end) for window in plan.windows]
    ranges += [(pad.start, pad.end) for window in plan.windows for pad in window.pads]
    return ranges + [(w.springboard, w.springboard + 5) for w in plan.windows if w.springboard is not None]


class _Ranges:
    """Ranges to look addresses up in; those that overlap or touch are one."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        for start, end in sorted(ranges):
            if self.ends and start <= self.ends[-1]:
                self.ends[-1] = max(end, self.ends[-1])
            else:
                self.starts.append(start)
                self.ends.append(end)

    def without(self, words: Sequence[int], size: int) -> list[int]:
        """Those of ``words``, which are in order, of whose ``size`` bytes none lies in one of the ranges."""
        kept: list[int] = []
        first = 0
        for start, end in zip(self.starts, self.ends, strict=True):
            kept += words[first : bisect_right(words, start - size)]
            first = bisect_left(words, end)
        return [*kept, *words[first:]]

    def holds(self, start: int, end: int) -> bool:
        """True when a byte of [start, end) lies in one of the ranges."""
        index = bisect_right(self.starts, end - 1) - 1
        return index >= 0 and self.ends[index] > start
