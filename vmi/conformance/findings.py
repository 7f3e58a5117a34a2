# SPDX-License-Identifier: GPL-2.0-only
"""Findings of a fuzzer as a file, and as cases of the suite.

The file is JSON: an object with a list ``findings``, each with its environment and its calls, so that it says
by itself what to do again. The state of a campaign is such a file too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vmi import abi
from vmi.conformance.case import Case, Findings
from vmi.conformance.fuzz import Fuzzer
from vmi.conformance.layout import Paging
from vmi.conformance.rig import Rig, Unfit
from vmi.conformance.sequence import Step, usable
from vmi.conformance.subject import Environment
from vmi.conformance.suite import Target
from vmi.conformance.walk import MOST_CALLS, Call
from vmi.errors import BadInput
from vmi.rom.build import build
from vmi.x86 import U32


@dataclass(frozen=True)
class Finding:
    """A sequence after which the two differ, or one of them has gone wrong."""

    seed: int
    environment: Environment
    steps: tuple[Step, ...]
    difference: str

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.environment}"

    def places(self, among: Sequence[Environment]) -> list[Environment]:
        """Where to run it again: where it was found, or with any MMU if that one isn't there."""
        fitting = [each for each in among if each.paging is self.environment.paging]
        return [each for each in fitting if each.mmu == self.environment.mmu] or fitting

    def to_json(self) -> dict[str, object]:
        """One row of a file."""
        return {
            "seed": self.seed,
            "paging": self.environment.paging.value,
            "mmu": self.environment.mmu,
            "difference": self.difference,
            "steps": [
                {"call": s.call, "example": s.example, "registers": dict(s.registers), "stack": list(s.stack)}
                for s in self.steps
            ],
        }


def dump(findings: Sequence[Finding]) -> str:
    """A file that :func:`load` reads."""
    return json.dumps({"findings": [finding.to_json() for finding in findings]}, indent=1) + "\n"


def load(text: str) -> tuple[Finding, ...]:
    """The findings of a file. :raises BadInput: it is none."""
    try:
        return tuple(from_json(row) for row in json.loads(text)["findings"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadInput(f"this is no file of findings of vmi fuzz: {type(error).__name__} {error}") from None


def from_json(row: Any) -> Finding:
    """What :meth:`Finding.to_json` gave.

    :raises ValueError, KeyError, TypeError, AttributeError, OverflowError: it has not given that.
    """
    environment = Environment(Paging(row["paging"]), str(row["mmu"]))
    steps = tuple(_step(environment.paging, each) for each in row["steps"])
    if not 0 < len(steps) <= MOST_CALLS:
        raise ValueError(f"a sequence has 1 to {MOST_CALLS} calls, not {len(steps)}")
    return Finding(int(row["seed"]), environment, steps, str(row["difference"]))


@cache
def _calls(paging: Paging) -> dict[tuple[str, int], Call]:
    """Calls with the examples that make sense there, by name and number."""
    return {(call.name, call.number): call for examples in usable(paging) for call in examples}


def _step(paging: Paging, row: Any) -> Step:
    name, number = row["call"], row["example"]
    call = _calls(paging).get((name, number))
    if call is None:
        raise ValueError(f"{name} has no example {number} with paging {paging.value}")
    stack = tuple(_dword(value) for value in row["stack"])
    registers = tuple((key, _dword(row["registers"][key])) for key in call.keys)
    if len(stack) != len(call.stack) or len(row["registers"]) != len(registers):
        raise ValueError(f"{name} takes other arguments")
    return Step(call.name, call.number, registers, stack)


def _dword(value: object) -> int:
    if type(value) is not int or not 0 <= value <= U32:
        raise ValueError(f"a dword is needed, not {value!r}")
    return value


def oracle() -> Target:
    """The bare machine, by the ROM whose calls are the instructions themselves."""
    return Target("native", build("native").image)


def as_cases(findings: Sequence[Finding], path: str) -> list[Case]:
    """Cases that make the calls of a file's findings on what is tested and on the bare machine."""
    return [
        _as_case(finding, f"finding {n} of {Path(path).name}", path) for n, finding in enumerate(findings, 1)
    ]


def _as_case(finding: Finding, name: str, path: str) -> Case:
    call = abi.BY_NAME[finding.steps[-1].call]

    def body(rig: Rig, found: Findings) -> None:
        """A sequence of calls leaves what it leaves on the bare machine."""
        native = Environment(rig.environment.paging)
        fuzzer = Fuzzer(rig, Rig(oracle().make(native), native))
        if not fuzzer.is_decided(finding.steps):
            raise Unfit("the table leaves open what comes of these calls, or the ROM has no code for them")
        difference = fuzzer.run(finding.steps)
        found.true(not difference, difference)

    paging = frozenset({finding.environment.paging})
    return Case(
        f"{call.name}/{name}",
        (),
        call.name,
        str(call.group),
        call.level,
        body,
        paging,
        begun=False,
        replay=path,
    )
