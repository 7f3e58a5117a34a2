# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that walks into exceptions and prints what each handler finds: for any machine that boots it.

Each case is a piece of code that ends in an exception or INT. Before it, everything is put right again;
after it, one line is printed: the vector, the words at the top of the handler's stack, ESP, SS, TR, CR2
and EFLAGS.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.native.guest import descriptor
from vmi.rom.assemble import assemble

BASE = 0x100000
GDT, IDT, TSS, NEW_TSS = 0x180000, 0x181000, 0x182000, 0x182800
DIRECTORY, TABLE, USER_STACK, STACK, KERNEL_STACK, NEW_STACK, INDEX, SAVED = (
    0x183000, 0x184000, 0x186000, 0x187000, 0x188000, 0x189000, 0x18A000, 0x18B000,
)  # fmt: skip
ABSENT, READ_ONLY = 0x1A0000, 0x1A1000

CODE0, DATA0, CODE3, DATA3, TASK, NEW, SHIFTED, ABSENT_CODE, CONFORMING, DATA16 = (
    0x08, 0x10, 0x1B, 0x23, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50,
)  # fmt: skip
_SEGMENTS = (
    (CODE0, descriptor(0, 0xFFFFF, 0x9A)),
    (DATA0, descriptor(0, 0xFFFFF, 0x92)),
    (CODE3, descriptor(0, 0xFFFFF, 0xFA)),
    (DATA3, descriptor(0, 0xFFFFF, 0xF2)),
    (TASK, descriptor(TSS, 0x67, 0x89, 0)),
    (NEW, descriptor(NEW_TSS, 0x67, 0x89, 0)),
    (SHIFTED, descriptor(BASE, 0xFFFFF, 0x9A)),
    (ABSENT_CODE, descriptor(0, 0xFFFFF, 0x1A)),
    (CONFORMING, descriptor(0, 0xFFFFF, 0x9E)),
    (DATA16, descriptor(0x100000, 0xFFFF, 0x92, 0)),
)
# vectors with a gate that is not a plain one: selector and access byte
_ODD_GATES = {
    0x31: (CODE0, 0x8F),  # trap
    0x32: (SHIFTED, 0x86),  # 16 bits
    0x33: (CODE0, 0xEE),  # for ring 3
    0x34: (CODE0, 0x0E),  # absent
    0x35: (0, 0x8E),
    0x36: (DATA0, 0x8E),
    0x37: (CODE3, 0x8E),
    0x38: (ABSENT_CODE, 0x8E),
    0x39: (0x1000, 0x8E),
    0x3A: (CODE0, 0x82),  # no gate
    0x3B: (NEW, 0x85),
    0x3C: (TASK, 0x85),  # busy
    0x3D: (CODE0, 0x85),
    0x3E: (SHIFTED, 0xE7),
}
VECTORS = 0x40

_RING_0 = f"""
int 0x30; stc | int 0x31; int 0x32; int 0x33; int 0x34; int 0x35; int 0x36; int 0x37; int 0x38; int 0x39
int 0x3a; mov esi,7 | int 0x3b; int 0x3c; int 0x3d; int 0x3e; int 0x41; int 0xff; int3; .byte 0xcd,3
mov al,0x7f | add al,1 | into; int 6; int 8; int 14; ud2; xor ecx,ecx | div ecx; mov ax,0x80 | mov ds,ax
mov ax,0x84 | mov fs,ax; mov ax,0x48 | mov ss,ax; mov ax,0x43 | mov es,ax; xor eax,eax | mov ss,ax
jmp 0x1000:0; jmp 0x40:0; call 0x10:0; stc | mov eax,[{ABSENT + 4}]
mov al,0x7f | add al,1 | mov [{ABSENT}],eax; mov al,5 | sub al,6 | inc dword ptr [{READ_ONLY}]
xor eax,eax | push dword ptr [{ABSENT}]; std | mov al,1 | shl al,2 | mov [{READ_ONLY}],al
cmp eax,0x12345 | mov ecx,{ABSENT} | jmp ecx; push 0x102 | popfd | mov al,0x7f | add al,1 | nop
push 0x4002 | popfd | ud2
"""
_RING_3 = f"""
cli; int 0x30; int 0x33; int 0x34; int 0x3e; int3; hlt; stc | ud2; mov eax,[{ABSENT}]; mov eax,[{STACK}]
mov al,0x7f | add al,1 | mov [{READ_ONLY}],al; mov eax,cr0; mov ax,0x10 | mov ds,ax; lgdt [{GDT}]
jmp 0x08:0; int 0x3b; push 0x3202 | popfd | mov al,200 | add al,100 | ud2
"""


def _cases(text: str) -> list[str]:
    return [case.strip() for case in text.replace("\n", ";").split(";") if case.strip()]


CASES = (*_cases(_RING_0), *(f"ring 3: {case}" for case in _cases(_RING_3)))


def _table() -> list[str]:
    """Code that stores descriptors, task segments and page tables."""
    words: dict[int, int] = {}
    for selector, data in _SEGMENTS:
        words[GDT + (selector & ~7)] = int.from_bytes(data[:4], "little")
        words[GDT + (selector & ~7) + 4] = int.from_bytes(data[4:], "little")
    words |= {TSS + 4: KERNEL_STACK, TSS + 8: DATA0}
    fields = (DIRECTORY, 0, 2, 1, 2, 3, 4, NEW_STACK, 6, 7, 8, DATA0, CODE0, DATA0, DATA0, 0, DATA3, 0)
    words |= {NEW_TSS + 0x1C + 4 * i: value for i, value in enumerate(fields)}
    return [f"mov dword ptr [{at}],{value}" for at, value in words.items()]


def image(cases: Sequence[str] = CASES) -> bytes:
    """The kernel as a flat multiboot image."""
    lines = [
        ".long 0x1BADB002", ".long 0x00010003", f".long {-(0x1BADB002 + 0x10003) & 0xFFFFFFFF}",
        f".long {BASE}", f".long {BASE}", ".long 0", ".long 0", ".long start",
        "start:", f"mov esp,{STACK}", "cld", f"mov edi,{GDT}", "mov ecx,0x10000", "xor eax,eax", "rep stosb",
        *_table(),
    ]  # fmt: skip
    for vector in range(VECTORS):
        selector, access = _ODD_GATES.get(vector, (CODE0, 0x8E))
        at = IDT + 8 * vector
        if selector == NEW:
            lines.append(f"mov dword ptr [{NEW_TSS + 0x20}],{{v{vector}}}")
        target = f"v{vector}-{BASE}" if selector == SHIFTED else f"v{vector}"
        lines += [
            f"mov eax,{{{target}}}", "mov edx,eax", "and eax,0xffff", f"or eax,{selector << 16}",
            "and edx,0xffff0000", f"or edx,{access << 8}", f"mov [{at}],eax", f"mov [{at + 4}],edx",
        ]  # fmt: skip
    lines += [
        # 2 MiB one to one with 4 KiB pages, open to ring 3
        f"mov edi,{TABLE}", "mov eax,7", "mov ecx,512", "pages:", "stosd", "add eax,0x1000", "loop pages",
        f"mov dword ptr [{TABLE + 4 * (ABSENT >> 12)}],0",
        f"mov dword ptr [{TABLE + 4 * (READ_ONLY >> 12)}],{READ_ONLY | 5}",
        f"mov dword ptr [{TABLE + 4 * (STACK >> 12)}],{STACK | 3}",
        f"mov dword ptr [{DIRECTORY}],{TABLE | 7}", f"mov eax,{DIRECTORY}", "mov cr3,eax",
        "lgdt [{gdtr}]", "lidt [{idtr}]", f"jmp {CODE0}:{{next}}",
        "gdtr:", ".word 0x7f", f".long {GDT}", "idtr:", f".word {8 * VECTORS + 15}", f".long {IDT}",
        # put everything right and go to the next case
        "next:", "mov eax,0x80010011", "mov cr0,eax", f"mov ax,{DATA0}", "mov ss,ax", "mov ds,ax",
        "mov es,ax", "mov fs,ax", "mov gs,ax", f"mov esp,{STACK}", "push 2", "popfd",
        f"and dword ptr [{GDT + TASK + 4}],0xfffffdff", f"and dword ptr [{GDT + NEW + 4}],0xfffffdff",
        f"mov ax,{TASK}", "ltr ax", "mov eax,0x1111", "mov cr2,eax",
        f"mov edx,[{INDEX}]", f"inc dword ptr [{INDEX}]",
        "mov eax,0x100", "mov ecx,0x101", "mov ebx,0x103", "mov esi,0x106", "mov edi,0x107",
    ]  # fmt: skip
    for number in range(len(cases)):
        lines += [f"cmp edx,{number}", f"je case{number}"]
    lines += ["mov al,0x10", "out 0xf4,al", "hlt"]
    for number, case in enumerate(cases):
        user, code = case.startswith("ring 3: "), case.removeprefix("ring 3: ")
        lines.append(f"case{number}:")
        if user:
            frame = (DATA3, USER_STACK, 2, CODE3)
            lines += [f"mov ax,{DATA3}", "mov ds,ax", "mov es,ax", *(f"push {value}" for value in frame)]
            lines += [f"push {{user{number}}}", "iretd", f"user{number}:"]
        lines += [*code.split(" | "), "jmp next"]
    for vector in range(VECTORS):
        lines += [f"v{vector}:", f"push {vector}", f"jmp {CODE0}:{{common}}"]
    lines += [
        "common:", f"mov eax,{DATA0}", "mov ds,eax", "mov es,eax", "cld",
        "mov esi,esp", "mov ecx,10", "call dump", f"mov [{SAVED}],esp", "xor eax,eax",
        "mov ax,ss", f"mov [{SAVED + 4}],eax", "str ax", f"mov [{SAVED + 8}],eax",
        "mov eax,cr2", f"mov [{SAVED + 12}],eax", "pushfd", "pop eax", f"mov [{SAVED + 16}],eax",
        f"mov esi,{SAVED}", "mov ecx,5", "call dump", "mov al,10", "mov dx,0x3f8", "out dx,al", "jmp next",
        "dump:", "mov edi,[esi]", "add esi,4", "mov ebp,8",
        "digit:", "rol edi,4", "mov eax,edi", "and al,15", "add al,0x30", "cmp al,0x39", "jbe shown",
        "add al,39", "shown:", "mov dx,0x3f8", "out dx,al", "dec ebp", "jnz digit", "mov al,32", "out dx,al",
        "dec ecx", "jnz dump", "ret",
    ]  # fmt: skip
    return assemble("\n".join(lines), BASE).code
