# SPDX-License-Identifier: GPL-2.0-only
"""What verify checks of pieces, edges, hosts, fault tables, address words and relocations: it all fires."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patcher import planned
from tests.patcher.elfs import VADDR
from tests.patcher.planned import DATA, TABLE
from vmi.errors import VerifyError
from vmi.patcher import pads, rewrite
from vmi.patcher.emit import Emission, PlacedSite, emit
from vmi.patcher.model import Pad, Plan
from vmi.patcher.place import place
from vmi.patcher.verify import verify
from vmi.sitetable import SiteFlag, pack_sites

PADDED = [False, True]
MISMATCH = "the output doesn't match the plan: "


@cache
def good(padded: bool) -> tuple[Emission, bytes]:
    plan = pads.into_padding(planned.plan()) if padded else planned.plan()
    return made(plan)


def made(plan: Plan) -> tuple[Emission, bytes]:
    emission = emit(plan, place(replace(planned.image(), displaced=())))
    return emission, rewrite.write(emission)


def caught(emission: Emission, data: bytes) -> str:
    with pytest.raises(VerifyError) as error:
        verify(emission, data)
    assert str(error.value).startswith(MISMATCH)
    return str(error.value).removeprefix(MISMATCH)


def damaged(padded: bool, at: int, raw: bytes) -> str:
    """What verify says when the emitter put ``raw`` at an address and believes it to be right."""
    emission, _ = good(padded)
    segment, edits = bytearray(emission.segment), dict(emission.edits)
    if emission.base <= at:
        segment[at - emission.base : at - emission.base + len(raw)] = raw
    else:
        start = max(start for start in edits if start <= at)
        content = bytearray(edits[start])
        content[at - start : at - start + len(raw)] = raw
        edits[start] = bytes(content)
    wrong = replace(emission, segment=bytes(segment), edits=edits)
    return caught(wrong, rewrite.write(wrong))


@pytest.mark.parametrize("padded", PADDED)
def test_a_good_output_passes(padded: bool) -> None:
    verify(*good(padded))


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.data())
def test_any_change_to_what_moved_is_caught(padded: bool, data: st.DataObject) -> None:
    """One byte of an edit or a trampoline, in the emitter's own bytes: no comparison with them helps."""
    emission, _ = good(padded)
    places = list(emission.edits.items())
    places += [(piece.start, piece.code) for one in emission.trampolines for piece in one.pieces]
    bytes_ = {start + at: byte for start, raw in places for at, byte in enumerate(raw)}
    for slot in (slot for one in emission.trampolines for slot in one.slots + one.edges):
        native = range(slot.instruction, slot.instruction + slot.site.length)
        for at in set(range(slot.start, slot.start + slot.length)) - set(native):
            del bytes_[at]  # another NOP would be as good
    at = data.draw(st.sampled_from(sorted(bytes_)))
    assert damaged(padded, at, bytes([bytes_[at] ^ data.draw(st.integers(1, 255))]))


# ---------------------------------------------------------------- pieces and pads


def test_a_pad_that_is_no_padding_is_caught() -> None:
    plan = pads.into_padding(planned.plan())
    code = replace(plan.windows[3], pads=(Pad(VADDR + 0x26, 10),))
    emission, data = made(replace(plan, windows=(*plan.windows[:3], code), padding=()))
    assert caught(emission, data) == "what is at 0xc0100026 is no padding"


def test_pads_that_overlap_are_caught() -> None:
    plan = pads.into_padding(planned.plan())
    taken = plan.windows[2].pads[0]
    again = replace(plan.windows[3], pads=(Pad(taken.start + 1, 10),))
    emission, data = made(replace(plan, windows=(*plan.windows[:3], again), padding=()))
    found = f"what the plan has at {taken.start:#x} and {taken.start + 1:#x} overlaps"
    assert caught(emission, data) == found


def test_a_link_to_somewhere_else_is_caught() -> None:
    emission, _ = good(True)
    first = emission.plan.windows[0].pads[0]
    assert damaged(True, first.end - 1, b"\x08").startswith("the record for 0xc0100005 names another slot")


def test_a_window_that_misses_its_first_pad_is_caught() -> None:
    jump = struct.pack("<i", 0x40)
    assert damaged(True, VADDR + 0x02, jump) == "the window at 0xc0100001 misses its first pad"


def test_what_is_left_of_a_window_must_be_filled() -> None:
    found = "the window at 0xc010000d is not filled with breakpoints behind its jump"
    assert damaged(False, VADDR + 0x18, b"\x90") == found


def test_a_guest_that_misses_its_springboard_is_caught() -> None:
    assert damaged(False, VADDR + 0x12, b"\x90") == "there is no jump at 0xc0100012"


# ---------------------------------------------------------------- slots and edges


def test_padding_on_the_wrong_side_is_caught() -> None:
    for padded in PADDED:
        record = next(r for r in good(padded)[0].records if r.flags & SiteFlag.PAD_AFTER)
        assert damaged(padded, record.slot, b"\x66\x66\x90\x0f\x30") == (
            f"the slot at {record.slot:#x} has something else than NOPs after the instruction"
        )
        assert damaged(padded, record.slot, b"\x0f\x32") == (
            f"the slot at {record.slot:#x} does not hold the original instruction"
        )


@pytest.mark.parametrize(
    "flag",
    [SiteFlag.PAD_AFTER, SiteFlag.RECOVERED, SiteFlag.ISOLATED, SiteFlag.FLAGS_LIVE, SiteFlag.SILENT],
)
def test_a_wrong_flag_is_caught(flag: SiteFlag) -> None:
    emission, _ = good(False)
    last = emission.sites[-1]
    assert last.record is not None
    record = replace(last.record, flags=last.record.flags ^ flag)
    wrong = emit_again(emission, (*emission.sites[:-1], replace(last, records=(record,))))
    assert (
        caught(wrong, rewrite.write(wrong)) == f"the slot at {record.slot:#x} has the wrong flag {flag.name}"
    )


def emit_again(emission: Emission, sites: tuple[PlacedSite, ...]) -> Emission:
    """The emission with other records, written into the segment."""
    wrong = replace(emission, sites=sites)
    raw = pack_sites(wrong.records)
    at = emission.header.sites - emission.base
    return replace(wrong, segment=emission.segment[:at] + raw + emission.segment[at + len(raw) :])


def test_an_edge_without_all_its_records_is_caught() -> None:
    emission, _ = good(False)
    edge = next(placed for placed in emission.sites if placed.site == planned.EDGE)
    assert len(edge.records) == 2
    less = tuple(replace(p, records=p.records[:1]) if p is edge else p for p in emission.sites)
    wrong = replace(
        emission, sites=less, header=replace(emission.header, site_count=len(emission.records) - 1)
    )
    raw = bytearray(emit_again(wrong, less).segment)
    raw[: len(wrong.header.pack())] = wrong.header.pack()
    wrong = replace(wrong, segment=bytes(raw))
    assert caught(wrong, rewrite.write(wrong)) == (
        "there are 5 records for 6 sites with a slot or to be trapped"
    )


def test_a_branch_that_misses_its_copy_is_caught() -> None:
    for padded in PADDED:
        built = good(padded)[0].trampolines[0]
        at = built.start + 2
        assert built.code[2:4] == b"\x0f\x84"
        assert damaged(padded, at + 2, b"\x20\0\0\0").endswith(" has another target")


def test_a_copy_that_does_not_come_back_is_caught() -> None:
    built = good(False)[0].trampolines[0]
    end = built.start + len(built.code)
    assert damaged(False, end - 4, b"\0\0\0\0") == (
        f"the slot at {built.edges[0].start:#x} does not come back to 0xc010001d"
    )


# ---------------------------------------------------------------- the kernel's tables


def entries(*offsets: int) -> bytes:
    """The fault table as it is, in another order, with the instructions at addresses."""
    raw = b""
    for insn in offsets:
        at = TABLE + len(raw)
        raw += struct.pack("<iiI", insn - at, VADDR + 0x28 - at - 4, 7)
    return raw


@pytest.mark.parametrize("padded", PADDED)
def test_a_fault_table_with_an_old_address_or_out_of_order_is_caught(padded: bool) -> None:
    emission, _ = good(padded)
    built = emission.trampolines[3]
    first, second = built.start, built.start + 5
    right = entries(*sorted((VADDR + 0x29, first, second)))
    assert emission.edits[TABLE] == right
    old = "the fault table doesn't name the instructions where they are"
    assert damaged(padded, TABLE, entries(*sorted((VADDR + 0x29, first, VADDR + 0x22)))) == old
    assert damaged(padded, TABLE, entries(*sorted((VADDR + 0x29, first, first)))) == old
    assert damaged(padded, TABLE, right[:8] + b"\x08" + right[9:]) == old
    unsorted = entries(*sorted((VADDR + 0x29, first, second), reverse=True))
    assert damaged(padded, TABLE, unsorted) == f"the fault table at {TABLE:#x} isn't sorted"


@pytest.mark.parametrize("padded", PADDED)
def test_a_wrong_list_of_address_words_is_caught(padded: bool) -> None:
    emission, data = good(padded)
    words = emission.displaced
    assert len(words) == 4
    moved = "the list of address words isn't that of the original, moved"
    assert caught(replace(emission, displaced=words[1:]), data) == moved
    assert caught(replace(emission, displaced=tuple(sorted((*words, VADDR + 0x28)))), data) == moved
    assert caught(replace(emission, displaced=words[::-1]), data) == (
        "the list of address words isn't in order"
    )


@pytest.mark.parametrize("padded", PADDED)
def test_a_relocation_that_stays_behind_is_caught(padded: bool) -> None:
    emission, _ = good(padded)
    assert len(emission.file_edits) == 3
    for offset in emission.file_edits:
        less = {at: raw for at, raw in emission.file_edits.items() if at != offset}
        wrong = replace(emission, file_edits=less)
        assert caught(wrong, rewrite.write(wrong)).startswith("the relocation of the word at ")


def test_the_relocation_of_data_stays() -> None:
    assert (DATA + 8) not in {struct.unpack("<II", raw)[0] for raw in good(True)[0].file_edits.values()}
