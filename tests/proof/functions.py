# SPDX-License-Identifier: GPL-2.0-only
"""Random kernels: functions of plain and sensitive instructions, branches, loops, calls and tables.

They run at physical addresses without paging, keep EBP at their data, and end by saving all registers and
flags, the arithmetic ones left out, and writing to a port. Every loop is bounded, every call goes to a later
function.
"""

from __future__ import annotations

import re
import struct

from hypothesis import strategies as st

from tests.patcher.elfs import Piece, Plan, make
from vmi.rom.assemble import assemble

TEXT, DATA, DATA_SIZE, STACK = 0x100000, 0x110000, 0xA00, 0x90000
START_PORT, END_PORT = 0xF5, 0xF4
TABLES, COUNTERS, SAVED = 0x80, 0x480, 0x900  # offsets in the data
MOST = 128  # counters, tables

REGISTERS = ("eax", "ecx", "edx", "ebx", "esi", "edi")
PORTS = (0x21, 0x42, 0x80, 0x92)
CONDITIONS = ("e", "ne", "b", "ae", "s", "ns", "o", "l", "ge", "be")

register = st.sampled_from(REGISTERS)
place = st.integers(0, 28).map(lambda n: f"[ebp+{4 * n}]")
number = st.one_of(st.integers(0, 127), st.integers(0, 0xFFFFFFFF))


def line(pattern: str, **parts: st.SearchStrategy[object]) -> st.SearchStrategy[list[str]]:
    """Lines of assembly with random parts."""
    return st.fixed_dictionaries(parts).map(lambda values: pattern.format(**values).split("|"))


PLAIN = st.one_of(
    line("{op} {a}, {b}", op=st.sampled_from(("add", "sub", "cmp", "and")), a=register, b=register),
    line("{op} {a}, {b}", op=st.sampled_from(("xor", "mov", "adc")), a=register, b=register),
    line("{op} {a}, {n}", op=st.sampled_from(("add", "cmp", "mov", "test")), a=register, n=number),
    line("mov {a}, {m}", a=register, m=place),
    line("mov {m}, {a}", a=register, m=place),
    line("{op} {a}", op=st.sampled_from(("inc", "dec", "not", "neg")), a=register),
    line("lea {a}, [{b}+{c}*2+7]", a=register, b=register, c=register),
    line("push {a}|inc {b}|pop {c}", a=register, b=register, c=register),
    line("shl {a}, 3", a=register),
    line("setb cl|movzx ebx, cl"),
    line("cld|nop"),
)  # fmt: skip

SENSITIVE = st.one_of(
    line("in {w}, {p}", w=st.sampled_from(("al", "ax", "eax")), p=st.sampled_from(PORTS)),
    line("out {p}, {w}", w=st.sampled_from(("al", "ax", "eax")), p=st.sampled_from(PORTS)),
    line("in {w}, dx", w=st.sampled_from(("al", "ax", "eax"))),
    line("and edx, 0xff|or edx, 0x300|out dx, {w}", w=st.sampled_from(("al", "ax", "eax"))),
    line("{op}", op=st.sampled_from(("cli", "sti", "clts", "wbinvd", "rdtsc", "cpuid", "rdmsr", "wrmsr"))),
    line("pushfd|pop {a}", a=register),
    line("pushfd|cli|inc {a}|popfd", a=register),
    line("push {n}|popfd", n=st.sampled_from((0x2, 0x202, 0x246, 0x8D7, 0xAD7))),
    line("sti|{op} {a}, {b}", op=st.sampled_from(("add", "mov", "sub")), a=register, b=register),
    line("sti|hlt"),
    line("sti|pause"),
    line("mov {a}, {c}", a=register, c=st.sampled_from(("cr0", "cr2", "cr3", "cr4"))),
    line("mov {c}, {a}", a=register, c=st.sampled_from(("cr2", "cr3"))),
    line("mov {a}, cr0|or {a}, 2|mov cr0, {a}", a=register),
    line("mov dr{n}, {a}", n=st.integers(0, 3), a=register),
    line("mov {a}, dr{n}", n=st.integers(0, 3), a=register),
    line("invlpg [{a}+{n}]", a=register, n=st.sampled_from((0, 4, 0x1000))),
    line("sgdt [ebp+{n}]|lgdt [ebp+{n}]", n=st.sampled_from((0, 16, 64))),
    line("sidt [ebp+{n}]|lidt [ebp+{n}]", n=st.sampled_from((0, 16, 64))),
    line("push {a}|push {a}|sgdt [esp]|pop {a}|pop {a}", a=register),
    line("sldt ax"), line("str ax"), line("sldt [ebp+8]"),
    line("mov eax, ss|mov ss, eax|add {a}, 5", a=register),
    line("mov eax, cs|and eax, 0xfffc"),
    line("mov ecx, {n}|lea edi, [ebp+{m}]|rep insb", n=st.integers(0, 5), m=st.integers(0, 40)),
    line("mov ecx, {n}|lea esi, [ebp+{m}]|rep outsb", n=st.integers(0, 5), m=st.integers(0, 40)),
    line("lea edi, [ebp+{m}]|insd", m=st.integers(0, 40)),
)  # fmt: skip


def _join(parts: list[list[str]]) -> list[str]:
    """The lines of several pieces, the marks of each made its own."""
    return [text.replace("@", f"@{n}x") for n, part in enumerate(parts) for text in part]


def _inside(lines: list[str], which: str) -> list[str]:
    return [text.replace("@", f"@{which}x") for text in lines]


def _blocks(inner: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    """Branches, loops and tables around other lines; what is written with @ is a block's own."""
    body = st.lists(inner, max_size=3).map(_join)
    first, second = body.map(lambda b: _inside(b, "a")), body.map(lambda b: _inside(b, "b"))
    return st.one_of(
        st.tuples(st.sampled_from(CONDITIONS), register, register, first).map(
            lambda t: [f"test {t[1]}, {t[2]}", f"j{t[0]} L@0", *t[3], "L@0:"]
        ),
        st.tuples(st.sampled_from(CONDITIONS), first, second).map(
            lambda t: [f"j{t[0]} L@0", *t[1], "jmp L@1", "L@0:", *t[2], "L@1:"]
        ),
        st.tuples(st.integers(1, 3), first).map(
            lambda t: [f"mov dword ptr [ebp+C@], {t[0]}", "L@0:", *t[1], "dec dword ptr [ebp+C@]", "jne L@0"]
        ),
        st.tuples(st.integers(1, 4), st.sampled_from(("out 0x80, al", "cli", "in al, 0x21"))).map(
            lambda t: [f"mov ecx, {t[0]}", "L@0:", t[1], "loop L@0"]
        ),
        st.tuples(st.sampled_from(("cli", "out 0x80, al")), register).map(
            lambda t: ["and ecx, 1", "jecxz L@0", t[0], "L@0:", f"inc {t[1]}"]
        ),
        st.tuples(first, second).map(
            lambda t: [
                "and eax, 1", "jmp dword ptr [eax*4+T@]", "L@0:", *t[0], "jmp L@2", "L@1:", *t[1], "L@2:",
            ]
        ),
    )  # fmt: skip


# No calling convention carries all flags over a return, but one of them may be a result.
CALL = st.sampled_from((["call NEXT", "test eax, eax"], ["call NEXT", "setb cl", "test eax, eax"]))
LINES = st.recursive(st.one_of(PLAIN, SENSITIVE, SENSITIVE), _blocks, max_leaves=6)
FUNCTION = st.lists(st.one_of(LINES, LINES, LINES, CALL), min_size=1, max_size=8).map(_join)
FUNCTIONS = st.lists(FUNCTION, min_size=1, max_size=4)


def source(functions: list[list[str]]) -> tuple[str, list[str]]:
    """The text of a kernel that calls the first of the functions, and the names of its tables."""
    text = [
        "jmp start", ".align 4", ".long 0x1badb002", ".long 3", ".long 0xe4524ffb",
        "start:", f"mov esp, {STACK}", f"out {START_PORT}, al", f"mov ebp, {DATA}",
        "xor eax, eax", "mov ecx, 1", "mov edx, 0x80",
        "mov ebx, 3", "mov esi, eax", "mov edi, eax", "call F0", "pushfd", f"pop dword ptr [ebp+{SAVED}]",
        f"and dword ptr [ebp+{SAVED}], 0xfffff72a",
    ]  # fmt: skip
    text += [f"mov [ebp+{SAVED + 4 * n}], {name}" for n, name in enumerate((*REGISTERS, "esp", "ebp"), 1)]
    text += [f"out {END_PORT}, al", "stop:", "jmp stop"]
    for index, function in enumerate(functions):
        call = [f"call F{index + 1}"] if index + 1 < len(functions) else []
        text += [".align 16", f"F{index}:"]
        for part in _inside(function, f"f{index}"):
            text += call if part == "call NEXT" else [part]
        text.append("ret")
    whole = "\n".join(text)
    counters = sorted(set(re.findall(r"\bC@\w*", whole)), key=len, reverse=True)
    tables = sorted(set(re.findall(r"\bT@\w*", whole)), key=len, reverse=True)
    assert len(counters) <= MOST and len(tables) <= MOST
    for n, name in enumerate(counters):
        whole = re.sub(rf"\b{name}\b", str(COUNTERS + 4 * n), whole)
    for n, name in enumerate(tables):
        whole = re.sub(rf"\b{name}(?=\])", str(DATA + TABLES + 8 * n), whole)
    return whole.replace("@", ""), [name.removeprefix("T@") for name in tables]


def kernel(functions: list[list[str]]) -> bytes:
    """The file of a kernel with these functions."""
    text, tables = source(functions)
    code = assemble(text, TEXT, {})
    data = bytearray(b"\x11" * TABLES + bytes(DATA_SIZE - TABLES))
    for n, name in enumerate(tables):
        words = [code.labels[f"L{name}{which}"] for which in (0, 1)]
        struct.pack_into("<II", data, TABLES + 8 * n, *words)
    return make(
        Plan(
            [
                Piece(TEXT, code.code, paddr=TEXT, section=".text"),
                Piece(DATA, bytes(data), paddr=DATA, flags=6, section=".data"),
            ],
            entry=TEXT,
        )
    )
