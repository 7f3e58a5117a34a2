# SPDX-License-Identifier: GPL-2.0-only
"""Our own machine and hypervisor as a subject: any ROM image, with or without something behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from operator import attrgetter

from vmi.conformance.coverage import Ran
from vmi.conformance.layout import RAM, Paging
from vmi.conformance.subject import ENGINES, REGISTERS, End, Environment, Stop
from vmi.exits import price
from vmi.hypervisor.domain import Domain
from vmi.hypervisor.mmu import DEFAULT
from vmi.hypervisor.personalities import attach
from vmi.native import accelerator, fitness, start
from vmi.native.boot.state import BootState
from vmi.native.cpuid import MODELS, CpuModel
from vmi.native.machine import Machine, Outcome
from vmi.version import __version__

# another processor each time, so that every feature is there once
_MODELS = {Paging.TWO_LEVEL: "pentium3", Paging.PSE: "i686-apic", Paging.PAE: "qemu32"}
_registers = attrgetter(*REGISTERS)
_ENDS = {
    Outcome.DEBUG_EXIT: End.DONE,
    Outcome.TIMEOUT: End.TIMEOUT,
    Outcome.RESET: End.RESET,
    Outcome.SHUTDOWN: End.OFF,
    Outcome.HALTED: End.HALTED,
    Outcome.CALL_NOT_SERVED: End.REFUSED,
}


class MachineSubject:
    """A ROM image on our machine. :raises VmiError: it can't be plugged in, or its hypervisor is none.

    :param ran: learns what is executed of the ROM.
    """

    def __init__(
        self,
        name: str,
        rom: bytes,
        environment: Environment,
        model: CpuModel | None = None,
        ran: Ran | None = None,
    ) -> None:
        self.name = name
        self._rom, self._ran = rom, ran
        self._environment = environment
        usual = "i686" if environment.cpus == 1 else "i686-apic"
        self._model = model or MODELS[_MODELS.get(environment.paging, usual)]
        self._machine: Machine
        self._domain: Domain | None
        self.reset()

    def __repr__(self) -> str:
        return f"<MachineSubject {self.name} {self._environment}>"

    def reset(self) -> None:
        """See :class:`vmi.conformance.subject.Subject`."""
        machine = self._machine = Machine(ram=RAM, model=self._model, cpus=self._environment.cpus)
        base = machine.plug(self._rom)
        if self._ran is not None:
            self._ran.watch(machine, base)
        self._domain = attach(machine, self._rom, self._environment.mmu or DEFAULT)
        start.at_kernel(machine.cpu, BootState(eip=0, kernel=range(0), end=0))

    def read(self, address: int, size: int) -> bytes:
        """See :class:`vmi.conformance.subject.Subject`."""
        return self._machine.memory.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """See :class:`vmi.conformance.subject.Subject`."""
        self._machine.cpu.write_memory(address, data)

    def registers(self) -> dict[str, int]:
        """See :class:`vmi.conformance.subject.Subject`."""
        cpu, domain = self._machine.cpu, self._domain
        values: dict[str, int] = dict(zip(REGISTERS, _registers(cpu), strict=True))
        if domain is not None and domain.active:
            values["eflags"] = domain.privilege.frame_flags()
        return values

    def set_registers(self, values: Mapping[str, int]) -> None:
        """See :class:`vmi.conformance.subject.Subject`."""
        cpu, domain = self._machine.cpu, self._domain
        for name, value in values.items():
            if name == "eflags" and domain is not None and domain.active:
                domain.privilege.restore_flags(value)
            else:
                setattr(cpu, name, value)

    def run(self, limit_ns: int) -> Stop:
        """See :class:`vmi.conformance.subject.Subject`."""
        self._machine.halted = False
        end = self._machine.run(limit_ns)
        return Stop(_ENDS.get(end.outcome, End.CRASHED), end.reason)

    def exits(self) -> int:
        """See :class:`vmi.conformance.subject.Subject`."""
        return price(self._machine.exits)

    def interrupt(self, line: int) -> None:
        """See :class:`vmi.conformance.subject.Subject`."""
        wire = self._machine.board.interrupts.line(line)
        wire.set(False)
        wire.set(True)  # it stays up: a request that is withdrawn is forgotten

    def mark(self) -> Callable[[], None]:
        """See :class:`vmi.conformance.subject.Subject`."""
        machine, domain = self._machine, self._domain
        checkpoint = machine.checkpoint()

        def back() -> None:
            self._machine, self._domain = machine, domain
            checkpoint.restore()

        return back

    def facts(self) -> dict[str, str]:
        """See :class:`vmi.conformance.subject.Subject`."""
        return {
            "vmi": __version__,
            "ROM": self.name,
            "ROM SHA-256": hashlib.sha256(self._rom).hexdigest(),
            "processor": self._model.name,
            "hypervisor": "none" if self._domain is None else self._domain.rom.name,
            "engine": _engine(),
        }


def engine() -> str:
    """What executes guests in this process, one of :data:`~vmi.conformance.subject.ENGINES`."""
    fitness.describe()  # it settles that
    return _engine()


def _engine() -> str:
    return ENGINES[accelerator.load() is None]
