# SPDX-License-Identifier: GPL-2.0-only
"""Absolute addresses are found by making code twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.patcher.absolute import SHIFT, differences
from vmi.rom.assemble import assemble

PIECES = st.lists(st.tuples(st.binary(max_size=5), st.integers(0, 0xFFFFFFFF)), max_size=8)


@given(PIECES, st.binary(max_size=5))
def test_words_are_found_wherever_they_are(pieces: list[tuple[bytes, int]], end: bytes) -> None:
    code, shifted, expected = b"", b"", []
    for before, word in pieces:
        code += before
        expected.append(len(code))
        shifted += before + (word + SHIFT & 0xFFFFFFFF).to_bytes(4, "little")
        code += word.to_bytes(4, "little")
    assert differences(code + end, shifted + end) == tuple(expected)


def test_code_at_two_places() -> None:
    source = "again:\nmov eax, dword ptr [{there}]\nmov dword ptr [ecx*8+{there + 4}], eax\njmp again"
    code, shifted = (assemble(source, n, {"there": 0x100000 + n}).code for n in (0, SHIFT))
    assert differences(code, shifted) == (1, 8)


@pytest.mark.parametrize(
    ("code", "shifted"), [(b"\0\0\0\0", b"\1\1\1\2"), (b"\0", b"\1"), (b"abc\0", b"abc\1")]
)
def test_other_differences_are_a_defect(code: bytes, shifted: bytes) -> None:
    with pytest.raises(ValueError, match=r"^byte \d of the code depends on its address in an unknown way$"):
        differences(code, shifted)


def test_another_length_is_a_defect() -> None:
    with pytest.raises(ValueError, match=r"^code that is made for other addresses has another length$"):
        differences(b"", b"a")
