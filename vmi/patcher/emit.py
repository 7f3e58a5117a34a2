# SPDX-License-Identifier: GPL-2.0-only
"""Turn a plan into bytes: the contents of the `.vmi` segment and the edits to the kernel's text and tables.

Nothing here touches a file. The parts are laid out first, since all sizes follow from the plan; then
trampolines, adaptors and tables are built at their final addresses, and whatever knew the moved
instructions by address is told. ``verify`` checks the result against the plan with other eyes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, replace

from vmi.errors import BadInput
from vmi.patcher import (
    absolute,
    adaptors,
    alternatives,
    displaced,
    elf,
    faulttable,
    locktable,
    paravirt,
    trampoline,
    words,
)
from vmi.patcher.activation import activation
from vmi.patcher.adaptorcode import Adaptor
from vmi.patcher.entry import entry_edit, entry_window, kludge_edit
from vmi.patcher.model import Plan, Site
from vmi.patcher.place import COMMAND_LINE_SIZE, ROM_RESERVE, Layout, Place
from vmi.patcher.trampoline import PlacedSlot, Trampoline
from vmi.sitetable import (
    INLINE,
    LINK_SIZE,
    NO_CALL,
    SITE_SIZE,
    Header,
    ImageFlag,
    LinkRecord,
    SiteFlag,
    SiteRecord,
    Tactic,
    header_offset,
    pack_links,
    pack_sites,
)

ALIGNMENT = 16


class TooLarge(BadInput):
    """The segment has more bytes than there are at its place."""


@dataclass(frozen=True, slots=True)
class PlacedSite:
    """What finally became of a site: its records in the table, or the reason why it has none.

    Only a site that stays where it is, with copies on the ways to it, has more than one.
    """

    site: Site
    tactic: Tactic
    reason: str
    records: tuple[SiteRecord, ...]

    @property
    def record(self) -> SiteRecord | None:
        """The first record, None when there is none."""
        return self.records[0] if self.records else None

    def __repr__(self) -> str:
        return f"PlacedSite({self.site.address:#x}, {self.site.form}, {self.tactic})"


@dataclass(frozen=True, slots=True)
class PlacedAdaptor:
    """An adaptor at its virtual address, for one call, and how many slots use it."""

    address: int
    call: int
    adaptor: Adaptor
    users: int
    words: tuple[int, ...] = ()  # offsets in its code of addresses that move along with the kernel


@dataclass(frozen=True, slots=True)
class Emission:
    """Everything that goes into the output file, and how it came about.

    ``edits`` are by virtual address, and no two overlap; ``file_edits`` are by offset in the original file,
    for what is not loaded. ``displaced`` is what ``Image.displaced`` becomes: sorted, without the words of
    the `.vmi` segment other than those in trampolines.
    """

    plan: Plan
    place: Place
    header: Header
    segment: bytes = field(repr=False)
    edits: dict[int, bytes] = field(repr=False)
    entry: int  # the new e_entry, in the form (virtual or physical) that the old one had
    sites: tuple[PlacedSite, ...] = field(repr=False)
    adaptors: tuple[PlacedAdaptor, ...] = field(repr=False)
    trampolines: tuple[Trampoline, ...] = field(repr=False)
    displaced: tuple[int, ...] = field(default=(), repr=False)  # the segment's own words included
    first: Trampoline | None = field(
        default=None, repr=False
    )  # whose window jumps to activation, and it here
    file_edits: dict[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def base(self) -> int:
        """Virtual address of the segment."""
        return self.place.layout.base

    @property
    def records(self) -> tuple[SiteRecord, ...]:
        """The site records, in slot order."""
        found = (record for placed in self.sites for record in placed.records)
        return tuple(sorted(found, key=lambda record: record.slot))

    @property
    def links(self) -> tuple[LinkRecord, ...]:
        """The link records, in address order."""
        return tuple(
            LinkRecord(placed.address + placed.adaptor.hole, placed.call)
            for placed in self.adaptors
            if placed.adaptor.hole is not None
        )


def emit(plan: Plan, where: Place) -> Emission:
    """Build the segment and the edits for a plan; raises TooLarge when its place is too small.

    A Linux kernel gets one window more, at its entry point. A segment that ends at a fixed address is built
    twice, since only its size tells where it begins; nothing in it has a size that depends on its address.
    """
    emission = _emit(plan, where)
    if where.top is not None:
        size = emission.header.size
        emission = _emit(plan, where.ending(size))
        if emission.header.size != size:
            raise ValueError(f"the segment has {emission.header.size} bytes at another address, not {size}")
    return emission


def _emit(plan: Plan, where: Place) -> Emission:
    image = plan.image
    window_at_entry = entry_window(plan) if where.linux else None
    if window_at_entry is not None:
        windows = sorted((*plan.windows, window_at_entry), key=lambda window: window.start)
        plan = replace(plan, windows=tuple(windows))
    layout = where.layout
    choice = _Choice(plan, where.hide_nx)
    links_at = layout.tables + choice.record_count * SITE_SIZE
    end = _align(links_at + choice.link_count * LINK_SIZE)
    placed_adaptors = []
    for (call, code, inside), users in sorted(choice.users.items()):
        placed_adaptors.append(PlacedAdaptor(end, call, Adaptor(code, choice.holes[code]), users, inside))
        end = _align(end + len(code))
    trampolines = []
    for window in plan.windows:
        trampolines.append(trampoline.build(window, end))
        if not window.pads:
            end = _align(end + len(trampolines[-1].code))
    trampolines = trampoline.link(trampolines)
    physical = elf.entry_is_physical(image)
    header = Header(
        size=0,
        rom_reserve=layout.rom_reserve,
        rom_reserve_size=ROM_RESERVE,
        sites=layout.tables,
        site_count=choice.record_count,
        links=links_at,
        link_count=choice.link_count,
        original_entry=elf.physical_entry(image) + layout.bias & 0xFFFFFFFF,
        activation_entry=layout.activation,
        image_flags=_image_flags(where, elf.multiboot(image.data) is not None, physical),
        bias=layout.bias & 0xFFFFFFFF,
        stack_top=layout.stack_top,
    )
    edits = trampoline.edits(trampolines)
    first = next((built for built in trampolines if built.window is window_at_entry), None)
    moving = words.displaced(image, trampolines, edits)
    entry = layout.loaded(layout.activation) if physical else layout.activation
    cleared = _cleared(plan, layout)
    if cleared:
        header = replace(header, cleared=end, cleared_size=len(cleared))
        end += len(cleared)
    if first is None:
        end += COMMAND_LINE_SIZE
    else:
        header = replace(header, displaced=end)
        own = [*activation(layout, header, first.start).words]
        own += [placed.address + at for placed in placed_adaptors for at in placed.words]
        own += [header.cleared, layout.base + header_offset("cleared")] if cleared else []
        moving = tuple(sorted((*moving, *own)))
        header = replace(header, displaced_size=len(displaced.pack(moving)))
        end += header.displaced_size
        edits[first.window.start] = entry_edit(first.window, layout.activation)
        entry = image.entry
    size = _align(end - layout.base, elf.PAGE)
    if size > where.limit:
        raise TooLarge(f"the .vmi segment would have {size} bytes, the limit is {where.limit}")
    loads = kludge_edit(image, layout.loaded(layout.base + size), layout.loaded(layout.activation))
    emission = Emission(
        plan=plan,
        place=where,
        header=replace(header, size=size),
        segment=b"",
        edits=edits | _table_edits(plan, trampolines) | loads,
        entry=entry,
        sites=choice.placed(trampolines, placed_adaptors),
        adaptors=tuple(placed_adaptors),
        trampolines=tuple(trampolines),
        displaced=moving,
        file_edits=words.relocation_edits(image, trampolines, edits),
        first=first,
    )
    return _with_segment(emission)


def _table_edits(plan: Plan, trampolines: list[Trampoline]) -> dict[int, bytes]:
    edits: dict[int, bytes] = {}
    if plan.fault_table is not None:
        edits |= faulttable.edit(plan.image, plan.fault_table, trampolines)
    if plan.lock_table is not None:
        edits |= locktable.edit(plan.image, plan.lock_table, trampolines)
    return edits


def _image_flags(where: Place, multiboot: bool, physical: bool) -> ImageFlag:
    if where.linux:
        return ImageFlag.LINUX
    flags = ImageFlag.LIFTED if where.layout.lift else ImageFlag(0)
    if multiboot:
        flags |= ImageFlag.MULTIBOOT
    if physical:
        flags |= ImageFlag.PHYSICAL_ENTRY
    return flags


def _cleared(plan: Plan, layout: Layout) -> bytes:
    """The packed list of bytes that become 0 when a ROM is active; empty when there are none."""
    found = tuple(sorted((*paravirt.lengths(plan.image), *alternatives.lengths(plan))))
    for address in found:
        segment = plan.image.segment_at(address)
        if segment is None or segment.offset != layout.bias:
            raise BadInput(
                f"the byte at {address:#x}, which must be cleared when there is a ROM, is not at the same "
                "distance from its physical address as the text"
            )
    return displaced.pack(found) if found else b""


def _align(address: int, to: int = ALIGNMENT) -> int:
    return (address + to - 1) & -to


def _with_segment(emission: Emission) -> Emission:
    """Fill in the segment's bytes."""
    header, layout = emission.header, emission.place.layout
    records, links = emission.records, emission.links
    if (len(records), len(links)) != (header.site_count, header.link_count):
        raise ValueError("the tables don't have the sizes that they were laid out with")
    first = emission.first
    parts = {
        layout.base: header.pack(),
        layout.activation: activation(layout, header, first.start if first else 0).code,
        header.sites: pack_sites(records),
        header.links: pack_links(links),
    }
    parts.update({placed.address: placed.adaptor.code for placed in emission.adaptors})
    parts.update({built.start: built.code for built in emission.trampolines if not built.window.pads})
    if header.cleared:
        parts[header.cleared] = _cleared(emission.plan, layout)
    if first is not None:
        parts[header.displaced] = displaced.pack(emission.displaced)
    content = bytearray(header.size)
    end = layout.base
    for address, part in sorted(parts.items()):
        if address < end and part:
            raise ValueError(f"parts of the segment overlap at {address:#x}")
        end = max(end, address + len(part))
        content[address - layout.base : end - layout.base] = part
    return replace(emission, segment=bytes(content))


_Key = tuple[int, bytes, tuple[int, ...]]
"""An adaptor: call number, code, offsets of the words in it that move along with the kernel."""


class _Choice:
    """Which slots get an adaptor and which none."""

    def __init__(self, plan: Plan, hide_nx: bool) -> None:
        self.plan = plan
        self.hide_nx = hide_nx
        self.keys: dict[int, _Key | None] = {}  # site address -> adaptor, None = direct
        self.users: dict[_Key, int] = {}  # adaptor -> slots that use it
        self.holes: dict[bytes, int | None] = {}
        self.copies = Counter(site.address for window in plan.windows for site in window.edges)
        for placement in plan.placements:
            if placement.tactic.has_slot:
                self._choose(placement.site)

    def _choose(self, site: Site) -> None:
        adaptor = adaptors.choose(site, self.hide_nx)
        self.keys[site.address] = None
        if adaptor is not None:
            key = (_number(site), adaptor.code, self._words(site, adaptor.code))
            self.keys[site.address] = key
            self.users[key] = self.users.get(key, 0) + self.copies.get(site.address, 1)
            self.holes[adaptor.code] = adaptor.hole

    def _words(self, site: Site, code: bytes) -> tuple[int, ...]:
        """Offsets in the adaptor's code of words that come from words of the site that move along."""
        old = self.plan.image.displaced
        low, high = bisect_left(old, site.address), bisect_left(old, site.end)
        inside = tuple(word - site.address for word in old[low:high])
        if not inside:
            return ()
        other = adaptors.choose(replace(site, raw=absolute.moved_site(site, inside)), self.hide_nx)
        return absolute.differences(code, other.code if other is not None else b"")

    @property
    def link_count(self) -> int:
        """Adaptors that call the ROM; the inline ones don't."""
        return sum(self.holes[code] is not None for _call, code, _words in self.users)

    @property
    def record_count(self) -> int:
        """Slots, and silent instructions without a slot."""
        return sum(
            self.copies.get(placement.site.address, 1)
            for placement in self.plan.placements
            if placement.tactic is not Tactic.LEFT
        )

    def placed(self, trampolines: list[Trampoline], made: list[PlacedAdaptor]) -> tuple[PlacedSite, ...]:
        """Every site of the plan with its record, in address order."""
        slots: dict[int, list[PlacedSlot]] = {}
        for built in trampolines:
            for slot in built.slots + built.edges:
                slots.setdefault(slot.site.address, []).append(slot)
        for fixed in self.plan.slots:
            slots[fixed.site.address] = [PlacedSlot(fixed.start, fixed.length, fixed.site)]
        moved = {site.address: at for built in trampolines for at, site in built.traps}
        homes = {(placed.call, placed.adaptor.code, placed.words): placed.address for placed in made}
        result = []
        for placement in self.plan.placements:
            site, tactic = placement.site, placement.tactic
            records: tuple[SiteRecord, ...] = ()
            if tactic.has_slot:
                records = tuple(self._slot_record(slot, tactic, homes) for slot in slots[site.address])
            elif tactic is Tactic.TRAP:
                at = moved.get(site.address, site.address)
                records = (SiteRecord(at, site.length, NO_CALL, tactic, _flags(site, at), 0, site.address),)
            result.append(PlacedSite(site, tactic, placement.reason, records))
        return tuple(result)

    def _slot_record(self, slot: PlacedSlot, tactic: Tactic, homes: dict[_Key, int]) -> SiteRecord:
        site, number = slot.site, _number(slot.site)
        key = self.keys[site.address]
        home = 0 if key is None else homes[key]
        flags = _flags(site, slot.instruction)
        if site.pad_after:
            flags |= SiteFlag.PAD_AFTER
        return SiteRecord(slot.start, slot.length, number, tactic, flags, home, site.address)


def _number(site: Site) -> int:
    if site.inline:
        return INLINE
    if site.call is None:
        raise ValueError(f"the plan gives the site at {site.address:#x} a slot, but no call stands for it")
    return site.call.number


def _flags(site: Site, at: int) -> SiteFlag:
    flags = SiteFlag(0)
    if site.flags_live:
        flags |= SiteFlag.FLAGS_LIVE
    if site.call is not None and site.form in adaptors.JUMP_OK:
        flags |= SiteFlag.JUMP_OK
    if site.form in adaptors.NOP_OK:
        flags |= SiteFlag.NOP_OK
    if at != site.address:
        flags |= SiteFlag.MOVED
    if site.silent:
        flags |= SiteFlag.SILENT
    if site.recovered:
        flags |= SiteFlag.RECOVERED
    if site.isolated:
        flags |= SiteFlag.ISOLATED
    return flags
