# SPDX-License-Identifier: GPL-2.0-only
"""A real kernel file, cut short or scribbled on, is refused in one sentence or patched: never a crash."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vmi.errors import BadInput, VmiError
from vmi.patcher import elf, patch

pytestmark = pytest.mark.e2e


def test_a_truncated_kernel_is_refused(gnumach: Path) -> None:
    data = gnumach.read_bytes()
    rng = random.Random(20)
    sizes = {*range(300), *(rng.randrange(len(data)) for _ in range(500)), len(data) - 1}
    for size in sizes:
        with pytest.raises(BadInput) as caught:
            elf.load(data[:size])
        assert str(caught.value)


def test_a_kernel_with_damaged_headers_is_refused_or_patched(gnumach: Path) -> None:
    data = gnumach.read_bytes()
    header = elf.read_header(data)
    rng = random.Random(21)
    for _ in range(12):
        damaged = bytearray(data)
        at = rng.choice((rng.randrange(52 + 96), rng.randrange(header.shoff, len(data))))
        damaged[at] ^= 1 << rng.randrange(8)
        try:
            output = patch(bytes(damaged)).data
        except VmiError as error:
            assert "\n" not in str(error)
        else:
            assert len(elf.load(output, patched=True).segments) == 3
