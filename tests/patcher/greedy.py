# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that takes memory from its own end at once, as simple kernels do, and tells how far it gets.

The first thing it does is to fill the memory behind its image with breakpoints, as a free list of poisoned
pages would. Its page directory and page table come from there too. It maps the first 4 MiB where it is loaded
and where it is linked, goes on there, and takes the lower map away. On the way it writes to the serial port,
with sensitive instructions: `low`, `high`, and `done`.
"""

from __future__ import annotations

from tests.patcher.elfs import PADDR, VADDR, Piece, Plan, make
from vmi.rom.assemble import assemble

PAGE = 0x1000
BSS = 0x2000  # bytes, its stack among them
POISON = 0x20000  # bytes
KLUDGE = 0x10003

SOURCE = """
    jmp start
    .align 4
header:
    .long 0x1badb002
    .long {flags}
    .long {0 - 0x1badb002 - flags}
    .long {header - bias}
    .long {base}
    .long {load_end}
    .long {end - bias}
    .long {start - bias}
    .align 16
start:
    cli
    mov esp, {end - bias}
    mov dword ptr [{next - bias}], {end}
    mov edi, {end - bias}
    mov ecx, {poison}
    mov al, 0xcc
    rep stosb
    mov esi, {low_text - bias}
    call print

; ---- a page directory and a page table, from there
    mov edi, dword ptr [{next - bias}]
    sub edi, {bias}
    mov ebx, edi
    xor eax, eax
    mov ecx, 8192
    rep stosb
    add dword ptr [{next - bias}], 8192
    lea edi, [ebx+4096]
    mov eax, 3
    mov ecx, 1024
entry:
    mov dword ptr [edi], eax
    add eax, 4096
    add edi, 4
    dec ecx
    jne entry
    lea eax, [ebx+4099]
    mov dword ptr [ebx], eax
    mov dword ptr [ebx+3072], eax
    mov cr3, ebx
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov eax, {high}
    jmp eax

; ---- where it is linked; nothing else is mapped any more
high:
    lea esp, [esp+{bias}]
    mov dword ptr [ebx+{bias}], 0
    mov eax, cr3
    mov cr3, eax
    mov esi, {high_text}
    call print
    pushfd
    cli
    mov edx, cr2
    popfd
    mov esi, {done_text}
    call print
stop:
    cli
    hlt
    jmp short stop

print:
    lodsb
    test al, al
    je printed
    mov edx, 0x3f8
    out dx, al
    jmp print
printed:
    ret
"""

DATA = """
next:
    .long 0
screen:
    .long 0xc00b8000
low_text:
    .ascii "low "
    .byte 0
high_text:
    .ascii "high "
    .byte 0
done_text:
    .ascii "done\\n"
    .byte 0
    .align 16
bss:
"""
EXPECTED = b"low high done\n"


def kernel(*, kludge: bool = False, **changes: object) -> bytes:
    """The file. ``kludge``: it is loaded by addresses in its multiboot header."""
    data = assemble(DATA, VADDR + PAGE)
    symbols = {
        **data.labels,
        "base": PADDR,
        "bias": VADDR - PADDR,
        "flags": KLUDGE if kludge else 3,
        "poison": POISON,
        "load_end": data.labels["bss"] - (VADDR - PADDR),
        "end": VADDR + PAGE + BSS,
    }
    code = assemble(SOURCE, VADDR, symbols)
    text = Piece(VADDR, code.code.ljust(PAGE, b"\x90"), section=".text")
    plan = Plan([text, Piece(VADDR + PAGE, data.code, BSS, 6, section=".data")])
    plan.entry = code.labels["start"]
    plan.symbols = [("start", plan.entry, 0), ("_end", symbols["end"], 0)]
    for name, value in changes.items():
        setattr(plan, name, value)
    return make(plan)
