# SPDX-License-Identifier: GPL-2.0-only
"""Processes that work for another one don't outlive it, however it ends."""

from __future__ import annotations

import select
import subprocess
import sys

_PARENT = """
import os, time
from vmi.conformance.processes import pool

if __name__ == "__main__":
    workers = pool(1)
    print(workers.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def test_they_end_with_the_one_that_is_killed() -> None:
    """What it writes to is open in all of them: its end is the end of the last one."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) != parent.pid
    parent.kill()
    parent.wait()
    ready, _, _ = select.select([parent.stdout], [], [], 60)
    assert ready and parent.stdout.read() == b""
    parent.stdout.close()
