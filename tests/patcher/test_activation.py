# SPDX-License-Identifier: GPL-2.0-only
"""The activation code on a processor: without a ROM, with good ones, with every kind of bad one."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Decoder
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

from tests.patcher.elfs import PADDR, VADDR, small_kernel
from vmi import abi
from vmi.abi import Reloc
from vmi.patcher import Patched, elf, patch
from vmi.patcher.inspect import site_table
from vmi.patcher.place import COMMAND_LINE_SIZE
from vmi.rom.assemble import assemble
from vmi.rom.build import build
from vmi.sitetable import INLINE, MapStatus, SiteFlag, SiteTable, Status, header_offset

RAM = 0x400000
BIAS = VADDR - PADDR
MBI, MAP, COMMAND_LINE = 0x9000, 0x9100, 0x8000
LOADED = 0x2BADB002
REGISTERS = {
    "eax": (UC_X86_REG_EAX, LOADED),
    "ebx": (UC_X86_REG_EBX, MBI),
    "ecx": (UC_X86_REG_ECX, 0x11111111),
    "edx": (UC_X86_REG_EDX, 0x22222222),
    "esi": (UC_X86_REG_ESI, 0x33333333),
    "edi": (UC_X86_REG_EDI, 0x44444444),
    "ebp": (UC_X86_REG_EBP, 0x55555555),
}
Entry = tuple[int, int, int]  # base, length, type
USUAL_MAP: list[Entry] = [
    (0, 0x9FC00, 1),
    (0x9FC00, 0x400, 2),
    (0xF0000, 0x10000, 2),
    (0x100000, 0x3F00000, 1),
    (0xFFFC0000, 0x40000, 2),
]


@cache
def patched() -> Patched:
    return patch(small_kernel())


@cache
def layout() -> tuple[int, SiteTable]:
    """Virtual address of the segment, and its tables."""
    home = elf.vmi_segment(elf.load(patched().data, patched=True))
    assert home is not None
    return home.vaddr, site_table(home)


def fake_rom(answers: dict[str, tuple[Reloc, int]], init: str = "xor eax, eax", size: int = 2048) -> bytes:
    """A ROM that gives these answers (type, offset of the entry in the ROM) and NONE for the rest."""
    rows = []
    for call in abi.CALLS:
        kind, offset = answers.get(call.name, (Reloc.NONE, 0))
        rows.append(f".word {offset}\n.word {int(kind)}")
    source = f"""
        .byte 0x55, 0xaa, {size // 512}
        .zero 5
        .ascii "cVmi"
        .byte 0, 3
        .zero 8
        .word {{licence}}
        .word 0x60
        .zero 102
        jmp init
        .zero 3
        jmp get_reloc
        .zero 3
    licence:
        .ascii "GPL v2\\0"
    init:
        {init}
        ret
    get_reloc:
        call here
    here:
        pop ecx
        lea ecx, [ecx - here]
        movzx edx, word ptr [ecx+eax*4+table+2]
        movzx eax, word ptr [ecx+eax*4+table]
        add eax, ecx
        ret
    table:
        {chr(10).join(rows)}
    """
    source = source.replace("[ecx - here]", "[ecx-{here}]").replace("+table", "+{table}")
    return checked(assemble(source).code.ljust(size, b"\0"))


def checked(image: bytes) -> bytes:
    """The image with its last byte set so that all bytes add up to 0."""
    return image[:-1] + bytes([-sum(image[:-1]) & 0xFF])


@dataclass
class Outcome:
    """What the kernel finds when its own first instruction runs."""

    cpu: Uc
    before: bytes  # RAM when activation started

    def read(self, vaddr: int, size: int) -> bytes:
        return bytes(self.cpu.mem_read(vaddr - BIAS, size))

    def word(self, name: str) -> int:
        (value,) = struct.unpack("<I", self.read(layout()[0] + header_offset(name), 4))
        assert isinstance(value, int)
        return value

    @property
    def status(self) -> Status:
        return Status(self.word("status"))

    @property
    def map_status(self) -> MapStatus:
        return MapStatus(self.word("map_status"))

    def memory_map(self) -> list[Entry]:
        flags, *_ = struct.unpack("<I", self.cpu.mem_read(MBI, 4))
        assert flags & 0x40
        length, at = struct.unpack("<II", self.cpu.mem_read(MBI + 44, 8))
        entries, end = [], at + length
        while at < end:
            size, base, size64, kind = struct.unpack("<IQQI", self.cpu.mem_read(at, 24))
            entries.append((base, size64, kind))
            at += size + 4
        return entries


def start(
    roms: dict[int, bytes],
    entries: list[Entry] | None = None,
    extra: int = 0,
    command_line: bytes | None = None,
    eax: int = LOADED,
    flags: int = 2,
) -> Outcome:
    """Load the patched kernel as a boot loader does and run it to its original entry point."""
    cpu = Uc(UC_ARCH_X86, UC_MODE_32)
    cpu.mem_map(0, RAM)
    image = elf.load(patched().data, patched=True)
    for segment in image.segments:
        cpu.mem_write(segment.paddr, segment.data)
    for address, rom in roms.items():
        cpu.mem_write(address, rom)
    packed = b"".join(
        struct.pack("<IQQI", 20 + extra, *entry) + bytes(max(extra, 0)) for entry in (entries or [])
    )
    present = (0x40 if entries is not None else 0) | (0x04 if command_line is not None else 0)
    cpu.mem_write(MBI, struct.pack("<I", present).ljust(44, b"\x77"))
    if command_line is not None:
        cpu.mem_write(MBI + 16, struct.pack("<I", COMMAND_LINE))
        cpu.mem_write(COMMAND_LINE, command_line)
    cpu.mem_write(MBI + 44, struct.pack("<II", len(packed), MAP))
    cpu.mem_write(MAP, packed)
    for number, value in REGISTERS.values():
        cpu.reg_write(number, value)
    cpu.reg_write(UC_X86_REG_EAX, eax)
    cpu.reg_write(UC_X86_REG_ESP, 0)  # boot loaders promise nothing
    cpu.reg_write(UC_X86_REG_EFLAGS, flags)
    before = bytes(cpu.mem_read(0, RAM))
    cpu.emu_start(image.entry - BIAS, PADDR, count=2_000_000)
    assert cpu.reg_read(UC_X86_REG_EIP) == PADDR
    for name, (number, value) in REGISTERS.items():
        assert cpu.reg_read(number) == (eax if name == "eax" else value), name
    assert cpu.reg_read(UC_X86_REG_ESP) == layout()[1].header.stack_top - BIAS
    assert cpu.reg_read(UC_X86_REG_EFLAGS) == flags
    return Outcome(cpu, before)


def assert_native(outcome: Outcome) -> None:
    """Nothing changed but the segment's status words and stack: no code, no table, not the kernel."""
    base, tables = layout()
    after = bytes(outcome.cpu.mem_read(0, RAM))
    for start_at, end in ((0, base), (tables.header.sites, BIAS + RAM)):
        low, high = max(start_at - BIAS, 0), end - BIAS
        assert after[low:high] == outcome.before[low:high]


def test_without_a_rom_the_kernel_gets_what_the_loader_gave() -> None:
    outcome = start({}, flags=0x2 | 0x8D5)
    assert outcome.status is Status.NATIVE
    assert outcome.map_status is MapStatus.NO_MAP
    assert outcome.word("rom_base") == 0
    assert_native(outcome)


def test_a_kernel_of_another_boot_protocol_keeps_its_registers() -> None:
    outcome = start({}, USUAL_MAP, eax=0x12345678)
    assert outcome.map_status is MapStatus.UNTOUCHED
    assert outcome.memory_map() == USUAL_MAP


@pytest.mark.parametrize("address", [0xC0000, 0xC8800, 0xD0000, 0xDE800])
def test_a_rom_is_found_and_the_slots_are_connected(address: int) -> None:
    rom = build("native")
    outcome = start({address: rom.image}, USUAL_MAP)
    assert outcome.status is Status.ACTIVE
    assert outcome.word("rom_base") == address
    _, tables = layout()
    reserve = tables.header.rom_reserve
    assert outcome.read(reserve, len(rom.image)) == rom.image
    offered = {n: offset for n, (kind, offset) in enumerate(rom.calls) if kind is Reloc.CALL_REL}
    seen = set()
    for record in tables.sites:
        code = outcome.read(record.slot, record.length)
        if record.call not in offered and record.call != INLINE:
            assert code == outcome.before[record.slot - BIAS :][: record.length]
            continue
        target = record.slot + 5 + struct.unpack_from("<i", code, 1)[0]
        assert code[0] == 0xE8
        assert target == (record.adaptor or reserve + offered[record.call])
        seen.add(record.call)
        assert code[5:] == b"\x90" * (record.length - 5)
    assert INLINE in seen and len(seen) > 5
    for link in tables.links:
        code = outcome.read(link.address, 5)
        assert code[0] == 0xE8
        target = link.address + 5 + struct.unpack_from("<i", code, 1)[0]
        assert target == reserve + offered[link.call]


def test_every_relocation_type_is_obeyed() -> None:
    rom = fake_rom(
        {
            "DisableInterrupts": (Reloc.NOP, 0),
            "SetCR3": (Reloc.NOP, 0),
            "GetCR3": (Reloc.NOP, 0),  # has a result: stays native
            "INB": (Reloc.JUMP_REL, 0x100),  # comes back: stays native
            "OUTB": (Reloc.CALL_REL, 0x234),
            "SetInterruptMask": (Reloc.CALL_REL, 0x345),
        }
    )
    outcome = start({0xC8000: rom}, USUAL_MAP)
    assert outcome.status is Status.ACTIVE
    _, tables = layout()
    seen = set()
    for record in tables.sites:
        code = outcome.read(record.slot, record.length)
        native = outcome.before[record.slot - BIAS :][: record.length]
        name = "inline" if record.call == INLINE else abi.CALLS[record.call].name
        seen.add(name)
        if name in ("DisableInterrupts", "SetCR3"):
            assert record.flags & SiteFlag.NOP_OK
            assert code == b"\x90" * record.length
        elif name in ("OUTB", "SetInterruptMask", "inline"):
            assert code[0] == 0xE8
        else:
            assert code == native, name
    assert {"DisableInterrupts", "SetCR3", "GetCR3", "INB", "OUTB", "SetInterruptMask", "inline"} <= seen
    for link in tables.links:
        linked = outcome.read(link.address + 1, 4) != bytes(4)
        assert linked == (abi.CALLS[link.call].name in ("OUTB", "SetInterruptMask"))


def spoiled(offset: int, value: bytes) -> bytes:
    image = bytearray(build("native").image)
    image[offset : offset + len(value)] = value
    return checked(bytes(image))


BAD_ROMS = {
    "option ROM signature": spoiled(0, b"\x55\xab"),
    "VMI signature": spoiled(8, b"cVmj"),
    "API major": spoiled(13, b"\x0d"),
    "length 0": spoiled(2, b"\0"),
    "no PCI header": spoiled(0x18, b"\0\0"),
    "no licence": spoiled(0x16, b"\0\0"),
    "licence beyond the image": spoiled(0x16, b"\xfe\xff"),
    "another licence": build("native").image.replace(b"GPL v2\0", b"GPL v3\0"),
    "checksum": build("native").image[:-1] + bytes([build("native").image[-1] ^ 1]),
}
BAD_ROMS["another licence"] = checked(BAD_ROMS["another licence"])


@pytest.mark.parametrize("why", BAD_ROMS)
def test_a_bad_rom_is_passed_over(why: str) -> None:
    outcome = start({0xC8000: BAD_ROMS[why]})
    assert outcome.status is Status.NATIVE
    assert outcome.word("rom_base") == 0
    assert_native(outcome)


def test_the_search_goes_on_after_a_bad_rom() -> None:
    outcome = start({0xC0000: BAD_ROMS["API major"], 0xD8000: build("native").image})
    assert outcome.status is Status.ACTIVE
    assert outcome.word("rom_base") == 0xD8000


def test_a_rom_outside_the_search_range_is_not_seen() -> None:
    outcome = start({0xBF800: build("native").image, 0xE0000: build("native").image})
    assert outcome.status is Status.NATIVE


def test_the_shorter_licence_string_is_accepted() -> None:
    rom = checked(build("native").image.replace(b"GPL v2\0", b"GPL\0 v2"))
    assert start({0xC8000: rom}).status is Status.ACTIVE


def test_a_rom_that_fails_to_start_leaves_the_kernel_native() -> None:
    outcome = start({0xC8000: fake_rom({"OUTB": (Reloc.CALL_REL, 0x234)}, init="mov eax, 1")})
    assert outcome.status is Status.REFUSED
    assert outcome.word("rom_base") == 0xC8000
    assert_native(outcome)


def test_a_rom_larger_than_its_space_leaves_the_kernel_native() -> None:
    outcome = start({0xC8000: fake_rom({}, size=0x4800)})
    assert outcome.status is Status.TOO_LARGE
    assert_native(outcome)
    assert start({0xC8000: fake_rom({}, size=0x4000)}).status is Status.ACTIVE


def test_init_gets_the_header_and_may_change_registers() -> None:
    """EAX, ECX, EDX and flags are the ROM's to change; EBX holds the header's address."""
    base = layout()[0] - BIAS
    init = f"cmp ebx, {base}\nmov ecx, 7\nmov edx, 8\nmov eax, 0\nje fine\nmov eax, 5\nfine:"
    assert start({0xC8000: fake_rom({}, init=init)}).status is Status.ACTIVE


# --- the memory map -----------------------------------------------------------------------------


def segment_range() -> tuple[int, int]:
    base, tables = layout()
    return base - BIAS, base - BIAS + tables.header.size


def test_the_segment_is_taken_out_of_the_memory_map() -> None:
    low, high = segment_range()
    outcome = start({}, USUAL_MAP)
    assert outcome.map_status is MapStatus.CARVED
    assert outcome.memory_map() == [
        *USUAL_MAP[:3],
        (0x100000, low - 0x100000, 1),
        (low, high - low, 2),
        (high, 0x4000000 - high, 1),
        USUAL_MAP[4],
    ]
    assert bytes(outcome.cpu.mem_read(MBI, 44)) == outcome.before[MBI : MBI + 44]
    assert bytes(outcome.cpu.mem_read(MAP, 0x200)) == outcome.before[MAP : MAP + 0x200]


def kind_at(entries: list[Entry], address: int) -> int:
    """Type of the memory at an address: a later entry doesn't overrule a reserved one."""
    found = [kind for base, length, kind in entries if base <= address < base + length]
    return max(found, default=0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 0x200), st.integers(0xFF000, 0x100200)),
            st.one_of(st.integers(0, 0x200), st.integers(0, 1 << 21)),
            st.sampled_from([1, 1, 1, 2, 3]),
        ),
        max_size=8,
    ),
    st.sampled_from([0, 4, 12]),
)
def test_any_map_says_the_same_outside_the_segment(pages: list[Entry], extra: int) -> None:
    low, high = segment_range()
    entries = [(base * 0x1000 + 0x800 * (kind == 3), size * 0x1000, kind) for base, size, kind in pages]
    outcome = start({}, entries, extra=extra)
    found = outcome.memory_map()
    edges = {edge + step for base, size, _ in entries for edge in (base, base + size) for step in (-1, 0)}
    edges |= {low - 1, low, (low + high) // 2, high - 1, high}
    for address in edges:
        old, new = kind_at(entries, address), kind_at(found, address)
        if low <= address < high and old == 1:
            assert new == 2
        else:
            assert new == old
    carved = any(
        kind == 1 and base < min(high, 1 << 32) and base + size > low for base, size, kind in entries
    )
    assert outcome.map_status is (MapStatus.CARVED if carved else MapStatus.NOT_CARVED)


@pytest.mark.parametrize("count", [70, 200])
def test_a_map_too_long_for_the_buffer_is_left_alone(count: int) -> None:
    entries = [(n * 0x1000, 0x1000, 2) for n in range(count)] + [(0x100000, 0x300000, 1)]
    outcome = start({}, entries)
    assert outcome.map_status is (MapStatus.CARVED if count == 70 else MapStatus.NOT_CARVED)
    assert len(outcome.memory_map()) == len(entries) + (2 if count == 70 else 0)


def test_a_damaged_map_is_left_alone() -> None:
    outcome = start({}, [(0x100000, 0x300000, 1)], extra=-12)
    assert outcome.map_status is MapStatus.NOT_CARVED
    assert struct.unpack("<I", outcome.cpu.mem_read(MBI + 48, 4)) == (MAP,)


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 24, COMMAND_LINE_SIZE - 1])
def test_the_command_line_moves_to_the_end_of_the_segment(length: int) -> None:
    text = (b"console=com0 root=hd0 " * 100)[:length] + b"\0"
    outcome = start({}, USUAL_MAP, command_line=text)
    (at,) = struct.unpack("<I", outcome.cpu.mem_read(MBI + 16, 4))
    assert at == segment_range()[1] - COMMAND_LINE_SIZE
    assert bytes(outcome.cpu.mem_read(at, len(text))) == text
    assert outcome.map_status is MapStatus.CARVED


def test_a_command_line_that_does_not_fit_stays_where_it_is() -> None:
    text = b"x" * COMMAND_LINE_SIZE + b"\0"
    outcome = start({}, command_line=text)
    assert struct.unpack("<I", outcome.cpu.mem_read(MBI + 16, 4)) == (COMMAND_LINE,)
    assert bytes(outcome.cpu.mem_read(COMMAND_LINE, len(text))) == text
    _, high = segment_range()
    assert bytes(outcome.cpu.mem_read(high, 16)) == outcome.before[high : high + 16]


def test_activation_needs_no_privilege() -> None:
    """VMI_Init may return at CPL 1."""
    base, tables = layout()
    raw = elf.load(patched().data, patched=True).read(tables.header.activation_entry, 0x600)
    decoded = list(Decoder(32, raw.rstrip(b"\0") + b"\0", ip=base))
    assert len(decoded) > 100
    assert not [insn for insn in decoded if insn.is_privileged or insn.is_invalid]
