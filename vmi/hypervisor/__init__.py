# SPDX-License-Identifier: GPL-2.0-only
"""What answers a ROM's call-outs, and runs a de-privileged guest."""

from __future__ import annotations

#: How a guest's memory is managed where nobody says so; see :mod:`vmi.hypervisor.mmu` for the strategies.
DEFAULT_MMU = "direct"

#: The share of a processor, in percent, that a guest has if nobody else is there.
WHOLE = 100
