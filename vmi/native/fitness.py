# SPDX-License-Identifier: GPL-2.0-only
"""Which engine is fit to run guests in this process: the accelerated one, or the one in pure Python.

The accelerator is proven by the same checks as the emulator library (:mod:`vmi.native.selftest`). Where it
fails one, the process does without it and says so; where pure Python fails, nothing can be run.
"""

from __future__ import annotations

from vmi.errors import EngineError
from vmi.native import accelerator, selftest
from vmi.native.probe import Probe


def prove() -> None:
    """Settle which engine this process uses. :raises EngineError: neither is fit; the sentence says why."""
    try:
        selftest.prove()
    except EngineError as error:
        if not accelerator.put_aside():
            raise
        selftest.prove()
        accelerator.give_up(f"it failed its self-test: {error}")


def describe() -> str:
    """The engine that is used here, and why, in one line. :raises EngineError: none is fit."""
    Probe()  # the first CPU of a process is proven
    return "accelerated" if accelerator.load() is not None else f"pure Python: {accelerator.refusal()}"
