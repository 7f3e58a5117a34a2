# SPDX-License-Identifier: GPL-2.0-only
"""A processor with paging on which one image's code is executed step by step, and set back in microseconds.

Each image has a stage of its own. All stages look alike to the code: the same page tables, descriptor
tables, stack and scratch pages at the same addresses, so that no register and no memory tells them apart.
The page tables' dirty bits tell what a trial wrote, which is all that is compared and set back. A page that
nobody prepared appears, filled with noise, when it is first touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmi.errors import BadInput
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native.cpu import Cpu
from vmi.native.registers import Segment, TableRegister
from vmi.native.wiring import Stop
from vmi.proof import setting
from vmi.proof.setting import Noise, Setting, mix
from vmi.x86 import U32, Cr0, Cr4, Seg, Vector

_TABLES = 0x100000  # physical address of the page directory; page tables follow
_TABLE_COUNT = 192
_PAGES = _TABLES + (1 + _TABLE_COUNT) * PAGE_SIZE
_WILD = 96  # pages that a trial may touch without anybody having prepared them
_PRESENT, _ACCESSED, _DIRTY = 0x03, 0x20, 0x40
_SPAN = 0x400000  # bytes that one page table maps
_EXTENDED_FEATURES, _NX = 0x80000001, 1 << 20  # a leaf of CPUID, a bit of its EDX
Exception_ = tuple[int, bool, int]
"""Vector, whether it comes from an INT, error code."""
FAILURE: Exception_ = (-1, False, 0)
"""What the emulator can't execute."""
MAX_IMAGE = 256 << 20  # bytes of file contents


@dataclass(frozen=True, slots=True)
class Ground:
    """What all stages of a proof share: where the images lie, and where the stages' own region is."""

    low: int
    high: int
    region: int
    noise: Noise

    @staticmethod
    def of(ranges: Sequence[tuple[int, int]]) -> Ground:
        """Choose a region beside the images, whose segments lie at the ranges [start, end)."""
        span = setting.REGION
        low, high = min(start for start, _ in ranges), max(end for _, end in ranges)
        free = (
            r
            for r in (0x60000000, 0xA0000000, 0x20000000)
            if all(r >= end + span or r + 2 * span <= start for start, end in ranges)
        )
        region = next(free, None)
        if region is None:
            raise BadInput(f"the images at {low:#x} to {high:#x} leave no room for a stage beside them")
        return Ground(low, high, region, Noise(low, high, region))


class Refused(Exception):
    """A page that is not to appear was touched."""


class Stage:
    """One image on a processor. ``log`` is what devices saw."""

    def __init__(self, ground: Ground, pieces: list[tuple[int, bytes]]) -> None:
        self.ground = ground
        self.log: list[tuple[object, ...]] = []
        self._exceptions: list[Exception_] = []
        self._asked = 0
        self._setting: Setting
        contents: dict[int, bytearray] = dict(self._own_pages())
        for start, data in pieces:
            self._add_pages(contents, start, data)
        count = len(contents) + _WILD
        if count * PAGE_SIZE > MAX_IMAGE:
            raise BadInput(f"the image has {count} pages, a stage takes {MAX_IMAGE // PAGE_SIZE}")
        self.memory = PhysicalMemory(_PAGES + count * PAGE_SIZE)
        self.cpu = Cpu(self.memory, self)
        self._home: dict[int, int] = {}  # page number -> physical address
        self._clean: dict[int, bytes] = {}
        self._tables: dict[int, int] = {}  # page directory index -> physical address of the table
        for at, (page, content) in enumerate(sorted(contents.items())):
            self._home[page] = _PAGES + at * PAGE_SIZE
            self._clean[page] = raw = bytes(content)
            self.memory.write(self._home[page], raw)
            self._map(page, self._home[page])
        self._pool = _PAGES + len(contents) * PAGE_SIZE
        self._wild: dict[int, int] = {}
        self._tables_clean = {i: self.memory.read(t, PAGE_SIZE) for i, t in self._tables.items()}
        self._numbers = {i: int.from_bytes(raw, "little") for i, raw in self._tables_clean.items()}
        self._start = self._first_state()
        self.first_gdt, self.first_idt = self.cpu.gdt, self.cpu.idt

    # -- set-up -----------------------------------------------------------------------------

    def _own_pages(self) -> Iterator[tuple[int, bytearray]]:
        """Descriptor tables, TSS, stack and arena."""
        region, noise = self.ground.region, self.ground.noise
        table = setting.descriptors(region)
        for offset in range(0, setting.GDT_SIZE, PAGE_SIZE):
            part = table[offset : offset + PAGE_SIZE]
            yield (region + setting.GDT + offset) // PAGE_SIZE, bytearray(part)
        yield (region + setting.LDT) // PAGE_SIZE, bytearray(table[PAGE_SIZE : 2 * PAGE_SIZE])
        yield (region + setting.TSS) // PAGE_SIZE, bytearray(PAGE_SIZE)
        for start, size in ((setting.STACK, setting.STACK_SIZE), (setting.ARENA, setting.ARENA_SIZE)):
            for offset in range(0, size, PAGE_SIZE):
                page = (region + start + offset) // PAGE_SIZE
                yield page, bytearray(noise.page(page))

    def _add_pages(self, contents: dict[int, bytearray], start: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            page, offset = divmod(start + at, PAGE_SIZE)
            size = min(PAGE_SIZE - offset, len(data) - at)
            if page not in contents:
                contents[page] = bytearray(self.ground.noise.page(page))
            contents[page][offset : offset + size] = data[at : at + size]
            at += size

    def _map(self, page: int, physical: int) -> None:
        index, entry = divmod(page, 1024)
        table = self._tables.get(index)
        if table is None:
            if len(self._tables) == _TABLE_COUNT:
                raise Refused
            table = self._tables[index] = _TABLES + (1 + len(self._tables)) * PAGE_SIZE
            self.memory.put_u32(_TABLES + 4 * index, table | _PRESENT | _ACCESSED)
        self.memory.put_u32(table + 4 * entry, physical | _PRESENT | _ACCESSED)

    def _first_state(self) -> bytes:
        cpu, region = self.cpu, self.ground.region
        cpu.set_cr(4, Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.PGE)
        cpu.set_cr(3, _TABLES)
        cpu.eflags = 2
        cpu.set_segment(Seg.CS, Segment(setting.FLAT_CODE, 0, U32, 0xCF9B00))
        for seg in (Seg.SS, Seg.DS, Seg.ES):
            cpu.set_segment(seg, Segment(setting.FLAT_DATA, 0, U32, 0xCF9300))
        for seg, offset in ((Seg.FS, 0x9000), (Seg.GS, 0xA000)):
            base = region + setting.ARENA + offset
            cpu.set_segment(seg, Segment(setting.FLAT_USER + 8, base, U32, 0xCFF300))
        cpu.gdt = TableRegister(region + setting.GDT, setting.GDT_SIZE - 1)
        cpu.idt = TableRegister(region + setting.TSS + 0x800, 0x7FF)
        cpu.ldt = Segment(0x30, region + setting.LDT, 0xFFF, 0x8200)
        cpu.tr = Segment(0x28, region + setting.TSS, 0xFFF, 0x8900)
        cpu.set_cr(0, Cr0.PE | Cr0.MP | Cr0.NE | Cr0.WP | Cr0.PG)
        for number in range(4):
            cpu.set_dr(number, mix(number) & U32)
        cpu.set_dr(7, 0x400)
        return cpu.freeze()

    # -- trials -----------------------------------------------------------------------------

    def begin(self, start: Setting, eip: int) -> None:
        """Set everything to the start of a trial."""
        cpu = self.cpu
        self._restore_memory()
        cpu.thaw(self._start)
        cpu.flush_tlb()
        for number, value in enumerate(start.general):
            cpu.set_gpr(number, value)
        cpu.eip, cpu.eflags, cpu.cr2 = eip, start.eflags, start.cr2
        if start.task_switched:
            cpu.set_cr(0, cpu.cr(0) | Cr0.TS)
        self.log = []
        self._asked = 0
        self._setting = start

    def _restore_memory(self) -> None:
        wild, code_pages = self._wild, self.cpu.code_pages
        for page in self.dirty_pages():
            if page not in wild:
                home, clean = self._home[page], self._clean[page]
                if home // PAGE_SIZE in code_pages:
                    self.cpu.write_memory(home, clean)
                else:
                    self.memory.write(home, clean)
        for page in wild:
            self.memory.put_u32(self._tables[page // 1024] + page % 1024 * 4, 0)
        wild.clear()
        for index in list(self._tables)[len(self._tables_clean) :]:
            self.memory.put_u32(_TABLES + 4 * index, 0)
            del self._tables[index]
        for index, raw in self._tables_clean.items():
            self.memory.write(self._tables[index], raw)

    def dirty_pages(self) -> set[int]:
        """Numbers of the pages that were written since the trial began, of unprepared ones all."""
        found = set(self._wild)
        read = self.memory.read
        for index, number in self._numbers.items():
            changed = int.from_bytes(read(self._tables[index], PAGE_SIZE), "little") ^ number
            while changed:
                entry = ((changed & -changed).bit_length() - 1) // 32
                changed &= ~(U32 << 32 * entry)
                found.add(index * 1024 + entry)
        return found

    def page(self, number: int) -> bytes:
        """What a page holds now."""
        home = self._home.get(number) or self._wild.get(number)
        return self.ground.noise.page(number) if home is None else self.memory.read(home, PAGE_SIZE)

    def clean(self, number: int) -> bytes:
        """What a page held at the start."""
        clean = self._clean.get(number)
        return self.ground.noise.page(number) if clean is None else clean

    def read(self, address: int, size: int) -> bytes:
        """Memory by virtual address as it is now."""
        page, offset = divmod(address & U32, PAGE_SIZE)
        return (self.page(page) + self.page(page + 1 & 0xFFFFF))[offset : offset + size]

    def write_word(self, address: int, value: int) -> None:
        """Change a word of memory that the code has written."""
        for at, byte in enumerate(value.to_bytes(4, "little")):
            page, offset = divmod(address + at & U32, PAGE_SIZE)
            home = self._home.get(page) or self._wild.get(page)
            if home is not None:
                self.memory.write(home + offset, bytes((byte,)))

    def run_one(self) -> Exception_ | None:
        """Execute one instruction and give the exception that came instead.

        A page that it misses and that may appear in this trial does so.
        """
        cpu, run, seen = self.cpu, self.cpu.run, self._exceptions
        address = cpu.eip
        while True:
            seen.clear()
            stop = run(1)
            if not seen:
                return None if stop in (Stop.BUDGET, Stop.HALTED) else FAILURE
            fault = seen[0]
            if not fault[1] and cpu.eip != address:
                return None  # the emulator looked at the next instruction already
            if fault[0] != Vector.PF or fault[1] or not self._appear(fault[2]):
                return fault

    def _appear(self, error: int) -> bool:
        """Prepare the page that was missed if the trial lets it be there."""
        cpu = self.cpu
        page = cpu.cr2 // PAGE_SIZE
        if error & 1 or page in self._wild or len(self._wild) >= _WILD:
            return False
        if self._setting.faulty and mix(self._setting.seed, page) & 1:
            return False
        home = self._pool + len(self._wild) * PAGE_SIZE
        try:
            self._map(page, home)
        except Refused:
            return False
        self._wild[page] = home
        self.memory.write(home, self.ground.noise.page(page))
        cpu.cr2 = self._setting.cr2
        return True

    def answer(self, *question: int) -> int:
        """What a device answers to a question, by what was asked before in this trial."""
        self._asked += 1
        return mix(self._setting.seed, self._asked, *question)

    def refuses(self, *question: int) -> bool:
        """Whether something that may fail does so in this trial."""
        return self._setting.faulty and mix(self._setting.seed, *question) % 3 == 0

    # -- the bus ----------------------------------------------------------------------------

    def exception(self, vector: int, is_int: bool, error: int) -> None:
        """Keep the exception; what becomes of it is decided after the step."""
        self._exceptions.append((vector, is_int, error))

    def port_read(self, port: int, size: int) -> int:
        value = self.answer(port, size) & (1 << 8 * size) - 1
        self.log.append(("in", port, size, value))
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        self.log.append(("out", port, size, value & (1 << 8 * size) - 1))

    def memory_read(self, address: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def memory_write(self, address: int, size: int, value: int) -> None:
        pass

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        self.log.append(("cpuid", leaf, subleaf))
        first, second = self.answer(leaf, subleaf), self.answer(leaf, subleaf)
        # With a ROM there is no NX for a kernel whose adaptors lie outside its text, so there is none at all.
        hidden = _NX if leaf == _EXTENDED_FEATURES else 0
        return first & U32, first >> 32, second & U32, (second >> 32) & ~hidden

    def tsc(self) -> int:
        self.log.append(("rdtsc",))
        return self.answer(1)

    def read_msr(self, index: int) -> int | None:
        self.log.append(("rdmsr", index))
        return None if self.refuses(2, index) else self.answer(2, index)

    def write_msr(self, index: int, value: int) -> bool:
        self.log.append(("wrmsr", index, value))
        return not self.refuses(3, index)
