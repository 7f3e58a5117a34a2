# SPDX-License-Identifier: GPL-2.0-only
"""Many seeds, in many processes, over many calls of the program: the same findings whatever their number.

Seeds are tried in pieces, and pieces are counted in their order: what is behind the first one that isn't
done yet doesn't count. So a campaign is where it is by one number, its next seed, and its findings are those
of the seeds before that, whoever tried them and in whatever order. A finding that has been made as short as
it can be is often one that is there already; only the first of these is kept.
"""

from __future__ import annotations

import gc
import hashlib
import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

from vmi.conformance.findings import Finding, from_json, oracle
from vmi.conformance.fuzz import Fuzzer
from vmi.conformance.layout import Paging
from vmi.conformance.processes import pool
from vmi.conformance.rig import Broken
from vmi.conformance.sequence import sequence
from vmi.conformance.subject import Environment
from vmi.conformance.suite import Target
from vmi.errors import BadInput, RomError
from vmi.version import __version__

PIECE = 500  # seeds that a process is given at once
_WHAT = "vmi fuzz"
_SAMPLE = 8  # sequences that tell how seeds become sequences


@dataclass(frozen=True, repr=False)
class State:
    """Where a campaign is.

    :ivar subject: SHA-256 of the ROM.
    :ivar first: its first seed, ``next`` the first that hasn't been tried.
    :ivar most: distinct findings after which it ends.
    """

    subject: str
    environment: Environment
    first: int = 0
    next: int = 0
    most: int = 1
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        return f"<State {self.environment}, seeds {self.first} to {self.next}, {len(self.findings)} findings>"

    @property
    def full(self) -> bool:
        """There are as many findings as were wanted."""
        return len(self.findings) >= self.most

    def dump(self) -> str:
        """A file that :func:`load` reads, and `vmi conform --replay` too."""
        return (
            json.dumps(
                {
                    "what": _WHAT,
                    "version": __version__,
                    "sequences": _generation(self.environment.paging),
                    "subject": self.subject,
                    "paging": self.environment.paging.value,
                    "mmu": self.environment.mmu,
                    "first": self.first,
                    "next": self.next,
                    "findings": [finding.to_json() for finding in self.findings],
                },
                indent=1,
            )
            + "\n"
        )

    def behind(self, upto: int, found: list[Finding]) -> State:
        """The same when all seeds before ``upto`` have been tried, with what was found among the latest."""
        findings = list(self.findings)
        for finding in found:
            known = {(each.steps, each.difference) for each in findings}
            if len(findings) < self.most and (finding.steps, finding.difference) not in known:
                findings.append(finding)
                if len(findings) == self.most:
                    upto = finding.seed + 1
        return replace(self, next=upto, findings=tuple(findings))


@cache
def _generation(paging: Paging) -> str:
    """How seeds become sequences: another version may make others of them."""
    text = "\n".join(str(step) for seed in range(_SAMPLE) for step in sequence(seed, paging))
    return hashlib.sha256(text.encode()).hexdigest()


def load(text: str, *, subject: str, most: int) -> State:
    """The state in a file, to go on from.

    :raises BadInput: it is none, or that of another ROM or of another version.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("what") != _WHAT:
            raise ValueError(f"it says nothing of {_WHAT}")
        environment = Environment(Paging(data["paging"]), str(data["mmu"]))
        first, following = int(data["first"]), int(data["next"])
        if not 0 <= first <= following:
            raise ValueError(f"its seeds are {first} to {following}")
        version, sequences = str(data["version"]), str(data["sequences"])
        of, rows = str(data["subject"]), list(data["findings"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BadInput(f"this is no state of a campaign: {type(error).__name__} {error}") from None
    if (version, sequences) != (__version__, _generation(environment.paging)):
        raise BadInput(
            f"the campaign was begun with another version of vmi ({version}), whose seeds are other sequences"
        )
    if of != subject:
        raise BadInput(f"the campaign is about the ROM with SHA-256 {of}, but this one has {subject}")
    try:
        findings = tuple(from_json(row) for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadInput(f"this is no state of a campaign: {type(error).__name__} {error}") from None
    return State(of, environment, first, following, most, findings)


def run(target: Target, state: State, *, upto: int, seconds: float, jobs: int) -> Iterator[State]:
    """Go on with a campaign; gives its state again and again.

    :param upto: the seed to end before.
    :param seconds: no piece is begun later than that.
    :param jobs: processes; what is found is the same with any number.
    :raises RomError: the ROM can't be plugged in, or its guest can't begin.
    """
    if state.full:
        return
    ends = time.monotonic() + seconds
    pieces = ((at, min(at + PIECE, upto)) for at in range(state.next, upto, PIECE))
    try_piece = _in_processes if jobs > 1 else _here
    for end, found in try_piece(target, state, pieces, lambda: time.monotonic() < ends, jobs):
        state = state.behind(end, found)
        yield state
        if state.full:
            return


_Pieces = Iterator[tuple[int, int]]
_Tried = Iterator[tuple[int, list[Finding]]]


def _here(target: Target, state: State, pieces: _Pieces, goes_on: Callable[[], bool], _jobs: int) -> _Tried:
    for first, end in pieces:
        if not goes_on():
            return
        yield end, _try(target, state.environment, first, end, state.most)


def _in_processes(
    target: Target, state: State, pieces: _Pieces, goes_on: Callable[[], bool], jobs: int
) -> _Tried:
    with pool(jobs) as workers:
        with _deaf():
            workers.submit(int)  # makes the processes
        waiting: deque[tuple[int, Future[list[Finding]]]] = deque()
        try:
            while True:
                while len(waiting) < 2 * jobs and goes_on():
                    piece = next(pieces, None)
                    if piece is None:
                        break
                    arguments = (target, state.environment, *piece, state.most)
                    waiting.append((piece[1], workers.submit(_try, *arguments)))
                if not waiting:
                    return
                end, future = waiting.popleft()
                yield end, future.result()
        finally:
            workers.shutdown(wait=False, cancel_futures=True)  # those that have begun are soon done


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C is for the process that the user sees, not for those that are made in here."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are somebody else's business
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_fuzzers: dict[tuple[Target, Environment], Fuzzer] = {}


def _fuzzer(target: Target, environment: Environment) -> Fuzzer:
    """The two guests of this process, which have begun already. :raises RomError: the ROM's can't begin."""
    key = (target, environment)
    if key not in _fuzzers:
        _fuzzers.clear()  # they take some memory
        try:
            _fuzzers[key] = Fuzzer.against(target, oracle(), environment)
        except Broken as trouble:
            raise RomError(f"the guest on this ROM can't begin any sequence: {trouble}") from None
        gc.collect()
        gc.freeze()  # what has been made by now stays, and need not be looked at again and again
    return _fuzzers[key]


def _try(target: Target, environment: Environment, first: int, end: int, most: int) -> list[Finding]:
    """Try seeds; gives what was found, made short, up to ``most`` that differ."""
    fuzzer = _fuzzer(target, environment)
    found: dict[tuple[object, ...], Finding] = {}
    for seed in range(first, end):
        difference = fuzzer.seed(seed)
        if not difference:
            continue
        steps = fuzzer.shrink(sequence(seed, environment.paging))
        difference = fuzzer.run(steps) or difference
        found.setdefault((steps, difference), Finding(seed, environment, steps, difference))
        if len(found) == most:
            break
    return list(found.values())
