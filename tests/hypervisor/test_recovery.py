# SPDX-License-Identifier: GPL-2.0-only
"""A patched kernel that recovers from faults by the instruction's address: calls fault there, too.

Its table names an IRET that a jump reaches and behind which the kernel goes on, and accesses to
model-specific registers that no processor has. With the promise slots are calls, and these fault in place.
"""

from __future__ import annotations

import struct
from functools import cache

import pytest

from tests.patcher.elfs import Piece, Plan, make
from vmi.abi import BY_NAME
from vmi.native.machine import Outcome
from vmi.patcher import Patched, inspect_file, patch
from vmi.rom import layout
from vmi.rom.assemble import Assembled, assemble
from vmi.rom.build import build
from vmi.run import RunResult, run_kernel
from vmi.sitetable import SiteFlag, SiteRecord

BASE, TABLES = 0x100000, 0x101000
FLAT_GDT = struct.pack("<4Q", 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF, 0)
GDT, IDT, FAULTS = 0, 0x20, 0x20 + 14 * 8  # in the data
NO_MSR = 0xDEAD

SOURCE = """
    jmp start
    .align 4
    .long 0x1badb002
    .long 0
    .long 0xe4524ffe
start:
    mov esp, 0x90000
    lgdt [{pointer}]
    .byte 0xea
    .long {flat}
    .word 8
pointer:
    .word 31
    .long {gdt}
idt_pointer:
    .word 111
    .long {idt}
flat:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    lidt [{idt_pointer}]
    xor ebp, ebp
    push 2
    push 0x7ff8
    push 0x123456
    mov ebx, esp
    jmp short back
    .byte 0xe8, 0xe8
back:
    iretd
no_return:
    push 7
    push 8
    add esp, 8
    cmp ebx, esp
    jne wrong
    cmp dword ptr [esp], 0x123456
    jne wrong
    cmp dword ptr [esp + 4], 0x7ff8
    jne wrong
    add esp, 12
    call read
    call write
    call read_with_flags
    mov eax, ebp
    out 0xf4, eax
wrong:
    mov eax, 0x7f
    out 0xf4, eax
    hlt
    .align 16
read:
    mov ecx, {no_msr}
bad_read:
    rdmsr
    xor ecx, ecx
    jmp wrong
no_read:
    cmp ecx, {no_msr}
    jne wrong
    ret
    .align 16
write:
    mov ecx, {no_msr}
    xor eax, eax
    xor edx, edx
bad_write:
    wrmsr
    xor ecx, ecx
    jmp wrong
no_write:
    xor ecx, ecx
    ret
    .align 16
read_with_flags:
    mov ecx, {no_msr}
    stc
live_read:
    rdmsr
    jc wrong
    jmp wrong
no_live_read:
    ret
    .align 16
fault:
    push eax
    push ebx
    mov eax, dword ptr [esp + 12]
    mov ebx, {faults}
next:
    cmp dword ptr [ebx], eax
    je found
    add ebx, 8
    cmp ebx, {faults_end}
    jb next
    jmp wrong
found:
    mov eax, dword ptr [ebx + 4]
    mov dword ptr [esp + 12], eax
    pop ebx
    pop eax
    inc ebp
    add esp, 4
    iretd
    .align 16
"""
NAMED = (
    ("back", "no_return"),
    ("bad_read", "no_read"),
    ("bad_write", "no_write"),
    ("live_read", "no_live_read"),
)


@cache
def assembled() -> Assembled:
    symbols = {
        "gdt": TABLES + GDT,
        "idt": TABLES + IDT,
        "no_msr": NO_MSR,
        "faults": TABLES + 0x1000,
        "faults_end": TABLES + 0x1000 + 8 * len(NAMED),
    }
    return assemble(SOURCE, BASE, symbols)


@cache
def kernel() -> bytes:
    made = assembled()
    at = made.labels
    gate = struct.pack("<HHHH", at["fault"] & 0xFFFF, 8, 0x8E00, at["fault"] >> 16)
    data = FLAT_GDT.ljust(IDT, b"\0") + bytes(13 * 8) + gate
    table = b"".join(struct.pack("<II", at[insn], at[fixup]) for insn, fixup in NAMED)
    pieces = [
        Piece(BASE, made.code.ljust(0x800, b"\xcc"), paddr=BASE, section=".text"),
        Piece(TABLES, data, 0x800, 6, TABLES, ".data"),
        Piece(TABLES + 0x1000, table, 0, 4, TABLES + 0x1000, "__ex_table"),
    ]
    return make(Plan(pieces, at["start"], symbols=[("start", at["start"], 0)]))


@cache
def patched() -> Patched:
    return patch(kernel())


def rom(promises: bool) -> bytes:
    image = bytearray(build("vmware").image)
    if not promises:
        at = layout.CALL_TABLE + layout.CallTable.PROMISES
        image[at : at + 2] = bytes(2)
        image[layout.CHECKSUM] = (image[layout.CHECKSUM] - sum(image)) & 0xFF
    return bytes(image)


def run(rom: bytes | None, *, mmu: str = "direct", image: bytes | None = None) -> RunResult:
    result = run_kernel(image or patched().data, rom=rom, mmu=mmu, timeout_ns=10**9)
    assert (result.outcome, result.exit_status) == (Outcome.DEBUG_EXIT, 2 * len(NAMED) + 1), result
    return result


def record(label: str) -> SiteRecord:
    address = assembled().labels[label]
    table = inspect_file(patched().data).table
    assert table is not None
    return next(record for record in table.sites if record.site == address)


def test_the_kernel_has_slots_of_each_kind() -> None:
    """The IRET's is in a window over the place where the kernel goes on, to which only the table leads."""
    for label, call, adaptor in (
        ("back", "IRET", False),
        ("bad_write", "WRMSR", False),
        ("live_read", "RDMSR", True),
    ):
        found = record(label)
        assert (found.call, bool(found.adaptor)) == (BY_NAME[call].number, adaptor)
        assert found.flags & SiteFlag.RECOVERED and found.flags & SiteFlag.PAD_AFTER


def test_without_a_hypervisor() -> None:
    for image in (kernel(), patched().data):
        assert run(None, image=image).exits["#GP"] == len(NAMED)
    assert run(build("native").image).exits["#GP"] == len(NAMED)


@pytest.mark.parametrize("mmu", ["direct", "shadow"])
def test_calls_fault_in_the_place_of_instructions(mmu: str) -> None:
    result = run(rom(promises=True), mmu=mmu)
    assert result.exits["#GP"] == len(NAMED)
    assert result.calls["WRMSR"] == 1, "connected, since it needs no adaptor"
    assert "breakpoint: iretd" not in result.exits


@pytest.mark.parametrize("mmu", ["direct", "shadow"])
def test_without_the_promise_the_instructions_stay(mmu: str) -> None:
    result = run(rom(promises=False), mmu=mmu)
    assert result.exits["#GP"] == len(NAMED)
    assert "WRMSR" not in result.calls
    assert result.exits["breakpoint: iretd"] == 1, "the silent one is planted"
