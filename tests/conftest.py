# SPDX-License-Identifier: GPL-2.0-only
"""What all tests share: Hypothesis runs the same examples every time and has no clock in its verdict."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("vmi", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("vmi")
