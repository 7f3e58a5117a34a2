# SPDX-License-Identifier: GPL-2.0-only
"""The firmware of a PC that does nothing but begin: flat protected mode, and RAM where option ROMs go.

A PC of QEMU's starts at its reset vector and wants a file with firmware. This one brings the processor to
where the suite wants it and stays there; a guest that restarts its machine comes back to it.
"""

from __future__ import annotations

from functools import cache

from vmi.conformance.layout import CODE0, DATA0, descriptor
from vmi.rom.assemble import Assembled, assemble

SIZE = 1 << 16  # bytes: it ends at 4 GiB
BASE = (1 << 32) - SIZE

# The chipset's registers 5Ah to 5Fh say of pieces of 16 KiB, from C0000h to EFFFFh, that they are RAM. A
# local APIC lets nothing of the 8259s through before it is told to.
_SOURCE = """
.code16
begin:
        .byte 0x66, 0x2e, 0x0f, 0x01, 0x16      ; lgdt cs:[gdtr]
        .word {gdtr - BASE}
        mov eax, 0x11
        mov cr0, eax
        .byte 0x66, 0xea                        ; jmp far
        .long {flat}
        .word {CODE0}
.code32
flat:   mov eax, {DATA0}
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov fs, eax
        mov gs, eax
        mov edx, 0xcf8
        mov eax, 0x80000058
        out dx, eax
        mov edx, 0xcfe
        mov eax, 0x3333
        out dx, ax
        mov edx, 0xcf8
        mov eax, 0x8000005c
        out dx, eax
        mov edx, 0xcfc
        mov eax, 0x33333333
        out dx, eax
        mov dword ptr [{APIC + 0xf0}], 0x1ff
        mov dword ptr [{APIC + 0x350}], 0x700
        mov al, 0xff                            ; or its timer interrupts the first guest that allows it
        out 0x21, al
        out 0xa1, al
        xor eax, eax
        xor edx, edx
begun:  jmp begun
gdtr:   .word {limit}
        .long {gdt}
.align 8
gdt:    .zero 8
"""
_RESET = 16  # bytes from the end


@cache
def _made() -> Assembled:
    symbols = {"BASE": BASE, "APIC": 0xFEE00000, "CODE0": CODE0, "DATA0": DATA0, "limit": DATA0 + 7}
    return assemble(_SOURCE, BASE, symbols)


def image() -> bytes:
    """The firmware, :data:`SIZE` bytes."""
    # accessed, as a ROM can't be written to
    code = _made().code + descriptor(0, 0xFFFFF, 0x9B) + descriptor(0, 0xFFFFF, 0x93)
    jump = b"\xe9" + (_RESET - SIZE - 3 & 0xFFFF).to_bytes(2, "little")
    return code.ljust(SIZE - _RESET, b"\0") + jump.ljust(_RESET, b"\0")


def end() -> int:
    """The linear address where it stays once the processor is ready."""
    return _made().labels["begun"]
