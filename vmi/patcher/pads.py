# SPDX-License-Identifier: GPL-2.0-only
"""Put the trampolines of a plan into the padding of the text itself.

A kernel that forbids the execution of everything but its text, or that runs some of its code with little
else mapped, can't run trampolines in the `.vmi` segment. Padding comes in runs of a few bytes, so most
trampolines become chains of pieces (``chains``). Padding in the page of a window is mapped and executable
whenever the window is, so that is where they go if they can, and where those of code that may run isolated
must go, or into a page that is known to be mapped together with it. But sensitive instructions come in
crowds: a driver's page full of `out` has not nearly enough padding. Then the window of other code takes
padding from other pages of its section, or of the main text, which a kernel that runs at all has mapped and
executable, and never gives back as it does its start-up code.

A window that finds no room is given up, and so is whatever needed it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vmi.patcher import chains
from vmi.patcher.chains import Job
from vmi.patcher.elf import PAGE
from vmi.patcher.model import MIN_SLOT, Access, Image, Pad, Placement, Plan, Slot, Window
from vmi.patcher.pieces import JMP8_SIZE, JMP32_SIZE, whole
from vmi.sitetable import Tactic

NO_ROOM = "The padding of the text has no room for its trampoline."
NO_ROOM_ISOLATED = (
    "The padding in its page has no room for its trampoline, and other pages may not be mapped."
)
NO_HOST = "The window that its short jump leads through found no room in the padding."
FAR_BOARD = "Its short jump leads to another page, which may not be mapped."
TABLES_CHANGE = "Its window changes how pages are mapped, at the end of one."
OPEN_WAY = "A branch into its window found no room in the padding, so it comes to where it was."
OPEN_EDGE = "On one of the ways to it the padding has no room for a copy of it."

CHANGES_TABLES = frozenset(("mov cr0,r", "mov cr3,r", "mov cr4,r"))
LONG = 12
"""Bytes of a pad that is worth to be looked for in pages further off."""
LONG_PADS, ANY_PADS = 32, 16
"""Number of long and of other pads from which the chain of a window is chosen when its own page is full."""


def into_padding(plan: Plan) -> Plan:
    """The plan with ``pads`` for every window, and without the windows that find no room.

    The sites of such a window become LEFT or TRAP with a reason, or IN_PLACE when they have a slot's size by
    themselves. A window that then stands for no site any more goes too. ``Plan.padding`` is what is left of
    it. The same plan always gives the same result.
    """
    windows = {window.start: replace(window, pads=()) for window in plan.windows}
    reasons: dict[int, str] = {}
    while True:
        packer = _Packer(plan, windows)
        packer.run()
        before = dict(windows)
        _give_up(windows, packer.refused, reasons)
        if all(before[start] == window for start, window in windows.items()):
            return _result(plan, packer, windows, reasons)


def _give_up(windows: dict[int, Window], refused: Mapping[int, str], reasons: dict[int, str]) -> None:
    """Take windows out, and all that can't be without them; ``reasons`` are by the sites' addresses."""
    todo = list(refused.items())
    for start, reason in todo:
        window = windows.pop(start, None)
        if window is None:
            continue
        reasons.update((site.address, reason) for site in window.sites)
        board = window.springboard or 0
        for other in list(windows.values()):
            if other.start < board < other.end and not (other.sites or other.edges or other.inner):
                todo.append((other.start, NO_HOST))  # it was made to be the host, and nothing else
            if other.springboard is not None and window.start <= other.springboard < window.end:
                todo.append((other.start, NO_HOST))
            edges = tuple(site for site in other.edges if site not in window.edges)
            inner = tuple(target for target in other.inner if not window.start < target < window.end)
            if (edges, inner) != (other.edges, other.inner):
                windows[other.start] = replace(other, edges=edges, inner=inner)
                if not (other.sites or edges or inner):
                    todo.append((other.start, OPEN_EDGE))
            if any(other.start < target < other.end for target in window.inner):
                todo.append((other.start, OPEN_WAY))
        reasons.update((site.address, OPEN_EDGE) for site in window.edges)


class _Packer:
    """One try to find room for all windows: ``pads`` and ``refused`` (why not) by their starts."""

    def __init__(self, plan: Plan, windows: Mapping[int, Window]) -> None:
        self.image = plan.image
        self.free: dict[int, tuple[Pad, ...]] = {}  # by page
        for piece in (piece for pad in plan.padding for piece in _by_page(pad)):
            self.free[piece.start // PAGE] = (*self.free.get(piece.start // PAGE, ()), piece)
        self.longest: dict[int, int] = {}  # bytes of a page's longest pad, once it was looked for
        self.zones: _Zones | None = None  # once windows take padding from other pages
        self.entry_code = plan.entry_code
        self.mapped = [range(one.start // PAGE, one.stop // PAGE) for one in plan.entry_code.mapped]
        self.windows = windows
        self.pads: dict[int, tuple[Pad, ...]] = {}
        self.refused: dict[int, str] = {}

    def run(self) -> None:
        jobs = [chains.job(window) for window in self.windows.values()]
        alone = {page for job in jobs if self._alone(job.window) for page in _pages(job.window)}
        isolated = [job for job in jobs if alone.intersection(_pages(job.window))]
        self._isolated(isolated)
        self._others([job for job in jobs if not alone.intersection(_pages(job.window))])

    def _isolated(self, jobs: Sequence[Job]) -> None:
        """Windows that must have their pads in a page of their own, or in one that is mapped with it."""
        todo: dict[range, list[Job]] = {}
        places: dict[int, list[range]] = {}
        for job in jobs:
            window = job.window
            near = {self._together(page) for page in _steady_pages(window)}
            if window.springboard is not None:
                board = window.springboard // PAGE
                if not any(board in self._together(page) for page in _pages(window)):
                    self.refused[window.start] = FAR_BOARD
                    continue
            if not near:
                self.refused[window.start] = TABLES_CHANGE
                continue
            places[window.start] = sorted(near, key=lambda one: one.start)
            todo.setdefault(places[window.start].pop(0), []).append(job)
        while todo:
            pages = min(todo, key=lambda one: one.start)
            mine = todo.pop(pages)
            packed = chains.pack(mine, [pad for page in pages for pad in self.free.get(page, ())])
            for page in pages:
                self.free[page] = tuple(pad for pad in packed.free if pad.start // PAGE == page)
            self.pads.update(packed.pads)
            for job in mine:
                start = job.window.start
                if start in packed.pads:
                    continue
                if places[start]:
                    todo.setdefault(places[start].pop(0), []).append(job)
                else:
                    self.refused[start] = NO_ROOM_ISOLATED

    def _alone(self, window: Window) -> bool:
        """True when some of a window's instructions may run isolated."""
        sites = (*window.sites, *window.traps, *window.edges)
        return any(site.isolated for site in sites) or any(
            insn.address in self.entry_code for insn in window.insns
        )

    def _together(self, page: int) -> range:
        """The numbers of the pages that are surely mapped whenever ``page`` is."""
        for one in self.mapped:
            if page in one:
                return one
        return range(page, page + 1)

    def _others(self, jobs: Sequence[Job]) -> None:
        """Windows that may have their pads in other pages: their own page first, for all of them."""
        crowded = []
        for job in sorted(jobs, key=lambda job: job.rank):
            for page in _pages(job.window):
                if self._take(job, chains.chain(job.cut, self.free.get(page, ()), _fair(job))):
                    break
            else:
                crowded.append(job)
        if not crowded:
            return
        zones = self.zones = _zones(self.image, self.free)
        for job in crowded:
            if not (
                self._take(job, chains.chain(job.cut, self._around(zones, job)))
                or self._take(job, chains.chain(job.cut, self._roomy(zones, job)))
            ):
                self.refused[job.window.start] = NO_ROOM

    def _around(self, zones: _Zones, job: Job) -> list[Pad]:
        """Padding to choose from: the nearest of all sizes, and long ones from further off.

        An instruction that hardly fits anywhere needs a long pad that an 8-bit jump leads on from, so those
        come with their neighbours.
        """
        enough = max(LONG_PADS, whole(job.cut) // 5)
        largest = max(unit.lead + unit.long for unit in job.cut)
        long = max(LONG, largest + JMP8_SIZE)
        beside = int(largest + JMP32_SIZE >= LONG)
        pool: dict[int, Pad] = {}  # by start
        count = 0
        for page in self._pages(zones, job.window.start, pool):
            free = self.free[page]
            if len(pool) < ANY_PADS:
                pool.update((pad.start, pad) for pad in free[: ANY_PADS - len(pool)])
            if self._longest(page) < long:
                continue
            for number, pad in enumerate(free):
                if pad.size >= long:
                    near = free[max(0, number - beside) : number + beside + 1]
                    pool.update((one.start, one) for one in near)
                    count += 1
            if count >= enough:
                break
        return [pool[start] for start in sorted(pool)]

    def _pages(self, zones: _Zones, address: int, pool: Mapping[int, Pad]) -> Iterator[int]:
        """Pages around an address, the nearest first, and only those with long pads once that many are found.

        Most pages have none left, and going through all of them took most of the time.
        """
        seen = set()
        for page in zones.around(address):
            if len(pool) >= ANY_PADS:
                break
            seen.add(page)
            yield page
        if len(pool) >= ANY_PADS:
            yield from (page for page in zones.around(address, rich=True) if page not in seen)

    def _roomy(self, zones: _Zones, job: Job) -> list[Pad]:
        """The nearest padding of which each run has room for any part of the trampoline: always enough.

        What is nearest may be too small for too many parts, or of sizes that the search finds no way with.
        """
        size = max(unit.lead + unit.long for unit in job.cut) + JMP32_SIZE
        pool: list[Pad] = []
        for page in zones.around(job.window.start):
            if self._longest(page) >= size:
                pool += [pad for pad in self.free[page] if pad.size >= size]
            if len(pool) >= len(job.cut):
                break
        return sorted(pool, key=lambda pad: pad.start)

    def _longest(self, page: int) -> int:
        """Bytes of the longest pad of a page."""
        found = self.longest.get(page)
        if found is None:
            found = self.longest[page] = max((pad.size for pad in self.free[page]), default=0)
        return found

    def _take(self, job: Job, found: tuple[Pad, ...]) -> bool:
        if found:
            self.pads[job.window.start] = found
            for page in {pad.start // PAGE for pad in found}:
                self.longest.pop(page, None)
                self.free[page] = chains.without(self.free[page], found)
                if self.zones is not None and self._longest(page) < LONG:
                    self.zones.impoverish(page)
        return bool(found)


def _fair(job: Job) -> int:
    """As few pieces as one may hope for where functions are padded to 16 bytes."""
    return 1 + max(0, -(-(whole(job.cut) - 15) // 10))


def _pages(window: Window) -> list[int]:
    """Numbers of the pages that a window lies in."""
    return sorted({window.start // PAGE, (window.end - 1) // PAGE})


def _steady_pages(window: Window) -> list[int]:
    """Those of them that are surely mapped as long as the window's instructions run."""
    pages = _pages(window)
    for insn in window.insns:
        if insn.form in CHANGES_TABLES:
            pages = [page for page in pages if page == window.start // PAGE == insn.end // PAGE]
    return pages


def _by_page(pad: Pad) -> Iterator[Pad]:
    """The parts of a pad in each page that are long enough to be used."""
    start, stop = pad.start, pad.end
    if start // PAGE == (stop - 1) // PAGE and pad.size >= MIN_SLOT:
        yield pad
        return
    while start < stop:
        end = min(stop, (start // PAGE + 1) * PAGE)
        if end - start >= MIN_SLOT:
            yield Pad(start, end - start)
        start = end


# ---------------------------------------------------------------- the result


def _result(plan: Plan, packer: _Packer, windows: Mapping[int, Window], reasons: Mapping[int, str]) -> Plan:
    kept = [windows[window.start] for window in plan.windows if window.start in windows]
    placements = tuple(_placement(placement, reasons) for placement in plan.placements)
    slots = list(plan.slots)
    for before, after in zip(plan.placements, placements, strict=True):
        if after.tactic is Tactic.IN_PLACE and before.tactic is not Tactic.IN_PLACE:
            slots.append(Slot(after.site.address, after.site.length, after.site, after.tactic))
    return replace(
        plan,
        windows=tuple(replace(window, pads=packer.pads[window.start]) for window in kept),
        slots=tuple(sorted(slots, key=lambda slot: slot.start)),
        placements=placements,
        padding=tuple(_left(plan.padding, [pad for window in kept for pad in packer.pads[window.start]])),
    )


def _left(padding: Sequence[Pad], taken: Sequence[Pad]) -> Iterator[Pad]:
    """The parts of padding that are not taken, and long enough to be used."""
    order = sorted(taken, key=lambda pad: pad.start)
    starts = [pad.start for pad in order]
    for piece in (piece for pad in padding for piece in _by_page(pad)):
        at = piece.start
        inside = order[bisect_left(starts, piece.start) : bisect_left(starts, piece.end)]
        if not inside:
            yield piece
            continue
        for start, end in [*((pad.start, pad.end) for pad in inside), (piece.end, piece.end)]:
            if start - at >= MIN_SLOT:
                yield Pad(at, start - at)
            at = end


def _placement(placement: Placement, reasons: Mapping[int, str]) -> Placement:
    site = placement.site
    reason = reasons.get(site.address)
    if reason is None:
        return placement
    if site.length >= MIN_SLOT and placement.tactic is not Tactic.EDGE:
        return Placement(site, Tactic.IN_PLACE)
    return Placement(site, Tactic.TRAP if site.silent else Tactic.LEFT, reason)


# ---------------------------------------------------------------- other pages


@dataclass(frozen=True, slots=True)
class _Zone:
    """An executable section (or segment, if the file tells no sections) and its pages that have padding.

    ``rich``: those of them that still have a long pad.
    """

    start: int
    end: int
    bias: int
    pages: tuple[int, ...]
    rich: list[int]


@dataclass(frozen=True, slots=True)
class _Zones:
    """All of them; ``main`` is the one with the most padding."""

    zones: tuple[_Zone, ...]
    main: _Zone

    def around(self, address: int, rich: bool = False) -> Iterator[int]:
        """Pages whose padding a window at ``address`` may take, the nearest first."""
        mine = next((zone for zone in self.zones if zone.start <= address < zone.end), None)
        if mine is None:
            return
        yield from _near(mine.rich if rich else mine.pages, address // PAGE)
        if mine != self.main and mine.bias == self.main.bias:
            yield from _near(self.main.rich if rich else self.main.pages, address // PAGE)

    def impoverish(self, page: int) -> None:
        """Take in that a page has no long pad any more."""
        for zone in self.zones:
            at = bisect_left(zone.rich, page)
            if zone.rich[at : at + 1] == [page]:
                del zone.rich[at]


def _near(pages: Sequence[int], page: int) -> Iterator[int]:
    """The pages by their distance from ``page``."""
    high = bisect_left(pages, page)
    low = high - 1
    while low >= 0 or high < len(pages):
        upwards = low < 0 or (high < len(pages) and pages[high] - page <= page - pages[low])
        yield pages[high if upwards else low]
        low, high = (low, high + 1) if upwards else (low - 1, high)


def _zones(image: Image, free: Mapping[int, Sequence[Pad]]) -> _Zones:
    ranges = [(section.vaddr, section.end) for section in image.sections if section.executable]
    if not ranges:
        ranges = [(segment.vaddr, segment.end) for segment in image.segments if segment.flags & Access.X]
    zones = []
    for start, end in sorted(ranges):
        pages = tuple(
            page
            for page in range(start // PAGE, -(-end // PAGE))
            if free.get(page) and all(start <= pad.start and pad.end <= end for pad in free[page])
        )
        segment = image.segment_at(start)
        rich = [page for page in pages if any(pad.size >= LONG for pad in free[page])]
        zones.append(_Zone(start, end, segment.offset if segment is not None else 0, pages, rich))
    return _Zones(tuple(zones), max(zones, key=lambda zone: (len(zone.pages), -zone.start)))
