# SPDX-License-Identifier: GPL-2.0-only
"""Small ELF kernels for the tests, made field by field."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from vmi.patcher.elf import ELF_HEADER, PROGRAM_HEADER, SECTION_HEADER, SYMBOL
from vmi.rom.assemble import assemble

VADDR, PADDR = 0xC0100000, 0x100000
PT_LOAD, PT_GNU_STACK = 1, 0x6474E551
MULTIBOOT = struct.pack("<III", 0x1BADB002, 3, -(0x1BADB002 + 3) & 0xFFFFFFFF)

KERNEL = """
    jmp start
    .align 4
    .long 0x1badb002
    .long 3
    .long 0xe4524ffb
start:
    cli
    mov esp, {stack}
    call work
    sti
    hlt
stop:
    hlt
    jmp short stop
    .align 16
work:
    push ebx
    mov edx, 0x3f8
    in al, dx
    mov ecx, ss
    mov ebx, cr3
    mov cr3, ebx
    pushfd
    cli
    lgdt [{table}]
    out 0x80, al
    popfd
    test eax, eax
    mov ecx, 3
again:
    loop again
    pop ebx
    ret
    .align 16
"""


@dataclass
class Piece:
    """A PT_LOAD to be made; ``flags`` are 1 execute, 2 write, 4 read."""

    vaddr: int
    data: bytes
    memsz: int = 0
    flags: int = 5
    paddr: int | None = None
    section: str = ""


@dataclass
class Plan:
    """Everything about a file to be made."""

    pieces: list[Piece]
    entry: int = VADDR
    stack_header: bool = True
    symbols: Sequence[tuple[str, int, int]] = ()  # name, address, type
    sections: bool = True
    first_offset: int = 0x1000
    extra: dict[str, bytes] = field(default_factory=dict)  # sections that are not loaded


def kernel_code(vaddr: int = VADDR) -> bytes:
    """Runs at physical addresses, as a kernel does before it turns paging on."""
    return assemble(KERNEL, vaddr, {"stack": 0x90000, "table": PADDR + 0x1000}).code


def small_kernel(**changes: object) -> bytes:
    """A multiboot kernel with text and data at 0xC0100000, loaded at 0x100000."""
    plan = Plan(
        [
            Piece(VADDR, kernel_code(), section=".text"),
            Piece(VADDR + 0x1000, bytes(range(64)), memsz=0x1234, flags=6, section=".data"),
        ],
        symbols=[("start", VADDR + 0x10, 0), ("end", VADDR + 0x2234, 0)],
    )
    for name, value in changes.items():
        setattr(plan, name, value)
    return make(plan)


def make(plan: Plan) -> bytes:
    """The file: headers, contents at page-aligned offsets, symbols, section headers."""
    body = bytearray()
    programs, sections = [], [(b"", SECTION_HEADER.pack(*[0] * 10))]
    offset = plan.first_offset
    start = offset
    for piece in plan.pieces:
        paddr = piece.vaddr - (VADDR - PADDR) if piece.paddr is None else piece.paddr
        memsz = max(piece.memsz, len(piece.data))
        programs.append(
            PROGRAM_HEADER.pack(
                PT_LOAD, offset, piece.vaddr, paddr & 0xFFFFFFFF, len(piece.data), memsz, piece.flags, 4096
            )
        )
        kind = 2 | (4 if piece.flags & 1 else 0) | (1 if piece.flags & 2 else 0)
        fields = struct.pack("<9I", 1, kind, piece.vaddr, offset, len(piece.data), 0, 0, 4, 0)
        sections.append((piece.section.encode(), fields))
        body += piece.data
        aligned = -(-len(body) // 0x1000) * 0x1000 if plan.first_offset >= 0x1000 else len(body)
        body = body.ljust(aligned, b"\0")
        offset = start + len(body)
    if plan.stack_header:
        programs.append(PROGRAM_HEADER.pack(PT_GNU_STACK, 0, 0, 0, 0, 0, 6, 16))
    for extra, content in plan.extra.items():
        sections.append(
            (extra.encode(), struct.pack("<9I", 1, 0, 0, start + len(body), len(content), 0, 0, 1, 0))
        )
        body += content
    head_size = ELF_HEADER.size + len(programs) * PROGRAM_HEADER.size
    assert head_size <= plan.first_offset
    shoff = shnum = 0
    if plan.sections:
        sections += _symbol_sections(plan.symbols, start + len(body), len(sections), body)
        names = b"".join(name + b"\0" for name, _ in sections) + b".shstrtab\0"
        header = struct.pack("<9I", 3, 0, 0, start + len(body), len(names), 0, 0, 1, 0)
        sections.append((b".shstrtab", header))
        body += names
        body = body.ljust(-(-len(body) // 4) * 4, b"\0")
        shoff, shnum = start + len(body), len(sections)
        at = 0
        for number, (name, fields) in enumerate(sections):
            body += fields if number == 0 else struct.pack("<I", at) + fields
            at += len(name) + 1
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head = ELF_HEADER.pack(
        ident, 2, 3, 1, plan.entry, 52, shoff, 0, 52, 32, len(programs), 40 if shnum else 0, shnum,
        max(shnum - 1, 0),
    )  # fmt: skip
    return (head + b"".join(programs)).ljust(start, b"\0") + bytes(body)


def _symbol_sections(
    symbols: Sequence[tuple[str, int, int]], offset: int, number: int, body: bytearray
) -> list[tuple[bytes, bytes]]:
    strings = b"\0"
    table = SYMBOL.pack(0, 0, 0, 0, 0, 0)
    for name, address, kind in symbols:
        table += SYMBOL.pack(len(strings), address, 0, 0x10 | kind, 0, 1)
        strings += name.encode() + b"\0"
    body += table + strings
    return [
        (b".symtab", struct.pack("<9I", 2, 0, 0, offset, len(table), number + 1, 1, 4, 16)),
        (b".strtab", struct.pack("<9I", 3, 0, 0, offset + len(table), len(strings), 0, 0, 1, 0)),
    ]
