# SPDX-License-Identifier: GPL-2.0-only
"""A machine kept in memory, to go back to as often as you like: thousands of times in a second.

For whoever runs many cases from one state, as a fuzzer or a suite of tests does::

    checkpoint = machine.checkpoint()
    for case in cases:
        machine.memory.write(INPUT, case)
        machine.run(timeout_ns)
        checkpoint.restore()

What goes on from there is the same run each time, instruction by instruction, nanosecond by nanosecond and
byte by byte; with several processors, with disks, and with a hypervisor on the machine.

Nothing is made anew: memory gets back the pages that were written (:mod:`vmi.native.page_image`), the
machine's objects what they held (:mod:`vmi.native.held`), the CPU its registers. Code that was translated
stays so unless it has changed. What the processor has cached of page tables is dropped both times, as when a
machine is saved to a folder (:mod:`vmi.native.snapshot`), so that the machine goes on as a restored one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmi.errors import UsageError
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native import cpu_state
from vmi.native.engine import Engine
from vmi.native.event_log import EventLog
from vmi.native.held import Held
from vmi.native.known import Known
from vmi.native.page_image import PageImage
from vmi.native.registers import Registers
from vmi.native.walks import Walks

if TYPE_CHECKING:
    from vmi.native.machine import Machine

# What is kept in another way than by what it refers to, what is only remembered and compared with the machine
# before it is used, and what is this program's and not the machine's.
_OTHERS = (PhysicalMemory, Registers, Engine, Known, Walks, EventLog)


class Checkpoint:
    """A machine that is between two runs, with all that is on it, as it is now.

    There may be several of one machine, and going back to one doesn't end the others. A machine with one
    takes up to twice the memory. Of a monitor that is no hypervisor of this toolkit, the objects of its own
    package are kept. Who listens to the console from now on does so up to the next :meth:`restore`; the log
    and files that were written stay as they are.

    :raises UsageError: the machine runs, or a disk of it writes to its image, which can't be taken back.
    :raises OutputError: the system doesn't give the memory that it takes.
    """

    def __init__(self, machine: Machine) -> None:
        _between_runs(machine)
        for number, disk in enumerate(machine.disks):
            if disk is not None and disk.writable:
                raise UsageError(
                    f"a machine whose disk {number} writes to its image can't go back: use it without rw"
                )
        self._machine, cpu = machine, machine.cpu
        self._ram = PageImage(machine.memory.ram, machine.memory.host_address)
        hidden = cpu.hidden_view
        self._hidden = None if hidden is None else PageImage(*hidden)
        self._cpu = cpu_state.keep(cpu)
        monitor = () if machine.monitor is None else (machine.monitor,)
        self._held = Held((machine, *monitor, *self._cpu.asked()), _OTHERS, (cpu.code_pages,))
        self._rom_area = machine.rom_area.told
        self._forget_blocks()

    def __repr__(self) -> str:
        return f"<Checkpoint of {self._machine!r}>"

    def restore(self) -> None:
        """Let the machine be what it was.

        It takes as long as it takes to copy what was written since, and two hundredths of a millisecond.

        :raises UsageError: the machine runs.
        """
        machine = self._machine
        _between_runs(machine)
        self._restore_memory()
        machine.rom_area.put_back(self._rom_area)
        self._held.put_back()
        cpu_state.put_back(machine.cpu, self._cpu)
        self._forget_blocks()

    def _restore_memory(self) -> None:
        cpu, ram = self._machine.cpu, self._ram
        written = ram.written()
        stale = ram.changed(cpu.code_pages if written is None else cpu.code_among(written))
        ram.put_back(written)
        for page in stale:  # written once more, by somebody who knows what follows for code that was there
            at = page * PAGE_SIZE
            cpu.write_memory(at, self._machine.memory.read(at, PAGE_SIZE))
        hidden = cpu.hidden_view
        if hidden is None:
            return
        if self._hidden is None:  # none of it was in use yet
            hidden[0][:] = bytes(len(hidden[0]))
            self._hidden = PageImage(*hidden)
        self._hidden.put_back(self._hidden.written())

    def _forget_blocks(self) -> None:
        # who is shown each block of code once has to be shown again what it no longer knows of
        if self._machine.cpu.shows_blocks:
            self._machine.cpu.forget_translations()


def _between_runs(machine: Machine) -> None:
    if machine.cpu.running:
        raise UsageError("a machine can be kept and go back between two runs only, but it is running")
