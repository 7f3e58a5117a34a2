# SPDX-License-Identifier: GPL-2.0-only
"""Which cases of the conformance suite execute a line of the hypervisor, or the code of a call in a ROM.

So a mutant (see `mutation.py`) need not run all of the suite. What is executed while a guest begins counts
for every case that begins with such a guest.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "vmi"
FLAVOURS = ("vmware", "native")
# What makes ROMs; the assembler refuses what it gets wrong, and the rest of the folder reads ROMs.
_OF_ROMS = ("build.py", "template.py", "updates.py", "layout.py", "flavours/vmware.py", "flavours/native.py")
#: What of that the hypervisor looks at, too.
SHARED = frozenset({"rom/layout.py", "rom/build.py", "rom/flavours/vmware.py"})
#: What serves instructions that trap, and no calls.
TRAPPING = frozenset(f"hypervisor/{name}.py" for name in ("breakpoints", "emulate", "operands"))
# What is only told, and what is about guests that don't use the interface.
_NOT_ASKED = frozenset({"call_docs.py", "full.py", "discovery.py"})


def sources() -> dict[str, str]:
    """The modules that mutants are made of, by file within the package."""
    paths = [path for path in sorted((PACKAGE / "hypervisor").rglob("*.py")) if path.name not in _NOT_ASKED]
    paths += [PACKAGE / "rom" / name for name in _OF_ROMS]
    return {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in paths}


def preload() -> None:
    """Import what mutants have in common, before processes are made for them; nothing of what they change."""
    os.environ["VMI_ACCELERATOR"] = "0"
    import iced_x86  # noqa: F401
    import keystone  # noqa: F401
    import lief  # noqa: F401

    from vmi.native import fitness, machine, start  # noqa: F401

    loaded = [
        name for name in sys.modules if name.startswith(("vmi.hypervisor", "vmi.rom", "vmi.conformance"))
    ]
    assert not loaded, loaded


@dataclass(frozen=True)
class Executed:
    """What the cases execute.

    :ivar subjects: of each case.
    :ivar images: of ROMs, in hexadecimal digits, by flavour.
    :ivar templates: the code of calls, by ``flavour:call``.
    :ivar rows: for ``file:line`` or ``flavour:call`` the cases, as the bits of numbers, by environment.
    :ivar built: lines that are executed where ROMs are made.
    """

    digest: str
    subjects: list[str]
    images: dict[str, str]
    templates: dict[str, str]
    rows: dict[str, dict[str, str]]
    built: list[str]

    def of(self, keys: Iterable[str]) -> dict[str, list[int]]:
        """Cases, by environment, that execute any of those."""
        bits: dict[str, int] = {}
        for key in keys:
            for environment, row in self.rows.get(key, {}).items():
                bits[environment] = bits.get(environment, 0) | int(row, 16)
        return {where: [n for n in range(row.bit_length()) if row >> n & 1] for where, row in bits.items()}

    def all(self) -> dict[str, list[int]]:
        """Every case everywhere."""
        everywhere = {where for row in self.rows.values() for where in row}
        return {where: list(range(len(self.subjects))) for where in everywhere}


class _Tracer:
    """Notes lines of the modules that mutants are made of, as they are executed."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._places = {str(PACKAGE / place): place for place in sources()}

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> Any:
        place = self._places.get(frame.f_code.co_filename)
        if place is None:
            return None
        seen, before = self.seen, f"{place}:"

        def line(frame: FrameType, event: str, _argument: object) -> Any:
            if event == "line":
                self.seen.add(f"{before}{frame.f_lineno}")
            return line

        seen.add(f"{before}{frame.f_lineno}")
        return line


def _digest() -> str:
    """Of everything that could make a difference."""
    files = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def measured(cache: Path | None = None) -> Executed:
    """What the cases execute, from a file if it is about this very source; found out in another process."""
    digest = _digest()
    if cache is not None and cache.exists():
        known = Executed(**json.loads(cache.read_text(encoding="utf-8")))
        if known.digest == digest:
            return known
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w", encoding="utf-8") as out:
                json.dump(asdict(_measure(digest)), out)
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as answer:
        text = answer.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the suite couldn't be run")
    if cache is not None:
        cache.write_text(text, encoding="utf-8")
    return Executed(**json.loads(text))


def _measure(digest: str) -> Executed:
    """Run all of the suite, and see what each case executes."""
    from vmi.conformance import suite
    from vmi.rom.build import build_flavour
    from vmi.rom.flavours import get

    cases, tracer = suite.all_cases(), _Tracer()
    sys.settrace(tracer)
    images = {name: build_flavour(get(name)).image for name in FLAVOURS}
    sys.settrace(None)
    built = sorted(tracer.seen)
    rows: dict[str, dict[str, str]] = {}
    for name, image in images.items():
        for environment in suite.Target(name, image).environments():
            for key, cases_there in _run(name, image, environment, tracer).items():
                rows.setdefault(key, {})[f"{name} {environment}"] = f"{cases_there:x}"
    templates = {
        f"{name}:{call}": template.source
        for name in FLAVOURS
        for call, template in get(name).templates.items()
        if template.source
    }
    return Executed(
        digest,
        [case.subject for case in cases],
        {name: image.hex() for name, image in images.items()},
        templates,
        rows,
        built,
    )


def _run(flavour: str, image: bytes, environment: Any, tracer: _Tracer) -> dict[str, int]:
    """For each line, and each call's code, the cases that execute it, as bits."""
    from vmi import abi
    from vmi.conformance import runner, suite
    from vmi.conformance.coverage import Ran
    from vmi.rom import flow
    from vmi.rom.build import build

    cases, ran, target = suite.all_cases(), Ran(len(image)), suite.Target(flavour, image)
    code = {
        f"{flavour}:{call.name}": set(flow.reachable(image, entry, 32))
        for call, (_, entry) in zip(abi.CALLS, build(flavour).calls, strict=True)
        if entry
    }
    rows: dict[str, int] = {}
    making: set[str] = set()
    beginning: set[str] = set()
    begun = runner._Beginning.begun
    bits = {case.name: 1 << n for n, case in enumerate(cases)}

    def aside(where: set[str], do: Callable[[], Any]) -> Any:
        """Do something that counts for more than one case."""
        before, tracer.seen = tracer.seen, where
        try:
            return do()
        finally:
            tracer.seen = before

    def make(where: Any) -> Any:
        return aside(making, lambda: target.make(where, ran))

    def noted(self: Any) -> Any:
        return aside(beginning, lambda: begun(self))

    def note(keys: Iterable[str], of: int) -> None:
        for key in keys:
            rows[key] = rows.get(key, 0) | of

    tracer.seen = set()
    runner._Beginning.begun = noted  # type: ignore[method-assign]
    sys.settrace(tracer if flavour == FLAVOURS[0] else None)
    for result in runner.run(cases, make, environment):
        assert result.verdict.good, (result, "without any mistake")
        bit, executed = bits[result.case.name], {n for n, byte in enumerate(ran.image()) if byte}
        note(tracer.seen, bit)
        note((call for call, offsets in code.items() if not executed.isdisjoint(offsets)), bit)
        tracer.seen = set()
        ran._bytes[:] = bytes(len(image))
    sys.settrace(None)
    runner._Beginning.begun = begun  # type: ignore[method-assign]
    here = [case for case in cases if case.cpus == environment.cpus]
    note(making, sum(bits[case.name] for case in here))
    note(beginning, sum(bits[case.name] for case in here if case.begun))
    return rows
