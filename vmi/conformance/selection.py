# SPDX-License-Identifier: GPL-2.0-only
"""Which cases are wanted, and where: by names, by what they are about, and by expressions."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from vmi import abi
from vmi.conformance.case import Case
from vmi.conformance.expression import Expression
from vmi.conformance.subject import Environment
from vmi.errors import UsageError


@dataclass(frozen=True)
class Selection:
    """Which cases are wanted: within one kind any of the values, between kinds all.

    :ivar names: calls, topics, or patterns over case names, such as ``SetCR*`` or ``IRET/*``.
    :ivar expression: see :mod:`vmi.conformance.expression`; "" for none.
    """

    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    requirements: tuple[str, ...] = ()
    expression: str = ""

    def pick(self, among: Sequence[Case]) -> list[Case]:
        """The wanted cases, in their order, wherever they run. :raises UsageError: a value fits none."""
        self._check(among)
        return [case for case in among if self._wants(case)]

    def plan(
        self, among: Sequence[Case], environments: Sequence[Environment]
    ) -> list[tuple[Environment, list[Case]]]:
        """For each environment the cases that are wanted there.

        :raises UsageError: a value fits no case, or nothing fits all; or the expression is none or fits none.
        """
        picked = self.pick(among)
        if not picked:
            raise UsageError(
                "there is no case that fits all of these choices; `vmi conform --list` shows all"
            )
        if not any(case.cpus == where.cpus for case in picked for where in environments):
            raise UsageError("none of the cases that are chosen runs in an environment that is chosen")
        if not self.expression:
            return [(environment, picked) for environment in environments]
        expression = Expression(self.expression)
        expression.check(among)
        plan = [(where, [case for case in picked if expression.holds(case, where)]) for where in environments]
        if not any(cases for _, cases in plan):
            raise UsageError(f"the expression {self.expression!r} chooses none of the cases that are left")
        return plan

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
    own = {case.subject.lower(), case.name.lower()}  # as they are, whatever signs of patterns are in them
    return name.lower() in own or fnmatch.fnmatchcase(case.name.lower(), name.lower())
