# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that somebody else built, for whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import fetch_debian


@pytest.fixture(scope="session")
def gnumach() -> Path:
    """Debian's GNU Mach (stripped ELF, no relocations), or a skip that says why it can't be had."""
    try:
        return fetch_debian.gnumach()
    except fetch_debian.Unavailable as error:
        pytest.skip(str(error))
