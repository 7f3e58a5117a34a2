# SPDX-License-Identifier: GPL-2.0-only
"""The engine's measurement: guests do what they are counted for, and figures say what was measured."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest

import vmi
from vmi.run import run_kernel

DONE = 33


# -- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(28.31, "28.3 s"), (1.5, "1.5 s"), (0.5, "0.5 s"), (0.0999, "99.9 ms"), (1e-3, "1 ms"),
     (412e-6, "412 µs"), (0.6e-6, "600 ns"), (2e-6, "2 µs"), (2.69e-9, "2.69 ns"), (120.0, "120 s"),
     (-3e-9, "-3 ns"), (None, "–")],
)  # fmt: skip
def test_seconds(bench, value, text):
    assert bench("figures").seconds(value) == text


def rows(figures: ModuleType) -> list[Any]:
    row, target = figures.Row, figures.Target
    c, python, theirs = figures.Side
    call = target(0.6e-6, 3e-6, of="")
    return [
        row("boot", target(1.5, 8), {c: 3.0, python: 20.0, theirs: 2.0}),
        row("loop", target(2.0), {python: 64e-9, theirs: 2e-9}),
        row("call", call, {c: 7e-7, python: 3e-6}),
        row("patched", target(1.1, 1.4, of="native"), {c: 11.0, python: 30.0}, {c: 10.0, python: 20.0}),
        row("port", target(), {python: 1e-6}),
    ]


def test_table(bench):
    figures = bench("figures")
    assert figures.table(rows(figures)) == (
        "workload  accelerated  ratio           target  Python  ratio               target  QEMU\n"
        "boot              3 s   1.50            ≤ 1.5    20 s  10.00           ≤ 8 missed   2 s\n"
        "loop                –      –              ≤ 2   64 ns  32.00                    –  2 ns\n"
        "call           700 ns      –  ≤ 600 ns missed    3 µs      –               ≤ 3 µs     –\n"
        "patched          11 s   1.10     ≤ 1.1 native    30 s   1.50  ≤ 1.4 native missed     –\n"
        "port                –      –                –    1 µs      –                    –     –"
    )


def test_markdown(bench):
    figures = bench("figures")
    head, rule, first, *rest = figures.markdown(rows(figures)).split("\n")
    assert head == "| workload | accelerated | ratio | target | Python | ratio | target | QEMU |"
    assert rule == "|" + " --- |" * 8
    assert first == "| boot | 3 s | 1.50 | ≤ 1.5 | 20 s | 10.00 | ≤ 8 missed | 2 s |"
    assert len(rest) == 4


def test_json(bench):
    figures = bench("figures")
    first, second, third, fourth, _ = (json.loads(json.dumps(row.to_json())) for row in rows(figures))
    assert first == {
        "workload": "boot", "target_of": "QEMU", "accelerated_s": 3.0, "python_s": 20.0, "qemu_s": 2.0,
        "accelerated_ratio": 1.5, "accelerated_target": 1.5, "accelerated_met": True,
        "python_ratio": 10.0, "python_target": 8, "python_met": False,
    }  # fmt: skip
    assert (second["python_ratio"], second["python_target"], second["python_met"]) == (32, None, None)
    assert (third["target_of"], third["accelerated_met"], third["python_met"]) == ("seconds", False, True)
    assert (fourth["accelerated_native_s"], fourth["accelerated_ratio"]) == (10, 1.1)


def test_sides_take_turns(bench):
    figures = bench("figures")
    side, time, turns = figures.Side, figures.Time, []

    def ours(which):
        turns.append(str(which))
        return time(len(turns), 10 * len(turns))

    def theirs():
        return ours("qemu")

    figure = figures.Figure("x", figures.Target(), ours, theirs, lambda which: ours(f"native {which}"))
    row = figure.row([side.ACCELERATED, side.PYTHON], 3, max)
    assert turns == ["accelerated", "native accelerated", "python", "native python", "qemu"] * 3
    assert row.times == {side.ACCELERATED: 11, side.PYTHON: 13, side.QEMU: 15}
    assert row.native == {side.ACCELERATED: 12, side.PYTHON: 14}
    assert figure.row([side.PYTHON], 1, max, cpu=True).times == {side.PYTHON: 160, side.QEMU: 180}


# -- what is measured ---------------------------------------------------------------------------


def test_without_files_there_are_figures_that_need_none(bench):
    engine = bench("engine")
    names = [one.name for one in engine.wanted(engine.options().parse_args([]))]
    assert names == [
        *(loop.name for loop in bench("guests").LOOPS), "call-out and back: SetCR3",
        "call-out and back: GetWallclockTime", "restore, 100 dirty pages of 64 MiB",
        "start-up: vmi run sample:hello",
    ]  # fmt: skip
    some = engine.wanted(engine.options().parse_args(["--only", "port"]))
    assert [one.name for one in some] == ["port writes", "port reads"]


def test_kernels_that_are_given(bench):
    engine = bench("engine")
    arguments = ["--gnumach", "m", "--linux", "l", "--paravirt", "p", "--client", "c"]
    names = [one.name for one in engine.wanted(engine.options().parse_args(arguments))]
    assert names[:5] == [
        "Linux to its shell", "GNU Mach to its panic", "VMI client, natively", "VMI client, on the ROM",
        "patched Linux, on the ROM",
    ]  # fmt: skip


def test_each_loop_ends_after_so_many_turns(bench):
    guests = bench("guests")
    for which in guests.LOOPS:
        short, long = (run_kernel(guests.loop(which, times)) for times in (3, 8))
        assert short.exit_status == long.exit_status == DONE, (which.name, short.reason)
        assert long.instructions > short.instructions
        event = {14: "#PF", 0x40: "software interrupt"}.get(which.vector)
        if event is not None:
            assert long.exits[event] - short.exits[event] == 5
        for kind in ("port write", "port read"):
            if which.name == f"{kind}s":
                assert long.exits[kind] - short.exits[kind] == 5


def test_each_call_out_is_one(bench):
    guests, rom = bench("guests"), vmi.build_rom("vmware").image
    for name in guests.CALL_OUTS:
        result = run_kernel(guests.call_out(name, 7), rom=rom)
        assert (result.exit_status, result.calls[name]) == (DONE, 7), result.reason
    assert run_kernel(guests.call_out("SetCR3", 7)).exit_status != DONE  # nobody there


def test_measuring_in_this_process(bench, monkeypatch):
    sides = bench("sides")
    monkeypatch.setattr(sides, "LONG", 2)
    monkeypatch.setattr(sides, "_UNIT_S", 0)
    for what, argument in (("loop", "port writes"), ("restore", "")):
        wall, cpu = sides.measure_here(what, argument)
        assert isinstance(wall, float) and isinstance(cpu, float)
    assert sides.measure_here("accelerated", "") in (True, False)


def test_processes_of_each_side(bench, monkeypatch):
    sides, side = bench("sides"), bench("figures").Side
    monkeypatch.setenv("VMI_ACCELERATOR", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert sides.environment(side.PYTHON)["VMI_ACCELERATOR"] == "0"
    assert "VMI_ACCELERATOR" not in sides.environment(side.ACCELERATED)
    assert "PYTHONDONTWRITEBYTECODE" not in sides.environment(side.PYTHON)
    peaks: list[int] = []
    time = sides.run_process([sys.executable, "-c", "raise SystemExit(5)"], 5, peaks=peaks)
    assert time.wall > 0 < time.cpu and peaks[0] > 0
    with pytest.raises(SystemExit) as caught:
        sides.run_process([sys.executable, "-c", "pass"], 5)
    assert str(caught.value) == f"{sys.executable} -c pass ended with 0, not 5"


# -- random sequences ---------------------------------------------------------------------------


def test_rounds_of_sequences(bench):
    fuzz = bench("fuzz")
    environment = fuzz.Environment(fuzz.Paging.OFF, "direct")
    seconds = fuzz.rounds(environment, count=3, times=2)
    assert len(seconds) == 2 and all(each > 0 for each in seconds)
    assert fuzz.row(environment, True, [0.5, 0.25, 1.0]) == {
        "paging": "off",
        "mmu": "direct",
        "accelerated": True,
        "best": 4,
        "median": 2,
    }
