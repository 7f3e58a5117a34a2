# SPDX-License-Identifier: GPL-2.0-only
"""Random sequences of calls on two subjects: what the oracle does, the one under test must do too.

Both guests begin each sequence from the same mark and make its calls in one run
(:mod:`vmi.conformance.walk`). As far as the oracle goes on without trouble (what it ends in is the guest's
own fault), what each call leaves must be equal: results, surviving registers, the stack, the direction flag;
and behind the last of them memory and the interrupt flag. Whatever comes, a subject must come back with an
end of its own.

What is compared first are the bytes that the two have left. Only where those differ is it asked what the
table says of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vmi import abi
from vmi.abi import Reloc
from vmi.conformance import layout
from vmi.conformance.rig import Rig
from vmi.conformance.sequence import Step, draw, undefined, usable
from vmi.conformance.subject import End, Environment
from vmi.conformance.suite import Target
from vmi.conformance.walk import COMPARED, Call, Walked, Walker, left
from vmi.x86 import Eflags

_LIMIT_NS = 100_000  # guest time of a call; one takes up to a fifth of that

_Drawn = tuple[Call, list[int], tuple[int, ...]]


class Fuzzer:
    """Two guests in one environment, from one mark each; both are begun here.

    :raises Broken: one of them can't begin.
    """

    def __init__(self, under_test: Rig, oracle: Rig) -> None:
        self.environment = under_test.environment
        self._usable = usable(self.environment.paging)
        calls = [call for examples in self._usable for call in examples]
        self._by_name = {(call.name, call.number): call for call in calls}
        self._under_test = Walker(under_test, calls, _LIMIT_NS)
        self._oracle = Walker(oracle, calls, _LIMIT_NS)
        both = (self._under_test, self._oracle)
        self._left_out = {
            call.name
            for call in calls
            if any(walker.entries[call.name] is not Reloc.CALL_REL for walker in both)
        }

    @classmethod
    def against(cls, target: Target, oracle: Target, environment: Environment) -> Fuzzer:
        """A target in an environment, and an oracle that has no choice of MMU."""
        native = Environment(environment.paging)
        return cls(
            Rig(target.make(environment), environment),
            Rig(oracle.make(native), native),
        )

    def __repr__(self) -> str:
        return f"<Fuzzer {self.environment}>"

    def seed(self, seed: int) -> str:
        """What is wrong behind the sequence that a seed stands for, "" if nothing is."""
        return self._run(draw(seed, self._usable))

    def run(self, steps: Sequence[Step]) -> str:
        """What is wrong behind a sequence, "" if nothing is."""
        return self._run(self._drawn(steps))

    def is_decided(self, steps: Sequence[Step]) -> bool:
        """The ROM has code for the last call of a sequence, and the table says what all of them do."""
        made, _, ends = self._plan(self._drawn(steps))
        last = self._by_name[steps[-1].call, steps[-1].example]
        undecided = any(undefined(*each) for each in self._drawn(steps))
        return bool(ends) or (not undecided and bool(made) and made[-1][0] is last)

    def _drawn(self, steps: Sequence[Step]) -> list[_Drawn]:
        return [
            (self._by_name[step.call, step.example], [value for _, value in step.registers], step.stack)
            for step in steps
        ]

    def _run(self, drawn: Iterable[_Drawn]) -> str:
        made, records, ends = self._plan(drawn)
        return self._judge(made, records) or ends

    def _plan(self, drawn: Iterable[_Drawn]) -> tuple[list[_Drawn], list[bytes], str]:
        """Calls that are made, with their records, and what is wrong before the one behind them."""
        made: list[_Drawn] = []
        records: list[bytes] = []
        ends = ""
        for call, values, stack in drawn:
            if call.name in self._left_out:
                continue
            if undefined(call, values, stack):
                break  # the two may have another state from here on
            ours = self._under_test.unfit.get((call.name, call.number))
            theirs = self._oracle.unfit.get((call.name, call.number))
            if ours is not None or theirs is not None:
                if theirs is None:
                    ends = f"{step_of(call, values, stack)}, call {len(made)}: {ours}"
                break
            records.append(call.record(len(made), values, stack))
            made.append((call, values, stack))
        return made, records, ends

    def _judge(self, made: list[_Drawn], records: list[bytes]) -> str:
        count = len(made)
        if not count:
            return ""
        packed = b"".join(records)
        right = self._oracle.walk(packed, count)
        got = self._under_test.walk(packed, count)
        whole = right.returned == count and right.stop.end is End.DONE and not right.events
        if not whole or got.returned != count or _differ(made, got.left, right.left):
            for index in range(min(got.returned, right.returned)):
                difference = _difference(made[index][0], got.of(index), right.of(index))
                if difference:
                    return _sentence(made, index, difference)
            if got.returned < right.returned:
                return _sentence(made, got.returned, self._trouble(got))
        if not whole:
            # the guest has harmed itself, or is told of its mistake; how, may be another matter
            if got.stop.end is End.TIMEOUT and got.returned == right.returned and right.stop.end is End.DONE:
                return _sentence(made, got.returned, "it does not come back")
            done = right.returned
            # with what came before that, nothing may be wrong
            return self._judge(made[:done], records[:done]) if done and self._state() else ""
        if got.stop.end is not End.DONE or got.events:
            return _sentence(made, count - 1, self._trouble(got))
        difference = self._state()
        return _sentence(made, count - 1, difference) if difference else ""

    def _trouble(self, got: Walked) -> str:
        if got.events:
            frame = self._under_test.event()
            return f"no event must come, but vector {frame.vector} did at {frame.eip:#x}"
        return f"it must return, but {got.stop.reason or got.stop.end.value}"

    def _state(self) -> str:
        """How memory and the interrupt flag differ."""
        ours, theirs = self._under_test, self._oracle
        for address, size in COMPARED:
            got, right = ours.read(address, size), theirs.read(address, size)
            if got != right:
                at = next(n for n in range(size) if got[n] != right[n])
                return f"memory at {address + at:#x} must be {right[at]:#x}, but it is {got[at]:#x}"
        if ours.flags() != theirs.flags():
            on, off = ("on", "off") if theirs.flags() else ("off", "on")
            return f"interrupts must be {on}, but they are {off}"
        return ""

    def shrink(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """The shortest sequence, with the plainest arguments, that something is wrong behind still."""
        changed = True
        while changed:
            changed = False
            for smaller in self._smaller(steps):
                if self.run(smaller):
                    steps, changed = smaller, True
                    break
        return steps

    def _smaller(self, steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
        for n in range(len(steps)):
            yield steps[:n] + steps[n + 1 :]
        for n, step in enumerate(steps):
            call = self._by_name[step.call, step.example]
            for index, (name, value) in enumerate(step.registers):
                plain = call.values[index]
                if plain != value:
                    registers = (*step.registers[:index], (name, plain), *step.registers[index + 1 :])
                    yield (*steps[:n], Step(step.call, step.example, registers, step.stack), *steps[n + 1 :])
            if step.stack != call.stack:
                yield (
                    *steps[:n],
                    Step(step.call, step.example, step.registers, call.stack),
                    *steps[n + 1 :],
                )


def step_of(call: Call, values: Sequence[int], stack: tuple[int, ...]) -> Step:
    """A call as it was drawn."""
    return Step(call.name, call.number, tuple(zip(call.keys, values, strict=True)), stack)


def _sentence(made: list[_Drawn], index: int, difference: str) -> str:
    return f"{step_of(*made[index])}, call {index}: {difference}"


def _differ(made: list[_Drawn], got: bytes, right: bytes) -> bool:
    """What calls have left differs, in what the table speaks of."""
    if got == right:
        return False
    mask = b"".join([call.mask for call, _, _ in reversed(made)])
    return bool(
        (int.from_bytes(got, "little") ^ int.from_bytes(right, "little")) & int.from_bytes(mask, "little")
    )


def _difference(call: Call, got: bytes, right: bytes) -> str:
    """How what a call has left differs, of what the table speaks of."""
    if not _differ([(call, [], ())], got, right):
        return ""
    ours, theirs = left(got), left(right)
    what = abi.BY_NAME[call.name]
    shown = {*what.preserves, *(place for result in what.results for place in result.places)}
    for name in sorted(shown & set(abi.REGISTERS)):
        if ours[name] != theirs[name]:
            return f"{name.upper()} must be {theirs[name]:#x}, but it is {ours[name]:#x}"
    if ours["popped"] != theirs["popped"]:
        start = layout.STACK - 4 * len(call.stack)
        return (
            f"it must take {theirs['popped'] - start} bytes off the stack, "
            f"but it took {ours['popped'] - start}"
        )
    on = bool(theirs["eflags"] & Eflags.DF)
    return f"the direction flag must be {int(on)}, but it is {int(not on)}"
