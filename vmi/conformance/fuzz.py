# SPDX-License-Identifier: GPL-2.0-only
"""Random sequences of calls on two subjects: what the oracle does, the one under test must do too.

A sequence is made from a seed: calls with their examples' arguments, some of them exchanged for values at the
boundaries of their type. Both guests begin from the same mark. As long as the oracle goes on without trouble
(what it ends in is the guest's own fault), results, surviving registers, events and memory must be equal
after each call; whatever comes, a subject must come back with an end of its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from vmi import abi
from vmi.abi import Reloc
from vmi.conformance import layout
from vmi.conformance.examples import EXAMPLES, Example
from vmi.conformance.layout import FREE_PAGES, SCRATCH
from vmi.conformance.rig import Broken, Called, Rig, Unfit, fill
from vmi.conformance.subject import End, Environment
from vmi.conformance.suite import Target
from vmi.errors import BadInput
from vmi.memory import PAGE_SIZE
from vmi.x86 import U32, Cr0, Eflags

LONGEST = 6  # calls in a sequence
_LIMIT_NS = 500_000  # guest time of a call, which takes some hundred instructions
_GENERAL_DETECT = 1 << 13  # of DR7
_DPL = 3 << 13  # of a descriptor's upper dword
_MOST_TRANSFERS = 64  # of a string call
#: Calls whose effect is the same whoever runs the guest, for arguments that are right.
_TELLING = tuple(
    name
    for name, examples in EXAMPLES.items()
    if all(example.same for example in examples) and abi.BY_NAME[name].group not in ("time", "apic")
)
_BOUNDARIES = (
    *(0, 1, 2, 3, 4, 7, 8, 0x10, 0x7F, 0x80, 0xFF, 0x100, 0x200, 0xFFF, 0x1000, 0x3000, 0x7FFF, 0x8000),
    *(0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFE, 0xFFFFFFFF),
)
_ADDRESSES = (SCRATCH, SCRATCH + 1, SCRATCH + PAGE_SIZE - 3, FREE_PAGES, 0x70000000, 0xFFFFFFFD)
_COMPARED = ((SCRATCH, PAGE_SIZE), (FREE_PAGES, 4 * PAGE_SIZE), (layout.IDT, 0x800))
_SHOWN = Eflags.IF | Eflags.DF


@dataclass(frozen=True)
class Step:
    """One call; ``example`` is the number of the example whose memory it needs."""

    call: str
    example: int
    registers: tuple[tuple[str, int], ...]
    stack: tuple[int, ...]

    def __str__(self) -> str:
        registers = ", ".join(f"{name}={value:#x}" for name, value in self.registers)
        stack = ", ".join(f"{value:#x}" for value in self.stack)
        return f"{self.call}({registers}{'; ' if stack else ''}{stack})"


@dataclass(frozen=True)
class Finding:
    """A sequence after which the two differ, or one of them has gone wrong."""

    seed: int
    environment: Environment
    steps: tuple[Step, ...]
    difference: str

    def to_json(self) -> dict[str, object]:
        """For a file that :func:`load` reads."""
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


def load(text: str) -> Finding:
    """A finding from its file. :raises BadInput: it is none."""
    try:
        data = json.loads(text)
        steps = tuple(
            Step(
                abi.find(row["call"]).name,
                int(row["example"]),
                tuple((str(name), int(value)) for name, value in row["registers"].items()),
                tuple(int(value) for value in row["stack"]),
            )
            for row in data["steps"]
        )
        for step in steps:
            _example(step)
        environment = Environment(layout.Paging(data["paging"]), str(data["mmu"]))
        return Finding(int(data["seed"]), environment, steps, str(data["difference"]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInput(f"this is no finding of vmi fuzz: {type(error).__name__} {error}") from None


@cache
def _usable(environment: Environment) -> tuple[tuple[str, int], ...]:
    """Calls with the examples that make sense there."""
    return tuple(
        (name, number)
        for name in _TELLING
        for number, example in enumerate(EXAMPLES[name])
        if environment.paging in example.paging
    )


def sequence(seed: int, environment: Environment) -> tuple[Step, ...]:
    """The sequence that a seed stands for."""
    chance = random.Random(seed)
    steps = []
    for _ in range(chance.randint(1, LONGEST)):
        name, number = chance.choice(_usable(environment))
        example = EXAMPLES[name][number]
        registers = {key: _vary(chance, value) for key, value in example.registers.items()}
        if abi.BY_NAME[name].group == "io":  # another port is another device's matter
            registers["edx"] = example.registers.get("edx", registers.get("edx", 0))
            if "ecx" in registers:
                registers["ecx"] %= _MOST_TRANSFERS
        stack = tuple(_vary(chance, value) for value in example.stack)
        steps.append(Step(name, number, tuple(registers.items()), stack))
    return tuple(steps)


def _vary(chance: random.Random, value: int) -> int:
    """The value as it is, mostly; or one of its neighbours, a boundary, an address, or anything."""
    kind = chance.randrange(12)
    if kind == 0:
        return chance.choice(_BOUNDARIES)
    if kind == 1:
        return chance.choice(_ADDRESSES)
    if kind == 2:
        return value ^ 1 << chance.randrange(32)
    if kind == 3:
        return value + chance.choice((-4, -1, 1, 4, PAGE_SIZE)) & U32
    if kind == 4:
        return chance.getrandbits(32)
    return value


class Fuzzer:
    """Two guests in one environment, from one mark each.

    :raises Broken: one of them can't begin.
    """

    def __init__(self, target: Target, oracle: Target, environment: Environment) -> None:
        self.environment = environment
        self._rigs = [
            Rig(target.make(environment), environment),
            Rig(oracle.make(Environment(environment.paging)), Environment(environment.paging)),
        ]
        self._backs = []
        for rig in self._rigs:
            rig.begin()
            rig.limit_ns = _LIMIT_NS
            for name in _TELLING:
                rig.entry(name)  # asked once, not for each sequence
            self._backs.append(rig.subject.mark() or rig.begin)

    def run(self, steps: Sequence[Step]) -> str:
        """What is wrong behind a sequence, "" if nothing is."""
        for back in self._backs:
            back()
        under_test, oracle = self._rigs
        for number, step in enumerate(steps):
            if any(rig.entry(step.call)[0] is not Reloc.CALL_REL for rig in self._rigs):
                continue
            if _undefined(step):
                return ""  # the two may have another state from here on
            right = _make(oracle, step)
            got = _make(under_test, step)
            if isinstance(got, str):
                return "" if isinstance(right, str) and got == right else f"{step}, call {number}: {got}"
            if isinstance(right, str) or not right.returned or right.frames:
                # the guest has harmed itself, or is told of its mistake; how, may be another matter
                if got.stop.end is End.TIMEOUT and not isinstance(right, str) and right.returned:
                    return f"{step}, call {number}: it does not come back"
                return ""
            difference = _difference(step, got, right) or self._memory()
            if difference:
                return f"{step}, call {number}: {difference}"
        return ""

    def _memory(self) -> str:
        under_test, oracle = self._rigs
        for address, size in _COMPARED:
            got, right = under_test.read(address, size), oracle.read(address, size)
            if got != right:
                at = next(n for n in range(size) if got[n] != right[n])
                return f"memory at {address + at:#x} must be {right[at]:#x}, but it is {got[at]:#x}"
        return ""

    def shrink(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """The shortest sequence, with the plainest arguments, that something is wrong behind still."""
        changed = True
        while changed:
            changed = False
            for smaller in _smaller(steps):
                if self.run(smaller):
                    steps, changed = smaller, True
                    break
        return steps


def _smaller(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    for n in range(len(steps)):
        yield steps[:n] + steps[n + 1 :]
    for n, step in enumerate(steps):
        example = _example(step)
        for index, (name, value) in enumerate(step.registers):
            plain = example.registers.get(name, value)
            if plain != value:
                registers = (*step.registers[:index], (name, plain), *step.registers[index + 1 :])
                yield (*steps[:n], Step(step.call, step.example, registers, step.stack), *steps[n + 1 :])
        if step.stack != example.stack:
            yield (*steps[:n], Step(step.call, step.example, step.registers, example.stack), *steps[n + 1 :])


def _undefined(step: Step) -> bool:
    """The table says nothing about such an argument; behind it the two may have another state, too."""
    registers = dict(step.registers)
    if step.call == "SetCR0" and not registers["eax"] & Cr0.PE:
        return True  # back to real mode, which hypervisors may refuse to serve
    if step.call == "SetDR" and registers["eax"] == 7 and registers["edx"] & _GENERAL_DETECT:
        return True  # what it guards, the oracle's emulator does not
    if step.call in ("WriteGDTEntry", "WriteLDTEntry") and step.stack[0] & _DPL != _DPL:
        return True  # a hypervisor may raise the level that is stored
    if step.call == "SetTR" and not registers["eax"] & 0xFFFC:
        return True  # #GP by the manual, which the oracle's emulator doesn't know
    most = {"SetDR": 7, "GetDR": 7, "SetLazyMode": 2, "SetLinearMapping": abi.LINEAR_SLOTS - 1, "FlushTLB": 3}
    return registers.get("eax", 0) > most.get(step.call, U32)


def _example(step: Step) -> Example:
    return EXAMPLES[step.call][step.example]


def _make(rig: Rig, step: Step) -> Called | str:
    try:
        _example(step).before(rig)
        return rig.call(step.call, *step.stack, **{**fill(0), **dict(step.registers)})
    except (Unfit, Broken) as reason:
        return str(reason)


def _difference(step: Step, got: Called, right: Called) -> str:
    call = abi.BY_NAME[step.call]
    if not got.returned:
        return f"it must return, but {got.stop.reason or got.stop.end.value}"
    if got.frames:
        return f"no event must come, but vector {got.first.vector} did at {got.first.eip:#x}"
    wanted = {place for result in call.results for place in result.places} | set(call.preserves)
    for name in sorted(wanted & set(abi.REGISTERS)):
        if got.registers[name] != right.registers[name]:
            return f"{name.upper()} must be {right.registers[name]:#x}, but it is {got.registers[name]:#x}"
    if got.popped != right.popped:
        return f"it must take {right.popped} bytes off the stack, but it took {got.popped}"
    if (got.registers["eflags"] ^ right.registers["eflags"]) & _SHOWN:
        return f"flags must be {right.registers['eflags']:#x}, but they are {got.registers['eflags']:#x}"
    return ""
