# SPDX-License-Identifier: GPL-2.0-only
"""The ROM without a hypervisor: every call is its own native instruction.

A kernel that runs on this ROM does what it does without one, through calls. That makes it the oracle
for the interface itself: adaptors, relocations and calling convention, with the processor as judge.
It writes no memory but what the native instruction writes, and runs at privilege level 0.
"""

from __future__ import annotations

from vmi.abi import INTERRUPT_FLAG, FlushFlag
from vmi.rom.template import Flavour, Template, absent, body, code
from vmi.x86 import Cr4, Eflags

_GLOBAL_PAGES = int(Cr4.PGE)
_IOPL = int(Eflags.IOPL)

_NO_TIMER = "A bare machine has no counters and alarms besides its devices, which the guest drives itself."
_NO_APIC = "The guest reaches its local APIC by plain loads and stores."
_NO_NOTICE = "Nobody has to be told: page tables are the guest's own, in memory."

# `mov drN, edx; ret` is 4 bytes long for every N, so N is an index into the code.
_SET_DR = "\n".join(f"mov dr{n}, edx\nret" for n in range(8))
_GET_DR = "\n".join(f"mov eax, dr{n}\nret" for n in range(8))
_DR_DISPATCH = """
        and eax, 7
        call @here
@here:  pop ecx
        lea ecx, [ecx + eax*4 + {@table - @here}]
        jmp ecx
@table:
"""
# EAX table, EDX index, ECX low word, high word on the stack. Nothing of an entry on two pages is stored
# unless both can be written.
_WRITE_ENTRY = """
        lea edx, [eax + edx*8]
        mov eax, [esp + 4]
        test dl, 7
        jnz short @apart
        mov [edx], ecx
        mov [edx + 4], eax
        ret
@apart: or dword ptr [edx], 0
        mov [edx + 4], eax
        mov [edx], ecx
        ret
"""

_TEMPLATES: dict[str, Template] = {
    "CPUID": code("cpuid\nret"),
    "WRMSR": code("wrmsr\nret"),
    "RDMSR": code("rdmsr\nret"),
    "SetGDT": code("lgdt [eax]\nret"),
    "SetLDT": code("lldt ax\nret"),
    "SetIDT": code("lidt [eax]\nret"),
    "SetTR": code("ltr ax\nret"),
    "GetGDT": code("sgdt [eax]\nret"),
    "GetLDT": code("sldt eax\nmovzx eax, ax\nret"),
    "GetIDT": code("sidt [eax]\nret"),
    "GetTR": code("str eax\nmovzx eax, ax\nret"),
    "WriteGDTEntry": code(_WRITE_ENTRY),
    "WriteLDTEntry": code(_WRITE_ENTRY),
    "WriteIDTEntry": code(_WRITE_ENTRY),
    "UpdateKernelStack": absent("The processor reads the kernel stack from the guest's own TSS."),
    "SetCR0": code("mov cr0, eax\nret"),
    "SetCR2": code("mov cr2, eax\nret"),
    "SetCR3": code("mov cr3, eax\nret"),
    "SetCR4": code("mov cr4, eax\nret"),
    "GetCR0": code("mov eax, cr0\nret"),
    "GetCR2": code("mov eax, cr2\nret"),
    "GetCR3": code("mov eax, cr3\nret"),
    "GetCR4": code("mov eax, cr4\nret"),
    "WBINVD": code("wbinvd\nret"),
    "SetDR": body(_DR_DISPATCH + _SET_DR),
    "GetDR": body(_DR_DISPATCH + _GET_DR),
    "RDPMC": code("rdpmc\nret"),
    "RDTSC": code("rdtsc\nret"),
    "CLTS": code("clts\nret"),
    "EnableInterrupts": code("sti\nnop\nret"),
    "DisableInterrupts": code("cli\nret"),
    "GetInterruptMask": code(f"pushfd\npop eax\nand eax, {INTERRUPT_FLAG}\nret"),
    # Not popf: the argument promises nothing about the other flags.
    "SetInterruptMask": code(f"test eax, {INTERRUPT_FLAG}\njz short @off\nsti\nnop\nret\n@off: cli\nret"),
    "IRET": code("lea esp, [esp + 4]\niretd"),
    "SYSEXIT": code("sti\nsysexit"),
    "Halt": code("sti\nhlt\nret"),
    "Reboot": absent("Machines differ in how they restart, and the guest knows its own."),
    "Shutdown": absent("Machines differ in how they switch off, and the guest knows its own."),
    "SetPxE": code("mov [edx], eax\nret"),
    # Not present while its halves do not belong together.
    "SetPxELong": code("mov dword ptr [ecx], 0\nmov [ecx + 4], edx\nmov [ecx], eax\nret"),
    # Linux calls them without asking whenever the Set calls are offered.
    "UpdatePxE": code("ret"),
    "UpdatePxELong": code("ret"),
    "MachineToPhysical": code("ret"),  # the same frame
    "PhysicalToMachine": code("ret"),
    "AllocatePage": absent(_NO_NOTICE),
    "ReleasePage": absent(_NO_NOTICE),
    "InvalPage": code("invlpg [eax]\nret"),
    "FlushTLB": body(f"""
        test eax, {int(FlushFlag.GLOBAL)}
        jz short @local
        mov ecx, cr4
        test ecx, {_GLOBAL_PAGES}
        jz short @local
        mov edx, ecx
        and edx, {~_GLOBAL_PAGES & 0xFFFFFFFF}
        mov cr4, edx                    ; any change of PGE drops global translations too
        mov cr4, ecx
        ret
@local: mov eax, cr3
        mov cr3, eax
        ret
        """),
    "SetLinearMapping": absent(_NO_NOTICE),
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
    "SetIOPLMask": code(f"""
        and eax, {_IOPL}
        pushfd
        and dword ptr [esp], {~_IOPL & 0xFFFFFFFF}
        or [esp], eax
        popfd
        ret
        """),
    "SetInitialAPState": absent("Other processors start through the local APIC, as the guest does it."),
    "APICWrite": absent(_NO_APIC),
    "APICRead": absent(_NO_APIC),
    "IODelay": absent("The guest's own access to an unused port is the delay."),
    "GetCycleFrequency": absent(_NO_TIMER),
    "GetCycleCounter": absent(_NO_TIMER),
    "SetAlarm": absent(_NO_TIMER),
    "CancelAlarm": absent(_NO_TIMER),
    "GetWallclockTime": absent(_NO_TIMER),
    "WallclockUpdated": absent(_NO_TIMER),
    "SetCallbacks": absent("Nobody knows its arguments or what it does."),
    "SetLazyMode": absent("Nothing is ever queued."),
}

FLAVOUR = Flavour(
    name="native",
    summary="no hypervisor: each call is its native instruction, at privilege level 0",
    init="xor eax, eax\nret",
    templates=_TEMPLATES,
)
