# SPDX-License-Identifier: GPL-2.0-only
"""The loaders beside QEMU's: what a kernel is given, and where the initrd goes."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest

from tests.native.boot.images import bzimage, elf_kernel, note
from vmi.memory import PhysicalMemory
from vmi.native.boot.loader import Module, load
from vmi.native.machine import Machine, Outcome
from vmi.rom.assemble import assemble

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        shutil.which("qemu-system-i386") is None,
        reason="qemu-system-i386 is not installed: there is nothing to compare with",
    ),
]


def on_qemu(folder, image, mib, *options):
    """What a kernel writes to the serial port until it ends itself."""
    (folder / "kernel").write_bytes(image)
    command = ["qemu-system-i386", "-M", "isapc", "-cpu", "qemu32", "-nodefaults", "-m", str(mib)]
    command += ["-display", "none", "-monitor", "none", "-no-reboot", "-serial", "file:console"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", "kernel", *options]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, timeout=120)
    assert done.returncode == 0x21
    return (folder / "console").read_bytes()


# 16-bit setup code: ramdisk_image and ramdisk_size of its own header to the serial port, then debug exit.
SHOW_INITRD = bytes.fromhex(
    "8cc8 2d2000 8ed8"  # mov ax,cs | sub ax,0x20 | mov ds,ax
    "be1802 b90800 baf803"  # mov si,0x218 | mov cx,8 | mov dx,0x3f8
    "ac ee e2fc"  # lodsb | out dx,al | loop
    "b010 e6f4 f4"  # mov al,0x10 | out 0xf4,al | hlt
)


@pytest.mark.parametrize(
    ("mib", "highest", "size"),
    [(64, 0x7FFFFFFF, 5000), (64, 0x7FFFFFFF, 8192), (64, 0x2FFFFFF, 1), (1024, 0x37FFFFFF, 4096)],
)
def test_place_of_the_initrd(tmp_path, mib, highest, size):
    image = bzimage({0x22C: highest, 0x26C: SHOW_INITRD})
    initrd = bytes(size)
    (tmp_path / "initrd").write_bytes(initrd)
    theirs = struct.unpack("<II", on_qemu(tmp_path, image, mib, "-initrd", "initrd"))
    memory = PhysicalMemory(mib << 20)
    page = load(image, memory, modules=[Module(initrd, "initrd")]).esi
    assert (memory.u32(page + 0x218), memory.u32(page + 0x21C)) == theirs


# Start information, memory map, command line and the module's first bytes, as raw dwords.
SHOW_START = """
  mov esp,0x7000
  mov edi,0x3f8
  mov esi,ebx
  mov ecx,4
  call show
  lea esi,[ebx+32]
  mov ecx,2
  call show
  lea esi,[ebx+48]
  mov ecx,2
  call show
  mov esi,[ebx+40]
  mov ecx,30
  call show
  mov esi,[ebx+24]
  mov ecx,4
  call show
  mov esi,[ebx+16]
  lea esi,[esi+8]
  mov ecx,2
  call show
  mov esi,[ebx+16]
  mov esi,[esi]
  mov ecx,3
  call show
  mov al,0x10
  out 0xf4,al
  hang: jmp hang
show:
  mov edx,edi
  shl ecx,2
byte:
  mov al,[esi]
  inc esi
  out dx,al
  dec ecx
  jnz byte
  ret
"""


def test_pvh_start_information(tmp_path):
    code = assemble(SHOW_START, 0x100000).code
    image = elf_kernel((0x100000, 0x1000), text=code, notes=note())
    module = b"contents of a module"
    (tmp_path / "module").write_bytes(module)
    options = ("-append", "console=hvc0 abcd", "-initrd", "module")
    theirs = on_qemu(tmp_path, image, 64, *options)
    machine = Machine(ram=64 << 20)
    machine.load(image, append="console=hvc0 abcd", modules=[Module(module, "module")])
    end = machine.run(10**10)
    assert end.outcome is Outcome.DEBUG_EXIT, end.reason
    assert len(machine.console.data) == 4 * (4 + 2 + 2 + 30 + 4 + 2 + 3)
    assert machine.console.data == theirs


def test_precedence(tmp_path):
    """A Linux header wins over a multiboot one: QEMU refuses this file for what is wrong with the former."""
    multiboot = struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    image = bytearray(bzimage({0x300: multiboot}))
    image[0x1F1] = 255
    (tmp_path / "kernel").write_bytes(image)
    command = ["qemu-system-i386", "-display", "none", "-kernel", "kernel"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, timeout=60)
    assert done.stderr == b"qemu: invalid kernel header\n"
