# SPDX-License-Identifier: GPL-2.0-only
"""A case: a few steps with a rig, and what must be true behind them.

A case names the requirements it decides about; it collects what it finds through :class:`Findings`, so that
one run tells all that is wrong, and counts what it has looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vmi import abi
from vmi.conformance.layout import Paging
from vmi.conformance.rig import Rig
from vmi.conformance.subject import Environment

ALL_PAGING = frozenset(Paging)
PAGED = ALL_PAGING - {Paging.OFF}


_MOST_FAULTS = 20  # of one case; more say nothing new, and a guest that is lost can make any number


class Enough(Exception):
    """A case need not go on: it has found plenty."""


@dataclass
class Findings:
    """What a case has found so far.

    :raises Enough: from its methods, when it is so much that no more is needed.
    """

    assertions: int = 0
    faults: list[str] = field(default_factory=list)

    def equal(self, what: str, got: object, wanted: object) -> None:
        """``what`` must be ``wanted``."""
        self.assertions += 1
        if got != wanted:
            self._add(f"{what} must be {_show(wanted)}, but it is {_show(got)}")

    def true(self, holds: bool, sentence: str) -> None:
        """``sentence`` says what is wrong if something does not hold."""
        self.assertions += 1
        if not holds:
            self._add(sentence)

    def _add(self, sentence: str) -> None:
        self.faults.append(sentence)
        if len(self.faults) >= _MOST_FAULTS:
            self.faults.append("no more was looked at")
            raise Enough


def _show(value: object) -> str:
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)


Body = Callable[[Rig, Findings], None]


@dataclass(frozen=True, repr=False)
class Case:
    """One case.

    :ivar name: unique; begins with the call or topic it is about, and a slash.
    :ivar requirements: ids of what it decides.
    :ivar subject: the call or topic.
    :ivar paging: where it makes sense.
    :ivar begun: the guest has been activated when the body is called.
    :ivar cpus: how many processors it needs, no more and no less.
    :ivar replay: the file that it was made from, if it was made from one.
    :ivar alone: it can be decided without the hypervisor behind the ROM, before VMI_Init.
    :ivar refutes: it can tell that a requirement is not kept, and no more than that.
    """

    name: str
    requirements: tuple[str, ...]
    subject: str
    group: str
    level: int
    body: Body
    paging: frozenset[Paging] = ALL_PAGING
    begun: bool = True
    cpus: int = 1
    replay: str = ""
    alone: bool = False
    refutes: bool = False

    def __repr__(self) -> str:
        return f"<Case {self.name}>"

    def fits(self, environment: Environment) -> bool:
        """It makes sense there."""
        return self.cpus == environment.cpus and environment.paging in self.paging

    @property
    def summary(self) -> str:
        """First line of what the body says of itself."""
        return (self.body.__doc__ or "").strip().split("\n")[0]


_registered: list[Case] = []


def case(
    subject: str,
    name: str,
    *numbers: int,
    more: tuple[str, ...] = (),
    paging: frozenset[Paging] = ALL_PAGING,
    begun: bool = True,
    cpus: int = 1,
    alone: bool = False,
) -> Callable[[Body], Body]:
    """Register a hand-written case about a call or topic.

    :param numbers: of the subject's own requirements that it decides; ``more`` are ids of others.
    """
    own = tuple(f"VMI-{subject}-{number:02}" for number in numbers)
    call = abi.BY_NAME.get(subject)
    requirements = (*own, *more)
    level = call.level if call else max(abi.ALL_REQUIREMENTS[each].level for each in requirements)
    group = str(call.group) if call else "rom"

    def register(body: Body) -> Body:
        full = f"{subject}/{name}"
        _registered.append(
            Case(full, requirements, subject, group, level, body, paging, begun, cpus, alone=alone)
        )
        return body

    return register


def registered() -> tuple[Case, ...]:
    """All hand-written cases of the modules that have been imported."""
    return tuple(_registered)
