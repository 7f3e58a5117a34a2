# SPDX-License-Identifier: GPL-2.0-only
"""Model-specific registers and performance counters."""

from __future__ import annotations

from vmi.hypervisor.calls import CallContext, serves
from vmi.x86 import GuestFault, Vector


@serves("RDMSR")
def read_msr(call: CallContext) -> None:
    """EDX:EAX := MSR[ECX]."""
    call.answer(call.vcpu.read_msr(call.cpu.ecx))


@serves("WRMSR")
def write_msr(call: CallContext) -> None:
    """MSR[ECX] := EDX:EAX."""
    call.vcpu.write_msr(call.cpu.ecx, call.cpu.edx << 32 | call.cpu.eax)


@serves("RDPMC")
def read_performance_counter(_call: CallContext) -> None:
    """The processor has no counters, so every number is refused."""
    raise GuestFault(Vector.GP)
