# SPDX-License-Identifier: GPL-2.0-only
"""The ROM for the hypervisor of this toolkit, in VMware's way: ring compression, with a data page.

What a guest does all the time stays in the ROM: the virtual interrupt flag is a word of the data page,
IRET and SYSEXIT set it and leave by a real `iretd`. Whatever needs the hypervisor goes to the call's
gate, `int 82h`, where EIP tells which call it is and every register is the guest's. The hypervisor
raises PENDING when an interrupt waits, so that code that lets interrupts in knows to call out.

The words' offsets are constants here, for the hypervisor to import. Two rules are the hypervisor's
part: it delivers no interrupt while EIP is in ROM code, except at a gate (so that "set the flag, then
iretd" is one step for the guest), and it keeps PENDING true to what waits.
"""

from __future__ import annotations

from vmi import abi
from vmi.abi import INTERRUPT_FLAG
from vmi.rom.template import Flavour, Template, absent, body, code, gate
from vmi.x86 import Eflags

GATE_INTERRUPT = 0x82
# Gates after those of the calls.
INIT_GATE = len(abi.CALLS)  # VMI_Init: answer in EAX, return at the new privilege level
PENDING_GATE = INIT_GATE + 1  # interrupts are on now and one waits: deliver it, then return

# Words of the data page: offsets of dwords in it.
VIF = 0  # virtual interrupt flag: 0 or 200h
PENDING = 4  # 1 while an interrupt waits for VIF, else 0; the hypervisor writes it
IRET_SITE = 8  # return address of the last IRET call: the site is 5 bytes before it
USER_CS = 12  # SYSEXIT's selectors for user mode; 0 in USER_CS sends SYSEXIT to its gate
USER_SS = 16
IRET_VIF = 20  # VIF before the last IRET call set it: what a fault of its iretd must show
IOPL = 24  # virtual IOPL in EFLAGS position; the hypervisor writes it

_WORDS = {
    "VIF": VIF,
    "PENDING": PENDING,
    "IRET_SITE": IRET_SITE,
    "USER_CS": USER_CS,
    "USER_SS": USER_SS,
    "IRET_VIF": IRET_VIF,
    "IOPL": IOPL,
}

_VM_AND_IOPL = int(Eflags.VM | Eflags.IOPL)
_NT_BYTE = int(Eflags.NT) >> 8
_IF_BYTE = INTERRUPT_FLAG >> 8  # VIF is written by its second byte where a slot has no room for a dword

# The interrupt-flag calls preserve all registers and assume only CS and SS, so they reach the data
# page through SS from their own EIP. Flags are free.
_ENABLE = f"""
        push ecx
        call @here
@here:  pop ecx
        mov byte ptr ss:[ecx + {{VIF + 1 - @here}}], {_IF_BYTE}
        cmp dword ptr ss:[ecx + {{PENDING - @here}}], 0
        pop ecx
        jne pending_gate
        ret
"""
_DISABLE = """
        push ecx
        call @here
@here:  pop ecx
        mov dword ptr ss:[ecx + {VIF - @here}], 0
        pop ecx
        ret
"""
_GET_MASK = """
        call @here
@here:  pop eax
        mov eax, ss:[eax + {VIF - @here}]
        ret
"""
_SET_MASK = f"""
        push ecx
        push eax
        call @here
@here:  pop ecx
        and eax, {INTERRUPT_FLAG}
        mov ss:[ecx + {{VIF - @here}}], eax
        jz short @off                   ; the flags are still those of AND
        cmp dword ptr ss:[ecx + {{PENDING - @here}}], 0
@off:   pop eax
        pop ecx
        jne pending_gate
        ret
"""
# Stack: return address, EIP, CS, EFLAGS, and ESP, SS for user mode. The hypervisor's are: virtual-8086
# mode, another IOPL, the return to another task, and an interrupt that waits for the flag.
_IRET = f"""
        push eax
        push ecx
        call @here
@here:  pop ecx
        mov eax, [esp + 8]
        mov ss:[ecx + {{IRET_SITE - @here}}], eax
        pushfd
        pop eax
        test ah, {_NT_BYTE}
        jnz short @exit
        mov eax, [esp + 20]
        xor eax, ss:[ecx + {{IOPL - @here}}]
        test eax, {_VM_AND_IOPL}
        jnz short @exit
        and eax, {INTERRUPT_FLAG}
        jz short @leave
        cmp dword ptr ss:[ecx + {{PENDING - @here}}], 0
        jne short @exit
@leave: test byte ptr [esp + 16], 3
        jnz short @named
        or byte ptr [esp + 16], 1       ; a kernel selector as the guest knows it
@named: xchg ss:[ecx + {{VIF - @here}}], eax
        mov ss:[ecx + {{IRET_VIF - @here}}], eax
        pop ecx
        pop eax
        lea esp, [esp + 4]
        iretd
@exit:  pop ecx
        pop eax
        jmp @gate
"""
# SYSEXIT has no frame: one is built, with EDX and ECX as the instruction uses them.
_SYSEXIT = f"""
        push eax
        call @here
@here:  pop eax
        cmp dword ptr ss:[eax + {{USER_CS - @here}}], 0
        je short @exit
        cmp dword ptr ss:[eax + {{PENDING - @here}}], 0
        jne short @exit
        push dword ptr ss:[eax + {{USER_SS - @here}}]
        push ecx
        pushfd
        push dword ptr ss:[eax + {{USER_CS - @here}}]
        push edx
        mov byte ptr ss:[eax + {{VIF + 1 - @here}}], {_IF_BYTE}
        mov eax, [esp + 20]
        iretd
@exit:  pop eax
        jmp @gate
"""

_NO_APIC = "The virtual machine has no local APIC."
# The guest's own page tables are in use, so a notice brings nothing new.
_NOTICE = code("ret")

_TEMPLATES: dict[str, Template] = {
    "CPUID": code("cpuid\nret"),
    "WRMSR": gate(),
    "RDMSR": gate(),
    "SetGDT": gate(),
    "SetLDT": gate(),
    "SetIDT": gate(),
    "SetTR": gate(),
    "GetGDT": gate(),
    "GetLDT": gate(),
    "GetIDT": gate(),
    "GetTR": gate(),
    "WriteGDTEntry": gate(),
    "WriteLDTEntry": gate(),
    "WriteIDTEntry": gate(),
    "UpdateKernelStack": gate(),
    "SetCR0": gate(),
    "SetCR2": gate(),
    "SetCR3": gate(),
    "SetCR4": gate(),
    "GetCR0": gate(),
    "GetCR2": gate(),
    "GetCR3": gate(),
    "GetCR4": gate(),
    "WBINVD": gate(),
    "SetDR": gate(),
    "GetDR": gate(),
    "RDPMC": absent("There are no performance counters, and the instruction itself says so by faulting."),
    "RDTSC": code("rdtsc\nret"),
    "CLTS": gate(),
    "EnableInterrupts": code(_ENABLE),
    "DisableInterrupts": code(_DISABLE),
    "GetInterruptMask": code(_GET_MASK),
    "SetInterruptMask": body(_SET_MASK),
    "IRET": body(_IRET),
    "SYSEXIT": body(_SYSEXIT),
    "Halt": gate(),
    "Reboot": gate(),
    "Shutdown": gate(),
    "SetPxE": code("mov [edx], eax\nret"),
    # Not present while its halves do not belong together.
    "SetPxELong": code("mov dword ptr [ecx], 0\nmov [ecx + 4], edx\nmov [ecx], eax\nret"),
    "UpdatePxE": _NOTICE,
    "UpdatePxELong": _NOTICE,
    "MachineToPhysical": code("ret"),  # the guest never sees another frame number than its own
    "PhysicalToMachine": code("ret"),
    "AllocatePage": _NOTICE,
    "ReleasePage": _NOTICE,
    "InvalPage": gate(),
    "FlushTLB": gate(),
    "SetLinearMapping": _NOTICE,
    # Port instructions trap at the guest's privilege level; the call only spares the decoding.
    "INL": code("in eax, dx\nret"),
    "INB": code("in al, dx\nret"),
    "INW": code("in ax, dx\nret"),
    "INSL": code("rep insd\nret"),
    "INSB": code("rep insb\nret"),
    "INSW": code("rep insw\nret"),
    "OUTL": code("out dx, eax\nret"),
    "OUTB": code("out dx, al\nret"),
    "OUTW": code("out dx, ax\nret"),
    "OUTSL": code("rep outsd\nret"),
    "OUTSB": code("rep outsb\nret"),
    "OUTSW": code("rep outsw\nret"),
    "SetIOPLMask": gate(),
    "SetInitialAPState": absent("The virtual machine has one processor."),
    "APICWrite": absent(_NO_APIC),
    "APICRead": absent(_NO_APIC),
    "IODelay": code("ret"),
    "GetCycleFrequency": gate(),
    "GetCycleCounter": gate(),
    "SetAlarm": gate(),
    "CancelAlarm": gate(),
    "GetWallclockTime": gate(),
    "WallclockUpdated": gate(),
    "SetCallbacks": absent("Nobody knows its arguments or what it does."),
    "SetLazyMode": code("ret"),  # nothing is ever queued
}

FLAVOUR = Flavour(
    name="vmware",
    summary="ring compression under the toolkit's hypervisor, with the interrupt flag in ROM data",
    init="jmp init_gate",
    templates=_TEMPLATES,
    gate_interrupt=GATE_INTERRUPT,
    special_gates=("init_gate", "pending_gate"),
    words=_WORDS,
)
