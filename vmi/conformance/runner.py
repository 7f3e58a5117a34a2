# SPDX-License-Identifier: GPL-2.0-only
"""Run cases on subjects, and come to a verdict for each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vmi.conformance.case import Case, Findings
from vmi.conformance.rig import Broken, Rig, Unfit
from vmi.conformance.subject import End, Environment, Maker, Stop
from vmi.conformance.verdict import Verdict
from vmi.errors import RomError, VmiError

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
    except RomError as error:  # the ROM is none that can be plugged in: no case holds
        for case in cases:
            if case.cpus == environment.cpus and environment.paging in case.paging:
                yield Result(case, environment, Verdict.FAIL, (str(error),), 1, 0.0)
        return
    stuck: Broken | None = None  # a guest that can't begin can't begin the next time either
    for case in cases:
        if case.cpus != environment.cpus:
            continue
        started = time.perf_counter()
        rig = Rig(subject, environment)
        if case.begun and stuck is None and environment.paging in case.paging:
            stuck = _begin(rig)
        verdict, reasons, assertions = _run_one(case, rig, stuck if case.begun else None)
        yield Result(case, environment, verdict, reasons, assertions, time.perf_counter() - started)


def _begin(rig: Rig) -> Broken | None:
    try:
        rig.begin()
    except Broken as trouble:
        return trouble
    except Exception as error:
        return Broken(Stop(End.UNKNOWN, f"{type(error).__name__}: {error}"), "beginning")
    return None


def _run_one(case: Case, rig: Rig, stuck: Broken | None) -> tuple[Verdict, tuple[str, ...], int]:
    if rig.environment.paging not in case.paging:
        return Verdict.SKIP, (f"it makes no sense with paging {rig.environment.paging.value}",), 0
    found = Findings()
    try:
        if stuck is not None:
            raise stuck
        case.body(rig, found)
    except Unfit as reason:
        return Verdict.SKIP, (str(reason),), found.assertions
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
