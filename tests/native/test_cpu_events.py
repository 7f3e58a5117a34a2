# SPDX-License-Identifier: GPL-2.0-only
"""Exceptions as the CPU reports them, and the flags that they find."""

from __future__ import annotations

from random import Random

import pytest

from tests.native.bare import ABSENT, put
from tests.native.guest import CODE, Guest
from vmi.native.registers import Segment
from vmi.native.wiring import Stop
from vmi.x86 import Seg

# -- exceptions -----------------------------------------------------------------------------------


def test_many_page_faults_stay_page_faults():
    """The library never forgets an exception in flight: the second would become #DF, the third nothing."""
    guest = Guest(
        f"mov ecx,50 | l: mov eax,[{ABSENT}] | loop l | out 0xf4,al"
        " | pf: add dword ptr [esp+4],5 | add esp,4 | iretd",
        {14: "pf"},
    )
    guest.page(ABSENT)
    guest.exit_value()
    assert guest.machine.exits["#PF"] == 50


@pytest.mark.parametrize(
    ("source", "event"),
    [
        ("int 0x30", (0x30, True, 2)),
        ("int 14", (14, True, 2)),
        ("int 6", (6, True, 2)),
        ("int 8", (8, True, 2)),
        ("int3", (3, True, 1)),
        (".byte 0xcd, 3", (3, True, 2)),
        ("mov al,0x7f\nadd al,1\ninto", (4, True, 5)),
        ("ud2", (6, False, 0)),
        ("xor ecx,ecx\ndiv ecx", (0, False, 2)),
        ("mov ax,0x1238\nmov ds,ax", (13, False, 4)),
        ("push 0x102\npopfd\nnop", (1, False, 7)),
        (".byte 0xf1", (6, False, 0)),
        (".byte 0x0f, 0xc7, 0xf0", (6, False, 0)),
        (".byte 0x0f, 0x01, 0xf9", (6, False, 0)),
        (".byte 0x0f, 0x01, 0xc8", (6, False, 0)),
    ],
)
def test_where_eip_stands(cpu, bus, source, event):
    """Behind an INT, at anything else; RDRAND, RDTSCP and MONITOR do not exist."""
    cpu.gdt = type(cpu.gdt)(0x1000, 0xFF)
    put(cpu, source)
    bus.act = cpu.stop_soon
    cpu.run(100)
    vector, is_int, offset = event
    assert [(v, i, at - CODE) for v, i, _, at in bus.log] == [(vector, is_int, offset)]


def test_handler_may_move_eip(cpu, bus):
    labels = put(cpu, "int 0x30\nhlt\nthere: mov eax,1\nhlt")

    def move():
        cpu.eip = labels["there"]

    bus.act = move
    assert cpu.run(100) is Stop.HALTED
    assert cpu.eax == 1


def test_breakpoint_register_in_a_segment_with_a_base(cpu, bus):
    """The library's own handler compares an offset with an address, and never comes back."""
    labels = put(cpu, "mov eax,{hit}\nmov dr0,eax\nmov eax,2\nmov dr7,eax\nnop\nhit: nop\nhlt")
    cpu.set_segment(Seg.CS, Segment(8, 0x800, 0xFFFFFFFF, 0xCF9B00))
    cpu.eip -= 0x800
    bus.act = cpu.stop_soon
    assert cpu.run(100) is Stop.BUDGET
    assert [(v, at) for v, _, _, at in bus.log] == [(1, labels["hit"] - 0x800)]
    assert cpu.dr(6) & 15 == 1
    cpu.eflags |= 1 << 16  # RF, as a handler sets it to go on
    assert cpu.run(100) is Stop.HALTED


def test_there_is_always_a_task_register(cpu):
    """The library ends the process when an inner call finds none that it can use."""
    assert cpu.tr.flags & 0x8F00 == 0x8900
    for flags in (0, 0x8B00, 0x0900, 0x8200, 0x8F00):
        cpu.tr = Segment(0x28, 0x3000, 0x67, flags)
        assert cpu.tr == Segment(0x28, 0x3000, 0x67, flags & ~0x8F00 | 0x8900)
    cpu.tr = Segment(0x28, 0x3000, 0x67, 0x8300)
    assert cpu.tr.flags == 0x8100


# -- flags ----------------------------------------------------------------------------------------

ALU = (
    "add eax,ebx", "sub ecx,edx", "cmp eax,ecx", "add al,bl", "sub cx,dx", "inc esi", "dec dl", "neg ebx",
    "and eax,edx", "or cl,dl", "xor edi,eax", "test ebx,esi", "adc eax,edi", "sbb cl,al", "shl edx,1",
    "shr ebx,3", "sar ax,5", "rol ecx,7", "rcr esi,1", "imul edx,ebx", "bsf eax,edi", "bt ecx,edi", "std",
    "cld", "stc", "cmc", "lahf", "sahf", "mov ebp,esp", "lea eax,[ebx+ecx*4]", "xchg ebx,edi", "nop",
    "shld eax,edx,4", "xadd ebx,ecx", "cmpxchg edx,esi", "setb al", "jmp short next\nnext:",
)  # fmt: skip


@pytest.mark.parametrize(
    "reader",
    [
        f"mov ebp,[{ABSENT}]", f"mov [{ABSENT}],ebp", f"inc dword ptr [{ABSENT}]",
        f"push dword ptr [{ABSENT}]", "ud2", "int 0x30", "hlt",
    ],
)  # fmt: skip
def test_flags_in_the_frame_of_a_fault(reader):
    """They are those that code itself sees there, whatever computed them."""
    random = Random(reader)
    for _ in range(60):
        lines = [random.choice(ALU) for _ in range(random.randint(1, 6))]
        lines = [line.replace("next", f"next{n}") for n, line in enumerate(lines)]
        values = [
            random.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, random.getrandbits(32)))
            for _ in range(8)
        ]
        frames = []
        for last in ("pushfd\nhlt", reader):
            guest = Guest("\n".join([*lines, last, "hlt", "h: hlt"]), {6: "h", 13: "h", 14: "h", 0x30: "h"})
            guest.page(ABSENT)
            if last == "hlt":  # refused on ring 3
                guest.user("h")
                guest.cpu.eip = CODE
            for number in (0, 1, 2, 3, 5, 6, 7):
                guest.cpu.set_gpr(number, values[number])
            guest.run()
            frames.append(guest.stack(5))
        flags = frames[0][0]
        has_code = reader not in ("ud2", "int 0x30")
        assert frames[1][3 if has_code else 2] == flags, (lines, values)


def test_flags_of_a_single_step():
    guest = Guest(
        "push 0x102 | popfd | mov al,0x7f | add al,1 | hlt"
        " | db: inc dword ptr [0x4000] | cmp dword ptr [0x4000],2 | je end | iretd | end: hlt",
        {1: "db"},
    )
    guest.run()
    assert guest.stack(3)[2] == 0x992


def test_flags_survive_a_port_access_and_a_jump():
    """A port access in front of the jump, flags used behind it."""
    guest = Guest(
        "mov al,0x7f | add al,1 | in al,0x80 | out 0x80,al | cpuid | rdtsc | mov [0xc0000],al"
        " | jmp short on | on: pushfd | pop ebx | mov al,1 | out 0xf4,al"
    )
    guest.exit_value()
    assert guest.cpu.ebx == 0x892


def test_flags_seen_from_inside_a_port_access(cpu, bus):
    put(cpu, "std\nmov al,0x7f\nadd al,1\nout 0x80,al\nhlt")
    seen = []
    bus.act = lambda: seen.append(cpu.eflags)
    cpu.run(100)
    assert seen == [0xC92]


def test_flags_set_from_inside_an_event(cpu, bus):
    put(cpu, "xor eax,eax\nint 0x30\npushfd\npop ebx\nhlt")

    def change():
        cpu.eflags = 0x4C93

    bus.act = change
    cpu.run(100)
    assert cpu.ebx == 0x4C93
