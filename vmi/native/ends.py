# SPDX-License-Identifier: GPL-2.0-only
"""How a run of a machine ends."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from vmi.native.cpu import Cpu
from vmi.native.linear import Linear
from vmi.x86 import U32, GuestFault, Seg


class Outcome(StrEnum):
    """How a run ended."""

    DEBUG_EXIT = "debug_exit"
    RESET = "reset"
    TRIPLE_FAULT = "triple_fault"
    HALTED = "halted"
    SHUTDOWN = "shutdown"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    CALL_NOT_SERVED = "call_not_served"
    CONSOLE = "console"  # the console showed what was waited for
    STOPPED = "stopped"  # the user ended the run


class End(NamedTuple):
    """The end of a run: how, one sentence why, and the debug-exit value if there is one."""

    outcome: Outcome
    reason: str
    value: int = 0


def code_address(cpu: Cpu) -> int:
    """Linear address of the next instruction."""
    return (cpu.segment(Seg.CS).base + cpu.eip) & U32


def lost(linear: Linear, ram: int, address: int) -> str:
    """Why the instruction at a linear address could not be fetched, on a machine with so much RAM."""
    try:
        begins = linear.physical(address) < ram
    except GuestFault:
        begins = False
    if begins:
        return f"the guest's instruction at {address:#x} goes on where no memory is"
    return f"the guest jumped to {address:#x}, where no memory is"
