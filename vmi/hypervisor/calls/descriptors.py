# SPDX-License-Identifier: GPL-2.0-only
"""Descriptor tables, their entries, and the kernel stack."""

from __future__ import annotations

from vmi.hypervisor.calls import CallContext, serves
from vmi.x86 import U32


@serves("SetGDT")
def set_gdt(call: CallContext) -> None:
    """LGDT."""
    call.vcpu.load_gdt(*call.vcpu.linear.table_pointer(call.cpu.eax))


@serves("SetIDT")
def set_idt(call: CallContext) -> None:
    """LIDT."""
    call.vcpu.load_idt(*call.vcpu.linear.table_pointer(call.cpu.eax))


@serves("SetLDT")
def set_ldt(call: CallContext) -> None:
    """LLDT of the low word of EAX."""
    call.vcpu.load_ldt(call.cpu.eax & 0xFFFF)


@serves("SetTR")
def set_task_register(call: CallContext) -> None:
    """LTR of the low word of EAX."""
    call.vcpu.load_task(call.cpu.eax & 0xFFFF)


@serves("GetGDT")
def get_gdt(call: CallContext) -> None:
    """SGDT."""
    table = call.cpu.gdt
    call.vcpu.linear.put_table_pointer(call.cpu.eax, table.base, table.limit)


@serves("GetIDT")
def get_idt(call: CallContext) -> None:
    """SIDT of the guest's table."""
    table = call.vcpu.privilege.virtual_idt
    call.vcpu.linear.put_table_pointer(call.cpu.eax, table.base, table.limit)


@serves("GetLDT")
def get_ldt(call: CallContext) -> None:
    """SLDT, zero-extended."""
    call.cpu.eax = call.cpu.ldt.selector


@serves("GetTR")
def get_task_register(call: CallContext) -> None:
    """STR, zero-extended."""
    call.cpu.eax = call.cpu.tr.selector


def _write_entry(call: CallContext) -> int:
    """Store a descriptor: EAX table, EDX index, ECX low dword, first stack argument high dword."""
    address = call.cpu.eax + 8 * call.cpu.edx & U32
    high = call.stack_argument(0)
    call.vcpu.linear.write(address, call.cpu.ecx.to_bytes(4, "little") + high.to_bytes(4, "little"))
    return address


def _write_segment(call: CallContext, table: int, *, local: bool) -> None:
    """Store a segment descriptor; if the table is the one in use, segments in use get it at once."""
    call.vcpu.privilege.raise_at(_write_entry(call))
    if call.cpu.eax == table:
        call.vcpu.reload(local, call.cpu.edx)


@serves("WriteGDTEntry")
def write_gdt_entry(call: CallContext) -> None:
    """Store a GDT entry; a kernel segment is raised to the guest's ring at once."""
    _write_segment(call, call.cpu.gdt.base, local=False)


@serves("WriteLDTEntry")
def write_ldt_entry(call: CallContext) -> None:
    """Store an LDT entry; a kernel segment is raised to the guest's ring at once."""
    _write_segment(call, call.cpu.ldt.base, local=True)


@serves("WriteIDTEntry")
def write_idt_entry(call: CallContext) -> None:
    """Store an IDT gate: events read the guest's table, so nothing else is needed."""
    _write_entry(call)


@serves("UpdateKernelStack")
def update_kernel_stack(call: CallContext) -> None:
    """SS (EAX) and ESP (EDX) for entries from user mode."""
    call.vcpu.privilege.stack = (call.cpu.eax & 0xFFFC, call.cpu.edx)
