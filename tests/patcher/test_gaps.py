# SPDX-License-Identifier: GPL-2.0-only
"""Padding is what looks like filling behind the end of a path, and nothing else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patcher.images import BASE, code_image
from vmi.patcher.fillers import filled, is_filler
from vmi.patcher.flow import flow
from vmi.patcher.gaps import Gaps
from vmi.patcher.model import Pad, Skipped
from vmi.patcher.scan import scan

CASES = [
    ("breakpoints behind a jump", "ebfe cccccccccc", (2, 5)),
    ("the breakpoint behind a return stays", "c3 cccccccccccc", (2, 5)),
    ("one behind an indirect jump too", "ffe0 cccccccccccc", (3, 5)),
    ("NOPs of any length", "c3 90 6690 8d7600 8d742600", (1, 10)),
    ("moves of a register to itself", "c3 89f6 89f6 8bff", (1, 6)),
    ("a short run", "c3 90909090", None),
    ("zeros up to an alignment", "c3" + "00" * 15, (1, 15)),
    ("zeros up to nowhere", "c3" + "00" * 8 + "40" * 8 + "c3", None),
    ("NOPs, then zeros up to nowhere", "c3 909090909090" + "0000" * 2 + "40" * 8 + "c3", (1, 6)),
    ("what is no filling", "c3 89f7 89f7 89f7 8d7601", None),
    ("what a jump that nothing leads to leads over", "c3 eb08 8d742600 8d742600 c3", (3, 8)),
    ("not all that it leads over is filling", "c3 eb09 8d742600 8d742600 40 c3", None),
    ("it leads elsewhere", "c3 eb04 8d742600 8d742600 c3", None),
    ("a jump that something leads to", "7400 eb08 8d742600 8d742600 c3", (4, 8)),
    ("behind a call, which may return", "e800000000 9090909090 c3", None),
    ("behind what nothing leads to", "c3 40 c3 9090909090", None),
]


@pytest.mark.parametrize(("code", "pad"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_padding(code: str, pad: tuple[int, int] | None) -> None:
    found = flow(scan(code_image(bytes.fromhex(code.replace(" ", "")))))
    pads = [Pad(BASE + pad[0], pad[1])] if pad else []
    assert Gaps(found.codes[0]).pads() == pads


def test_padding_ends_before_what_data_names() -> None:
    image = code_image(b"\xc3" + b"\x90" * 15 + b"\xc3", data=struct.pack("<I", BASE + 9))
    assert Gaps(flow(scan(image)).codes[0]).pads() == [Pad(BASE + 1, 8)]


def test_padding_ends_before_bytes_that_are_read_as_data() -> None:
    code = b"\xa1" + struct.pack("<I", BASE + 15) + b"\xc3" + b"\x90" * 15 + b"\xc3"
    assert Gaps(flow(scan(code_image(code))).codes[0]).pads() == [Pad(BASE + 6, 9)]


def test_padding_behind_16_bit_code_is_not_trusted() -> None:
    code = flow(scan(code_image(b"\x90\xc3" + b"\x90" * 14))).codes[0]
    assert Gaps(code).pads() == [Pad(BASE + 2, 14)]
    assert Gaps(code, [Skipped(BASE, BASE + 2, "")]).pads() == []


def gaps(size: int = 40) -> Gaps:
    return Gaps(flow(scan(code_image(b"\xeb\xfe" + b"\x90" * size))).codes[0])


def test_the_smallest_piece_in_reach_is_taken() -> None:
    found = gaps(300)
    found.take(BASE + 20, 5)
    assert found.near(BASE + 2) == BASE + 2
    assert found.near(BASE + 200) == BASE + 72
    assert found.near(BASE + 430) == -1
    assert found.near(BASE - 200) == -1


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=12))
def test_what_is_taken_is_gone_until_it_is_given_back(wanted: list[tuple[int, int]]) -> None:
    found, whole = gaps(), set(range(BASE + 2, BASE + 42))
    free, taken = set(whole), []
    for at, size in wanted:
        block = set(range(BASE + at, BASE + at + size))
        if block <= free:
            found.take(BASE + at, size)
            taken.append((BASE + at, size))
            free -= block
    held = {at for pad in found.pads() for at in range(pad.start, pad.end)}
    assert held <= free
    assert all(at + 4 not in free or not set(range(at, at + 5)) <= free for at in free - held)
    for start, size in taken:
        found.give(start, size)
    assert found.pads() == [Pad(BASE + 2, 40)]


def test_fillers_are_whole_instructions() -> None:
    assert filled(bytes.fromhex("3e8d742600"))
    assert not filled(bytes.fromhex("8d7426"))
    assert not is_filler(bytes.fromhex("8d742601"))
    assert not is_filler(bytes.fromhex("8d3400"))
