# SPDX-License-Identifier: GPL-2.0-only
"""Debian's Linux as it is, de-privileged without a ROM: every sensitive instruction is trapped and emulated.

The loader in the bzImage unpacks the kernel to where it has drawn by lot, and moves its addresses; the kernel
writes other instructions over its own. The session is the one that it always holds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import fetch_debian, hosts, linux_session
from tests.e2e.needs import slow
from tests.e2e.test_linux import OPTIONS, TO_END, TO_SHELL

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


@slow
def test_session(linux: fetch_debian.Linux, initrd: bytes, tmp_path: Path) -> None:
    disk = linux_session.DISK.image()
    options = f"{OPTIONS} {linux_session.STEADY}"
    start = hosts.Start(linux.kernel, options, initrd, disk, megabytes=128, full=True)
    with hosts.on_ours(start, tmp_path) as guest:
        assert isinstance(guest, hosts.OurGuest)
        assert guest.machine.cpu.cpl == 1, "so is what unpacks it"
        linux_session.wait_for_shell(guest.line, TO_SHELL * 4)
        assert guest.machine.cpu.cpl in (1, 3)
        linux_session.hold(guest.line)
        linux_session.end(guest.line, TO_END * 4)
        exits = guest.machine.exits
    assert exits["breakpoint: pushfd"] > exits["breakpoint: iretd"] > 1000
    assert exits["privileged instruction: cli"] > 10_000
