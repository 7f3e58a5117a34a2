# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC by calls: the very accesses to its page of memory that they stand for.

So a register agrees however it is reached, and on a processor without an APIC the calls find what loads
and stores find there: nothing. And the state that a start-up message starts another processor in.
"""

from __future__ import annotations

from vmi import abi
from vmi.hypervisor.calls import CallContext, serves
from vmi.hypervisor.processors import parse_state
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


@serves("SetInitialAPState")
def set_initial_state(call: CallContext) -> None:
    """The processor with the APIC ID in EDX begins in the state at EAX, which is copied now."""
    data = call.vcpu.linear.read(call.address(call.cpu.eax), abi.AP_STATE_SIZE)
    call.processors.give_state(call.cpu.edx, parse_state(data))
