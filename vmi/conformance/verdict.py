# SPDX-License-Identifier: GPL-2.0-only
"""What a case can come to, and which of several counts.

A suite that certifies tells apart what is wrong with the subject (FAIL, CRASH, TIMEOUT), what is wrong with
the suite itself or its surroundings (ERROR) and what was not asked (SKIP). The most severe one counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from vmi.errors import ExitCode


class Verdict(StrEnum):
    """The outcome of one case, mildest first."""

    PASS = "PASS"
    WAIVED = "WAIVED"  # it failed, and a waiver says that it may
    SKIP = "SKIP"  # not applicable, with the reason
    ERROR = "ERROR"  # the suite could not tell: its own fault, or its surroundings'
    FAIL = "FAIL"  # the subject does not keep a requirement
    TIMEOUT = "TIMEOUT"  # the guest did not come to an end
    CRASH = "CRASH"  # the guest died, or took the subject down

    @property
    def severity(self) -> int:
        """Its place in the order of severity, 0 for the mildest."""
        return _ORDER.index(self)

    @property
    def good(self) -> bool:
        """Nothing speaks against the subject."""
        return self.severity <= Verdict.SKIP.severity


_ORDER = list(Verdict)
_STATUS = {
    Verdict.ERROR: ExitCode.CONFORMANCE_UNKNOWN,
    Verdict.FAIL: ExitCode.NOT_CONFORMING,
    Verdict.TIMEOUT: ExitCode.NOT_CONFORMING,
    Verdict.CRASH: ExitCode.NOT_CONFORMING,
}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The most severe of some verdicts, PASS if there are none."""
    return max(verdicts, key=lambda verdict: verdict.severity, default=Verdict.PASS)


def exit_status(verdicts: Iterable[Verdict]) -> ExitCode:
    """What a process should end with that has come to these verdicts."""
    return _STATUS.get(worst(verdicts), ExitCode.OK)
