# SPDX-License-Identifier: GPL-2.0-only
"""Whole patch runs: the patched kernel does what the original does, and the output never varies."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_32, Uc
from unicorn.x86_const import (
    UC_X86_INS_IN,
    UC_X86_INS_OUT,
    UC_X86_REG_CR3,
    UC_X86_REG_EAX,
    UC_X86_REG_EBP,
    UC_X86_REG_EBX,
    UC_X86_REG_ECX,
    UC_X86_REG_EDI,
    UC_X86_REG_EDX,
    UC_X86_REG_EFLAGS,
    UC_X86_REG_EIP,
    UC_X86_REG_ESI,
    UC_X86_REG_ESP,
    UC_X86_REG_GDTR,
)

from tests.patcher.elfs import MULTIBOOT, PADDR, VADDR, Piece, Plan, make, small_kernel
from vmi.errors import BadInput, NoSites
from vmi.patcher import Options, elf, inspect_file, patch
from vmi.rom.assemble import assemble
from vmi.rom.build import build
from vmi.sitetable import ImageFlag

BIAS = VADDR - PADDR
ROM = 0xC8000
STATE = {
    "eax": UC_X86_REG_EAX,
    "ecx": UC_X86_REG_ECX,
    "edx": UC_X86_REG_EDX,
    "ebx": UC_X86_REG_EBX,
    "esp": UC_X86_REG_ESP,
    "ebp": UC_X86_REG_EBP,
    "esi": UC_X86_REG_ESI,
    "edi": UC_X86_REG_EDI,
    "flags": UC_X86_REG_EFLAGS,
    "cr3": UC_X86_REG_CR3,
    "gdtr": UC_X86_REG_GDTR,
}


@dataclass
class Machine:
    """Runs a kernel from its entry point to its first `hlt`; logs port accesses."""

    ports: list[tuple[object, ...]] = field(default_factory=list)

    def run(self, data: bytes, rom: bytes = b"", eax: int = 0) -> dict[str, object]:
        image = elf.load(data, patched=True)
        cpu = Uc(UC_ARCH_X86, UC_MODE_32)
        cpu.mem_map(0, 0x400000)
        for segment in image.segments:
            cpu.mem_write(segment.paddr, segment.data)
        cpu.mem_write(ROM, rom)
        cpu.hook_add(UC_HOOK_INSN, self._in, None, 1, 0, UC_X86_INS_IN)
        cpu.hook_add(UC_HOOK_INSN, self._out, None, 1, 0, UC_X86_INS_OUT)
        cpu.reg_write(UC_X86_REG_EAX, eax)
        cpu.reg_write(UC_X86_REG_ESP, 0x8F000)
        entry = image.entry if elf.entry_is_physical(image) else image.entry - BIAS
        cpu.emu_start(entry, 0x3FF000, count=3_000_000)
        end = cpu.reg_read(UC_X86_REG_EIP)
        assert cpu.mem_read(end - 1, 1) == b"\xf4" or rom, "the kernel stopped elsewhere"
        state: dict[str, object] = {name: cpu.reg_read(number) for name, number in STATE.items()}
        state["ports"] = tuple(self.ports)
        state["data"] = bytes(cpu.mem_read(PADDR + 0x1000, 64))
        esp = min(cpu.reg_read(UC_X86_REG_ESP), 0x90000)
        state["stack"] = bytes(cpu.mem_read(esp, 0x90000 - esp))
        return state

    def _in(self, _cpu: Uc, port: int, size: int, _user: object) -> int:
        self.ports.append(("in", port, size))
        return 0x5A + len(self.ports)

    def _out(self, _cpu: Uc, port: int, size: int, value: int, _user: object) -> None:
        self.ports.append(("out", port, size, value))


def same_run(data: bytes, eax: int = 0) -> None:
    """Unpatched, patched without a ROM, patched with the native ROM: all the same."""
    patched = patch(data)
    native = Machine().run(data, eax=eax)
    assert native["ports"]
    assert Machine().run(patched.data, eax=eax) == native
    assert patched.report.slotted
    active = Machine().run(patched.data, build("native").image, eax)
    # The call of Halt comes back with the flags in another state, and `hlt` stops inside the ROM.
    for name in ("flags", "esp", "eax", "ecx", "edx", "stack"):
        active[name] = native[name]
    assert active == native


@pytest.mark.parametrize(
    "changes",
    [{}, {"stack_header": False}, {"sections": False}, {"stack_header": False, "first_offset": 0x74}],
    ids=["as it is", "room after the table", "stripped", "no room"],
)
def test_a_patched_kernel_does_what_the_original_does(changes: dict[str, object]) -> None:
    same_run(small_kernel(**changes))


INSTRUCTIONS = (
    "cli", "sti", "pushfd\npop ecx\nand ecx, 0xfffffdff", "in al, 0x60", "in al, dx", "in eax, dx",
    "out 0x80, al", "out dx, ax", "out dx, eax", "mov ebx, cr3", "mov cr3, ebx", "mov esi, cr0",
    "mov cr0, esi", "push eax\npopfd", "add eax, ebx", "xor ecx, edx", "test eax, eax", "adc edi, 3",
    "sete cl", "push ebx\npop ebp", "nop", "lgdt [0x101000]", "call leaf", "cmp eax, esi\nsbb edi, edi",
    "jz short skip{n}\ninc ebp\nskip{n}:",
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(INSTRUCTIONS), min_size=3, max_size=24), st.integers(0, 0xFFFF))
def test_random_straight_code_survives_patching(lines: list[str], eax: int) -> None:
    body = "\n".join(line.replace("{n}", str(number)) for number, line in enumerate(lines))
    source = f"""
        mov esp, 0x90000
        mov ebx, 0x5000
        mov edx, 0x3f8
        mov ecx, 7
        mov esi, cr0
        mov edi, 0x1234
        xor ebp, ebp
        and eax, 0x8d5
        or eax, 2
        call body
        sete byte ptr [0x101020]
        setb byte ptr [0x101021]
        sets byte ptr [0x101022]
        seto byte ptr [0x101023]
        setp byte ptr [0x101024]
        pushad
        out 0x80, al
    stop:
        hlt
        jmp short stop
        .align 16
    body:
        {body}
        ret
        .align 16
    leaf:
        inc edi
        ret
    """
    code = assemble(source, VADDR).code
    text = Piece(VADDR, code, section=".text")
    data = make(Plan([text, Piece(VADDR + 0x1000, bytes(64), flags=6, section=".data")]))
    patched = patch(data)
    native = Machine().run(data, eax=eax)
    assert Machine().run(patched.data, eax=eax) == native
    active = Machine().run(patched.data, build("native").image, eax)
    for name in STATE:
        if name in ("eax", "ecx", "edx", "flags"):  # no one reads them after the last `out`
            active[name] = native[name]
    assert active == native


# --- the output ---------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib, sys; from tests.patcher.elfs import small_kernel; from vmi.patcher import patch;"
        "p = patch(small_kernel());"
        "print(hashlib.sha256(p.data + p.report.to_json().encode()).hexdigest())"
    )
    patched = patch(small_kernel())
    expected = hashlib.sha256(patched.data + patched.report.to_json().encode()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "4242"}
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == expected


def test_gzip_comes_out_plain_and_the_report_says_so() -> None:
    bare = Options(undo=False)
    plain, packed = patch(small_kernel(), bare), patch(gzip.compress(small_kernel(), mtime=0), bare)
    assert packed.data == plain.data
    assert (plain.report.input.kind, packed.report.input.kind) == ("elf", "gzip")
    assert "the input was compressed with gzip, the output is a plain ELF file" in packed.report.to_text()


def test_a_physical_entry_point_stays_physical() -> None:
    patched = patch(small_kernel(entry=PADDR))
    image = elf.load(patched.data, patched=True)
    header = patched.report.segment
    assert image.entry == header["activation_entry"] - BIAS
    assert header["original_entry"] == VADDR
    found = inspect_file(patched.data).table
    assert found is not None
    assert found.header.image_flags == ImageFlag.MULTIBOOT | ImageFlag.PHYSICAL_ENTRY
    same_run(small_kernel(entry=PADDR))


def test_the_multiboot_header_stays_where_loaders_look() -> None:
    for changes in ({}, {"stack_header": False, "first_offset": 0x74}):
        output = patch(small_kernel(**changes)).data
        found = elf.multiboot(output)
        assert found is not None
        assert output[found.offset : found.offset + 12] == MULTIBOOT


def test_phases_are_timed_apart_from_the_report() -> None:
    patched = patch(small_kernel())
    assert list(patched.seconds) == ["read", "plan", "emit", "write", "verify", "pack", "report"]
    assert "seconds" not in json.loads(patched.report.to_json())


def test_symbols_and_sections_survive() -> None:
    file = ELFFile(io.BytesIO(patch(small_kernel()).data))
    table, data = file.get_section_by_name(".symtab"), file.get_section_by_name(".data")
    assert isinstance(table, SymbolTableSection)
    symbols = {s.name: s["st_value"] for s in table.iter_symbols()}
    assert symbols == {"": 0, "start": VADDR + 0x10, "end": VADDR + 0x2234}
    assert data is not None
    assert data["sh_addr"] == VADDR + 0x1000


def test_a_kernel_without_sensitive_instructions_is_refused() -> None:
    code = assemble("again:\n nop\n jmp short again", VADDR).code
    kernel = make(Plan([Piece(VADDR, code)]))
    with pytest.raises(NoSites) as caught:
        patch(kernel)
    assert str(caught.value) == "there is no sensitive instruction among the 2 of this kernel"
    done = patch(kernel, Options(allow_empty=True))
    assert (done.report.sites, done.report.slotted) == ((), 0)
    assert inspect_file(done.data).patched


def test_no_room_below_4_gib_is_refused() -> None:
    code = assemble("cli\nhlt", 0xFFFF0000).code
    plan = Plan([Piece(0xFFFF0000, code, memsz=0xF000, paddr=0x100000)], entry=0xFFFF0000)
    with pytest.raises(BadInput) as caught:
        patch(make(plan))
    assert str(caught.value) == (
        "there is no room for a .vmi segment between the image's end 0xfffff000 and 4 GiB"
    )
