# SPDX-License-Identifier: GPL-2.0-only
"""Tests that have nothing to say where the CPU is run in pure Python."""

from __future__ import annotations

import pytest

from vmi.native import accelerator
from vmi.native.probe import Probe


def in_use() -> bool:
    """The accelerator has been proven, and is used by this process."""
    Probe()
    return accelerator.load() is not None


only = pytest.mark.skipif(not in_use(), reason="the accelerator is not in use")
