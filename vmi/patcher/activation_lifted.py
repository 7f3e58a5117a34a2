# SPDX-License-Identifier: GPL-2.0-only
"""Activation's head for a segment that isn't loaded where it belongs, but behind the image.

It runs where it was loaded, before anything else does, and everything that it has to do with what the boot
loader gave happens there: memory map and command line become copies in the segment as always. Then the
segment goes down to where it belongs, and activation goes on there. So only two addresses count in this
head: where things are now, and where they will be; its own jumps and calls are relative and hold in both.

What the boot loader left in the segment's way is handled as the kernel's need for it allows: the
information itself is copied, memory that isn't there, modules and what can't be copied end the start with a
message, and the rest (symbols, drives, names, tables of firmware) is taken out of the information.
"""

from __future__ import annotations

from collections.abc import Callable

from vmi.patcher import activation_multiboot
from vmi.patcher.place import Layout
from vmi.sitetable import Header, MapStatus

MBI_HAS_MEMORY, MBI_HAS_MODULES, MBI_HAS_SECTIONS = 0x01, 0x08, 0x20
MBI_SIZE = 116  # bytes
SAVED_EBX = 16  # in what PUSHAD leaves, from ESP on
SCREEN = 0xB8000
SERIAL = 0x3F8
RED = 0x4F
MESSAGE = "vmi: this kernel's .vmi segment must go where the boot loader left something else"

OPTIONAL = (
    (0x10, 36, 1),  # symbols of a.out files
    (0x80, 56, 1),  # drives
    (0x100, 60, 1),  # the BIOS's configuration table
    (0x200, 64, 1),  # the boot loader's name
    (0x400, 68, 20),  # APM table
    (0x800, 72, 512),  # VBE information
    (0x800, 76, 256),  # VBE mode
)
"""What a kernel can do without: bit in the information's flags, offset of the address, bytes there."""

HEAD = """
entry:
    mov esp, {loaded_stack_top}
    pushfd
    pushad
    cld
    cmp eax, {multiboot_loaded}
    jne go_down
    call carve
    call move_command_line
    mov ebp, esp
    call check_memory
    call check_optional
    call move_info
go_down:
    mov esi, {loaded}
    mov edi, {segment_start}
    mov ecx, {size}
    rep movsb
    sub esp, {lift}
    mov eax, {arrived}
    jmp eax
arrived:
"""

_TAIL = """
; ---- the memory that the kernel needs to be there, at EBX
check_memory:
    test byte ptr [ebx], {mbi_has_memory}
    je check_map
    mov eax, dword ptr [ebx+4]
    cmp eax, {end_kib}
    jb blocked
    mov dword ptr [ebx+4], {start_kib}
check_map:
    test byte ptr [ebx], {mbi_has_map}
    je check_command_line
    mov eax, dword ptr [ebx+48]
    mov ecx, dword ptr [ebx+44]
    cmp eax, {map_buffer_final}
    je check_command_line
    call overlaps
    jb blocked
check_command_line:
    test byte ptr [ebx], {mbi_has_command_line}
    je check_modules
    mov eax, dword ptr [ebx+16]
    cmp eax, {command_line_final}
    je check_modules
    mov ecx, 1
    call overlaps
    jb blocked
check_modules:
    test byte ptr [ebx], {mbi_has_modules}
    je checked
    mov edx, dword ptr [ebx+20]
    mov esi, dword ptr [ebx+24]
next_module:
    sub edx, 1
    jb checked
    mov eax, esi
    mov ecx, 16
    call overlaps
    jb blocked
    mov eax, dword ptr [esi]
    mov ecx, dword ptr [esi+4]
    sub ecx, eax
    call overlaps
    jb blocked
    mov eax, dword ptr [esi+8]
    mov ecx, 1
    call overlaps
    jb blocked
    add esi, 16
    jmp next_module
checked:
    ret

; ---- what the kernel can do without
check_optional:
    mov esi, {optional + lift}
next_optional:
    lodsd
    test eax, eax
    je check_sections
    movzx edi, ax
    test dword ptr [ebx], edi
    lodsd
    je next_optional
    movzx ecx, ax
    shr eax, 16
    mov eax, dword ptr [ebx+eax]
    call overlaps
    jae next_optional
    not edi
    and dword ptr [ebx], edi
    jmp next_optional
check_sections:
    test byte ptr [ebx], {mbi_has_sections}
    je checked
    mov edx, dword ptr [ebx+28]
    mov esi, dword ptr [ebx+36]
next_section:
    sub edx, 1
    jb checked
    mov eax, esi
    mov ecx, 40
    call overlaps
    jb no_sections
    mov eax, dword ptr [esi+12]
    mov ecx, dword ptr [esi+20]
    call overlaps
    jb no_sections
    add esi, 40
    jmp next_section
no_sections:
    and byte ptr [ebx], {no_sections_mask}
    ret

; ---- the information itself, at EBX; EBP is at the saved registers
move_info:
    mov eax, ebx
    mov ecx, {mbi_size}
    call overlaps
    jae checked
    mov esi, ebx
    mov edi, {info + lift}
    rep movsb
    mov dword ptr [ebp+{saved_ebx}], {info}
    ret

; ---- carry if any of the ECX bytes at EAX is where the segment goes
overlaps:
    test ecx, ecx
    je apart
    cmp eax, {segment_end}
    jae apart
    add eax, ecx
    dec eax
    cmp eax, {segment_start}
    cmc
    ret
apart:
    clc
    ret

; ---- end here, and say why
blocked:
    mov dword ptr [{map_status}], {map_blocked}
    mov esi, {message + lift}
    mov edi, {screen}
    mov ah, {red}
    mov edx, {serial}
put:
    lodsb
    test al, al
    je stop
    stosw
    out dx, al
    jmp put
stop:
    cli
    hlt
    jmp stop
message:
    .ascii "{MESSAGE}\\n"
    .byte 0
optional:
"""
TAIL = activation_multiboot.TAIL + _TAIL.replace("{MESSAGE}", MESSAGE)
TAIL += "".join(f"    .word {bit}, 0, {size}, {offset}\n" for bit, offset, size in OPTIONAL) + "    .long 0\n"


def symbols(layout: Layout, header: Header, at: Callable[[int], int]) -> dict[str, int]:
    """What the sources above name; ``at`` gives the physical address of a virtual one once all is moved."""
    final = activation_multiboot.symbols(layout, header, at)
    now = activation_multiboot.symbols(layout, header, lambda vaddr: at(vaddr) + layout.lift)
    keep = ("segment_start", "segment_end")
    return {name: final[name] if name in keep else value for name, value in now.items()} | {
        "command_line_final": final["command_line"],
        "map_buffer_final": final["map_buffer"],
        "map_blocked": MapStatus.BLOCKED,
        "lift": layout.lift,
        "loaded": at(layout.base) + layout.lift,
        "loaded_stack_top": at(layout.stack_top) + layout.lift,
        "size": header.size,
        "info": at(layout.info),
        "mbi_size": MBI_SIZE,
        "mbi_has_memory": MBI_HAS_MEMORY,
        "mbi_has_modules": MBI_HAS_MODULES,
        "mbi_has_sections": MBI_HAS_SECTIONS,
        "no_sections_mask": 0xFF & ~MBI_HAS_SECTIONS,
        "saved_ebx": SAVED_EBX,
        "start_kib": layout.physical(layout.base) >> 10,
        "end_kib": layout.physical(layout.base) + header.size >> 10,
        "screen": SCREEN,
        "serial": SERIAL,
        "red": RED,
    }
