# SPDX-License-Identifier: GPL-2.0-only
"""A CPU under test: machine code in, events and memory out, and a sentence for what differs.

The start-up proof is made of its runs. It rests on nothing that has to be proven, but for the order of
:mod:`vmi.native.selftest`'s checks.
"""

from __future__ import annotations

from collections.abc import Callable

from vmi.memory import PhysicalMemory
from vmi.native.cpu import Cpu
from vmi.native.layout import unsuitable
from vmi.native.registers import Segment, TableRegister
from vmi.native.wiring import Stop
from vmi.x86 import Cr0, Seg

#: Where things are in the memory of 2 MiB; the stack grows down.
CODE, DATA, HALT, STACK = 0x1000, 0x3000, 0x4000, 0x6000
GDT, LDT, PAGES = 0x8000, 0x9000, 0xA000
HIGH = 0x180000


def expect(what: str, expected: object, got: object) -> None:
    """Compare. :raises EngineError: they differ; the sentence says what."""
    if expected != got:
        raise unsuitable(what, _text(expected), _text(got))


def _text(value: object) -> str:
    if isinstance(value, Stop):
        return value.name
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_text, value)) or "nothing"
    return hex(value) if isinstance(value, int) else str(value)


def le(value: int) -> str:
    """A dword as machine code has it, in hexadecimal."""
    return (value & 0xFFFFFFFF).to_bytes(4, "little").hex()


class Probe:
    """A CPU with nothing around it that records what it is told."""

    def __init__(self) -> None:
        self.memory = PhysicalMemory(2 << 20)
        self.memory.write(HALT, b"\xf4")
        self.cpu = Cpu(self.memory, self)
        self.events: list[tuple[int, ...]] = []
        self.answer: Callable[[], None] = self._halt

    def reset(self) -> None:
        """Flat segments on ring 0, paging and interrupts off."""
        cpu = self.cpu
        self.ring(0)
        cpu.set_cr(0, Cr0.PE)
        cpu.set_cr(4, 0)
        cpu.efer = 0
        cpu.gdt = cpu.idt = TableRegister(0, 0)
        cpu.eflags, cpu.esp = 2, STACK
        cpu.load_dr(7, 0)
        self.events, self.answer = [], self._halt

    def ring(self, ring: int) -> None:
        """Flat segments of a ring."""
        privilege = ring << 13
        self.cpu.set_segment(Seg.CS, Segment(8 | ring, 0, 0xFFFFFFFF, 0xCF9B00 | privilege))
        for seg in (Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS):
            self.cpu.set_segment(seg, Segment(0x10 | ring, 0, 0xFFFFFFFF, 0xCF9300 | privilege))

    def run(self, code: str, *, at: int = CODE, budget: int = 100, window: bool = False) -> Stop:
        """Execute machine code, given in hexadecimal; HLT ends it."""
        self.cpu.write_memory(at, bytes.fromhex(code))
        self.cpu.eip = (at - self.cpu.segment(Seg.CS).base) & 0xFFFFFFFF
        return self.cpu.run(budget, stop_when_interruptible=window)

    def words(self, count: int) -> list[int]:
        """Dwords that the code has stored."""
        return [self.memory.u32(DATA + 4 * i) for i in range(count)]

    def _halt(self) -> None:
        self.cpu.eip = HALT

    # -- the CPU's bus ----------------------------------------------------------------------

    def exception(self, vector: int, is_int: bool, error: int) -> None:
        """Record it; the answer sets where to go on."""
        self.events.append((vector, int(is_int), error, self.cpu.eip))
        self.answer()

    def port_read(self, port: int, size: int) -> int:
        """Give port and size themselves."""
        return size << 16 | port

    def port_write(self, port: int, size: int, value: int) -> None:
        """Record it; the answer may stop the run."""
        self.events.append((port, size, value))
        self.answer()

    def memory_read(self, address: int, size: int) -> int:
        """Record it, and give a known value."""
        self.events.append((address, size))
        return 0x5A5A5A5A

    def memory_write(self, address: int, size: int, value: int) -> None:
        """Record it."""
        self.events.append((address, size, value))

    def cpuid(self, leaf: int, _subleaf: int) -> tuple[int, int, int, int]:
        """Numbers that tell the registers apart."""
        return leaf + 1, leaf + 2, leaf + 3, leaf + 4

    def read_msr(self, index: int) -> int | None:
        """Only those below 1000h exist."""
        return index << 32 | 0x4D5352 if index < 0x1000 else None

    def write_msr(self, index: int, value: int) -> bool:
        """Record it; only those below 1000h exist."""
        self.events.append((index, value))
        return index < 0x1000

    def tsc(self) -> int:
        """A number with two different halves."""
        return 0x1122334455667788
