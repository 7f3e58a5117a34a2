# SPDX-License-Identifier: GPL-2.0-only
"""Run one kernel on a fresh machine, in one mode, and compare the same kernel's runs in several.

Modes: ``native`` (no ROM), ``paravirt`` (a ROM is plugged in, and the hypervisor it speaks to takes
the machine over when the kernel calls it) and ``full`` (no ROM: the kernel is de-privileged from its
first instruction, and every privileged instruction is trapped and emulated).
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmi.errors import ExitCode, UsageError
from vmi.hypervisor.full import take_over
from vmi.hypervisor.personalities import attach
from vmi.native.boot.multiboot import Module
from vmi.native.machine import End, Machine, Outcome
from vmi.patcher.rewrite import plan_of
from vmi.rom.inspect import check

__all__ = ["Comparison", "Outcome", "RunResult", "compare", "run_kernel"]

MODES = ("native", "paravirt", "full")

_STATUS = {
    Outcome.TRIPLE_FAULT: ExitCode.GUEST_CRASH,
    Outcome.CRASHED: ExitCode.GUEST_CRASH,
    Outcome.TIMEOUT: ExitCode.TIMEOUT,
    Outcome.CALL_NOT_SERVED: ExitCode.CALL_NOT_SERVED,
}


@dataclass(frozen=True, repr=False)
class RunResult:
    """What one run did.

    ``exit_status`` is what a process should end with: the guest's own (odd) if it used the debug-exit
    port, else one of :class:`~vmi.errors.ExitCode`. ``reason`` is one sentence. ``exits`` counts by
    reason how often the machine or the hypervisor had to act, ``calls`` the VMI calls among them by
    name. ``virtual_ns`` is the guest's time, ``wall_s`` this computer's.
    """

    mode: str
    outcome: Outcome
    exit_status: int
    reason: str
    console: bytes
    instructions: int
    virtual_ns: int
    wall_s: float
    exits: dict[str, int]
    calls: dict[str, int]
    ram_sha256: str

    def __repr__(self) -> str:
        return f"<RunResult {self.mode}: {self.outcome.value}, {self.instructions} instructions>"

    def to_json(self) -> dict[str, object]:
        """All fields as JSON values; console bytes become characters of the same number."""
        return {
            "mode": self.mode,
            "outcome": self.outcome.value,
            "exit_status": self.exit_status,
            "reason": self.reason,
            "console": self.console.decode("latin-1"),
            "instructions": self.instructions,
            "virtual_ns": self.virtual_ns,
            "wall_s": round(self.wall_s, 6),
            "exits": self.exits,
            "calls": self.calls,
            "ram_sha256": self.ram_sha256,
        }


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs of one kernel; the first is the oracle.

    ``equal``: all consoles, outcomes and exit statuses are the first one's. ``diff`` is a unified diff
    of the consoles, empty if they are equal.
    """

    results: tuple[RunResult, ...]
    equal: bool
    diff: str

    def __repr__(self) -> str:
        modes = " ".join(result.mode for result in self.results)
        verdict = "equal" if self.equal else "different"
        return f"<Comparison {modes}: {verdict}>"

    def to_json(self) -> dict[str, object]:
        """All fields as JSON values."""
        results = [result.to_json() for result in self.results]
        return {"equal": self.equal, "diff": self.diff, "results": results}


def run_kernel(
    image: bytes,
    *,
    rom: bytes | None = None,
    memory: int = 64 << 20,
    append: str = "",
    name: str = "kernel",
    modules: Sequence[Module] = (),
    timeout_ns: int | None = None,
    until: bytes | None = None,
    on_console: Callable[[bytes], None] | None = None,
    full: bool = False,
) -> RunResult:
    """Boot a multiboot kernel and run it to its end.

    :param rom: option ROM to plug in; a hypervisor stands behind it if this toolkit has one for it.
    :param memory: bytes of RAM.
    :param append: the kernel's options.
    :param name: what the command line calls the kernel; it is "<name> <append>", as QEMU gives it.
    :param timeout_ns: limit in guest time, None for no limit.
    :param until: end the run as soon as the console has shown this.
    :param on_console: gets each piece of console output.
    :param full: de-privilege the kernel from its first instruction, without a ROM.
    :raises VmiError: the kernel, a module or the ROM can't be used.
    """
    if full and rom is not None:
        raise UsageError("full virtualization runs without a ROM, so it can't be combined with one")
    machine = Machine(ram=memory)
    domain = None
    if rom is not None:
        check(rom)
        machine.plug(rom)
        domain = attach(machine, rom)
    machine.load_multiboot(image, f"{name} {append}", modules)
    if full:
        domain = take_over(machine, _silent_sites(image))
    if on_console is not None:
        machine.console.add_listener(lambda byte: on_console(bytes([byte])))
    if until:
        _stop_at(machine, until)
    started = time.perf_counter()
    end = machine.run(timeout_ns)
    wall = time.perf_counter() - started
    return RunResult(
        mode="full" if full else "native" if rom is None else "paravirt",
        outcome=end.outcome,
        exit_status=_exit_status(end),
        reason=end.reason,
        console=machine.console.data,
        instructions=machine.instructions,
        virtual_ns=machine.clock.now(),
        wall_s=wall,
        exits=dict(sorted(machine.exits.items())),
        calls=dict(sorted(domain.calls.items())) if domain is not None else {},
        ram_sha256=machine.memory.sha256(),
    )


def _silent_sites(image: bytes) -> list[int]:
    """Guest-physical addresses of a kernel's silent sensitive instructions."""
    plan = plan_of(image)
    found = []
    for site in (placement.site for placement in plan.placements if placement.site.silent):
        for segment in plan.image.segments:
            if segment.vaddr <= site.address < segment.end:
                found.append(site.address - segment.vaddr + segment.paddr)
    return found


def _stop_at(machine: Machine, text: bytes) -> None:
    console, last = machine.console, text[-1]

    def listener(byte: int) -> None:
        if byte == last and console.data.endswith(text):
            shown = text.decode("utf-8", "backslashreplace")
            machine.finish(Outcome.CONSOLE, f"the console showed {shown!r}")

    console.add_listener(listener)


def _exit_status(end: End) -> int:
    if end.outcome is Outcome.DEBUG_EXIT:
        return (end.value << 1 | 1) & 0xFF
    return int(_STATUS.get(end.outcome, ExitCode.OK))


def compare(
    image: bytes,
    modes: Sequence[str] = ("native", "paravirt"),
    *,
    rom: bytes,
    memory: int = 64 << 20,
    append: str = "",
    modules: Sequence[Module] = (),
    timeout_ns: int | None = None,
    until: bytes | None = None,
    original: bytes | None = None,
    on_mode: Callable[[str], None] | None = None,
) -> Comparison:
    """Run a patched kernel in each mode, one after the other, and compare with the first.

    :param original: the unpatched kernel, which ``full`` needs: it takes no patched one.
    :param on_mode: told each mode before it runs.
    :raises VmiError: as :func:`run_kernel`.
    """
    results = []
    for mode in modes:
        if mode not in MODES:
            raise UsageError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if on_mode is not None:
            on_mode(mode)
        results.append(
            run_kernel(
                (original or image) if mode == "full" else image,
                rom=rom if mode == "paravirt" else None,
                memory=memory,
                append=append,
                modules=modules,
                timeout_ns=timeout_ns,
                until=until,
                full=mode == "full",
            )
        )
    first = results[0]
    diff = "".join(_diff(first, other) for other in results[1:])
    wanted = (first.console, first.outcome, first.exit_status)
    equal = all((r.console, r.outcome, r.exit_status) == wanted for r in results)
    return Comparison(tuple(results), equal, diff)


def _diff(first: RunResult, other: RunResult) -> str:
    def lines(result: RunResult) -> list[str]:
        return result.console.decode("utf-8", "backslashreplace").splitlines()

    found = difflib.unified_diff(lines(first), lines(other), first.mode, other.mode, lineterm="")
    return "".join(line + "\n" for line in found)
