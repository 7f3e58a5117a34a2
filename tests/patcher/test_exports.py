# SPDX-License-Identifier: GPL-2.0-only
"""Functions for modules are code, whatever form their table has, and their silent instructions get slots."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.patcher.images import BASE, DATA, source_image
from vmi.patcher import exports
from vmi.patcher.model import Access, Image, Section, Segment
from vmi.patcher.plan import make_plan
from vmi.rom.assemble import Assembled

TABLE = DATA + 0x1000
#: Nothing leads to what follows the first `ret`: the function's start isn't aligned, and no branch names it.
SOURCE = """
    mov eax, ebx
    ret
    .byte 0xcc
exported:
    pushfd
    pop eax
    ret
    .byte 0xcc
unknown:
    pushfd
    pop ecx
    ret
"""


def kernel(table: bytes, name: str = "__ksymtab_gpl") -> tuple[Image, Assembled]:
    image, made = source_image(SOURCE)
    segment = Segment(TABLE, TABLE - 0xC0000000, table, len(table), Access.R, 0x12000)
    section = Section(name, TABLE, len(table), False, False)
    image = replace(image, segments=(*image.segments, segment), sections=(*image.sections, section))
    return image, made


def record(form: str, target: int) -> bytes:
    """One export, of a function, with its name somewhere in the table."""
    if form == "address":
        return struct.pack("<II", target, TABLE + 2)
    words = [target - TABLE, 0x40, 0x3C][: 2 if form == "distance" else 3]
    return struct.pack(f"<{len(words)}I", *(word & 0xFFFFFFFF for word in words))


FORMS = ["address", "distance", "distance with a namespace"]


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_function_is_code(form: str) -> None:
    _, made = kernel(b"")
    exported = made.labels["exported"]
    image, _ = kernel(record(form, exported))
    assert list(exports.functions(image, lambda at: BASE <= at < DATA)) == [exported]
    plan = make_plan(image)
    assert [site.address for site in plan.sites] == [exported]
    assert [skipped.start for skipped in plan.skipped] == [made.labels["unknown"]]


@pytest.mark.parametrize("name", ["__ksymtab_strings", ".data", "__kcrctab"])
def test_other_tables_export_nothing(name: str) -> None:
    _, made = kernel(b"")
    image, _ = kernel(record("distance", made.labels["exported"]), name)
    assert list(exports.functions(image, lambda at: True)) == []
    assert made.labels["exported"] in [skipped.start for skipped in make_plan(image).skipped]
