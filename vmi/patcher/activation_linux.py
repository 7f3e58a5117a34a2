# SPDX-License-Identifier: GPL-2.0-only
"""Activation's head for Linux: no stack, no known address, and boot_params in place of a memory map.

A kernel inside a bzImage is moved by its decompressor and started at its first byte, with ESI at
boot_params and no stack that could be relied on. Its own list of words to move is empty in a patched
file, so this head does that work for kernel and segment alike; the instructions up to there hold no
absolute address that matters. The only word it borrows is boot_params' own scratch word, for one `call`.

Memory is kept by a node of boot_params' setup_data list: the kernel reserves a node with all of its
length before it allocates anything, and still maps it, which a hole in the memory map would not be. The
node begins a page before the segment so that the reserved range begins with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from vmi.patcher.place import LINUX_PROTOCOL, Layout
from vmi.sitetable import MAGIC, Header, MapStatus, header_offset

SCRATCH = 0x1E4  # the offsets of struct boot_params
PROTOCOL = 0x206
SETUP_DATA = 0x250
NODE_SIZE = 16  # next, type, length of what follows
NODE_TYPE = int.from_bytes(MAGIC, "little")
FRAME = 36  # bytes of pushfd and pushad
SAVED_ESI = 4  # in that frame

MOVING = ("rom_reserve", "sites", "links", "original_entry", "activation_entry", "stack_top", "displaced")
"""The header's words that hold addresses."""

HEAD = """
entry:
    lea esp, [esi+{scratch + 4}]
    call here
here:
    pop esp
    lea esp, [esp+{stack_top - here}]
    pushfd
    pushad
    cld
    mov ebp, esp
    sub ebp, {stack_top - frame}
    mov dword ptr [ebp+{displacement}], ebp
    mov dword ptr [ebp+{boot_params}], esi
    test ebp, ebp
    je in_place

; ---- move the words, the kernel's and the segment's; EBP is the displacement
    lea esi, [ebp+{displaced}]
    lodsd
    lea edi, [eax+ebp+{unbias}]
    xor eax, eax
next_word:
    lodsb
    cmp al, 0xff
    je far_word
    test al, al
    je words_done
    add edi, eax
    add dword ptr [edi], ebp
    jmp next_word
far_word:
    add edi, 254
    jmp next_word
words_done:
    jmp moved

; ---- from here on addresses are right; move those in header and tables
moved:
    MOVE_HEADER
    mov ecx, {site_count}
    mov edi, {sites}
move_site:
    dec ecx
    js sites_moved
    add dword ptr [edi], ebp
    add dword ptr [edi+12], ebp
    cmp dword ptr [edi+8], 0
    je no_adaptor
    add dword ptr [edi+8], ebp
no_adaptor:
    add edi, {site_size}
    jmp move_site
sites_moved:
    mov ecx, {link_count}
    mov edi, {links}
move_link:
    dec ecx
    js in_place
    add dword ptr [edi], ebp
    add edi, {link_size}
    jmp move_link

; ---- the node that keeps the kernel's hands off, first in the list
in_place:
    mov dword ptr [{map_status}], {map_not_carved}
    mov esi, dword ptr [esp+{saved_esi}]
    cmp word ptr [esi+{protocol}], {protocol_least}
    jb processor
    mov edi, {node}
    mov eax, dword ptr [esi+{setup_data}]
    mov dword ptr [edi], eax
    mov eax, dword ptr [esi+{setup_data + 4}]
    mov dword ptr [edi+4], eax
    mov dword ptr [edi+8], {node_type}
    mov dword ptr [edi+12], {node_length}
    mov dword ptr [esi+{setup_data}], edi
    mov dword ptr [esi+{setup_data + 4}], 0
    mov dword ptr [{map_status}], {map_listed}
processor:
""".replace("MOVE_HEADER", "\n    ".join(f"add dword ptr [{{{name}_word}}], ebp" for name in MOVING))

TAIL = ""


def symbols(layout: Layout, header: Header, at: Callable[[int], int]) -> dict[str, int]:
    """What the sources above name; ``at`` gives the physical address of a virtual one."""
    words = {f.name: at(layout.base + header_offset(f.name)) for f in fields(Header)}
    return {
        **{f"{name}_word": words[name] for name in MOVING},
        "scratch": SCRATCH,
        "frame": FRAME,
        "displacement": words["displacement"],
        "boot_params": words["boot_params"],
        "map_status": words["map_status"],
        "displaced": at(header.displaced),
        "unbias": -layout.bias & 0xFFFFFFFF,
        "saved_esi": SAVED_ESI,
        "protocol": PROTOCOL,
        "protocol_least": LINUX_PROTOCOL,
        "setup_data": SETUP_DATA,
        "node": at(layout.node),
        "node_type": NODE_TYPE,
        "node_length": layout.base + header.size - layout.node - NODE_SIZE,
        "map_not_carved": MapStatus.NOT_CARVED,
        "map_listed": MapStatus.LISTED,
    }
