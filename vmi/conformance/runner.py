# SPDX-License-Identifier: GPL-2.0-only
"""Run cases on subjects, and come to a verdict for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from vmi.conformance.bycode import needs_hypervisor
from vmi.conformance.case import Case, Enough, Findings
from vmi.conformance.rig import Broken, Rig, Unfit
from vmi.conformance.subject import End, Environment, Maker, NoSubject, Stop, Subject
from vmi.conformance.verdict import Verdict
from vmi.errors import BackendError, RomError, VmiError

#: Why a case was skipped that needs more than the ROM, as the beginning of a sentence.
AWAY = "the hypervisor that the ROM needs is not here"
#: What all cases come to where there is no subject; with a ROM that can't be plugged in, none holds.
_UNMADE = {NoSubject: Verdict.SKIP, BackendError: Verdict.ERROR}
_ENDS = {End.TIMEOUT: Verdict.TIMEOUT, End.CRASHED: Verdict.CRASH, End.UNKNOWN: Verdict.ERROR}


@dataclass(frozen=True)
class Result:
    """What a case came to in an environment.

    :ivar reason: sentences, one for each thing that is wrong; or why it was skipped.
    """

    case: Case
    environment: Environment
    verdict: Verdict
    reasons: tuple[str, ...]
    assertions: int
    seconds: float


def run(cases: Iterable[Case], maker: Maker, environment: Environment) -> Iterator[Result]:
    """Run cases one after the other, each on a guest of its own."""
    try:
        subject = maker(environment)
    except (RomError, NoSubject, BackendError) as error:
        verdict = _UNMADE.get(type(error), Verdict.FAIL)
        for case in cases:
            if case.fits(environment):
                yield Result(case, environment, verdict, (str(error),), int(verdict is Verdict.FAIL), 0.0)
        return
    beginning = _Beginning(subject, environment)
    for case in cases:
        if case.cpus != environment.cpus or (case.alone and not case.fits(environment)):
            continue  # what can be read of a ROM is the same everywhere
        started = time.perf_counter()
        verdict, reasons, assertions = _run_one(case, beginning)
        yield Result(case, environment, verdict, reasons, assertions, time.perf_counter() - started)


class _Beginning:
    """A guest that has been activated, again for each case.

    One that can't begin can't begin the next time either, so it is not tried again.
    """

    def __init__(self, subject: Subject, environment: Environment) -> None:
        self.subject, self.environment = subject, environment
        self._stuck: Broken | None = None
        self._rig: Rig | None = None
        self._bare: Rig | None = None
        self._back: Callable[[], None] | None = None
        self._again: Callable[[], None] | None = None

    def fresh(self) -> Rig:
        """A guest that has not begun."""
        return Rig(self.subject, self.environment)

    def begun(self) -> Rig:
        """A guest that has begun. :raises Broken: it can't."""
        if self._stuck is not None:
            raise self._stuck
        if self._rig is not None and self._back is not None:
            self._back()
            return self._rig
        rig = self.fresh()
        try:
            rig.begin()
            back = self.subject.mark()
        except Broken as trouble:
            self._stuck = trouble
            raise
        except Exception as error:
            told = str(error) if isinstance(error, VmiError) else f"{type(error).__name__}: {error}"
            self._stuck = Broken(Stop(End.UNKNOWN, told), "beginning")
            raise self._stuck from None
        self._rig, self._back = rig, back
        rig.back = self._back
        return rig

    @cached_property
    def away(self) -> str:
        """Why cases can't be run that need the hypervisor behind the ROM; "" if nothing speaks against it."""
        try:
            if self.subject.facts().get("hypervisor") != "none":
                return ""
            found = needs_hypervisor(self.bare())
        except (Broken, VmiError):
            return ""
        return f"{AWAY}: {found}" if found else ""

    def rig(self, case: Case) -> Rig:
        """What a case begins with. :raises Broken: a guest doesn't come so far."""
        if case.begun and not self.away:
            return self.begun()
        return self.bare() if case.alone else self.fresh()

    def bare(self) -> Rig:
        """A guest that has found the ROM and has not called it."""
        if self._bare is None:
            self._bare = self.fresh()
            self._bare.power_on()
            self._again = self.subject.mark()
        elif self._again is not None:
            self._again()
        else:
            self._bare.power_on()
        return self._bare


def _run_one(case: Case, beginning: _Beginning) -> tuple[Verdict, tuple[str, ...], int]:
    paging = beginning.environment.paging
    if paging not in case.paging:
        return Verdict.SKIP, (f"it makes no sense with paging {paging.value}",), 0
    found = Findings()
    try:
        if beginning.away and not case.alone:
            return Verdict.SKIP, (beginning.away,), 0
        case.body(beginning.rig(case), found)
    except Unfit as reason:
        return Verdict.SKIP, (str(reason),), found.assertions
    except Enough:
        return Verdict.FAIL, tuple(found.faults), found.assertions
    except Broken as trouble:
        verdict = _ENDS.get(trouble.stop.end, Verdict.FAIL)
        return verdict, (*found.faults, str(trouble)), found.assertions
    except RomError as error:  # what it says of itself can't be read
        return Verdict.FAIL, (*found.faults, str(error)), found.assertions + 1
    except VmiError as error:
        return Verdict.ERROR, (*found.faults, str(error)), found.assertions
    except Exception as error:  # a subject of somebody's, or a case, that raises what it should not
        return Verdict.ERROR, (*found.faults, f"{type(error).__name__}: {error}"), found.assertions
    return (Verdict.FAIL if found.faults else Verdict.PASS), tuple(found.faults), found.assertions
