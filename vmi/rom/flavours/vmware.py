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
from vmi.rom.layout import Promise
from vmi.rom.template import Flavour, Template, absent, body, code, gate
from vmi.rom.updates import flush_page, gate_if, linear_mapping, noting
from vmi.x86 import Cr0, Eflags

GATE_INTERRUPT = 0x82
# Gates after those of the calls.
INIT_GATE = len(abi.CALLS)  # VMI_Init: answer in EAX, return at the new privilege level
PENDING_GATE = INIT_GATE + 1  # interrupts are on now and one waits: deliver it, then return

# Words of the data page: offsets of dwords in it.
VIF = 0  # virtual interrupt flag: 0 or 200h
PENDING = 4  # 1 while an interrupt waits for VIF, else 0; the hypervisor writes it
IRET_SITE = 8  # return address of the last IRET call: the site is 5 bytes before it; 0 for SYSEXIT
USER_CS = 12  # SYSEXIT's selectors for user mode; 0 in USER_CS sends SYSEXIT to its gate
USER_SS = 16
IRET_VIF = 20  # VIF before the last IRET or SYSEXIT set it: what a fault of its iretd must show
IRET_RAISED = 1  # a bit of that word: IRET has put the kernel's level into the CS of the frame
IOPL = 24  # virtual IOPL in EFLAGS position; SetIOPLMask and the hypervisor write it
CR0, CR2, CR3, CR4 = 28, 32, 36, 40  # the guest's control registers; the hypervisor writes them
GDT, GDT_LIMIT = 44, 48  # linear base and limit of the GDT in use
IDT, IDT_LIMIT = 52, 56
LDT = 60  # linear base of the LDT in use, NO_TABLE for none
KERNEL_SS = 64  # stack of the kernel by UpdateKernelStack: selector | 1, or 0 for "see the TSS"
KERNEL_ESP = 68
# Quadwords, low dword first, written by the hypervisor.
HERTZ = 72  # cycles a second
REAL, AVAILABLE = 80, 88  # what to add to the time stamp counter
STOLEN = 96  # the counter itself

# Page-table entries that were changed, for a hypervisor that wants to know: WANTED is not 0 then.
WANTED = 104
QUEUED = 108  # how many addresses there are from QUEUE on, the oldest first
QUEUE = 0x100
QUEUE_SIZE = 256
# Address in the kernel's segments of a page of which no translation is cached, and a bit that says so, or 0.
UNCACHED = 112
UNCACHED_KNOWN = 1
# SetLinearMapping: for each slot first linear address, number of pages, first frame.
LINEAR = 0xC0

NO_TABLE = 0xFFFFFFFF

_WORDS = {
    "VIF": VIF,
    "PENDING": PENDING,
    "IRET_SITE": IRET_SITE,
    "USER_CS": USER_CS,
    "USER_SS": USER_SS,
    "IRET_VIF": IRET_VIF,
    "IOPL": IOPL,
    "CR0": CR0,
    "CR2": CR2,
    "CR3": CR3,
    "CR4": CR4,
    "GDT": GDT,
    "GDT_LIMIT": GDT_LIMIT,
    "IDT": IDT,
    "IDT_LIMIT": IDT_LIMIT,
    "LDT": LDT,
    "KERNEL_SS": KERNEL_SS,
    "KERNEL_ESP": KERNEL_ESP,
    "HERTZ": HERTZ,
    "REAL": REAL,
    "AVAILABLE": AVAILABLE,
    "STOLEN": STOLEN,
    "WANTED": WANTED,
    "QUEUED": QUEUED,
    "UNCACHED": UNCACHED,
}

# From where in a page on 6 bytes end on the next one, above the other bits of an address; and in how many of
# these places the last 4 bytes lie on both pages. In the others the first 4 do. See GetGDT.
_ON_TWO_PAGES, _BY_BASE = 0xFFB << 20, 3 << 20

KERNEL_SS_GIVEN = 1
_PRESENT_SEGMENT, _USER_LEVEL, _INDEX = 0x9000, 0x6000, 0xFFFC  # bits of a descriptor, and of a selector

_VM_AND_IOPL = int(Eflags.VM | Eflags.IOPL)
_CODE_BYTE = 0x08  # of a descriptor's byte 5: code, not data
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
@leave: xchg ss:[ecx + {{VIF - @here}}], eax
        test byte ptr [esp + 16], 3
        jnz short @named
        or byte ptr [esp + 16], 1       ; a kernel selector as the guest knows it
        or al, {IRET_RAISED}
@named: mov ss:[ecx + {{IRET_VIF - @here}}], eax
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
        pushfd
        pop eax
        test ah, {_NT_BYTE}
        jnz short @exit
        call @here
@here:  pop eax
        cmp dword ptr ss:[eax + {{USER_CS - @here}}], 0
        je short @exit
        cmp dword ptr ss:[eax + {{PENDING - @here}}], 0
        jne short @exit
        push dword ptr ss:[eax + {{VIF - @here}}]
        pop dword ptr ss:[eax + {{IRET_VIF - @here}}]
        mov dword ptr ss:[eax + {{IRET_SITE - @here}}], 0
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

# Calls that reach guest memory for the guest do it with the stack and the arguments as the call was made,
# so that a page fault there can be reported as the call's own, and the call be repeated. An entry on an
# 8-byte boundary lies on one page: its second half can't fault any more.
_STORE_ENTRY = """
        mov [eax + edx*8], ecx
        mov ecx, [esp + 4]
        mov [eax + edx*8 + 4], ecx
        ret
"""
_WRITE_IDT = f"""
        test al, 7
        jnz short @exit
        cmp ecx, [esp + 4]              ; is the argument there?
        {_STORE_ENTRY}
@exit:  jmp @gate
"""
# The LDT in use is the hypervisor's: segments in use get the new descriptor.
_WRITE_LDT = f"""
        test al, 7
        jnz short @exit
        cmp ecx, [esp + 4]
        push ecx
        call @here
@here:  pop ecx
        cmp eax, ss:[ecx + {{LDT - @here}}]
        pop ecx
        je short @exit
        {_STORE_ENTRY}
@exit:  jmp @gate
"""
# In the GDT in use, what is no present segment, or one of user code that no register holds, is just stored.
# Kernels rewrite the data segment that user code has in GS at each switch of tasks: GS is loaded again.
_WRITE_GDT = f"""
        test al, 7
        jnz @exit
        cmp ecx, [esp + 4]
        push ecx
        call @here
@here:  pop ecx
        cmp eax, ss:[ecx + {{GDT - @here}}]
        jne short @plain
        mov ecx, [esp + 8]
        not ecx
        test ecx, {_PRESENT_SEGMENT}
        jnz short @plain
        test ecx, {_USER_LEVEL}
        jnz @busy
        push eax
        lea eax, [edx*8]
        mov ecx, ds
        xor ecx, eax
        test ecx, {_INDEX}
        jz short @used
        mov ecx, es
        xor ecx, eax
        test ecx, {_INDEX}
        jz short @used
        mov ecx, fs
        xor ecx, eax
        test ecx, {_INDEX}
        jz short @used
        mov ecx, gs
        xor ecx, eax
        test ecx, {_INDEX}
        jz short @tls
        pop eax
@plain: pop ecx
        {_STORE_ENTRY}
@tls:   test byte ptr [esp + 13], {_CODE_BYTE}
        jnz short @used
        pop eax
        pop ecx
        mov [eax + edx*8], ecx
        mov ecx, [esp + 4]
        mov [eax + edx*8 + 4], ecx
        mov ecx, gs
        mov gs, ecx
        ret
@used:  pop eax
@busy:  pop ecx
@exit:  jmp @gate
"""
# Kernels set TS at each switch of tasks, and it mostly is set already.
_SET_CR0 = """
        push ecx
        call @here
@here:  pop ecx
        cmp eax, ss:[ecx + {CR0 - @here}]
        pop ecx
        jne @gate
        ret
"""
_CLTS = f"""
        push ecx
        call @here
@here:  pop ecx
        test byte ptr ss:[ecx + {{CR0 - @here}}], {int(Cr0.TS)}
        pop ecx
        jnz @gate
        ret
"""
_UPDATE_KERNEL_STACK = f"""
        call @here
@here:  pop ecx
        and eax, {0xFFFC}
        or eax, {KERNEL_SS_GIVEN}
        mov ss:[ecx + {{KERNEL_SS - @here}}], eax
        mov ss:[ecx + {{KERNEL_ESP - @here}}], edx
        ret
"""
_SET_IOPL = f"""
        call @here
@here:  pop ecx
        and eax, {int(Eflags.IOPL)}
        mov ss:[ecx + {{IOPL - @here}}], eax
        ret
"""
_FREQUENCY = """
        call @here
@here:  pop edx
        mov eax, ss:[edx + {HERTZ - @here}]
        mov edx, ss:[edx + {HERTZ + 4 - @here}]
        ret
"""
# The time stamp counter is the machine's virtual time; what it differs by from a counter is in a word.
_COUNTER = """
        cmp eax, 2
        ja short @none
        call @here
@here:  pop ecx
        lea ecx, [ecx + eax*8 + {REAL - @here}]
        je short @held                  ; the flags are still those of CMP
        rdtsc
        add eax, ss:[ecx]
        adc edx, ss:[ecx + 4]
        ret
@held:  mov eax, ss:[ecx]
        mov edx, ss:[ecx + 4]
        ret
@none:  xor eax, eax
        xor edx, edx
        ret
"""


def _table_pointer(table: str) -> Template:
    """A call that stores limit and base, in this order, as the instruction does.

    What is stored first means nothing: it makes a page fault come while the registers are still the
    caller's. If the 6 bytes lie on two pages it is on both, so that nothing is left behind.
    """
    return body(f"""
        push eax
        ror eax, 12
        sub eax, {_ON_TWO_PAGES}
        cmp eax, {_BY_BASE}
        pop eax
        jb short @base
        mov [eax], eax
        jmp short @store
@base:  mov [eax + 2], eax
@store: call @here
@here:  pop ecx
        mov edx, ss:[ecx + {{{table}_LIMIT - @here}}]
        mov [eax], dx
        mov edx, ss:[ecx + {{{table} - @here}}]
        mov [eax + 2], edx
        ret
        """)


def _shown(word: str) -> Template:
    """A call that gives a word of the data page."""
    return code(f"call @here\n@here: pop eax\nmov eax, ss:[eax + {{{word} - @here}}]\nret")


def _noting(store: str, *, entry: str, free: tuple[str, str]) -> Template:
    return noting(store, entry=entry, free=free, queue=QUEUE - QUEUED, size=QUEUE_SIZE)


_NOTICE = gate_if("WANTED")

_TEMPLATES: dict[str, Template] = {
    "CPUID": code("cpuid\nret"),
    "WRMSR": gate(),
    "RDMSR": gate(),
    "SetGDT": gate(),
    "SetLDT": gate(),
    "SetIDT": gate(),
    "SetTR": gate(),
    "GetGDT": _table_pointer("GDT"),
    "GetLDT": code("sldt eax\nmovzx eax, ax\nret"),
    "GetIDT": _table_pointer("IDT"),
    "GetTR": code("str eax\nmovzx eax, ax\nret"),
    "WriteGDTEntry": body(_WRITE_GDT),
    "WriteLDTEntry": body(_WRITE_LDT),
    "WriteIDTEntry": code(_WRITE_IDT),
    "UpdateKernelStack": code(_UPDATE_KERNEL_STACK),
    "SetCR0": code(_SET_CR0),
    "SetCR2": gate(),
    "SetCR3": gate(),
    "SetCR4": gate(),
    "GetCR0": _shown("CR0"),
    "GetCR2": _shown("CR2"),
    "GetCR3": _shown("CR3"),
    "GetCR4": _shown("CR4"),
    "WBINVD": code("ret"),  # there are no caches
    "SetDR": gate(),
    "GetDR": gate(),
    "RDPMC": gate(),
    "RDTSC": code("rdtsc\nret"),
    "CLTS": code(_CLTS),
    "EnableInterrupts": code(_ENABLE),
    "DisableInterrupts": code(_DISABLE),
    "GetInterruptMask": code(_GET_MASK),
    "SetInterruptMask": body(_SET_MASK),
    "IRET": body(_IRET),
    "SYSEXIT": body(_SYSEXIT),
    "Halt": gate(),
    "Reboot": gate(),
    "Shutdown": gate(),
    "SetPxE": _noting("mov [edx], eax", entry="edx", free=("eax", "ecx")),
    # Not present while its halves do not belong together.
    "SetPxELong": _noting(
        "mov dword ptr [ecx], 0\nmov [ecx + 4], edx\nmov [ecx], eax", entry="ecx", free=("eax", "edx")
    ),
    "UpdatePxE": _noting("", entry="eax", free=("ecx", "edx")),
    "UpdatePxELong": _noting("", entry="eax", free=("ecx", "edx")),
    "MachineToPhysical": code("ret"),  # the guest never sees another frame number than its own
    "PhysicalToMachine": code("ret"),
    "AllocatePage": _NOTICE,
    "ReleasePage": _NOTICE,
    "InvalPage": flush_page(UNCACHED_KNOWN),
    "FlushTLB": gate(),
    "SetLinearMapping": linear_mapping(LINEAR - QUEUED),
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
    "SetIOPLMask": code(_SET_IOPL),
    "SetInitialAPState": gate(),
    "APICWrite": gate(),
    "APICRead": gate(),
    "IODelay": code("ret"),
    "GetCycleFrequency": code(_FREQUENCY),
    "GetCycleCounter": body(_COUNTER),
    "SetAlarm": gate(),
    "CancelAlarm": gate(),
    "GetWallclockTime": gate(),
    "WallclockUpdated": gate(),
    "SetCallbacks": absent("Nobody knows its arguments or what it does."),
    "SetLazyMode": gate_if("QUEUED"),  # no mode makes a difference but for the end of another
}

FLAVOUR = Flavour(
    name="vmware",
    summary="ring compression under the toolkit's hypervisor, with the interrupt flag in ROM data",
    init="jmp init_gate",
    templates=_TEMPLATES,
    gate_interrupt=GATE_INTERRUPT,
    special_gates=("init_gate", "pending_gate"),
    words=_WORDS,
    promises=Promise.FAULTS_AT_CALL,
)
