# SPDX-License-Identifier: GPL-2.0-only
"""Kernels of each kind run on the machine: they find what their protocol promises."""

from __future__ import annotations

import struct

import pytest

from tests.native.boot.images import bzimage, elf_kernel, note
from vmi.native.boot.loader import Module
from vmi.native.machine import Machine, Outcome
from vmi.rom.assemble import assemble

START = 0x100000
WRONG = "wrong: mov al,1 | out 0xf4,al"


def program(*lines):
    """32-bit code for 1 MiB; it exits with 7 if it gets to its end, with 1 from ``wrong``."""
    text = [*lines, "mov al,7 | out 0xf4,al", WRONG]
    return assemble("\n".join(line for part in text for line in part.split("|")), START).code


def run(image, **options):
    machine = Machine(ram=4 << 20)
    machine.load(image, **options)
    end = machine.run(10**8)
    assert end.outcome is Outcome.DEBUG_EXIT, end.reason
    assert end.value == 7


# Loading a segment register reads the descriptor: without the table this ends in a triple fault.
RELOAD = """
  mov eax,0x18
  mov ds,eax
  mov es,eax
  mov ss,eax
  push 0x10
  push {next}
  retf
next:
"""


def test_linux_finds_its_descriptors_zero_page_and_initrd():
    lines = [
        "mov esp,0x9000",
        RELOAD,
        "or ebx,ebp | or ebx,edi | jnz wrong",  # zero, by the protocol
        "cmp dword ptr [esi+0x202],0x53726448 | jne wrong",
        "mov eax,[esi+0x228] | cmp dword ptr [eax],0x74696e69 | jne wrong",  # 'init'
        "mov eax,[esi+0x218] | cmp dword ptr [eax],0x64726e69 | jne wrong",  # 'inrd'
    ]
    at = assemble("\n".join([lines[0], RELOAD.replace("{next}", "0x100000")]), START).labels["next"]
    lines[1] = RELOAD.replace("{next}", hex(at))
    code = program(*lines)
    image = bzimage({0x1F4: len(code) // 16}, code)
    run(image, append="init=/x", modules=[Module(b"inrd", "initrd")])


def test_pvh_finds_its_start_information_and_task_register():
    code = program(
        "cmp dword ptr [ebx],0x336ec578 | jne wrong",
        "mov eax,[ebx+24] | cmp dword ptr [eax],0x74696e69 | jne wrong",
        "mov eax,[ebx+16] | mov eax,[eax] | cmp dword ptr [eax],0x31646f6d | jne wrong",  # 'mod1'
    )
    image = elf_kernel((START, 0x1000), text=code, notes=note(data=struct.pack("<I", START)))
    machine = Machine(ram=4 << 20)
    machine.load(image, append="init", modules=[Module(b"mod1", "m")])
    assert (machine.cpu.tr.base, machine.cpu.tr.limit) == (0, 0x67)
    run(image, append="init", modules=[Module(b"mod1", "m")])


@pytest.mark.parametrize("protocol", ["elf", "flat"])
def test_plain_kernels_have_a_stack(protocol):
    code = program("push 0x12345678 | pop eax | cmp eax,0x12345678 | jne wrong")
    run(code if protocol == "flat" else elf_kernel((START, 0x1000), text=code), protocol=protocol)
