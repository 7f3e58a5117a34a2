# SPDX-License-Identifier: GPL-2.0-only
"""The suite: all cases, which of them are wanted, and where they run."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context

from vmi import abi
from vmi.conformance import cases, generated, runner
from vmi.conformance.case import PAGED, Case, Findings, registered
from vmi.conformance.layout import Paging
from vmi.conformance.rig import Rig
from vmi.conformance.runner import Result
from vmi.conformance.subject import Environment, Subject
from vmi.errors import BadInput, RomError, UsageError
from vmi.hypervisor.mmu import STRATEGIES

MMUS = tuple(STRATEGIES)
_CHUNK = 40  # cases that a process is given at once


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case, generated and by hand, in the order of the table and then by name."""
    cases.load()
    order = {topic.name: n for n, topic in enumerate(abi.TOPICS)}
    order.update({call.name: 100 + call.number for call in abi.CALLS})
    found = sorted((*generated.made(), *registered()), key=lambda case: (order[case.subject], case.name))
    names = [case.name for case in found]
    assert len(set(names)) == len(names), "two cases have one name"
    return tuple(found)


@dataclass(frozen=True)
class Selection:
    """Which cases are wanted: within one kind any of the values, between kinds all.

    :ivar names: calls, topics, or patterns over case names, such as ``SetCR*`` or ``IRET/*``.
    """

    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    requirements: tuple[str, ...] = ()

    def pick(self, among: Sequence[Case]) -> list[Case]:
        """The wanted cases, in their order. :raises UsageError: a value fits none."""
        self._check(among)
        return [case for case in among if self._wants(case)]

    def _wants(self, case: Case) -> bool:
        return (
            (not self.names or any(_fits(case, name) for name in self.names))
            and (not self.groups or case.group in self.groups)
            and (not self.levels or case.level in self.levels)
            and (not self.requirements or not {*self.requirements}.isdisjoint(case.requirements))
        )

    def _check(self, among: Sequence[Case]) -> None:
        for name in self.names:
            if not any(_fits(case, name) for case in among):
                raise UsageError(f"no case is called {name!r}; `vmi conform --list` shows all")
        for what, wanted, there in (
            ("group", self.groups, {case.group for case in among}),
            ("level", self.levels, {case.level for case in among}),
            ("requirement", self.requirements, set(abi.ALL_REQUIREMENTS)),
        ):
            for value in wanted:
                if value not in there:
                    raise UsageError(f"there is no {what} {value!r}; there are {_some(there)}")


def _some(values: set[str] | set[int]) -> str:
    shown = [str(value) for value in sorted(values)]
    return ", ".join(shown) if len(shown) < 20 else f"{shown[0]} to {shown[-1]}"


def _fits(case: Case, name: str) -> bool:
    return case.subject.lower() == name.lower() or fnmatch.fnmatchcase(case.name.lower(), name.lower())


@dataclass(frozen=True)
class Target:
    """What is to be tested, in a form that another process can be given.

    :ivar rom: image of a ROM on our machine; None if ``backend`` names a class, as ``package.module:Class``.
    """

    name: str
    rom: bytes | None = None
    backend: str = ""

    def __repr__(self) -> str:
        return f"<Target {self.name}>"

    def make(self, environment: Environment) -> Subject:
        """The subject for an environment. :raises VmiError: there can be none."""
        if self.backend:
            made: Subject = backend(self.backend)(environment)
            return made
        from vmi.conformance.machine_subject import MachineSubject

        assert self.rom is not None
        return MachineSubject(self.name, self.rom, environment)

    def environments(self) -> list[Environment]:
        """Where it can be tested: each paging, and each MMU where a hypervisor of ours is behind the ROM."""
        mmus: Sequence[str] = MMUS if not self.backend and self._is_ours() else ("",)
        several = [Environment(paging, mmu, 2) for paging in sorted(PAGED) for mmu in mmus]
        return [*(Environment(paging, mmu) for paging in Paging for mmu in mmus), *several]

    def _is_ours(self) -> bool:
        return self.facts().get("hypervisor", "none") != "none"

    def facts(self) -> dict[str, str]:
        """What the subject says of itself; a ROM that can't be plugged in says nothing."""
        try:
            return self.make(Environment()).facts()
        except RomError:
            return {"ROM": self.name}


def backend(name: str) -> Callable[[Environment], Subject]:
    """The class that ``package.module:Class`` names. :raises BadInput: there is none."""
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[Environment], Subject] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(
            f"the backend must be package.module:Class, but {name!r} can't be loaded: {error}"
        ) from None
    return found


def run(
    target: Target,
    environments: Sequence[Environment],
    wanted: Sequence[Case],
    *,
    jobs: int = 1,
) -> Iterator[Result]:
    """Run cases in environments, in a fixed order whatever the number of processes."""
    if jobs == 1:
        for environment in environments:
            yield from runner.run(wanted, target.make, environment)
        return
    names = [case.name for case in wanted]
    pieces = [
        (target, environment, names[at : at + _CHUNK])
        for environment in environments
        for at in range(0, len(names), _CHUNK)
    ]
    by_name = {case.name: case for case in wanted}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(_run_piece, pieces):
            for name, found in rows:
                yield replace(found, case=by_name[name])


def _run_piece(piece: tuple[Target, Environment, list[str]]) -> list[tuple[str, Result]]:
    """Results of some cases, in another process: by name, since a case's body can't be sent back."""
    target, environment, names = piece
    wanted = {*names}
    picked = [case for case in all_cases() if case.name in wanted]
    results = runner.run(picked, target.make, environment)
    return [(result.case.name, replace(result, case=_NO_CASE)) for result in results]


def _no_body(_rig: Rig, _found: Findings) -> None:
    """Nothing."""


_NO_CASE = Case("", (), "", "", 0, _no_body)
