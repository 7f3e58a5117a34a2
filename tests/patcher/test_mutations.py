# SPDX-License-Identifier: GPL-2.0-only
"""Whatever is done to a kernel file: it is refused in one sentence, or its output passed the check.

The first mutants run here; ``VMI_MUTANTS=20000 pytest tests/patcher/test_mutations.py`` runs as many as one
likes, always the same ones. A mutant that fails is named by its number: ``mutations.mutant(number)``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from tests.patcher.elfs import VADDR, Piece, Plan, kernel_code, make, small_kernel
from tests.patcher.images import BASE, code_image
from tests.patcher.mutations import mutant
from vmi.errors import BadInput, VmiError
from vmi.patcher import Options, elf, inspect_file, patch, rewrite, scan
from vmi.patcher.container import open_container
from vmi.patcher.decode import Listing
from vmi.patcher.emit import Emission
from vmi.patcher.model import Section
from vmi.patcher.plan import make_plan

MUTANTS = int(os.environ.get("VMI_MUTANTS", "1500"))
SHARDS = 10


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The outputs that the check let through."""
    passed: list[bytes] = []

    def verify(emission: Emission, data: bytes) -> None:
        before(emission, data)
        passed.append(data)

    before = rewrite.verify
    monkeypatch.setattr(rewrite, "verify", verify)
    yield passed


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_damaged_kernel_is_refused_or_its_output_checked(shard: int, checked: list[bytes]) -> None:
    outputs = refused = 0
    for number in range(shard, MUTANTS, SHARDS):
        story, data = mutant(number)
        checked.clear()  # the first mutants of a process may need a patched kernel to be made of
        try:
            output = patch(data, Options(undo=False)).data
        except VmiError as error:
            refused += 1
            assert str(error), story
            assert "\n" not in str(error), story
        except Exception as error:
            raise AssertionError(f"mutant {story}: {type(error).__name__}") from error
        else:
            outputs += 1
            assert checked == [open_container(output).kernel], story
            assert inspect_file(output).patched, story
    assert outputs > MUTANTS // SHARDS // 4
    assert refused > MUTANTS // SHARDS // 4


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_damaged_kernel_can_be_looked_at_or_is_refused(shard: int) -> None:
    for number in range(shard, MUTANTS // 4, SHARDS):
        story, data = mutant(number)
        try:
            found = inspect_file(data)
        except VmiError as error:
            assert "\n" not in str(error), story
        except Exception as error:
            raise AssertionError(f"mutant {story}: {type(error).__name__}") from error
        else:
            assert found.to_json(), story
            assert found.to_text(sites=True), story


STRAIGHT = 1500
"""Instructions in a row without a label: two million steps for whoever walks it once per instruction."""


ROWS = {unit: bytes.fromhex(unit) * STRAIGHT for unit in ("fa", "fb", "f4", "9d", "0f20d8", "fa90", "7403")}
# A window, a row of plain instructions, and behind them sites that find no window and so look back.
ROWS["behind"] = b"\xfa" * 6 + b"\x40" * STRAIGHT + b"\xfa\x74\xfd" * STRAIGHT


@pytest.mark.parametrize("code", ROWS.values(), ids=ROWS)
def test_a_long_row_of_instructions_is_walked_a_few_times_only(
    code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def joined(listing: Listing, index: int) -> bool:
        nonlocal steps
        steps += 1
        return before(listing, index)

    before = Listing.joined
    monkeypatch.setattr(Listing, "joined", joined)
    make_plan(elf.load(make(Plan([Piece(VADDR, code + b"\xc3", section=".text")]))))
    assert 0 < steps < STRAIGHT * 250


@pytest.mark.parametrize(
    ("unit", "count", "sentence"),
    [
        ("fa", scan.MAX_FORMS + 1, "expected at most 262144 sensitive instructions, got 262145"),
        ("90", scan.MAX_TEXT + 1, "expected at most 67108864 bytes of code, got 67108865"),
    ],
    ids=["sites", "bytes"],
)
def test_what_is_far_too_large_is_refused(unit: str, count: int, sentence: str) -> None:
    data = make(Plan([Piece(VADDR, bytes.fromhex(unit) * count, section=".text")]))
    with pytest.raises(BadInput) as caught:
        patch(data)
    assert str(caught.value) == sentence


def test_more_executable_sections_than_kernels_have_are_refused() -> None:
    sections = [Section(f".text.{n}", BASE + n, 1, True, False) for n in range(scan.MAX_REGIONS + 1)]
    assert make_plan(code_image(b"\xf4" * 200, sections=sections[:-1])).instructions == scan.MAX_REGIONS
    with pytest.raises(BadInput) as caught:
        make_plan(code_image(b"\xf4" * 200, sections=sections))
    assert str(caught.value) == "expected at most 128 executable sections, got 129"


def test_more_segments_than_kernels_have_are_refused() -> None:
    pieces = [Piece(VADDR + n * 0x1000, b"\xfa\xc3") for n in range(elf.MAX_SEGMENTS + 1)]
    with pytest.raises(BadInput) as caught:
        patch(make(Plan(pieces)))
    assert str(caught.value) == "expected at most 64 loadable segments, got 65"


def test_sections_that_all_claim_the_same_bytes_are_refused() -> None:
    many = {f".{n}": b"" for n in range(30)}
    grown = bytearray(
        make(Plan([Piece(VADDR, kernel_code(), section=".text")], extra=many | {".a": bytes(9)}))
    )
    header = elf.read_header(bytes(grown))
    for number in range(2, header.shnum - 3):
        at = header.shoff + number * elf.SECTION_HEADER.size
        struct.pack_into("<II", grown, at + 16, 0, len(grown))
    with pytest.raises(BadInput) as caught:
        patch(bytes(grown))
    assert str(caught.value).startswith("the sections claim ")
    assert str(caught.value).endswith(f" bytes of the file, and it has {len(grown)}")


def test_two_symbol_tables_are_refused() -> None:
    data = bytearray(small_kernel())
    header = elf.read_header(bytes(data))
    entries = elf.section_headers(bytes(data), header)
    table = next(n for n, fields in enumerate(entries) if fields[1] == elf.SHT_SYMTAB)
    struct.pack_into("<10I", data, header.shoff + 40, *entries[table])
    with pytest.raises(BadInput) as caught:
        patch(bytes(data))
    assert str(caught.value) == "expected one symbol table at most, got 2"
