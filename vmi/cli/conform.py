# SPDX-License-Identifier: GPL-2.0-only
"""``vmi conform``: does a ROM, and the hypervisor behind it, keep the VMI ABI?"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded, keep_inputs
from vmi.errors import UsageError
from vmi.files import check_writable, read_input, write_atomically

if TYPE_CHECKING:
    from vmi.conformance.case import Case
    from vmi.conformance.report import Report
    from vmi.conformance.runner import Result
    from vmi.conformance.subject import Environment
    from vmi.conformance.suite import Plan, Target

_FORMS = (".json", ".xml", ".tap", ".html", ".txt")


@guarded
def command(
    selection: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CASE]...", help="Calls, or patterns over case names such as 'SetCR*'."),
    ] = None,
    rom: Annotated[
        str, typer.Option("--rom", metavar="FLAVOUR|FILE", help="The option ROM to test, by default vmware.")
    ] = "",
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="PKG.MOD:CLASS|NAME",
            help="Test a machine of your own: a class, or one that is installed.",
        ),
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
    expression: Annotated[
        str,
        typer.Option(
            "--expression", metavar="EXPR", help="Only where it holds, such as 'SetCR3 and not paging=pae'."
        ),
    ] = "",
    engine: Annotated[
        str, typer.Option("--engine", metavar="WHICH", help="accelerated, python, or both.")
    ] = "",
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Show how much of the ROM's code is executed.")
    ] = False,
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
        keep_inputs([Path(rom), *filter(None, [waivers]), *(replay or ())], path)
    from vmi.conformance import selection as chosen
    from vmi.conformance import suite

    if backend and (engine or coverage):
        what = "--engine" if engine else "--coverage"
        raise UsageError(f"{what} is about this toolkit's own machine, so it can't go with --backend")
    cases: Sequence[Case] = suite.all_cases()
    if replay:
        if level or group or requirement or expression or paging or mmu or engine or coverage:
            raise UsageError("what --replay runs is said by its files; only names choose among that")
        target, jobs = _target(rom, backend), 1  # other processes know the suite's cases by name, not these
        cases, plan = _found(target, replay, selection or ())
    else:
        wanted = chosen.Selection(
            tuple(selection or ()),
            tuple(group or ()),
            tuple(level or ()),
            tuple(requirement or ()),
            expression,
        )
        target = _target(rom, backend)
        plan = wanted.plan(cases, _environments(target, paging, mmu, _engines(engine)))
    if listing:
        _show_cases(ui, plan)
        return
    if replay and not cases:
        ui.note("these files hold no finding, so there is nothing to run")
    _run(ui, target, cases, plan, jobs, waivers, report or (), measured=coverage)


def _target(rom: str, backend: str) -> Target:
    from vmi.conformance import suite

    if backend:
        return suite.Target(rom or backend, values.rom(rom) if rom else None, backend)
    return suite.Target(rom or "vmware", values.rom(rom or "vmware"))


def _found(target: Target, paths: Sequence[Path], names: Sequence[str]) -> tuple[Sequence[Case], Plan]:
    """Findings as cases, and each where it was found; all, or those of some names."""
    from vmi.conformance import findings
    from vmi.conformance.selection import Selection

    places: dict[Environment, list[Case]] = {
        environment: [] for environment in target.environments() if environment.cpus == 1
    }
    cases: list[Case] = []
    for path in paths:
        found = findings.load(read_input(path, "file of findings").decode("utf-8", "replace"))
        for one, case in zip(found, findings.as_cases(found, str(path)), strict=True):
            cases.append(case)
            for environment in one.places(tuple(places)):
                places[environment].append(case)
    picked = {id(case) for case in Selection(tuple(names)).pick(cases)}
    plan = [(where, [case for case in wanted if id(case) in picked]) for where, wanted in places.items()]
    return cases, [(where, wanted) for where, wanted in plan if wanted]


def _engines(named: str) -> tuple[str, ...]:
    from vmi.conformance import suite
    from vmi.conformance.subject import ENGINES

    engines = ENGINES if named == "both" else (named,) if named else ()
    suite.check_engines(engines)
    return engines or ("",)


def _environments(
    target: Target, paging: list[str] | None, mmu: list[str] | None, engines: Sequence[str]
) -> list[Environment]:
    found = target.environments(engines)
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


def _show_cases(ui: Ui, plan: Plan) -> None:
    """The cases that would run somewhere, and where."""
    places: dict[str, list[str]] = {}
    cases: dict[str, Case] = {}
    for environment, wanted in plan:
        for case in wanted:
            if case.fits(environment):
                cases[case.name] = case
                places.setdefault(case.name, []).append(str(environment))
    if ui.json:
        ui.data([
            {
                "id": case.name,
                "requirements": list(case.requirements),
                "group": case.group,
                "level": case.level,
                "environments": places[case.name],
            }
            for case in cases.values()
        ])  # fmt: skip
    else:
        ui.show(
            "\n".join(
                f"{case.name:<44}L{case.level} {', '.join(case.requirements)}" for case in cases.values()
            )
        )


def _run(
    ui: Ui,
    target: Target,
    cases: Sequence[Case],
    plan: Plan,
    jobs: int,
    waiver_file: Path | None,
    files: Sequence[Path],
    *,
    measured: bool,
) -> None:
    from vmi.conformance import suite, waivers
    from vmi.conformance.coverage import Ran
    from vmi.conformance.report import Report, to_text
    from vmi.conformance.verdict import Verdict, exit_status

    granted = []
    if waiver_file is not None:
        text = read_input(waiver_file, "waivers").decode("utf-8", "replace")
        places = target.environments(tuple(dict.fromkeys(where.engine for where, _ in plan)) or ("",))
        granted = waivers.parse(text, cases, places, datetime.now(UTC).date())
    ran = Ran(len(target.rom or b"")) if measured else None
    results, total = [], sum(len(cases) for _, cases in plan)
    with ui.steps("testing") as step:
        for result in suite.run(target, plan, jobs=jobs, ran=ran):
            results.append(result)
            step(len(results), total)
    tested = dict.fromkeys(result.environment for result in results)
    if all(result.verdict is Verdict.SKIP for result in results):
        target.check(tested)
    results, unused = waivers.apply(results, granted)
    facts = target.facts()
    if any(environment.engine for environment in tested):
        facts["engine"] = ", ".join(dict.fromkeys(environment.engine for environment in tested))
    name = f"--backend {target.backend} " if target.backend else ""
    name += f"--rom {shlex.quote(target.name)}" if target.rom is not None else ""
    made = Report(
        facts,
        f"vmi conform {name.rstrip()}",
        tuple(results),
        tuple(f"the waiver for {waiver} was not needed" for waiver in unused),
        _notes(results),
        environments={str(environment): target.surroundings(environment) for environment in tested},
        coverage=None if ran is None else suite.measure(target, ran, plan),
    )
    for path in files:
        write_atomically(path, _form(made, path.suffix).encode())
        ui.note(f"report written to {path}")
    if ui.json:
        ui.facts(made)
    else:
        ui.show(to_text(made, verbose=ui.verbose))
    raise typer.Exit(int(exit_status([made.verdict])))


def _notes(results: Sequence[Result]) -> tuple[str, ...]:
    """That most could not be looked at, said once."""
    from vmi.conformance.runner import AWAY

    reasons = dict.fromkeys(reason for result in results for reason in result.reasons)
    away = [reason for reason in reasons if reason.startswith(AWAY)]
    return tuple(f"{reason}; only what can be told without it was looked at" for reason in away[:1])


def _form(report: Report, suffix: str) -> str:
    """A report as the file of that suffix holds it."""
    from vmi.conformance.page import to_html
    from vmi.conformance.report import to_junit, to_tap, to_text

    if suffix == ".json":
        return json.dumps(report.to_json(), indent=1) + "\n"
    return {".xml": to_junit, ".tap": to_tap, ".html": to_html, ".txt": to_text}[suffix](report)
