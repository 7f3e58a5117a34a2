# SPDX-License-Identifier: GPL-2.0-only
"""Activation's head for kernels that run where they are linked, and what it does to multiboot information.

A boot loader that isn't multiboot 1 gives nothing that could be edited; the head then only keeps the
registers. Memory map and command line become copies inside the segment: the loader's own may lie
anywhere, and there is no room behind the map for the entries that it grows by.
"""

from __future__ import annotations

from collections.abc import Callable

from vmi.patcher.place import COMMAND_LINE_SIZE, MAP_ENTRY_SIZE, Layout
from vmi.sitetable import Header, MapStatus, header_offset

MULTIBOOT_LOADED = 0x2BADB002  # EAX at entry, from a multiboot 1 loader
MBI_HAS_COMMAND_LINE = 0x04
MBI_HAS_MAP = 0x40  # flags in the first word of the multiboot information

HEAD = """
entry:
    mov esp, {stack_top}
    pushfd
    pushad
    cld
    cmp eax, {multiboot_loaded}
    jne processor
    call carve
    call move_command_line
processor:
"""

TAIL = """
; ---- move the command line of the information at EBX to the end of the segment, if it fits there
move_command_line:
    test byte ptr [ebx], {mbi_has_command_line}
    je moved
    mov esi, dword ptr [ebx+16]
    mov edi, {command_line}
    mov ecx, {command_line_size}
copy_character:
    lodsb
    stosb
    test al, al
    je copied
    dec ecx
    jne copy_character
    ret
copied:
    mov dword ptr [ebx+16], {command_line_final}
moved:
    ret

; ---- copy the memory map of the information at EBX, with the segment shown as reserved
carve:
    mov dword ptr [{map_status}], {map_none}
    test byte ptr [ebx], {mbi_has_map}
    je carve_end
    mov dword ptr [{map_status}], {map_not_carved}
    xor ebp, ebp
    mov esi, dword ptr [ebx+48]
    mov ecx, dword ptr [ebx+44]
    add ecx, esi
    mov edi, {map_buffer}
map_entry:
    cmp esi, ecx
    jae map_end
    cmp edi, {map_buffer_last}
    ja carve_end
    cmp dword ptr [esi], 20
    jb carve_end
    cmp dword ptr [esi+20], 1
    jne map_copy
    cmp dword ptr [esi+8], 0
    jne map_copy
    mov eax, dword ptr [esi+4]
    cmp eax, {segment_end}
    jae map_copy
    mov edx, dword ptr [esi+16]
    add eax, dword ptr [esi+12]
    adc edx, 0
    jne map_split
    cmp eax, {segment_start}
    jbe map_copy
map_split:
    push edx
    push eax
    inc ebp
    mov eax, dword ptr [esi+4]
    cmp eax, {segment_start}
    jae map_middle
    mov edx, {segment_start}
    sub edx, eax
    push 1
    call map_emit
    mov eax, {segment_start}
map_middle:
    mov edx, {segment_end}
    cmp dword ptr [esp+4], 0
    jne map_reserve
    cmp edx, dword ptr [esp]
    jbe map_reserve
    mov edx, dword ptr [esp]
map_reserve:
    sub edx, eax
    push 2
    call map_emit
    pop eax
    pop edx
    sub eax, {segment_end}
    sbb edx, 0
    jb map_next
    mov dword ptr [edi], 20
    mov dword ptr [edi+4], {segment_end}
    mov dword ptr [edi+8], 0
    mov dword ptr [edi+12], eax
    mov dword ptr [edi+16], edx
    mov dword ptr [edi+20], 1
    or edx, eax
    je map_next
    add edi, {map_entry_size}
    jmp map_next
map_copy:
    mov dword ptr [edi], 20
    push esi
    push ecx
    add esi, 4
    add edi, 4
    mov ecx, 20
    rep movsb
    pop ecx
    pop esi
map_next:
    add esi, dword ptr [esi]
    add esi, 4
    jmp map_entry
map_end:
    test ebp, ebp
    je carve_end
    sub edi, {map_buffer}
    mov dword ptr [ebx+44], edi
    mov dword ptr [ebx+48], {map_buffer_final}
    mov dword ptr [{map_status}], {map_carved}
carve_end:
    ret

; ---- one entry at EDI: base EAX, length EDX, type on the stack
map_emit:
    mov dword ptr [edi], 20
    mov dword ptr [edi+4], eax
    mov dword ptr [edi+8], 0
    mov dword ptr [edi+12], edx
    mov dword ptr [edi+16], 0
    mov edx, dword ptr [esp+4]
    mov dword ptr [edi+20], edx
    add edi, {map_entry_size}
    ret 4
"""


def symbols(layout: Layout, header: Header, at: Callable[[int], int]) -> dict[str, int]:
    """What the sources above name; ``at`` gives the physical address of a virtual one."""
    return {
        "multiboot_loaded": MULTIBOOT_LOADED,
        "map_status": at(layout.base + header_offset("map_status")),
        "map_none": MapStatus.NO_MAP,
        "map_not_carved": MapStatus.NOT_CARVED,
        "map_carved": MapStatus.CARVED,
        "mbi_has_command_line": MBI_HAS_COMMAND_LINE,
        "command_line": at(layout.base + header.size - COMMAND_LINE_SIZE),
        "command_line_final": at(layout.base + header.size - COMMAND_LINE_SIZE),
        "command_line_size": COMMAND_LINE_SIZE,
        "mbi_has_map": MBI_HAS_MAP,
        "map_buffer": at(layout.map_buffer),
        "map_buffer_final": at(layout.map_buffer),
        "map_buffer_last": at(layout.map_buffer) + layout.map_buffer_size - 3 * MAP_ENTRY_SIZE,
        "map_entry_size": MAP_ENTRY_SIZE,
        "segment_start": at(layout.base),
        "segment_end": at(layout.base) + header.size,
    }
