# SPDX-License-Identifier: GPL-2.0-only
"""The processor's modes and the ways between them: real, 16-bit, virtual 8086, gates, tasks, A20."""

from __future__ import annotations

import pytest

from tests.e2e.qemu import needs_qemu
from tests.native.bare import put
from tests.native.corners import (
    ABSENT,
    CODE3,
    CODE16,
    DATA,
    DATA0,
    DATA16,
    IDT,
    KERNEL_STACK,
    LOW,
    LOW_STACK,
    NEW,
    NEW_TSS,
    STACK,
    USER_INT,
    Case,
    differences,
    idt_gate,
    more,
    real_mode,
    run,
    run_all,
)
from tests.native.guest import Guest
from vmi.native.registers import Segment, TableRegister
from vmi.native.wiring import Stop
from vmi.x86 import Seg

UD, GP, DONE = 6, 13, 0x20
CLOSE, OPEN = "in al,0x92 | and al,0xfd | out 0x92,al", "in al,0x92 | or al,2 | out 0x92,al"


def protected_16(name, body, before="nop"):
    """A case with ``body`` in a 16-bit code segment."""
    return Case(name, f"{before} | jmp {CODE16}:0", low=f"{body} | int {DONE}")


def v86(name, low, code="nop", flags=0x3002):
    return Case(name, code, low=f"{low} | int {DONE}", v86=True, flags=flags)


# -- address line 20 ------------------------------------------------------------------------------


def real(cpu):
    """Real mode with all segments 0."""
    cpu.set_cr(0, 0)
    for seg in Seg:
        cpu.set_segment(seg, Segment(0, 0, 0xFFFF, 0x9B00 if seg is Seg.CS else 0x9300))


@pytest.mark.parametrize("open_", [False, True])
def test_a20_of_loads_and_stores_in_real_mode(cpu, open_):
    real(cpu)
    cpu.memory.put_u32(0x500, 0x1111)
    cpu.memory.put_u32(0x100500, 0x2222)
    cpu.set_a20(open_)
    put(cpu, ".code16\nmov ax,0xffff\nmov ds,ax\nmov ebx,[0x510]\nmov word ptr [0x610],0x77\nhlt", 0x7000)
    assert cpu.run(10) is Stop.HALTED
    assert cpu.ebx == (0x2222 if open_ else 0x1111)
    assert (cpu.memory.u32(0x600), cpu.memory.u32(0x100600)) == ((0, 0x77) if open_ else (0x77, 0))


@pytest.mark.parametrize("open_", [False, True])
def test_a20_of_an_access_across_1_mib(cpu, open_):
    """Two bytes below it, in ROM, and two above or at 0."""
    real(cpu)
    cpu.write_memory(0xFFFFE, b"\x11\x22")
    cpu.write_memory(0x100000, b"\x33\x44")
    cpu.write_memory(0, b"\x55\x66")
    cpu.set_a20(open_)
    put(cpu, ".code16\nmov ax,0xffff\nmov ds,ax\nmov ebx,[0xe]\nhlt", 0x7000)
    assert cpu.run(10) is Stop.HALTED
    assert cpu.ebx == (0x44332211 if open_ else 0x66552211)


def test_a20_of_code(cpu):
    """The same address gives other code when the gate moves, to and fro, and after stores."""
    low, high = 0x1500, 0x101500
    for value in (1, 2):
        cpu.write_memory(low, bytes([0xB8, value, 0, 0, 0, 0xF4]))
        cpu.write_memory(high, bytes([0xB8, value + 0x10, 0, 0, 0, 0xF4]))
        for open_ in (True, False, True, True, False, False):
            cpu.set_a20(open_)
            cpu.eip = high
            assert cpu.run(5) is Stop.HALTED
            assert cpu.eax == value + 0x10 * open_


def test_a20_of_stores_into_code(cpu):
    """A store through the address above changes the code below while the gate is closed."""
    cpu.write_memory(0x1500, bytes.fromhex("b801000000f4"))
    cpu.write_memory(0x101500, bytes.fromhex("b811000000f4"))
    for open_, seen in ((False, [1, 2]), (True, [2, 2])):
        cpu.set_a20(open_)
        got = []
        for _ in range(2):
            cpu.eip = 0x1500
            cpu.run(5)
            got.append(cpu.eax)
            put(cpu, "mov byte ptr [0x101501],2\nhlt", 0x7000)
            cpu.run(5)
        assert got == seen


def test_a20_of_code_that_crosses_1_mib(cpu):
    real(cpu)
    cpu.write_memory(0xFFFFE, b"\xb8\x11")  # mov ax, imm16
    cpu.write_memory(0x100000, b"\x22\xf4")
    cpu.write_memory(0, b"\x33\xf4")
    for open_, value in ((True, 0x2211), (False, 0x3311), (True, 0x2211)):
        cpu.set_a20(open_)
        cpu.set_segment(Seg.CS, Segment(0xFFFF, 0xFFFF0, 0xFFFF, 0x9B00))
        cpu.eip = 0xE
        assert cpu.run(5) is Stop.HALTED
        assert cpu.eax & 0xFFFF == value


@pytest.mark.parametrize("open_", [False, True])
def test_a20_of_a_handler_s_frame(open_):
    """It is stored by the host, behind page tables."""
    guest = Guest("int 0x30 | h: hlt", {0x30: "h"}, ram=4 << 20)
    guest.page()
    guest.memory.put_u32(0x21000 + 4 * 8, 0x108007)  # 8000h leads to 108000h
    guest.cpu.esp = 0x8FF0
    guest.cpu.flush_tlb()
    guest.cpu.set_a20(open_)
    guest.run()
    at = 0x108FE4 if open_ else 0x8FE4
    assert [guest.u32(at + 4 * i) for i in range(3)] == [guest.labels["h"], 8, 2]
    assert guest.u32(at ^ 0x100000) == 0


def test_guest_closes_and_opens_a20():
    body = (
        "mov ax,0xffff | mov fs,ax | mov word ptr [0xe000],0x1111 | mov word ptr fs:[0xe010],0x2222"
        f" | {CLOSE} | mov bx,fs:[0xe010] | {OPEN} | mov cx,fs:[0xe010]"
    )
    event = run(real_mode("", body)).event
    assert (event.vector, event.ebx & 0xFFFF, event.ecx & 0xFFFF) == (DONE, 0x1111, 0x2222)


# -- between real and protected mode --------------------------------------------------------------


def test_round_trips_between_real_and_protected_mode():
    back = f"mov eax,{DATA0} | mov ss,eax | mov ds,eax | mov esp,{STACK}"
    code = " | ".join(f"mov esi,{{p{n}@}} | jmp {CODE16}:0 | p{n}@: {back}" for n in range(5))
    low = (
        f"mov ebp,cr0 | mov eax,0x10 | mov cr0,eax | .byte 0xea | .word r | .word {LOW >> 4} | r: mov di,cs"
        f" | xor ax,ax | mov ss,ax | mov esp,{LOW_STACK} | inc ebx | mov cr0,ebp | mov eax,8 | push eax"
        " | push esi | .byte 0x66,0xcb"
    )
    event = run(Case("", code, low=low)).event
    assert (event.vector, event.ebx, event.edi & 0xFFFF) == (DONE, 5, LOW >> 4)


def test_segments_keep_their_bounds_in_real_mode():
    """FS loaded in protected mode reaches 4 GiB from real mode."""
    body = f".byte 0x64,0x66,0x67,0xa1 | .long {DATA + 8} | mov ebx,eax"
    event = run(real_mode("", body, before=f"mov dword ptr [{DATA + 8}],0x89abcdef")).event
    assert (event.vector, event.ebx) == (DONE, 0x89ABCDEF)


def test_table_of_real_mode_interrupts_may_lie_anywhere():
    guest = Guest(".code16 | real: stc | int 0x31 | after: nop | h: hlt")
    guest.real_mode("real")
    guest.cpu.set_segment(Seg.CS, Segment(0x1000, 0x10000, 0xFFFF, 0x9B00))
    guest.cpu.eip = 0
    guest.cpu.idt = TableRegister(0x5000, 0x3FF)
    guest.memory.put_u32(0x5000 + 4 * 0x31, 0x10000000 | guest.labels["h"] - 0x10000)
    guest.run()
    assert guest.u32(0x6FFA) == 0x10000000 | guest.labels["after"] - 0x10000
    assert guest.u32(0x6FFE) & 0xFFFF == 3


def test_16_bit_code_segment():
    body = (
        "push eax | push ax | mov ebx,esp | call f | jmp e | f: pop cx | push cx | mov edx,esp | ret | e: nop"
    )
    event = run(protected_16("", body)).event
    assert (event.vector, event.frame[1]) == (DONE, CODE16)
    assert (event.ebx, event.edx) == (STACK - 6, STACK - 8)


# -- virtual 8086 mode ----------------------------------------------------------------------------


def test_out_of_virtual_8086_mode_and_back():
    """The handler finds null segments; IRET brings all of them back."""
    look = "mov ax,ds | mov bx,es | mov cx,fs | mov dx,gs | mov si,ss | mov di,sp"
    inside, behind = run(v86("", f"stc | int {USER_INT} | {look}", more(1))).events
    assert (inside.vector, inside.es, inside.ds, inside.ss) == (USER_INT, 0, 0, DATA0)
    assert inside.words == (3, LOW >> 4, 0x23003, LOW_STACK - 0x6000, 0x600, 2, 3, 4, 5)
    assert behind.vector == DONE
    low = [
        value & 0xFFFF for value in (behind.eax, behind.ebx, behind.ecx, behind.edx, behind.esi, behind.edi)
    ]
    assert low == [3, 2, 4, 5, 0x600, LOW_STACK - 0x6000]
    assert behind.words[2] == 0x23003


@pytest.mark.parametrize("source", ["cli", "sti", "pushf", "popf", "int 0x31", "iret", "hlt"])
def test_sensitive_instructions_of_virtual_8086_mode(source):
    """With IOPL below 3 they are refused; HLT always is."""
    low = f"mov eax,{{l}} | push 2 | push {LOW >> 4} | push ax | {source} | l: nop"
    trusted, refused = (one.event for one in run_all([v86("", low, flags=flags) for flags in (0x3002, 2)]))
    at = refused.eip
    assert (refused.vector, refused.error, refused.esp) == (GP, 0, KERNEL_STACK - 52)
    wanted = {"hlt": (GP, at), "int 0x31": (USER_INT, at + 2), "iret": (DONE, at + 4)}
    assert (trusted.vector, trusted.eip) == wanted.get(source, (DONE, at + 4))


def test_faults_of_virtual_8086_mode_go_on_behind():
    seen = run(v86("", "nop | cli | ud2", more(1, coded=[GP], advance=1), flags=2))
    assert [(event.vector, event.eip) for event in seen.events] == [(GP, 1), (UD, 2)]


def test_virtual_8086_mode_wraps_nowhere():
    """Its addresses go on above 1 MiB; paging may map them to 0, as DOS needs it."""
    event = run(v86("", "mov ax,0xffff | mov fs,ax | mov ebx,fs:[0x10]")).event
    assert event.ebx == 0x1BADB002, "the kernel's own first word"


# -- the judge ------------------------------------------------------------------------------------

_INTERRUPTS = (
    "mov word ptr [0x600],0x3ff | mov dword ptr [0x602],0x10000 | lidt [0x600] | mov ax,0x1000 | mov es,ax"
    " | xor di,di | mov cx,0x100 | cld | f: mov ax,{h} | stosw"
    f" | mov ax,{LOW >> 4} | stosw | loop f | xor ax,ax | mov es,ax"
)
_HANDLER = "jmp end | h: pop ax | pop bx | pop cx | mov dx,sp | pushfd | pop edi"


def _list(text):
    return [piece.strip() for piece in text.replace("\n", ";").split(";") if piece.strip()]


_REAL_EVENTS = """
stc | sti | int 0x31; int3; xor cx,cx | div cx; ud2; mov al,0x7f | add al,1 | into; push 0x102 | popf | nop
.byte 0x62,0x06 | .word 0x700; .byte 0x0f,0x34; .byte 0x0f,0x00,0xd0; .byte 0x0f,0x00,0xc8; .byte 0x63,0xc0
.byte 0x0f,0x02,0xc0; .byte 0x0f,0x35; clts | int 0x31; .byte 0xf0,0x90; mov ecx,0x174 | rdmsr | int 0x31
"""
_REAL = f"""
mov esp,0x12340002 | push ax | push bx | mov edx,esp | mov esp,{LOW_STACK}
mov ax,0x1234 | mov ds,ax | mov bx,ds | mov ax,0xffff | mov fs,ax | mov cx,fs | xor ax,ax | mov ds,ax
push cs | push {{ra}} | mov bx,0x1111 | jmp skip | ra: nop | jmp end | skip: retf
push 0x7cd7 | push cs | push {{ia}} | iret | ia: pushf | pop bx | push 0 | popf | pushf | pop cx
mov eax,0x3ffcff | push eax | popfd | pushfd | pop ebx | xor eax,eax | push eax | popfd | pushfd | pop ecx
push 0xf000 | popf | pushf | pop bx | push 0 | popf | pushf | pop cx
mov word ptr [0x600],0x1ff | mov dword ptr [0x602],0x12345678 | lidt [0x600] | sidt [0x620] | mov ebx,[0x622]
mov ecx,0x10003 | xor bx,bx | l: inc bx | loop l; mov ecx,0x10000 | mov bx,1 | jcxz z | mov bx,2 | z: nop
mov edi,0x1fffe | mov ecx,0x10004 | mov bx,0x1000 | mov es,bx | cld | rep stosb | mov bl,es:[1] | mov dx,di
mov ax,0xff80 | movsx ebx,ax | cwde | mov ecx,eax | mov edx,0x12345678 | mov dx,0
"""
_A20 = f"""
mov word ptr [0xe000],0x1111 | mov dword ptr fs:[0xe010],0x2222 | {CLOSE} | mov bx,fs:[0xe010] | {OPEN}
{CLOSE} | mov word ptr fs:[0xe010],0x3333 | {OPEN} | mov bx,[0xe000] | mov cx,fs:[0xe010]
mov byte ptr [0xe000],0xb3 | mov word ptr [0xe001],0xcb11 | mov byte ptr fs:[0xe010],0xb3 \
 | mov word ptr fs:[0xe011],0xcb22 | call 0xffff:0xe010 | mov cl,bl | {CLOSE} | call 0xffff:0xe010 \
 | mov ch,bl | {OPEN} | call 0xffff:0xe010
""".replace("\\\n", "")
_CODE_16 = f"""
push 0x1234 | call f | mov bx,sp | jmp e | f: pop cx | push cx | ret | e: nop
push eax | push ax | push 0x11 | mov ebx,esp | pushfd | pushf | mov ecx,esp
mov ax,{DATA16} | mov ss,ax | mov esp,0x12347000 | push 0x55 | push eax | call f | mov ebx,esp | jmp e \
 | f: .byte 0xc2,2,0 | e: mov eax,{DATA0} | mov ss,ax | mov esp,{STACK}
mov ax,{DATA16} | mov ss,ax | mov esp,0x12347000 | mov ebp,0x98765432 | enter 8,1 | mov ecx,ebp \
 | mov edx,esp | leave | mov ebx,ebp | mov eax,{DATA0} | mov ss,ax | mov esp,{STACK}
jmp e | e: mov ecx,0x20002 | l: inc ebx | loop l
mov edi,{DATA + 16} | mov ecx,4 | mov eax,0x11223344 | .byte 0x67,0xf3,0x66,0xab
""".replace("\\\n", "")
_V86 = """
pushf | pop bx; push 0x7cd7 | popf | pushf | pop bx; cli; sti; int 0x31; int 0x30; int3; hlt; ud2
push 0 | push cs | push {ia} | iret | ia: nop; mov eax,0x277cd7 | push eax | popfd | pushf | pop bx
xor cx,cx | div cx; mov al,0x7f | add al,1 | into; mov eax,cr0; mov cr0,eax; lgdt [0]; lidt [0]; clts
invlpg [0]; wbinvd; sgdt [0x610] | mov bx,[0x610]; smsw bx; lmsw bx; .byte 0x0f,0x00,0xd0
.byte 0x0f,0x00,0xc8; .byte 0x0f,0x02,0xc0; .byte 0x63,0xc0; mov ax,0x1234 | mov ds,ax | mov bx,ds
.byte 0xf0,0x90; rdmsr; wrmsr; rdtsc | xor eax,eax | xor edx,edx; .byte 0x0f,0x35; .byte 0x0f,0x05
.byte 0x0f,0x21,0xc0
in al,0x80 | mov al,0; push cs | push {ra} | jmp s | s: retf | ra: mov bx,sp
mov ax,0xffff | mov fs,ax | mov ebx,fs:[0x10]
"""


def _cases():
    for text in _list(_REAL_EVENTS):
        yield real_mode(text, f"{_INTERRUPTS} | {text} | {_HANDLER}")
    for text in _list(_REAL):
        yield real_mode(text, text)
    for text in _list(_A20):
        yield real_mode(text, f"mov ax,0xffff | mov fs,ax | {text} | mov dword ptr fs:[0xe010],0")
    for text in _list(_CODE_16):
        yield protected_16(text, text)
    yield Case("16 bits by RETF", f"push {CODE16} | push 0 | retf", low="mov eax,cs | int 0x20")
    yield Case("16 bits by IRET", f"pushfd | push {CODE16} | push 0 | iretd", low="mov eax,cs | int 0x20")
    gate = f"mov dword ptr [{IDT + 0x180}],{CODE16 << 16} | mov dword ptr [{IDT + 0x184}],0x8600"
    words = " | ".join(f"mov {to},[esp+{2 * n}]" for n, to in enumerate(("ax", "bx", "cx")))
    yield Case("gate of 16 bits", f"{gate} | stc | int 0x30", low=f"{words} | mov edx,esp | int 0x20")
    for iopl in (0, 3):
        for text in _list(_V86):
            yield v86(f"{text}, IOPL {iopl}", text, flags=iopl << 12 | 2)
    look = "mov bx,ds | mov cx,es | mov dx,fs | mov bp,gs"
    yield v86("there and back", f"mov bx,0x1111 | int 0x31 | {look}", more(1))
    yield v86("faults and back", f"ud2 | ud2 | {look}", more(2, advance=2))
    yield v86("refusal and back", f"cli | nop | {look}", more(1, coded=[GP], advance=1), 2)
    yield v86("stepped", "nop | nop", more(2), 0x3102)
    yield v86("page fault", f"mov ax,0xf000 | mov fs,ax | mov eax,{ABSENT} | .byte 0x64,0x67,0x8b,0x18")
    yield v86("to ring 3", "int 0x30", idt_gate(0x30, "v48", selector=CODE3))
    yield v86("VIF and VIP", "mov bx,0", flags=0x183002)
    words = " | ".join(f"push {word}" for word in (0, 0, 0, 0, 0, 0x1000, 0x23002, LOW >> 4, 0))
    yield Case("to virtual 8086 mode from ring 3", user=f"{words} | iretd", low="hlt")
    fields = {0x20: 0, 0x24: 0x23002, 0x4C: LOW >> 4, 0x50: 0x600, 4: KERNEL_STACK, 8: DATA0}
    task = " | ".join(f"mov dword ptr [{NEW_TSS + at}],{value}" for at, value in fields.items())
    low = "mov bx,ds | mov cx,es | int 0x20"
    yield Case("to virtual 8086 mode by a task", f"{task} | jmp {NEW}:0", low=low)


@pytest.mark.e2e
@needs_qemu
def test_as_under_qemu(tmp_path):
    assert differences(tmp_path, list(_cases())) == []
