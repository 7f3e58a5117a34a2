# SPDX-License-Identifier: GPL-2.0-only
"""Images of code and text mixed are refused; a few odd instructions are not."""

from __future__ import annotations

import re

import pytest

from tests.patcher.images import code_image
from vmi.errors import BadInput
from vmi.patcher.mixed import MOST
from vmi.patcher.plan import make_plan

ARPL = b"\x63\xc0"  # arpl ax, ax
TEXT = b"Loading the second stage from disk, please wait. Error: no such partition. Booting.\0"


def test_text_among_the_code_is_refused() -> None:
    code = b"\x90" * 16 + TEXT * 30
    sentence = (
        r"text and code are mixed in the executable part of this file: (\d+) of its (\d+) instructions are "
        r"ones that no compiler makes, the first at 0x[0-9a-f]+, so sites can't be told from data"
    )
    with pytest.raises(BadInput) as refusal:
        make_plan(code_image(code))
    matched = re.fullmatch(sentence, str(refusal.value))
    assert matched and MOST < int(matched[1]) < int(matched[2])


@pytest.mark.parametrize(("count", "refused"), [(MOST, False), (MOST + 1, True)])
def test_some_odd_instructions_are_let_pass(count: int, refused: bool) -> None:
    code = ARPL * count + b"\x90" * 100 + b"\xfa\x90\x90\x90\x90\xc3"
    if refused:
        with pytest.raises(BadInput, match=f": {count} of its {count + 106} instructions"):
            make_plan(code_image(code))
    else:
        assert len(make_plan(code_image(code)).placements) == 1


def test_a_large_kernel_may_hold_more_of_them() -> None:
    code = ARPL * (MOST + 4) + b"\x90" * 10_000 + b"\xc3"
    assert make_plan(code_image(code)).harmless == (("arpl rm,r", MOST + 4),)


def test_odd_bytes_that_nothing_leads_to_do_not_count() -> None:
    assert make_plan(code_image(b"\xeb\x64" + ARPL * 50 + b"\xfa\x90\x90\x90\x90\xc3")).sites


@pytest.mark.parametrize("prefix", ["64", "65"])
@pytest.mark.parametrize("io", ["6c", "6d", "6e", "6f"])
def test_string_io_in_fs_and_gs_counts(prefix: str, io: str) -> None:
    with pytest.raises(BadInput, match=r"^text and code are mixed"):
        make_plan(code_image(bytes.fromhex(prefix + io) * (MOST + 1) + b"\xc3"))


def test_sixteen_bit_code_is_refused() -> None:
    count = MOST + 1
    with pytest.raises(BadInput) as refusal:
        make_plan(code_image(b"\x67\x8b\x04" * count + b"\xfa\x90\x90\x90\x90\xc3"))
    assert str(refusal.value) == (
        f"the executable part of this file holds 16-bit code: {count} of its {count + 6} instructions "
        "have 16-bit addresses if taken for 32-bit code, the first at 0xc0100000, and only 32-bit code "
        "can be patched"
    )


@pytest.mark.parametrize("code", [b"\x67\x8b\x04", b"\x67\xe9\0\0\0\0" * (MOST + 1)])
def test_some_such_instructions_and_long_jumps_are_not(code: bytes) -> None:
    assert make_plan(code_image(code + b"\xfa\x90\x90\x90\x90\xc3")).sites
