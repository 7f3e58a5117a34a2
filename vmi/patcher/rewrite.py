# SPDX-License-Identifier: GPL-2.0-only
"""Patch a kernel: bytes in, bytes and a report out.

Open the file, plan, emit, write, verify, pack: nothing is returned that did not pass the check. The same
input gives the same output on any machine; only the times differ, so they are kept apart from the report.
What takes longest for a Linux image is compression, which goes on beside everything else.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from vmi.errors import NoSites
from vmi.patcher import adaptors, container, elf, elfwrite, pagetables, profile, segmentwriter, symbols, undo
from vmi.patcher.container import Container, Linux
from vmi.patcher.emit import Emission, TooLarge, emit
from vmi.patcher.model import Image, Plan
from vmi.patcher.pads import into_padding
from vmi.patcher.pagetables import PageTableSites
from vmi.patcher.place import Choice, Place, Strategy, choice, place
from vmi.patcher.plan import make_plan
from vmi.patcher.report import Input, Report, make_report
from vmi.patcher.segmentwriter import Writer
from vmi.patcher.verify import verify

Progress = Callable[[str], None]
"""Told the name of each phase when it begins."""


@dataclass(frozen=True, slots=True)
class Patched:
    """A patched kernel. ``seconds`` is the time per phase, real time, for people only."""

    data: bytes = field(repr=False)
    report: Report
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may want other than usual.

    :ivar allow_empty: accept a kernel without any sensitive instruction; only activation is added then.
    :ivar place: where the segment goes: ``auto``, a strategy's name, or an address (:func:`place.choice`).
    :ivar symbols: a debug file of the same build, or a symbol map (:func:`vmi.patcher.symbols.merge`).
    :ivar profile: what a run recorded of the kernel's page-table writes (:mod:`vmi.patcher.profile`).
    :ivar undo: put a record behind the file by which :mod:`vmi.patcher.undo` restores the original.
    :ivar prove_undo: try the whole compression of the original for that record, not only its beginning.
    """

    allow_empty: bool = False
    place: str = "auto"
    symbols: bytes | None = field(default=None, repr=False)
    profile: bytes | None = field(default=None, repr=False)
    undo: bool = True
    prove_undo: bool = False


def patch(
    data: bytes | Container, options: Options = Options(), *, progress: Progress | None = None
) -> Patched:
    """Patch a kernel file (ELF, ELF in gzip, or Linux's bzImage), opened or not, and check the result.

    Raises BadInput for a file that can't be patched, UsageError for options that make no sense, NoSites when
    it holds no sensitive instruction (unless ``allow_empty``), and VerifyError when the output would not be
    what was planned, which is a defect of the patcher.
    """
    clock = _Clock(progress)
    with ExitStack() as stack:
        stack.enter_context(_without_collector())
        beside = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        with clock.phase("read"):
            source = data if isinstance(data, Container) else container.open_container(data)
            image = _image(source)
            wanted = _choice(options.place, source)
            where = place(image, wanted)
            # A symbol file of another build is refused here, before its line table is read.
            named = image if options.symbols is None else symbols.merge(image, options.symbols)
            stores = _stores(image, options)
        writer = stack.enter_context(segmentwriter.writer(soon=where.file_offset is None))
        begun = beside.submit(source.begin, image)
        recipe = beside.submit(undo.recipe, source, options.prove_undo) if options.undo else None
        with clock.phase("plan"):
            plan = make_plan(named, adaptors.refusal, stores.forms)
            if where.text_padding:
                plan = into_padding(plan)
        if not plan.placements and not options.allow_empty:
            raise NoSites(f"there is no sensitive instruction among the {plan.instructions} of this kernel")
        with clock.phase("emit"):
            emission = _emission(plan, where, image, wanted)
        with clock.phase("write"):
            kernel = write(emission, writer)
        packing = stack.enter_context(ThreadPoolExecutor(1)).submit(source.pack, kernel, begun.result())
        with clock.phase("verify"):
            verify(emission, kernel)
        with clock.phase("pack"):
            ahead = undo.ahead(source, kernel) if recipe is not None else None
            output, notes = packing.result(), list(source.notes)
            if recipe is not None:
                sealed = undo.seal(source, output, recipe.result(), ahead)
                output = sealed.data
                untried = "" if options.prove_undo else undo.untried(source)
                notes += [note for note in (sealed.note or untried,) if note]
        with clock.phase("report"):
            given = Input(source.kind.value, len(source.data), tuple(notes))
            report = make_report(
                emission,
                len(output),
                given,
                sources={address: source.value for address, source in stores.sources.items()},
                refused=[(one.address, one.source.value, one.reason) for one in stores.refused],
            )
    return Patched(output, report, clock.seconds)


def _emission(plan: Plan, where: Place, image: Image, wanted: Choice) -> Emission:
    """Build the segment; one that is too large for the place that was found for it goes behind the image."""
    try:
        return emit(plan, where)
    except TooLarge as error:
        if wanted.strategy is not None or where.strategy is not Strategy.LOW_MEMORY:
            raise
        behind = place(image, replace(wanted, strategy=Strategy.AFTER_IMAGE))
        warning = f"the segment can't be moved away from the image's end to below 640 KiB: {error}"
        return emit(plan, replace(behind, warnings=(*behind.warnings, warning)))


def write(emission: Emission, writer: Writer | None = None) -> bytes:
    """The patched ELF file of an emission, not yet checked."""
    layout, plan = emission.place.layout, emission.plan
    paddr = layout.loaded(layout.base)
    segment = elfwrite.NewSegment(layout.base, paddr, emission.segment, emission.place.file_offset)
    return elfwrite.write(plan.image, emission.edits, segment, emission.entry, emission.file_edits, writer)


def _image(source: Container) -> Image:
    return replace(elf.load(source.kernel), displaced=source.displaced)


def _stores(image: Image, options: Options) -> PageTableSites:
    """The stores of page-table entries that are known, from the run first, then from the line table."""
    known: list[pagetables.Candidate] = []
    if options.profile is not None:
        recorded = profile.load(options.profile)
        profile.check_kernel(recorded, image)
        known += profile.candidates(recorded)
    if options.symbols is not None:
        known += pagetables.from_lines(options.symbols)
    return pagetables.choose(image, known)


def _choice(text: str, source: Container) -> Choice:
    return choice(text, source.image.protocol if isinstance(source, Linux) else 0)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the cyclic garbage collector off: it would look again and again at millions of objects that are
    all in use until the end, which takes a tenth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Clock:
    """Takes the time of each phase, and says when one begins."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self._progress is not None:
            self._progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
