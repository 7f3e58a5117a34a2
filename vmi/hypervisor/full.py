# SPDX-License-Identifier: GPL-2.0-only
"""Full virtualization: an unpatched kernel, de-privileged from its first instruction, no ROM.

Privileged instructions trap by themselves; where a silent one stands, a breakpoint is planted. This is
the baseline that paravirtualization is measured against.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vmi import abi
from vmi.hypervisor.domain import Domain
from vmi.hypervisor.mirror import Told
from vmi.hypervisor.mmu import DEFAULT
from vmi.hypervisor.mmu.notices import NoNotices
from vmi.hypervisor.personality import Gate
from vmi.memory import PAGE_SIZE
from vmi.native.machine import Machine, Outcome
from vmi.x86 import Cr0


class NoRom(NoNotices):
    """In place of a ROM: no gates, and the interrupt flag is the host's own."""

    name = "full"
    virtual_top = 0
    interrupt: int | None = None

    def __init__(self) -> None:
        self._on = False
        self._iopl = 0

    def adopt(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return False

    def gate(self, address: int) -> abi.Call | Gate | None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return None

    def gate_address(self, call: abi.Call) -> int:
        """Never called."""
        raise NotImplementedError

    def is_entry(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return False

    def holds_code(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return False

    def holds_data(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return False

    def get(self) -> bool:
        """The virtual interrupt flag."""
        return self._on

    def set(self, on: bool) -> None:
        """Set the virtual interrupt flag."""
        self._on = on

    def iopl(self) -> int:
        """The virtual IOPL."""
        return self._iopl

    def set_iopl(self, iopl: int) -> None:
        """Set the virtual IOPL."""
        self._iopl = iopl

    def kernel_stack(self) -> tuple[int, int] | None:
        """Always the one in the TSS."""
        return None

    def tell(self, what: Told, value: int) -> None:
        """Nobody asks: each instruction that reads it is emulated."""

    def set_pending(self, waits: bool) -> None:
        """Nobody looks: interrupts only become acceptable by what the hypervisor itself does."""

    def save_words(self) -> bytes:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return self._iopl.to_bytes(2, "little") + bytes([self._on])

    def load_words(self, words: bytes) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._iopl, self._on = int.from_bytes(words[:2], "little"), bool(any(words[2:]))

    def undo_iret(self) -> int:
        """Never called: there is no ROM code to fault in."""
        raise NotImplementedError


def take_over(machine: Machine, silent: Iterable[int], mmu: str = DEFAULT) -> Domain:
    """De-privilege the kernel that a machine is about to start.

    :param silent: guest-physical addresses of its silent sensitive instructions.
    :param mmu: who decides about translation, see :mod:`vmi.hypervisor.mmu`.
    """
    domain = Domain(machine, NoRom(), mmu)
    domain.start(silent)
    return domain


def take_over_at_entry(
    machine: Machine, entry: int, silent: Mapping[int, bytes], mmu: str = DEFAULT
) -> Domain:
    """De-privilege a kernel that unpacks itself, at the first instruction of the kernel proper.

    Only then are its silent instructions in memory. What unpacks it runs on ring 0: it is loader, not kernel.

    :param entry: where the kernel proper begins, guest-physical, if it is not displaced.
    :param silent: its silent instructions likewise: guest-physical address, and how each begins.
    """
    domain = Domain(machine, NoRom(), mmu)
    machine.cpu.code_watch = _AtEntry(domain, entry, silent)
    return domain


class _AtEntry:
    """Waits until the kernel proper is entered, wherever it was unpacked to.

    It is there if its entry lies in a page where the CPU has never been, and each of its silent
    instructions has its bytes at the same distance.
    """

    def __init__(self, domain: Domain, entry: int, silent: Mapping[int, bytes]) -> None:
        self._domain = domain
        self._page = entry // PAGE_SIZE
        self._silent = dict(silent)

    def code_appeared(self, pages: list[int]) -> None:
        """See :class:`vmi.native.wiring.CodeWatch`."""
        machine = self._domain.machine
        memory, cpu = machine.memory, machine.cpu
        for page in pages:
            distance = (page - self._page) * PAGE_SIZE
            if all(memory.read(at + distance, len(code)) == code for at, code in self._silent.items()):
                cpu.code_watch = None
                self._domain.start(at + distance for at in self._silent)
                return
        if cpu.cr(0) & Cr0.PG:
            machine.finish(
                Outcome.CRASHED,
                "the kernel that was unpacked is not the one in its file: it has switched paging on, "
                "but its sensitive instructions are not where they should be",
            )
