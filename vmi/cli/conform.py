# SPDX-License-Identifier: GPL-2.0-only
"""``vmi conform``: does a ROM, and the hypervisor behind it, keep the VMI ABI?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.errors import UsageError
from vmi.files import check_writable, read_input, write_atomically

if TYPE_CHECKING:
    from vmi.conformance.case import Case
    from vmi.conformance.findings import Finding
    from vmi.conformance.report import Report
    from vmi.conformance.runner import Result
    from vmi.conformance.subject import Environment
    from vmi.conformance.suite import Target

_FORMS = (".json", ".xml", ".tap", ".html", ".txt")


@guarded
def command(
    selection: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CASE]...", help="Calls, or patterns over case names such as 'SetCR*'."),
    ] = None,
    rom: Annotated[
        str, typer.Option("--rom", metavar="FLAVOUR|FILE", help="The option ROM to test.")
    ] = "vmware",
    backend: Annotated[
        str, typer.Option("--backend", metavar="PKG.MOD:CLASS", help="Test a machine of your own instead.")
    ] = "",
    level: Annotated[
        list[int] | None, typer.Option("--level", metavar="N", help="Only this level; repeat it.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", metavar="NAME", help="Only calls of this group; repeat it.")
    ] = None,
    requirement: Annotated[
        list[str] | None, typer.Option("--requirement", metavar="ID", help="Only cases that decide it.")
    ] = None,
    paging: Annotated[
        list[str] | None, typer.Option("--paging", metavar="HOW", help="off, 2-level, pse or pae; repeat it.")
    ] = None,
    mmu: Annotated[
        list[str] | None, typer.Option("--mmu", metavar="HOW", help="direct or shadow; repeat it.")
    ] = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", metavar="N", min=1, max=64, help="Processes.")] = 1,
    waivers: Annotated[
        Path | None, typer.Option("--waivers", metavar="FILE", help="Failures to live with, as TOML.")
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            "--report", metavar="FILE", help="Write .json, .html, .xml (JUnit), .tap or .txt; repeat it."
        ),
    ] = None,
    replay: Annotated[
        list[Path] | None,
        typer.Option("--replay", metavar="FILE", help="Run what vmi fuzz has found instead; repeat it."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Only show the cases that would run.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Test a ROM, and what stands behind it, against the VMI ABI.

    The exit status is 0 if nothing speaks against it, 22 if a requirement is not kept, 24 if the suite could
    not tell.
    """
    ui = Ui(as_json, quiet, verbose)
    for path in report or ():
        if path.suffix not in _FORMS:
            raise UsageError(f"a report must end in {', '.join(_FORMS)}, but it is {path.name!r}")
        check_writable(path)
    from vmi.conformance import suite

    target = suite.Target(backend, backend=backend) if backend else None
    if replay:
        if selection or level or group or requirement or paging or mmu:
            raise UsageError("what --replay runs is said by its files; no other choice goes with it")
        _replay(ui, target or suite.Target(rom, values.rom(rom)), replay, listing, waivers, report or ())
        return
    picked = suite.Selection(
        tuple(selection or ()), tuple(group or ()), tuple(level or ()), tuple(requirement or ())
    ).pick(suite.all_cases())
    if listing:
        _show_cases(ui, picked)
        return
    target = target or suite.Target(rom, values.rom(rom))
    environments = _environments(target, paging, mmu)
    results = suite.run(target, environments, picked, jobs=jobs)
    _report(ui, target, results, len(environments) * len(picked), suite.all_cases(), waivers, report or ())


def _replay(
    ui: Ui,
    target: Target,
    paths: Sequence[Path],
    listing: bool,
    waivers: Path | None,
    files: Sequence[Path],
) -> None:
    """Run findings as cases, each where it was found."""
    from vmi.conformance import findings, runner

    cases: list[tuple[Finding, Case]] = []
    for path in paths:
        found = findings.load(read_input(path, "file of findings").decode("utf-8", "replace"))
        cases += zip(found, findings.as_cases(found, str(path)), strict=True)
    if listing:
        _show_cases(ui, [case for _, case in cases])
        return
    there = [environment for environment in target.environments() if environment.cpus == 1]
    todo = [(case, environment) for found, case in cases for environment in found.places(there)]
    results = (
        result for case, environment in todo for result in runner.run([case], target.make, environment)
    )
    _report(ui, target, results, len(todo), [case for _, case in cases], waivers, files)


def _environments(target: Target, paging: list[str] | None, mmu: list[str] | None) -> list[Environment]:
    found = target.environments()
    for what, wanted, there in (
        ("paging", paging, {environment.paging.value for environment in found}),
        ("MMU", mmu, {environment.mmu for environment in found}),
    ):
        for value in wanted or ():
            if value not in there:
                shown = ", ".join(sorted(filter(None, there))) or "no choice here"
                raise UsageError(f"there is no {what} {value!r}; there is {shown}")
    return [
        environment
        for environment in found
        if (not paging or environment.paging.value in paging) and (not mmu or environment.mmu in mmu)
    ]


def _show_cases(ui: Ui, cases: Sequence[Case]) -> None:
    if ui.json:
        ui.data([
            {
                "id": case.name,
                "requirements": list(case.requirements),
                "group": case.group,
                "level": case.level,
            }
            for case in cases
        ])  # fmt: skip
    else:
        ui.show("\n".join(f"{case.name:<44}L{case.level} {', '.join(case.requirements)}" for case in cases))


def _report(
    ui: Ui,
    target: Target,
    outcomes: Iterable[Result],
    total: int,
    cases: Sequence[Case],
    waiver_file: Path | None,
    files: Sequence[Path],
) -> None:
    """Run, and tell what came out."""
    from vmi.conformance import waivers
    from vmi.conformance.report import Report, to_text
    from vmi.conformance.verdict import exit_status

    granted = []
    if waiver_file is not None:
        text = read_input(waiver_file, "waivers").decode("utf-8", "replace")
        granted = waivers.parse(text, cases, datetime.now(UTC).date())
    results = []
    with ui.steps("testing") as step:
        for result in outcomes:
            results.append(result)
            step(len(results), total)
    results, unused = waivers.apply(results, granted)
    name = f"--backend {target.backend}" if target.backend else f"--rom {target.name}"
    made = Report(
        target.facts(),
        f"vmi conform {name}",
        tuple(results),
        tuple(f"the waiver for {waiver} was not needed" for waiver in unused),
    )
    for path in files:
        write_atomically(path, _form(made, path.suffix).encode())
        ui.note(f"report written to {path}")
    if ui.json:
        ui.facts(made)
    else:
        ui.show(to_text(made, verbose=ui.verbose))
    raise typer.Exit(int(exit_status([made.verdict])))


def _form(report: Report, suffix: str) -> str:
    """A report as the file of that suffix holds it."""
    from vmi.conformance.page import to_html
    from vmi.conformance.report import to_junit, to_tap, to_text

    if suffix == ".json":
        return json.dumps(report.to_json(), indent=1) + "\n"
    return {".xml": to_junit, ".tap": to_tap, ".html": to_html, ".txt": to_text}[suffix](report)
