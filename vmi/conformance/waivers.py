# SPDX-License-Identifier: GPL-2.0-only
"""Waivers: failures that somebody has decided to live with, as data, each with its reason and its end.

A TOML file with one table per waiver::

    [[waiver]]
    case = "IRET/fault at the site"      # a case, or requirement = "VMI-IRET-05"
    environment = "pae shadow"           # left out: everywhere
    reason = "Fixed in the next release."
    expires = 2030-01-31

A waiver that has expired, that names nothing, or that is about cases of which none needed it, is an error:
waivers don't pile up. Where those cases are not run nothing is said of it, so one file does for any choice of
cases. A case that decides several requirements doesn't tell which of them isn't kept, so it is waived by its
name, or if all of them are. Those of level 0 can't be waived; without them nothing else means anything.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime

from vmi import abi
from vmi.conformance.case import Case
from vmi.conformance.runner import Result
from vmi.conformance.subject import Environment
from vmi.conformance.verdict import Verdict
from vmi.errors import BadInput

_KEYS = {"case", "requirement", "environment", "reason", "expires"}


@dataclass(frozen=True)
class Waiver:
    """One waiver: ``case`` or ``requirement``, the other is ""."""

    case: str
    requirement: str
    environment: str
    reason: str
    expires: date

    def __str__(self) -> str:
        return f"{self.case or self.requirement}" + (f" in {self.environment}" if self.environment else "")

    def speaks_of(self, result: Result) -> bool:
        """It names the result's case, or something that it decides."""
        case = result.case
        named = case.name == self.case if self.case else self.requirement in case.requirements
        where = result.environment  # a waiver is for every engine
        return named and self.environment in ("", *_names(where))


def _names(environment: Environment) -> tuple[str, str]:
    return str(environment), str(replace(environment, engine=""))


def _is_basic(case: Case) -> bool:
    """It decides something of level 0, whatever the level of the call that it is about."""
    return any(abi.ALL_REQUIREMENTS[each].level == 0 for each in case.requirements)


def parse(text: str, cases: Sequence[Case], places: Sequence[Environment], today: date) -> list[Waiver]:
    """Waivers of a file. :raises BadInput: it is none, or a waiver is unknown, expired or not allowed.

    :param places: all environments that there are.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"waivers must be a TOML file, but it can't be read: {error}") from None
    rows = data.get("waiver", [])
    if set(data) - {"waiver"} or not isinstance(rows, list):
        raise BadInput("a file of waivers must hold [[waiver]] tables and nothing else")
    return [_waiver(row, number, cases, places, today) for number, row in enumerate(rows, 1)]


def _waiver(
    row: object, number: int, cases: Sequence[Case], places: Sequence[Environment], today: date
) -> Waiver:
    if not isinstance(row, dict) or set(row) - _KEYS:
        raise BadInput(f"waiver {number} must have the keys {', '.join(sorted(_KEYS))} only")
    case, requirement = str(row.get("case", "")), str(row.get("requirement", ""))
    if bool(case) == bool(requirement):
        raise BadInput(f"waiver {number} must name a case or a requirement, and not both")
    found = [each for each in cases if each.name == case or requirement in each.requirements]
    if not found:
        raise BadInput(f"waiver {number} names {case or requirement!r}, which there is not")
    if (requirement and abi.ALL_REQUIREMENTS[requirement].level == 0) or (case and _is_basic(found[0])):
        raise BadInput(
            f"waiver {number} is for {case or requirement}, which is of level 0 and can't be waived"
        )
    environment = str(row.get("environment", ""))
    there = [where for where in places if any(each.fits(where) for each in found)]
    if environment and not any(environment in _names(where) for where in there):
        known = "; ".join(str(where) for where in there) or "none"
        raise BadInput(
            f"waiver {number} is for the environment {environment!r}, "
            f"but {case or requirement} is decided in {known}"
        )
    expires, reason = row.get("expires"), str(row.get("reason", "")).strip()
    if not isinstance(expires, date) or isinstance(expires, datetime) or not reason:
        raise BadInput(f"waiver {number} must have a reason and a date as expires")
    if expires < today:
        raise BadInput(f"waiver {number} for {case or requirement} has expired on {expires.isoformat()}")
    return Waiver(case, requirement, environment, reason, expires)


def apply(results: Iterable[Result], waivers: Sequence[Waiver]) -> tuple[list[Result], list[Waiver]]:
    """Results with waived ones marked, and the waivers that nothing needed of what they are about."""
    asked: set[Waiver] = set()
    needed: set[Waiver] = set()
    marked = []
    for result in results:
        about = [waiver for waiver in waivers if waiver.speaks_of(result)]
        asked.update(about)
        if about and result.verdict in (Verdict.FAIL, Verdict.TIMEOUT, Verdict.CRASH):
            grounds = _grounds(result.case, about)
            needed.update(grounds or about)
            if grounds:
                reasons = dict.fromkeys(waiver.reason for waiver in grounds)
                result = replace(result, verdict=Verdict.WAIVED, reasons=(*reasons, *result.reasons))
        marked.append(result)
    return marked, [waiver for waiver in waivers if waiver in asked - needed]


def _grounds(case: Case, about: Sequence[Waiver]) -> list[Waiver]:
    """The waivers by which a case is waived: its own, or those of everything that it decides."""
    if _is_basic(case):
        return []
    own = [waiver for waiver in about if waiver.case]
    waived = {waiver.requirement: waiver for waiver in reversed(about)}
    of_all = all(requirement in waived for requirement in case.requirements)
    return own[:1] or ([waived[each] for each in case.requirements] if of_all else [])
