# SPDX-License-Identifier: GPL-2.0-only
"""Code discovery: which ranges of an image hold 32-bit code, and where each instruction starts.

A linear sweep finds all code of a compiled kernel if it is kept in step: it restarts after each range known
to be data (boot headers, descriptor tables, jump tables) and at each address where an instruction must
start (entry, functions, unwind entries, targets of direct branches that the sweep stepped over).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vmi.errors import BadInput
from vmi.patcher import hints
from vmi.patcher.decode import Bounds, Listing, Reference, Role, decode, naming, refer
from vmi.patcher.hints import Hints, Pin
from vmi.patcher.model import Access, Image, Skipped, SymbolKind
from vmi.patcher.textmarks import Marks, branch_targets
from vmi.patcher.wordsearch import WORD, places

MAX_ROUNDS = 8
MAX_REGIONS = 128
"""Executable ranges of one kernel; those with many sections have some dozens."""
MAX_TEXT = 64 << 20
"""Bytes of all executable ranges; the largest kernels of this architecture have a quarter of that."""
MAX_FORMS = 1 << 18
"""Sensitive-looking instructions; a whole Linux has five thousand."""
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

    ``pins`` are whole regions that must stay; those that tables name are in ``hints``. Direct jumps go to
    what is ``jumped`` to, direct calls to what is ``called``.
    """

    image: Image
    bounds: Bounds
    listings: tuple[Listing, ...]
    hints: Hints
    pins: tuple[Pin, ...]
    data: tuple[Skipped, ...]
    anchors: frozenset[int]
    jumped: Marks
    called: Marks

    @property
    def instructions(self) -> int:
        return sum(len(listing) for listing in self.listings)

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
    if len(found) > MAX_REGIONS:
        raise BadInput(f"expected at most {MAX_REGIONS} executable sections, got {len(found)}")
    size = sum(len(region.data) for region in found)
    if size > MAX_TEXT:
        raise BadInput(f"expected at most {MAX_TEXT} bytes of code, got {size}")
    return tuple(found), tuple(pins)


def scan(image: Image, known: Iterable[int] = ()) -> Scan:
    """Decode all code of ``image``. ``known``: more addresses where an instruction surely starts."""
    found, pins = regions(image)
    if not found:
        return Scan(image, Bounds(0, 0, 0), (), Hints(), (), (), frozenset(), Marks(()), Marks(()))
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
    jumped = called = Marks(())
    text = [(region.start, region.end) for region in found]
    sweeps = [_Sweep(region, bounds, text) for region in found]
    for _ in range(MAX_ROUNDS):
        ranges = hints.merged(data)
        ordered = sorted(anchors)
        listings = [sweep.run(ordered, ranges) for sweep in sweeps]
        _check_forms(listings)
        new_data = _more_data(image, bounds, listings, ranges)
        jumped, called = branch_targets(listings)
        new_anchors = _lost(listings, anchors, jumped | called) | {one.end for one in new_data}
        if not new_data and new_anchors <= anchors:
            break
        data.extend(new_data)
        anchors |= new_anchors
    return Scan(
        image, bounds, tuple(listings), facts, pins, tuple(ranges), frozenset(anchors), jumped, called
    )


def _first_anchors(image: Image, facts: Hints) -> set[int]:
    anchors = set(facts.functions)
    if image.entry_virtual is not None:
        anchors.add(image.entry_virtual)
    anchors.update(s.address for s in image.symbols if s.kind is SymbolKind.FUNCTION)
    return anchors


class _Sweep:
    """Decodes one region in chunks between anchors, and keeps chunks that did not change since the last
    run."""

    def __init__(self, region: Region, bounds: Bounds, text: Sequence[tuple[int, int]]) -> None:
        self.region = region
        self.bounds = bounds
        self.words = naming(region.data, bounds, text)
        self.chunks: dict[tuple[int, int], Listing] = {}

    def run(self, anchors: Sequence[int], data: Sequence[Skipped]) -> Listing:
        """Decode the region but for ``data``; both are in order, the ranges don't overlap."""
        region = self.region
        first = bisect_right(data, region.start, key=lambda one: one.end)
        stop = bisect_left(data, region.end, key=lambda one: one.start)
        holes = [(max(one.start, region.start), min(one.end, region.end)) for one in data[first:stop]]
        cuts = {region.start, region.end}
        cuts.update(anchors[bisect_left(anchors, region.start) : bisect_left(anchors, region.end)])
        for low, high in holes:
            cuts.difference_update(range(low + 1, high))
            cuts.update((low, high))
        inside = {low for low, _ in holes}
        whole = Listing(region.start, region.data)
        for low, high in pairwise(sorted(cuts)):
            if low not in inside:
                whole.append(self._chunk(low, high))
        refer(whole, self.bounds, self.words)
        return whole

    def _chunk(self, low: int, high: int) -> Listing:
        chunk = self.chunks.get((low, high))
        if chunk is None:
            base = self.region.start
            chunk = decode(self.region.data[low - base : high - base], low, self.bounds)
            self.chunks[low, high] = chunk
        return chunk


def _check_forms(listings: Sequence[Listing]) -> None:
    """One sensitive instruction after another is no kernel, and a plan for it would take hours."""
    count = sum(len(listing.forms) for listing in listings)
    if count > MAX_FORMS:
        raise BadInput(f"expected at most {MAX_FORMS} sensitive instructions, got {count}")


def _word_tables(region: Region, bounds: Bounds, is_code: hints.IsCode) -> list[Skipped]:
    """Runs of at least TABLE_RUN addresses of code at any byte alignment."""
    found: list[Skipped] = []
    data, low, high = region.data, bounds.start, bounds.end
    done = [0] * WORD  # by alignment
    for start in places(data, [(low, high)], TABLE_RUN):
        if start < done[start % WORD]:
            continue
        words: list[int] = []
        end = start
        while (
            end + WORD <= len(data)
            and low <= (word := int.from_bytes(data[end : end + WORD], "little")) < high
        ):
            words.append(word)
            end += WORD
        done[start % WORD] = end
        if len(words) >= TABLE_RUN:
            for at, size in _code_runs(words, is_code):
                first = region.start + start + at * WORD
                found.append(Skipped(first, first + size * WORD, _TABLE_REASON))
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
    ends: dict[int, int] = {}
    for listing in listings:
        for reference in listing.references:
            if reference.role is Role.DESCRIPTORS:
                found.extend(_descriptor_tables(image, bounds, reference))
            elif reference.role is Role.FAR_POINTER:
                found.append(Skipped(reference.value, reference.value + 6, "This is a far pointer."))
            elif reference.role is Role.TABLE:
                end = _table_end(image, bounds, reference.value, ends)
                found.append(Skipped(reference.value, end, _TABLE_REASON))
    in_text = (one for one in found if _holding(listings, one.start) is not None)
    return [one for one in in_text if one.start < one.end and not is_known(one.start)]


def _table_end(image: Image, bounds: Bounds, start: int, ends: dict[int, int]) -> int:
    """Where the text addresses that begin at ``start`` end; ``ends`` has it for words that were passed."""
    end = start
    while end not in ends and (word := image.u32(end)) is not None and bounds.normal(word) is not None:
        end += 4
    end = ends.get(end, end)
    ends.update(dict.fromkeys(range(start, end, 4), end))
    return end


def _descriptor_tables(image: Image, bounds: Bounds, reference: Reference) -> list[Skipped]:
    raw = image.read(reference.value, 6)
    if len(raw) < 6:
        return []
    found = [Skipped(reference.value, reference.value + 6, "This is the operand of lgdt or lidt.")]
    limit, base = int.from_bytes(raw[:2], "little"), bounds.normal(int.from_bytes(raw[2:], "little"))
    if base is not None and limit:
        found.append(Skipped(base, base + limit + 1, "This is a descriptor table."))
    return found


def _lost(listings: list[Listing], anchors: set[int], targets: Marks) -> set[int]:
    """Branch ``targets`` inside instructions that the sweep decoded out of step.

    A target inside an instruction is trusted when nothing leads to that instruction: no label between it
    and the start of its run. Otherwise the branch is the doubtful one (or skips a prefix), and it changes
    nothing.
    """
    doubtful = targets.no_starts(listings)
    if not doubtful:
        return set()
    labels = anchors.union(*(listing.targets.targets for listing in listings))
    for listing in listings:
        labels.update(r.value for r in listing.references if r.role in (Role.IMMEDIATE, Role.FAR))
    lost: set[int] = set()
    led: dict[int, bool] = {}
    for listing in listings:
        for target in listing.inside(doubtful):
            index = listing.covering(target)
            offset = target - listing.starts[index]
            if all(byte in _PREFIXES for byte in listing.raw(index)[:offset]):
                continue
            if not _led_to(listing, index, labels, led):
                lost.add(target)
    return lost


def _led_to(listing: Listing, index: int, labels: set[int], led: dict[int, bool]) -> bool:
    """True when a label stands between entry ``index`` and the start of its run.

    ``led`` has the answers that are known, by address: without it, a long run that many damaged branches
    aim at would be walked once for each of them.
    """
    passed = []
    while (address := listing.starts[index]) not in led:
        passed.append(address)
        if address in labels or not index or not listing.joined(index - 1):
            led[address] = address in labels
        else:
            index -= 1
    led.update(dict.fromkeys(passed, led[address]))
    return led[address]


def _holding(listings: Sequence[Listing], address: int) -> Listing | None:
    """The listing whose range holds ``address``."""
    at = bisect_right(listings, address, key=lambda listing: listing.start) - 1
    return listings[at] if at >= 0 and address < listings[at].end else None
