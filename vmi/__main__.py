# SPDX-License-Identifier: GPL-2.0-only
"""``python -m vmi`` is the ``vmi`` command."""

from __future__ import annotations

from vmi.cli import main

if __name__ == "__main__":
    main()
