# SPDX-License-Identifier: GPL-2.0-only
"""A guest with page tables on one of five footings, driven instruction by instruction from outside.

What it does is the same on each: natively and under full virtualization by the instructions themselves,
behind the ROM by its calls. So what comes of it can be compared: values, faults, and memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.hypervisor.lab import GPRS, LANDING, ROM, ROM_AT, Lab
from tests.native.guest import CODE3, DATA3, FREE, STACK, USER_STACK
from vmi.native.cpuid import MODELS
from vmi.native.registers import Segment
from vmi.rom.build import Rom
from vmi.x86 import Cr0, Cr4, Seg

FOOTINGS = ("native", "full direct", "full shadow", "paravirt direct", "paravirt shadow")
HYPERVISORS = FOOTINGS[1:]
SHADOWS = tuple(name for name in FOOTINGS if name.endswith("shadow"))
RAM = 4 << 20
#: The guest's tables begin with its root; what is behind the fixed ones is free. Pages of data follow.
ROOT, TABLES, DATA = 0x140000, 0x148000, 0x180000
TABLE_COUNT, DATA_COUNT = 8, 8
P, RW, US, A, D, PS, G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
NX = 1 << 63
ALL = P | RW | US
USED = ALL | A | D  # what a guest runs on may differ in which pages it needs

# each is one instruction behind its label
_STUBS = {
    "read": "mov eax, [ebx]",
    "write": "mov [ebx], eax",
    "add": "add [ebx], eax",
    "copy": "rep movsb",
    "invlpg": "invlpg [ebx]",
    "cr0": "mov cr0, eax",
    "cr3": "mov cr3, eax",
    "cr4": "mov cr4, eax",
    "wrmsr": "wrmsr",
    "task": f"jmp {FREE}:0",
    "rdcr0": "mov eax, cr0",
    "rdcr2": "mov eax, cr2",
    "rdcr3": "mov eax, cr3",
    "rdcr4": "mov eax, cr4",
}
_SOURCE = " | ".join(f"do_{name}: {text} | {name}_end: nop" for name, text in _STUBS.items()) + " | h: nop"
# what the instruction is behind the ROM
_CALLS = {
    "invlpg": ("InvalPage", "ebx"),
    "cr0": ("SetCR0", "eax"),
    "cr3": ("SetCR3", "eax"),
    "cr4": ("SetCR4", "eax"),
    "rdcr0": ("GetCR0", "eax"),
    "rdcr2": ("GetCR2", "eax"),
    "rdcr3": ("GetCR3", "eax"),
    "rdcr4": ("GetCR4", "eax"),
}


@dataclass(frozen=True)
class Fault:
    """An exception as its handler finds it."""

    vector: int
    error: int
    address: int
    eip: int


class Footing(Lab):
    """A guest whose low 4 MiB are mapped one to one, for user code too.

    :param wide: its tables are those of PAE.
    :param on: False leaves paging off.
    :param features: bits of CR4 besides PAE.
    """

    def __init__(
        self,
        name: str,
        *,
        wide: bool = False,
        rom: Rom = ROM,
        on: bool = True,
        features: int = 0,
    ) -> None:
        mode, _, mmu = name.partition(" ")
        self.name, self.wide = name, wide
        super().__init__(
            _SOURCE,
            {14: "h", 13: "h"},
            mode,
            model=MODELS["i686-pae"],
            mmu=mmu or "direct",
            ram=RAM,
            rom=rom,
            silent=(),
            taken=False,
        )
        self.handle(13, "h")
        self.identity()
        self.take()
        self.kernel = {seg: self.cpu.segment(seg) for seg in Seg}
        self.flags = self.cpu.eflags
        if on:
            self.load("cr4", features | (Cr4.PAE if wide else 0))
            self.load("cr3", ROOT)
            self.load("cr0", Cr0.PE | Cr0.WP | Cr0.PG)

    def identity(self) -> None:
        """The fixed tables, written from outside; no free table holds anything."""
        memory = self.memory
        memory.write(ROOT, bytes(TABLES + 0x1000 * TABLE_COUNT - ROOT))
        if self.wide:
            memory.put_u32(ROOT, ROOT + 0x1000 | P)
            for half in range(2):
                table = ROOT + 0x2000 + 0x1000 * half
                memory.put_u32(ROOT + 0x1000 + 8 * half, table | USED)
                for index in range(512):
                    memory.put_u32(table + 8 * index, (half << 21 | index << 12) | USED)
        else:
            memory.put_u32(ROOT, ROOT + 0x1000 | USED)
            for index in range(1024):
                memory.put_u32(ROOT + 0x1000 + 4 * index, index << 12 | USED)
        for number in range(DATA_COUNT):
            # MOV EAX, imm32 that tells the page, over and over
            code = (b"\xb8" + bytes([number, 0xDA, 0, 0])).ljust(8, b"\x90") * 512
            self.cpu.write_memory(DATA + 0x1000 * number, code)

    def start_again(self, features: int = 0) -> None:
        """Tables, data and registers as at first, with other bits in CR4."""
        self.identity()
        self.load("cr4", features | (Cr4.PAE if self.wide else 0))
        self.load("cr3", ROOT)
        self.load("cr0", Cr0.PE | Cr0.WP | Cr0.PG)
        self.no_execute(False)

    @property
    def width(self) -> int:
        """Bytes of an entry."""
        return 8 if self.wide else 4

    # -- doing things -----------------------------------------------------------------------

    def _enter(self, user: bool) -> None:
        cpu = self.cpu
        if user:
            cpu.set_segment(Seg.CS, Segment(CODE3, 0, 0xFFFFFFFF, 0xCFFB00))
            for seg in (Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS):
                cpu.set_segment(seg, Segment(DATA3, 0, 0xFFFFFFFF, 0xCFF300))
        else:
            for seg in (Seg.SS, Seg.CS, Seg.ES, Seg.DS, Seg.FS, Seg.GS):
                cpu.set_segment(seg, self.kernel[seg])
        cpu.eflags = self.flags
        cpu.esp = USER_STACK if user else STACK

    def _step(self, at: int, landing: int) -> Fault | None:
        cpu, handler = self.cpu, self.labels["h"]
        cpu.eip = at
        self.machine.end = None
        for _ in range(64):
            cpu.run(1)
            if cpu.eip == landing:
                return None
            if cpu.eip == handler:
                error, eip = self.stack(2)
                return Fault(self._vector(), error, cpu.cr2, eip)
            assert self.machine.end is None, self.machine.end
        raise AssertionError(f"{self.name}: at {cpu.eip:#x}, neither done nor refused")

    def _vector(self) -> int:
        counts = {vector: self.machine.exits[name] for vector, name in ((13, "#GP"), (14, "#PF"))}
        grown = [vector for vector, count in counts.items() if count != self._counts.get(vector, 0)]
        self._counts = counts
        return grown[0] if len(grown) == 1 else 0

    _counts: Mapping[int, int] = {}

    def do(self, name: str, *, user: bool = False, **registers: int) -> int | Fault:
        """One instruction, by its stub's name; gives EAX, or the fault."""
        self._enter(user)
        for register, value in registers.items():
            self.cpu.set_gpr(GPRS.index(register), value)
        fault = self._step(self.labels[f"do_{name}"], self.labels[f"{name}_end"])
        return self.cpu.eax if fault is None else fault

    def ask(self, call_name: str, *stack: int, **registers: int) -> int | Fault:
        """One VMI call of the kernel; gives EAX, or the fault."""
        self._enter(False)
        for register, value in registers.items():
            self.cpu.set_gpr(GPRS.index(register), value)
        self.push(*reversed(stack), LANDING)
        fault = self._step(ROM_AT + self.rom.offset(call_name), LANDING)
        return self.cpu.eax if fault is None else fault

    def load(self, name: str, value: int) -> int | Fault:
        """A privileged instruction with one operand, in the footing's own way."""
        if self.mode == "paravirt" and name in _CALLS:
            return self.ask(_CALLS[name][0], eax=value)
        return self.do(name, **{"ebx" if name == "invlpg" else "eax": value})

    def no_execute(self, on: bool) -> None:
        """EFER.NXE."""
        assert not isinstance(self.do("wrmsr", ecx=0xC0000080, eax=on << 11, edx=0), Fault)

    def poke(self, entry: int, value: int) -> int | Fault:
        """Change a page-table entry at a linear address: behind the ROM by its call."""
        low, high = value & 0xFFFFFFFF, value >> 32
        if self.mode == "paravirt":
            if self.wide:
                return self.ask("SetPxELong", 1, eax=low, edx=high, ecx=entry)
            return self.ask("SetPxE", eax=low, edx=entry, ecx=1)
        return self.plain(entry, value)

    def plain(self, entry: int, value: int) -> int | Fault:
        """Change a page-table entry by plain stores."""
        if self.wide:
            self.do("write", ebx=entry + 4, eax=value >> 32)
        return self.do("write", ebx=entry, eax=value & 0xFFFFFFFF)

    def access(self, kind: str, linear: int, *, user: bool = False, value: int = 0x5EED) -> int | Fault:
        """Read, write, add, or fetch one instruction."""
        if kind != "fetch":
            return self.do(kind, user=user, ebx=linear, eax=value)
        self._enter(user)
        fault = self._step(linear, linear + 5)
        return self.cpu.eax if fault is None else fault

    def fill(self, index: int, value: int) -> None:
        """Let entry ``index`` of the root, or of PAE's first directory, name a table."""
        self.poke((ROOT + 0x1000 if self.wide else ROOT) + self.width * index, value)

    def count(self, reason: str) -> int:
        """How often something happened."""
        return self.machine.exits[reason]


__all__ = ["FOOTINGS", "Fault", "Footing"]
