# SPDX-License-Identifier: GPL-2.0-only
"""CPUID: each model is QEMU's of the same name, less the features that are withheld."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest

from vmi.native import cpuid
from vmi.native.cpuid import FEATURES, MODELS, WITHHELD, Word
from vmi.rom.assemble import assemble

# Leaf and subleaf, then EAX, EBX, ECX, EDX, as QEMU 7.2 -M pc answers with the model of each name. Left out
# are leaves of "max" that describe withheld features: 5, 6, 9 to Dh, 8000000Ah.
JUDGE = {
    "486": """
        00000000 0  00000001 756e6547 6c65746e 49656e69
        00000001 0  00000480 00000800 80000000 00000009
        00000002 0  00000480 00000800 80000000 00000009
        40000000 0  40000001 54474354 43544743 47435447
        40000001 0  00000000 00000000 00000000 00000000
        40000002 0  00000480 00000800 80000000 00000009
        80000000 0  00000480 00000800 80000000 00000009
        c0000000 0  00000480 00000800 80000000 00000009
        ffffffff 0  00000480 00000800 80000000 00000009
    """,
    "pentium": """
        00000000 0  00000001 756e6547 6c65746e 49656e69
        00000001 0  00000543 00000800 80000000 008003bd
        00000002 0  00000543 00000800 80000000 008003bd
        40000000 0  40000001 54474354 43544743 47435447
        80000000 0  00000543 00000800 80000000 008003bd
    """,
    "pentium3": """
        00000000 0  00000003 756e6547 6c65746e 49656e69
        00000001 0  00000673 00000800 80000000 0383fbfd
        00000002 0  00000001 00000000 0000004d 002c307d
        00000003 0  00000000 00000000 00000000 00000000
        00000004 0  00000000 00000000 00000000 00000000
        40000000 0  40000001 54474354 43544743 47435447
        80000000 0  00000000 00000000 00000000 00000000
        80000001 0  00000000 00000000 00000000 00000000
    """,
    "qemu32": """
        00000000 0  00000004 756e6547 6c65746e 49656e69
        00000001 0  00000663 00000800 80000001 0781abfd
        00000002 0  00000001 00000000 0000004d 002c307d
        00000003 0  00000000 00000000 00000000 00000000
        00000004 0  00000121 01c0003f 0000003f 00000001
        00000004 1  00000122 01c0003f 0000003f 00000001
        00000004 2  00000143 03c0003f 00000fff 00000001
        00000004 3  00000163 03c0003f 00003fff 00000006
        00000004 4  00000000 00000000 00000000 00000000
        00000005 0  00000121 01c0003f 0000003f 00000001
        00000005 2  00000143 03c0003f 00000fff 00000001
        40000000 0  40000001 54474354 43544743 47435447
        40000002 0  00000121 01c0003f 0000003f 00000001
        80000000 0  80000004 756e6547 6c65746e 49656e69
        80000001 0  00000663 00000000 00000000 00000000
        80000002 0  554d4551 72695620 6c617574 55504320
        80000003 0  72657620 6e6f6973 352e3220 0000002b
        80000004 0  00000000 00000000 00000000 00000000
        80000005 0  00000121 01c0003f 0000003f 00000001
        c0000000 0  00000121 01c0003f 0000003f 00000001
        70000000 0  00000121 01c0003f 0000003f 00000001
    """,
    "max": """
        00000000 0  0000000d 68747541 444d4163 69746e65
        00000001 0  00000663 00000800 f6d8320b 0fcbfbfd
        00000002 0  00000000 00000000 00000000 00000000
        00000003 0  00000000 00000000 00000000 00000000
        00000004 0  00000000 00000000 00000000 00000000
        00000004 1  00000000 00000000 00000000 00000000
        00000007 0  00000000 01d843a9 8001020c 00000000
        00000007 1  00000000 00000000 00000000 00000000
        40000000 0  40000001 54474354 43544743 47435447
        80000000 0  8000000a 68747541 444d4163 69746e65
        80000001 0  00000663 00000000 00000075 cdd3f3fd
        80000002 0  554d4551 47435420 55504320 72657620
        80000003 0  6e6f6973 352e3220 0000002b 00000000
        80000004 0  00000000 00000000 00000000 00000000
        80000005 0  01ff01ff 01ff01ff 40020140 40020140
        80000006 0  00000000 42004200 02008140 00808140
        80000007 0  00000000 00000000 00000000 00000000
        80000008 0  00000024 00000000 00000000 00000000
    """,
}

NAMES = tuple(JUDGE)


def rows(name):
    """Leaf, subleaf and what QEMU answers."""
    for line in filter(None, map(str.strip, JUDGE[name].split("\n"))):
        leaf, subleaf, *registers = (int(part, 16) for part in line.split())
        yield leaf, subleaf, tuple(registers)


def unreserved(name):
    """A model with nothing withheld."""
    model = replace(MODELS[name])
    return replace(model, max_leaf=13, max_extended=0x8000000A) if name == "max" else model


@pytest.mark.parametrize("name", NAMES)
def test_with_nothing_withheld_the_answers_are_those_of_qemu(monkeypatch, name):
    monkeypatch.setattr(cpuid, "WITHHELD", {})
    model = unreserved(name)
    for leaf, subleaf, registers in rows(name):
        assert model.cpuid(leaf, subleaf) == registers, f"leaf {leaf:x} {subleaf}"


@pytest.mark.parametrize("name", NAMES)
def test_only_feature_bits_of_withheld_features_differ(name):
    model = MODELS[name]
    for leaf, subleaf, registers in rows(name):
        for mine, other in zip(model.cpuid(leaf, subleaf)[1:], registers[1:], strict=True):
            assert mine & ~other == 0, f"leaf {leaf:x} {subleaf}: bits that QEMU has not"
    assert model.features | model.withheld.keys() == model.judge
    assert not model.features & model.withheld.keys()
    for feature in model.judge:
        word, bit = FEATURES[feature]
        assert bool(model.words[word] >> bit & 1) is (feature in model.features), feature


def test_withheld_features_by_model():
    for name in ("486", "pentium", "pentium3", "qemu32"):
        assert MODELS[name].withheld == {}
    assert MODELS["max"].withheld == WITHHELD


@pytest.mark.parametrize("feature", WITHHELD)
def test_each_reason_is_a_sentence_about_a_feature(feature):
    assert feature in FEATURES
    reason = WITHHELD[feature]
    assert reason[0].islower() and " " in reason and not reason.endswith(".")


def test_apic_bit_follows_the_apic_base_register():
    for name in NAMES:
        on, off = MODELS[name].cpuid(1), MODELS[name].cpuid(1, apic=False)
        assert on[3] ^ off[3] == (0 if name == "486" else 0x200)
        assert on[:3] == off[:3]
    on, off = MODELS["max"].cpuid(0x80000001), MODELS["max"].cpuid(0x80000001, apic=False)
    assert on[3] ^ off[3] == 0x200
    assert MODELS["qemu32"].cpuid(0x80000001, apic=False)[3] == 0


def test_initial_apic_id_and_line_size():
    assert MODELS["qemu32"].cpuid(1)[1] == 0x00000800
    assert MODELS["qemu32"].cpuid(1, apic_id=3)[1] == 0x03000800


def test_leaf_above_the_highest_answers_as_the_highest():
    model = MODELS["max"]
    highest = model.cpuid(7)
    assert highest == (0, 0x01880108, 0, 0)
    for leaf in (8, 0xD, 0x3FFFFFFF, 0x40000002, 0x80000009, 0xC0000000, 0xFFFFFFFF):
        assert model.cpuid(leaf) == highest
        assert model.cpuid(leaf, 1) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", MODELS)
def test_every_answer_is_four_words(name):
    for base in (0, 0x40000000, 0x80000000, 0xC0000000, 0xFFFFFFF0):
        for leaf in range(base, base + 16):
            for subleaf in (0, 1, 5, 0xFFFFFFFF):
                answer = MODELS[name].cpuid(leaf, subleaf)
                assert len(answer) == 4
                assert all(0 <= register <= 0xFFFFFFFF for register in answer)


def test_processor_of_amd_repeats_its_features():
    words = MODELS["max"].words
    repeated = words[Word.LEAF_1_EDX] & words[Word.EXTENDED_EDX]
    assert repeated == words[Word.LEAF_1_EDX] & 0x0183F3FF


def test_unknown_feature_name():
    with pytest.raises(ValueError, match=r"^no such features: 3dnwo, sse9$"):
        cpuid._set("fpu sse9 3dnwo")


def test_short_form():
    assert repr(MODELS["pentium3"]) == "CpuModel(pentium3)"
    assert [MODELS[name].family for name in NAMES] == [4, 5, 6, 6, 6]


def test_processor_for_hypervisors_is_part_of_the_default_one():
    """A kernel that runs on it in any mode finds no more on the bare machine."""
    model = MODELS["i686"]
    assert model.features < MODELS["qemu32"].features
    assert not model.features & {"apic", "msr", "sep", "mtrr", "pae", "mce", "hypervisor"}
    assert model.cpuid(1) == (0x663, 0x800, 0, 0x0780A119)
    assert model.cpuid(0x40000000) == model.cpuid(0x80000000) == model.cpuid(1)


# Writes the four registers of each leaf and subleaf of a list to the serial port.
KERNEL = """
  .long 0x1BADB002
  .long 0x00010000
  .long {0 - 0x1BADB002 - 0x10000}
  .long 0x100000
  .long 0x100000
  .long 0
  .long 0
  .long {start}
start:
  mov esi,{table}
next:
  mov eax,[esi]
  mov ecx,[esi+4]
  add esi,8
  cmp esi,{end}
  ja done
  cpuid
  mov [0x200000],eax
  mov [0x200004],ebx
  mov [0x200008],ecx
  mov [0x20000c],edx
  mov ebx,0x200000
  mov dx,0x3f8
byte:
  mov al,[ebx]
  out dx,al
  inc ebx
  cmp ebx,0x200010
  jne byte
  jmp next
done:
  mov al,0x10
  out 0xf4,al
hang:
  jmp hang
table:
"""


@pytest.mark.e2e
@pytest.mark.skipif(
    shutil.which("qemu-system-i386") is None,
    reason="qemu-system-i386 is not installed: there is nothing to compare with",
)
@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_the_judge_is_what_qemu_answers(tmp_path, name):
    wanted = list(rows(name))
    source = KERNEL + "\n".join(f".long {leaf:#x}\n.long {sub}" for leaf, sub, _ in wanted) + "\nend:"
    (tmp_path / "kernel").write_bytes(assemble(source, 0x100000).code)
    command = ["qemu-system-i386", "-M", "pc", "-cpu", name, "-nodefaults", "-m", "64", "-display", "none"]
    command += ["-no-reboot", "-serial", "file:console", "-kernel", "kernel"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, timeout=60)
    data = (tmp_path / "console").read_bytes()
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    assert [tuple(words[i : i + 4]) for i in range(0, len(words), 4)] == [row[2] for row in wanted]
