# SPDX-License-Identifier: GPL-2.0-only
"""Page tables and cached translations, for whichever strategy there is (:mod:`vmi.hypervisor.mmu`)."""

from __future__ import annotations

from vmi.abi import FlushFlag
from vmi.hypervisor.calls import CallContext, Handler, serves

# The register that points to the entry, by its number.
_EAX, _ECX, _EDX = 0, 1, 2


@serves("InvalPage")
def invalidate_page(call: CallContext) -> None:
    """INVLPG of the address in EAX."""
    call.vcpu.mmu.invalidate(call.address(call.cpu.eax))


@serves("FlushTLB")
def flush_tlb(call: CallContext) -> None:
    """Drop non-global translations, and global ones too if asked."""
    if call.cpu.eax & FlushFlag.GLOBAL:
        call.vcpu.mmu.flush(everything=True)
    elif call.cpu.eax:
        call.vcpu.mmu.flush(everything=False)


def _entry(register: int) -> Handler:
    """A page-table entry was changed, in memory already, and the ROM's list of such is full."""

    def handler(call: CallContext) -> None:
        call.vcpu.mmu.catch_up()
        call.vcpu.mmu.entry_changed(call.address(call.cpu.gpr(register)))

    return handler


serves("SetPxE")(_entry(_EDX))
serves("SetPxELong")(_entry(_ECX))
serves("UpdatePxE")(_entry(_EAX))
serves("UpdatePxELong")(_entry(_EAX))


@serves("SetLazyMode")
def set_lazy_mode(call: CallContext) -> None:
    """A mode ends: what was queued counts."""
    call.vcpu.mmu.catch_up()


@serves("AllocatePage")
def allocate_page(call: CallContext) -> None:
    """A frame, by number in EAX, will hold page-table entries."""
    call.vcpu.mmu.announce(call.cpu.eax)


@serves("ReleasePage")
def release_page(call: CallContext) -> None:
    """A frame, by number in EAX, holds none any more."""
    call.vcpu.mmu.release(call.cpu.eax)
