# SPDX-License-Identifier: GPL-2.0-only
"""Waivers: failures that somebody has decided to live with, as data, each with its reason and its end.

A TOML file with one table per waiver::

    [[waiver]]
    case = "IRET/fault at the site"      # a case, or requirement = "VMI-IRET-05"
    environment = "pae shadow"           # left out: everywhere
    reason = "Fixed in the next release."
    expires = 2030-01-31

A waiver that has expired, that names nothing, or that nothing needed, is an error: waivers don't pile up.
Requirements of level 0 can't be waived; without them nothing else means anything.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date

from vmi import abi
from vmi.conformance.case import Case
from vmi.conformance.runner import Result
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

    def covers(self, result: Result) -> bool:
        """It speaks of this result."""
        case = result.case
        named = case.name == self.case if self.case else self.requirement in case.requirements
        where = result.environment  # a waiver is for every engine
        return named and self.environment in ("", str(where), str(replace(where, engine="")))


def parse(text: str, cases: Sequence[Case], today: date) -> list[Waiver]:
    """Waivers of a file. :raises BadInput: it is none, or a waiver is unknown, expired or not allowed."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"waivers must be a TOML file, but it can't be read: {error}") from None
    rows = data.get("waiver", [])
    if set(data) - {"waiver"} or not isinstance(rows, list):
        raise BadInput("a file of waivers must hold [[waiver]] tables and nothing else")
    return [_waiver(row, number, cases, today) for number, row in enumerate(rows, 1)]


def _waiver(row: object, number: int, cases: Sequence[Case], today: date) -> Waiver:
    if not isinstance(row, dict) or set(row) - _KEYS:
        raise BadInput(f"waiver {number} must have the keys {', '.join(sorted(_KEYS))} only")
    case, requirement = str(row.get("case", "")), str(row.get("requirement", ""))
    if bool(case) == bool(requirement):
        raise BadInput(f"waiver {number} must name a case or a requirement, and not both")
    found = [each for each in cases if each.name == case or requirement in each.requirements]
    if not found:
        raise BadInput(f"waiver {number} names {case or requirement!r}, which there is not")
    if (requirement and abi.ALL_REQUIREMENTS[requirement].level == 0) or (case and found[0].level == 0):
        raise BadInput(
            f"waiver {number} is for {case or requirement}, which is of level 0 and can't be waived"
        )
    expires, reason = row.get("expires"), str(row.get("reason", ""))
    if not isinstance(expires, date) or not reason:
        raise BadInput(f"waiver {number} must have a reason and a date as expires")
    if expires < today:
        raise BadInput(f"waiver {number} for {case or requirement} has expired on {expires.isoformat()}")
    return Waiver(case, requirement, str(row.get("environment", "")), reason, expires)


def apply(results: Iterable[Result], waivers: Sequence[Waiver]) -> tuple[list[Result], list[Waiver]]:
    """Results with waived ones marked, and the waivers that nothing needed."""
    used: set[Waiver] = set()
    marked = []
    for result in results:
        cover = next((waiver for waiver in waivers if waiver.covers(result)), None)
        if cover is not None and result.verdict in (Verdict.FAIL, Verdict.TIMEOUT, Verdict.CRASH):
            used.add(cover)
            result = replace(result, verdict=Verdict.WAIVED, reasons=(cover.reason, *result.reasons))
        marked.append(result)
    return marked, [waiver for waiver in waivers if waiver not in used]
