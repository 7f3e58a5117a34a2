# SPDX-License-Identifier: GPL-2.0-only
"""The code that runs first in a patched kernel: find a ROM, start it, connect the slots, hand over.

It runs at the state of the boot protocol: flat segments, paging and interrupts off, CPL 0, at physical
addresses. All addresses in it are physical. Most kernels run where the program header says, so these are
fixed; one that may run elsewhere has them moved by the code's head. After VMI_Init it may be at CPL 1, so
from there on it uses plain instructions only.

Whatever happens, the kernel gets what its boot loader gave: every register but ESP, and the flags. What
the boot loader says of memory is made to leave the segment out; that is the head's part, which knows the
boot protocol (``activation_multiboot``, ``activation_linux``), or that the segment has to move first
(``activation_lifted``).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from vmi import abi
from vmi.patcher import absolute, activation_lifted, activation_linux, activation_multiboot
from vmi.patcher.place import ROM_RESERVE, Layout
from vmi.rom.assemble import assemble
from vmi.rom.layout import CALL_TABLE, CallTable, Promise
from vmi.sitetable import (
    INLINE,
    LINK_SIZE,
    NO_CALL,
    SITE_SIZE,
    Header,
    ImageFlag,
    SiteFlag,
    Status,
    header_offset,
)

LEFT_NATIVE = SiteFlag.RECOVERED | SiteFlag.ISOLATED
"""Flags of slots that are not connected; a ROM that promises `FAULTS_AT_CALL` takes `RECOVERED` away.

Even then a slot with an adaptor stays native: what would fault is the call in the adaptor. Isolated code
finds no adaptor mapped. That it isn't isolated without PAE helps nobody to connect it: some processors have
PAE and CPUID doesn't show it, and a kernel with the code needs PAE anyway.
"""

_SOURCE = """
; ---- slots that must stay as they are
    mov dword ptr [{unconnected}], {left_native}

; ---- find a ROM: the first whose header, checksum and licence are right
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
    cmp dword ptr [{status}], {status_active}
    je started_before ; the kernel has started once: the copy is in use
    mov edi, {reserve}
    rep movsb
started_before:
    cmp dword ptr [{reserve + record_at}], {record_magic}
    jne start_rom
    cmp byte ptr [{reserve + record_at + 4}], {record_version}
    jne start_rom
    test byte ptr [{reserve + record_at + promises_at}], {faults_at_call}
    je start_rom
    and dword ptr [{unconnected}], {-1 - recovered}
start_rom:
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
    mov dl, byte ptr [esi+7]
    test byte ptr [{unconnected}], dl
    jne next_slot
    test dl, {recovered}
    je may_connect
    cmp dword ptr [esi+8], 0
    jne next_slot
may_connect:
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
CLEAR    jmp hand_over
refused:
    cmp dword ptr [{status}], {status_active}
    je hand_over
    mov dword ptr [{status}], {status_refused}
    jmp hand_over
too_large:
    mov dword ptr [{status}], {status_too_large}
hand_over:
    popad
    popfd
    jmp {leave}
"""

_CLEAR = """
; ---- bytes that only a kernel without a ROM needs; the list has the form of `displaced`
    mov esi, {cleared}
    lodsd
    lea edi, [eax+{unbias}]
    xor eax, eax
next_byte:
    lodsb
    cmp al, 0xff
    je far_byte
    test al, al
    je hand_over
    add edi, eax
    mov byte ptr [edi], 0
    jmp next_byte
far_byte:
    add edi, 254
    jmp next_byte
"""


def _word(text: str) -> int:
    return int.from_bytes(text.encode().ljust(4, b"\0"), "little")


def _field(name: str) -> int:
    return next(field.offset for field in abi.ROM_HEADER if field.name == name)


@dataclass(frozen=True, slots=True)
class Activation:
    """The code, to stand at ``Layout.activation``, and the virtual addresses of the absolute words in it."""

    code: bytes
    words: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Activation({len(self.code)} bytes, {len(self.words)} absolute words)"


def activation(layout: Layout, header: Header, leave: int = 0) -> Activation:
    """The activation code that goes with a header.

    ``leave`` is the virtual address that it goes to at its end, the original entry point if 0.
    """
    code = _assembled(layout, header, leave or header.original_entry, 0)
    room = layout.relocations - layout.activation
    if len(code) > room:
        raise ValueError(f"the activation code has {len(code)} bytes, its place has {room}")
    shifted = _assembled(layout, header, leave or header.original_entry, absolute.SHIFT)
    return Activation(code, tuple(layout.activation + at for at in absolute.differences(code, shifted)))


def _head(flags: int) -> ModuleType:
    if flags & ImageFlag.LINUX:
        return activation_linux
    return activation_lifted if flags & ImageFlag.LIFTED else activation_multiboot


def _assembled(layout: Layout, header: Header, leave: int, shift: int) -> bytes:
    """The code for a segment ``shift`` bytes above the addresses in ``layout``, ``header`` and ``leave``."""

    def at(vaddr: int) -> int:
        return layout.physical(vaddr) + shift

    head = _head(header.image_flags)
    symbols = {
        "stack_top": at(layout.stack_top),
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
        "left_native": LEFT_NATIVE,
        "recovered": SiteFlag.RECOVERED,
        "record_at": CALL_TABLE,
        "record_magic": int.from_bytes(CallTable.MAGIC, "little"),
        "record_version": CallTable.VERSION,
        "promises_at": CallTable.PROMISES,
        "faults_at_call": Promise.FAULTS_AT_CALL,
        "site_size": SITE_SIZE,
        "link_size": LINK_SIZE,
        "reserve": at(layout.rom_reserve),
        "reserve_size": ROM_RESERVE,
        "header": at(layout.base),
        "relocations": at(layout.relocations),
        "sites": at(header.sites),
        "site_count": header.site_count,
        "links": at(header.links),
        "link_count": header.link_count,
        "cleared": at(header.cleared),
        "bias": layout.bias & 0xFFFFFFFF,
        "unbias": -layout.bias & 0xFFFFFFFF,
        "status_active": Status.ACTIVE,
        "status_refused": Status.REFUSED,
        "status_too_large": Status.TOO_LARGE,
        "leave": at(leave),
    }
    for name in ("status", "rom_base", "unconnected"):
        symbols[name] = at(layout.base + header_offset(name))
    symbols.update(head.symbols(layout, header, at))
    values = {name: int(value) for name, value in symbols.items()}
    source = _SOURCE.replace("CLEAR    jmp hand_over\n", _CLEAR if header.cleared else "    jmp hand_over\n")
    return assemble(head.HEAD + source + head.TAIL, at(layout.activation), values).code
