# SPDX-License-Identifier: GPL-2.0-only
"""Prove a patched kernel against its original: every window, from many states, in both of its lives.

Only the two files are read. What is executed is what is in them, so a mistake of the planner, of the
emitter or of the check that follows them shows alike; and the same two files always give the same result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from vmi.errors import BadInput, UsageError
from vmi.patcher import elf
from vmi.patcher.container import open_container
from vmi.patcher.inspect import site_table
from vmi.patcher.model import Image
from vmi.proof.code import CodeView
from vmi.proof.connect import connect
from vmi.proof.pair import LIMIT, Pair, Territory
from vmi.proof.result import CONNECTED, NATIVE, Count, Disagreement, Proof
from vmi.proof.runner import End, Runner
from vmi.proof.setting import setting
from vmi.proof.stage import Ground, Stage
from vmi.proof.windows import Finder, Found
from vmi.rom.build import build
from vmi.sitetable import Tactic

TRIALS = 8
FILES = "files"
MOST_TRIALS = 1 << 20
_ENDS = {End.ARRIVED: "arrived", End.FAULT: "faults", End.LEAVES: "leaves"}

Progress = Callable[[int, int], None]


def prove(
    original: bytes,
    patched: bytes,
    *,
    trials: int = TRIALS,
    window: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Execute every window of ``patched`` and its original from ``trials`` states each.

    :param window: only the window that holds this address of the original.
    :param progress: told how many windows of how many are done.
    :raises BadInput: a file is no kernel, or they are not an original and its patched form.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise UsageError(f"expected 1 to {MOST_TRIALS} trials, got {trials}")
    first, second = (open_container(data).kernel for data in (original, patched))
    return _Prover(elf.load(first), elf.load(second, patched=True)).prove(trials, window, progress)


class _Prover:
    """The stages of one proof."""

    def __init__(self, original: Image, patched: Image) -> None:
        home = elf.vmi_segment(patched)
        if home is None:
            raise BadInput("the second file is not patched: it has no .vmi segment")
        table = site_table(home)
        _check_same(original, patched, home.vaddr)
        self.finder = Finder(original, patched, table, (home.vaddr, home.end))
        self.finder.find()
        ground = Ground.of([(s.vaddr, s.vaddr + s.memsz) for s in patched.segments])
        connected = connect(table, build("native"))
        views = (CodeView(original), CodeView(patched), CodeView(patched, connected.changes))
        extra = [(home.vaddr, home.data)]  # so that no wild pointer tells the images apart
        stages = [Stage(ground, [*view.pieces(), *(extra if n == 0 else [])]) for n, view in enumerate(views)]
        runners = [Runner(view, stage) for view, stage in zip(views, stages, strict=True)]
        edges = [record for record in table.sites if record.tactic is Tactic.EDGE]
        territory = Territory(self.finder.windows, edges, views[0])
        self.original, self.territory, self.region = runners[0], territory, ground.region
        self.pairs = {
            NATIVE: Pair(runners[0], runners[1], territory),
            CONNECTED: Pair(runners[0], runners[2], territory, connected),
        }
        self.counts = {mode: Counter[str]() for mode in self.pairs}
        self.wrong: list[Disagreement] = []

    def prove(self, trials: int, window: int | None, progress: Progress | None) -> Proof:
        windows = self.finder.windows
        if window is not None:
            windows = [w for w in windows if w.start <= window < w.end]
            if not windows:
                raise UsageError(f"no window holds the address {window:#x}")
        else:
            self.wrong += [Disagreement(u.address, -1, FILES, u.what) for u in self.finder.unexplained]
        for number, found in enumerate(windows):
            if progress is not None and number % 16 == 0:
                progress(number, len(windows))
            for trial in range(trials):
                self._trial(found, trial)
        if progress is not None:
            progress(len(windows), len(windows))
        return Proof(
            windows=len(windows),
            sites=sum(len(found.records) for found in windows),
            trials=trials,
            counts={mode: Count(**counter) for mode, counter in self.counts.items()},
            disagreements=tuple(self.wrong),
        )

    def _trial(self, found: Found, trial: int) -> None:
        start = setting(found.start, trial, self.region)
        for mode, pair in self.pairs.items():
            if mode is NATIVE and not found.moved:
                continue
            self.original.stage.begin(start, found.start)
            first = self.original.run(self.territory.outside, LIMIT)
            count = self.counts[mode]
            count["runs"] += 1
            if first.end in (End.ENDLESS, End.LOST):
                count["endless"] += 1
                continue
            count[_ENDS[first.end]] += 1
            outcome = pair.compare(found.start, start, first)
            count["later"] += outcome.later
            count["open"] += outcome.open
            if outcome.wrong:
                path = tuple(first.path[:64])
                self.wrong.append(Disagreement(found.start, trial, mode, outcome.wrong, repr(start), path))


def _check_same(original: Image, patched: Image, home: int) -> None:
    """The patched file must have the original's segments and one more."""
    old = [(s.vaddr, s.filesz, s.memsz) for s in original.segments]
    new = [(s.vaddr, s.filesz, s.memsz) for s in patched.segments if s.vaddr != home]
    if old != new:
        raise BadInput("the second file is not the first one patched: its segments are others")
