# SPDX-License-Identifier: GPL-2.0-only
"""A stand-in for `vmi.run`: the same names and values, no machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from types import ModuleType
from typing import Any


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

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"console": self.console.decode("latin-1")}


@dataclass(frozen=True)
class Comparison:
    results: tuple[RunResult, ...]
    equal: bool = True
    diff: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"equal": self.equal, "results": [result.to_json() for result in self.results]}


NATIVE = RunResult(exits={"port": 40, "interrupt": 10})
PARAVIRT = replace(
    NATIVE,
    mode="paravirt",
    instructions=1_250_000,
    exits={"call": 30, "interrupt": 10},
    calls={"SetCR3": 25, "Halt": 5},
)


class FakeRun(ModuleType):
    """Set ``result``, ``pieces`` (console output, in the calls it comes in), ``comparison`` or ``error``."""

    RunResult = RunResult
    Comparison = Comparison
    Outcome = Outcome

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.seen: dict[str, Any] = {}
        self.result = RunResult()
        self.pieces: Sequence[bytes] = (b"hel", b"lo\r\n")
        self.comparison = Comparison((NATIVE, PARAVIRT))
        self.error: BaseException | None = None

    def run_kernel(
        self,
        image: bytes,
        *,
        rom: bytes | None,
        memory: int,
        append: str,
        modules: Sequence[Any],
        timeout_ns: int | None,
        until: bytes | None,
        on_console: Callable[[bytes], None] | None,
        full: bool,
    ) -> RunResult:
        self.seen = {
            "image": image,
            "rom": rom,
            "memory": memory,
            "append": append,
            "modules": modules,
            "timeout_ns": timeout_ns,
            "until": until,
            "full": full,
        }
        for piece in self.pieces:
            if on_console is not None:
                on_console(piece)
        if self.error is not None:
            raise self.error
        return self.result

    def compare(self, image: bytes, modes: Sequence[str], **options: Any) -> Comparison:
        self.seen = {"image": image, "modes": list(modes), **options}
        if self.error is not None:
            raise self.error
        return self.comparison
