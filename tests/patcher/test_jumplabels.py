# SPDX-License-Identifier: GPL-2.0-only
"""Jump labels are found in data of any name, and what may run behind them counts as code."""

from __future__ import annotations

import struct

import pytest

from tests.patcher.images import BASE, DATA, code_image
from vmi.patcher.flow import flow
from vmi.patcher.jumplabels import JumpLabel, jump_labels
from vmi.patcher.model import Image
from vmi.patcher.scan import scan

NOP5 = bytes.fromhex("3e8d742600")
KEY = 0x1234


def relative(at: int, target: int) -> bytes:
    return struct.pack("<I", (target - DATA - at) & 0xFFFFFFFF)


def labels_of(code: bytes, table: bytes) -> list[JumpLabel]:
    return list(jump_labels(code_image(code, data=table), lambda a: BASE <= a < BASE + len(code)))


def entry(code: int, target: int, at: int = 0) -> bytes:
    return relative(at, code) + relative(at + 4, target) + struct.pack("<I", KEY)


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        ("3e8d742600", 5),
        ("0f1f440000", 5),
        ("908d742600", 5),
        ("e90e000000", 5),
        ("eb11909090", 2),
        ("6690fac3c3", 2),
        ("e90d000000", 0),
        ("b801000000", 0),
        ("0000000000", 0),
        ("cccccccccc", 0),
        ("eb10909090", 0),
    ],
)
def test_a_pair_of_words_is_a_jump_label_when_the_bytes_are_one(raw: str, size: int) -> None:
    code = bytes.fromhex(raw) + b"\x90" * 27
    expected = [JumpLabel(BASE, size, BASE + 19)] if size else []
    assert labels_of(code, b"\0\0\0\0" + entry(BASE, BASE + 19, 4)) == expected
    assert labels_of(code, struct.pack("<4I", 7, BASE, BASE + 19, KEY)) == expected


def test_words_that_lead_elsewhere_are_no_jump_label() -> None:
    code = NOP5 + b"\x90" * 27
    assert labels_of(code, entry(BASE, BASE + 64)) == []
    assert labels_of(code, relative(0, BASE) + struct.pack("<I", 5) + relative(8, BASE + 19)) == []


def jumping_image() -> Image:
    code = b"\xe9\x0b\0\0\0" + b"\xfa" + b"\x90" * 9 + b"\xc3" + b"\xc3"
    return code_image(code, data=entry(BASE, BASE + 16))


def test_a_jump_label_stays_and_what_is_behind_it_is_reached() -> None:
    (code,) = flow(scan(jumping_image())).codes
    pin = code.pin(BASE, BASE + 5)
    assert pin is not None
    assert (pin.end, pin.untouchable) == (BASE + 5, True)
    assert pin.reason == "The kernel rewrites these bytes itself (jump labels)."
    assert code.is_label(BASE + 16)
    assert all(code.reached)
