# SPDX-License-Identifier: GPL-2.0-only
"""All of these need a C compiler, which a computer may lack."""

from __future__ import annotations

import pytest

from tests.e2e import needs


@pytest.fixture(autouse=True, scope="session")
def _compiler() -> None:
    needs.tool("gcc", "gcc")
