# SPDX-License-Identifier: GPL-2.0-only
"""Run one kernel on a fresh machine, in one mode, and compare the same kernel's runs in several.

Modes: ``native`` (no ROM), ``paravirt`` (a ROM is plugged in, and the hypervisor it speaks to takes
the machine over when the kernel calls it) and ``full`` (no ROM: the kernel is de-privileged from its
first instruction, and every privileged instruction is trapped and emulated). What is only needed where
there is a hypervisor is loaded only there.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vmi.errors import ExitCode, UsageError
from vmi.exits import price
from vmi.hypervisor import DEFAULT_MMU, WHOLE
from vmi.native.boot.state import Module
from vmi.native.cpuid import I686, I686_APIC, CpuModel
from vmi.native.disk import Disk
from vmi.native.machine import DEFAULT_MODEL, End, Machine, Outcome

if TYPE_CHECKING:
    from vmi.hypervisor.domain import Domain
    from vmi.hypervisor.stopwatch import Spent

__all__ = [
    "Comparison", "Guest", "Observer", "Outcome", "RunResult", "Setup",
    "compare", "prepare", "run", "run_kernel",
]  # fmt: skip

MODES = ("native", "paravirt", "full")

#: What hypervisors here serve a de-privileged kernel with, besides the features of i686.
_SERVED = frozenset({
    "apic", "de", "hypervisor", "mca", "mce", "msr", "mtrr", "nx", "pae", "pat", "pse36", "sep", "sse3",
})  # fmt: skip

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
    name. ``virtual_ns`` is the guest's time, ``wall_s`` this computer's. ``spent`` says how long exits took
    here, if the run was timed. ``ram_sha256`` is of the guest's memory at the end, "" if nobody wanted it.
    """

    mode: str
    mmu: str | None
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
    spent: tuple[Spent, ...] = ()

    @property
    def price(self) -> int:
        """Exits that are there only because the kernel is de-privileged: hypercalls and traps."""
        return price(self.exits)

    def __repr__(self) -> str:
        return f"<RunResult {self.mode}: {self.outcome.value}, {self.instructions} instructions>"

    def to_json(self) -> dict[str, object]:
        """All fields as JSON values; console bytes become characters of the same number."""
        return {
            "mode": self.mode,
            "mmu": self.mmu,
            "outcome": self.outcome.value,
            "exit_status": self.exit_status,
            "reason": self.reason,
            "console": self.console.decode("latin-1"),
            "instructions": self.instructions,
            "virtual_ns": self.virtual_ns,
            "wall_s": round(self.wall_s, 6),
            "exits": self.exits,
            "calls": self.calls,
            "price": self.price,
            "ram_sha256": self.ram_sha256,
            "spent": [row.to_json() for row in self.spent],
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


@dataclass(frozen=True, repr=False)
class Setup:
    """A machine and what it starts with.

    :ivar image: the kernel; None lets the firmware look for one on a disk.
    :ivar rom: option ROM to plug in; a hypervisor stands behind it if this toolkit has one for it.
    :ivar memory: bytes of RAM.
    :ivar append: the kernel's options.
    :ivar name: what a multiboot command line calls the kernel; it is "<name> <append>", as QEMU gives it.
    :ivar modules: boot modules; Linux takes one, its initrd.
    :ivar protocol: how the kernel wants to be booted, None to look at it.
    :ivar address: where a flat binary goes.
    :ivar full: de-privilege the kernel from its first instruction, without a ROM.
    :ivar mmu: how a hypervisor manages the guest's memory, direct or shadow.
    :ivar model: the processor; None for the usual one, or where a ROM or hypervisor is, i686 (several: with
        APICs).
    :ivar disks: IDE disks: primary master and slave, secondary master and slave.
    :ivar bios: firmware to start instead of a kernel.
    :ivar video_bios: its option ROM for the VGA.
    :ivar cpus: processors.
    :ivar share: percent of each that a hypervisor leaves the guest, 1 to 100; the rest is another domain's.
    """

    image: bytes | None = None
    rom: bytes | None = None
    memory: int = 64 << 20
    append: str = ""
    name: str = "kernel"
    modules: Sequence[Module] = ()
    protocol: str | None = None
    address: int | None = None
    full: bool = False
    mmu: str = DEFAULT_MMU
    model: CpuModel | None = None
    disks: Sequence[Disk | None] = ()
    bios: bytes | None = None
    video_bios: bytes | None = None
    cpus: int = 1
    share: int = WHOLE

    def __repr__(self) -> str:
        return f"<Setup {self.mode} {self.name!r}, {self.memory >> 20} MiB>"

    @property
    def mode(self) -> str:
        """One of native, paravirt and full."""
        return "full" if self.full else "native" if self.rom is None else "paravirt"


class Observer(Protocol):
    """Who watches a run and takes part in it: a user at the console, a log."""

    def begin(self, machine: Machine) -> None:
        """The machine is ready for its first instruction."""

    def on_slice(self) -> None:
        """Called now and then between two instructions."""

    def on_idle(self, ns: int | None) -> int | None:
        """See :meth:`vmi.native.machine.Machine.run`."""

    def end(self, machine: Machine) -> None:
        """The run is over; not called if it broke off with an error."""


@dataclass(frozen=True, repr=False)
class Guest:
    """A machine that is there and can go on: one that :func:`prepare` made, or a restored one.

    :ivar domain: the hypervisor that runs or awaits its kernel.
    """

    machine: Machine
    domain: Domain | None = None
    mode: str = "native"

    def __repr__(self) -> str:
        return f"<Guest {self.mode}: {self.machine!r}>"

    def run(
        self,
        *,
        timeout_ns: int | None = None,
        until: bytes | None = None,
        observer: Observer | None = None,
        timed: bool = False,
        hashed: bool = True,
    ) -> RunResult:
        """Run until it ends; the figures in the result count from the machine's power-on.

        :param timeout_ns: limit in guest time, None for no limit.
        :param until: end the run as soon as the console has shown this.
        :param timed: measure how long exits take here, which takes some time itself.
        :param hashed: hash the guest's memory at the end, which takes a second per GiB.
        """
        machine = self.machine
        if until:
            _stop_at(machine, until)
        stopwatch = None
        if timed:
            from vmi.hypervisor.stopwatch import Stopwatch

            stopwatch = Stopwatch(machine, self.domain)
        started = time.perf_counter()
        if observer is None:
            end = machine.run(timeout_ns)
        else:
            observer.begin(machine)
            end = machine.run(timeout_ns, observer.on_slice, observer.on_idle)
            observer.end(machine)
        wall = time.perf_counter() - started
        return RunResult(
            mode=self.mode,
            mmu=self.domain.mmu.name if self.domain is not None else None,
            outcome=end.outcome,
            exit_status=_exit_status(end),
            reason=end.reason,
            console=machine.console.data,
            instructions=machine.instructions,
            virtual_ns=machine.clock.now(),
            wall_s=wall,
            exits=dict(sorted(machine.exits.items())),
            calls=dict(sorted(self.domain.calls.items())) if self.domain is not None else {},
            ram_sha256=machine.memory.sha256() if hashed else "",
            spent=() if stopwatch is None else stopwatch.spent(),
        )


def run(
    setup: Setup,
    *,
    timeout_ns: int | None = None,
    until: bytes | None = None,
    observer: Observer | None = None,
    timed: bool = False,
) -> RunResult:
    """Make the machine and run it to its end, see :func:`prepare` and :meth:`Guest.run`."""
    return prepare(setup).run(timeout_ns=timeout_ns, until=until, observer=observer, timed=timed)


def run_kernel(
    image: bytes,
    *,
    timeout_ns: int | None = None,
    until: bytes | None = None,
    on_console: Callable[[bytes], None] | None = None,
    timed: bool = False,
    **options: Any,
) -> RunResult:
    """Boot a kernel and run it to its end.

    :param on_console: gets each piece of console output.
    :param timed: measure how long exits take here.
    :param options: fields of :class:`Setup`.
    :raises VmiError: as :func:`run`.
    """
    observer = None if on_console is None else _ConsoleObserver(on_console)
    return run(Setup(image, **options), timeout_ns=timeout_ns, until=until, observer=observer, timed=timed)


class _ConsoleObserver:
    """Passes console output on, nothing else."""

    def __init__(self, on_console: Callable[[bytes], None]) -> None:
        self._on_console = on_console

    def begin(self, machine: Machine) -> None:
        machine.console.add_listener(lambda byte: self._on_console(bytes([byte])))

    def on_slice(self) -> None:
        pass

    def on_idle(self, ns: int | None) -> int | None:
        return ns

    def end(self, machine: Machine) -> None:
        pass


def prepare(setup: Setup) -> Guest:
    """Make the machine, ready for its first instruction.

    :raises VmiError: the kernel, a module, the ROM or the firmware can't be used.
    """
    if setup.full and setup.rom is not None:
        raise UsageError("full virtualization runs without a ROM, so it can't be combined with one")
    if setup.image is None and setup.bios is None:
        raise UsageError("there is nothing to start: neither a kernel nor firmware was given")
    if setup.image is not None and setup.bios is not None:
        raise UsageError("firmware boots from a disk here, so it can't be combined with a kernel")
    if setup.full and setup.image is None:
        raise UsageError("full virtualization starts with a kernel, so it can't begin with firmware")
    if setup.share not in range(1, WHOLE + 1):
        raise UsageError(f"a guest's share must be 1 to {WHOLE} percent, but it is {setup.share}")
    _check_mmu(setup.mmu)
    if setup.rom is not None:
        from vmi.rom.inspect import check

        check(setup.rom)
    model = setup.model or (DEFAULT_MODEL if setup.mode == "native" else _usual(setup.cpus))
    machine = Machine(
        ram=setup.memory,
        model=model,
        disks=setup.disks,
        bios=setup.bios,
        video_bios=setup.video_bios,
        cpus=setup.cpus,
    )
    domain = None
    if setup.rom is not None:
        from vmi.hypervisor.personalities import attach

        machine.plug(setup.rom)
        domain = attach(machine, setup.rom, setup.mmu)
    if setup.image is not None:
        machine.load(
            setup.image,
            name=setup.name,
            append=setup.append,
            protocol=setup.protocol,
            modules=setup.modules,
            address=setup.address,
        )
        if setup.full:
            from vmi.hypervisor.full import take_over

            domain = take_over(machine, setup.mmu)
    if domain is not None:
        _check_served(model)
    if setup.share != WHOLE:
        if domain is None:
            raise UsageError("only a hypervisor shares processors out, and there is none")
        domain.share_processors(setup.share)
    return Guest(machine, domain, setup.mode)


def _check_mmu(name: str) -> None:
    if name == DEFAULT_MMU:
        return
    from vmi.hypervisor.mmu import STRATEGIES

    if name not in STRATEGIES:
        raise UsageError(f"the MMU strategy must be one of {', '.join(STRATEGIES)}, but it is {name!r}")


def _usual(cpus: int) -> CpuModel:
    """The processor of a de-privileged kernel if nothing else is asked for: several of them need APICs."""
    return I686 if cpus == 1 else I686_APIC


def _check_served(model: CpuModel) -> None:
    """UsageError for a processor that promises a de-privileged kernel what hypervisors here don't serve."""
    extra = model.features - I686.features - _SERVED
    if extra:
        raise UsageError(
            "a de-privileged kernel must have a processor that promises only what hypervisors here serve, "
            f"but {model.name} has {', '.join(sorted(extra))}"
        )


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
    model: CpuModel | None = None,
    mmu: str = DEFAULT_MMU,
    cpus: int = 1,
) -> Comparison:
    """Run a patched kernel in each mode, one after the other, and compare with the first.

    :param original: the unpatched kernel, which ``full`` needs: it takes no patched one.
    :param on_mode: told each mode before it runs.
    :param model: the processor, the same in every mode; None for one that every mode can have.
    :param mmu: how the hypervisor manages memory, where there is one.
    :param cpus: how many processors.
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
                mmu=mmu,
                model=model or _usual(cpus),
                timed=True,
                cpus=cpus,
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
