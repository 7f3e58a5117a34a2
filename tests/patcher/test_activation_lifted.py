# SPDX-License-Identifier: GPL-2.0-only
"""Activation that moves its segment: on a processor, with all that boot loaders leave in its way."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_32, Uc
from unicorn.x86_const import UC_X86_INS_OUT, UC_X86_REG_EIP

from tests.patcher import greedy
from tests.patcher.elfs import PADDR
from tests.patcher.test_activation import LOADED, REGISTERS, USUAL_MAP, Entry, fake_rom, kind_at
from vmi.abi import BY_NAME, Reloc
from vmi.patcher import activation_lifted, elf, patch
from vmi.patcher.inspect import site_table
from vmi.patcher.model import Image
from vmi.patcher.place import COMMAND_LINE_SIZE
from vmi.sitetable import Header, MapStatus, Status, header_offset, parse_header

RAM = 0x400000
INFO, MAP, COMMAND_LINE = 0x9500, 0x9000, 0x8000
HLT_AFTER = 2_000_000  # instructions; far more than activation takes


@cache
def patched() -> tuple[Image, Header]:
    image = elf.load(patch(greedy.kernel()).data, patched=True)
    home = elf.vmi_segment(image)
    assert home is not None
    return image, site_table(home).header


def loaded_at() -> int:
    home = elf.vmi_segment(patched()[0])
    assert home is not None
    return home.paddr


def low() -> int:
    """Where the segment belongs."""
    header = patched()[1]
    return header.rom_reserve - 0x1000 - header.bias & 0xFFFFFFFF


def high() -> int:
    return low() + patched()[1].size


@dataclass
class Start:
    """What the boot loader gives."""

    info: int = INFO
    flags: int = 0x45
    lower: int = 639  # KiB
    map_at: int = MAP
    entries: tuple[Entry, ...] = tuple(USUAL_MAP)
    command_line_at: int = COMMAND_LINE
    command_line: bytes = b"kernel x\0"
    words: tuple[tuple[int, int], ...] = ()  # other words of the information, by offset
    memory: tuple[tuple[int, bytes], ...] = ()
    rom: bytes = b""
    eax: int = LOADED


@dataclass
class Outcome:
    cpu: Uc
    serial: bytes

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.cpu.mem_read(address, size))

    def word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 4), "little")

    @property
    def started(self) -> bool:
        header = patched()[1]
        entry = header.original_entry - header.bias & 0xFFFFFFFF
        return bool(self.cpu.reg_read(UC_X86_REG_EIP) == entry)

    @property
    def info(self) -> int:
        return int(self.cpu.reg_read(REGISTERS["ebx"][0]))

    @property
    def header(self) -> Header:
        return parse_header(self.read(low(), 0x1000))

    def memory_map(self) -> list[Entry]:
        at = self.word(self.info + 48)
        end, entries = at + self.word(self.info + 44), []
        while at < end:
            size, base, length, kind = struct.unpack("<IQQI", self.read(at, 24))
            entries.append((base, length, kind))
            at += size + 4
        return entries


def start(given_: Start) -> Outcome:
    image, header = patched()
    cpu, serial = Uc(UC_ARCH_X86, UC_MODE_32), bytearray()
    cpu.mem_map(0, RAM)
    for segment in image.segments:
        cpu.mem_write(segment.paddr, segment.data)
    packed = b"".join(struct.pack("<IQQI", 20, *entry) for entry in given_.entries)
    info = bytearray(116)
    struct.pack_into("<II", info, 0, given_.flags, given_.lower)
    struct.pack_into("<I", info, 16, given_.command_line_at)
    struct.pack_into("<II", info, 44, len(packed), given_.map_at)
    for at, value in given_.words:
        struct.pack_into("<I", info, at, value)
    writes = [(given_.command_line_at, given_.command_line), (given_.map_at, packed)]
    for at, content in [*writes, *given_.memory, (given_.info, bytes(info)), (0xC8000, given_.rom)]:
        cpu.mem_write(at, content)
    for name, (number, value) in REGISTERS.items():
        cpu.reg_write(number, {"eax": given_.eax, "ebx": given_.info}.get(name, value))

    def put(_cpu: Uc, _port: int, _size: int, value: int, _data: object) -> None:
        serial.append(value)

    cpu.hook_add(UC_HOOK_INSN, put, None, 1, 0, UC_X86_INS_OUT)
    entry = image.entry - header.bias - low() + loaded_at()
    cpu.emu_start(entry, header.original_entry - header.bias, count=HLT_AFTER)
    return Outcome(cpu, bytes(serial))


def assert_registers(outcome: Outcome, info: int = INFO, eax: int = LOADED) -> None:
    for name, (number, value) in REGISTERS.items():
        assert outcome.cpu.reg_read(number) == {"eax": eax, "ebx": info}.get(name, value), name


def assert_moved(outcome: Outcome) -> None:
    """All that nobody writes is where it belongs: records, adaptors, trampolines."""
    assert outcome.started
    image, header = patched()
    size = high() - (header.sites - header.bias) - COMMAND_LINE_SIZE & 0xFFFFFFFF
    assert outcome.read(header.sites - header.bias, size) == image.read(header.sites, size)


def test_the_segment_is_where_it_belongs_when_the_kernel_starts() -> None:
    outcome = start(Start())
    assert_moved(outcome)
    assert_registers(outcome)
    header = outcome.header
    assert (header.status, header.map_status) == (Status.NATIVE, MapStatus.CARVED)
    assert outcome.word(INFO + 4) == low() >> 10
    at = outcome.word(INFO + 16)
    assert at == high() - COMMAND_LINE_SIZE
    assert outcome.read(at, 9) == b"kernel x\0"
    assert outcome.memory_map() == [
        (0, low(), 1),
        (low(), high() - low(), 2),
        (high(), 0x9FC00 - high(), 1),
        *USUAL_MAP[1:],
    ]


def test_with_a_rom_the_slots_are_connected_to_the_copy() -> None:
    outcome = start(Start(rom=fake_rom({"OUTB": (Reloc.CALL_REL, 0x234)})))
    assert outcome.started
    assert (outcome.header.status, outcome.header.rom_base) == (Status.ACTIVE, 0xC8000)
    image, header = patched()
    home = elf.vmi_segment(image)
    assert home is not None
    reserve = header.rom_reserve - header.bias
    slots = [record for record in site_table(home).sites if record.call == BY_NAME["OUTB"].number]
    assert slots
    for record in slots:
        at = record.slot - header.bias
        assert outcome.read(at, 1) == b"\xe8"
        assert (at + 5 + outcome.word(at + 1)) & 0xFFFFFFFF == reserve + 0x234


def test_another_boot_protocol_is_none_of_its_business() -> None:
    outcome = start(Start(eax=0x12345678))
    assert_moved(outcome)
    assert_registers(outcome, eax=0x12345678)
    assert outcome.header.map_status == MapStatus.UNTOUCHED
    assert outcome.memory_map() == USUAL_MAP
    assert outcome.word(INFO + 4) == 639


def test_without_sizes_and_map_nothing_is_written_to_the_information() -> None:
    outcome = start(Start(flags=0))
    assert_moved(outcome)
    assert outcome.header.map_status == MapStatus.NO_MAP
    assert outcome.word(INFO + 4) == 639
    assert outcome.word(INFO + 16) == COMMAND_LINE


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_information_in_the_way_is_handed_over_all_the_same(data: st.DataObject) -> None:
    """Information, map and command line may lie anywhere around the place, apart from each other."""
    edge = st.sampled_from([low(), high(), low() + 0x4000])
    info, map_at, line = (
        (data.draw(edge) + data.draw(st.integers(-2, 1)) * 0x400 + n * 0x1200) & ~3 for n in range(3)
    )
    outcome = start(Start(info=info, map_at=map_at, command_line_at=line))
    assert_moved(outcome)
    inside = info < high() and info + activation_lifted.MBI_SIZE > low()
    assert (outcome.info == info) != inside
    assert_registers(outcome, outcome.info)
    if inside:
        assert low() < outcome.info < high()
    found = outcome.memory_map()
    for address in (0, low() - 1, low(), high() - 1, high(), 0x9FC00, PADDR):
        wanted = 2 if low() <= address < high() else kind_at(USUAL_MAP, address)
        assert kind_at(found, address) == wanted
    assert outcome.read(outcome.word(outcome.info + 16), 9) == b"kernel x\0"


# --- what the kernel can do without --------------------------------------------------------------


@pytest.mark.parametrize(("bit", "offset", "size"), activation_lifted.OPTIONAL)
def test_what_is_overwritten_and_not_needed_is_not_handed_over(bit: int, offset: int, size: int) -> None:
    for at, kept in ((low() - size, True), (low() - size + 1, False), (high() - 1, False), (high(), True)):
        outcome = start(Start(flags=0x45 | bit | 0x1000, words=((offset, at),)))
        assert_moved(outcome)
        assert outcome.word(INFO) == 0x1045 | (bit if kept else 0)


def section(address: int, size: int) -> bytes:
    return struct.pack("<10I", 1, 3, 0, address, 0, size, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("table", "rows", "kept"),
    [
        (0x30000, [(0x31000, 0x100), (0, 0), (0x32000, 0x100)], True),
        (0x30000, [(0x31000, 0x100), (0x31100, 0x60000)], False),
        (-40, [(0x31000, 0x100)], True),
        (-40, [(0x31000, 0x100), (0x31000, 0x100)], False),
    ],
)
def test_symbols_of_elf_files(table: int, rows: list[tuple[int, int]], kept: bool) -> None:
    """A negative address counts from where the segment goes."""
    at = table if table > 0 else low() + table
    content = b"".join(section(*row) for row in rows)
    words = ((28, len(rows)), (32, 40), (36, at), (40, 0))
    outcome = start(Start(flags=0x65, words=words, memory=((at, content),)))
    assert_moved(outcome)
    assert outcome.word(INFO) == (0x65 if kept else 0x45)


# --- what it can't ------------------------------------------------------------------------------


def modules(start_: int, end: int, text: int) -> bytes:
    return struct.pack("<4I", 0x200000, 0x201000, 0x7000, 0) + struct.pack("<4I", start_, end, text, 0)


LIST = ((20, 2), (24, 0x7100))
LONG_MAP = tuple((n * 0x1000, 0x1000, 2) for n in range(60))
BLOCKED = {
    "no memory there": Start(lower=511),
    "a module": Start(flags=0x4D, words=LIST, memory=((0x7100, modules(0x70000, 0x90000, 0x7000)),)),
    "a module's end": Start(flags=0x4D, words=LIST, memory=((0x7100, modules(0x20000, 0x7F001, 0x7000)),)),
    "a module's text": Start(
        flags=0x4D, words=LIST, memory=((0x7100, modules(0x210000, 0x211000, 0x7FFFF)),)
    ),
    "the list of modules": Start(
        flags=0x4D, words=((20, 2), (24, 0x7F000)), memory=((0x7F000, modules(0x210000, 0x211000, 0x7000)),)
    ),
    "a long map": Start(map_at=0x7E000, entries=LONG_MAP),
    "a long command line": Start(command_line_at=0x7E000, command_line=b"x" * 1500 + b"\0"),
}


@pytest.mark.parametrize("what", BLOCKED)
def test_what_must_not_be_overwritten_ends_the_start(what: str) -> None:
    outcome = start(BLOCKED[what])
    assert not outcome.started
    assert outcome.serial == activation_lifted.MESSAGE.encode() + b"\n"
    screen = outcome.read(0xB8000, 2 * len(activation_lifted.MESSAGE))
    assert screen[::2] == activation_lifted.MESSAGE.encode()
    assert outcome.word(loaded_at() + header_offset("map_status")) == MapStatus.BLOCKED
    assert outcome.read(low(), 4) != b"VMIS"


FREE = {
    "just enough memory": Start(lower=512),
    "modules": Start(flags=0x4D, words=LIST, memory=((0x7100, modules(0x210000, 0x211000, 0x7000)),)),
    "an empty module": Start(flags=0x4D, words=LIST, memory=((0x7100, modules(0x7F000, 0x7F000, 0x7000)),)),
    "a long map elsewhere": Start(map_at=0x20000, entries=LONG_MAP),
    "a long command line elsewhere": Start(command_line=b"x" * 1500 + b"\0"),
}


@pytest.mark.parametrize("what", FREE)
def test_the_same_things_elsewhere_do_no_harm(what: str) -> None:
    outcome = start(FREE[what])
    assert_moved(outcome)
    assert outcome.serial == b""
