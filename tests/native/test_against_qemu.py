# SPDX-License-Identifier: GPL-2.0-only
"""The machine beside QEMU, which is what native means here: same console, same boot information."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.native import frames
from vmi import samples
from vmi.native.boot.multiboot import LOADER_NAME, Module
from vmi.native.machine import Machine, Outcome
from vmi.rom.assemble import assemble

RAM_MIB = 64

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        shutil.which("qemu-system-i386") is None,
        reason="qemu-system-i386 is not installed: there is nothing to compare with",
    ),
]


def on_qemu(folder, kernel, *options):
    """Console and exit status of a kernel file in a folder."""
    command = ["qemu-system-i386", "-M", "isapc", "-cpu", "qemu32", "-nodefaults", "-m", str(RAM_MIB)]
    command += ["-display", "none", "-monitor", "none", "-no-reboot", "-serial", "file:console"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", kernel, *options]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, timeout=120)
    return (folder / "console").read_bytes(), done.returncode


def on_machine(image, append, modules=()):
    """Console and exit status on our machine."""
    machine = Machine(ram=RAM_MIB << 20)
    machine.load(image, append=append, modules=modules)
    end = machine.run(60 * 10**9)
    assert end.outcome is Outcome.DEBUG_EXIT, end.reason
    return machine.console.data, (end.value << 1 | 1) & 0xFF


@pytest.mark.parametrize("name", samples.names())
def test_sample_kernel(tmp_path, name):
    sample = samples.get(name)
    image = sample.path.read_bytes()
    (tmp_path / "kernel").write_bytes(image)
    assert on_machine(image, "kernel ") == on_qemu(tmp_path, "kernel")


def test_frames_of_exceptions(tmp_path):
    """Vector, error code, EIP, flags, stack and CR2 that a handler finds, case by case."""
    image = frames.image()
    (tmp_path / "kernel").write_bytes(image)
    ours, theirs = on_machine(image, "kernel "), on_qemu(tmp_path, "kernel")
    lines = zip(frames.CASES, ours[0].splitlines(), theirs[0].splitlines(), strict=True)
    assert [case for case, mine, other in lines if mine != other] == []
    assert ours == theirs


# Prints the boot information, the module list, and the memory that they and the strings take.
PRINTER = """
header:
  .long 0x1BADB002
  .long 0x00010003
  .long {checksum}
  .long header
  .long header
  .long 0
  .long 0
  .long start
start:
  mov esp,0x7000
  push eax
  mov esi,esp
  mov ecx,1
  call dump
  mov esi,ebx
  mov ecx,22
  call dump
  mov esi,[ebx+48]
  mov ecx,30
  call dump
  mov esi,[ebx+24]
  mov ecx,24
  call dump
  mov al,0x10
  out 0xf4,al
  hang: jmp hang
dump:
  mov edi,[esi]
  add esi,4
  mov ebp,8
digit:
  rol edi,4
  mov eax,edi
  and al,15
  add al,0x30
  cmp al,0x39
  jbe shown
  add al,39
shown:
  mov dx,0x3f8
  out dx,al
  dec ebp
  jnz digit
  mov al,10
  out dx,al
  dec ecx
  jnz dump
  ret
"""


@pytest.mark.parametrize(
    ("append", "modules"), [("", []), ("console=com0 x", []), ("y", ["one a b", "two c"]), ("", ["one"])]
)
def test_boot_information(tmp_path, monkeypatch, append, modules):
    """Every word that a kernel is given, module list and strings in place."""
    monkeypatch.setattr("vmi.native.boot.multiboot.LOADER_NAME", "qemu")
    checksum = -(0x1BADB002 + 0x10003) & 0xFFFFFFFF
    image = assemble(PRINTER, 0x100000, {"checksum": checksum}).code
    contents = {"one": b"1" * 5000, "two": b"22"}
    (tmp_path / "kernel").write_bytes(image)
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    options = ["-append", append] + (["-initrd", ",".join(modules)] if modules else [])
    ours = on_machine(image, append, [Module(contents[text.split()[0]], text) for text in modules])
    assert LOADER_NAME == "vmi"
    assert ours == on_qemu(tmp_path, "kernel", *options)
    assert len(ours[0].split()) == 1 + 22 + 30 + 24
