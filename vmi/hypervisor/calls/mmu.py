# SPDX-License-Identifier: GPL-2.0-only
"""Translation caches. The guest's page tables are used as they are, so entries need no call-out."""

from __future__ import annotations

from vmi.abi import FlushFlag
from vmi.hypervisor.calls import CallContext, serves


@serves("InvalPage")
def invalidate_page(call: CallContext) -> None:
    """INVLPG of the address in EAX."""
    call.vcpu.mmu.invalidate(call.cpu.eax)


@serves("FlushTLB")
def flush_tlb(call: CallContext) -> None:
    """Drop non-global translations, and global ones too if asked."""
    if call.cpu.eax & FlushFlag.GLOBAL:
        call.vcpu.mmu.flush(everything=True)
    elif call.cpu.eax:
        call.vcpu.mmu.flush(everything=False)
