# SPDX-License-Identifier: GPL-2.0-only
"""The ends of the machine."""

from __future__ import annotations

from vmi.hypervisor.calls import CallContext, serves
from vmi.native.machine import Outcome


@serves("Reboot")
def reboot(call: CallContext) -> None:
    """The guest resets its machine."""
    kind = "a hard" if call.cpu.eax else "a soft"
    call.vcpu.machine.finish(Outcome.RESET, f"the guest asked the hypervisor for {kind} reboot")


@serves("Shutdown")
def shutdown(call: CallContext) -> None:
    """The guest switches its machine off."""
    call.vcpu.machine.finish(Outcome.SHUTDOWN, "the guest asked the hypervisor to switch the machine off")
