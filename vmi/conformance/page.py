# SPDX-License-Identifier: GPL-2.0-only
"""The report as one HTML page that needs nothing else: a matrix of requirements and environments.

No script, no font and no picture: what folds is ``<details>``, and what filters is check boxes that the style
sheet looks at. So it can be read wherever it is sent to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from html import escape
from itertools import groupby

from vmi import abi
from vmi.conformance.coverage import Coverage, percent
from vmi.conformance.report import Report, decided, printable
from vmi.conformance.runner import Result
from vmi.conformance.style import STYLE
from vmi.conformance.subject import Environment
from vmi.conformance.verdict import Verdict, worst

_SHORT = {Verdict.PASS: "\N{CHECK MARK}", Verdict.SKIP: "\N{EN DASH}"}  # in the matrix, where most are these
_OPEN = 12  # this many failures are shown unfolded


def to_html(report: Report) -> str:
    """The whole page."""
    verdict = report.verdict.value
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>VMI conformance: {verdict}</title><style>{STYLE}</style></head><body>",
        "<header><h1>VMI conformance report</h1>",
        f'<p class="sum"><b class="{verdict}">{verdict}</b> {escape(_sums(report))}</p>',
        *(f'<p class="ERROR">{escape(trouble)}</p>' for trouble in report.troubles),
        *(f"<p>{escape(note)}</p>" for note in report.notes),
        "</header>",
        *_subject(report),
        *_environments(report),
        *_failures(report),
        *_matrix(report),
        *_skipped(report),
        *([] if report.coverage is None else _coverage(report.coverage)),
        *_open(report),
        "</body></html>",
    ]
    return printable("\n".join(parts), keep="\n") + "\n"


def _sums(report: Report) -> str:
    counted = ", ".join(f"{count} {name}" for name, count in report.counts.items()) or "no cases"
    return f"{counted}; {report.assertions} assertions"


def _subject(report: Report) -> Iterator[str]:
    yield '<h2>Subject</h2><table class="facts">'
    for what, value in report.facts.items():
        yield f'<tr><th scope="row">{escape(what)}</th><td>{escape(value)}</td></tr>'
    yield f'<tr><th scope="row">command</th><td>{_command(report.command)}</td></tr></table>'


def _command(text: str) -> str:
    """One click selects all of it."""
    return f'<code class="command">{escape(text)}</code>'


def _environments(report: Report) -> Iterator[str]:
    if not report.environments:
        return
    kinds = list(dict.fromkeys(kind for facts in report.environments.values() for kind in facts))
    yield f"<details><summary>Environments: {len(report.environments)}</summary>"
    yield '<div class="wide"><table><tr><th>environment</th>'
    yield "".join(f"<th>{escape(kind)}</th>" for kind in kinds) + "</tr>"
    for name, facts in report.environments.items():
        cells = "".join(f"<td>{escape(facts.get(kind, ''))}</td>" for kind in kinds)
        yield f"<tr><td>{escape(name)}</td>{cells}</tr>"
    yield "</table></div></details>"


def _failures(report: Report) -> Iterator[str]:
    """What is not good, case by case, and within a case by what is said of it."""
    bad: dict[str, list[Result]] = {}
    for result in report.results:
        if not result.verdict.good or result.verdict is Verdict.WAIVED:
            bad.setdefault(result.case.name, []).append(result)
    if not bad:
        return
    yield f"<h2>What does not hold: {len(bad)} {'case' if len(bad) == 1 else 'cases'}</h2>"
    for number, (name, results) in enumerate(bad.items()):
        verdict = worst(result.verdict for result in results).value
        where = str(results[0].environment) if len(results) == 1 else f"{len(results)} environments"
        yield f'<details class="bad"{" open" if number < _OPEN else ""}>'
        yield f'<summary><b class="v {verdict}">{verdict}</b> {escape(name)} <small>{escape(where)}</small>'
        yield f'<small class="ids">{escape(", ".join(results[0].case.requirements))}</small></summary>'
        for reasons, alike in _by_reasons(results):
            places = ", ".join(str(result.environment) for result in alike)
            yield f"<p><small>{escape(places)}</small></p><ul>"
            yield "".join(f"<li>{escape(reason)}</li>" for reason in reasons) + "</ul>"
            yield _command(report.repro(alike[0]))
        yield "</details>"


def _by_reasons(results: Iterable[Result]) -> Iterable[tuple[tuple[str, ...], list[Result]]]:
    found: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        found.setdefault(result.reasons, []).append(result)
    return found.items()


def _matrix(report: Report) -> Iterator[str]:
    environments = list(dict.fromkeys(result.environment for result in report.results))
    rows = report.requirement_verdicts()
    if not rows:
        return
    yield "<h2>Requirements</h2>"
    yield from _filters(rows)
    heads = "".join(f'<th scope="col">{_head(environment)}</th>' for environment in environments)
    yield f'<div class="matrix"><table><thead><tr><th scope="col">requirement</th>{heads}</tr></thead>'
    for subject, group in groupby(rows.items(), lambda item: abi.ALL_REQUIREMENTS[item[0]].subject):
        lines, verdicts = [], set()
        for requirement, row in group:
            verdict = decided(list(row.values()))
            verdicts.add(verdict)
            cells = "".join(_cell(row.get(str(environment))) for environment in environments)
            lines.append(
                f'<tr class="is-{verdict.value}"><th scope="row"><b>{requirement}</b>'
                f" <span>{escape(abi.ALL_REQUIREMENTS[requirement].text)}</span></th>{cells}</tr>"
            )
        yield f'<tbody class="all-{"-".join(_names(verdicts))}"><tr class="group">'
        yield f'<th colspan="{len(environments) + 1}"><span>{escape(subject)}</span></th></tr>'
        yield from lines
    yield "</table></div>"


def _names(verdicts: Collection[Verdict]) -> list[str]:
    """Verdicts that occur, in the order of their boxes."""
    return [verdict.value for verdict in reversed(Verdict) if verdict in verdicts]


def _filters(rows: dict[str, dict[str, Verdict]]) -> Iterator[str]:
    """A box for each verdict that there is; rows, and groups, of those without a tick are hidden."""
    overall = [decided(list(row.values())) for row in rows.values()]
    groups: dict[str, set[Verdict]] = {}
    for requirement, verdict in zip(rows, overall, strict=True):
        groups.setdefault(abi.ALL_REQUIREMENTS[requirement].subject, set()).add(verdict)
    hidden: list[tuple[tuple[str, ...], str]] = [((name,), f".is-{name}") for name in _names(overall)]
    alike = sorted({tuple(_names(verdicts)) for verdicts in groups.values()})
    hidden += [(names, f".all-{'-'.join(names)}") for names in alike]
    yield "<style>"
    for names, what in hidden:
        yield "~".join(f"#show-{name}:not(:checked)" for name in names) + f"~.matrix {what}{{display:none}}"
    yield "</style>"
    for verdict in reversed(Verdict):
        if verdict in overall:
            mark = f" {_SHORT[verdict]}" if verdict in _SHORT else ""
            yield f'<input type="checkbox" id="show-{verdict.value}" checked>'
            yield f'<label for="show-{verdict.value}" class="{verdict.value}">{verdict.value}{mark} '
            yield f"({overall.count(verdict)})</label>"


def _head(environment: Environment) -> str:
    lines = [environment.paging.value, environment.mmu]
    lines += [f"{environment.cpus} CPUs" if environment.cpus > 1 else "", environment.engine]
    return f"<span>{'<br>'.join(escape(line) for line in lines if line)}</span>"


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "<td></td>"
    return f'<td class="v {verdict.value}" title="{verdict.value}">{_SHORT.get(verdict, verdict.value)}</td>'


def _skipped(report: Report) -> Iterator[str]:
    skipped = [result for result in report.results if result.verdict is Verdict.SKIP]
    if not skipped:
        return
    yield f"<details><summary>Skipped: {len(skipped)}, and why</summary><dl>"
    for reasons, alike in sorted(_by_reasons(skipped), key=lambda row: (-len(row[1]), row[0])):
        names = ", ".join(dict.fromkeys(result.case.name for result in alike))
        yield f"<dt>{escape('; '.join(reasons))} ({len(alike)})</dt><dd>{escape(names)}</dd>"
    yield "</dl></details>"


def _coverage(coverage: Coverage) -> Iterator[str]:
    share = percent(coverage.ran, coverage.size)
    yield f"<h2>ROM code run: {share:.1f} %</h2><p>{coverage.ran} of {coverage.size} bytes."
    if coverage.elsewhere:
        yield f" {coverage.elsewhere} bytes more were run that no entry visibly leads to."
    yield "</p>"
    if coverage.gaps:
        yield "<details><summary>Never run</summary>"
        for gap in coverage.gaps:
            code = "\n".join(f"{offset:04x}  {escape(instruction)}" for offset, instruction in gap.code)
            yield f"<p>{gap.size} bytes at {gap.offset:#06x}, of {escape(', '.join(gap.calls))}</p>"
            yield f"<pre>{code}</pre>"
        yield "</details>"
    yield f"<details><summary>Entries: {len(coverage.entries)}</summary>"
    yield '<table><tr><th>entry</th><th>offset</th><th class="n">bytes run</th><th>share</th></tr>'
    for entry in coverage.entries:
        share = percent(entry.ran, entry.size)
        yield (
            f'<tr><td>{escape(entry.name)}</td><td>{entry.offset:#06x}</td><td class="n">{entry.ran} of '
            f'{entry.size}</td><td><meter max="100" value="{share}">{share}</meter> {share:.1f} %</td></tr>'
        )
    yield "</table></details>"


def _open(report: Report) -> Iterator[str]:
    decided = report.requirement_verdicts()
    missing = [each for each in abi.ALL_REQUIREMENTS if each not in decided]
    if not missing:
        return
    yield f"<details><summary>Not asked: {len(missing)} of {len(abi.ALL_REQUIREMENTS)} requirements"
    yield f"</summary><p>{escape(', '.join(missing))}</p></details>"
