# SPDX-License-Identifier: GPL-2.0-only
"""docs/rom.md says what the images are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmi import abi
from vmi.abi import Reloc
from vmi.rom import layout
from vmi.rom.build import FLAVOURS, MAX_SIZE, build
from vmi.rom.flavours import get, vmware
from vmi.rom.inspect import inspect
from vmi.rom.layout import RomHeader

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rom.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ (.*)\n((?:.*\n)*?)```", PAGE)


def test_inspection_of_a_good_rom() -> None:
    command, shown = BLOCKS[0]
    assert command == "vmi rom inspect vmware"
    head, _, tail = shown.partition("...\n")
    text = inspect(build("vmware").image).to_text()
    assert text.startswith(head) and text.endswith(tail) and len(head) > 500 and len(tail) > 200


def test_inspection_of_a_damaged_rom() -> None:
    image = bytearray(build("vmware").image)
    vendor = RomHeader.parse(bytes(image)).pci_header_offs + 4
    image[vendor : vendor + 2] = b"\x86\x80"
    command, shown = BLOCKS[1]
    assert command == "vmi rom inspect damaged.rom | tail -2"
    assert inspect(bytes(image)).to_text().splitlines()[-2:] == shown.splitlines()


@pytest.mark.parametrize("name", sorted(FLAVOURS))
def test_flavours_are_listed(name: str) -> None:
    assert f"| {name} | {len(build(name).image)} | {FLAVOURS[name].summary} |\n" in PAGE


def test_map_and_words() -> None:
    for offset in (0x90, layout.CHECKSUM, layout.GATES, layout.CALL_TABLE, layout.SLOTS, layout.BODIES):
        assert f"| {offset:03X}h | " in PAGE
    for offset in (layout.CODE_LIMIT, layout.DATA_PAGE):
        assert f"| {offset:04X}h | " in PAGE
    for name, offset in vmware.FLAVOUR.words.items():
        assert f"| {offset} | {name} | " in PAGE
    assert f"at most {MAX_SIZE} bytes long" in PAGE


def test_where_vmware_does_what() -> None:
    templates = {call.name: get("vmware").template(call) for call in abi.CALLS}
    gates = [name for name, template in templates.items() if template.is_gate]
    absent = [name for name, template in templates.items() if template.relocation == Reloc.NONE]
    rom = [name for name in templates if name not in gates + absent]
    for title, names in (("in the ROM", rom), ("at a gate", gates), ("not offered", absent)):
        assert f"- {title}: {', '.join(names)}\n" in PAGE
