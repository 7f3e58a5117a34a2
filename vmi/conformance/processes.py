# SPDX-License-Identifier: GPL-2.0-only
"""Processes that cases and sequences run in: made anew, not copied, and gone with the one that made them.

Python's own would wait for work for ever once the process that gives it has been killed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import wait


def pool(jobs: int, first: Callable[..., None] | None = None, *arguments: object) -> ProcessPoolExecutor:
    """So many processes, each of which calls ``first`` before anything else."""
    return ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=partial(_begin, first, *arguments),
    )


def _begin(first: Callable[..., None] | None, *arguments: object) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if first is not None:
        first(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
