# SPDX-License-Identifier: GPL-2.0-only
"""Turn a plan into bytes: the contents of the `.vmi` segment and the edits to the kernel's text.

Nothing here touches a file. The parts are laid out first, since all sizes follow from the plan; then
trampolines, adaptors and tables are built at their final addresses. ``verify`` checks the result
against the plan with other eyes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vmi.errors import BadInput
from vmi.patcher import adaptors, displaced, elf, trampoline
from vmi.patcher.activation import activation
from vmi.patcher.adaptorcode import Adaptor
from vmi.patcher.entry import entry_edit, entry_window, kludge_edit
from vmi.patcher.model import Plan, Site
from vmi.patcher.place import COMMAND_LINE_SIZE, ROM_RESERVE, Place
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
    pack_links,
    pack_sites,
)

ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class PlacedSite:
    """What finally became of a site: its record in the table, if it has one, or the reason why not."""

    site: Site
    tactic: Tactic
    reason: str
    record: SiteRecord | None

    def __repr__(self) -> str:
        return f"PlacedSite({self.site.address:#x}, {self.site.form}, {self.tactic})"


@dataclass(frozen=True, slots=True)
class PlacedAdaptor:
    """An adaptor at its virtual address, for one call, and how many slots use it."""

    address: int
    call: int
    adaptor: Adaptor
    users: int


@dataclass(frozen=True, slots=True)
class Emission:
    """Everything that goes into the output file, and how it came about."""

    plan: Plan
    place: Place
    header: Header
    segment: bytes = field(repr=False)
    edits: dict[int, bytes] = field(repr=False)
    entry: int  # the new e_entry, in the form (virtual or physical) that the old one had
    displaced: tuple[int, ...] = field(repr=False)  # of a Linux kernel, with the words of the segment
    entry_trampoline: Trampoline | None  # of a Linux kernel: where activation goes at its end
    sites: tuple[PlacedSite, ...] = field(repr=False)
    adaptors: tuple[PlacedAdaptor, ...] = field(repr=False)
    trampolines: tuple[Trampoline, ...] = field(repr=False)  # of the plan's windows

    @property
    def base(self) -> int:
        """Virtual address of the segment."""
        return self.place.layout.base

    @property
    def records(self) -> tuple[SiteRecord, ...]:
        """The site records, in slot order."""
        found = (placed.record for placed in self.sites if placed.record is not None)
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
    """Build the segment and the edits for a plan; raises BadInput when the segment would be too large."""
    image = plan.image
    layout = where.layout
    choice = _Choice(plan, where.hide_nx)
    links_at = layout.tables + choice.record_count * SITE_SIZE
    end = _align(links_at + choice.link_count * LINK_SIZE)
    placed_adaptors = []
    for (call, code), users in sorted(choice.users.items()):
        placed_adaptors.append(PlacedAdaptor(end, call, Adaptor(code, choice.holes[code]), users))
        end = _align(end + len(code))
    trampolines = []
    for window in plan.windows:
        trampolines.append(trampoline.build(window, end))
        end = _align(end + len(trampolines[-1].code))
    entry = None
    if where.linux:
        entry = trampoline.build(entry_window(plan), end)
        end = _align(end + len(entry.code))
    text = elf.entry_segment(image)
    physical = elf.entry_is_physical(image)
    original_entry = image.entry + text.offset if physical else image.entry
    header = Header(
        size=0,
        rom_reserve=layout.rom_reserve,
        rom_reserve_size=ROM_RESERVE,
        sites=layout.tables,
        site_count=choice.record_count,
        links=links_at,
        link_count=choice.link_count,
        original_entry=original_entry,
        activation_entry=layout.activation,
        image_flags=_image_flags(where, elf.multiboot(image.data) is not None, physical),
        bias=layout.bias & 0xFFFFFFFF,
        stack_top=layout.stack_top,
    )
    edits = {at: raw for built in trampolines for at, raw in trampoline.edits(built).items()}
    words: tuple[int, ...] = ()
    if entry is not None:
        edits[entry.window.start] = entry_edit(entry.window, layout.activation)
        header = replace(header, displaced=end)
        words = _displaced(plan, edits, [*trampolines, entry], activation(layout, header, entry.start).words)
        header = replace(header, displaced_size=len(displaced.pack(words)))
        end += header.displaced_size
    else:
        end += COMMAND_LINE_SIZE
    size = -(-(end - layout.base) // elf.PAGE) * elf.PAGE
    if size > where.limit:
        raise BadInput(f"the .vmi segment would have {size} bytes, the limit is {where.limit}")
    edits.update(kludge_edit(image, layout.physical(layout.base + size), layout.physical(layout.activation)))
    emission = Emission(
        plan=plan,
        place=where,
        header=replace(header, size=size),
        segment=b"",
        edits=edits,
        entry=image.entry if entry else layout.physical(layout.activation) if physical else layout.activation,
        displaced=words,
        entry_trampoline=entry,
        sites=choice.placed(trampolines, placed_adaptors),
        adaptors=tuple(placed_adaptors),
        trampolines=tuple(trampolines),
    )
    return _with_segment(emission)


def _displaced(
    plan: Plan, edits: dict[int, bytes], built: list[Trampoline], own: tuple[int, ...]
) -> tuple[int, ...]:
    """All words that move along with the kernel: its own, where they are now, and the segment's."""
    gone = {word for at, raw in edits.items() for word in range(at - 3, at + len(raw))}
    moved = []
    for one in built:
        at = one.start
        for insn in one.window.insns:
            moved += [at + n for n in range(insn.length - 3) if insn.address + n in plan.image.displaced]
            at += insn.length
    return tuple(sorted({*(word for word in plan.image.displaced if word not in gone), *moved, *own}))


def _image_flags(where: Place, multiboot: bool, physical: bool) -> ImageFlag:
    if where.linux:
        return ImageFlag.LINUX
    flags = ImageFlag(0)
    if multiboot:
        flags |= ImageFlag.MULTIBOOT
    if physical:
        flags |= ImageFlag.PHYSICAL_ENTRY
    return flags


def _align(address: int) -> int:
    return (address + ALIGNMENT - 1) & -ALIGNMENT


def _with_segment(emission: Emission) -> Emission:
    """Fill in the segment's bytes."""
    header, layout = emission.header, emission.place.layout
    records, links = emission.records, emission.links
    if (len(records), len(links)) != (header.site_count, header.link_count):
        raise ValueError("the tables don't have the sizes that they were laid out with")
    entry = emission.entry_trampoline
    parts = {
        layout.base: header.pack(),
        layout.activation: activation(layout, header, entry.start if entry else 0).code,
        header.sites: pack_sites(records),
        header.links: pack_links(links),
    }
    parts.update({placed.address: placed.adaptor.code for placed in emission.adaptors})
    parts.update({built.start: built.code for built in emission.trampolines})
    if entry is not None:
        parts[entry.start] = entry.code
        parts[header.displaced] = displaced.pack(emission.displaced)
    content = bytearray(header.size)
    end = layout.base
    for address, part in sorted(parts.items()):
        if address < end and part:
            raise ValueError(f"parts of the segment overlap at {address:#x}")
        end = max(end, address + len(part))
        content[address - layout.base : end - layout.base] = part
    return replace(emission, segment=bytes(content))


class _Choice:
    """Which slots get an adaptor and which none."""

    def __init__(self, plan: Plan, hide_nx: bool) -> None:
        self.plan = plan
        self.hide_nx = hide_nx
        self.codes: dict[int, bytes | None] = {}  # site address -> adaptor code, None = direct
        self.users: dict[tuple[int, bytes], int] = {}  # (call number, code) -> slots that use it
        self.holes: dict[bytes, int | None] = {}
        for placement in plan.placements:
            if placement.tactic.has_slot:
                self._choose(placement.site)

    def _choose(self, site: Site) -> None:
        adaptor = adaptors.choose(site, self.hide_nx)
        self.codes[site.address] = None if adaptor is None else adaptor.code
        if adaptor is not None:
            key = (_number(site), adaptor.code)
            self.users[key] = self.users.get(key, 0) + 1
            self.holes[adaptor.code] = adaptor.hole

    @property
    def link_count(self) -> int:
        """Adaptors that call the ROM; the inline ones don't."""
        return sum(self.holes[code] is not None for _call, code in self.users)

    @property
    def record_count(self) -> int:
        """Slots, and silent instructions without a slot."""
        return sum(placement.tactic is not Tactic.LEFT for placement in self.plan.placements)

    def placed(self, trampolines: list[Trampoline], made: list[PlacedAdaptor]) -> tuple[PlacedSite, ...]:
        """Every site of the plan with its record, in address order."""
        slots = {slot.site.address: slot for built in trampolines for slot in built.slots}
        for fixed in self.plan.slots:
            slots[fixed.site.address] = PlacedSlot(fixed.start, fixed.length, fixed.site)
        moved = {site.address: at for built in trampolines for at, site in built.traps}
        homes = {(placed.call, placed.adaptor.code): placed.address for placed in made}
        result = []
        for placement in self.plan.placements:
            site, tactic = placement.site, placement.tactic
            record = None
            if tactic.has_slot:
                record = self._slot_record(slots[site.address], tactic, homes)
            elif tactic is Tactic.TRAP:
                at = moved.get(site.address, site.address)
                record = SiteRecord(at, site.length, NO_CALL, tactic, _flags(site, at), 0, site.address)
            result.append(PlacedSite(site, tactic, placement.reason, record))
        return tuple(result)

    def _slot_record(
        self, slot: PlacedSlot, tactic: Tactic, homes: dict[tuple[int, bytes], int]
    ) -> SiteRecord:
        site, number = slot.site, _number(slot.site)
        code = self.codes[site.address]
        home = 0 if code is None else homes[number, code]
        flags = _flags(site, slot.instruction)
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
    return flags
