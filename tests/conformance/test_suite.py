# SPDX-License-Identifier: GPL-2.0-only
"""The suite itself: what it asks, that both ROMs pass, how cases are picked, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vmi import abi
from vmi.conformance import agent, runner, suite
from vmi.conformance.case import Case, Findings
from vmi.conformance.layout import Paging
from vmi.conformance.machine_subject import MachineSubject
from vmi.conformance.rig import Rig
from vmi.conformance.runner import Result
from vmi.conformance.subject import Environment
from vmi.conformance.suite import Selection, Target
from vmi.conformance.verdict import Verdict, exit_status, worst
from vmi.errors import BadInput, ExitCode, UsageError
from vmi.rom.build import build

NATIVE = Target("native", build("native").image)
VMWARE = Target("vmware", build("vmware").image)
ENVIRONMENTS = [(target, environment) for target in (NATIVE, VMWARE) for environment in target.environments()]


def not_good(results: Iterator[Result]) -> list[tuple[str, Verdict, tuple[str, ...]]]:
    """What speaks against a subject."""
    return [(r.case.name, r.verdict, r.reasons) for r in results if not r.verdict.good]


@pytest.mark.parametrize(("target", "environment"), ENVIRONMENTS, ids=str)
def test_our_roms_conform(target: Target, environment: Environment) -> None:
    assert not not_good(runner.run(suite.all_cases(), target.make, environment))


def test_the_guests_code_is_that_of_its_source() -> None:
    assert agent.load() == agent.build()


def test_ids_are_known_and_cases_have_names_of_their_own() -> None:
    cases = suite.all_cases()
    assert {each for case in cases for each in case.requirements} <= set(abi.ALL_REQUIREMENTS)
    assert all(case.name.startswith(f"{case.subject}/") and case.summary for case in cases)
    assert len(abi.ALL_REQUIREMENTS) >= 450


@pytest.mark.parametrize(
    ("selection", "first", "count"),
    [
        (Selection(("SetCR0",)), "SetCR0/TS", None),
        (Selection(("iret/*",)), "IRET/IOPL", None),
        (Selection(levels=(0,)), None, None),
        (Selection(("SetCR*",), groups=("mmu",)), None, 0),
        (Selection(requirements=("VMI-SetCR0-03",)), "SetCR0/WP", 1),
    ],
)
def test_selection(selection: Selection, first: str | None, count: int | None) -> None:
    picked = selection.pick(suite.all_cases())
    assert first is None or picked[0].name == first
    assert len(picked) == count if count is not None else picked


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        (Selection(("SetCR9",)), "no case is called 'SetCR9'; `vmi conform --list` shows all"),
        (Selection(groups=("nil",)), "there is no group 'nil'; there are apic, control, "),
        (Selection(levels=(7,)), "there is no level 7; there are 0, 1, 2, 3"),
        (Selection(requirements=("VMI-X-01",)), "there is no requirement 'VMI-X-01'; there are VMI-"),
    ],
)
def test_a_selection_of_nothing(selection: Selection, sentence: str) -> None:
    with pytest.raises(UsageError, match="^" + re.escape(sentence)):
        selection.pick(suite.all_cases())


def test_processes_make_no_difference() -> None:
    wanted = Selection(("GetCR*",)).pick(suite.all_cases())
    plan = [(Environment(), wanted), (Environment(Paging.PAE), wanted)]
    one = [replace(result, seconds=0.0) for result in suite.run(NATIVE, plan)]
    two = [replace(result, seconds=0.0) for result in suite.run(NATIVE, plan, jobs=2)]
    assert one == two and len(one) == sum(
        case.fits(where) or not case.alone for where, _ in plan for case in wanted
    )


def test_what_counts_of_several_verdicts() -> None:
    assert worst([]) is Verdict.PASS
    assert worst([Verdict.PASS, Verdict.SKIP, Verdict.ERROR]) is Verdict.ERROR
    assert worst([Verdict.ERROR, Verdict.FAIL, Verdict.TIMEOUT, Verdict.CRASH]) is Verdict.CRASH
    statuses = [exit_status([verdict]) for verdict in Verdict]
    assert statuses == [ExitCode.OK] * 3 + [ExitCode.CONFORMANCE_UNKNOWN] + [ExitCode.NOT_CONFORMING] * 3


def _broken(_rig: Rig, _found: Findings) -> None:
    raise ZeroDivisionError("of the case's own")


def test_a_case_that_goes_wrong_is_no_verdict_on_the_subject() -> None:
    case = Case("ROM/broken", ("VMI-ROM-01",), "ROM", "rom", 0, _broken)
    result = next(runner.run([case], NATIVE.make, Environment()))
    assert (result.verdict, result.reasons) == (Verdict.ERROR, ("ZeroDivisionError: of the case's own",))


class Mine:
    """A subject of somebody's own that always goes wrong."""

    name = "mine"

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def reset(self) -> None:
        raise RuntimeError("not today")

    def facts(self) -> dict[str, str]:
        return {"what": "mine"}


def test_a_backend_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("from vmi.conformance.machine_subject import MachineSubject\n"
        "from vmi.rom.build import build\n\n\ndef Theirs(environment):\n"
        "    return MachineSubject('theirs', build('native').image, environment)\n")  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))
    target = Target("theirs", backend="theirs:Theirs")
    wanted = Selection(("GetTR",)).pick(suite.all_cases())
    assert not not_good(suite.run(target, [(Environment(), wanted)]))
    with pytest.raises(
        BadInput, match=r"^the backend must be package.module:Class, but 'theirs:No' can't be"
    ):
        suite.backend("theirs:No")
    with pytest.raises(BadInput, match=r"^the backend must be package.module:Class or the name of one that"):
        suite.backend("nowhere")


def test_a_backend_that_goes_wrong() -> None:
    wanted = Selection(("GetTR",)).pick(suite.all_cases())
    made = list(runner.run(wanted, Mine, Environment()))  # type: ignore[arg-type]
    assert {result.verdict for result in made} == {Verdict.ERROR}
    assert [result.reasons for result in made if not result.case.begun] == [("RuntimeError: not today",)]
    begun = {result.reasons for result in made if result.case.begun}
    assert begun == {("while beginning: unknown, RuntimeError: not today",)}


class Zeros(MachineSubject):
    """A machine on which frames that nothing answers at read as zeros: with a hypervisor, or anyway."""

    natively = True

    def registers(self) -> dict[str, int]:
        """As they are, but for what such a load gives."""
        values = super().registers()
        active = self._domain is not None and self._domain.active
        return {**values, "eax": 0} if values["eax"] == 0xFFFFFFFF and (active or self.natively) else values


class ZerosInTheGuest(Zeros):
    """Such frames read as zeros where there is a hypervisor, and as ones elsewhere."""

    natively = False


@pytest.mark.parametrize(("machine", "verdict"), [(Zeros, Verdict.PASS), (ZerosInTheGuest, Verdict.FAIL)])
def test_frames_behind_ram_are_as_without_a_hypervisor(machine: type[Zeros], verdict: Verdict) -> None:
    def make(environment: Environment) -> Zeros:
        return machine("zeros", VMWARE.rom or b"", environment)

    (case,) = [case for case in suite.all_cases() if case.name == "Mmu/behind RAM"]
    made = runner.run([case], make, Environment(Paging.TWO_LEVEL, "shadow"))
    assert [result.verdict for result in made] == [verdict]


class Flags(MachineSubject):
    """A machine whose processor has some arithmetic flags when it begins."""

    def reset(self) -> None:
        """Power on."""
        super().reset()
        self.set_registers({"eflags": 0xD7})


def test_flags_at_power_on_are_the_machines_own_matter() -> None:
    cases = [case for case in suite.all_cases() if case.subject in ("Activation", "Patched", "ROM")]
    made = list(runner.run(cases, lambda each: Flags("flags", NATIVE.rom or b"", each), Environment()))
    assert len(made) > 20 and not not_good(iter(made))
