# SPDX-License-Identifier: GPL-2.0-only
"""Random kernels do the same unpatched, patched, and patched with the native ROM plugged in.

More of them: ``VMI_RANDOM_FUNCTIONS=5000 pytest tests/proof/test_random_functions.py``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache

from hypothesis import HealthCheck, given, settings

from tests.proof.functions import DATA, DATA_SIZE, END_PORT, FUNCTIONS, START_PORT, kernel
from vmi.memory import PhysicalMemory
from vmi.native.cpu import Cpu
from vmi.native.registers import Segment, TableRegister
from vmi.native.wiring import Stop
from vmi.patcher import elf, patch
from vmi.patcher.inspect import site_table
from vmi.patcher.rewrite import Options
from vmi.proof import prove
from vmi.proof.connect import connect
from vmi.rom.build import build
from vmi.sitetable import SiteTable, Status, header_offset
from vmi.x86 import Seg

RAM = 4 << 20
ROM_AT, GDT_AT = 0xC8000, 0x80000
EXAMPLES = int(os.environ.get("VMI_RANDOM_FUNCTIONS", "0"))
bounded = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Computer:
    """A processor with memory and devices that answer by what they were asked before."""

    log: list[tuple[object, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = PhysicalMemory(RAM)
        self.cpu = Cpu(self.memory, self)
        self.first = self.cpu.freeze()

    def start(self, data: bytes, rom: bytes) -> None:
        """Load a kernel file as a boot loader does."""
        cpu = self.cpu
        self.memory.ram[:] = bytes(RAM)
        cpu.thaw(self.first)
        cpu.forget_translations()
        gdt = bytes(8) + bytes.fromhex("ffff0000009bcf00 ffff00000093cf00") + bytes(256)
        self.memory.write(GDT_AT, gdt)
        self.memory.write(ROM_AT, rom)
        image = elf.load(data, patched=True)
        for segment in image.segments:
            self.memory.write(segment.paddr, segment.data)
        cpu.set_cr(0, 0x11)
        cpu.eflags = 2
        cpu.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, 0xCF9B00))
        for seg in (Seg.SS, Seg.DS, Seg.ES, Seg.FS, Seg.GS):
            cpu.set_segment(seg, Segment(16, 0, 0xFFFFFFFF, 0xCF9300))
        cpu.gdt = TableRegister(GDT_AT, 0xFF)
        cpu.eip = image.entry
        self.log = []
        self.asked = 0
        self.ended = False

    def run(self) -> None:
        """Run to the end; HLT goes on at once, as if an interrupt had come and gone."""
        for _ in range(1000):
            if self.cpu.run(1_000_000) is Stop.HALTED:
                self.log.append(("hlt", self.cpu.system_flags & 0x200))
            elif self.ended:
                return
            else:
                raise AssertionError(f"the kernel is stuck at {self.cpu.eip:#x}")

    def exception(self, vector: int, is_int: bool, error: int) -> None:
        raise AssertionError(f"exception {vector} ({error:#x}) at {self.cpu.eip:#x}")

    def port_read(self, port: int, size: int) -> int:
        self.asked += 1
        value = self.asked * 0x9E3779B9 >> 3 & (1 << 8 * size) - 1
        self.log.append(("in", port, size, value))
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        if port == START_PORT:  # what activation asks the processor is its own affair
            self.log.clear()
            self.asked = 0
        elif port == END_PORT:
            self.ended = True
            self.cpu.stop_soon()
        else:
            self.log.append(("out", port, size, value))

    def memory_read(self, address: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def memory_write(self, address: int, size: int, value: int) -> None:
        pass

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        self.log.append(("cpuid", leaf, subleaf))
        return leaf & 0xFF, 0x756E6547, 3, 0x0183FBFF

    def tsc(self) -> int:
        self.asked += 1
        return self.asked << 28

    def read_msr(self, index: int) -> int:
        self.log.append(("rdmsr", index))
        return 0x1122334455667788 ^ index

    def write_msr(self, index: int, value: int) -> bool:
        self.log.append(("wrmsr", index, value))
        return True


@cache
def computer() -> Computer:
    return Computer()


def outcome(data: bytes, rom: bytes = b"") -> tuple[bytes, list[tuple[object, ...]], tuple[object, ...]]:
    """The kernel's data (all registers and flags are saved there), what devices saw, system registers."""
    made = computer()
    made.start(data, rom)
    made.run()
    cpu = made.cpu
    system = [cpu.cr(n) for n in (0, 2, 3, 4)] + [cpu.dr(n) for n in range(4)]
    tables = (cpu.gdt, cpu.idt, cpu.ldt, *(cpu.segment(seg) for seg in Seg))
    return made.memory.read(DATA, DATA_SIZE), made.log, (*system, *tables)


def tables_of(data: bytes) -> SiteTable:
    home = elf.vmi_segment(elf.load(data, patched=True))
    assert home is not None
    return site_table(home)


@bounded
@given(FUNCTIONS)
def test_a_random_kernel_does_the_same_in_all_its_lives(functions: list[list[str]]) -> None:
    original = kernel(functions)
    patched = patch(original, Options(allow_empty=True, undo=False)).data
    expected = outcome(original)
    assert outcome(patched) == expected
    rom = build("native")
    assert outcome(patched, rom.image) == expected
    # the activation code of the file has connected what the proof takes as connected
    table = tables_of(patched)
    base = elf.vmi_segment(elf.load(patched, patched=True))
    assert base is not None
    assert computer().memory.u32(base.paddr + header_offset("status")) == Status.ACTIVE
    for at, raw in connect(table, rom).changes.items():
        assert computer().memory.read(at, len(raw)) == raw


@settings(bounded, max_examples=EXAMPLES // 4 or 25)
@given(FUNCTIONS)
def test_a_random_kernel_is_proved(functions: list[list[str]]) -> None:
    original = kernel(functions)
    found = prove(original, patch(original, Options(allow_empty=True, undo=False)).data, trials=4)
    assert found.disagreements == ()
