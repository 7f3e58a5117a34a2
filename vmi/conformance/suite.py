# SPDX-License-Identifier: GPL-2.0-only
"""The suite: all cases, and where they run."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from multiprocessing import get_context

from vmi import abi
from vmi.conformance import bycode, cases, coverage, generated, runner
from vmi.conformance.case import PAGED, Case, Findings, registered
from vmi.conformance.coverage import Coverage, Ran
from vmi.conformance.layout import Paging, control
from vmi.conformance.rig import Broken, Rig
from vmi.conformance.runner import Result
from vmi.conformance.selection import Selection
from vmi.conformance.subject import ENGINES, Environment, Subject
from vmi.errors import BadInput, EngineError, RomError, UsageError
from vmi.hypervisor.mmu import STRATEGIES
from vmi.native import fitness
from vmi.native.accelerator.finding import SWITCH

__all__ = ["MMUS", "Plan", "Selection", "Target", "all_cases", "backend", "check_engines", "measure", "run"]

MMUS = tuple(STRATEGIES)
_CHUNK = 40  # cases that a process is given at once

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

    :ivar rom: image of a ROM, on our machine unless ``backend`` names a class, as ``package.module:Class``.
        The class is given the image after the environment; None if it knows one itself.
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
            return self._foreign(environment)
        from vmi.conformance.machine_subject import MachineSubject

        assert self.rom is not None
        return MachineSubject(self.name, self.rom, environment, ran=ran)

    def _foreign(self, environment: Environment) -> Subject:
        made = backend(self.backend)
        arguments = (environment,) if self.rom is None else (environment, self.rom)
        try:
            inspect.signature(made).bind(*arguments)
        except TypeError:
            trouble = "needs a ROM, which --rom names"
            if self.rom is not None:
                trouble = "takes no ROM, so --rom can't go with it"
            raise UsageError(f"the backend {self.backend} {trouble}") from None
        return made(*arguments)

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
        """What the subject says of itself; a ROM that can't be plugged in says nothing."""
        try:
            return self.make(environment or Environment()).facts()
        except RomError:
            return {"ROM": self.name}

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
    """The class that ``package.module:Class`` names. :raises BadInput: there is none."""
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., Subject] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(
            f"the backend must be package.module:Class, but {name!r} can't be loaded: {error}"
        ) from None
    return found


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
    pieces = []
    for environment, wanted in plan:
        names = [case.name for case in wanted]
        pieces += [
            (target, environment, names[at : at + _CHUNK], ran is not None)
            for at in range(0, len(names), _CHUNK)
        ]
    by_name = {case.name: case for _, wanted in plan for case in wanted}
    with _processes(jobs, engine) as pool:
        for rows, executed in pool.map(_run_piece, pieces):
            if ran is not None:
                ran.add(executed)
            for name, found in rows:
                yield replace(found, case=by_name[name])


def _processes(jobs: int, engine: str) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_use, initargs=(engine,))


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
            with _processes(1, engine) as pool:
                found = pool.submit(fitness.describe).result()
            if found != engine:
                raise UsageError(f"the accelerated engine was asked for, but here it is {found}")


_Rows = list[tuple[str, Result]]


def _run_piece(piece: tuple[Target, Environment, list[str], bool]) -> tuple[_Rows, bytes]:
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
