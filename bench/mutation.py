# SPDX-License-Identifier: GPL-2.0-only
"""Measure how many bugs the conformance suite finds: in code with one small mistake in it, again and again.

    python bench/mutation.py [--seed N] [--hypervisor N] [--rom N] [--templates N] [--executed FILE]
        [--json OUT]
    python bench/mutation.py --mutant hypervisor/domain.py#12 --mutant vmware:SetCR0#3

Mutants (see `mutators.py`) are a random sample, the same for the same seed and source, of those in what
serves calls: Python code of the hypervisor, Python code that makes ROMs, and the code of the calls in the
ROMs `vmware` and `native`. Nothing is written into the source: each is made in a process of its own, before
anything else imports the module, and the suite runs there until the first case that is not good. Of the
cases those run that execute the line, or the call's code; a line that no case executes has nothing that could
find it, and is only counted. `--executed` keeps what was found out about that, which takes a minute or two.

Without the accelerator, since what that does is not done by the Python code.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from executed import FLAVOURS, PACKAGE, SHARED, TRAPPING, Executed, measured, preload, sources
from mutators import Mutant, assembly, in_assembly, in_python, python

if TYPE_CHECKING:
    from vmi.conformance.case import Case
    from vmi.conformance.subject import Environment
    from vmi.conformance.suite import Target

_SILENCE_S = 20  # longest time that a case may take; the longest takes a second
_MOST_MEMORY = 6 << 30  # bytes of address space; a guest that is well takes less than 2 GiB
_FIRST = 30  # cases of an environment that are tried before all others
_COUNTS = {"hypervisor": 200, "rom": 40, "templates": 110}


class End(StrEnum):
    """What became of a mutant."""

    FOUND = "found"  # a case is FAIL or CRASH
    TIMEOUT = "timeout"  # a case is TIMEOUT
    ERROR = "error"  # a case is ERROR: Python code of the subject raised what it may not
    HANG = "hang"  # the suite's process doesn't come to an end
    DIED = "died"  # the suite's process ended
    SURVIVED = "survived"
    UNBUILT = "unbuilt"  # there is no such program, or no such ROM
    SAME = "same"  # the ROM is the same, and nothing but that was made by the code
    NEVER = "never"  # no case executes the line


#: Tells the end of a mutant, the case, and why; or "" that a case is done.
Say = Callable[[str, str, str], None]
FOUND = (End.FOUND, End.TIMEOUT, End.ERROR, End.HANG, End.DIED)


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant, by which case, and why."""

    mutant: Mutant
    end: End
    case: str = ""
    why: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.end:<9}{self.mutant.name:<34}{self.mutant}  {self.case}  {self.why[:100]}"


# -- the mutants ----------------------------------------------------------------------------------


def pools(executed: Executed) -> dict[str, list[Mutant]]:
    """All mutants there are, by what they are of; those whose line no case executes are among them."""
    made: dict[str, list[Mutant]] = {name: [] for name in _COUNTS}
    for place, source in sources().items():
        made["rom" if place.startswith("rom") else "hypervisor"] += in_python(place, source)
    for place, source in executed.templates.items():
        made["templates"] += in_assembly(place, source)
    return made


def cases_of(mutant: Mutant, executed: Executed) -> dict[str, list[int]]:
    """Which cases may find it: their numbers, by environment."""
    if mutant.early:
        return executed.all()
    if ":" in mutant.place:
        return executed.of([mutant.place])
    return executed.of([f"{mutant.place}:{line}" for line in range(mutant.first, mutant.last + 1)])


def _executed(mutant: Mutant, executed: Executed) -> bool:
    """It can make a difference to a case."""
    lines = {f"{mutant.place}:{line}" for line in range(mutant.first, mutant.last + 1)}
    return mutant.early or not lines.isdisjoint(executed.built) or bool(cases_of(mutant, executed))


# -- one mutant, in a process of its own ------------------------------------------------------------


def _install(mutant: Mutant) -> None:
    """Let the mutant's module be the wrong one, for whoever imports it."""
    from importlib.abc import MetaPathFinder
    from importlib.machinery import ModuleSpec, SourceFileLoader
    from importlib.util import spec_from_file_location

    path = PACKAGE / mutant.place
    parts = ["vmi", *Path(mutant.place).with_suffix("").parts]
    package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if package else parts)

    class Loader(SourceFileLoader):
        def get_code(self, fullname: str) -> object:  # type: ignore[override]
            tree = python(mutant, path.read_text(encoding="utf-8"))
            return compile(tree, str(path), "exec", dont_inherit=True)

    class Finder(MetaPathFinder):
        def find_spec(self, fullname: str, _path: object, _target: object = None) -> ModuleSpec | None:
            if fullname != name:
                return None
            where = [str(path.parent)] if package else None
            return spec_from_file_location(name, path, loader=Loader(name, str(path)),
                                           submodule_search_locations=where)  # fmt: skip

    assert name not in sys.modules, name
    sys.meta_path.insert(0, Finder())


def _image(flavour: str, mutant: Mutant) -> bytes:
    """The ROM that the mutant's code makes."""
    from dataclasses import replace

    from vmi.rom.build import build_flavour
    from vmi.rom.flavours import get

    made = get(flavour)
    where, _, call = mutant.place.partition(":")
    if where == flavour:
        template = made.templates[call]
        wrong = replace(template, source=assembly(mutant, template.source))
        made = replace(made, templates={**made.templates, call: wrong})
    return build_flavour(made).image


def _serve(mutant: Mutant, executed: Executed, say: Say) -> None:
    """Make a mutant, and run the suite on it."""
    flavour = mutant.place.partition(":")[0]
    of_rom = mutant.place.startswith("rom/")
    flavours = list(FLAVOURS) if of_rom else [flavour if flavour in FLAVOURS else FLAVOURS[0]]
    try:
        if ":" not in mutant.place:
            _install(mutant)
        from vmi.conformance import suite

        cases = suite.all_cases()
        if mutant.place.startswith("hypervisor/"):
            images = {FLAVOURS[0]: bytes.fromhex(executed.images[FLAVOURS[0]])}
        else:
            images = {name: _image(name, mutant) for name in flavours}
    except Exception as error:
        say(End.UNBUILT, "", f"{type(error).__name__}: {error}")
        return
    changed = [name for name, image in images.items() if executed.images[name] != image.hex()]
    if of_rom and not changed and (mutant.place not in SHARED or not cases_of(mutant, executed)):
        say(End.SAME, "", "")
        return
    plan = executed.all() if of_rom and changed else cases_of(mutant, executed)
    for name in changed or [flavours[0]]:
        target = suite.Target(name, images[name])
        for environment, numbers in _ordered(executed, f"{name} ", plan, target.environments()):
            if _run(say, target, environment, [cases[n] for n in numbers]):
                return
    say(End.SURVIVED, "", "")


def _run(say: Say, target: Target, environment: Environment, cases: Sequence[Case]) -> bool:
    """Run cases in an environment; True if one of them is not good."""
    from vmi.conformance import runner
    from vmi.conformance.verdict import Verdict

    ends = {Verdict.ERROR: End.ERROR, Verdict.TIMEOUT: End.TIMEOUT}
    for result in runner.run(cases, target.make, environment):
        say("", "", "")
        if not result.verdict.good:
            where = f"{result.case.name} in {environment}"
            say(ends.get(result.verdict, End.FOUND), where, "; ".join(result.reasons))
            return True
    return False


def _ordered(
    executed: Executed, prefix: str, plan: dict[str, list[int]], environments: Sequence[Environment]
) -> Iterator[tuple[Environment, list[int]]]:
    """Where to run which cases: in each environment a few of all kinds before the rest of any.

    A mutant may have other environments than there are: nothing is known of these, and all cases run.
    """
    known, everything = executed.all(), range(len(executed.subjects))
    rows = []
    for environment in environments:
        name = f"{prefix}{environment}"
        rows.append(_mixed(executed.subjects, plan.get(name, []) if name in known else everything))
    for part in (slice(0, _FIRST), slice(_FIRST, None)):
        for row, environment in zip(rows, environments, strict=True):
            if row[part]:
                yield environment, row[part]


def _mixed(subjects: Sequence[str], cases: Sequence[int]) -> list[int]:
    """The first case of each subject, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    keys = []
    for case in cases:
        keys.append((seen[subjects[case]], case))
        seen[subjects[case]] += 1
    return [case for _, case in sorted(keys)]


def outcome(mutant: Mutant, executed: Executed, silence_s: float = _SILENCE_S) -> Outcome:
    """What becomes of a mutant."""
    if not _executed(mutant, executed):
        return Outcome(mutant, End.NEVER)
    begun = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _child(mutant, executed, writer)
    os.close(writer)
    said, end = b"", End.DIED
    try:
        while True:
            if not select.select([reader], [], [], silence_s)[0]:
                os.kill(child, signal.SIGKILL)
                end = End.HANG
                break
            more = os.read(reader, 65536)
            if not more:
                break
            said += more
    finally:
        os.close(reader)
        os.waitpid(child, 0)
    rows = [json.loads(row) for row in said.decode().splitlines() if row]
    final = rows[-1] if rows else [end, "", ""]
    seconds = round(time.monotonic() - begun, 1)
    return Outcome(mutant, End(final[0]) if rows else end, final[1], final[2], seconds)


def _child(mutant: Mutant, executed: Executed, writer: int) -> None:
    """The process of one mutant; doesn't come back."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(nowhere, stream)

        def say(*words: str) -> None:
            os.write(writer, (json.dumps(words) if words[0] else "").encode() + b"\n")

        _serve(mutant, executed, say)
        status = 0
    finally:
        os._exit(status)


# -- the command ------------------------------------------------------------------------------------


def _kind(place: str) -> str:
    """What figures are given for: flavours, code that makes them, handlers, and what instructions trap to."""
    if ":" in place:
        return place.partition(":")[0]
    return "trapping" if place in TRAPPING else place.partition("/")[0]


def summary(outcomes: Iterable[Outcome]) -> str:
    """Found and not, by what the mutants are of."""
    counts: dict[str, Counter[End]] = {}
    for each in outcomes:
        counts.setdefault(_kind(each.mutant.place), Counter())[each.end] += 1
    lines = []
    for kind, ends in counts.items():
        found = sum(ends[end] for end in FOUND)
        judged = found + ends[End.SURVIVED]
        share = f"{100 * found / judged:.1f} %" if judged else "-"
        rest = ", ".join(f"{end} {ends[end]}" for end in End if ends[end])
        lines.append(f"{kind:<11}{found:>4} of {judged:>4} found, {share:<7} ({rest})")
    return "\n".join(lines)


def sample(
    made: dict[str, list[Mutant]], executed: Executed, counts: dict[str, int], seed: int
) -> Iterator[Mutant]:
    """A random choice of those that any case could find."""
    for kind, mutants in made.items():
        able = [each for each in mutants if _executed(each, executed)]
        missing = len(mutants) - len(able)
        print(f"{kind}: {len(mutants)} mutants, {missing} of them where no case comes to", flush=True)
        yield from sorted(random.Random(f"{seed} {kind}").sample(able, min(counts[kind], len(able))))


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--seed", type=int, default=1)
    for kind, count in _COUNTS.items():
        options.add_argument(f"--{kind}", type=int, default=count, help=f"how many of {kind}, {count}")
    options.add_argument("--mutant", action="append", help="this one, by its name, instead of a sample")
    options.add_argument("--executed", type=Path, help="file for what the cases execute")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    preload()
    executed = measured(given.executed)
    made = pools(executed)
    if given.mutant:
        named = {each.name: each for mutants in made.values() for each in mutants}
        chosen = [named[name] for name in given.mutant]
    else:
        chosen = list(sample(made, executed, {kind: getattr(given, kind) for kind in made}, given.seed))
    outcomes = []
    for mutant in chosen:
        outcomes.append(outcome(mutant, executed))
        print(f"{len(outcomes):>4} {outcomes[-1].seconds:>5} s  {outcomes[-1]}", flush=True)
        if given.json:
            rows = [{**asdict(each), "name": each.mutant.name} for each in outcomes]
            given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(summary(outcomes))


if __name__ == "__main__":
    main()
