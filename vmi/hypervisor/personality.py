# SPDX-License-Identifier: GPL-2.0-only
"""What a domain asks of a personality: the seam between the hypervisor and one ROM's way of calling it."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from vmi import abi
from vmi.hypervisor.mmu.notices import Notices
from vmi.hypervisor.privilege import FlagWords
from vmi.native.straight import Cells


class Gate(Enum):
    """Entrances to the hypervisor that are no VMI call of the table."""

    INIT = auto()  # VMI_Init
    PENDING = auto()  # interrupts are on again and one waits


class Personality(FlagWords, Notices, Protocol):
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

    def set_pending(self, waits: bool) -> None:
        """Tell the ROM whether an interrupt waits."""

    def cells(self) -> Cells:
        """Where the words are that events need, of the copy in use."""

    def save_words(self) -> bytes:
        """All words that are shared, for :meth:`load_words`: they belong to the virtual CPU that runs."""

    def load_words(self, words: bytes) -> None:
        """Put words there that were saved; those of a virtual CPU that begins for none."""

    def undo_iret(self) -> tuple[int, bool]:
        """The ROM's own iretd was refused: take its effect back.

        Gives the address behind the IRET call, or 0 if it was the end of SYSEXIT; and whether the frame's CS
        had level 0 before the ROM put the kernel's there.
        """
