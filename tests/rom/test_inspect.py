# SPDX-License-Identifier: GPL-2.0-only
"""The inspector names each fault in one sentence, knows our own ROMs, and survives any bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi import abi
from vmi.errors import RomError
from vmi.rom import layout
from vmi.rom.build import FLAVOURS, build
from vmi.rom.inspect import check, inspect
from vmi.rom.layout import RomHeader

GOOD = build("vmware").image
HEADER = RomHeader.parse(GOOD)
PCI, PNP, LICENCE = HEADER.pci_header_offs, HEADER.pnp_header_offs, HEADER.license_offs


def changed(offset: int, data: bytes, image: bytes = GOOD) -> bytes:
    """The image with other bytes at `offset` and its checksum put right again."""
    out = bytearray(image)
    out[offset : offset + len(data)] = data
    out[layout.CHECKSUM] = (out[layout.CHECKSUM] - sum(out)) & 0xFF
    return bytes(out)


@pytest.mark.parametrize("name", sorted(FLAVOURS))
def test_our_own_roms_are_good_and_known(name: str) -> None:
    rom = build(name)
    report = inspect(rom.image)
    check(rom.image)
    assert report.good and not report.warnings
    assert dict(report.facts)["flavour"] == name
    assert report.calls is not None
    assert [(call.relocation, call.offset) for call in report.calls] == [
        (kind.name, offset) for kind, offset in rom.calls
    ]
    assert [part for part, _ in report.code] == ["BIOS entry", "VMI_Init", "GetRelocationInfo"]
    assert dict(report.code)["BIOS entry"] == ("0003  xor ax,ax", "0005  retf")
    assert repr(report) == f"<Inspection {len(rom.image)} bytes, 0 faults, 0 warnings>"
    assert report.to_text().endswith("This is a good ROM.\n")
    assert max(map(len, report.to_text().splitlines())) <= 80
    assert json.loads(json.dumps(report.to_json()))["calls"][0] == {
        "number": 0,
        "name": "CPUID",
        "relocation": "CALL_REL",
        "offset": layout.SLOTS,
    }


FAULTS = {
    "short": (GOOD[:100], "the image has 100 bytes, the header of a VMI ROM alone has 144"),
    "no signature": (changed(0, b"MZ"), "the image starts with 4D 5A, an option ROM with 55 AA"),
    "no cVmi": (changed(8, b"cVmx"), "at offset 8 stands b'cVmx', a VMI ROM has b'cVmi' there"),
    "length 0": (changed(2, b"\0"), "the length field is 0, so the ROM has no bytes for a BIOS"),
    "cut": (GOOD[:4096], "the length field says 12288 bytes, the image has only 4096"),
    "checksum": (GOOD[:-1] + b"\x03", "the ROM's bytes add up to 0x03 modulo 256 instead of 0"),
    "older API": (changed(0xD, b"\x0d"), "the API major version is 13, guests want 3"),
    "no licence": (
        changed(0x16, b"\0\0"),
        "there is no licence string; Linux uses only ROMs under GPL or GPL v2",
    ),
    "licence nowhere": (
        changed(0x16, b"\xff\xff"),
        "the licence offset 0xffff leads to no NUL-terminated text in the image",
    ),
    "other licence": (
        changed(LICENCE, b"GPL v3"),
        "the licence is 'GPL v3'; Linux uses only ROMs under GPL or GPL v2",
    ),
    "no PCI data": (changed(0x18, b"\0\0"), "the PCI data offset is 0, so guests refuse the ROM"),
    "PCI data outside": (changed(0x18, b"\xf0\x2f"), "the PCI data offset 0x2ff0 leads out of the image"),
    "PCI signature": (
        changed(PCI, b"PCIX"),
        f"the PCI data at {PCI:#x} start with b'PCIX' instead of b'PCIR'",
    ),
    "PnP outside": (changed(0x1A, b"\xf0\x2f"), "the $PnP header offset 0x2ff0 leads out of the image"),
    "PnP signature": (
        changed(PNP, b"$PnQ"),
        f"the $PnP header at {PNP:#x} starts with b'$PnQ' instead of b'$PnP'",
    ),
    "Init is no code": (
        changed(0x80, b"\xff\xff"),
        "the code of VMI_Init at 0x80 is no instruction within its 8 bytes",
    ),
    "Init runs on": (
        changed(0x80, b"\x90" * 8),
        "the code of VMI_Init runs past its 8 bytes without a jump or return",
    ),
    "get_reloc is no code": (
        changed(0x88, b"\x90\x0f\x0a\xff"),
        "the code of GetRelocationInfo at 0x89 is no instruction within its 8 bytes",
    ),
    "BIOS entry is no code": (
        changed(3, b"\x90\x90\x90\x90"),
        "the code of BIOS entry runs past its 4 bytes without a jump or return",
    ),
    "impossible answer": (
        changed(layout.CALL_TABLE + 16 + abi.BY_NAME["CPUID"].number, b"\x02"),
        "CPUID is answered JUMP_REL, which it may not be",
    ),
    "entry outside": (
        changed(layout.CALL_TABLE + 6, b"\xff\x2f"),
        "the entry of WRMSR at 0x301f lies outside of the image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_one_sentence(case: str) -> None:
    image, sentence = FAULTS[case]
    report = inspect(image)
    assert report.faults[0] == sentence
    assert not report.good and f"fault: {sentence}\n" in report.to_text()
    with pytest.raises(RomError) as caught:
        check(image)
    assert str(caught.value) == sentence


WARNINGS = {
    "longer": (GOOD + b"more", "the length field says 12288 bytes, 4 more come after them"),
    "vendor": (
        changed(PCI + 4, b"\x86\x80"),
        "the PCI device is 8086:0801; Linux expects 15ad:0801 and goes on",
    ),
    "chunks": (changed(PCI + 16, b"\x01\0"), "the PCI data say 1 units of 512 bytes, the ROM header 24"),
    "more images": (changed(PCI + 21, b"\0"), "the PCI data say that another image follows"),
    "no PnP": (
        changed(0x1A, b"\0\0"),
        "there is no $PnP header, so many BIOSes do not run the ROM's BIOS entry",
    ),
    "PnP sum": (changed(PNP + 9, b"\0"), "the bytes of the $PnP header do not add up to 0 modulo 256"),
    "PnP size": (
        changed(PNP + 5, b"\x01"),
        "the $PnP header says that it is 16 bytes long, a BIOS reads 32",
    ),
    "reserved": (changed(0x7F, b"\x01"), "the reserved field reserved is not 0"),
    "reserved number": (changed(0x14, b"\x01"), "the reserved field reserved2 is not 0"),
    "far Init": (
        changed(0x80, b"\xe9\0\0\0\x10"),
        "VMI_Init jumps to 0x10000085 from the ROM's start, outside of the image",
    ),
    "too long for a copy": (
        changed(2, b"\x28", GOOD + bytes(8192)),
        "patched kernels stay native: they keep 16384 bytes for a ROM's copy, not 20480",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNINGS)
def test_warnings_do_not_make_a_rom_bad(case: str) -> None:
    image, sentence = WARNINGS[case]
    report = inspect(image)
    assert sentence in report.warnings
    assert report.good
    check(image)


def test_the_longest_possible_rom_fits_its_window() -> None:
    image = changed(2, b"\xff", GOOD + bytes(255 * 512 - len(GOOD)))
    assert inspect(image).good


def test_something_else_gets_only_the_faults_that_say_so() -> None:
    report = inspect(b"\x7fELF" + bytes(1000))
    assert report.faults == (
        "the image starts with 7F 45, an option ROM with 55 AA",
        "at offset 8 stands b'\\x00\\x00\\x00\\x00', a VMI ROM has b'cVmi' there",
    )


def test_calls_of_a_foreign_rom_are_unknown() -> None:
    report = inspect(changed(layout.CALL_TABLE, b"XXXX"))
    assert report.good and report.calls is None
    assert "calls: unknown without running it\n" in report.to_text()
    assert report.to_json()["calls"] is None


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=1024))
def test_any_bytes_are_inspected(data: bytes) -> None:
    for image in (data, GOOD[:144] + data, b"\x55\xaa" + data, data[:64] + GOOD):
        report = inspect(image)
        assert all("\n" not in sentence for sentence in report.faults + report.warnings)
        json.dumps(report.to_json())
        if report.faults:
            with pytest.raises(RomError):
                check(image)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 0x400), st.binary(min_size=1, max_size=8))
def test_any_damage_to_a_good_rom_is_inspected(offset: int, data: bytes) -> None:
    report = inspect(changed(offset, data))
    assert report.to_text().endswith("\n")
    json.dumps(report.to_json())
