# SPDX-License-Identifier: GPL-2.0-only
"""What clients take for granted about a ROM and its answers, though the interface nowhere says so.

Each test is one way in which a ROM that looks right brings a kernel down.
"""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import LANDING, Lab, call
from tests.native.guest import CODE, STACK
from vmi import abi
from vmi.abi import Bind, Reloc
from vmi.native.boot.memory_map import memory_map
from vmi.native.machine import ROM_ALIGN, ROM_BAY, Machine
from vmi.rom.build import FLAVOURS, Rom, build
from vmi.rom.layout import PciData, RomHeader

NAMES = sorted(FLAVOURS)
PAGE_OFFSET = 0xC0000000


def kinds(rom: Rom) -> dict[str, Reloc]:
    return {row.name: kind for row, (kind, _) in zip(abi.CALLS, rom.calls, strict=True)}


# -- found and accepted ------------------------------------------------------------------------


def accepted(image: bytes) -> bool:
    """A client's own look at an image: the least it checks, in its order."""
    header = RomHeader.parse(image)
    if header.rom_signature != 0xAA55 or image[8:12] != b"cVmi" or header.api_version_maj != 3:
        return False
    if not header.pci_header_offs:
        return False
    licence = image[header.license_offs :].split(b"\0")[0] if header.license_offs else b"unspecified"
    return licence in (b"GPL", b"GPL v2")


@pytest.mark.parametrize("name", NAMES)
def test_a_client_accepts_it_by_version_licence_and_pci_header(name: str) -> None:
    image = build(name).image
    assert accepted(image)
    pci = PciData.parse(image, RomHeader.parse(image).pci_header_offs)
    assert (pci.vendor_id, pci.device_id) == (0x15AD, 0x0801), "another only makes it warn"


@pytest.mark.parametrize("name", NAMES)
def test_fields_that_other_versions_of_the_header_use_are_0(name: str) -> None:
    """Data pages at 0Eh, offsets of structures at 10h and 14h: an older client would believe them."""
    image = build(name).image
    assert image[0x0E] == len(abi.CALLS), "the number of slots, which today's client does not read"
    assert not any(image[0x0F:0x16]) and not any(image[0x1C:0x80])


@pytest.mark.parametrize("name", NAMES)
def test_it_lies_where_clients_look_and_outside_ram(name: str) -> None:
    machine = Machine(ram=1 << 20)
    image = build(name).image
    for _ in range(2):
        at = machine.plug(image)
        assert at % ROM_ALIGN == at % abi.SCAN_STEP == 0 and abi.SCAN_START <= at < abi.SCAN_END
        assert sum(image) % 256 == 0 and RomHeader.parse(image).size == len(image)
        for area in memory_map(16 << 20):
            assert area.kind != 1 or area.stop <= ROM_BAY.start or area.start >= ROM_BAY.stop


def high(name: str = "vmware") -> tuple[Lab, int]:
    """A guest that sees the bay, a ROM in it, at a linear address of its kernel; and that address."""
    lab = Lab("start: nop", mode="native", rom=build(name))
    at = lab.machine.plug(build(name).image)
    lab.page()
    lab.memory.put_u32(0x20000 + 4 * (PAGE_OFFSET >> 22), 0x21000 | 7)
    return lab, PAGE_OFFSET + at


def relocation(lab: Lab, base: int, number: int) -> tuple[int, int]:
    """GetRelocationInfo as a client asks: EAX and EDX."""
    lab.cpu.esp, lab.cpu.eax, lab.cpu.eip = STACK, number, base + abi.GET_RELOC_OFFSET
    lab.push(LANDING)
    assert lab.step_to(LANDING) and lab.cpu.esp == STACK
    return lab.cpu.eax, lab.cpu.edx


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_in_place_at_a_linear_address_it_was_not_made_for(name: str) -> None:
    """In memory that nobody can write, and nothing tries to; entries are linear, not offsets in the ROM."""
    lab, base = high(name)
    rom = build(name)
    for row in abi.CALLS:
        kind, offset = rom.calls[row.number]
        eip, info = relocation(lab, base, row.number)
        assert info == int(kind), "the three bytes above the type are 0"
        assert eip == (base + offset if kind is not Reloc.NONE else 0)
    assert lab.machine.exits["ROM write"] == 0


@pytest.mark.parametrize("number", [len(abi.CALLS), 0x7F, 0xFF, 0x100, 1 << 31, 0xFFFFFFFF])
def test_a_call_that_it_has_never_heard_of_is_not_offered(number: int) -> None:
    lab, base = high()
    assert relocation(lab, base, number) == (0, 0)


def test_its_answers_are_for_ever() -> None:
    """Before VMI_Init, after it, after each call, and for modules that come late."""
    lab = Lab("start: nop", mode="paravirt", taken=False)
    at = 0x100000

    def answers() -> list[tuple[int, int]]:
        return [relocation(lab, at, row.number) for row in abi.CALLS]

    first = answers()
    assert answers() == first
    lab.take()
    assert answers() == first
    for name in ("DisableInterrupts", "SetLazyMode", "GetCR0", "UpdateKernelStack"):
        assert call(lab, name, eax=0, edx=0).returned
    lab.cpu.eflags = 0x8D7
    assert answers() == first


# -- what may be answered ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_way_out_of_the_kernel_is_always_a_call_or_a_jump(name: str) -> None:
    """A client patches these sites only: left alone, they go through a pointer to nowhere."""
    for call_name in ("IRET", "SYSEXIT"):
        assert kinds(build(name))[call_name] in (Reloc.CALL_REL, Reloc.JUMP_REL)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_returns_is_a_jump(name: str) -> None:
    returning = [row.name for row in abi.CALLS if row.returns]
    assert all(kinds(build(name))[call_name] is not Reloc.JUMP_REL for call_name in returning)
    assert all(Reloc.JUMP_REL not in row.relocations for row in abi.CALLS if row.returns)


@pytest.mark.parametrize("name", NAMES)
def test_what_has_a_result_an_effect_or_is_a_sign_is_never_nothing(name: str) -> None:
    """A client would take what EAX holds for the result, never halt, or jump to 0 for a timer."""
    for row in abi.CALLS:
        if row.results or row.name == "Halt" or row.linux.bind is Bind.TIMER:
            assert Reloc.NOP not in row.relocations and kinds(build(name))[row.name] is not Reloc.NOP


@pytest.mark.parametrize("name", NAMES)
def test_the_timer_is_there_as_a_whole_or_not_at_all(name: str) -> None:
    """The first of these is the sign; a client calls the others without another look."""
    found = kinds(build(name))
    rest = {found[n] for n in ("GetCycleCounter", "SetAlarm", "CancelAlarm", "GetWallclockTime")}
    offered = found["GetCycleFrequency"] is not Reloc.NONE
    assert rest == ({Reloc.CALL_REL} if offered else {Reloc.NONE})


@pytest.mark.parametrize("name", NAMES)
def test_who_offers_to_set_long_entries_is_told_of_changes_too(name: str) -> None:
    found = kinds(build(name))
    assert found["SetPxELong"] is Reloc.NONE or found["UpdatePxELong"] is Reloc.CALL_REL


def test_a_client_that_wants_every_call_finds_it() -> None:
    """Some clients have no instruction to fall back on. Only what no call can be is left out."""
    missing = {name for name, kind in kinds(build("vmware")).items() if kind is not Reloc.CALL_REL}
    assert missing <= {"SetCallbacks", "SetInitialAPState"}


def test_an_entry_far_away_is_reached_by_a_relative_call() -> None:
    """From one end of the address space to the other: the distance wraps."""
    lab, base = high()
    entry, _ = relocation(lab, base, abi.BY_NAME["IODelay"].number)
    site = CODE + 0x900
    lab.cpu.write_memory(site, b"\xe8" + (entry - site - 5 & 0xFFFFFFFF).to_bytes(4, "little"))
    lab.cpu.eip, lab.cpu.esp = site, STACK
    assert lab.step_to(site + 5) and lab.cpu.esp == STACK
