# SPDX-License-Identifier: GPL-2.0-only
"""What a domain asks of a personality: the seam between the hypervisor and one ROM's way of calling it."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from vmi import abi
from vmi.hypervisor.mirror import Told


class Gate(Enum):
    """Entrances to the hypervisor that are no VMI call of the table."""

    INIT = auto()  # VMI_Init
    PENDING = auto()  # interrupts are on again and one waits


class Personality(Protocol):
    """One guest's ROM as the hypervisor sees it: where it calls out, and what words it shares."""

    name: str
    virtual_top: int  # linear addresses from here on are the hypervisor's; 0 if none are
    interrupt: int | None  # the vector its gates use

    def adopt(self, address: int) -> bool:
        """Use the ROM copy whose Init gate is at this guest-physical address, if there is one."""

    def gate(self, address: int) -> abi.Call | Gate | None:
        """What the gate at a guest-physical address stands for."""

    def gate_address(self, call: abi.Call) -> int:
        """Guest-physical address of a call's gate."""

    def is_entry(self, address: int) -> bool:
        """A call is entered at this guest-physical address."""

    def holds_code(self, address: int) -> bool:
        """The guest-physical address lies in the ROM's code."""

    def holds_data(self, address: int) -> bool:
        """The guest-physical address lies in the ROM's data page."""

    def get(self) -> bool:
        """The virtual interrupt flag."""

    def set(self, on: bool) -> None:
        """Set the virtual interrupt flag."""

    def iopl(self) -> int:
        """The virtual IOPL, in EFLAGS position."""

    def set_iopl(self, iopl: int) -> None:
        """Set the virtual IOPL, in EFLAGS position."""

    def kernel_stack(self) -> tuple[int, int] | None:
        """Selector and ESP that UpdateKernelStack gave, None if it was never called. Not to be trusted."""

    def tell(self, what: Told, value: int) -> None:
        """Let the ROM know something that it answers calls with."""

    def set_pending(self, waits: bool) -> None:
        """Tell the ROM whether an interrupt waits."""

    def want(self, wanted: bool) -> None:
        """Have the ROM tell of changed page-table entries from now on, or not."""

    def take(self) -> list[int]:
        """Linear addresses of entries that changed since the last look, oldest first; bounded."""

    def show_uncached(self, page: int | None) -> None:
        """See :class:`vmi.hypervisor.mmu.notices.Notices`."""

    def save_words(self) -> bytes:
        """All words that are shared, for :meth:`load_words`: they belong to the virtual CPU that runs."""

    def load_words(self, words: bytes) -> None:
        """Put words there that were saved; those of a virtual CPU that begins for none."""

    def linear_maps(self) -> list[tuple[int, int, int]]:
        """See :class:`vmi.hypervisor.mmu.notices.Notices`."""

    def undo_iret(self) -> int:
        """The ROM's own iretd was refused: take its effect back.

        Gives the address behind the IRET call, or 0 if it was the end of SYSEXIT.
        """
