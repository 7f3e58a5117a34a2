# SPDX-License-Identifier: GPL-2.0-only
"""A kernel with one of each thing that can be moved, and tools to look at and damage its patched form."""

from __future__ import annotations

from functools import cache

from tests.patcher.elfs import VADDR, Piece, Plan, make
from vmi.patcher import elf, patch
from vmi.patcher.inspect import site_table
from vmi.patcher.model import Image
from vmi.proof.code import CodeView, Kind, Step
from vmi.rom.assemble import assemble
from vmi.sitetable import SiteRecord, SiteTable

DATA = VADDR + 0x2000

SOURCE = """
    jmp start
    .align 4
    .long 0x1badb002
    .long 3
    .long 0xe4524ffb
start:
    mov esp, {stack}
    call ports
    call flags
    call shadow
    call tables
    call branches
    call counted
    call calls
    call results
stop:
    jmp short stop
    .align 16
ports:
    in al, 0x21
    mov cl, al
    mov edx, 0x3f8
    out dx, al
    xor ebx, ecx
    ret
    .align 16
flags:
    cmp eax, ecx
    cli
    jb below
    mov eax, [esp+4]
below_mov:
    inc ebx
below:
    pushfd
    pop eax
    cli
    ret
    .align 16
shadow:
    mov ebx, [{data}]
    sti
    mov eax, 0x12345678
    ret
    .align 16
tables:
    lgdt [esp+4]
    mov cr3, edx
    invlpg [ebx+esi*2]
    wbinvd
    ret
    .align 16
branches:
    cli
    test eax, eax
    jne other
    xor ecx, ebx
other:
    add ecx, 3
    ret
    .align 16
counted:
    cli
again:
    dec ebx
    out 0x80, al
    loop again
    ret
    .align 16
calls:
    cli
    call results
    add eax, 1
    ret
    .align 16
results:
    rdtsc
    mov [{data}+8], edx
    cpuid
    mov ebx, [{data}+4]
    mov cr0, ebx
    rdmsr
    ret
    .align 16
"""


@cache
def original() -> bytes:
    """The kernel's file."""
    names = {"stack": 0x90000, "data": DATA}
    code = assemble(SOURCE.replace("{stack}", "0x90000").replace("{data}", str(DATA)), VADDR, names)
    return make(
        Plan(
            [
                Piece(VADDR, code.code, section=".text"),
                Piece(DATA, bytes(range(256)), memsz=0x1000, flags=6, section=".data"),
            ],
            symbols=[(name, at, 2) for name, at in code.labels.items() if not name.startswith(".")],
        )
    )


LABELS = ("start", "ports", "flags", "shadow", "tables", "branches", "counted", "calls", "results")


@cache
def patched() -> bytes:
    return patch(original()).data


@cache
def image() -> Image:
    return elf.load(patched(), patched=True)


@cache
def table() -> SiteTable:
    home = elf.vmi_segment(image())
    assert home is not None
    return site_table(home)


@cache
def label(name: str) -> int:
    return next(s.address for s in elf.load(original()).symbols if s.name == name)


def record(function: str, number: int = 0) -> SiteRecord:
    """The record of a site, by its function and its place among the function's sites."""
    start = label(function)
    after = min((label(name) for name in LABELS if label(name) > start), default=start + 256)
    found = [r for r in sorted(table().sites, key=lambda r: r.site) if start <= r.site < after]
    return found[number]


def window(function: str) -> int:
    """Where the first changed byte of a function is."""
    old, new = elf.load(original()), image()
    start = label(function)
    return next(at for at in range(start, start + 64) if old.read(at, 1) != new.read(at, 1))


def trampoline(function: str) -> list[Step]:
    """The instructions of a function's first window, where they are now, up to the jump back."""
    view = CodeView(image())
    step = view.step(window(function))
    assert step is not None and step.kind is Kind.JUMP
    steps = []
    at = step.target
    while True:
        step = view.step(at)
        assert step is not None
        steps.append(step)
        if step.kind is Kind.JUMP and step.target < VADDR + 0x2000:
            return steps
        at = step.next


def adaptor(function: str, number: int = 0) -> list[Step]:
    """The instructions of a slot's adaptor."""
    view = CodeView(image())
    at = record(function, number).adaptor
    assert at
    steps = []
    while True:
        step = view.step(at)
        assert step is not None
        steps.append(step)
        if str(step.insn).startswith("ret"):
            return steps
        at = step.next


def find(steps: list[Step], text: str) -> Step:
    """The first instruction whose disassembly begins so."""
    return next(step for step in steps if str(step.insn).startswith(text))


def damaged(address: int, raw: bytes) -> bytes:
    """The patched file with other bytes at a virtual address."""
    data = bytearray(patched())
    segment = image().segment_at(address)
    assert segment is not None
    at = segment.file_offset + address - segment.vaddr
    assert data[at : at + len(raw)] != raw
    data[at : at + len(raw)] = raw
    return bytes(data)


def rel32(opcode: bytes, at: int, target: int) -> bytes:
    end = at + len(opcode) + 4
    return opcode + (target - end & 0xFFFFFFFF).to_bytes(4, "little")
