# SPDX-License-Identifier: GPL-2.0-only
"""What a run of the suite found, as JSON first; text, TAP, JUnit and HTML say the same."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

from vmi import abi
from vmi.conformance.coverage import Coverage
from vmi.conformance.runner import Result
from vmi.conformance.subject import Environment
from vmi.conformance.verdict import Verdict, worst

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Results with what they are about.

    :ivar facts: of the subject, one row of (what, value) for all environments.
    :ivar command: how to run the suite again; a case's own is ``command`` with its name and environment.
    :ivar troubles: what is wrong with waivers; makes the whole an ERROR.
    :ivar notes: sentences about the run that no case is the place for.
    :ivar environments: of each environment that was tested in, by name, what it is.
    :ivar coverage: what was executed of the ROM; None if nobody asked.
    """

    facts: dict[str, str]
    command: str
    results: tuple[Result, ...]
    troubles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    coverage: Coverage | None = None

    @property
    def verdict(self) -> Verdict:
        """The most severe of all."""
        found = [result.verdict for result in self.results]
        return worst([decided(found), Verdict.ERROR] if self.troubles else [decided(found)])

    @property
    def counts(self) -> dict[str, int]:
        """Cases by verdict, most severe first, those that occur."""
        counted = Counter(result.verdict for result in self.results)
        return {verdict.value: counted[verdict] for verdict in reversed(Verdict) if counted[verdict]}

    @property
    def assertions(self) -> int:
        """Things looked at."""
        return sum(result.assertions for result in self.results)

    def requirement_verdicts(self) -> dict[str, dict[str, Verdict]]:
        """For each requirement that a case decides: its verdict by environment, SKIP where none did.

        What can only show that a requirement isn't kept does not show that it is.
        """
        found: dict[str, dict[str, list[Verdict]]] = {}
        for result in self.results:
            undecided = result.case.refutes and result.verdict is Verdict.PASS
            verdict = Verdict.SKIP if undecided else result.verdict
            for requirement in result.case.requirements:
                found.setdefault(requirement, {}).setdefault(str(result.environment), []).append(verdict)
        return {
            requirement: {name: decided(verdicts) for name, verdicts in found[requirement].items()}
            for requirement in abi.ALL_REQUIREMENTS
            if requirement in found
        }

    def repro(self, result: Result) -> str:
        """A command that runs exactly this case again."""
        environment = result.environment
        if result.case.replay:
            return (
                f"{self.command} --replay {shlex.quote(result.case.replay)} {shlex.quote(result.case.name)}"
            )
        where = f" --paging {environment.paging.value}"
        where += f" --mmu {environment.mmu}" if environment.mmu else ""
        where += f" --engine {environment.engine}" if environment.engine else ""
        return f"{self.command}{where} {shlex.quote(result.case.name)}"

    def to_json(self) -> dict[str, object]:
        """Everything; the other forms are made from the same."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "facts": self.facts,
            "environments": self.environments,
            "notes": list(self.notes),
            "counts": self.counts,
            "assertions": self.assertions,
            "troubles": list(self.troubles),
            "requirements": {
                requirement: {name: verdict.value for name, verdict in row.items()}
                for requirement, row in self.requirement_verdicts().items()
            },
            "cases": [
                {
                    "id": result.case.name,
                    "requirements": list(result.case.requirements),
                    "group": result.case.group,
                    "level": result.case.level,
                    "paging": result.environment.paging.value,
                    "mmu": result.environment.mmu,
                    "cpus": result.environment.cpus,
                    "engine": result.environment.engine,
                    "verdict": result.verdict.value,
                    "reasons": list(result.reasons),
                    "assertions": result.assertions,
                    "seconds": round(result.seconds, 6),
                    "repro": self.repro(result),
                }
                for result in self.results
            ],
            "coverage": None if self.coverage is None else self.coverage.to_json(),
        }


def decided(verdicts: Sequence[Verdict]) -> Verdict:
    """The most severe of some verdicts, where skipped cases don't hide that others have passed."""
    asked = [verdict for verdict in verdicts if verdict is not Verdict.SKIP]
    return worst(asked) if asked else Verdict.SKIP


def printable(text: str, keep: str = "") -> str:
    """Foreign text (a file's name, a backend's words) that breaks no line and is valid in each form."""
    return "".join(char if char.isprintable() or char in keep else ascii(char)[1:-1] for char in text)


def to_text(report: Report, *, verbose: bool = False) -> str:
    """For a terminal: what is not good, each with how to see it again; then the sums."""
    lines = [f"{what}: {value}" for what, value in report.facts.items() if verbose]
    for result in report.results:
        if verbose or not result.verdict.good or result.verdict is Verdict.WAIVED:
            lines.append(f"{result.verdict.value:<8}{result.case.name} ({result.environment})")
            lines += [f"        {reason}" for reason in result.reasons]
            if not result.verdict.good:
                ids = [", ".join(result.case.requirements)] if result.case.requirements else []
                lines += [f"        {line}" for line in (*ids, report.repro(result))]
    lines += [f"ERROR   {trouble}" for trouble in report.troubles]
    lines += [f"NOTE    {note}" for note in report.notes]
    if report.coverage is not None:
        lines += report.coverage.to_text(verbose=verbose).splitlines()
    sums = ", ".join(f"{count} {name}" for name, count in report.counts.items())
    lines.append(f"{report.verdict.value}: {sums or 'no cases'}; {report.assertions} assertions")
    return "\n".join(map(printable, lines)) + "\n"


def to_tap(report: Report) -> str:
    """TAP version 14."""
    lines = ["TAP version 14", *(f"# {what}: {value}" for what, value in report.facts.items())]
    lines.append(f"1..{len(report.results)}")
    for number, result in enumerate(report.results, 1):
        word = "ok" if result.verdict.good else "not ok"
        name = result.case.name.replace("\\", "\\\\").replace("#", "\\#")
        line = f"{word} {number} - {name} ({result.environment})"
        if result.verdict in (Verdict.SKIP, Verdict.WAIVED):
            directive = "SKIP" if result.verdict is Verdict.SKIP else "TODO"
            line += f" # {directive} {result.reasons[0] if result.reasons else ''}".rstrip()
        lines.append(line)
        if not result.verdict.good:
            lines += ["  ---", f"  verdict: {result.verdict.value}", "  reasons:"]
            lines += [
                f"    - {json.dumps(reason, ensure_ascii=False)}" for reason in result.reasons
            ]  # which is YAML too
            lines.append(f"  requirements: {json.dumps(result.case.requirements)}")
            lines += [f"  repro: {json.dumps(report.repro(result), ensure_ascii=False)}", "  ..."]
    return "\n".join(map(printable, lines)) + "\n"


def to_junit(report: Report) -> str:
    """JUnit XML: one suite for each environment."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>"]
    for environment in dict.fromkeys(result.environment for result in report.results):
        lines += _junit_suite(report, environment)
    return "\n".join(map(printable, [*lines, "</testsuites>"])) + "\n"


def _junit_suite(report: Report, environment: Environment) -> list[str]:
    results = [result for result in report.results if result.environment == environment]
    bad = sum(not result.verdict.good and result.verdict is not Verdict.ERROR for result in results)
    errors = sum(result.verdict is Verdict.ERROR for result in results)
    skipped = sum(result.verdict in (Verdict.SKIP, Verdict.WAIVED) for result in results)
    seconds = sum(result.seconds for result in results)
    lines = [
        f'  <testsuite name={quoteattr(str(environment))} tests="{len(results)}" failures="{bad}" '
        f'errors="{errors}" skipped="{skipped}" time="{seconds:.3f}">'
    ]
    facts = {**report.facts, **report.environments.get(str(environment), {})}
    named = (f"<property name={quoteattr(what)} value={quoteattr(value)}/>" for what, value in facts.items())
    lines.append(f"    <properties>{''.join(named)}</properties>")
    for result in results:
        head = f"    <testcase classname={quoteattr(result.case.subject)} name={quoteattr(result.case.name)} "
        head += f'time="{result.seconds:.6f}"'
        ids = ", ".join(result.case.requirements)
        text = escape("; ".join(filter(None, (*result.reasons, ids, report.repro(result)))))
        if result.verdict is Verdict.PASS:
            lines.append(f"{head}/>")
        elif result.verdict in (Verdict.SKIP, Verdict.WAIVED):
            lines.append(f"{head}><skipped message={quoteattr('; '.join(result.reasons))}/></testcase>")
        else:
            tag = "error" if result.verdict is Verdict.ERROR else "failure"
            lines.append(f"{head}><{tag} type={quoteattr(result.verdict.value)}>{text}</{tag}></testcase>")
    return [*lines, "  </testsuite>"]
