# SPDX-License-Identifier: GPL-2.0-only
"""What all tests share: Hypothesis runs the same examples every time and has no clock in its verdict."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

BENCH = Path(__file__).resolve().parents[1] / "bench"

settings.register_profile("vmi", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("vmi")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the folder ``bench``, by name; they import each other by their plain names."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCH)

    def load(name: str) -> ModuleType:
        return __import__(name)

    yield load
    for name in set(sys.modules) - before:
        if (BENCH / f"{name}.py").exists():
            del sys.modules[name]
