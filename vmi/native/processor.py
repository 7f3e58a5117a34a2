# SPDX-License-Identifier: GPL-2.0-only
"""The model-specific registers that the processor itself keeps, or its local APIC."""

from __future__ import annotations

from vmi.native.cpu import Cpu
from vmi.native.devices.lapic import Lapic
from vmi.native.msr import APIC_BASE, EFER, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP, Live
from vmi.x86 import U32


def live_registers(cpu: Cpu, lapic: Lapic | None) -> dict[int, Live]:
    """How to read and write them, by number."""

    def fast_call(part: int) -> Live:
        def write(value: int) -> None:
            target = list(cpu.fast_call_target)
            target[part] = value & U32
            cpu.fast_call_target = (target[0], target[1], target[2])

        return Live(lambda: cpu.fast_call_target[part], write)

    def set_efer(value: int) -> None:
        cpu.efer = value & U32
        cpu.flush_tlb()  # page tables mean something else now

    parts = (SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP)
    live = {index: fast_call(part) for part, index in enumerate(parts)}
    live[EFER] = Live(lambda: cpu.efer, set_efer)
    if lapic is not None:
        live[APIC_BASE] = Live(lambda: lapic.apic_base, lapic.set_apic_base)
    return live
