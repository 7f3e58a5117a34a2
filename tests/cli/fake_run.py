# SPDX-License-Identifier: GPL-2.0-only
"""A stand-in for `vmi.run`: the same names and values, no machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from types import ModuleType
from typing import Any

from vmi.exits import Cause, price
from vmi.hypervisor.stopwatch import Spent


class Outcome(StrEnum):
    DEBUG_EXIT = "debug_exit"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class RunResult:
    mode: str = "native"
    outcome: Outcome = Outcome.DEBUG_EXIT
    exit_status: int = 0
    reason: str = "the guest ended itself"
    console: bytes = b"hello\r\n"
    instructions: int = 1_000_000
    virtual_ns: int = 2_500_000
    wall_s: float = 0.5
    exits: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    ram_sha256: str = "0" * 64
    spent: tuple[Spent, ...] = ()

    @property
    def price(self) -> int:
        return price(self.exits)

    def to_json(self) -> dict[str, Any]:
        spent = [row.to_json() for row in self.spent]
        return asdict(self) | {"console": self.console.decode("latin-1"), "spent": spent}


@dataclass(frozen=True)
class Comparison:
    results: tuple[RunResult, ...]
    equal: bool = True
    diff: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"equal": self.equal, "results": [result.to_json() for result in self.results]}


NATIVE = RunResult(exits={"port read": 40, "interrupt": 10})
PARAVIRT = replace(
    NATIVE,
    mode="paravirt",
    instructions=1_250_000,
    exits={"VMI call": 30, "interrupt": 10},
    calls={"SetCR3": 25, "Halt": 5},
    spent=(
        Spent("VMI call: SetCR3", Cause.HYPERCALL, 25, 50_000, 1_000, 4_000, 0.125),
        Spent("interrupt", Cause.INTERRUPT, 10, 70_000, 5_000, 9_000, 0.0),
        Spent("VMI call: Halt", Cause.HYPERCALL, 5, 5_000, 1_000, 1_000, 0.0),
    ),
)


@dataclass(frozen=True)
class FakeGuest:
    """What runs: shows the pieces, and ends as it is told."""

    library: FakeRun
    domain: None = None

    def run(
        self, *, timeout_ns: int | None, until: bytes | None, observer: Any, hashed: bool = True
    ) -> RunResult:
        library = self.library
        library.seen |= {"timeout_ns": timeout_ns, "until": until}
        for piece in library.pieces if observer is not None else ():
            observer._session.write(piece)
        if library.error is not None:
            raise library.error
        return library.result


class FakeRun(ModuleType):
    """Set ``result``, ``pieces`` (console output, in the calls it comes in), ``comparison``.

    ``error`` ends a run or a comparison, ``refusal`` comes before a run can begin.
    """

    RunResult = RunResult
    Comparison = Comparison
    Outcome = Outcome
    Guest = FakeGuest

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.seen: dict[str, Any] = {}
        self.result = RunResult()
        self.pieces: Sequence[bytes] = (b"hel", b"lo\r\n")
        self.comparison = Comparison((NATIVE, PARAVIRT))
        self.refusal: BaseException | None = None
        self.error: BaseException | None = None

    @staticmethod
    def Setup(**options: Any) -> dict[str, Any]:
        return options

    def prepare(self, setup: dict[str, Any]) -> FakeGuest:
        self.seen = setup
        if self.refusal is not None:
            raise self.refusal
        return FakeGuest(self)

    def run(self, setup: dict[str, Any], **options: Any) -> RunResult:
        return self.prepare(setup | options).run(
            timeout_ns=options["timeout_ns"], until=options["until"], observer=None
        )

    def compare(self, image: bytes, modes: Sequence[str], **options: Any) -> Comparison:
        self.seen = {"image": image, "modes": list(modes), **options}
        if self.error is not None:
            raise self.error
        return self.comparison
