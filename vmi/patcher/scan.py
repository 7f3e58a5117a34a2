# SPDX-License-Identifier: GPL-2.0-only
"""Code discovery: which ranges of an image hold 32-bit code, and where each instruction starts.

A linear sweep finds all code of a compiled kernel if it is kept in step: it restarts after each range known
to be data (boot headers, descriptor tables, jump tables) and at each address where an instruction must
start (entry, functions, unwind entries, targets of direct branches that the sweep stepped over).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vmi.patcher import hints
from vmi.patcher.decode import Bounds, Listing, Reference, Role, decode
from vmi.patcher.hints import Hints, Pin
from vmi.patcher.model import Access, Image, Skipped, SymbolKind

MAX_ROUNDS = 8
TABLE_RUN = 4
"""So many consecutive words that are all text addresses are a table, not instructions."""

_TABLE_REASON = "These bytes are a table of code addresses."
_PREFIXES = frozenset((0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65, 0x66))


@dataclass(frozen=True, slots=True)
class Region:
    """An executable range of the image, by section where there are sections."""

    start: int
    data: bytes
    name: str

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def __repr__(self) -> str:
        return f"Region({self.name}, {self.start:#x}-{self.end:#x})"


@dataclass(frozen=True)
class Scan:
    """The decoded image. ``data`` ranges hold no instructions and appear in no listing.

    ``pins`` are whole regions that must stay; those that tables name are in ``hints``.
    """

    image: Image
    bounds: Bounds
    listings: tuple[Listing, ...]
    hints: Hints
    pins: tuple[Pin, ...]
    data: tuple[Skipped, ...]
    anchors: frozenset[int]

    @property
    def instructions(self) -> int:
        return sum(len(listing) for listing in self.listings)

    def listing_at(self, address: int) -> Listing | None:
        for listing in self.listings:
            if listing.start <= address < listing.end:
                return listing
        return None

    def __repr__(self) -> str:
        return f"Scan({self.instructions} instructions, {len(self.listings)} regions)"


def regions(image: Image) -> tuple[tuple[Region, ...], tuple[Pin, ...]]:
    """The executable ranges, and pins for those whose code can't be moved at all.

    Executable sections when the file names any, else the file parts of executable segments.
    """
    found: list[Region] = []
    pins: list[Pin] = []
    text = image.text
    sections = [s for s in image.sections if s.executable and s.size]
    ranges = [(s.vaddr, s.size, s.name) for s in sections] or [
        (s.vaddr, s.filesz, "segment") for s in image.segments if s.flags & Access.X and s.filesz
    ]
    for start, size, name in sorted(ranges):
        data = image.read(start, size)
        segment = image.segment_at(start)
        if segment is None or (found and start < found[-1].end):
            continue
        found.append(Region(start, data, name))
        if name in hints.NO_CODE_SECTIONS:
            pins.append(Pin(start, start + len(data), hints.NO_CODE_SECTIONS[name], True))
        elif text is not None and segment.offset != text.offset:
            reason = (
                f"Its segment lies {segment.offset:#x} above its physical address, the main text"
                f" {text.offset:#x}, so a jump can't reach a trampoline in both forms."
            )
            pins.append(Pin(start, start + len(data), reason))
    return tuple(found), tuple(pins)


def scan(image: Image, known: Iterable[int] = ()) -> Scan:
    """Decode all code of ``image``. ``known``: more addresses where an instruction surely starts."""
    found, pins = regions(image)
    if not found:
        return Scan(image, Bounds(0, 0, 0), (), Hints(), (), (), frozenset())
    offset = image.text.offset if image.text is not None else 0
    bounds = Bounds(found[0].start, found[-1].end, offset)

    starts, ends = [region.start for region in found], [region.end for region in found]

    def is_code(address: int) -> bool:
        at = bisect_right(starts, address) - 1
        return at >= 0 and address < ends[at]

    facts = hints.read_hints(image, is_code)
    data = list(facts.data)
    for region in found:
        data.extend(_word_tables(region, bounds, is_code))
    anchors = _first_anchors(image, facts) | set(known)
    listings: list[Listing] = []
    sweeps = [_Sweep(region, bounds) for region in found]
    for _ in range(MAX_ROUNDS):
        ranges = hints.merged(data)
        listings = [sweep.run(anchors, ranges) for sweep in sweeps]
        new_data = _more_data(image, bounds, listings, ranges)
        new_anchors = _lost(listings, anchors) | {one.end for one in new_data}
        if not new_data and new_anchors <= anchors:
            break
        data.extend(new_data)
        anchors |= new_anchors
    return Scan(image, bounds, tuple(listings), facts, pins, tuple(ranges), frozenset(anchors))


def _first_anchors(image: Image, facts: Hints) -> set[int]:
    anchors = set(facts.functions)
    if image.entry_virtual is not None:
        anchors.add(image.entry_virtual)
    anchors.update(s.address for s in image.symbols if s.kind is SymbolKind.FUNCTION)
    return anchors


class _Sweep:
    """Decodes one region in chunks between anchors, and keeps chunks that did not change since the last
    run."""

    def __init__(self, region: Region, bounds: Bounds) -> None:
        self.region = region
        self.bounds = bounds
        self.chunks: dict[tuple[int, int], Listing] = {}

    def run(self, anchors: Iterable[int], data: Iterable[Skipped]) -> Listing:
        region = self.region
        holes = [
            (max(one.start, region.start), min(one.end, region.end))
            for one in data
            if one.start < region.end and one.end > region.start
        ]
        cuts = {region.start, region.end}
        cuts.update(address for address in anchors if region.start <= address < region.end)
        for low, high in holes:
            cuts.difference_update(range(low + 1, high))
            cuts.update((low, high))
        inside = {low for low, _ in holes}
        whole = Listing(region.start, region.data)
        for low, high in pairwise(sorted(cuts)):
            if low not in inside:
                whole.append(self._chunk(low, high))
        return whole

    def _chunk(self, low: int, high: int) -> Listing:
        chunk = self.chunks.get((low, high))
        if chunk is None:
            base = self.region.start
            chunk = decode(self.region.data[low - base : high - base], low, self.bounds)
            self.chunks[low, high] = chunk
        return chunk


def _word_tables(region: Region, bounds: Bounds, is_code: hints.IsCode) -> list[Skipped]:
    """Runs of at least TABLE_RUN addresses of code at any byte alignment."""
    found: list[Skipped] = []
    low, high = bounds.start, bounds.end
    for shift in range(4):
        usable = (len(region.data) - shift) // 4 * 4
        words = memoryview(region.data[shift : shift + usable]).cast("I")
        hits = [index for index, word in enumerate(words) if low <= word < high]
        run = 1
        for here, following in pairwise([*hits, -1]):
            if following == here + 1:
                run += 1
                continue
            if run >= TABLE_RUN:
                first = here - run + 1
                for at, size in _code_runs(words[first : here + 1], is_code):
                    start = region.start + shift + (first + at) * 4
                    found.append(Skipped(start, start + size * 4, _TABLE_REASON))
            run = 1
    return found


def _code_runs(words: Sequence[int], is_code: hints.IsCode) -> Iterator[tuple[int, int]]:
    """(index, count) of the runs of at least TABLE_RUN words that are addresses of code."""
    first = 0
    for at in range(len(words) + 1):
        if at == len(words) or not is_code(words[at]):
            if at - first >= TABLE_RUN:
                yield first, at - first
            first = at + 1


def _more_data(image: Image, bounds: Bounds, listings: list[Listing], known: list[Skipped]) -> list[Skipped]:
    """Data that the decoded instructions point out: descriptor tables and jump tables inside the text."""
    starts = [one.start for one in known]

    def is_known(address: int) -> bool:
        at = bisect_right(starts, address) - 1
        return at >= 0 and address < known[at].end

    found: list[Skipped] = []
    for listing in listings:
        for reference in listing.references:
            if reference.role is Role.DESCRIPTORS:
                found.extend(_descriptor_tables(image, bounds, reference))
            elif reference.role is Role.FAR_POINTER:
                found.append(Skipped(reference.value, reference.value + 6, "This is a far pointer."))
            elif reference.role is Role.TABLE:
                end = reference.value
                while (word := image.u32(end)) is not None and bounds.normal(word) is not None:
                    end += 4
                found.append(Skipped(reference.value, end, _TABLE_REASON))
    in_text = (one for one in found if any(li.start <= one.start < li.end for li in listings))
    return [one for one in in_text if one.start < one.end and not is_known(one.start)]


def _descriptor_tables(image: Image, bounds: Bounds, reference: Reference) -> list[Skipped]:
    raw = image.read(reference.value, 6)
    if len(raw) < 6:
        return []
    found = [Skipped(reference.value, reference.value + 6, "This is the operand of lgdt or lidt.")]
    limit, base = int.from_bytes(raw[:2], "little"), bounds.normal(int.from_bytes(raw[2:], "little"))
    if base is not None and limit:
        found.append(Skipped(base, base + limit + 1, "This is a descriptor table."))
    return found


def _lost(listings: list[Listing], anchors: set[int]) -> set[int]:
    """Branch targets inside instructions that the sweep decoded out of step.

    A target inside an instruction is trusted when nothing leads to that instruction: no label between it
    and the start of its run. Otherwise the branch is the doubtful one (or skips a prefix), and it changes
    nothing.
    """
    targets = {target for listing in listings for target in listing.targets.values()}
    labels = targets | anchors
    for listing in listings:
        labels.update(r.value for r in listing.references if r.role in (Role.IMMEDIATE, Role.FAR))
    lost: set[int] = set()
    for listing in listings:
        for target in listing.inside(targets):
            index = listing.covering(target)
            offset = target - listing.starts[index]
            if all(byte in _PREFIXES for byte in listing.raw(index)[:offset]):
                continue
            while listing.starts[index] not in labels and index and listing.joined(index - 1):
                index -= 1
            if listing.starts[index] not in labels:
                lost.add(target)
    return lost
