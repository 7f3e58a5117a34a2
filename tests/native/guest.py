# SPDX-License-Identifier: GPL-2.0-only
"""A small guest for the machine's tests: assembled code on flat segments, with tables made by the host.

Nothing of it is a fixture of pytest, so that other processes can use it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmi.native.cpuid import CpuModel
from vmi.native.disk import Disk
from vmi.native.machine import DEFAULT_MODEL, End, Machine
from vmi.native.registers import Segment, TableRegister
from vmi.rom.assemble import assemble
from vmi.x86 import Cr0, Seg

CODE = 0x10000
GDT, IDT, TSS = 0x1000, 0x2000, 0x3000
STACK, KERNEL_STACK, USER_STACK = 0x8000, 0x9000, 0xA000
PAGES = 0x20000  # page directory, then its tables
MS = 1_000_000

# selectors
CODE0, DATA0, CODE3, DATA3, TASK = 0x08, 0x10, 0x1B, 0x23, 0x28
CODE16, DATA16, CONFORMING, CODE1, DATA1 = 0x30, 0x38, 0x40, 0x49, 0x51
FREE = 0x58  # the first selector that a test may use

INTERRUPT_32, TRAP_32, INTERRUPT_16, TRAP_16, TASK_GATE = 0x8E, 0x8F, 0x86, 0x87, 0x85


def descriptor(base: int, limit: int, access: int, flags: int = 0xC) -> bytes:
    """A segment descriptor; ``flags`` are G, D and so on, ``limit`` counts as G says."""
    low = base << 16 & 0xFFFF0000 | limit & 0xFFFF
    high = base & 0xFF000000 | flags << 20 | limit & 0xF0000 | access << 8 | base >> 16 & 0xFF
    return (high << 32 | low).to_bytes(8, "little")


def gate(selector: int, offset: int, access: int = INTERRUPT_32) -> bytes:
    """An IDT gate."""
    low, high = selector << 16 | offset & 0xFFFF, offset & 0xFFFF0000 | access << 8
    return (high << 32 | low).to_bytes(8, "little")


def pic(last: int = 1) -> str:
    """Code that sets up the interrupt controller: vectors from 20h, only the timer; 3 ends them by itself."""
    values = ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, last), (0x21, 0xFE))
    return " | ".join(f"mov al,{value} | out {port},al" for port, value in values)


PIC = pic()


def timer(count: int, mode: int = 0x30) -> str:
    """Code that programs counter 0: mode 0 (30h) once, mode 2 (34h) again and again."""
    values = ((0x43, mode), (0x40, count & 255), (0x40, count >> 8))
    return " | ".join(f"mov al,{value} | out {port},al" for port, value in values)


EOI = "mov al,0x20 | out 0x20,al"
DONE = "mov al,1 | out 0xf4,al"


class Guest:
    """A machine with code in it, in flat protected mode on ring 0, interrupts off.

    :param source: assembled at :data:`CODE`; it starts there. A bar stands for the end of a line.
    :param handlers: label of the handler by vector; interrupt gates of DPL 0.
    """

    def __init__(
        self,
        source: str,
        handlers: Mapping[int, str] | None = None,
        *,
        ram: int = 2 << 20,
        at: int = CODE,
        model: CpuModel = DEFAULT_MODEL,
        disks: Sequence[Disk | None] = (),
        cpus: int = 1,
    ) -> None:
        self.machine = Machine(ram=ram, model=model, disks=disks, cpus=cpus)
        self.cpu = self.machine.cpu
        self.memory = self.machine.memory
        self.assembled = assemble(source.replace(" | ", "\n"), at)
        self.labels = self.assembled.labels
        self.memory.write(at, self.assembled.code)
        for selector, base, limit, access, flags in (
            (CODE0, 0, 0xFFFFF, 0x9A, 0xC),
            (DATA0, 0, 0xFFFFF, 0x92, 0xC),
            (CODE3, 0, 0xFFFFF, 0xFA, 0xC),
            (DATA3, 0, 0xFFFFF, 0xF2, 0xC),
            (TASK, TSS, 0x67, 0x89, 0),
            (CODE16, CODE, 0xFFFF, 0x9A, 0),
            (DATA16, 0, 0xFFFF, 0x92, 0),
            (CONFORMING, 0, 0xFFFFF, 0x9E, 0xC),
            (CODE1, 0, 0xFFFFF, 0xBA, 0xC),
            (DATA1, 0, 0xFFFFF, 0xB2, 0xC),
        ):
            self.describe(selector, descriptor(base, limit, access, flags))
        for vector, label in (handlers or {}).items():
            self.handle(vector, label)
        self.memory.put_u32(TSS + 4, KERNEL_STACK)
        self.memory.put_u32(TSS + 8, DATA0)
        cpu = self.cpu
        cpu.set_segment(Seg.CS, Segment(CODE0, 0, 0xFFFFFFFF, 0xCF9B00))
        for seg in (Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS):
            cpu.set_segment(seg, Segment(DATA0, 0, 0xFFFFFFFF, 0xCF9300))
        cpu.gdt = TableRegister(GDT, 0xFFF)
        cpu.idt = TableRegister(IDT, 0x7FF)
        cpu.tr = Segment(TASK, TSS, 0x67, 0x8900)
        cpu.eflags = 2
        cpu.eip, cpu.esp = at, STACK

    def describe(self, selector: int, data: bytes) -> None:
        """Put a descriptor into the GDT."""
        self.memory.write(GDT + (selector & ~7), data)

    def handle(self, vector: int, label: str, selector: int = CODE0, access: int = INTERRUPT_32) -> None:
        """Set a gate to a label."""
        self.memory.write(IDT + 8 * vector, gate(selector, self.labels[label], access))

    def user(self, label: str, eflags: int = 2) -> None:
        """Start at a label on ring 3 instead."""
        cpu = self.cpu
        cpu.set_segment(Seg.CS, Segment(CODE3, 0, 0xFFFFFFFF, 0xCFFB00))
        for seg in (Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS):
            cpu.set_segment(seg, Segment(DATA3, 0, 0xFFFFFFFF, 0xCFF300))
        cpu.eip, cpu.esp, cpu.eflags = self.labels[label], USER_STACK, eflags

    def page(self, *absent: int, user: bool = True, size: int = 4 << 20) -> None:
        """Map the first ``size`` bytes one to one with 4 KiB pages, but for the pages at ``absent``."""
        rights = 7 if user else 3
        for number in range(size >> 22):
            table = PAGES + 0x1000 * (1 + number)
            self.memory.put_u32(PAGES + 4 * number, table | rights)
            for index in range(1024):
                at = number << 22 | index << 12
                self.memory.put_u32(table + 4 * index, 0 if at in absent else at | rights)
        self.cpu.set_cr(3, PAGES)
        self.cpu.set_cr(0, self.cpu.cr(0) | Cr0.PG | Cr0.WP)

    def real_mode(self, label: str) -> None:
        """Start at a label in real mode instead, all segments 0."""
        cpu = self.cpu
        cpu.set_cr(0, 0)
        for seg in Seg:
            cpu.set_segment(seg, Segment(0, 0, 0xFFFF, 0x9B00 if seg is Seg.CS else 0x9300))
        cpu.idt = TableRegister(0, 0x3FF)
        cpu.eip, cpu.esp = self.labels[label], 0x7000

    def run(self, ms: int = 100) -> End:
        """Run for so many milliseconds of virtual time at most."""
        return self.machine.run(ms * MS)

    def exit_value(self, ms: int = 100) -> int:
        """Run to the guest's own end through the debug-exit port; gives the value."""
        end = self.run(ms)
        assert end.outcome == "debug_exit", end
        return end.value

    def u32(self, address: int) -> int:
        """A dword of the guest's memory."""
        return self.memory.u32(address)

    def stack(self, count: int) -> list[int]:
        """Dwords from SS:ESP."""
        base = (self.cpu.segment(Seg.SS).base + self.cpu.esp) & 0xFFFFFFFF
        return [self.memory.u32(base + 4 * i) for i in range(count)]


def timed(source: str) -> Guest:
    """A guest that sets up the interrupt controller first; the timer's interrupt goes to ``h``, if any."""
    return Guest(f"{PIC} | {source}", {0x20: "h"} if "| h:" in source else None)
