# SPDX-License-Identifier: GPL-2.0-only
"""What an exit's reason says about its cause.

The machine and the hypervisor count exits by reason, in words. Whoever compares modes asks a coarser
question: which of them happen on bare hardware too (a port access, a system call, a page fault), and which
are the price of running the kernel on another ring? The words are sorted here, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Cause(StrEnum):
    """Why something below the guest had to act. The first two are what de-privileging costs."""

    HYPERCALL = "hypercall"  # the guest called the hypervisor
    TRAP = "trap"  # an instruction that the guest's ring may not do, or a store the hypervisor must see
    SYSTEM_CALL = "system call"  # INT n of the guest's own
    FAULT = "fault"  # an exception that is the guest's
    INTERRUPT = "interrupt"  # of a device
    PORT = "port"  # IN and OUT
    DEVICE = "device"  # device memory, ROM, model-specific registers
    HALT = "halt"
    PROCESSOR = "processor"  # it is another processor's turn, or another domain's


#: What is there only because the kernel is de-privileged.
PRICE = frozenset({Cause.HYPERCALL, Cause.TRAP})

#: How reasons begin; the first that fits is taken.
_BEGINNINGS = (
    ("VMI call", Cause.HYPERCALL),
    ("VMI_", Cause.HYPERCALL),
    ("pending interrupt", Cause.HYPERCALL),
    ("software interrupt", Cause.SYSTEM_CALL),
    ("interrupt", Cause.INTERRUPT),
    ("#", Cause.FAULT),
    ("exception ", Cause.FAULT),
    ("refused access", Cause.FAULT),
    ("port ", Cause.PORT),
    ("device memory ", Cause.DEVICE),
    ("ROM write", Cause.DEVICE),
    ("MSR ", Cause.DEVICE),
    ("halt", Cause.HALT),
    ("processor ", Cause.PROCESSOR),
)


def cause(reason: str) -> Cause:
    """The cause that a reason belongs to; what nothing else claims is the hypervisor's own, a trap."""
    return next((found for start, found in _BEGINNINGS if reason.startswith(start)), Cause.TRAP)


def by_cause(exits: Mapping[str, int]) -> dict[Cause, int]:
    """Exits counted by cause, in the order of :class:`Cause`, those that occur."""
    counts = dict.fromkeys(Cause, 0)
    for reason, count in exits.items():
        counts[cause(reason)] += count
    return {found: count for found, count in counts.items() if count}


def price(exits: Mapping[str, int]) -> int:
    """How many exits are there only because the kernel is de-privileged: hypercalls and traps."""
    return sum(count for reason, count in exits.items() if cause(reason) in PRICE)
