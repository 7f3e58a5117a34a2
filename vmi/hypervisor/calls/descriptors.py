# SPDX-License-Identifier: GPL-2.0-only
"""Descriptor tables, and those of their entries that the ROM can't just store."""

from __future__ import annotations

from vmi.hypervisor.calls import CallContext, serves


@serves("SetGDT")
def set_gdt(call: CallContext) -> None:
    """LGDT."""
    call.vcpu.load_gdt(*call.vcpu.linear.table_pointer(call.address(call.cpu.eax)))


@serves("SetIDT")
def set_idt(call: CallContext) -> None:
    """LIDT."""
    call.vcpu.load_idt(*call.vcpu.linear.table_pointer(call.address(call.cpu.eax)))


@serves("SetLDT")
def set_ldt(call: CallContext) -> None:
    """LLDT of the low word of EAX."""
    call.vcpu.load_ldt(call.cpu.eax & 0xFFFF)


@serves("SetTR")
def set_task_register(call: CallContext) -> None:
    """LTR of the low word of EAX."""
    call.vcpu.load_task(call.cpu.eax & 0xFFFF)


def _write_entry(call: CallContext) -> int:
    """Store a descriptor: EAX table, EDX index, ECX low dword, first stack argument high dword."""
    address = call.address(call.cpu.eax + 8 * call.cpu.edx)
    high = call.stack_argument(0)
    call.vcpu.linear.write(address, call.cpu.ecx.to_bytes(4, "little") + high.to_bytes(4, "little"))
    return address


def _write_segment(call: CallContext, table: int, *, local: bool) -> None:
    """Store a segment descriptor; if the table is the one in use, segments in use get it at once."""
    call.vcpu.privilege.raise_at(_write_entry(call))
    if call.address(call.cpu.eax) == table:
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
