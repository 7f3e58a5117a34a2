# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that walks into the corners of the processor and prints what it finds there.

It boots on any machine that knows multiboot, so the same cases can be judged elsewhere. Before each case
everything is put right again. Each event prints one line: see :class:`Event`. A case ends with its first
event, unless it has asked for :func:`more`; code that runs to its end comes to ``int 0x20``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.native.guest import descriptor, gate
from tests.native.test_against_qemu import on_machine, on_qemu
from vmi.rom.assemble import assemble

BASE = 0x100000
IMAGE = 0x140000  # what the live tables are copied from, and the rest that is not code
SIZE = 0x8000
LIVE = 0x180000
GDT, IDT, TSS, NEW_TSS, DIRECTORY, TABLE = (LIVE + at for at in (0, 0x1000, 0x2000, 0x5000, 0x6000, 0x7000))
STARTS, LOWS = IMAGE + SIZE, IMAGE + SIZE + 0x1000
STACK, KERNEL_STACK, USER_STACK, NEW_STACK = 0x191000, 0x192000, 0x193000, 0x194000
STACKS, STACKS_SIZE = 0x190000, 0x4000
ABSENT = 0x1A0000
DATA = 0x1A1000  # a page, zero at the start of each case
INDEX, SAVED, MORE, HAS_CODE, ADVANCE = (0x1B0000 + 4 * i for i in (0, 1, 16, 17, 18))
LOW, LOW_SIZE, LOW_STACK = 0x8000, 0x400, 0x7000
BITMAP = TSS + 0x68
DONE, USER_INT = 0x20, 0x31  # vectors with gates that ring 3 may use
VECTORS = 0x40

CODE0, DATA0, CODE3, DATA3, TASK, NEW = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x30
CODE16, DATA16, LDT, GATE, TASK_GATE, TSS16 = 0x38, 0x40, 0x48, 0x53, 0x5B, 0x60
FAST, FREE = 0x68, 0x88  # four segments for SYSENTER and SYSEXIT; where a case may put its own
_SEGMENTS = {
    CODE0: descriptor(0, 0xFFFFF, 0x9A),
    DATA0: descriptor(0, 0xFFFFF, 0x92),
    CODE3: descriptor(0, 0xFFFFF, 0xFA),
    DATA3: descriptor(0, 0xFFFFF, 0xF2),
    TASK: descriptor(TSS, 0x2FFF, 0x89, 0),
    NEW: descriptor(NEW_TSS, 0x67, 0x89, 0),
    CODE16: descriptor(LOW, 0xFFFF, 0x9A, 0),
    DATA16: descriptor(0, 0xFFFF, 0x92, 0),
    LDT: descriptor(DATA + 0x800, 0x1F, 0x82, 0),
    TASK_GATE: gate(NEW, 0, 0xE5),
    TSS16: descriptor(TSS, 0x2B, 0x81, 0),
    FAST: descriptor(0, 0xFFFFF, 0x9A),
    FAST + 8: descriptor(0, 0xFFFFF, 0x92),
    FAST + 16: descriptor(0, 0xFFFFF, 0xFA),
    FAST + 24: descriptor(0, 0xFFFFF, 0xF2),
}


@dataclass(frozen=True)
class Case:
    """One case: 32-bit code on ring 0, with a bar for the end of a line and an @ at the end of each label.

    :ivar user: code that follows on ring 3, with EFLAGS ``flags``.
    :ivar low: 16-bit code at :data:`LOW`, whose segment is LOW / 16.
    :ivar v86: go on with ``low`` in virtual 8086 mode, with ``flags``.
    """

    name: str
    code: str = ""
    user: str | None = None
    low: str = ""
    v86: bool = False
    flags: int = 2

    def __str__(self) -> str:
        return self.name


class Event(NamedTuple):
    """What a handler finds; the words are those of its stack."""

    edi: int
    esi: int
    ebp: int
    esp: int
    ebx: int
    edx: int
    ecx: int
    eax: int
    es: int
    ds: int
    vector: int
    words: tuple[int, ...]
    ss: int
    tr: int
    cr2: int
    dr6: int
    flags: int

    @property
    def error(self) -> int | None:
        """The error code, None for a vector that has none."""
        return self.words[0] if self.vector in (8, 10, 11, 12, 13, 14) else None

    @property
    def frame(self) -> tuple[int, ...]:
        """EIP, CS, EFLAGS, ESP and SS of the code that was left; the last two only from another ring."""
        start = 0 if self.error is None else 1
        return self.words[start : start + 5]

    @property
    def eip(self) -> int:
        """EIP of the code that was left."""
        return self.frame[0]


@dataclass(frozen=True)
class Seen:
    """The events of a case, and where its labels are."""

    events: list[Event]
    labels: dict[str, int]
    number: int

    @property
    def event(self) -> Event:
        """The only event."""
        (event,) = self.events
        return event

    def at(self, label: str) -> int:
        """Address of a label, given without its @."""
        return self.labels[f"{label}{self.number}"]


# -- pieces of code -------------------------------------------------------------------------------


def more(events: int, *, coded: Sequence[int] = (), advance: int = 0) -> str:
    """Code that has the case go on behind so many events, with RF set.

    :param coded: vectors that push an error code.
    :param advance: bytes to skip behind all but debug exceptions: the length of an instruction that faults.
    """
    codes = sum(1 << vector for vector in coded)
    values = ((MORE, events), (HAS_CODE, codes), (ADVANCE, advance))
    return " | ".join(f"mov dword ptr [{at}],{value}" for at, value in values)


def call_gate(label: str, *, selector: int = CODE0, access: int = 0xEC, parameters: int = 0) -> str:
    """Code that sets :data:`GATE`."""
    at = GDT + (GATE & ~7)
    low = f"mov dword ptr [{at}],{{{label}-{BASE}+{selector << 16}}}"
    return f"{low} | mov dword ptr [{at + 4}],{BASE | access << 8 | parameters}"


def idt_gate(vector: int, label: str, *, selector: int = CODE0, access: int = 0xEE) -> str:
    """Code that sets a gate of the IDT."""
    low = f"mov dword ptr [{IDT + 8 * vector}],{{{label}-{BASE}+{selector << 16}}}"
    return f"{low} | mov dword ptr [{IDT + 8 * vector + 4}],{BASE | access << 8}"


def store(address: int, code: str) -> str:
    """Code that stores machine code, given in hexadecimal."""
    return " | ".join(f"mov byte ptr [{address + i}],{byte}" for i, byte in enumerate(bytes.fromhex(code)))


def real_mode(name: str, body: str, before: str = "") -> Case:
    """A case with ``body`` in real mode, between two switches; ESI and EBP are in use."""
    low = (
        f"mov ebp,cr0 | mov eax,0x10 | mov cr0,eax | .byte 0xea | .word r | .word {LOW >> 4}"
        f" | r: xor ax,ax | mov ds,ax | mov es,ax | mov ss,ax | mov esp,{LOW_STACK} | {body}"
        " | end: mov cr0,ebp | mov eax,8 | push eax | push esi | .byte 0x66,0xcb"
    )
    back = f"p@: mov eax,{DATA0} | mov ss,eax | mov ds,eax | mov es,eax | mov esp,{STACK} | lidt [{{idtr}}]"
    return Case(name, f"{before or 'nop'} | mov esi,{{p@}} | jmp {CODE16}:0 | {back} | mov eax,0", low=low)


# -- the kernel -----------------------------------------------------------------------------------

_COPY = ".byte 0xf3, 0xa5"  # rep movsd
_START = [
    ".long 0x1BADB002", ".long 0x00010003", f".long {-(0x1BADB002 + 0x10003) & 0xFFFFFFFF}",
    f".long {BASE}", f".long {BASE}", ".long 0", ".long 0", ".long start",
    "start:", f"mov esp,{STACK}", "cld", "mov al,0xff", "out 0x21,al", "out 0xa1,al",
    f"mov edi,{INDEX}", "mov ecx,0x40", "xor eax,eax", "rep stosd",
    "next:", "cli", "mov eax,0x11", "mov cr0,eax", "xor eax,eax", "mov cr4,eax", "mov al,2", "out 0x92,al",
    "cld", f"mov esi,{IMAGE}", f"mov edi,{LIVE}", f"mov ecx,{SIZE // 4}", _COPY,
    "lgdt [{gdtr}]", "lidt [{idtr}]", f"jmp {CODE0}:{{flat}}",
    "gdtr:", ".word 0xfff", f".long {GDT}", "idtr:", ".word 0x7ff", f".long {IDT}",
    "flat:", f"mov eax,{DATA0}", *(f"mov {seg},eax" for seg in ("ss", "ds", "es", "fs", "gs")),
    "xor eax,eax", f"mov edi,{STACKS}", f"mov ecx,{STACKS_SIZE // 4}", "rep stosd",
    f"mov edi,{DATA}", "mov ecx,0x400", "rep stosd", f"mov edi,{MORE}", "mov ecx,3", "rep stosd",
    "lldt ax", "mov dr7,eax", "mov dr0,eax", "mov dr1,eax", "mov dr2,eax", "mov dr3,eax", "mov dr6,eax",
    "mov ebx,0x174", "msrs:", "mov ecx,ebx", "xor edx,edx", "wrmsr", "inc ebx", "cmp ebx,0x177", "jne msrs",
    f"mov eax,{DIRECTORY}", "mov cr3,eax", "mov eax,0x80010011", "mov cr0,eax",
    f"mov esp,{STACK}", "push 2", "popfd", f"mov eax,{TASK}", "ltr ax", "mov eax,0x1111", "mov cr2,eax",
    "mov al,0x23", "mov dx,0x3f8", "out dx,al",
    f"mov ebx,[{INDEX}]", f"inc dword ptr [{INDEX}]",
    "mov esi,ebx", f"shl esi,{LOW_SIZE.bit_length() - 1}", f"add esi,{LOWS}", f"mov edi,{LOW}",
    f"mov ecx,{LOW_SIZE // 4}", _COPY,
    "mov eax,0x100", "mov ecx,0x101", "mov edx,0x102", "mov ebp,0x105", "mov esi,0x106", "mov edi,0x107",
    f"jmp dword ptr [{STARTS}+ebx*4]",
    "end:", "mov al,0x10", "out 0xf4,al", "hlt",
]  # fmt: skip
_COMMON = [
    "common:", "push ds", "push es", "pushad", f"mov eax,{DATA0}", "mov ds,eax", "mov es,eax", "cld",
    "mov esi,esp", "mov ecx,20", "call dump", "xor eax,eax", "mov ax,ss", f"mov [{SAVED}],eax",
    "str ax", f"mov [{SAVED + 4}],eax", "mov eax,cr2", f"mov [{SAVED + 8}],eax",
    "mov eax,dr6", f"mov [{SAVED + 12}],eax", "pushfd", "pop eax", f"mov [{SAVED + 16}],eax",
    f"mov esi,{SAVED}", "mov ecx,5", "call dump", "mov al,10", "mov dx,0x3f8", "out dx,al",
    f"cmp dword ptr [{MORE}],0", "je next", f"dec dword ptr [{MORE}]",
    "mov eax,[esp+40]", f"mov ebx,[{HAS_CODE}]", f"mov ecx,[{ADVANCE}]", "cmp eax,1", "jne faulted",
    "xor ecx,ecx", "faulted:", "bt ebx,eax", "jc coded",
    "add [esp+44],ecx", "or dword ptr [esp+52],0x10000", "popad", "pop es", "pop ds", "add esp,4", "iretd",
    "coded:", "add [esp+48],ecx", "popad", "pop es", "pop ds", "add esp,8", "iretd",
    "dump:", "mov edi,[esi]", "add esi,4", "mov ebp,8",
    "digit:", "rol edi,4", "mov eax,edi", "and al,15", "add al,0x30", "cmp al,0x39", "jbe shown",
    "add al,39", "shown:", "mov dx,0x3f8", "out dx,al", "dec ebp", "jnz digit", "mov al,32", "out dx,al",
    "dec ecx", "jnz dump", "ret",
]  # fmt: skip


def _lines(number: int, case: Case) -> list[str]:
    """The code of a case; its labels get its number, so that others can have the same."""
    lines = [f"case{number}:", *case.code.split(" | ")]
    if case.v86:
        values = (5, 4, 3, 2, 0x600, LOW_STACK - 0x6000, case.flags | 0x20000, LOW >> 4, 0)
        lines += [*(f"push {value}" for value in values), "iretd"]
    if case.user is not None:
        lines += [f"mov ax,{DATA3}", "mov ds,ax", "mov es,ax", "mov fs,ax", "mov gs,ax"]
        lines += [*(f"push {value}" for value in (DATA3, USER_STACK, case.flags, CODE3)), "push {user@}"]
        lines += ["iretd", "user@:", *case.user.split(" | ")]
    return [line.replace("@", str(number)) for line in [*lines, f"int {DONE}", "jmp next"]]


def build(cases: Sequence[Case]) -> tuple[bytes, dict[str, int]]:
    """The kernel as a flat multiboot image, and its labels."""
    lines = list(_START)
    for number, case in enumerate(cases):
        lines += _lines(number, case)
    for vector in range(VECTORS):
        lines += [f"v{vector}:", f"push {vector}", "jmp common"]
    assembled = assemble("\n".join([*lines, *_COMMON]), BASE)
    assert len(assembled.code) < 0x10000
    labels = assembled.labels
    starts = [labels[f"case{number}"] for number in range(len(cases))] + [labels["end"]]
    data = _tables(labels) + b"".join(at.to_bytes(4, "little") for at in starts)
    data = data.ljust(LOWS - IMAGE, b"\0")
    for case in cases:
        low = assemble(".code16\n" + case.low.replace(" | ", "\n"), 0).code if case.low else b""
        assert len(low) <= LOW_SIZE
        data += low.ljust(LOW_SIZE, b"\0")
    assert len(data) <= LIVE - IMAGE
    return assembled.code.ljust(IMAGE - BASE, b"\0") + data, labels


def _tables(labels: dict[str, int]) -> bytes:
    """What the live tables are copied from."""
    data = bytearray(SIZE)

    def put(address: int, content: bytes | int) -> None:
        if isinstance(content, int):
            content = content.to_bytes(4, "little")
        data[address - LIVE : address - LIVE + len(content)] = content

    for selector, content in _SEGMENTS.items():
        put(GDT + (selector & ~7), content)
    for vector in range(VECTORS):
        access = 0xEE if vector in (DONE, USER_INT) else 0x8E
        put(IDT + 8 * vector, gate(CODE0, labels[f"v{vector}"], access))
    words = {TSS + 4: KERNEL_STACK, TSS + 8: DATA0, TSS + 0x1C: DIRECTORY, TSS + 0x64: BITMAP - TSS << 16}
    fields = (DIRECTORY, 0, 2, 1, 2, 3, 4, NEW_STACK, 6, 7, 8, DATA0, CODE0, DATA0, DATA0, 0, DATA3, 0)
    words |= {NEW_TSS + 0x1C + 4 * i: value for i, value in enumerate(fields)}
    words |= {DIRECTORY: TABLE | 7}
    words |= {TABLE + 4 * page: page << 12 | 7 for page in range(512) if page != ABSENT >> 12}
    for address, word in words.items():
        put(address, word)
    return bytes(data)


def parse(line: bytes) -> Event:
    """One line of the console."""
    values = [int(word, 16) for word in line.split()]
    return Event(*values[:11], tuple(values[11:20]), *values[20:])  # type: ignore[call-arg]


def run_all(cases: Sequence[Case]) -> list[Seen]:
    """What cases give on our machine, one after the other."""
    image, labels = build(cases)
    console, _ = on_machine(image, "kernel ")
    parts = console.split(b"#")[1:-1]
    return [Seen([parse(line) for line in part.splitlines()], labels, n) for n, part in enumerate(parts)]


def run(case: Case) -> Seen:
    """What one case gives on our machine."""
    return run_all([case])[0]


def differences(folder: Path, cases: Sequence[Case]) -> list[str]:
    """The cases that give something else under QEMU, with both."""
    image, _ = build(cases)
    (folder / "kernel").write_bytes(image)
    ours, theirs = on_machine(image, "kernel "), on_qemu(folder, "kernel")
    assert ours[1] == theirs[1]
    mine, other = ours[0].split(b"#")[1:-1], theirs[0].split(b"#")[1:-1]
    return [
        f"{case}:\n{a.decode()}under QEMU:\n{b.decode()}"
        for case, a, b in zip(cases, mine, other, strict=True)
        if a != b
    ]
