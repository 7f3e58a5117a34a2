# SPDX-License-Identifier: GPL-2.0-only
"""Activation of a kernel that its decompressor moves: words, tables, the setup_data list, registers."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import UC_ARCH_X86, UC_MODE_32, Uc
from unicorn.x86_const import (
    UC_X86_REG_EAX,
    UC_X86_REG_EBP,
    UC_X86_REG_EBX,
    UC_X86_REG_ECX,
    UC_X86_REG_EDI,
    UC_X86_REG_EDX,
    UC_X86_REG_EFLAGS,
    UC_X86_REG_EIP,
    UC_X86_REG_ESI,
    UC_X86_REG_ESP,
)

from tests.patcher.elfs import VADDR, Piece, Plan, make
from tests.patcher.test_activation import fake_rom
from vmi import sitetable
from vmi.abi import Reloc
from vmi.patcher import adaptors, elf
from vmi.patcher.activation_linux import NODE_TYPE
from vmi.patcher.emit import Emission, emit
from vmi.patcher.model import Image, Site
from vmi.patcher.place import Choice, place
from vmi.patcher.plan import make_plan
from vmi.patcher.rewrite import write
from vmi.patcher.verify import verify
from vmi.rom import layout
from vmi.rom.assemble import assemble
from vmi.rom.layout import CallTable, Promise
from vmi.sitetable import INLINE, NO_CALL, MapStatus, SiteFlag, SiteTable, Status

RAM = 0x800000
PADDR = 0x400000
BIAS = VADDR - PADDR
BOOT_PARAMS = 0x14370
NODE = 0x9000
DATA = VADDR + 0x1000
REGISTERS = (
    UC_X86_REG_EAX, UC_X86_REG_EBX, UC_X86_REG_ECX, UC_X86_REG_EDX, UC_X86_REG_EDI, UC_X86_REG_EBP
)  # fmt: skip
SOURCE = """
    mov ecx, dword ptr [0x401000]
    mov edx, 0x3f8
    out dx, al
    mov eax, ecx
    cli
    mov eax, edx
    mov ebx, eax
    wbinvd
    mov esi, ebx
    mov eax, cs
    mov edi, esi
    ret
"""


def kernel(words: tuple[int, ...] = (0, 0x3C)) -> Image:
    """``words`` are offsets in the data of words that hold addresses."""
    code = assemble(SOURCE, VADDR).code.ljust(0x40, b"\x90")
    data = bytearray(range(0x40))
    pieces = [Piece(VADDR, code, 0, 5, PADDR, ".text"), Piece(DATA, bytes(data), 0x1234, 6, PADDR + 0x1000)]
    image = elf.load(make(Plan(pieces, PADDR, stack_header=False)))
    return replace(image, displaced=(VADDR + 2, *(DATA + word for word in words)))


@cache
def patched(flags: int = 0, forms: tuple[str, ...] = ("out",)) -> tuple[Emission, bytes]:
    """The kernel; its instructions of these forms have these flags more."""
    image = kernel()
    plan = make_plan(image, adaptors.refusal)
    changed = [
        replace(window, sites=tuple(_flagged(site, flags, forms) for site in window.sites))
        for window in plan.windows
    ]
    placements = [replace(one, site=_flagged(one.site, flags, forms)) for one in plan.placements]
    plan = replace(plan, windows=tuple(changed), placements=tuple(placements))
    emission = emit(plan, place(image, Choice(protocol=0x20F)))
    output = write(emission)
    verify(emission, output)
    return emission, output


def _flagged(site: Site, flags: int, forms: tuple[str, ...]) -> Site:
    if not site.form.startswith(forms):
        return site
    return replace(
        site,
        recovered=bool(flags & SiteFlag.RECOVERED),
        isolated=bool(flags & SiteFlag.ISOLATED),
    )


@dataclass
class Outcome:
    """What the kernel finds at its first instruction, ``displacement`` above where it is linked."""

    cpu: Uc
    emission: Emission
    displacement: int

    def read(self, vaddr: int, size: int) -> bytes:
        """By linked address."""
        return bytes(self.cpu.mem_read(vaddr - BIAS + self.displacement, size))

    @property
    def table(self) -> SiteTable:
        base = self.emission.base
        return sitetable.parse(self.read(base, self.emission.header.size), base + self.displacement)

    def nodes(self) -> list[tuple[int, int, int]]:
        """(address, type, length) of the setup_data list."""
        found = []
        (at,) = struct.unpack("<Q", self.cpu.mem_read(BOOT_PARAMS + 0x250, 8))
        while at:
            following, kind, length = struct.unpack("<QII", self.cpu.mem_read(at, 16))
            found.append((at, kind, length))
            at = following
        return found


def start(
    displacement: int,
    roms: dict[int, bytes] | None = None,
    *,
    nodes: bool = False,
    protocol: int = 0x20F,
    kernel: tuple[Emission, bytes] | None = None,
) -> Outcome:
    """Load as the decompressor does, run from the first byte to the instruction after the entry's."""
    emission, output = kernel or patched()
    cpu = Uc(UC_ARCH_X86, UC_MODE_32)
    cpu.mem_map(0, RAM)
    for segment in elf.load(output, patched=True).segments:
        cpu.mem_write(segment.paddr + displacement, segment.data)
    for address, rom in (roms or {}).items():
        cpu.mem_write(address, rom)
    cpu.mem_write(BOOT_PARAMS + 0x206, struct.pack("<H", protocol))
    cpu.mem_write(PADDR + 0x1000 + displacement, b"\x44\x33\x22\x11")
    if nodes:
        cpu.mem_write(NODE, struct.pack("<QII", 0, 9, 32))
        cpu.mem_write(BOOT_PARAMS + 0x250, struct.pack("<Q", NODE))
    for number in REGISTERS:
        cpu.reg_write(number, 0x1000 * number)
    cpu.reg_write(UC_X86_REG_ESI, BOOT_PARAMS)
    cpu.reg_write(UC_X86_REG_ESP, 0)  # no stack is promised
    cpu.reg_write(UC_X86_REG_EFLAGS, 0x8D7)
    before = bytes(cpu.mem_read(BOOT_PARAMS, 0x1000))
    entry = PADDR + displacement
    cpu.emu_start(entry, entry + 6, count=2_000_000)
    assert cpu.reg_read(UC_X86_REG_EIP) == entry + 6
    for number in REGISTERS:
        wanted = 0x11223344 + displacement if number == UC_X86_REG_ECX else 0x1000 * number
        assert cpu.reg_read(number) == wanted
    assert cpu.reg_read(UC_X86_REG_ESI) == BOOT_PARAMS
    assert cpu.reg_read(UC_X86_REG_EFLAGS) == 0x8D7
    after = bytes(cpu.mem_read(BOOT_PARAMS, 0x1000))
    changed = {at for at in range(0x1000) if before[at] != after[at]}
    assert changed <= {*range(0x1E4, 0x1E8), *range(0x250, 0x258)}
    return Outcome(cpu, emission, displacement)


DISPLACEMENTS = [0, 0x100000, 0x1000, -0x300000]


@pytest.mark.parametrize("displacement", DISPLACEMENTS)
@pytest.mark.parametrize("nodes", [False, True])
def test_everything_moves_along(displacement: int, nodes: bool) -> None:
    outcome = start(displacement, nodes=nodes)
    header, linked = outcome.table.header, outcome.emission.header
    assert header.displacement == displacement & 0xFFFFFFFF
    assert header.boot_params == BOOT_PARAMS
    assert (header.status, header.map_status) == (Status.NATIVE, MapStatus.LISTED)
    for name in (
        "rom_reserve",
        "sites",
        "links",
        "original_entry",
        "activation_entry",
        "stack_top",
        "displaced",
    ):
        assert getattr(header, name) == getattr(linked, name) + displacement, name
    moved = [
        replace(
            record,
            slot=record.slot + displacement,
            site=record.site + displacement,
            adaptor=record.adaptor + displacement if record.adaptor else 0,
        )
        for record in outcome.emission.records
    ]
    assert list(outcome.table.sites) == moved
    assert len({bool(record.adaptor) for record in moved}) == 2, "with and without an adaptor"
    assert [link.address for link in outcome.table.links] == [
        link.address + displacement for link in outcome.emission.links
    ]
    word = int.from_bytes(bytes(range(0x3C, 0x40)), "little")
    assert outcome.read(DATA + 0x3C, 4) == struct.pack("<I", (word + displacement) & 0xFFFFFFFF)
    assert outcome.read(DATA + 4, 0x38) == bytes(range(4, 0x3C))
    node = outcome.emission.place.layout.node - BIAS + displacement
    size = outcome.emission.base + linked.size - outcome.emission.place.layout.node
    assert outcome.nodes() == [(node, NODE_TYPE, size - 16)] + ([(NODE, 9, 32)] if nodes else [])


def test_an_old_boot_loader_knows_no_list() -> None:
    outcome = start(0x1000, nodes=True, protocol=0x208)
    assert outcome.nodes() == [(NODE, 9, 32)]
    assert outcome.table.header.map_status == MapStatus.NOT_CARVED


ROM = fake_rom({"OUT": (Reloc.CALL_REL, 0x200), "OUTB": (Reloc.CALL_REL, 0x200), "WBINVD": (Reloc.NOP, 0)})


def connected(outcome: Outcome) -> dict[int, bool]:
    """Whether the first byte of each slot has become a call, by the site's linked address."""
    found = {}
    for record in outcome.table.sites:
        first = outcome.read(record.slot - outcome.displacement, 5)
        old = outcome.emission.segment[record.slot - outcome.displacement - outcome.emission.base :][:5]
        found[record.site - outcome.displacement] = first != old and record.call != NO_CALL
    return found


def out_site(outcome: Outcome) -> int:
    return next(p.site.address for p in outcome.emission.sites if p.site.form.startswith("out"))


@pytest.mark.parametrize("displacement", DISPLACEMENTS)
def test_a_rom_is_connected_wherever_the_kernel_runs(displacement: int) -> None:
    outcome = start(displacement, {0xC8000: ROM})
    assert outcome.table.header.status == Status.ACTIVE
    assert connected(outcome)[out_site(outcome)]
    record = next(r for r in outcome.table.sites if r.site - displacement == out_site(outcome))
    raw = outcome.read(record.slot - displacement, 5)
    target = (record.slot + 5 + int.from_bytes(raw[1:], "little", signed=True)) & 0xFFFFFFFF
    rom_entry = outcome.table.header.rom_reserve + 0x200
    assert raw[0] == 0xE8
    if record.adaptor:
        assert target == record.adaptor
        link = next(ln for ln in outcome.table.links if ln.address >= record.adaptor)
        call = outcome.read(link.address - displacement, 5)
        target = (link.address + 5 + int.from_bytes(call[1:], "little", signed=True)) & 0xFFFFFFFF
    assert target == rom_entry


def test_an_inline_adaptor_is_connected_whatever_the_rom_answers() -> None:
    outcome = start(0x1000, {0xC8000: fake_rom({})})
    (record,) = [record for record in outcome.table.sites if record.call == INLINE]
    raw = outcome.read(record.slot - 0x1000, 5)
    target = (record.slot + 5 + int.from_bytes(raw[1:], "little", signed=True)) & 0xFFFFFFFF
    assert (raw[0], target) == (0xE8, record.adaptor)
    assert [site for site, changed in connected(outcome).items() if changed] == [record.site - 0x1000]


def test_slots_that_recover_from_faults_stay_native() -> None:
    outcome = start(0x1000, {0xC8000: ROM}, kernel=patched(SiteFlag.RECOVERED))
    assert outcome.table.header.status == Status.ACTIVE
    assert outcome.table.header.unconnected & SiteFlag.RECOVERED
    assert not connected(outcome)[out_site(outcome)]


@pytest.mark.parametrize(
    ("version", "promises", "kept"),
    [(1, Promise.FAULTS_AT_CALL, True), (1, 0xFFFE, False), (2, Promise.FAULTS_AT_CALL, False)],
)
def test_a_promise_of_the_rom_connects_them_but_for_those_with_an_adaptor(
    version: int, promises: int, kept: bool
) -> None:
    rom = bytearray(fake_rom({name: (Reloc.CALL_REL, 0x200) for name in ("OUTB", "WBINVD")}))
    at = layout.CALL_TABLE
    rom[at : at + 5] = CallTable.MAGIC + bytes([version])
    rom[at + CallTable.PROMISES : at + CallTable.TYPES] = promises.to_bytes(2, "little")
    rom[-1] = (rom[-1] - sum(rom)) & 0xFF
    outcome = start(0x1000, {0xC8000: bytes(rom)}, kernel=patched(SiteFlag.RECOVERED, ("out", "wbinvd")))
    assert bool(outcome.table.header.unconnected & SiteFlag.RECOVERED) == (not kept)
    records = {r.site - 0x1000: r for r in outcome.table.sites if r.flags & SiteFlag.RECOVERED}
    made = connected(outcome)
    assert {bool(r.adaptor): made[site] for site, r in records.items()} == {True: False, False: kept}


def test_slots_of_isolated_code_stay_native() -> None:
    outcome = start(0x1000, {0xC8000: ROM}, kernel=patched(SiteFlag.ISOLATED))
    assert outcome.table.header.unconnected & SiteFlag.ISOLATED
    assert not connected(outcome)[out_site(outcome)]


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.integers(0, 0x1C00 // 4), max_size=60),
    st.sampled_from([0, 1, 2, 3]),
    st.integers(-0x40, 0x80).map(lambda pages: pages * 0x1000),
)
def test_any_list_is_applied_as_its_reference_says(numbers: set[int], off: int, displacement: int) -> None:
    words = tuple(DATA + number * 4 + off for number in sorted(numbers))
    code = assemble(SOURCE, VADDR).code.ljust(0x40, b"\x90")
    data = bytes((n * 7 + 1) & 0xFF for n in range(0x1C10))
    pieces = [Piece(VADDR, code, 0, 5, PADDR, ".text"), Piece(DATA, data, 0x2000, 6, PADDR + 0x1000)]
    image = replace(elf.load(make(Plan(pieces, PADDR, stack_header=False))), displaced=(VADDR + 2, *words))
    emission = emit(
        replace(make_plan(image), windows=(), slots=(), placements=()), place(image, Choice(protocol=0x20F))
    )
    output = write(emission)
    expected = bytearray(data)
    expected[:4] = b"\x44\x33\x22\x11"
    for word in words:
        at = word - DATA
        value = int.from_bytes(expected[at : at + 4], "little") + displacement
        expected[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
    cpu = Uc(UC_ARCH_X86, UC_MODE_32)
    cpu.mem_map(0, RAM)
    for segment in elf.load(output, patched=True).segments:
        cpu.mem_write(segment.paddr + displacement, segment.data)
    cpu.mem_write(PADDR + 0x1000 + displacement, b"\x44\x33\x22\x11")
    cpu.reg_write(UC_X86_REG_ESI, BOOT_PARAMS)
    assert emission.first is not None
    cpu.emu_start(PADDR + displacement, emission.first.start - BIAS + displacement, count=2_000_000)
    assert bytes(cpu.mem_read(PADDR + 0x1000 + displacement, len(data))) == bytes(expected)


def test_addresses_in_adaptors_move_along() -> None:
    """`lgdt` of a fixed address: the adaptor holds that address, and the kernel's list names it."""
    source = "mov ecx, dword ptr [0x401000]\nlgdt [0x401010]\nret"
    code = assemble(source, VADDR).code.ljust(0x40, b"\x90")
    pieces = [Piece(VADDR, code, 0, 5, PADDR, ".text"), Piece(DATA, bytes(64), 0x1234, 6, PADDR + 0x1000)]
    image = elf.load(make(Plan(pieces, PADDR, stack_header=False)))
    image = replace(image, displaced=(VADDR + 2, VADDR + 9, DATA))
    emission = emit(make_plan(image, adaptors.refusal), place(image, Choice(protocol=0x20F)))
    output = write(emission)
    verify(emission, output)
    (placed,) = emission.adaptors
    (at,) = placed.words
    assert placed.adaptor.code[at : at + 4] == (0x401010).to_bytes(4, "little")
    assert placed.address + at in emission.displaced
    outcome = start(0x1000, kernel=(emission, output))
    assert outcome.read(placed.address + at, 4) == (0x402010).to_bytes(4, "little")
