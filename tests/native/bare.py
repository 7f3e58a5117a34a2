# SPDX-License-Identifier: GPL-2.0-only
"""A CPU with nothing around it but a bus that records, for tests of the CPU alone."""

from __future__ import annotations

from tests.native.guest import CODE, STACK
from vmi.memory import PhysicalMemory
from vmi.native.cpu import Cpu
from vmi.native.registers import Segment
from vmi.rom.assemble import assemble
from vmi.x86 import Seg

ABSENT = 0x3FF000


class Recorder:
    """A bus that records, and does what a test says."""

    def __init__(self):
        self.log = []
        self.act = lambda: None

    def exception(self, vector, is_int, error):
        self.log.append((vector, is_int, error, self.cpu.eip))
        self.act()

    def port_read(self, port, size):
        self.log.append(("in", port, size))
        self.act()
        return 0xA5A5A5A5

    def port_write(self, port, size, value):
        self.log.append(("out", port, size, value))
        self.act()

    def memory_read(self, address, size):
        self.log.append(("read", address, size))
        return (1 << 8 * size) - 1

    def memory_write(self, address, size, value):
        self.log.append(("write", address, size, value))

    def cpuid(self, leaf, subleaf):
        return 1, 2, 3, 4

    def read_msr(self, index):
        self.log.append(("rdmsr", index))
        self.act()
        return 0x1122334455667788

    def write_msr(self, index, value):
        self.log.append(("wrmsr", index, value))
        self.act()
        return True

    def tsc(self):
        return 5


def new_cpu(bus):
    """A CPU with 2 MiB in flat protected mode on ring 0, interrupts off."""
    cpu = bus.cpu = Cpu(PhysicalMemory(2 << 20), bus)
    cpu.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, 0xCF9B00))
    for seg in (Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS):
        cpu.set_segment(seg, Segment(0x10, 0, 0xFFFFFFFF, 0xCF9300))
    cpu.eflags, cpu.esp = 2, STACK
    return cpu


def put(cpu, source, at=CODE):
    """Assemble code and go to it; gives the addresses of its labels."""
    assembled = assemble(source.replace(" | ", "\n"), at)
    cpu.write_memory(at, assembled.code)
    cpu.eip = at
    return assembled.labels
