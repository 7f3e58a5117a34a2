# SPDX-License-Identifier: GPL-2.0-only
"""What the check takes for padding, byte by byte."""

from __future__ import annotations

import pytest

from vmi.patcher.readback import is_padding


@pytest.mark.parametrize(
    ("text", "first", "last", "padding"),
    [
        ("c3 00 00 00 00 00 ec", 1, 6, True),  # an odd number of zeros in front of code
        ("c3 cc cc cc ec", 1, 4, True),
        ("c3 8d b4 26 00 00 00 00 ec", 3, 8, True),
        ("c3 00 00 00 00 01 ec", 1, 6, False),
        ("c3 90 90 40 ec", 1, 4, False),
    ],
)
def test_padding(text: str, first: int, last: int, padding: bool) -> None:
    assert is_padding(bytes.fromhex(text), first, last) is padding
