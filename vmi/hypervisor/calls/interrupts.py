# SPDX-License-Identifier: GPL-2.0-only
"""Interrupt control and returns that the ROM could not finish by itself."""

from __future__ import annotations

from vmi.hypervisor.calls import RETURN_ADDRESS, CallContext, serves


@serves("IRET")
def interrupt_return(call: CallContext) -> None:
    """IRET that the ROM left to us; the call's return address is dropped.

    An interrupt waits, or the return is to virtual-8086 mode, to another task, or with another IOPL.
    """
    call.transfers.iret(skip=RETURN_ADDRESS, take_iopl=call.vcpu.privilege.iopl_from_frames)
    call.vcpu.offer_interrupt()


@serves("SYSEXIT")
def fast_return(call: CallContext) -> None:
    """SYSEXIT that the ROM left to us: an interrupt waits, or it does not know the user's segments yet."""
    call.transfers.fast_return(search=True)
    call.vcpu.privilege.words.set(True)
    call.vcpu.offer_interrupt()


@serves("Halt")
def halt(call: CallContext) -> None:
    """Interrupts on and wait, in one step: what waits already is delivered instead."""
    call.vcpu.privilege.words.set(True)
    call.vcpu.halt()
