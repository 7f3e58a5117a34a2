# SPDX-License-Identifier: GPL-2.0-only
"""The states in which a processor begins: at the reset vector, or where a boot loader starts a kernel."""

from __future__ import annotations

from vmi.native.boot.state import BootState
from vmi.native.cpu import Cpu
from vmi.native.registers import NULL_SEGMENT, Segment, TableRegister
from vmi.x86 import TSS_BUSY_32, U32, Cr0, Seg

_CODE_FLAGS, _DATA_FLAGS = 0xCF9B00, 0xCF9300
_DATA_SEGMENTS = (Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS)


def at_kernel(cpu: Cpu, state: BootState) -> None:
    """As a boot protocol starts a kernel: flat protected mode, interrupts off."""
    cpu.set_cr(0, Cr0.PE | Cr0.ET)
    # flat segments, as all protocols demand; the table they came from need not exist
    cpu.set_segment(Seg.CS, Segment(state.code, 0, U32, _CODE_FLAGS))
    for seg in _DATA_SEGMENTS:
        cpu.set_segment(seg, Segment(state.data, 0, U32, _DATA_FLAGS))
    cpu.gdt = state.gdt
    cpu.idt = TableRegister(0, 0)
    cpu.ldt = NULL_SEGMENT
    cpu.tr = Segment(0, 0, state.task_limit, 0x8000 | TSS_BUSY_32 << 8)
    cpu.eflags = 2
    for number in range(8):
        cpu.set_gpr(number, 0)
    cpu.eip, cpu.eax, cpu.ebx, cpu.esi, cpu.esp = state.eip, state.eax, state.ebx, state.esi, state.esp


def at_startup(cpu: Cpu, vector: int, signature: int) -> None:
    """As a start-up message begins a processor that waits for one: real mode, at page ``vector``."""
    at_reset_vector(cpu, signature)
    cpu.set_segment(Seg.CS, Segment(vector << 8, vector << 12, 0xFFFF, 0x9B00))
    cpu.eip = 0


def at_reset_vector(cpu: Cpu, signature: int) -> None:
    """As after power-on: real mode, 16 bytes below the end of the firmware.

    :param signature: what EDX tells of the processor, EAX of CPUID leaf 1.
    """
    cpu.set_cr(0, Cr0.ET | Cr0.NW | Cr0.CD)
    for seg in _DATA_SEGMENTS:
        cpu.set_segment(seg, Segment(0, 0, 0xFFFF, 0x9300))
    cpu.set_segment(Seg.CS, Segment(0xF000, 0xFFFF0000, 0xFFFF, 0x9B00))
    cpu.gdt = cpu.idt = TableRegister(0, 0xFFFF)
    cpu.eflags = 2
    cpu.edx = signature
    cpu.eip = 0xFFF0
