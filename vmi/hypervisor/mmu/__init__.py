# SPDX-License-Identifier: GPL-2.0-only
"""Memory management of a de-privileged guest: who decides what a linear address means.

There are strategies, one per file, and a guest can't tell which of them it runs on. All of them read the
guest's own page tables, which hold guest-physical frame numbers and stay in the guest's memory; they
differ in what the processor's CR3 points to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vmi.errors import UsageError
from vmi.hypervisor import DEFAULT_MMU as DEFAULT
from vmi.hypervisor.mmu import direct, shadow
from vmi.hypervisor.mmu.notices import Notices
from vmi.native.machine import Machine
from vmi.native.walks import Walked

__all__ = ["DEFAULT", "STRATEGIES", "Mmu", "create"]

#: Name of the strategy -> how it is made.
STRATEGIES: dict[str, Callable[[Machine, Notices, int], Mmu]] = {
    "direct": direct.DirectMmu,
    "shadow": shadow.ShadowMmu,
}


class Mmu(Protocol):
    """What the rest of the hypervisor asks of a strategy.

    Control registers are those that the guest has loaded. Addresses are linear if not called otherwise.
    """

    name: str
    by_registers: bool  # :meth:`translate` walks the tables that the CPU's own registers point to

    def start(self) -> None:
        """A virtual CPU has been taken over: what its control registers hold counts from here on."""

    def leave(self) -> Any:
        """The CPU is about to be, or is already, another virtual one: what there is to keep of this one."""

    def enter(self, state: Any) -> None:
        """The CPU's registers are those of a virtual CPU that :meth:`leave` gave this of.

        None is for one that has not been taken over, and has its translation to itself.
        """

    def read(self, number: int) -> int:
        """CR0, CR3 or CR4 as the guest knows it."""

    def write(self, number: int, value: int) -> None:
        """The guest loads CR0, CR3 or CR4, with all that follows for cached translations."""

    @property
    def efer(self) -> int:
        """EFER as the guest knows it."""

    def write_efer(self, value: int) -> None:
        """The guest loads EFER."""

    def invalidate(self, linear: int) -> None:
        """INVLPG: the page's next use goes by the entries in memory, global or not."""

    def flush(self, *, everything: bool) -> None:
        """The next use of any page goes by the entries in memory; of global pages if ``everything``."""

    def translate(self, linear: int, *, write: bool = False, user: bool = False) -> int:
        """Guest-physical address for an access that the hypervisor makes in the guest's place.

        Sets accessed and dirty bits. :raises GuestFault: #PF.
        """

    def walked(self, linear: int, *, write: bool = False) -> Walked | None:
        """See :meth:`vmi.native.linear.Linear.walked`."""

    def stamp(self) -> object:
        """What :meth:`translate` depends on besides memory and the CPU's control registers."""

    def entry_changed(self, entry: int) -> None:
        """The guest says that it has changed the page-table entry at an address."""

    def faulted(self, linear: int, base: int | None) -> None:
        """The guest is told of a page fault at this address.

        :param base: where the segments begin that its handler has, None if that isn't known.
        """

    def catch_up(self) -> None:
        """All that the guest has said of page-table entries counts from now on."""

    def announce(self, frame: int) -> None:
        """The guest says that a frame of its memory, by number, will hold page-table entries."""

    def release(self, frame: int) -> None:
        """The guest says that a frame holds page-table entries no more."""


def create(name: str, machine: Machine, notices: Notices, virtual_top: int) -> Mmu:
    """The strategy of that name.

    :param notices: what the ROM tells of page-table entries.
    :param virtual_top: the hypervisor's own linear addresses begin here; 0 if it has none.
    :raises UsageError: there is none of that name.
    """
    if name not in STRATEGIES:
        raise UsageError(f"the MMU strategy {name!r} is not one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name](machine, notices, virtual_top)
