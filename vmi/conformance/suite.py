# SPDX-License-Identifier: GPL-2.0-only
"""The suite: all cases, and where they run."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from itertools import groupby

from vmi import abi
from vmi.conformance import bycode, cases, coverage, generated, runner
from vmi.conformance.case import PAGED, Case, Findings, registered
from vmi.conformance.coverage import Coverage, Ran
from vmi.conformance.guarded import Guarded
from vmi.conformance.layout import Paging, control
from vmi.conformance.processes import pool
from vmi.conformance.rig import Broken, Rig
from vmi.conformance.runner import Result
from vmi.conformance.selection import Selection
from vmi.conformance.subject import ENGINES, Environment, NoSubject, Subject
from vmi.conformance.verdict import Verdict
from vmi.errors import BackendError, BadInput, EngineError, RomError, UsageError
from vmi.hypervisor.mmu import STRATEGIES
from vmi.native import fitness
from vmi.native.accelerator.finding import SWITCH

__all__ = ["MMUS", "Plan", "Selection", "Target", "all_cases", "backend", "check_engines", "measure", "run"]

MMUS = tuple(STRATEGIES)
BACKENDS = "vmi.backends"  # the group of entry points that backends of other packages are found by
_CHUNK = 40  # cases that a process is given at once

_Rows = list[tuple[str, Result]]
_Piece = tuple["Target", Environment, list[str], bool]

#: For each environment the cases that run there.
Plan = Sequence[tuple[Environment, Sequence[Case]]]


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case, generated and by hand, in the order of the table and then by name."""
    cases.load()
    order = {topic.name: n for n, topic in enumerate(abi.TOPICS)}
    order.update({call.name: 100 + call.number for call in abi.CALLS})
    found = sorted(
        (*generated.made(), *bycode.made(), *registered()), key=lambda case: (order[case.subject], case.name)
    )
    names = [case.name for case in found]
    assert len(set(names)) == len(names), "two cases have one name"
    return tuple(found)


@dataclass(frozen=True)
class Target:
    """What is to be tested, in a form that another process can be given.

    :ivar rom: image of a ROM, on our machine unless ``backend`` names a class, see :func:`backend`. The class
        is given the image after the environment; None if it knows one itself.
    """

    name: str
    rom: bytes | None = None
    backend: str = ""

    def __repr__(self) -> str:
        return f"<Target {self.name}>"

    def make(self, environment: Environment, ran: Ran | None = None) -> Subject:
        """The subject for an environment. :raises VmiError: there can be none.

        :param ran: learns what is executed of the ROM, if it is one on our machine.
        """
        if self.backend:
            return Guarded(self.backend, self._maker(), environment)
        from vmi.conformance.machine_subject import MachineSubject

        assert self.rom is not None
        return MachineSubject(self.name, self.rom, environment, ran=ran)

    def _maker(self) -> Callable[[Environment], Subject]:
        """The backend, given the ROM if there is one. :raises UsageError: it takes something else."""
        made: Callable[..., Subject] = backend(self.backend)
        roms = () if self.rom is None else (self.rom,)
        with suppress(ValueError):  # not every callable says what it takes
            try:
                inspect.signature(made).bind(Environment(), *roms)
            except TypeError:
                trouble = (
                    "takes no ROM, so --rom can't go with it" if roms else "needs a ROM, which --rom names"
                )
                raise UsageError(f"the backend {self.backend} {trouble}") from None
        return lambda environment: made(environment, *roms)

    def check(self, environments: Iterable[Environment]) -> None:
        """Make sure that there can be a subject for one of the environments at least.

        :raises NoSubject: there can be none, for a reason that is that of the last one.
        """
        reason = None
        for environment in environments:
            try:
                self.make(environment)
            except NoSubject as error:
                reason = error
            except (RomError, BackendError):
                return  # that is what its cases come to
            else:
                return
        if reason is not None:
            raise reason

    def environments(self, engines: Sequence[str] = ("",)) -> list[Environment]:
        """Where it can be tested: each paging, and each MMU where a hypervisor of ours is behind the ROM.

        :param engines: of :data:`~vmi.conformance.subject.ENGINES`; all that for each of them.
        """
        mmus: Sequence[str] = MMUS if not self.backend and self._is_ours() else ("",)
        once = [Environment(paging, mmu) for paging in Paging for mmu in mmus]
        several = [Environment(paging, mmu, 2) for paging in sorted(PAGED) for mmu in mmus]
        return [replace(each, engine=engine) for engine in engines for each in (*once, *several)]

    def _is_ours(self) -> bool:
        return self.facts().get("hypervisor", "none") != "none"

    def facts(self, environment: Environment | None = None) -> dict[str, str]:
        """What the subject says of itself; one that can't be made says nothing, but why."""
        try:
            return self.make(environment or Environment()).facts()
        except (RomError, NoSubject, BackendError) as error:
            return {"backend": self.name, "facts": str(error)} if self.backend else {"ROM": self.name}

    def surroundings(self, environment: Environment) -> dict[str, str]:
        """What an environment is, for the report."""
        facts = self.facts(environment)
        registers = control(environment.paging).items()
        return {
            "paging": environment.paging.value,
            "control registers": ", ".join(f"{name} {value:#x}" for name, value in registers),
            "MMU": environment.mmu,
            "processors": str(environment.cpus),
            "processor": facts.get("processor", ""),
            "engine": environment.engine or facts.get("engine", ""),
        }


def backend(name: str) -> Callable[..., Subject]:
    """The class that a name stands for: ``package.module:Class``, or that of an entry point.

    The current folder is looked through as well. :raises BadInput: there is none.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = _load(name)
    except (BadInput, KeyboardInterrupt):
        raise
    except BaseException as error:  # code of somebody's is run, which may do anything
        what = " ".join(str(error).split()) or "nothing more is said"
        if not isinstance(error, ImportError | AttributeError):
            what = f"{type(error).__name__}, {what}"
        raise BadInput(
            f"the backend must be package.module:Class, but {name!r} can't be loaded: {what}"
        ) from None
    if not callable(found):
        raise BadInput(f"the backend must be a class, but {name!r} is {type(found).__name__}")
    made: Callable[..., Subject] = found
    return made


def _load(name: str) -> object:
    """What a name stands for; raises whatever its code raises. :raises BadInput: nothing has that name."""
    module, colon, path = name.partition(":")
    if not colon:
        from importlib.metadata import entry_points  # takes longer than all else here, for few

        known = {each.name: each for each in entry_points(group=BACKENDS)}
        if name not in known:
            there = f"installed are {', '.join(sorted(known))}" if known else "none is installed"
            raise BadInput(
                f"the backend must be package.module:Class or the name of one that is installed, but "
                f"{name!r} is neither; {there}"
            )
        return known[name].load()
    if not all(word.isidentifier() for word in (*module.split("."), *path.split("."))):
        raise BadInput(f"the backend must be package.module:Class, but it is {name!r}")
    return reduce(getattr, path.split("."), importlib.import_module(module))


def run(target: Target, plan: Plan, *, jobs: int = 1, ran: Ran | None = None) -> Iterator[Result]:
    """Run cases in environments, in a fixed order whatever the number of processes.

    Environments of another engine than this process uses run in processes of their own, one engine after
    the other.

    :param ran: learns what is executed of the ROM.
    :raises EngineError: an engine that an environment names is not to be had.
    """
    for engine, part in groupby(plan, lambda each: each[0].engine):
        if jobs == 1 and (not engine or engine == _engine()):
            for environment, wanted in part:
                yield from runner.run(wanted, partial(target.make, ran=ran), environment)
        else:
            yield from _run_apart(target, list(part), jobs, engine, ran)


def _run_apart(target: Target, plan: Plan, jobs: int, engine: str, ran: Ran | None) -> Iterator[Result]:
    pieces: list[_Piece] = []
    for environment, wanted in plan:
        names = [case.name for case in wanted]
        pieces += [
            (target, environment, names[at : at + _CHUNK], ran is not None)
            for at in range(0, len(names), _CHUNK)
        ]
    by_name = {case.name: case for _, wanted in plan for case in wanted}
    with _processes(jobs, engine) as workers:
        futures = [workers.submit(_run_piece, piece) for piece in pieces]
        try:
            for piece, future in zip(pieces, futures, strict=True):
                try:
                    rows, executed = future.result()
                except BrokenProcessPool:  # with the pool all that was waiting is lost, whoever was to blame
                    rows, executed = _run_piece_alone(piece, engine)
                if ran is not None and executed:
                    ran.add(executed)
                for name, found in rows:
                    yield replace(found, case=by_name[name])
        finally:
            workers.shutdown(wait=False, cancel_futures=True)


def _run_piece_alone(piece: _Piece, engine: str) -> tuple[_Rows, bytes]:
    """Cases of which one may take its process down, in a process of their own."""
    try:
        with _processes(1, engine) as workers:
            return workers.submit(_run_piece, piece).result()
    except BrokenProcessPool:
        _, environment, names, _ = piece
        sentence = f"the process that ran it, from {names[0]} to {names[-1]}, has ended by itself"
        lost = Result(_NO_CASE, environment, Verdict.ERROR, (sentence,), 0, 0.0)
        cases = {case.name: case for case in all_cases()}
        return [(name, lost) for name in names if cases[name].fits(environment)], b""


def _processes(jobs: int, engine: str) -> ProcessPoolExecutor:
    return pool(jobs, _use, engine)


def _use(engine: str) -> None:
    """Let this process, which has not run any guest yet, use an engine; "" for what it would use anyway."""
    if engine == "python":
        os.environ[SWITCH] = "0"
    elif engine:
        os.environ.pop(SWITCH, None)


def _engine() -> str:
    """The engine of this process."""
    from vmi.conformance.machine_subject import engine

    return engine()


def check_engines(engines: Sequence[str]) -> None:
    """See that engines are to be had here. :raises UsageError: one is unknown, or is not; it says why."""
    for engine in engines:
        if engine not in ENGINES:
            raise UsageError(f"there is no engine {engine!r}; there is {', '.join(ENGINES)}, and both")
        if engine == "accelerated" and _engine() != engine:
            with _processes(1, engine) as workers:
                found = workers.submit(fitness.describe).result()
            if found != engine:
                raise UsageError(f"the accelerated engine was asked for, but here it is {found}")


def _run_piece(piece: _Piece) -> tuple[_Rows, bytes]:
    """Results of some cases, in another process: by name, since a case's body can't be sent back."""
    target, environment, names, measured = piece
    if environment.engine and environment.engine != _engine():
        raise EngineError(f"the engine should be {environment.engine}, but it is {_engine()}")
    wanted, ran = {*names}, Ran(len(target.rom or b"")) if measured else None
    picked = [case for case in all_cases() if case.name in wanted]
    results = runner.run(picked, partial(target.make, ran=ran), environment)
    rows = [(result.case.name, replace(result, case=_NO_CASE)) for result in results]
    return rows, b"" if ran is None else ran.image()


def measure(target: Target, ran: Ran, plan: Plan) -> Coverage:
    """What was executed of a ROM on our machine by a plan; entries that it doesn't tell are not there."""
    assert target.rom is not None
    calls: dict[str, int] = {}
    try:
        rig = Rig(target.make(Environment()), Environment())
        rig.power_on()
        for name, offset in bycode.entries(rig, len(target.rom)):
            calls[name] = offset
    except (Broken, RomError):
        pass  # what it has told so far
    return coverage.measure(target.rom, ran, calls, {case.subject for _, wanted in plan for case in wanted})


def _no_body(_rig: Rig, _found: Findings) -> None:
    """Nothing."""


_NO_CASE = Case("", (), "", "", 0, _no_body)
