# SPDX-License-Identifier: GPL-2.0-only
"""The report as one HTML page that needs nothing else: a matrix of requirements and environments."""

from __future__ import annotations

from html import escape

from vmi import abi
from vmi.conformance.report import Report
from vmi.conformance.verdict import Verdict

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;
color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #d8dee4;vertical-align:top}
th{position:sticky;top:0;background:#f6f8fa}td.v{white-space:nowrap;font-weight:600}code{font-size:.87em}
.PASS{color:#116329}.SKIP{color:#57606a;font-weight:400}.WAIVED{color:#7d4e00}.ERROR{color:#8250df}
.FAIL,.TIMEOUT,.CRASH{color:#b00020;background:#ffebe9}
.sum{font-size:1.1rem}.group td{background:#f6f8fa;font-weight:600}
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}th,.group td{background:#161b22}
th,td{border-color:#30363d}.PASS{color:#56d364}.SKIP{color:#8b949e}.WAIVED{color:#e3b341}
.FAIL,.TIMEOUT,.CRASH{color:#ff7b72;background:#3c1618}.ERROR{color:#d2a8ff}}
"""


def to_html(report: Report) -> str:
    """The whole page."""
    verdict = report.verdict.value
    sums = ", ".join(f"{count} {name}" for name, count in report.counts.items()) or "no cases"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>VMI conformance: {verdict}</title><style>{_STYLE}</style></head><body>",
        "<h1>VMI conformance report</h1>",
        f'<p class="sum"><span class="{verdict}">{verdict}</span>: {escape(sums)}; '
        f"{report.assertions} assertions</p>",
        *(f'<p class="ERROR">{escape(trouble)}</p>' for trouble in report.troubles),
        "<h2>Subject</h2><table>",
        *(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in report.facts.items()),
        f"<tr><th>command</th><td><code>{escape(report.command)}</code></td></tr></table>",
        *_failures(report),
        *_matrix(report),
        *_open(report),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _failures(report: Report) -> list[str]:
    bad = [r for r in report.results if not r.verdict.good or r.verdict is Verdict.WAIVED]
    if not bad:
        return []
    lines = ["<h2>What does not hold</h2><table><tr><th>verdict</th><th>case</th><th>why</th></tr>"]
    for result in bad:
        reasons = "<br>".join(escape(reason) for reason in result.reasons)
        lines.append(
            f'<tr><td class="v {result.verdict.value}">{result.verdict.value}</td>'
            f"<td>{escape(result.case.name)}<br>{escape(str(result.environment))}</td>"
            f"<td>{reasons}<br><code>{escape(report.repro(result))}</code></td></tr>"
        )
    return [*lines, "</table>"]


def _matrix(report: Report) -> list[str]:
    environments = list(dict.fromkeys(str(result.environment) for result in report.results))
    heads = "".join(f"<th>{escape(name)}</th>" for name in environments)
    lines = [f"<h2>Requirements</h2><table><tr><th>requirement</th>{heads}</tr>"]
    last = ""
    for requirement, row in report.requirement_verdicts().items():
        rule = abi.ALL_REQUIREMENTS[requirement]
        if rule.subject != last:
            lines.append(
                f'<tr class="group"><td colspan="{len(environments) + 1}">{escape(rule.subject)}</td></tr>'
            )
            last = rule.subject
        cells = "".join(
            f'<td class="v {row[name].value}">{row[name].value}</td>' if name in row else "<td></td>"
            for name in environments
        )
        lines.append(f"<tr><td><b>{requirement}</b> {escape(rule.text)}</td>{cells}</tr>")
    return [*lines, "</table>"]


def _open(report: Report) -> list[str]:
    decided = report.requirement_verdicts()
    missing = [each for each in abi.ALL_REQUIREMENTS if each not in decided]
    if not missing:
        return []
    total = len(abi.ALL_REQUIREMENTS)
    return [
        f"<h2>Not asked</h2><p>{len(missing)} of {total} requirements were not part of this run: "
        f"{escape(', '.join(missing))}.</p>"
    ]
