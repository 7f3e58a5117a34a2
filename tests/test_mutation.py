# SPDX-License-Identifier: GPL-2.0-only
"""Mutants are what they say, and the one that a case is about is found by it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vmi.conformance import suite
from vmi.conformance.layout import Paging
from vmi.conformance.subject import Environment
from vmi.rom.build import build
from vmi.rom.flavours import get

ROOT = Path(__file__).resolve().parents[1]
WHERE = f"vmware {Environment(Paging.OFF, 'direct')}"

SOURCE = '''\
"""A text with 1 number."""
LIMIT = 4 + OTHER

def seen(a: Literal[3], b) -> bool:
    """Nothing of 5 is done here."""
    if a < b and not b:
        raise GuestFault(f"{a} of 6")
    a.b = a if c else True
    d = a
    go(a)
    a |= b
    while a:
        return a == b
'''
MUTANTS = """\
2 operator: 4 + OTHER -> 4 - OTHER
2 constant: 4 -> 5
2 constant: 4 -> 3
2 constant: 4 -> 0
6 negated: a < b and (not b) -> not (a < b and (not b))
6 and/or: a < b and (not b) -> a < b or not b
6 comparison: a < b -> a <= b
6 not: not b -> b
7 dropped: raise GuestFault(f'{a} of 6') -> pass
8 dropped: a.b = a if c else True -> pass
8 negated: c -> not c
8 constant: True -> False
10 dropped: go(a) -> pass
11 operator: a |= b -> a &= b
11 dropped: a |= b -> pass
12 negated: a -> not a
13 result: return a == b -> return not a == b
13 comparison: a == b -> a != b
"""
CODE = """\
        push ecx                        ; kept
@here:  jz short @off
        add [ecx + 8], edx
"""
LINES = """\
1 dropped: push ecx -> 
1 register: push ecx -> push edx
2 dropped: @here: jz short @off -> @here:
2 negated: @here: jz short @off -> @here: jnz short @off
3 dropped: add [ecx + 8], edx -> 
3 operator: add [ecx + 8], edx -> sub [ecx + 8], edx
3 constant: add [ecx + 8], edx -> add [ecx + 9], edx
3 constant: add [ecx + 8], edx -> add [ecx + 7], edx
3 constant: add [ecx + 8], edx -> add [ecx + 12], edx
3 register: add [ecx + 8], edx -> add [edx + 8], edx
3 register: add [ecx + 8], edx -> add [ecx + 8], ebx
"""  # noqa: W291


def shown(mutants: Any) -> str:
    return "".join(f"{str(each)[len(each.place) + 1 :]}\n" for each in mutants)


def test_what_python_becomes(bench):
    mutators = bench("mutators")
    made = mutators.in_python("a.py", SOURCE)
    assert shown(made) == MUTANTS
    assert [each.early for each in made] == [each.line == 2 for each in made]
    whole = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in made:
        wrong = ast.unparse(mutators.python(mutant, SOURCE)).splitlines()
        changed = [(was, now) for was, now in zip(whole, wrong, strict=True) if was != now]
        assert len(changed) == 1 and mutant.becomes in changed[0][1], mutant


def test_what_code_of_a_rom_becomes(bench):
    mutators = bench("mutators")
    made = mutators.in_assembly("vmware:CPUID", CODE)
    assert shown(made) == LINES
    assert mutators.assembly(made[3], CODE).splitlines()[1] == "@here: jnz short @off"


def test_every_module_has_mutants_that_compile(bench):
    mutators, sources = bench("mutators"), bench("executed").sources()
    assert "hypervisor/domain.py" in sources and "rom/flavours/vmware.py" in sources
    for place, source in sources.items():
        for mutant in mutators.in_python(place, source)[::101]:
            compile(mutators.python(mutant, source), place, "exec")


@pytest.fixture
def known(bench, tmp_path) -> Any:
    """A file that says which case executes what."""

    def write(rows: dict[str, str]) -> tuple[Any, Path]:
        executed = bench("executed")
        cases = suite.all_cases()
        bits = {case.name: f"{1 << number:x}" for number, case in enumerate(cases)}
        made = executed.Executed(
            executed._digest(),
            [case.subject for case in cases],
            {name: build(name).image.hex() for name in executed.FLAVOURS},
            {"vmware:GetCR2": get("vmware").templates["GetCR2"].source},
            {place: {WHERE: bits[case]} for place, case in rows.items()},
            [],
        )
        path = tmp_path / "executed.json"
        path.write_text(json.dumps(asdict(made)), encoding="utf-8")
        return made, path

    return write


def test_mutants_are_found_by_the_cases_that_are_about_them(bench, known, tmp_path):
    place = "hypervisor/calls/control.py"
    of_python = bench("mutators").in_python(place, bench("executed").sources()[place])
    less = next(each for each in of_python if each.becomes == "call.cpu.eax <= 8")
    cleared = next(each for each in of_python if each.was == "call.vcpu.clear_task_switched()")
    made, path = known({"vmware:GetCR2": "SetCR2/read back", f"{place}:{cleared.line}": "SetCR0/TS"})
    of_rom = bench("mutators").in_assembly("vmware:GetCR2", made.templates["vmware:GetCR2"])
    word = next(each for each in of_rom if each.kind == "register" and "CR2" in each.was)
    chosen = [less, cleared, word]
    command = [sys.executable, str(ROOT / "bench" / "mutation.py"), "--executed", str(path)]
    command += ["--json", str(tmp_path / "out.json")]
    for mutant in chosen:
        command += ["--mutant", mutant.name]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [(row["end"], row["case"]) for row in rows] == [
        ("never", ""),
        ("timeout", f"SetCR0/TS in {WHERE[7:]}"),
        ("found", f"SetCR2/read back in {WHERE[7:]}"),
    ]
    assert run.stdout.splitlines()[-2:] == [
        "hypervisor    1 of    1 found, 100.0 % (timeout 1, never 1)",
        "vmware        1 of    1 found, 100.0 % (found 1)",
    ]
