# SPDX-License-Identifier: GPL-2.0-only
"""Kernels whose boot tells how they were loaded: one with load addresses in its multiboot header.

They write what they find to the serial port: `data` if their data is there, `bss` if their bss is clear,
and `done` after a few sensitive instructions.
"""

from __future__ import annotations

from tests.patcher.elfs import PADDR, VADDR, Piece, Plan, make
from vmi.rom.assemble import assemble

BSS = 0x3000  # bytes
PAGE = 0x1000
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
    .long {bss_end}
    .long {start - bias}
    .align 16
start:
    cli
    mov esp, {stack}
    cmp dword ptr [{data - bias}], 0x12345678
    jne stop
    mov esi, {data_text - bias}
    call print
    mov edi, {bss - bias}
    mov ecx, {bss_size}
    xor eax, eax
clear:
    or al, byte ptr [edi]
    inc edi
    dec ecx
    jne clear
    test al, al
    jne stop
    mov esi, {bss_text - bias}
    call print
    mov dword ptr [{bss - bias}], eax
    mov esi, {done_text - bias}
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
data:
    .long 0x12345678
data_text:
    .ascii "data "
    .byte 0
bss_text:
    .ascii "bss "
    .byte 0
done_text:
    .ascii "done\\n"
    .byte 0
    .align 16
bss:
"""
EXPECTED = b"data bss done\n"


def kernel(*, kludge: bool = True, names_end: bool = True, **changes: object) -> bytes:
    """The file. ``names_end``: the header says where the loaded bytes end; else all of the file is loaded.

    In the latter case section headers and symbols would be loaded as bss, so the file has none.
    """
    data = assemble(DATA, VADDR + PAGE)
    end = data.labels["bss"] - (VADDR - PADDR)
    symbols = {
        **data.labels,
        "base": PADDR,
        "bias": VADDR - PADDR,
        "flags": KLUDGE if kludge else 3,
        "stack": 0x90000,
        "bss_size": BSS,
        "load_end": end if names_end else 0,
        "bss_end": end + BSS,
    }
    code = assemble(SOURCE, VADDR, symbols)
    text = Piece(VADDR, code.code.ljust(PAGE, b"\x90"), section=".text")
    plan = Plan([text, Piece(VADDR + PAGE, data.code, len(data.code) + BSS, 6, section=".data")])
    plan.entry = code.labels["start"]
    plan.sections = names_end
    plan.symbols = [("start", plan.entry, 0)] if names_end else ()
    for name, value in changes.items():
        setattr(plan, name, value)
    return make(plan) if names_end else make(plan)[: plan.first_offset + PAGE + len(data.code)]
