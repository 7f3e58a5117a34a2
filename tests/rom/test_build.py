# SPDX-License-Identifier: GPL-2.0-only
"""Each flavour answers every call, lies where the map says, and is the same bytes every time."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from vmi import abi
from vmi.abi import Reloc
from vmi.errors import RomError
from vmi.rom import layout
from vmi.rom.build import FLAVOURS, MAX_SIZE, build, build_flavour
from vmi.rom.flavours import get, vmware
from vmi.rom.layout import CallTable, PciData, PnpData, RomHeader
from vmi.rom.template import absent, body, code, gate

EVERY = sorted(FLAVOURS)


@pytest.fixture(params=EVERY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_flavours_are_found_by_their_files() -> None:
    assert {"native", "vmware"} <= set(EVERY)
    assert all(get(name).name == name for name in EVERY)


def test_unknown_flavour_names_the_known_ones() -> None:
    with pytest.raises(RomError) as caught:
        build("xenon")
    assert str(caught.value) == f"there is no ROM flavour 'xenon'; known are {', '.join(EVERY)}"


def test_every_call_has_code_or_a_reason(name: str) -> None:
    flavour = get(name)
    assert set(flavour.templates) == {call.name for call in abi.CALLS}
    for call in abi.CALLS:
        template = flavour.template(call)
        assert template.relocation in call.relocations
        if template.relocation == Reloc.NONE:
            assert re.fullmatch(r"[A-Z].{20,}\.", template.reason), call
        else:
            assert template.source and not template.reason, call


def test_answers_follow_the_interface_rules(name: str) -> None:
    """What Linux takes for granted between calls."""
    kinds = {call.name: kind for call, (kind, _) in zip(abi.CALLS, build(name).calls, strict=True)}
    assert {call for call, kind in kinds.items() if kind == Reloc.JUMP_REL} <= {"IRET", "SYSEXIT"}
    if kinds["GetCycleFrequency"] != Reloc.NONE:
        timer = ("GetCycleCounter", "SetAlarm", "CancelAlarm", "GetWallclockTime")
        assert {kinds[call] for call in timer} == {Reloc.CALL_REL}
    if kinds["SetPxELong"] != Reloc.NONE:
        assert kinds["UpdatePxELong"] == Reloc.CALL_REL


def test_image_keeps_the_rules_of_a_rom(name: str) -> None:
    image = build(name).image
    header = RomHeader.parse(image)
    assert header.size == len(image) <= MAX_SIZE
    assert len(image) % layout.PAGE == 0
    assert layout.checksum(image) == 0
    assert image[:2] == b"\x55\xaa" and image[8:12] == b"cVmi"
    assert (header.api_version_maj, header.api_version_min) == (3, 0)
    assert layout.text_at(image, header.license_offs) in abi.LICENCES
    assert (
        header.virtual_top == header.reserved1 == header.reserved2 == header.rom_pad0 == header.rom_pad3 == 0
    )
    assert not any(header.reserved)
    assert header.pci_header_offs % 4 == 0 and header.pnp_header_offs % 16 == 0
    pci = PciData.parse(image, header.pci_header_offs)
    assert pci == PciData(chunks=len(image) // 512)
    pnp = PnpData.parse(image, header.pnp_header_offs)
    assert pnp.signature == b"$PnP"
    assert layout.checksum(image[header.pnp_header_offs :][: layout.PNP_SIZE]) == 0
    assert layout.text_at(image, pnp.product_offset) == f"VMI ROM, flavour {name}"


def test_call_table_in_the_image_says_what_build_says(name: str) -> None:
    rom = build(name)
    table = CallTable.parse(rom.image)
    assert table is not None
    assert tuple(table.entry(call.number) for call in abi.CALLS) == rom.calls
    assert table.entry(len(abi.CALLS)) == table.entry(-1) == (Reloc.NONE, 0)
    assert table.data_page == (rom.data_page or 0)


def test_data_page_is_the_last_and_far_from_code(name: str) -> None:
    """Whatever 2 KiB boundary the ROM starts on, no page holds both code and data."""
    rom = build(name)
    if rom.data_page is None:
        assert not get(name).words
        return
    assert rom.data_page == len(rom.image) - layout.PAGE and rom.data_page % layout.PAGE == 0
    assert not any(rom.image[rom.data_page - abi.SCAN_STEP :])
    assert all(0 <= offset < abi.SCAN_STEP and offset % 4 == 0 for offset in get(name).words.values())


def test_gates_are_four_bytes_each() -> None:
    image = build("vmware").image
    for number in range(vmware.PENDING_GATE + 1):
        offset = layout.gate_offset(number)
        leaves = number >= len(abi.CALLS) or vmware.FLAVOUR.template(abi.CALLS[number]).leaves
        assert image[offset : offset + 4].hex() == ("cd82c390" if leaves else "cccccccc")
        assert layout.gate_number(offset + 2) == number
    assert layout.gate_number(layout.GATES - 1) is None
    assert layout.gate_number(layout.gate_offset(vmware.PENDING_GATE + 1)) is None
    assert vmware.FLAVOUR.special_gates == ("init_gate", "pending_gate")


def test_offset_of_a_call_that_is_not_offered() -> None:
    assert build("native").offset("CPUID") == layout.SLOTS
    with pytest.raises(RomError, match=r"^flavour native does not offer Reboot$"):
        build("native").offset("Reboot")


def test_builds_are_the_same_bytes_in_every_process(name: str) -> None:
    again = build_flavour(get(name))
    assert again == build(name) and again.image == build(name).image
    script = f"import sys; from vmi.rom.build import build; sys.stdout.buffer.write(build({name!r}).image)"
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        assert run.stdout == build(name).image


NATIVE = get("native")
BAD_FLAVOURS = [
    (replace(NATIVE, name="ä"), "the flavour name 'ä' is not an ASCII identifier"),
    (replace(NATIVE, templates={}), "flavour native says nothing about call CPUID"),
    (
        replace(NATIVE, templates={**NATIVE.templates, "Frob": code("ret")}),
        "flavour native has a template for Frob, which is not a call",
    ),
    (
        replace(NATIVE, templates={**NATIVE.templates, "IRET": absent("It is not there.")}),
        "flavour native answers NONE for IRET, which allows CALL_REL, JUMP_REL",
    ),
    (
        replace(NATIVE, templates={**NATIVE.templates, "CPUID": absent("")}),
        "flavour native must give a reason for CPUID if it is not offered",
    ),
    (
        replace(NATIVE, templates={**NATIVE.templates, "CPUID": gate()}),
        "flavour native sends CPUID to a gate and has none",
    ),
    (
        replace(NATIVE, templates={**NATIVE.templates, "CLTS": code("nop\n" * 33)}),
        "flavour native can't be built: assembly line N '.org end_of_CLTS_slot, 204' is refused: "
        "address 0x7a0 is already behind, the code has reached 0x7a1",
    ),
    (
        replace(NATIVE, init="nop\n" * 9),
        "flavour native can't be built: assembly line N '.org 136, 204' is refused: "
        "address 0x88 is already behind, the code has reached 0x89",
    ),
    (
        replace(NATIVE, templates={**NATIVE.templates, "CLTS": body(".zero 20000")}),
        "flavour native makes a ROM of 24576 bytes, the most is 16384",
    ),
    (
        replace(NATIVE, words={"A": 0}, templates={**NATIVE.templates, "CLTS": body(".zero 3000")}),
        "flavour native has code up to 0x19a6, the end is 0x1800",
    ),
    (
        replace(NATIVE, name="n" * 300),
        f"the name of flavour {'n' * 300} is too long for the ROM's description",
    ),
]


@pytest.mark.parametrize(("flavour", "reason"), BAD_FLAVOURS, ids=range(len(BAD_FLAVOURS)))
def test_a_table_that_can_not_be_built_is_refused(flavour: vmware.Flavour, reason: str) -> None:
    with pytest.raises(RomError) as caught:
        build_flavour(flavour)
    assert re.sub(r"line \d+ ", "line N ", str(caught.value)) == reason


def test_structures_refuse_what_does_not_fit() -> None:
    with pytest.raises(RomError, match=r"^vendor_id is 2 bytes wide and can't hold 0x10000$"):
        PciData(vendor_id=0x10000).pack()
    with pytest.raises(RomError, match=r"^signature is 4 bytes wide and can't hold 5 bytes$"):
        PciData(signature=b"PCIRR").pack()
    with pytest.raises(RomError, match=r"^a structure at offset 0x1 needs 25 bytes, the image has 24$"):
        PciData.parse(bytes(24), 1)
    assert repr(build("native")) == "<Rom native, 4096 bytes, 56 calls>"
    assert repr(RomHeader.parse(build("native").image)) == "<RomHeader 4096 bytes, API 3.0>"
