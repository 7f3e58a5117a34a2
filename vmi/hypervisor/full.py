# SPDX-License-Identifier: GPL-2.0-only
"""Full virtualization: an unpatched kernel, de-privileged from its first instruction, no ROM.

Privileged instructions trap by themselves; where a silent one is about to be executed, a breakpoint is
planted (see :mod:`vmi.hypervisor.discovery`). Nothing needs to be known of the kernel. This is the baseline
that paravirtualization is measured against.
"""

from __future__ import annotations

import ctypes

from vmi import abi
from vmi.hypervisor.discovery import Discovery
from vmi.hypervisor.domain import Domain
from vmi.hypervisor.mirror import Told
from vmi.hypervisor.mmu import DEFAULT
from vmi.hypervisor.mmu.notices import NoNotices
from vmi.hypervisor.personality import Gate
from vmi.native.machine import Machine
from vmi.native.straight import Cells
from vmi.x86 import IF_BIT


class NoRom(NoNotices):
    """In place of a ROM: no gates, and the interrupt flag is the host's own."""

    name = "full"
    virtual_top = 0
    interrupt: int | None = None

    def __init__(self) -> None:
        self._bytes = bytearray(8)
        self._flags = memoryview(self._bytes).cast("I")  # the interrupt flag in its place, and IOPL likewise

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
        return bool(self._flags[0])

    def set(self, on: bool) -> None:
        """Set the virtual interrupt flag."""
        self._flags[0] = IF_BIT if on else 0

    def iopl(self) -> int:
        """The virtual IOPL."""
        return self._flags[1]

    def set_iopl(self, iopl: int) -> None:
        """Set the virtual IOPL."""
        self._flags[1] = iopl

    def kernel_stack(self) -> tuple[int, int] | None:
        """Always the one in the TSS."""
        return None

    def tell(self, what: Told, value: int) -> None:
        """Nobody asks: each instruction that reads it is emulated."""

    def set_pending(self, waits: bool) -> None:
        """Nobody looks: interrupts only become acceptable by what the hypervisor itself does."""

    def cells(self) -> Cells:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))
        return Cells(interrupts=at, iopl=at + 4)

    def save_words(self) -> bytes:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return bytes(self._bytes)

    def load_words(self, words: bytes) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._bytes[:] = words.ljust(len(self._bytes), b"\0")

    def undo_iret(self) -> tuple[int, bool]:
        """Never called: there is no ROM code to fault in."""
        raise NotImplementedError


def take_over(machine: Machine, mmu: str = DEFAULT) -> Domain:
    """De-privilege what a machine is about to start.

    :param mmu: who decides about translation, see :mod:`vmi.hypervisor.mmu`.
    """
    domain = Domain(machine, NoRom(), mmu)
    domain.start(())
    Discovery(machine.cpu, domain.breakpoints)
    return domain
