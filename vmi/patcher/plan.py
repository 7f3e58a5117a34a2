# SPDX-License-Identifier: GPL-2.0-only
"""Decides what becomes of every sensitive instruction of a kernel: the Plan.

Each instruction that a VMI call stands for gets a slot if any tactic can make one; each that can't is
accounted for with a reason. The same image always gives the same plan.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from vmi.patcher import alternatives, annotations, hints
from vmi.patcher.annotations import Annotated
from vmi.patcher.direction import set_direction
from vmi.patcher.edges import rescue
from vmi.patcher.entries import Entries
from vmi.patcher.flow import Code, Flow, flow
from vmi.patcher.forms import Effect, Form, pair
from vmi.patcher.gaps import Gaps
from vmi.patcher.isolation import isolated
from vmi.patcher.liveness import LivenessFinder
from vmi.patcher.mixed import refuse_mixed
from vmi.patcher.model import (
    MIN_SLOT,
    EntryCode,
    Image,
    Pad,
    Placement,
    Plan,
    Site,
    Skipped,
    Slot,
    Window,
)
from vmi.patcher.pagetables import NOT_A_START
from vmi.patcher.scan import scan
from vmi.patcher.windows import Wanted, WindowPlanner
from vmi.sitetable import Tactic

Refuse = Callable[[Site], str]
"""Gives a sentence when no adaptor can be made for a site, empty when one can."""

UNREACHED = "Nothing in the kernel leads to these bytes, so they may be data."
SHADOWED = "It holds off interrupts and must follow the instruction before it at once: no room for padding."


def accept_all(_site: Site) -> str:
    """The Refuse that refuses nothing."""
    return ""


@dataclass(frozen=True, slots=True)
class Found:
    """A sensitive instruction (or pair) of a listing: entries [index, stop).

    ``shadow``: it holds interrupts off for the instruction after it.
    """

    site: Site
    index: int
    stop: int
    shadow: bool


def make_plan(image: Image, refuse: Refuse = accept_all, extra: Mapping[int, Form] | None = None) -> Plan:
    """Plan ``image``. ``refuse`` may veto slots.

    ``extra`` makes sites of instructions that don't look like any, by address: stores of page-table entries.
    One that isn't where an instruction starts is in ``Plan.skipped``. Raises BadInput for annotations that
    lie, or mixed text.
    """
    found_flow = flow(scan(image, annotations.anchors(image)))
    refuse_mixed(found_flow)
    finder = LivenessFinder(found_flow)
    backwards = set_direction(found_flow)
    checked = [annotations.check(found_flow, record) for record in annotations.records(image)]
    lost = _add_forms(found_flow, checked, extra or {})
    entry_code = isolated(found_flow)
    padded = alternatives.slots(image)
    parts = [
        _plan_code(found_flow, code, finder, backwards, checked, refuse, entry_code, padded)
        for code in found_flow.codes
    ]
    harmless: Counter[str] = Counter()
    for part in parts:
        harmless.update(part.harmless)
    skipped = [*found_flow.scan.data, *found_flow.sixteen_bit, *lost]
    skipped += [one for part in parts for one in part.skipped]
    return Plan(
        image=image,
        windows=tuple(window for part in parts for window in part.windows),
        slots=tuple(slot for part in parts for slot in part.slots),
        placements=tuple(placement for part in parts for placement in part.placements),
        skipped=tuple(hints.merged(skipped)),
        harmless=tuple(sorted(harmless.items())),
        instructions=found_flow.scan.instructions,
        padding=tuple(pad for part in parts for pad in part.padding),
        fault_table=found_flow.scan.hints.fault_table,
        lock_table=found_flow.scan.hints.lock_table,
        entry_code=entry_code,
    )


def _add_forms(whole: Flow, checked: list[Annotated], extra: Mapping[int, Form]) -> list[Skipped]:
    """Enter forms that somebody gave for instructions that have none; gives those that are no instruction.

    Only now, when pins are set: such a store may fault as any other.
    """
    lost = []
    for one in checked:
        code = whole.code_at(one.record.start)
        if code is not None:
            code.listing.forms.setdefault(code.listing.starts[one.index], one.form)
    for address, form in sorted(extra.items()):
        code = whole.code_at(address)
        if code is None or code.listing.at(address) < 0:
            lost.append(Skipped(address, address + 1, NOT_A_START))
        else:
            code.listing.forms.setdefault(address, form)
    return lost


@dataclass(slots=True)
class _Part:
    """The plan of one listing."""

    windows: list[Window]
    slots: list[Slot]
    placements: list[Placement]
    skipped: list[Skipped]
    harmless: Counter[str]
    padding: list[Pad]


def _plan_code(
    whole: Flow,
    code: Code,
    finder: LivenessFinder,
    backwards: frozenset[int],
    checked: list[Annotated],
    refuse: Refuse,
    entry_code: EntryCode,
    padded: dict[int, str],
) -> _Part:
    listing = code.listing
    part = _Part([], [], [], [], Counter(), [])
    mine = {a.index: a for a in checked if listing.start <= a.record.start < listing.end}
    barriers = frozenset(index for a in mine.values() for index in range(listing.at(a.record.start), a.stop))
    gaps = Gaps(code, whole.sixteen_bit)
    planner = WindowPlanner(Entries(whole, code, barriers), gaps)
    wanted: list[Wanted] = []
    reasons: dict[int, str] = {}
    sites: list[Site] = []
    for found in _sites(whole, code, finder, mine, part):
        if found.site.address in backwards:
            found = replace(found, site=replace(found.site, direction=True))
        if found.site.address in entry_code:
            found = replace(found, site=replace(found.site, isolated=True))
        whole_slot = _whole_slot(code, found, padded)
        if whole_slot:
            found = replace(found, site=replace(found.site, pad_after=True))
        site = found.site
        sites.append(site)
        reason = _obstacle(code, found, refuse, found.index in mine or whole_slot)
        if reason:
            reasons[site.address] = reason
        elif found.index in mine:
            record = mine[found.index].record
            part.slots.append(Slot(record.start, record.length, site, Tactic.ANNOTATED))
            planner.tactics[site.address] = Tactic.ANNOTATED
        elif whole_slot:
            planner.tactics[site.address] = Tactic.IN_PLACE
        else:
            wanted.append(Wanted(site, found.index, found.stop))
    planner.place(wanted)
    rescue(planner)
    _note_moved(planner, wanted)
    for one in planner.failed:
        reasons[one.site.address] = planner.why(one)
    for site in sites:
        tactic = planner.tactics.get(site.address) or _leftover(code, site)
        part.placements.append(Placement(site, tactic, reasons.get(site.address, "")))
        if tactic is Tactic.IN_PLACE:
            part.slots.append(Slot(site.address, max(MIN_SLOT, site.length), site, tactic))
    part.slots.sort(key=lambda slot: slot.start)
    slotted = {one.site.address: one.site for one in wanted if one.site.address in planner.tactics}
    traps = {p.site.address: p.site for p in part.placements if p.tactic is Tactic.TRAP}
    part.windows.extend(planner.windows(slotted, traps))
    part.padding.extend(gaps.pads())
    return part


def _note_moved(planner: WindowPlanner, wanted: list[Wanted]) -> None:
    """Long sites that a window took along after all have their slot there."""
    for one in wanted:
        if planner.tactics.get(one.site.address) is Tactic.IN_PLACE and planner.draft_of(one.index):
            planner.tactics[one.site.address] = Tactic.MERGED


def _sites(
    whole: Flow, code: Code, finder: LivenessFinder, mine: dict[int, Annotated], part: _Part
) -> Iterator[Found]:
    """All sites of a listing in address order; notes what is skipped or harmless in ``part``."""
    listing = code.listing
    wide = [one for one in whole.sixteen_bit if one.start < listing.end and one.end > listing.start]
    done = -1
    for address in sorted(listing.forms):
        index = listing.at(address)
        within = bisect_right(wide, address, key=lambda one: one.start) - 1
        if index < done or (within >= 0 and address < wide[within].end):
            continue
        form = listing.forms[address]
        stop = index + 1
        never = _never_runs(code, address)
        if never:
            part.skipped.append(Skipped(address, listing.stop(index), never))
            continue
        if index not in mine and not code.reached[index]:
            if form.effect is not Effect.HARMLESS:
                part.skipped.append(Skipped(address, listing.stop(index), UNREACHED))
            continue
        if index in mine:
            form, stop = mine[index].form, mine[index].stop
        elif listing.joined(index) and not code.is_label(listing.starts[stop]):
            both = pair(form, listing.forms.get(listing.starts[stop]))
            if both is not None:
                form, stop = both, stop + 1
        if form.effect is Effect.HARMLESS:
            part.harmless[form.name] += 1
            continue
        done = stop
        site = _site(code, finder, form, index, stop)
        recovered = any(listing.starts[i] in whole.recovered for i in range(index, stop))
        if index not in mine and (recovered or _in_shadow(code, index)):
            site = replace(site, pad_after=True, recovered=recovered)
        yield Found(site, index, stop, form.shadow)


def _never_runs(code: Code, address: int) -> str:
    """Why an instruction never runs where it is, empty when it may."""
    pin = code.pin(address, address + 1)
    return pin.reason if pin is not None and pin.reason in hints.NO_CODE_SECTIONS.values() else ""


def _in_shadow(code: Code, index: int) -> bool:
    """True when interrupts are still held off by the instruction before entry ``index``."""
    listing = code.listing
    if not index or not listing.joined(index - 1):
        return False
    before = listing.forms.get(listing.starts[index - 1])
    return before is not None and before.shadow


def _site(code: Code, finder: LivenessFinder, form: Form, index: int, stop: int) -> Site:
    listing = code.listing
    live = finder.after(listing.starts[stop - 1])
    return Site(
        address=listing.starts[index],
        raw=b"".join(listing.raw(i) for i in range(index, stop)),
        form=form.name,
        call=form.call,
        inline=form.inline,
        silent=form.effect is Effect.SILENT,
        trapping=form.effect is Effect.TRAPS,
        flags_live=live.flags,
        dead=live.dead,
    )


def _whole_slot(code: Code, found: Found, padded: dict[int, str]) -> bool:
    """True when the NOPs behind a site make a slot of it that only the kernel itself writes to."""
    site = found.site
    end = site.address + MIN_SLOT
    return (
        padded.get(site.address) == site.form
        and not (site.recovered or site.pad_after or found.shadow)
        and end <= code.listing.end
        and not any(map(code.is_label, range(site.address + 1, end)))
    )


def _obstacle(code: Code, found: Found, refuse: Refuse, annotated: bool) -> str:
    """Why a site can't have a slot whatever surrounds it, empty when it may."""
    site = found.site
    if site.call is None and not site.inline:
        return f"No VMI call stands for `{site.form}`."
    pin = code.pin(site.address, site.end)
    if pin is not None and not annotated:
        return pin.reason
    if site.pad_after and site.length < MIN_SLOT and found.shadow:
        return SHADOWED
    return refuse(site)


def _leftover(code: Code, site: Site) -> Tactic:
    pin = code.pin(site.address, site.end)
    return Tactic.TRAP if site.silent and not (pin is not None and pin.untouchable) else Tactic.LEFT
