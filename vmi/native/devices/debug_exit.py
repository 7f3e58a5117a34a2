# SPDX-License-Identifier: GPL-2.0-only
"""The port by which a guest ends its own run with a status, as QEMU's ``isa-debug-exit``."""

from __future__ import annotations

from collections.abc import Callable

from vmi.native.bus import Device, State


class DebugExit(Device):
    """``size`` ports from ``base``; a write of any width calls ``on_exit`` with the value written.

    The process status that stands for value v is ``(v << 1 | 1) & 0xff``.
    """

    name = "debug_exit"
    wide = True

    def __init__(self, on_exit: Callable[[int], None], base: int = 0xF4, size: int = 4) -> None:
        self.ports = (range(base, base + size),)
        self._on_exit = on_exit
        self._writes = 0

    def read(self, port: int, size: int) -> int:
        """Nothing to read: zero."""
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        """End the run."""
        self._writes += 1
        self._on_exit(value)

    def reset(self) -> None:
        """Nothing to reset."""

    def save(self) -> State:
        """No state."""
        return {}

    def load(self, state: State) -> None:
        """No state."""

    def stats(self) -> dict[str, int]:
        """Count the writes."""
        return {"writes": self._writes}
