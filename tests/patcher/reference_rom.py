# SPDX-License-Identifier: GPL-2.0-only
"""The nastiest ROM that the ABI allows: each call does its work, then spoils whatever it may spoil."""

from __future__ import annotations

import random
import struct
from functools import cache

from tests.patcher.bench import ADAPTOR, CODE, LOG, ROM, Outcome, State, bench, jump
from vmi import abi
from vmi.patcher.adaptorcode import Adaptor
from vmi.patcher.model import Site
from vmi.rom.assemble import assemble

FAKE_TIME = "mov eax, 0x11223344\nmov edx, 0x55667788\n"


def _by_number(instruction: str) -> str:
    """``instruction`` with the number in EAX for N."""
    lines = []
    for number in range(8):
        lines += [f"cmp eax, {number}", f"jne not{number}", instruction.format(number), "jmp done"]
        lines.append(f"not{number}:")
    return "\n".join([*lines, "done:"])


# A report: the address, the value that it finds there, and the flags argument.
_NOTE = f"""
    mov [{LOG}], eax
    mov ecx, [eax]
    mov [{LOG + 4}], ecx
    mov ecx, [eax+4]
    mov [{LOG + 8}], ecx
    mov [{LOG + 12}], edx
"""

_CODE = {
    "CPUID": "cpuid",
    "WRMSR": "wrmsr",
    "RDMSR": "rdmsr",
    "SetGDT": "lgdt [eax]",
    "SetLDT": "lldt ax",
    "SetIDT": "lidt [eax]",
    "SetTR": "ltr ax",
    "GetGDT": "sgdt [eax]",
    "GetLDT": "sldt eax\nor eax, 0x5a5a0000",
    "GetIDT": "sidt [eax]",
    "GetTR": "str eax\nor eax, 0x5a5a0000",
    "SetCR0": "mov cr0, eax",
    "SetCR2": "mov cr2, eax",
    "SetCR3": "mov cr3, eax",
    "SetCR4": "mov cr4, eax",
    "GetCR0": "mov eax, cr0",
    "GetCR2": "mov eax, cr2",
    "GetCR3": "mov eax, cr3",
    "GetCR4": "mov eax, cr4",
    "WBINVD": "wbinvd",
    "SetDR": _by_number("mov dr{}, edx"),
    "GetDR": _by_number("mov eax, dr{}"),
    "RDPMC": FAKE_TIME,
    "RDTSC": FAKE_TIME,
    "CLTS": "clts",
    "EnableInterrupts": "sti",
    "DisableInterrupts": "cli",
    "GetInterruptMask": "pushfd\npop eax\nor eax, 0xfffff0ff",
    "SetInterruptMask": "test eax, 0x200\nje off\nsti\njmp done\noff: cli\ndone:",
    "Halt": "sti",
    "InvalPage": "invlpg [eax]",
    "SetPxE": f"mov [edx], eax\nmov [{LOG}], edx\nmov [{LOG + 12}], ecx",
    "UpdatePxE": _NOTE,
    "UpdatePxELong": _NOTE,
    "INL": "in eax, dx",
    "INB": "in al, dx",
    "INW": "in ax, dx",
    "INSL": "rep insd",
    "INSB": "rep insb",
    "INSW": "rep insw",
    "OUTL": "out dx, eax",
    "OUTB": "out dx, al",
    "OUTW": "out dx, ax",
    "OUTSL": "rep outsd",
    "OUTSB": "rep outsb",
    "OUTSW": "rep outsw",
}
_REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")


@cache
def _work(name: str) -> bytes:
    return assemble(_CODE[name], ROM).code


def code(call: abi.Call, rng: random.Random) -> bytes:
    """The call's entry, to stand at ROM: it wants the direction flag clear, and leaves it so."""
    # pushfd; test byte [esp+1], 4; jz past; ud2; past: lea esp, [esp+4]
    raw = bytes.fromhex("9c f644240104 7402 0f0b 8d642404") + _work(call.name)
    for register in call.clobbers:
        raw += bytes([0xB8 + _REGISTERS.index(register)]) + rng.randbytes(4)  # mov register, imm32
    # push eax; mov eax, imm32; add al, 0x7f; sahf; pop eax; ret
    return raw + b"\x50\xb8" + struct.pack("<I", rng.getrandbits(32)) + b"\x04\x7f\x9e\x58\xfc\xc3"


def run_patched(site: Site, adaptor: Adaptor | None, state: State, rng: random.Random) -> Outcome:
    """The slot's call, the adaptor if there is one, and the ROM's entry."""
    parts = {}
    target = ROM
    if site.call is not None:
        parts[ROM] = code(site.call, rng)
    if adaptor is not None:
        linked = bytearray(adaptor.code)
        if adaptor.hole is not None:
            assert linked[adaptor.hole : adaptor.hole + 5] == b"\xe8\0\0\0\0"
            linked[adaptor.hole : adaptor.hole + 5] = jump(0xE8, ADAPTOR + adaptor.hole, ROM)
        parts[ADAPTOR] = bytes(linked)
        target = ADAPTOR
    parts[CODE] = jump(0xE8, CODE, target)
    return bench().run(parts, state, CODE, CODE + 5)
