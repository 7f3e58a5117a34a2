# SPDX-License-Identifier: GPL-2.0-only
"""Backends that go wrong in every way: cases say what was wrong with the backend, and the suite goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmi.conformance import guarded, runner, suite
from vmi.conformance.guarded import Guarded
from vmi.conformance.machine_subject import MachineSubject
from vmi.conformance.runner import Result
from vmi.conformance.subject import End, Environment, Stop
from vmi.conformance.suite import Selection, Target
from vmi.conformance.verdict import Verdict
from vmi.errors import BackendError, BadInput, EngineError
from vmi.rom.build import build

CASES = Selection(("ROM/BIOS entry", "GetCR0/exits 0")).pick(suite.all_cases())
HERE = "tests.conformance.test_guarded"


class Good(MachineSubject):
    """What a backend should be."""

    def __init__(self, environment: Environment) -> None:
        super().__init__("good", build("native").image, environment)


class Dies(Good):
    """It takes its process with it."""

    def run(self, limit_ns: int) -> Stop:
        os._exit(3)


def tried(maker: Callable[[Environment], Any]) -> list[Result]:
    return list(runner.run(CASES, lambda where: Guarded("theirs", maker, where), Environment()))


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("method", "does", "sentence"),
    [
        ("run", lambda *_: _raise(ValueError("no\nrun")), "has raised ValueError: no run"),
        ("run", lambda *_: sys.exit(3), "has raised SystemExit: 3"),
        ("run", lambda *_: None, "must give a Stop, but it has given None"),
        ("run", lambda *_: Stop("x"), "must give a Stop, but it has given Stop(end='x', reason='')"),  # type: ignore[arg-type]
        ("set_registers", lambda *_: _raise(MemoryError()), "has raised MemoryError"),
        ("read", lambda *_: b"\1", "must give 4 bytes, but it has given 1"),
        ("read", lambda *_: "\1\2\3\4", "must give 4 bytes, but it has given '\\x01\\x02\\x03\\x04'"),
        ("registers", lambda *_: {"eax": -5}, "must give a dword for eax, but it has given -5"),
        ("registers", lambda *_: None, "must give numbers by names, but it has given None"),
        ("exits", lambda *_: "1", "must give a number, but it has given '1'"),
        ("mark", lambda *_: 5, "must give a function or None, but it has given 5"),
        ("facts", lambda *_: {"a": 1}, "must give texts by names, but it has given {'a': 1}"),
        ("write", None, "has raised TypeError: 'NoneType' object is not callable"),
    ],
)  # fmt: skip
def test_a_method_goes_wrong(
    method: str, does: Callable[..., Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Good, method, does)
    sentence = f"{method}() of the backend 'theirs' {sentence}"
    found = [result for result in tried(Good) if result.verdict is Verdict.ERROR]
    if method == "facts":  # no case asks for it here
        with pytest.raises(BackendError) as caught:
            Guarded("theirs", Good, Environment()).facts()
        assert str(caught.value) == sentence
    else:
        assert found and all(result.reasons[-1].endswith(sentence) for result in found)


def test_what_mark_gives_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Good, "mark", lambda *_: lambda: _raise(KeyError("gone")))
    subject = Guarded("theirs", Good, Environment())
    back = subject.mark()
    assert back is not None
    with pytest.raises(BackendError) as caught:
        back()
    assert str(caught.value) == (
        "going back to what mark() has kept of the backend 'theirs' has raised KeyError: 'gone'"
    )


def test_it_can_not_be_made() -> None:
    def never(_environment: Environment) -> Any:
        raise KeyError("nothing")

    assert {(each.verdict, each.reasons) for each in tried(never)} == {
        (Verdict.ERROR, ("the constructor of the backend 'theirs' has raised KeyError: 'nothing'",))
    }


def test_it_says_that_there_is_none_for_an_environment() -> None:
    def never(environment: Environment) -> Any:
        raise EngineError(f"paging {environment.paging} is beyond it")

    made = tried(never)
    assert {(each.verdict, each.reasons) for each in made} == {(Verdict.SKIP, ("paging off is beyond it",))}
    assert len(made) == len(CASES)


# an alarm in a callback of the garbage collector is lost, so it comes again a second later
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(*_: object) -> None:
        while True:
            try:
                time.sleep(100)
            except Exception:
                continue

    monkeypatch.setattr(guarded, "PATIENCE", 0.05)
    monkeypatch.setattr(guarded, "_hung", {})
    monkeypatch.setattr(Good, "run", waits)
    before = signal.getsignal(signal.SIGALRM)
    made = tried(Good)
    sentence = "run() of the backend 'theirs' has not come back within 0.05 s"
    assert {each.verdict for each in made} == {Verdict.ERROR}
    assert all(each.reasons[-1].endswith(sentence) for each in made)
    assert signal.getsignal(signal.SIGALRM) is before
    assert [each.reasons for each in tried(Good)] == [(sentence,)] * len(CASES)  # nobody waits again


def test_a_machine_that_does_nothing_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Good, "run", lambda *_: Stop(End.DONE))
    assert {(each.verdict, each.reasons[-1]) for each in tried(Good)} == {
        (Verdict.FAIL, "while booting: done")
    }


def test_it_takes_its_process_down() -> None:
    """Those of another backend's cases that had to wait are not lost by it."""
    target = Target(f"{HERE}:Dies", backend=f"{HERE}:Dies")
    made = list(suite.run(target, [(Environment(), CASES)], jobs=2))
    assert [each.case for each in made] == CASES
    assert {(each.verdict, each.reasons) for each in made} == {
        (
            Verdict.ERROR,
            ("the process that ran it, from ROM/BIOS entry to GetCR0/exits 0, has ended by itself",),
        )
    }


def test_facts_that_can_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Good, "facts", lambda *_: _raise(OSError("away")))
    target = Target(f"{HERE}:Good", backend=f"{HERE}:Good")
    assert target.facts() == {
        "backend": f"{HERE}:Good",
        "facts": f"facts() of the backend '{HERE}:Good' has raised OSError: away",
    }


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a package that is installed leaves it."""
    (tmp_path / "theirs-1.dist-info").mkdir()
    (tmp_path / "theirs-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: theirs\nVersion: 1\n"
    )
    (tmp_path / "theirs-1.dist-info" / "entry_points.txt").write_text(
        f"[vmi.backends]\nboxes = {HERE}:Good\nbroken = theirs_that_is_not_there:Box\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_one_that_is_installed_is_found_by_its_name(installed: Path) -> None:
    target = Target("boxes", backend="boxes")
    assert [each.verdict for each in suite.run(target, [(Environment(), CASES)])] == [Verdict.PASS] * len(
        CASES
    )
    for name, sentence in (
        ("box", "the backend must be package.module:Class or the name of one that is installed, but 'box' "
                "is neither; installed are boxes, broken"),
        ("broken", "the backend must be package.module:Class, but 'broken' can't be loaded: "
                   "No module named 'theirs_that_is_not_there'"),
    ):  # fmt: skip
        with pytest.raises(BadInput) as caught:
            suite.backend(name)
        assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("syntax:X", "x = (", "the backend must be package.module:Class, but 'syntax:X' can't be loaded: "
                              "SyntaxError, '(' was never closed (syntax.py, line 1)"),
        ("ends:X", "import sys; sys.exit(9)", "the backend must be package.module:Class, but 'ends:X' can't "
                                              "be loaded: SystemExit, 9"),
        ("number:X", "X = 5", "the backend must be a class, but 'number:X' is int"),
        ("..:X", "", "the backend must be package.module:Class, but it is '..:X'"),
        (":X", "", "the backend must be package.module:Class, but it is ':X'"),
    ],
)  # fmt: skip
def test_what_is_no_backend(
    name: str, text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder is looked through, whoever started this process."""
    if text:
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(text)
    monkeypatch.setattr(sys, "path", list(filter(None, sys.path)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        suite.backend(name)
    assert str(caught.value) == sentence
