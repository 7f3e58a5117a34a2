# SPDX-License-Identifier: GPL-2.0-only
"""What goes into a boot protocol and what comes out: request, CPU state, and the memory to write.

A protocol is a pure function from a request to a plan. Nothing reaches the guest's memory before all of
the request has been checked, so a kernel that is refused leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vmi.memory import PhysicalMemory
from vmi.native.registers import TableRegister

STACK_TOP = 0x7000  # most protocols promise no stack; this one is a page or two nobody else uses
NO_TABLE = TableRegister(0, 0)
_CHUNK = 1 << 20


@dataclass(frozen=True, repr=False)
class Module:
    """A boot module: its bytes and its string (by convention ``file args``)."""

    data: bytes
    string: str

    def __repr__(self) -> str:
        return f"Module({self.string!r}, {len(self.data)} bytes)"


@dataclass(frozen=True, repr=False)
class Request:
    """A kernel to boot: image (not compressed), its name and options, modules, and where a flat one goes."""

    image: bytes
    name: str = "kernel"
    append: str = ""
    modules: tuple[Module, ...] = ()
    address: int | None = None

    def __repr__(self) -> str:
        return f"Request({self.name!r}, {len(self.image)} bytes, {len(self.modules)} modules)"


@dataclass(frozen=True, repr=False)
class BootState:
    """CPU state at the kernel's first instruction, and the memory in use.

    Protection is on, paging and interrupts are off, A20 is open, there is no IDT. All segments are flat (base
    0, limit 4 GiB): CS has selector ``code``, the others have ``data``; their descriptors are in memory
    only if ``gdt`` says where. The task register has base 0 and limit ``task_limit``. General registers
    that are not here are zero. ``kernel`` is the kernel's physical memory with its zeroed part, ``end``
    the first byte after all that was loaded from 1 MiB on: kernel, strings and modules.
    """

    eip: int
    kernel: range
    end: int
    eax: int = 0
    ebx: int = 0
    esi: int = 0
    esp: int = STACK_TOP
    code: int = 0x08
    data: int = 0x10
    gdt: TableRegister = NO_TABLE
    task_limit: int = 0xFFFF

    def __repr__(self) -> str:
        return f"BootState(eip {self.eip:#x}, kernel {self.kernel.start:#x}-{self.kernel.stop - 1:#x})"


class Write(NamedTuple):
    """``data`` for memory from ``address`` on, then ``zeros`` bytes of zero."""

    address: int
    data: bytes
    zeros: int = 0


@dataclass(frozen=True, repr=False)
class Plan:
    """A kernel that can be loaded: the state to start it in and what to write first, in order."""

    state: BootState
    writes: tuple[Write, ...]

    def store(self, memory: PhysicalMemory) -> BootState:
        """Write everything; gives the state."""
        for address, data, zeros in self.writes:
            memory.write(address, data)
            start, stop = address + len(data), address + len(data) + zeros
            for chunk in range(start, stop, _CHUNK):
                memory.write(chunk, bytes(min(_CHUNK, stop - chunk)))
        return self.state

    def __repr__(self) -> str:
        return f"Plan({self.state!r}, {len(self.writes)} writes)"
