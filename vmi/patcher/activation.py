# SPDX-License-Identifier: GPL-2.0-only
"""The code that runs first in a patched kernel: find a ROM, start it, connect the slots, hand over.

It runs at the state of the boot protocol: flat segments, paging and interrupts off, CPL 0, at physical
addresses. All addresses in it are physical and fixed, because the segment is loaded where the program
header says; there is no stack to find out otherwise before one has been chosen. After VMI_Init it may
be at CPL 1, so from there on it uses plain instructions only.

Whatever happens, the kernel gets what its boot loader gave: every register but ESP, and the flags. Its
memory map and command line are copies inside the segment.
"""

from __future__ import annotations

from vmi import abi
from vmi.patcher.place import ACTIVATION_SIZE, COMMAND_LINE_SIZE, MAP_ENTRY_SIZE, ROM_RESERVE, Layout
from vmi.rom.assemble import assemble
from vmi.sitetable import (
    INLINE,
    LINK_SIZE,
    NO_CALL,
    SITE_SIZE,
    Header,
    MapStatus,
    SiteFlag,
    Status,
    header_offset,
)

MULTIBOOT_LOADED = 0x2BADB002  # EAX at entry, from a multiboot 1 loader
MBI_HAS_COMMAND_LINE = 0x04
MBI_HAS_MAP = 0x40  # flags in the first word of the multiboot information

_SOURCE = """
entry:
    mov esp, {stack_top}
    pushfd
    pushad
    cld
    cmp eax, {multiboot_loaded}
    jne scan
    call carve
    call move_command_line

; ---- find a ROM: the first whose header, checksum and licence are right
scan:
    mov esi, {scan_start}
candidate:
    cmp word ptr [esi], {rom_signature}
    jne next_candidate
    cmp dword ptr [esi+{vrom_at}], {vrom_signature}
    jne next_candidate
    cmp byte ptr [esi+{major_at}], {major}
    jne next_candidate
    cmp word ptr [esi+{pci_at}], 0
    je next_candidate
    movzx ecx, byte ptr [esi+{length_at}]
    shl ecx, 9
    jecxz next_candidate
    movzx edi, word ptr [esi+{licence_at}]
    test edi, edi
    je next_candidate
    lea edx, [edi+7]
    cmp edx, ecx
    ja next_candidate
    cmp dword ptr [esi+edi], {licence_gpl}
    je checksum
    cmp dword ptr [esi+edi], {licence_gpl_}
    jne next_candidate
    cmp word ptr [esi+edi+4], {licence_v2}
    jne next_candidate
    cmp byte ptr [esi+edi+6], 0
    jne next_candidate
checksum:
    xor eax, eax
    mov edx, ecx
sum_byte:
    add al, byte ptr [esi+edx-1]
    dec edx
    jne sum_byte
    test al, al
    je found
next_candidate:
    add esi, {scan_step}
    cmp esi, {scan_end}
    jb candidate
    jmp hand_over

; ---- copy it, start it
found:
    mov dword ptr [{rom_base}], esi
    cmp ecx, {reserve_size}
    ja too_large
    mov edi, {reserve}
    rep movsb
    mov ebx, {header}
    call {reserve + init_offset}
    test eax, eax
    jne refused

; ---- ask once per call
    xor ebx, ebx
ask:
    mov eax, ebx
    call {reserve + get_reloc_offset}
    mov dword ptr [ebx*8+{relocations}], eax
    movzx edx, dl
    mov dword ptr [ebx*8+{relocations + 4}], edx
    inc ebx
    cmp ebx, {call_count}
    jb ask

; ---- slots
    mov esi, {sites}
    mov ebp, {site_count}
slot:
    test ebp, ebp
    je links_start
    movzx eax, byte ptr [esi+5]
    cmp al, {no_call}
    je next_slot
    mov edi, dword ptr [esi]
    sub edi, {bias}
    movzx ecx, byte ptr [esi+4]
    cmp al, {inline}
    je slot_call
    mov edx, dword ptr [eax*8+{relocations}]
    mov eax, dword ptr [eax*8+{relocations + 4}]
    cmp eax, {call_rel}
    je slot_call
    cmp eax, {jump_rel}
    je slot_jump
    cmp eax, {nop}
    jne next_slot
    test byte ptr [esi+7], {nop_ok}
    je next_slot
    jmp fill
slot_jump:
    test byte ptr [esi+7], {jump_ok}
    je next_slot
    mov bl, 0xe9
    jmp connect
slot_call:
    mov bl, 0xe8
    mov eax, dword ptr [esi+8]
    test eax, eax
    je connect
    mov edx, eax
    sub edx, {bias}
connect:
    mov byte ptr [edi], bl
    sub edx, edi
    sub edx, 5
    mov dword ptr [edi+1], edx
    add edi, 5
    sub ecx, 5
fill:
    mov al, 0x90
    rep stosb
next_slot:
    add esi, {site_size}
    dec ebp
    jmp slot

; ---- calls inside adaptors
links_start:
    mov esi, {links}
    mov ebp, {link_count}
link:
    test ebp, ebp
    je active
    movzx eax, byte ptr [esi+4]
    cmp dword ptr [eax*8+{relocations + 4}], {call_rel}
    jne next_link
    mov edx, dword ptr [eax*8+{relocations}]
    mov edi, dword ptr [esi]
    sub edi, {bias}
    sub edx, edi
    sub edx, 5
    mov dword ptr [edi+1], edx
next_link:
    add esi, {link_size}
    dec ebp
    jmp link

active:
    mov dword ptr [{status}], {status_active}
    jmp hand_over
refused:
    mov dword ptr [{status}], {status_refused}
    jmp hand_over
too_large:
    mov dword ptr [{status}], {status_too_large}
hand_over:
    popad
    popfd
    jmp {original_entry}

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
    mov dword ptr [ebx+16], {command_line}
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
    mov dword ptr [ebx+48], {map_buffer}
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


def _word(text: str) -> int:
    return int.from_bytes(text.encode().ljust(4, b"\0"), "little")


def _field(name: str) -> int:
    return next(field.offset for field in abi.ROM_HEADER if field.name == name)


def activation_code(layout: Layout, header: Header) -> bytes:
    """The activation code that goes with a header, to stand at ``layout.activation``."""
    symbols = {
        "stack_top": layout.physical(layout.stack_top),
        "multiboot_loaded": MULTIBOOT_LOADED,
        "scan_start": abi.SCAN_START,
        "scan_end": abi.SCAN_END,
        "scan_step": abi.SCAN_STEP,
        "rom_signature": abi.ROM_SIGNATURE,
        "vrom_signature": abi.VROM_SIGNATURE,
        "vrom_at": _field("vrom_signature"),
        "major_at": _field("api_version_maj"),
        "major": abi.API_MAJOR,
        "pci_at": _field("pci_header_offs"),
        "length_at": _field("rom_length"),
        "licence_at": _field("license_offs"),
        "licence_gpl": _word("GPL"),
        "licence_gpl_": _word("GPL "),
        "licence_v2": _word("v2"),
        "init_offset": abi.INIT_OFFSET,
        "get_reloc_offset": abi.GET_RELOC_OFFSET,
        "call_count": len(abi.CALLS),
        "no_call": NO_CALL,
        "inline": INLINE,
        "call_rel": abi.Reloc.CALL_REL,
        "jump_rel": abi.Reloc.JUMP_REL,
        "nop": abi.Reloc.NOP,
        "jump_ok": SiteFlag.JUMP_OK,
        "nop_ok": SiteFlag.NOP_OK,
        "site_size": SITE_SIZE,
        "link_size": LINK_SIZE,
        "reserve": layout.physical(layout.rom_reserve),
        "reserve_size": ROM_RESERVE,
        "header": layout.physical(layout.base),
        "relocations": layout.physical(layout.relocations),
        "sites": layout.physical(header.sites),
        "site_count": header.site_count,
        "links": layout.physical(header.links),
        "link_count": header.link_count,
        "bias": layout.bias & 0xFFFFFFFF,
        "status": layout.physical(layout.base + header_offset("status")),
        "rom_base": layout.physical(layout.base + header_offset("rom_base")),
        "map_status": layout.physical(layout.base + header_offset("map_status")),
        "status_active": Status.ACTIVE,
        "status_refused": Status.REFUSED,
        "status_too_large": Status.TOO_LARGE,
        "map_none": MapStatus.NO_MAP,
        "map_not_carved": MapStatus.NOT_CARVED,
        "map_carved": MapStatus.CARVED,
        "mbi_has_command_line": MBI_HAS_COMMAND_LINE,
        "command_line": layout.physical(layout.base) + header.size - COMMAND_LINE_SIZE,
        "command_line_size": COMMAND_LINE_SIZE,
        "mbi_has_map": MBI_HAS_MAP,
        "map_buffer": layout.physical(layout.map_buffer),
        "map_buffer_last": layout.physical(layout.map_buffer) + layout.map_buffer_size - 3 * MAP_ENTRY_SIZE,
        "map_entry_size": MAP_ENTRY_SIZE,
        "segment_start": layout.physical(layout.base),
        "segment_end": layout.physical(layout.base) + header.size,
        "original_entry": layout.physical(header.original_entry),
    }
    values = {name: int(value) for name, value in symbols.items()}
    code = assemble(_SOURCE, layout.physical(layout.activation), values).code
    if len(code) > ACTIVATION_SIZE:
        raise ValueError(f"the activation code has {len(code)} bytes, its place has {ACTIVATION_SIZE}")
    return code
