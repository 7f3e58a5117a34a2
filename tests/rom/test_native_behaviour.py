# SPDX-License-Identifier: GPL-2.0-only
"""ROM code does on a processor what its table promises: natively, at any address, with any segment base."""

from __future__ import annotations

import struct

import pytest
import unicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import x86_const as ux

from tests.rom.conftest import FREE_DESCRIPTOR, GDT, GPRS, MASK, USER_CODE, USER_DATA, Cpu, Outcome
from vmi import abi
from vmi.abi import Reloc
from vmi.rom.build import FLAVOURS, build

NATIVE = build("native")
# In place in the adapter window on 2 KiB boundaries, copied to RAM, in a higher half.
BASES = (0xC8000, 0xC0800, 0x200000, 0xC00DD800)
# (load address, base of CS, SS and DS)
PLACES = [(base, segments) for base in BASES for segments in (0, 0x300000, 0xC0000000)]
REGISTERS = st.fixed_dictionaries({name: st.integers(0, MASK) for name in GPRS})
BUFFER = 0x2000


def native(level: int = 0, base: int = 0xC8000, segments: int = 0) -> Cpu:
    return Cpu(NATIVE.image, base, level, segments)


def call(cpu: Cpu, name: str, *stack: int, **registers: int) -> Outcome:
    """Call an entry of the native ROM as a C caller does; stack arguments follow the return address."""
    outcome = cpu.run(cpu.rom(NATIVE.offset(name)), (cpu.landing, *stack), registers)
    assert outcome.landed and outcome.esp == cpu.stack + 4 & MASK, name
    return outcome


# --- GetRelocationInfo and VMI_Init ---------------------------------------------------------------


@pytest.mark.parametrize("flavour", sorted(FLAVOURS))
@pytest.mark.parametrize(("base", "segments"), PLACES)
def test_get_reloc_answers_every_number(flavour: str, base: int, segments: int) -> None:
    rom = build(flavour)
    cpu = Cpu(rom.image, base, 1, segments)
    for number in [*range(len(abi.CALLS) + 1), 255, 0x100, 0x7FFFFFFF, 1 << 31, MASK]:
        kept = {"ebx": 0x1111, "ebp": 0x2222, "esi": 0x3333, "edi": 0x4444}
        answer = cpu.run(
            cpu.rom(abi.GET_RELOC_OFFSET), (cpu.landing,), {**kept, "eax": number, "edx": MASK, "ecx": MASK}
        )
        assert answer.landed and answer.esp == cpu.stack + 4 & MASK
        kind, offset = rom.calls[number] if number < len(abi.CALLS) else (Reloc.NONE, 0)
        assert answer.gprs["edx"] == kind
        assert answer.gprs["eax"] == (cpu.rom(offset) if kind != Reloc.NONE else 0)
        assert {name: answer.gprs[name] for name in kept} == kept


@pytest.mark.parametrize(("base", "segments"), PLACES)
def test_native_init_succeeds_and_changes_nothing(base: int, segments: int) -> None:
    cpu = native(0, base, segments)
    before = {name: 0x1000 + index for index, name in enumerate(GPRS)}
    outcome = cpu.run(cpu.rom(abi.INIT_OFFSET), (cpu.landing,), before)
    assert outcome.landed and outcome.gprs == {**before, "eax": 0} and outcome.cs & 3 == 0


@pytest.mark.parametrize("flavour", sorted(FLAVOURS))
def test_bios_entry_returns_far_from_real_mode(flavour: str) -> None:
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16)
    uc.mem_map(0, 0x100000)
    uc.mem_write(0xC8000, build(flavour).image)
    uc.mem_write(0x20010, b"\xcd\x90")
    uc.mem_write(0x10FF0, struct.pack("<HH", 0x10, 0x2000))
    uc.reg_write(ux.UC_X86_REG_CS, 0xC800)
    uc.reg_write(ux.UC_X86_REG_SS, 0x1000)
    uc.reg_write(ux.UC_X86_REG_SP, 0xFF0)
    uc.reg_write(ux.UC_X86_REG_EAX, 0x12345678)
    ended: list[tuple[int, ...]] = []

    def interrupt(uc: unicorn.Uc, vector: int, _data: object) -> None:
        registers = (ux.UC_X86_REG_CS, ux.UC_X86_REG_IP, ux.UC_X86_REG_SP, ux.UC_X86_REG_EAX)
        ended.append((vector, *(uc.reg_read(register) for register in registers)))
        uc.emu_stop()

    uc.hook_add(unicorn.UC_HOOK_INTR, interrupt)
    uc.emu_start(0xC8003, 0xFFFFF, count=20)
    assert ended == [(0x90, 0x2000, 0x12, 0xFF4, 0x12340000)]


# --- Calls that are their instruction -------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(REGISTERS, st.sampled_from(PLACES), st.sampled_from([call for call in abi.CALLS]))
def test_registers_outside_the_contract_survive(
    registers: dict[str, int], place: tuple[int, int], row: abi.Call
) -> None:
    """Whatever a row does not name as result or clobber comes back, at any address."""
    safe = {"mov cr0,r", "mov cr3,r", "mov cr4,r", "lldt rm", "ltr rm", "wrmsr", "rdmsr", "rdpmc", "sti;hlt"}
    pointers = any(arg.type == "ptr" for arg in row.args)
    kind, offset = NATIVE.calls[row.number]
    if (
        kind == Reloc.NONE
        or pointers
        or safe & set(row.instructions)
        or not row.returns
        or row.name == "SetDR"
    ):
        return
    registers = {**registers, "ecx": registers["ecx"] & 15}
    cpu = native(0, *place)
    outcome = cpu.run(cpu.rom(offset), (cpu.landing,), registers)
    assert outcome.landed and outcome.esp == cpu.stack + 4 & MASK
    for name in row.preserves:
        assert outcome.gprs[name] == registers[name], name


@pytest.mark.parametrize(("base", "segments"), PLACES)
@pytest.mark.parametrize("enabled", [False, True])
def test_interrupt_flag_calls(base: int, segments: int, enabled: bool) -> None:
    cpu = native(0, base, segments)
    flags = 0x202 if enabled else 2

    def run(name: str, eax: int = 0) -> Outcome:
        return cpu.run(cpu.rom(NATIVE.offset(name)), (cpu.landing,), {"eax": eax}, eflags=flags)

    assert run("EnableInterrupts").eflags & 0x200
    assert not run("DisableInterrupts").eflags & 0x200
    assert run("GetInterruptMask").gprs["eax"] == flags & 0x200
    for mask in (0, 0x200, 0xFFFFFDFF, MASK):
        outcome = run("SetInterruptMask", mask)
        assert (outcome.eflags & 0x200, outcome.gprs["eax"]) == (mask & 0x200, mask)
        assert outcome.eflags & 0x7100 == 0  # IOPL, NT and TF are not the call's to change


@pytest.mark.parametrize("iopl", range(4))
def test_iopl_is_set_and_nothing_else(iopl: int) -> None:
    cpu = native()
    outcome = cpu.run(
        cpu.rom(NATIVE.offset("SetIOPLMask")), (cpu.landing,), {"eax": iopl << 12}, eflags=0x3202
    )
    assert outcome.eflags & 0x7300 == iopl << 12 | 0x200


def test_control_and_debug_registers() -> None:
    cpu = native()
    call(cpu, "SetCR2", eax=0x12345678)
    assert call(cpu, "GetCR2").gprs["eax"] == 0x12345678
    call(cpu, "SetCR0", eax=0x19)
    assert call(cpu, "GetCR0").gprs["eax"] & 9 == 9
    call(cpu, "CLTS")
    assert call(cpu, "GetCR0").gprs["eax"] & 9 == 1
    call(cpu, "SetCR4", eax=0x80)
    call(cpu, "SetCR3", eax=0x7000)
    for flags in (1, 3):
        call(cpu, "FlushTLB", eax=flags)
        assert call(cpu, "GetCR4").gprs["eax"] & 0x80
        assert call(cpu, "GetCR3").gprs["eax"] == 0x7000
    call(cpu, "WBINVD")
    call(cpu, "InvalPage", eax=0x5000)


@pytest.mark.parametrize("place", PLACES)
def test_each_debug_register_is_reached(place: tuple[int, int]) -> None:
    cpu = native(0, *place)
    for number in (0, 1, 2, 3, 6):
        call(cpu, "SetDR", eax=number, edx=0x1000 * number)
    values = [call(cpu, "GetDR", eax=number).gprs["eax"] for number in (0, 1, 2, 3, 6)]
    assert values[:4] == [0, 0x1000, 0x2000, 0x3000]
    assert cpu.uc.reg_read(ux.UC_X86_REG_DR6) == values[4]


def test_table_registers() -> None:
    cpu = native()
    cpu.uc.mem_write(BUFFER, struct.pack("<HI", 0x4F, GDT))
    call(cpu, "SetGDT", eax=BUFFER)
    cpu.uc.mem_write(BUFFER, struct.pack("<HI", 0x7FF, 0x3000))
    call(cpu, "SetIDT", eax=BUFFER)
    call(cpu, "GetIDT", eax=BUFFER + 8)
    call(cpu, "GetGDT", eax=BUFFER + 16)
    assert bytes(cpu.uc.mem_read(BUFFER + 8, 6)) == struct.pack("<HI", 0x7FF, 0x3000)
    assert bytes(cpu.uc.mem_read(BUFFER + 16, 6)) == struct.pack("<HI", 0x4F, GDT)
    # A local table and a task segment, written as the guest would through the calls.
    call(cpu, "WriteGDTEntry", 0x00008200, eax=GDT, edx=FREE_DESCRIPTOR, ecx=0x40000007)
    call(cpu, "WriteGDTEntry", 0x00008900, eax=GDT, edx=FREE_DESCRIPTOR + 1, ecx=0x50000067)
    assert cpu.read_words(GDT + 8 * FREE_DESCRIPTOR, 2) == (0x40000007, 0x00008200)
    call(cpu, "SetLDT", eax=0xABCD0040)
    call(cpu, "SetTR", eax=0xABCD0048)
    assert call(cpu, "GetLDT", eax=MASK).gprs["eax"] == 0x40
    assert call(cpu, "GetTR", eax=MASK).gprs["eax"] == 0x48


def test_page_table_stores() -> None:
    cpu = native()
    cpu.write_words(BUFFER, MASK, MASK, MASK, MASK)
    call(cpu, "SetPxE", eax=0x12345067, edx=BUFFER, ecx=1)
    call(cpu, "SetPxELong", 1, eax=0x89ABC067, edx=1, ecx=BUFFER + 8)
    assert cpu.read_words(BUFFER, 4) == (0x12345067, MASK, 0x89ABC067, 1)
    for name in ("UpdatePxE", "UpdatePxELong"):
        call(cpu, name, eax=BUFFER, edx=1)
    assert call(cpu, "PhysicalToMachine", eax=77).gprs["eax"] == 77


@pytest.mark.parametrize("flavour", ["native", "vmware"])
@pytest.mark.parametrize(("letter", "size"), [("L", 4), ("B", 1), ("W", 2)])
def test_port_calls(flavour: str, letter: str, size: int) -> None:
    rom = build(flavour)
    cpu = Cpu(rom.image, 0xC8000)
    mask = (1 << 8 * size) - 1
    cpu.port_value = 0x89ABCDEF & mask
    value = 0xFEDCBA98

    def run(name: str, **registers: int) -> Outcome:
        outcome = cpu.run(cpu.rom(rom.offset(name)), (cpu.landing,), registers)
        assert outcome.landed
        return outcome

    read = run(f"IN{letter}", eax=value, edx=0x3F8, ecx=7)
    assert read.ports == [("in", 0x3F8, size, cpu.port_value)]
    assert read.gprs["eax"] == value & ~mask & MASK | cpu.port_value
    assert (read.gprs["edx"], read.gprs["ecx"]) == (0x3F8, 7)
    write = run(f"OUT{letter}", eax=value, edx=0x3F8)
    assert write.ports == [("out", 0x3F8, size, value & mask)] and write.gprs["eax"] == value
    for count in (0, 3):
        cpu.uc.mem_write(BUFFER, bytes(range(16)))
        out = run(f"OUTS{letter}", esi=BUFFER, edx=0x1F0, ecx=count)
        data = bytes(range(16))
        assert out.ports == [
            ("out", 0x1F0, size, int.from_bytes(data[n * size : n * size + size], "little"))
            for n in range(count)
        ]
        assert (out.gprs["esi"], out.gprs["ecx"]) == (BUFFER + count * size, 0)
        into = run(f"INS{letter}", edi=BUFFER, edx=0x1F0, ecx=count)
        assert len(into.ports) == count
        assert (into.gprs["edi"], into.gprs["ecx"]) == (BUFFER + count * size, 0)
        stored = bytes(cpu.uc.mem_read(BUFFER, 16))
        assert stored == cpu.port_value.to_bytes(size, "little") * count + data[count * size :]


def test_counters_and_identification() -> None:
    cpu = native()
    assert call(cpu, "CPUID", eax=0).gprs["eax"] >= 1
    first, second = (call(cpu, "RDTSC").gprs for _ in range(2))
    assert (second["edx"], second["eax"]) >= (first["edx"], first["eax"])


# --- Calls that leave -----------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_native_iret_to_the_same_ring_and_to_user_mode(place: tuple[int, int]) -> None:
    cpu = native(0, *place)
    registers = {name: 0xA000 + index for index, name in enumerate(GPRS)}
    entry = cpu.rom(NATIVE.offset("IRET"))
    same = cpu.run(entry, (0xDEAD, cpu.landing, 0x08, 0x202), registers)
    assert same.landed and same.gprs == registers
    assert (same.cs, same.esp, same.eflags & 0x200) == (0x08, cpu.stack + 16 & MASK, 0x200)
    user = cpu.run(entry, (0xDEAD, cpu.user_landing, USER_CODE, 0x202, 0x3000, USER_DATA), registers)
    assert user.landed and user.gprs == registers
    assert (user.cs, user.ss, user.esp) == (USER_CODE, USER_DATA, 0x3000)


def test_native_sysexit_enables_interrupts_and_leaves() -> None:
    cpu = native()
    cpu.uc.msr_write(0x174, 0x18)  # user CS 28h, SS 30h: the test's segments
    outcome = cpu.run(
        cpu.rom(NATIVE.offset("SYSEXIT")), (0xDEAD,), {"edx": cpu.user_landing, "ecx": 0x3000, "eax": 5}
    )
    assert outcome.landed
    assert (outcome.cs, outcome.ss, outcome.esp) == (0x2B, 0x33, 0x3000)
    assert outcome.eflags & 0x200 and outcome.gprs["eax"] == 5


def test_native_halt_waits_with_interrupts_on() -> None:
    cpu = native()
    entry = cpu.rom(NATIVE.offset("Halt"))
    with pytest.raises(AssertionError, match="neither came back nor called out"):
        cpu.run(entry, (cpu.landing,))
    assert cpu.uc.reg_read(ux.UC_X86_REG_EFLAGS) & 0x200
    assert cpu.uc.reg_read(ux.UC_X86_REG_EIP) == entry + 2


def test_native_code_writes_nothing_of_its_own() -> None:
    """No call writes to the ROM: an image in write-protected shadow RAM works."""
    for row in abi.CALLS:
        kind, offset = NATIVE.calls[row.number]
        if kind == Reloc.NONE or not row.returns or row.name in ("Halt", "RDPMC", "SetLDT", "SetTR", "WRMSR"):
            continue
        cpu = native()
        cpu.uc.mem_protect(cpu.rom_page, 0x1000, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        registers = dict.fromkeys(GPRS, BUFFER) | {"ecx": 1}
        if row.name in ("SetCR0", "SetCR3", "SetCR4", "SetPxELong"):
            registers = {
                "eax": cpu.uc.reg_read(ux.UC_X86_REG_CR0) if row.name == "SetCR0" else 0,
                "ecx": BUFFER,
            }
        if row.name in ("WriteGDTEntry", "WriteLDTEntry", "WriteIDTEntry"):
            registers["edx"] = 0
        assert cpu.run(cpu.rom(offset), (cpu.landing,), registers).landed, row.name
