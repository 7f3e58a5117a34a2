# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC by calls: the very accesses to its page of memory that they stand for.

So a register agrees however it is reached, and on a processor without an APIC the calls find what loads
and stores find there: nothing.
"""

from __future__ import annotations

from vmi.hypervisor.calls import CallContext, serves
from vmi.native.devices.lapic import LAPIC_SPAN

_REGISTER = 0xFFF  # clients pass an offset or an address


@serves("APICWrite")
def write_register(call: CallContext) -> None:
    """The register that EAX names := EDX."""
    call.vcpu.machine.memory_write(LAPIC_SPAN.start | call.cpu.eax & _REGISTER, 4, call.cpu.edx)


@serves("APICRead")
def read_register(call: CallContext) -> None:
    """EAX := the register that EAX names."""
    call.cpu.eax = call.vcpu.machine.memory_read(LAPIC_SPAN.start | call.cpu.eax & _REGISTER, 4)
