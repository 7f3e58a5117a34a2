# SPDX-License-Identifier: GPL-2.0-only
"""A run's profile: what the machine saw of page-table writes, put in the kernel's terms and written down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmi.files import check_writable, write_atomically

if TYPE_CHECKING:
    from vmi.cli.values import Kernel
    from vmi.native.machine import Machine
    from vmi.native.pagetable_watch import PageTableWatch


class Profiled:
    """Watches one run and writes its profile at the end.

    :raises BadInput: the kernel is none that could be patched, so a profile of it is of no use.
    :raises OutputError: the file that is to be written can't be.
    """

    def __init__(self, path: Path, kernel: Kernel) -> None:
        from vmi.patcher import profile

        self._path = path
        self._image = profile.image_of(kernel.data)
        self._watch: PageTableWatch | None = None
        check_writable(path)

    def begin(self, machine: Machine) -> None:
        """The machine is ready for its first instruction."""
        from vmi.native.pagetable_watch import PageTableWatch

        self._watch = PageTableWatch(machine.cpu)

    def end(self, machine: Machine) -> None:
        """The run is over."""
        from vmi.patcher import profile

        if self._watch is None:
            return
        code = self._watch.code
        seen = [
            profile.Writer(write.eip, write.level.value, write.entry, write.size, count, code[write.eip])
            for write, count in self._watch.writes.items()
        ]
        found = profile.make(self._image, seen, machine.memory.ram, machine.instructions)
        write_atomically(self._path, found.to_json().encode())
