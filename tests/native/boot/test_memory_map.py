# SPDX-License-Identifier: GPL-2.0-only
"""The memory map: what QEMU's isapc reports, for every size of RAM."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.native.boot.memory_map import RAM, RESERVED, memory_map, ram_end, upper_kib

PAGES = st.integers(256, (1 << 20) - 1).map(lambda pages: pages * 4096)


def test_map_of_a_usual_machine():
    assert memory_map(64 << 20) == [
        (0x00000000, 0x0009FC00, RAM),
        (0x0009FC00, 0x000A0000, RESERVED),
        (0x000F0000, 0x00100000, RESERVED),
        (0x00100000, 0x04000000, RAM),
        (0xFFFC0000, 0x100000000, RESERVED),
    ]
    assert upper_kib(64 << 20) == 63 << 10


def test_map_of_the_smallest_machine_has_no_upper_memory():
    assert [area.start for area in memory_map(1 << 20)] == [0, 0x9FC00, 0xF0000, 0xFFFC0000]
    assert upper_kib(1 << 20) == 0


@pytest.mark.parametrize("size", [0xE0000000, 0xE0001000, (1 << 32) - 4096])
def test_ram_stops_where_devices_begin(size):
    assert memory_map(size)[3] == (0x100000, 0xE0000000, RAM)
    assert upper_kib(size) == (0xE0000000 >> 10) - 1024


@given(PAGES)
def test_areas_are_sorted_and_apart_and_ram_is_there(size):
    areas = memory_map(size)
    assert all(area.start < area.stop for area in areas)
    assert all(one.stop <= next_.start for one, next_ in pairwise(areas))
    assert all(area.stop <= ram_end(size) <= size for area in areas if area.kind == RAM)
