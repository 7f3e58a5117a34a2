# SPDX-License-Identifier: GPL-2.0-only
"""memtest86+ finds the memory sound, and on our machine a bit that goes wrong under its hands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import hosts
from tests.e2e import memtest as program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ENOUGH = 4  # the test that must be reached: those before it have walked each address bit and each byte
BAD_BYTE, BAD_BIT = 0x200000, 4  # in the middle of what a test goes over


def test_memory_is_sound_until_it_is_not(memtest: Path, host: str, tmp_path: Path) -> None:
    start = hosts.Start(memtest, program.OPTIONS, megabytes=program.MEGABYTES)
    with hosts.HOSTS[host](start, tmp_path) as guest:
        guest.wait_for_screen(lambda screen: program.WAITING in screen, 20)
        guest.press_enter()

        def reached(screen: str) -> bool:
            at = program.progress(screen)
            return at is not None and (at.test >= ENOUGH or at.errors > 0)

        screen = guest.wait_for_screen(reached, 60)
        at = program.progress(screen)
        assert at is not None, screen
        assert (at.errors, at.passes, at.megabytes) == (0, 0, program.MEGABYTES), screen
        if not isinstance(guest, hosts.OurGuest):
            return  # nothing changes QEMU's memory from outside

        def found(screen: str) -> bool:
            guest.flip_bit(BAD_BYTE, BAD_BIT)
            at = program.progress(screen)
            return at is not None and at.errors > 0

        screen = guest.wait_for_screen(found, 30)
        # a banner covers the address in the table of errors, but not the bits
        assert "Status: Failed!" in screen
        assert f"{1 << BAD_BIT:07X}" in screen.partition("Err Bits")[2], screen
