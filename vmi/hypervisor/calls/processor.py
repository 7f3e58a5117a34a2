# SPDX-License-Identifier: GPL-2.0-only
"""Processor information, MSRs, debug registers, and the ends of the machine."""

from __future__ import annotations

from vmi.hypervisor.calls import CallContext, serves
from vmi.native.machine import Outcome


@serves("RDMSR")
def read_msr(call: CallContext) -> None:
    """EDX:EAX := MSR[ECX]."""
    call.answer(call.vcpu.read_msr(call.cpu.ecx))


@serves("WRMSR")
def write_msr(call: CallContext) -> None:
    """MSR[ECX] := EDX:EAX."""
    call.vcpu.write_msr(call.cpu.ecx, call.cpu.edx << 32 | call.cpu.eax)


@serves("WBINVD")
def write_back_caches(call: CallContext) -> None:
    """There are no caches."""


@serves("SetDR")
def set_debug_register(call: CallContext) -> None:
    """DR[EAX] := EDX; numbers above 7 are ignored."""
    if call.cpu.eax < 8:
        call.vcpu.write_dr(call.cpu.eax, call.cpu.edx)


@serves("GetDR")
def get_debug_register(call: CallContext) -> None:
    """EAX := DR[EAX]; numbers above 7 read as 0."""
    call.cpu.eax = call.vcpu.read_dr(call.cpu.eax) if call.cpu.eax < 8 else 0


@serves("Reboot")
def reboot(call: CallContext) -> None:
    """The guest resets its machine."""
    kind = "a hard" if call.cpu.eax else "a soft"
    call.vcpu.machine.finish(Outcome.RESET, f"the guest asked the hypervisor for {kind} reboot")


@serves("Shutdown")
def shutdown(call: CallContext) -> None:
    """The guest switches its machine off."""
    call.vcpu.machine.finish(Outcome.SHUTDOWN, "the guest asked the hypervisor to switch the machine off")
