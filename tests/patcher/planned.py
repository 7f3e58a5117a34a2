# SPDX-License-Identifier: GPL-2.0-only
"""A small kernel with a plan made by hand: an edge, a host, a short window, pads, a fault table, moved words.

Offsets in the text are written beside the code, so that tests can name them.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import cache

from tests.patcher.elfs import VADDR, Piece, make
from tests.patcher.elfs import Plan as File
from vmi import abi
from vmi.patcher import elf
from vmi.patcher.forms import Effect, Form
from vmi.patcher.model import Branch, FaultTable, Image, Insn, Pad, Placement, Plan, Site, Window
from vmi.rom.assemble import assemble
from vmi.sitetable import Tactic

DATA = VADDR + 0x1000
TABLE = DATA + 0x100
SOURCE = f"""
    hlt                             ; 00
    test eax, eax                   ; 01 window with an edge: a branch to it
    jz short edge                   ; 03
    sti                             ; 05
    mov ebx, dword ptr [{DATA}]     ; 06
    nop
host:
    mov ebx, dword ptr [{DATA}]     ; 0d window that is a host
    cli                             ; 13
    mov ecx, dword ptr [{DATA + 4}] ; 14
low:
    pushfd                          ; 1a short window
    inc edx                         ; 1b
edge:
    cli                             ; 1c stays
    ret                             ; 1d
    .byte 0x90, 0x90
faulty:
    wrmsr                           ; 20 window with entries in the fault table
    mov eax, dword ptr [ecx]        ; 22
    inc edx                         ; 24
    ret                             ; 25
    .byte 0x90, 0x90
fixup:
    inc esi                         ; 28
    ret                             ; 29
    .zero 5
"""
RUNS = ((0x30, 15), (0x40, 15), (0x50, 9), (0x60, 15), (0x70, 9), (0x80, 15), (0x90, 15), (0xA0, 15))
RUN = b"\xc3" + b"\x66\x66\x90" * 5
FAULTS = ((0x20, 0x28), (0x22, 0x28), (0x29, 0x28))
WORDS = (VADDR + 0x08, VADDR + 0x0F, VADDR + 0x16, DATA + 8)
RELOCATIONS = (*((word, 0x101) for word in WORDS[:3]), (DATA + 8, 0x101))


def text() -> bytes:
    """The code, then padding: 15 bytes of NOPs behind each `ret`, two of the runs cut short."""
    code = bytearray(assemble(SOURCE, VADDR).code).ljust(0x2F, b"\xcc")
    for _ in RUNS:
        code += RUN
    for start, size in RUNS:
        if size < 15:
            code[start + size] = 0xC3
    return bytes(code)


def fault_words(entries: tuple[tuple[int, int], ...] = FAULTS) -> bytes:
    """Entries of offsets in the text as a table of 12-byte entries with distances and a number."""
    raw = b""
    for insn, fixup in entries:
        at = TABLE + len(raw)
        raw += struct.pack("<iiI", VADDR + insn - at, VADDR + fixup - at - 4, 7)
    return raw


@cache
def image() -> Image:
    data = bytearray(0x200)
    struct.pack_into("<II", data, 8, VADDR, 0)
    data[0x100 : 0x100 + len(fault_words())] = fault_words()
    relocations = b"".join(struct.pack("<II", *one) for one in RELOCATIONS)
    made = make(
        File(
            [
                Piece(VADDR, text(), section=".text"),
                Piece(DATA, bytes(data), flags=6, section=".data"),
            ],
            extra={".rel.text": relocations},
        )
    )
    header = elf.read_header(made)
    names = [section[4] for section in elf.section_headers(made, header)]
    grown = bytearray(made)
    row = header.shoff + (len(names) - 4) * elf.SECTION_HEADER.size  # before symbols, strings and names
    struct.pack_into("<I", grown, row + 4, elf.SHT_REL)
    struct.pack_into("<II", grown, row + 24, len(names) - 3, 1)  # symbols; for section 1
    struct.pack_into("<I", grown, row + 36, elf.RELOCATION.size)
    found = elf.load(bytes(grown))
    assert [r.address for r in found.relocations] == sorted(address for address, _ in RELOCATIONS)
    return replace(found, displaced=tuple(sorted(WORDS)))


def site(offset: int, raw: str, form: str, **more: bool) -> Site:
    call = abi.BY_INSTRUCTION[form]
    silent = Form(form, Effect.SILENT) if form == "pushf" else None
    return Site(VADDR + offset, bytes.fromhex(raw), form, call, silent is not None, silent is None, **more)


STI = site(0x05, "fb", "sti")
HOSTED = site(0x13, "fa", "cli")
PUSHF = site(0x1A, "9c", "pushf")
EDGE = site(0x1C, "fa", "cli")
WRMSR = site(0x20, "0f30", "wrmsr", pad_after=True, recovered=True)


def insn(offset: int, size: int, form: str | None = None) -> Insn:
    return Insn(VADDR + offset, image().read(VADDR + offset, size), form)


@cache
def plan() -> Plan:
    """The plan, all trampolines in the `.vmi` segment."""
    edged = (
        insn(0x01, 2),
        Insn(VADDR + 0x03, b"\x74\x17", None, Branch.JCC, EDGE.address),
        insn(0x05, 1, "sti"),
        insn(0x06, 6),
    )
    host = (insn(0x0D, 6), insn(0x13, 1, "cli"), insn(0x14, 6))
    short = (insn(0x1A, 1, "pushf"), insn(0x1B, 1))
    faulty = (insn(0x20, 2, "wrmsr"), insn(0x22, 2), insn(0x24, 1))
    windows = (
        Window(VADDR + 0x01, 11, edged, (STI,), (), VADDR + 0x0C, edges=(EDGE,)),
        Window(VADDR + 0x0D, 13, host, (HOSTED,), (), VADDR + 0x1A),
        Window(VADDR + 0x1A, 2, short, (PUSHF,), (), EDGE.address, VADDR + 0x12, edges=(EDGE,)),
        Window(VADDR + 0x20, 5, faulty, (WRMSR,), (), VADDR + 0x25),
    )
    placements = (
        Placement(STI, Tactic.FORWARD),
        Placement(HOSTED, Tactic.BOTH),
        Placement(PUSHF, Tactic.HOST),
        Placement(EDGE, Tactic.EDGE),
        Placement(WRMSR, Tactic.FORWARD),
    )
    padding = tuple(Pad(VADDR + start, size) for start, size in RUNS)
    table = FaultTable(TABLE, len(FAULTS), 12, relative=True)
    return Plan(image(), windows, (), placements, padding=padding, fault_table=table)
