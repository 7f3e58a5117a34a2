# SPDX-License-Identifier: GPL-2.0-only
"""Which pages of the ROM area, C0000h to FFFFFh, the guest may write to.

The chipset says so of pieces of 16 KiB, and a hypervisor of single pages. A change counts from the next
boundary between two instructions on, since the CPU emulator changes no memory while it runs.
"""

from __future__ import annotations

from vmi.memory import PAGE_SIZE
from vmi.native.cpu import Cpu
from vmi.native.devices.pci_functions import HostBridge, Segment


class RomArea:
    """The ROM area of one machine. Reads come from the machine's memory in any case.

    :ivar told: what the CPU was told last; nothing while all of it is ROM.
    """

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self.told: tuple[Segment, ...] = ()
        self.coming: tuple[Segment, ...] = ()  # what it has not been told yet

    def __repr__(self) -> str:
        return f"<RomArea {' '.join(str(segment) for segment in self.told if segment.writes) or 'all ROM'}>"

    def change(self, segments: tuple[Segment, ...]) -> None:
        """The chipset was told which pieces are RAM."""
        self.coming = segments
        self._cpu.stop_soon()

    def open(self, page: int) -> None:
        """Let the guest write to a page, by its address, until the chipset is told anything else."""
        opened = Segment(page, PAGE_SIZE, True, True)
        told = self.coming or self.told
        if opened not in told:
            self.change((*told, opened))

    def settle(self) -> None:
        """Tell the CPU; only between runs."""
        if self.coming:
            self._tell(self.coming)
            self.told, self.coming = self.coming, ()

    def put_back(self, told: tuple[Segment, ...]) -> None:
        """Be again as when :attr:`told` was this; only between runs."""
        if told != self.told:
            self._tell((*HostBridge().segments, *told))
            self.told = told

    def _tell(self, segments: tuple[Segment, ...]) -> None:
        for segment in segments:
            self._cpu.set_writable(segment.start, segment.writes, segment.size)
