# SPDX-License-Identifier: GPL-2.0-only
"""Corners of the processor that matter to a kernel on another ring: tables, stacks, faults in faults, tasks.

Cases for :mod:`tests.native.corners`; what is natively so is judged by QEMU, as there.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.native.corners import (
    ABSENT,
    CODE0,
    CODE3,
    DATA,
    DATA0,
    DATA3,
    FREE,
    GDT,
    IDT,
    KERNEL_STACK,
    LDT,
    LOW,
    NEW,
    NEW_TSS,
    STACK,
    TASK,
    TASK_GATE,
    TSS,
    USER_STACK,
    Case,
    call_gate,
    idt_gate,
    more,
)

GP, DF, PF = 13, 8, 14

_BACK = f"int {0x31}"
_RETURN = f"push {DATA3} | push {USER_STACK} | push 0x202 | push {CODE3} | push {{u@}} | iretd | u@: nop"


def _put(selector: int, access: int, flags: int = 0xCF, base: int = 0, limit: int = 0xFFFF) -> str:
    """Code that writes a descriptor by plain stores."""
    at = GDT + (selector & ~7)
    low, high = (
        (base & 0xFFFF) << 16 | limit,
        base >> 16 & 0xFF | access << 8 | flags << 16 | base & 0xFF000000,
    )
    return f"mov dword ptr [{at}],{low} | mov dword ptr [{at + 4}],{high}"


def _local(index: int, access: int, flags: int = 0xCF, base: int = 0) -> str:
    at = DATA + 0x800 + (index & ~7)
    low, high = (base & 0xFFFF) << 16 | 0xFFFF, base >> 16 & 0xFF | access << 8 | flags << 16
    return f"mov dword ptr [{at}],{low} | mov dword ptr [{at + 4}],{high}"


_LOCAL = (
    f"{_local(0x8, 0x9A)} | {_local(0x10, 0x92)} | {_local(0x18, 0xF2, base=DATA)} | mov eax,{LDT} | lldt ax"
)
_ANEW = f"{_put(CODE0, 0x9A)} | {_put(DATA0, 0x92)}"  # as a kernel that copies its table once more


def _segments() -> Iterator[Case]:
    look = "mov ebx,ds | mov ecx,es | mov edx,fs | mov esi,gs"
    yield Case(
        "code in the local table", f"{_LOCAL} | push 0xc | push {{l@}} | retf | l@: mov ebx,cs | {_BACK}"
    )
    yield Case(
        "jump to the local table", f"{_LOCAL} | .byte 0xea | .long {{l@}} | .word 0xc | l@: mov ebx,cs"
    )
    yield Case("stack in the local table", f"{_LOCAL} | mov eax,0x14 | mov ss,ax | mov ebx,ss | {_BACK}")
    yield Case(
        "a local handler", f"{_LOCAL} | {idt_gate(0x30, 'h@', selector=0xC)} | int 0x30 | h@: mov ebx,cs"
    )
    yield Case(
        "local data of user code", _LOCAL, user="mov eax,0x1f | mov gs,ax | mov ebx,gs:[0x800] | mov ecx,gs"
    )
    yield Case("local code for user code", _LOCAL, user="push 0xf | push 0 | retf")
    yield Case(
        "the local table goes away",
        f"{_LOCAL} | mov eax,0x14 | mov es,ax | xor eax,eax | lldt ax | mov es,ax",
    )
    yield Case("rewritten, an interrupt", f"{_ANEW} | int 0x31 | {look}")
    for register in ("ds", "es", "fs", "gs", "ss"):
        yield Case(
            f"rewritten, mov {register}",
            f"{_ANEW} | mov eax,{DATA0} | mov {register},ax | mov ebx,{register}",
        )
        yield Case(
            f"rewritten, pop {register}", f"{_ANEW} | push {DATA0} | pop {register} | mov ebx,{register}"
        )
    yield Case(
        "rewritten, lss", f"{_ANEW} | push {DATA0} | push {STACK} | .byte 0x0f,0xb2,0x24,0x24 | mov ebx,ss"
    )
    yield Case("rewritten, iret", f"{_ANEW} | pushfd | push {CODE0} | push {{i@}} | iretd | i@: mov ebx,cs")
    yield Case("rewritten, far jump", f"{_ANEW} | jmp {CODE0}:{{j@}} | j@: mov ebx,cs")
    yield Case("rewritten, far call", f"{_ANEW} | call {CODE0}:{{j@}} | j@: mov ebx,[esp+4]")
    yield Case("rewritten, far return", f"{_ANEW} | push {CODE0} | push {{j@}} | retf | j@: mov ebx,cs")
    yield Case("rewritten, from user code", _ANEW, user=f"{_BACK}")
    yield Case(
        "rewritten, through a gate", f"{call_gate('g@')} | {_ANEW}", user="call 0x53:0 | g@: mov ebx,cs"
    )
    moved = _put(FREE, 0x92, base=DATA)
    yield Case(
        "another base", f"{moved} | mov eax,{FREE} | mov fs,ax | mov dword ptr [{DATA}],7 | mov ebx,fs:[0]"
    )
    held = f"{_put(FREE, 0x92)} | mov eax,{FREE} | mov fs,ax | {moved}"
    yield Case("not another base yet", f"{held} | mov ebx,fs:[{GDT + FREE}]")
    yield Case("absent", f"{_put(FREE, 0x12)} | mov eax,{FREE} | mov gs,ax")
    yield Case("absent stack", f"{_put(FREE, 0x12)} | mov eax,{FREE} | mov ss,ax")
    yield Case("absent code", f"{_put(FREE, 0x1A)} | pushfd | push {FREE} | push 0 | nop | .byte 0xcf")
    yield Case(
        "conforming, IRET",
        f"{_put(FREE, 0x9E)} | pushfd | push {FREE} | push {{c@}} | iretd | c@: mov ebx,cs",
    )
    yield Case(
        "conforming handler",
        f"{_put(FREE, 0x9E)} | {idt_gate(0x30, 'c@', selector=FREE)} | int 0x30 | c@: mov ebx,cs",
    )
    yield Case(
        "conforming, user", _put(FREE, 0x9E), user=f"push {FREE | 3} | push {{c@}} | retf | c@: int 0x31"
    )
    looks = "lar ebx,eax | lsl ecx,eax | verr ax | sete dl | verw ax | sete dh"
    for selector in (
        CODE0,
        DATA0,
        CODE3,
        DATA3,
        DATA0 | 3,
        LDT,
        NEW,
        TASK_GATE,
        0x53,
        FREE,
        0xC,
        0x14,
        0x1F,
        0x2000,
    ):
        text = f"mov eax,{selector} | xor edx,edx | {looks}"
        yield Case(f"look at {selector:#x}", f"{_LOCAL} | {_put(FREE, 0x9E)} | {text}")
        yield Case(f"user look at {selector:#x}", f"{_LOCAL} | {_put(FREE, 0x9E)}", user=text)
    arpl = "mov eax,cs | mov ebx,0x10 | .byte 0x63,0xc3 | sete dl | mov ecx,0x13 | .byte 0x63,0xc1 | sete dh"
    yield Case("arpl", f"xor edx,edx | {arpl}")
    yield Case("user arpl", user=f"xor edx,edx | {arpl}")
    store = f"sgdt [{DATA}] | sidt [{DATA + 8}] | sldt edx | str esi | smsw di"
    store += f" | mov ebx,[{DATA + 2}] | mov ecx,[{DATA + 10}]"
    yield Case("registers of tables", store)
    yield Case("user registers of tables", user=store)
    yield Case(
        "another IDT for user code",
        f"sidt [{DATA}] | mov word ptr [{DATA}],0x5ff | lidt [{DATA}]",
        user=f"sidt [{DATA}] | mov ebx,[{DATA}] | mov ecx,[{DATA + 4}]",
    )


def _stacks() -> Iterator[Case]:
    outer = f"{_put(FREE, 0xF2, flags=0)} | push {FREE | 3} | push 0x12347000 | push 0x202"
    outer += f" | push {CODE3} | push {{u@}} | iretd"
    yield Case("to a 16-bit stack", f"{outer} | u@: push eax | int 0x31 | pop eax")
    words = f"push {DATA3} | push {USER_STACK} | push {CODE3} | push {{u@}} | retf | u@: mov eax,fs | {_BACK}"
    yield Case("far return to user code", f"mov eax,{DATA0} | mov fs,ax | {words}")
    absent = f"mov esp,{ABSENT + 0x1000}"
    look = f"task@: pop eax | mov ebx,[{TSS + 0x20}] | mov ecx,[{TSS + 0x38}]"
    for name, code in {
        "iret": "sub esp,12 | iretd", "retf": "sub esp,8 | retf", "popfd": "sub esp,4 | popfd",
        "pushfd": "pushfd", "push cs": "push cs", "far call": f"call {CODE0}:0",
        "pop ss": "sub esp,4 | pop ss",
    }.items():  # fmt: skip
        yield Case(
            f"absent stack, {name}",
            f"{_task_gate(DF)} | {absent} | {code} | {look}",
        )
    half = f"mov esp,{ABSENT - 4} | {_task_gate(PF)}"
    yield Case("half a frame", f"{half} | .byte 0xcf | task@: pop eax | mov ebx,[{TSS + 0x20}]")


def _task_gate(vector: int) -> str:
    at = IDT + 8 * vector
    task = f"mov dword ptr [{NEW_TSS + 0x20}],{{task@}}"
    return f"{task} | mov dword ptr [{at}],{NEW << 16} | mov dword ptr [{at + 4}],0x8500"


def _nested() -> Iterator[Case]:
    not_there = f"mov byte ptr [{IDT + 8 * 0x30 + 5}],0"
    yield Case("absent gate", f"{not_there} | int 0x30")
    yield Case(
        "absent gate, user", f"{not_there} | mov byte ptr [{IDT + 8 * 0x30 + 5}],0x6e", user="int 0x30"
    )
    yield Case("no gate for users", user="int 0x30")
    yield Case("bad gate of a fault", f"mov word ptr [{IDT + 8 * 6 + 2}],0xfff8 | ud2")
    yield Case("bad gate of #GP", f"mov word ptr [{IDT + 8 * GP + 2}],0xfff8 | mov eax,0xfff8 | mov ds,ax")
    yield Case("bad gate of #PF", f"mov word ptr [{IDT + 8 * PF + 2}],0xfff8 | mov eax,[{ABSENT}]")
    yield Case("refused, and a bad gate", f"mov word ptr [{IDT + 8 * GP + 2}],0 | lldt sp")
    bad = f"mov dword ptr [{TSS + 4}],{ABSENT + 0x1000}"
    yield Case(
        "absent kernel stack",
        f"{_task_gate(DF)} | {bad}",
        user=f"{_BACK} | task@: pop eax | mov ebx,[{TSS + 0x20}]",
    )
    yield Case(
        "null kernel stack",
        f"{_task_gate(10)} | mov dword ptr [{TSS + 8}],0",
        user=f"{_BACK} | task@: pop eax",
    )
    yield Case(
        "user stack for the kernel",
        f"{_task_gate(10)} | mov dword ptr [{TSS + 8}],{DATA3}",
        user=f"{_BACK} | task@: pop eax",
    )
    yield Case(
        "short task segment",
        f"mov word ptr [{GDT + TASK}],7 | mov byte ptr [{GDT + TASK + 5}],0x89 | mov eax,{TASK} | ltr ax"
        f" | {_task_gate(10)}",
        user=f"{_BACK} | task@: pop eax",
    )
    for frame in (
        (0x7FF8, 2), (0, 2), (DATA0, 2), (NEW, 2), (CODE3, 2, USER_STACK, DATA0), (CODE3, 2, USER_STACK, 0),
        (CODE3, 2, USER_STACK, CODE3), (CODE3 & ~3, 2), (CODE0 | 3, 2, USER_STACK, DATA3),
    ):  # fmt: skip
        pushes = " | ".join(f"push {word}" for word in reversed(frame))
        yield Case(f"refused frame {frame}", f"cmp eax,eax | {pushes} | push 0 | nop | .byte 0xcf")


def _tasks() -> Iterator[Case]:
    at = f"mov dword ptr [{NEW_TSS + 0x20}],{{task@}} | push 7 | popfd"
    saved = f"mov eax,[{TSS + 0x24}] | mov ebx,[{TSS + 0x4C}] | mov ecx,[{TSS + 0x50}]"
    state = f"mov edx,[{NEW_TSS}] | mov esi,[{GDT + 0x2C}] | mov edi,[{GDT + NEW + 4}]"
    for name, far in {"call": f"call {TASK_GATE}:0", "jump": f"jmp {TASK_GATE}:0"}.items():
        yield Case(f"{name} to a task of users", f"{at} | {far} | task@: {saved} | {state}")
        yield Case(
            f"user {name} to a task", at, user=f"push 0x202 | popfd | {far} | task@: {saved} | {state}"
        )
    open_tss = f"mov byte ptr [{GDT + NEW + 5}],0xe9"
    for name in ("call", "jmp"):
        yield Case(
            f"user {name} to a TSS",
            f"{open_tss} | {at}",
            user=f"{name} {NEW | 3}:0 | task@: {saved} | {state}",
        )
    yield Case(
        "user task and back",
        at,
        user=f"push 7 | popfd | call {TASK_GATE}:0 | mov ebx,cs | int 0x31 | task@: iretd",
    )
    back = f"mov byte ptr [{NEW_TSS + 0x25}],0 | iretd"
    yield Case(
        "user task, twice",
        at,
        user=f"call {TASK_GATE}:0 | call {TASK_GATE}:0 | int 0x31 | task@: {back} | again@: inc eax | {back}",
    )
    ring3 = " | ".join(
        f"mov word ptr [{NEW_TSS + offset}],{value}"
        for offset, value in ((0x48, DATA3), (0x4C, CODE3), (0x50, DATA3), (0x54, DATA3))
    )
    yield Case(
        "a task on ring 3 and back",
        f"{at} | {ring3} | call {TASK_GATE}:0 | mov ebx,0x55 | int 0x31 | task@: .byte 0xcf",
    )
    yield Case(
        "user calls a user task",
        f"{at} | {ring3} | mov word ptr [{NEW_TSS + 4}],{KERNEL_STACK & 0xFFFF}",
        user=f"call {TASK_GATE}:0 | mov ebx,0x55 | int 0x31 | task@: nop | iretd",
    )
    yield Case(
        "a task that is busy", f"mov byte ptr [{GDT + NEW + 5}],0x8b | {at} | jmp {NEW}:0 | task@: nop"
    )
    yield Case(
        "stepped into a task",
        f"{at} | {more(2)} | push 0x102 | popfd | call {TASK_GATE}:0 | task@: nop | nop",
    )


_STEPPED = {
    "iret to user code": f"{_RETURN.replace('0x202', '0x302')} | nop",
    "mov cr3": "mov eax,cr3 | mov cr3,eax | nop | nop",
    "lgdt": f"sgdt [{DATA}] | lgdt [{DATA}] | nop",
    "lidt": f"sidt [{DATA}] | lidt [{DATA}] | nop",
    "lldt": "xor eax,eax | lldt ax | nop",
    "mov from cs": "mov eax,cs | push cs | push ss | mov eax,ss | nop",
    "far jump": f"jmp {CODE0}:{{j@}} | nop | j@: nop | nop",
    "lar": f"mov eax,{CODE0} | lar ebx,eax | lsl ecx,eax | verr ax | nop",
    "mov ds": f"mov eax,{DATA0} | mov ds,ax | push ds | pop es | nop",
    "rewritten mov ds": f"mov eax,{DATA0} | mov byte ptr [{GDT + DATA0 + 5}],0x92 | mov ds,ax | nop",
    "invlpg": "invlpg [0] | clts | nop",
    "dr": "mov eax,dr6 | mov dr0,eax | nop",
    "cpuid": "cpuid | nop",
}  # fmt: skip


def _stepping() -> Iterator[Case]:
    for name, code in _STEPPED.items():
        yield Case(f"stepped, {name}", f"{more(7)} | push 0x102 | popfd | {code}")
    yield Case(
        "stepped, refused load",
        f"{more(3, coded=[GP], advance=2)} | mov eax,0xfff8 | push 0x102 | popfd | .byte 0x8e,0xd8 | nop"
        " | nop",
    )
    yield Case(
        "stepped, call gate",
        f"{call_gate('g@')} | {more(4)}",
        user="push 0x302 | popfd | call 0x53:0 | g@: nop | nop",
    )
    yield Case("stepped, system call", more(4), user="push 0x302 | popfd | int 0x31 | nop | nop")


_SENSITIVE_16 = {
    "cli | sti | pushf | pop ax": 1,
    "push 0x3202 | popf | pushf | pop bx": 1,
    "hlt": 1,
    "in al,0x80": 2,
    "int 0x31": 2,
    "int 0x30": 2,
    "int3": 1,
    "ud2": 2,
}  # with the length of what may be refused


def _virtual() -> Iterator[Case]:
    for iopl in (0, 3):
        for low, length in _SENSITIVE_16.items():
            yield Case(
                f"virtual 8086, IOPL {iopl}: {low}",
                more(2, coded=[GP], advance=length),
                low=low + " | nop" * length + (" | int 0x20" + " | nop" * length) * 3,
                v86=True,
                flags=iopl << 12 | 2,
            )
    denied = f"mov byte ptr [{TSS + 0x68 + 16}],0xff"
    for iopl in (0, 3):
        for access in ("in al,0x80", "out 0x80,ax", "in eax,0x84"):
            yield Case(
                f"denied {access}, IOPL {iopl}",
                denied,
                low=f"{access} | mov eax,0 | int 0x20",
                v86=True,
                flags=iopl << 12 | 2,
            )
    at = f"mov dword ptr [{NEW_TSS + 0x20}],{{task@}}"
    gate = (
        f"{at} | mov dword ptr [{IDT + 8 * 0x30}],{NEW << 16} | mov dword ptr [{IDT + 8 * 0x30 + 4}],0xe500"
    )
    yield Case(
        "virtual 8086, task gate",
        f"{gate} | jmp go@ | task@: mov ebx,[{TSS + 0x24}] | int 0x31 | go@: nop",
        low="int 0x30 | hlt",
        v86=True,
        flags=0x3002,
    )
    yield Case(
        "virtual 8086, conforming handler",
        f"{_put(FREE, 0x9E)} | {idt_gate(0x30, 'v48', selector=FREE)}",
        low="int 0x30 | hlt",
        v86=True,
        flags=0x3002,
    )
    yield Case(
        "virtual 8086, stepped",
        more(3),
        low=f"nop | pushf | pop bx | mov ax,{LOW >> 4}{' | int 0x20' * 4}",
        v86=True,
        flags=0x3102,
    )


def cases() -> list[Case]:
    """All of them."""
    parts = (_segments, _stacks, _nested, _tasks, _stepping, _virtual)
    return [case for part in parts for case in part()]
