# SPDX-License-Identifier: GPL-2.0-only
"""A guest that speaks the interface by itself, for what no patched kernel does: lazy modes.

It changes page-table entries in batches of 64, each batch in a lazy mode of the MMU or not, and drops
translations behind each batch, as a kernel's fork does.
"""

from __future__ import annotations

from vmi import abi
from vmi.rom.assemble import assemble

UPDATES, BATCH = 10_000, 64
_BASE, _FLAGS, _MAGIC = 0x100000, 0x10000, 0x1BADB002
_TABLE, _DIRECTORY, _PAGE = 0x180000, 0x181000, 0x200000
_ROM = 0xC0000

_SOURCE = """
header: .long {magic}, {flags}, {checksum}, header, header, 0, 0, start
gdt: .long 0, 0, 0xffff, 0x00cf9b00, 0xffff, 0x00cf9300
gdt_pointer: .word 23
 .long gdt
set_entry: .long 0
set_lazy: .long 0
flush: .long 0
start:
 mov esp, {stack}
 lgdt [{{gdt_pointer}}]
 mov ax, 0x10
 mov ds, ax
 mov es, ax
 mov ss, ax
 mov fs, ax
 mov gs, ax
 mov dword ptr [{directory}], 0x83
 mov dword ptr [{directory4}], {table7}
 mov eax, cr4
 or eax, 0x10
 mov cr4, eax
 mov eax, {directory}
 mov cr3, eax
 mov eax, cr0
 or eax, 0x80010000
 mov cr0, eax
 mov eax, {init}
 call eax
 test eax, eax
 jnz failed
 mov eax, {SetPxE}
 mov ecx, {reloc}
 call ecx
 mov [{{set_entry}}], eax
 mov eax, {SetLazyMode}
 mov ecx, {reloc}
 call ecx
 mov [{{set_lazy}}], eax
 mov eax, {FlushTLB}
 mov ecx, {reloc}
 call ecx
 mov [{{flush}}], eax
 xor esi, esi
batch:
{begin}
again:
 mov edi, esi
 and edi, 1023
 lea edx, [{table} + edi*4]
 mov eax, {entry}
 mov ecx, 1
 call dword ptr [{{set_entry}}]
 inc esi
 cmp esi, {updates}
 je flushed
 test esi, {mask}
 jnz again
flushed:
{end}
 mov eax, 1
 call dword ptr [{{flush}}]
 mov eax, [0x400000]
 cmp esi, {updates}
 jb batch
 mov al, 0x10
 out 0xf4, al
failed:
 mov al, 0x11
 out 0xf4, al
hang: jmp hang
"""
_LAZY = "mov eax, {mode}\n call dword ptr [{{set_lazy}}]"


def image(*, lazy: bool) -> bytes:
    """A multiboot image; it ends through the debug-exit port, with 10h if all went well."""
    numbers = {name: abi.BY_NAME[name].number for name in ("SetPxE", "SetLazyMode", "FlushTLB")}
    source = _SOURCE.format(
        magic=_MAGIC,
        flags=_FLAGS,
        checksum=-(_MAGIC + _FLAGS) & 0xFFFFFFFF,
        stack=0x170000,
        directory=_DIRECTORY,
        directory4=_DIRECTORY + 4,
        table=_TABLE,
        table7=_TABLE + 7,
        entry=_PAGE + 7,
        init=_ROM + abi.INIT_OFFSET,
        reloc=_ROM + abi.GET_RELOC_OFFSET,
        begin=_LAZY.format(mode=1) if lazy else "",
        end=_LAZY.format(mode=0) if lazy else "",
        updates=UPDATES,
        mask=BATCH - 1,
        **numbers,
    )
    return assemble(source, _BASE).code
