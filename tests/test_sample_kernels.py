# SPDX-License-Identifier: GPL-2.0-only
"""The sample kernels: described completely, built from their sources, right on an independent machine."""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from elftools.elf.elffile import ELFFile
from iced_x86 import Decoder, Mnemonic

from vmi import samples
from vmi.errors import BadInput
from vmi.native.machine import Machine, Outcome
from vmi.native.pagetable_watch import PageTableWatch
from vmi.patcher import elf, marks

NAMES = samples.names()
HOME = samples.directory()
MAX_IMAGE_BYTES = 60 * 1024
MAX_CODE_LINES = 325
"""Of one kernel's own sources, without blank lines, comments, rows of case tables, and ring 3 programs."""

BUILT_WITH = "gcc (Debian 12.2.0-14+deb12u1) 12.2.0 / GNU ld (GNU Binutils for Debian) 2.40"
"""The tools that made the images in the tree: only these must give the same bytes."""


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_kernels_build", HOME / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    # Bytecode left beside the script would end up in the wheel.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


build = load_builder()


def run_native(image: Path) -> tuple[str, int]:
    """Console and exit status on this toolkit's own machine, status as QEMU would report it."""
    machine = Machine()
    machine.load(image.read_bytes())
    end = machine.run(timeout_ns=60_000_000_000)
    assert end.outcome is Outcome.DEBUG_EXIT, end.reason
    return machine.console.data.decode("ascii"), (end.value << 1) | 1


def run_qemu(image: Path, tmp_path: Path, *options: str) -> tuple[str, int]:
    """Console and exit status under QEMU, which knows nothing of this project."""
    qemu = shutil.which("qemu-system-i386")
    if qemu is None:
        pytest.skip("qemu-system-i386 is not installed: no second machine to compare with")
    log = tmp_path / "serial.log"
    fixed = "-display none -no-reboot -m 64 -device isa-debug-exit,iobase=0xf4,iosize=4"
    command = [qemu, "-kernel", str(image), "-serial", f"file:{log}", *fixed.split(), *options]
    status = subprocess.run(command, check=False, timeout=120).returncode
    return log.read_bytes().decode("ascii"), status


def sections(image: Path) -> dict[str, tuple[int, bytes]]:
    with image.open("rb") as stream:
        return {s.name: (s["sh_addr"], s.data()) for s in ELFFile(stream).iter_sections()}


def test_the_set_is_complete() -> None:
    plain = {"hello", "hostile", "interrupts", "paging", "sched", "smp", "traps", "workloads"}
    assert set(NAMES) == plain | {"paging-annotated", "sched-annotated", "workloads-annotated"}
    assert [sample.name for sample in samples.load_all()] == NAMES
    assert build.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_description(name: str) -> None:
    sample = samples.get(name)
    assert sample.title
    assert sample.shows
    assert sample.expected.endswith("\n")
    assert "\r" not in sample.expected
    assert "FAIL" not in sample.expected
    assert sample.exit_status == (0x10 << 1) | 1
    recipe = build.recipe(name)
    for source in (recipe.script, *recipe.sources, *recipe.program):
        assert (HOME / source).is_file(), source
    assert sample.annotated == ("VMI_ANNOTATE" in recipe.defines)


def test_unknown_name() -> None:
    with pytest.raises(BadInput) as raised:
        samples.get("solitaire")
    assert str(raised.value) == f"no sample kernel is called 'solitaire'; there are {', '.join(NAMES)}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("annotated = false\n", ""), "missing or unknown keys: annotated"),
        (('name = "hello"', 'name = "other"'), "expected the name 'hello' and got 'other'"),
        (("exit_status = 33", "exit_status = 33\ncolour = 1"), "missing or unknown keys: colour"),
    ],
)
def test_damaged_description(
    change: tuple[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(HOME / "hello", tmp_path / "hello")
    description = tmp_path / "hello" / "kernel.toml"
    description.write_text(description.read_text().replace(*change))
    monkeypatch.setattr(samples, "directory", lambda: tmp_path)
    with pytest.raises(BadInput) as raised:
        samples.get("hello")
    assert str(raised.value) == f"{description}: {message}"


def test_missing_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(HOME / "hello", tmp_path / "hello", ignore=shutil.ignore_patterns("*.elf"))
    monkeypatch.setattr(samples, "directory", lambda: tmp_path)
    with pytest.raises(BadInput) as raised:
        samples.get("hello")
    image = tmp_path / "hello" / "hello.elf"
    assert str(raised.value) == f"the sample kernel hello is not built: {image} does not exist"


@pytest.mark.parametrize("name", NAMES)
def test_sources_stay_short(name: str) -> None:
    program = set(build.recipe(name).program)
    lines = 0
    for path in (HOME / name).glob("*.[chS]"):
        if f"{name}/{path.name}" in program:
            continue
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        rows = re.compile(r"\s+(FAULT|TRAP|BAD_IRET)\s")
        lines += sum(bool(line.strip()) and not rows.match(line) for line in text.splitlines())
    assert lines <= MAX_CODE_LINES


@pytest.mark.parametrize("name", NAMES)
def test_image_layout(name: str) -> None:
    image = samples.get(name).path
    data = image.read_bytes()
    assert len(data) <= MAX_IMAGE_BYTES
    assert 0 <= data.find(struct.pack("<I", 0x1BADB002)) <= 8192 - 12
    with image.open("rb") as stream:
        file = ELFFile(stream)
        segments = list(file.iter_segments())
        assert [s["p_type"] for s in segments] == ["PT_LOAD", "PT_LOAD", "PT_GNU_STACK"]
        assert file.get_section_by_name(".symtab") is not None
        loads = segments[:2]
        assert len({s["p_vaddr"] - s["p_paddr"] for s in loads}) == 1
        assert loads[0]["p_paddr"] == 0x100000
        assert loads[0]["p_vaddr"] <= file.header["e_entry"] < loads[0]["p_vaddr"] + loads[0]["p_filesz"]
        # A patcher appends its segment: below 4 MiB, which is what the kernels map.
        assert max(s["p_paddr"] + s["p_memsz"] for s in loads) <= 0x300000
        assert not any(s.name.startswith((".debug", ".note", ".comment")) for s in file.iter_sections())


@pytest.mark.parametrize("name", [name for name in NAMES if not samples.get(name).annotated])
def test_plain_images_hold_no_annotation(name: str) -> None:
    assert ".vmi.annotations" not in sections(samples.get(name).path)


def slot_records(found: dict[str, tuple[int, bytes]]) -> list[tuple[int, int, int]]:
    """Start, length and version of each annotation (relocations of an object file not applied)."""
    return list(struct.iter_unpack("<IHH", found[".vmi.annotations"][1]))


def test_annotations_name_slots() -> None:
    found = sections(samples.get("sched-annotated").path)
    base, text = found[".text"]
    records = slot_records(found)
    assert len(records) > 50
    assert len({start for start, _, _ in records}) == len(records)
    pairs = 0
    for start, length, version in records:
        assert version == 1
        assert length >= 5
        padding, *native = Decoder(32, text[start - base : start - base + length], ip=start)
        assert padding.mnemonic == Mnemonic.NOP
        assert padding.len + sum(instruction.len for instruction in native) == length
        mnemonics = [instruction.mnemonic for instruction in native]
        assert len(mnemonics) == 1 or mnemonics == [Mnemonic.STI, Mnemonic.HLT]
        pairs += len(mnemonics) == 2
    assert pairs == 1


SENSITIVE = {
    *(Mnemonic.CLI, Mnemonic.STI, Mnemonic.HLT, Mnemonic.PUSHFD, Mnemonic.POPFD, Mnemonic.IRETD),
    *(Mnemonic.IN, Mnemonic.OUT, Mnemonic.CLTS, Mnemonic.INVLPG),
    *(Mnemonic.LGDT, Mnemonic.LIDT, Mnemonic.LLDT, Mnemonic.LTR),
}


def test_every_sensitive_instruction_of_the_annotated_kernel_is_in_a_slot() -> None:
    found = sections(samples.get("sched-annotated").path)
    base, text = found[".text"]
    slots = {start + i for start, length, _ in slot_records(found) for i in range(length)}
    header = 12  # multiboot: data
    outside = [
        f"{instruction.ip:#x}"
        for instruction in Decoder(32, text[header:], ip=base + header)
        if instruction.mnemonic in SENSITIVE and instruction.ip not in slots
    ]
    assert outside == []


C_GUEST = """
#include "vmi_guest.h"
void guest(char *p)
{
    asm volatile (VMI_INSN("cli"));
    asm volatile (VMI_INSN("lgdt (%0)") : : "r" (p));
    asm volatile (VMI_INSN("invlpg %0") : : "m" (p[0x12345]));
    asm volatile (VMI_STI_HLT);
}
"""
ASSEMBLY_GUEST = """
#include "vmi_guest.h"
    VMI_INSN mov %cr0, %eax
    VMI_INSN lgdt 0x12345(%eax)
    VMI_STI_HLT
    VMI_INSN iret
"""


@pytest.mark.parametrize(
    ("suffix", "text", "lengths", "padding"),
    [("c", C_GUEST, [5, 5, 7, 5], [4, 2, 0, 3]), ("S", ASSEMBLY_GUEST, [5, 7, 5, 5], [2, 0, 3, 4])],
)
def test_annotation_adds_only_padding(
    suffix: str, text: str, lengths: list[int], padding: list[int], tmp_path: Path
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the header can't be compiled")
    source = tmp_path / f"guest.{suffix}"
    source.write_text(text)
    includes = [f"-I{include}" for include in build.INCLUDES]
    found = []
    for flag in ("-UVMI_ANNOTATE", "-DVMI_ANNOTATE"):
        output = tmp_path / "guest.o"
        subprocess.run(
            ["gcc", *build.CFLAGS, flag, *includes, "-c", str(source), "-o", str(output)], check=True
        )
        found.append(sections(output))
    plain, annotated = found
    assert ".vmi.annotations" not in plain
    assert [length for _, length, _ in slot_records(annotated)] == lengths

    def split(code: bytes) -> tuple[list[bytes], list[int]]:
        decoded = list(Decoder(32, code))
        kept = [code[i.ip : i.ip + i.len] for i in decoded if i.mnemonic != Mnemonic.NOP]
        return kept, [i.len for i in decoded if i.mnemonic == Mnemonic.NOP]

    instructions, nops = split(plain[".text"][1])
    assert nops == []
    assert split(annotated[".text"][1]) == (instructions, [length for length in padding if length])


@pytest.mark.parametrize("name", NAMES)
def test_images_come_from_their_sources(name: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("ld") is None:
        pytest.skip("gcc or ld is not installed: the image can't be built again")
    again = build.build(name, tmp_path / f"{name}.elf")
    sample = samples.get(name)
    if build.compiler_version() == BUILT_WITH:
        assert again.read_bytes() == sample.path.read_bytes()
        return
    # Another compiler gives other bytes; what they do must be the same.
    assert run_native(again) == (sample.expected, sample.exit_status)


@pytest.mark.parametrize("name", NAMES)
def test_on_own_machine(name: str) -> None:
    sample = samples.get(name)
    assert run_native(sample.path) == (sample.expected, sample.exit_status)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "options", [(), ("-M", "isapc", "-cpu", "qemu32", "-nodefaults")], ids=["pc", "isapc"]
)
@pytest.mark.parametrize("name", NAMES)
def test_under_qemu(name: str, options: tuple[str, ...], tmp_path: Path) -> None:
    sample = samples.get(name)
    assert run_qemu(sample.path, tmp_path, *options) == (sample.expected, sample.exit_status)


def test_build_command_refuses_an_unknown_name() -> None:
    command = [sys.executable, str(HOME / "build.py"), "solitaire"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"no sample kernel is called 'solitaire'; there are {', '.join(NAMES)}" in done.stderr


@pytest.mark.parametrize("name", ["paging", "sched"])
def test_annotated_build_differs_by_one_definition(name: str) -> None:
    texts = ((HOME / one / "kernel.toml").read_text() for one in (name, f"{name}-annotated"))
    plain, annotated = (tomllib.loads(text) for text in texts)
    assert annotated["build"].pop("defines") == ["VMI_ANNOTATE"]
    assert annotated["build"] == plain["build"]
    assert annotated["expected"] == f"../{name}/expected.txt"


MARKS_IN_C = """
#include "vmi_guest.h"
void guest(unsigned *p, unsigned v)
{
    VMI_SET_ENTRY(p, v);
    VMI_SET_ENTRY(p + 1, 0x12345);
    asm volatile (VMI_ENTRY("orl $1, %0") : "+m" (p[2]));
    asm volatile (VMI_LONG_ENTRY("movl %1, %0") : "=m" (p[3]) : "r" (v));
    asm volatile (VMI_KEEP("nop; nop; nop"));
}
"""
MARKS_IN_ASSEMBLY = """
#include "vmi_guest.h"
    VMI_ENTRY movl %eax, (%edx)
    VMI_ENTRY movl $0x12345, 4(%eax)
    VMI_ENTRY orl $1, 8(%eax)
    VMI_LONG_ENTRY movl %edx, 12(%eax)
    VMI_KEEP_BEGIN
    nop
    nop
    nop
    VMI_KEEP_END
"""


@pytest.mark.parametrize(("suffix", "text"), [("c", MARKS_IN_C), ("S", MARKS_IN_ASSEMBLY)])
def test_marks_of_stores_and_of_bytes_to_be_left_alone(suffix: str, text: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the header can't be compiled")
    source, output = tmp_path / f"guest.{suffix}", tmp_path / "guest.o"
    source.write_text(text)
    found = []
    for flag in ("-UVMI_ANNOTATE", "-DVMI_ANNOTATE"):
        includes = [f"-I{include}" for include in build.INCLUDES]
        subprocess.run(
            ["gcc", *build.CFLAGS, flag, *includes, "-c", str(source), "-o", str(output)], check=True
        )
        found.append(sections(output))
    assert ".vmi.annotations" not in found[0]
    records = [(length, version >> 8) for _, length, version in slot_records(found[1])]
    assert records == [(5, 1), (7, 1), (5, 1), (5, 2), (3, 3)]
    assert len(found[1][".text"][1]) - len(found[0][".text"][1]) < 3 + 1 + 2 + 1


def test_the_annotated_paging_kernel_marks_all_stores_that_a_run_shows() -> None:
    image = elf.load(samples.get("paging-annotated").path.read_bytes())
    marked = {r.start for r in marks.read(image) if r.kind is marks.Kind.ENTRY}
    machine = Machine()
    machine.load(image.data)
    watch = PageTableWatch(machine.cpu)
    machine.run(timeout_ns=60_000_000_000)
    assert len(watch.code) > 15
    starts = {start for start in marked for eip in watch.code if start <= eip < start + 5}
    assert len(starts) == len(watch.code)
