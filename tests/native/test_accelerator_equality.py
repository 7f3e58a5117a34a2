# SPDX-License-Identifier: GPL-2.0-only
"""The accelerator makes no difference: the same guests, stopped at random times, with it and without."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import hostile
from tests.native.guest import DONE, EOI, PAGES, PIC, Guest, timer
from tests.native.pairs import Pair, available
from vmi import samples
from vmi.native.machine import Machine, Outcome
from vmi.x86 import Cr0, Cr4

pytestmark = pytest.mark.skipif(not available(), reason="there is no accelerator here to compare with")

DEVICE = 0xFEE00080  # a register of the local APIC


def slices(source, handlers=None, *, random=0, limit=400_000, longest=2_000, prepare=None, **options):
    def make():
        guest = Guest(source, handlers, **options)
        guest.cpu.set_gpr(7, guest.labels.get("there", 0))
        if prepare is not None:
            prepare(guest)
        return guest.machine

    return Pair(make).run_in_slices(Random(random), limit, longest)


# -- one thing at a time --------------------------------------------------------------------------

LOOP = "dec ecx | jnz again | " + DONE
ONCE = {
    "arithmetic": f"mov ecx,3000 | again: add eax,ecx | adc ebx,eax | rol edx,cl | sbb esi,ebx | {LOOP}",
    "loads and stores": f"mov ecx,900 | again: add [0x6000],ecx | adc [0x6004],eax | xadd [0x6000],eax"
        f" | {LOOP}",
    "calls": f"mov ecx,900 | jmp again | sub: pushfd | popfd | ret | again: call sub | {LOOP}",
    "repeated": "mov ebx,40 | again: mov edi,0x50000 | mov esi,0x6000 | mov ecx,ebx | .byte 0xf3,0xa5"
        " | mov ecx,ebx"
    f" | .byte 0xf3,0xa6 | mov ecx,ebx | xor al,al | .byte 0xf2,0xae | mov ecx,0 | rep stosb | dec ebx"
    f" | jnz again | {DONE}",
    "ports": f"mov ecx,200 | again: in al,0x61 | out 0x80,al | add al,cl | in al,0x40 | add ebx,eax | {LOOP}",
    "port strings": "mov ecx,64 | mov edi,0x6000 | mov edx,0x61 | .byte 0xf3,0x6c | mov ecx,64"
        " | mov esi,0x6000"
    f" | mov edx,0x80 | .byte 0xf3,0x6e | {DONE}",
    "device memory": f"mov ecx,200 | mov edi,{DEVICE} | again: mov eax,[edi] | add dword ptr [edi],16"
    f" | xchg [edi],ebx | push dword ptr [edi] | pop dword ptr [edi] | fild qword ptr [edi]"
    f" | .byte 0xdd,0xd8 | {LOOP}",
    "rom": f"mov ecx,300 | again: mov [0xc8000],ecx | add eax,[0xc8000] | inc dword ptr [0xf0000] | {LOOP}",
    "time": f"mov ecx,300 | again: rdtsc | add ebx,eax | in al,0x61 | rdtsc | sub ebx,eax | {LOOP}",
    "special registers": f"mov ecx,300 | again: push ecx | xor eax,eax | cpuid | mov ecx,0x174 | rdmsr"
        " | inc eax | wrmsr"
    f" | pop ecx | {LOOP}",
    "control registers": f"mov ecx,300 | again: mov eax,cr0 | xor eax,2 | mov cr0,eax | mov eax,cr3"
        f" | mov cr3,eax | {LOOP}",
    "devices into own code": "mov ecx,60 | again: push edi | inc edi | mov esi,0xfee00390 | .byte 0xa5"
    " | pop edi | there: mov eax,0x11223344 | add ebx,eax | rol ebx,3 | mov edx,0x40 | push edi | inc edi"
    f" | .byte 0x6c,0x6c | pop edi | mov ebp,esp | lea esp,[edi+5] | push dword ptr [{DEVICE}] | mov esp,ebp"
    f" | {LOOP}",
    "resume flag": "mov ecx,20 | mov esi,0xe0000000 | again: pushfd | or dword ptr [esp],0x10000 | push cs"
    f" | push edi | iretd | there: {'mov [esi],al | inc eax | ' * 12} out 0x80,al | inc eax | {LOOP}",
    "pauses": f"mov ecx,300 | again: add eax,ecx | pause | {LOOP}",
    "conditional flags": f"mov ecx,300 | again: push ecx | mov ecx,2 | cmp eax,ebx | loopne here"
        " | here: pushfd | pop edx"
    f" | add eax,edx | xor edx,edx | loope there | there: pushfd | pop edx | add ebx,edx | pop ecx | {LOOP}",
    "own code": "mov ecx,300 | again: mov [edi+1],cl | there: mov al,1 | add ebx,eax | inc byte ptr [edi+2]"
    f" | add edx,1 | xor byte ptr [edi+5],1 | {LOOP}",
    "code elsewhere": "mov ecx,300 | mov word ptr [0x30000],0xc340 | again: call far"
        " | xor byte ptr [0x30000],8"
    f" | {LOOP} | far: mov edi,0x30000 | jmp edi",
}  # fmt: skip


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("longest", [70, 5_000])
def test_one_kind_of_instruction(name, longest):
    end = slices(ONCE[name], random=longest, longest=longest, limit=12_000 if longest < 100 else 1_000_000)
    assert end.outcome is (Outcome.TIMEOUT if longest < 100 else Outcome.DEBUG_EXIT) or longest < 100


HANDLERS = {
    "faults": (
        "again: ud2 | mov eax,[0x40000000] | xor ecx,ecx | div ecx | mov ds,cx | mov eax,0x1234 | mov ds,ax"
        " | int 0x40 | int3 | into | bound eax,[0x6000] | inc ebp | cmp ebp,50 | jb again | " + DONE
        + " | skip: add dword ptr [esp],2 | iretd | ret: iretd | error: add esp,4"
            " | add dword ptr [esp],2 | iretd",
        {0: "skip", 3: "ret", 4: "ret", 5: "skip", 6: "skip", 0x40: "ret", 13: "error", 14: "error"},
    ),
    "single steps": (
        "again: pushfd | or dword ptr [esp],0x100 | popfd | mov eax,1 | add eax,ebx | mov ecx,3 | rep stosb"
        " | out 0x80,al | mov ss,bx | mov esp,0x8000 | pushfd | and dword ptr [esp],-257 | popfd"
        f" | mov edi,0x6000 | inc ebp | cmp ebp,20 | jb again | {DONE} | ret: inc esi | iretd",
        {1: "ret"},
    ),
    "breakpoints": (
        "mov dr0,edi | mov eax,2 | mov dr7,eax | mov ecx,100 | again: add ebx,ecx | inc edx"
        f" | there: add edx,ebx | {LOOP} | ret: mov eax,dr6 | or dword ptr [esp+8],0x10000 | iretd",
        {1: "ret"},
    ),
    "interrupts": (
        f"{PIC} | {timer(30, 0x34)} | sti | again: add eax,ebx | adc [0x6000],eax | inc ecx"
        " | cmp ecx,3000 | jb again"
        f" | cli | {DONE} | ret: push eax | inc esi | {EOI} | pop eax | iretd",
        {0x20: "ret"},
    ),
    "halts": (
        f"{PIC} | {timer(300, 0x34)} | again: sti | hlt | cli | inc ecx | nop | sti | nop | cli"
        " | cmp ecx,20 | jb again"
        f" | {DONE} | ret: push eax | inc esi | {EOI} | pop eax | iretd",
        {0x20: "ret"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.parametrize("longest", [90, 20_000])
def test_handlers(name, longest):
    source, handlers = HANDLERS[name]
    slices(source, handlers, random=1, longest=longest, limit=20_000 if longest < 100 else 3_000_000)


TARGET, ENTRY = 0x50000, 0x21000 + 4 * 0x50  # a page, and its entry in the table of Guest.page()
RESTARTED = (
    "again: {} | pushfd | pop eax | add ebx,eax | inc ebp | cmp ebp,60 | jb again | "
    f"{DONE} | fix: or dword ptr [{ENTRY}],2 | inc edi | add esp,4 | iretd"
)


@pytest.mark.parametrize(
    "instruction",
    [
        "adc [esi],eax", "sbb dword ptr [esi],3", "rcl dword ptr [esi],3", "rcr byte ptr [esi],cl",
        "setb byte ptr [esi]", "setle byte ptr [esi]", "inc dword ptr [esi]", "rol word ptr [esi],cl",
        "bts [esi],eax", "shld [esi],eax,3", "xadd [esi],eax", "cmpxchg [esi],ebx", "cmpxchg8b [esi]",
        "neg dword ptr [esi]", "pop dword ptr [esi]", "stosd",
    ],
)  # fmt: skip
def test_instruction_that_is_done_again_behind_a_page_fault(instruction):
    """A handler lets the page be written to, until that is taken back."""
    code = f"mov esi,{TARGET} | and dword ptr [{ENTRY}],-3 | invlpg [esi] | mov esp,0x8000 | push eax"
    code += f" | mov edi,esi | or eax,ebp | {instruction}"
    slices(
        RESTARTED.format(code), {14: "fix"}, prepare=lambda guest: guest.page(), longest=400, limit=100_000
    )


FAR, TOP = 0x80400000, 2 << 20  # a linear address with tables of its own, and the end of RAM
WALKS = (
    f"mov ecx,40 | again: mov eax,[{FAR}] | add ebx,eax | mov [{FAR + 8}],ecx | add edx,[{FAR + 8}]"
    f" | invlpg [{FAR}] | mov eax,cr3 | mov cr3,eax | {LOOP} | error: inc ebp | add esp,4"
    " | mov edi,[esp] | cmp byte ptr [edi],0xa1 | je short five | inc dword ptr [esp]"
    " | five: add dword ptr [esp],5 | iretd"
)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("rights", [0, 1, 3, 7])
@pytest.mark.parametrize(
    "at", [0xD0000, 0xFF000, TOP - 0x1000, TOP, 0xC0000000, DEVICE & -0x1000, 0xFFFFF000]
)
def test_page_tables_wherever_they_are(at, rights, wide):
    """In RAM, where ROMs are, in devices, where nothing is: each has its way to be read and marked."""

    def prepare(guest):
        put, cpu = guest.memory.put_u32, guest.cpu
        guest.page()
        if not wide:
            put(PAGES + 4 * (FAR >> 22), at | 7)
        else:
            cpu.set_cr(0, Cr0.PE)
            put(PAGES, PAGES + 0x4000 | 1)
            put(PAGES + 8 * (FAR >> 30), PAGES + 0x5000 | 1)
            put(PAGES + 0x4000, 0x87)
            put(PAGES + 0x5000 + (FAR >> 18 & 0xFF8), at | 7)
            cpu.set_cr(4, Cr4.PAE)
            cpu.set_cr(0, Cr0.PE | Cr0.PG | Cr0.WP)
        entry = at + (FAR >> 9 & 0xFF8 if wide else FAR >> 10 & 0xFFC)
        if entry < TOP:
            guest.memory.write(entry, (0x70000 | rights).to_bytes(8, "little"))

    slices(WALKS, {14: "error"}, prepare=prepare, longest=900, limit=90_000)


# -- all at once ----------------------------------------------------------------------------------


def machine_of(name):
    machine = Machine()
    machine.load(samples.get(name).path.read_bytes())
    return machine


@pytest.mark.parametrize("name", ["hello", "interrupts", "paging", "traps"])
def test_sample_kernel(name):
    end = Pair(lambda: machine_of(name)).run_in_slices(Random(name), 60_000_000, 60_000)
    assert end.outcome is Outcome.DEBUG_EXIT


def test_several_processors():
    def make():
        machine = Machine(cpus=3)
        machine.load(samples.get("smp").path.read_bytes())
        return machine

    end = Pair(make).run_in_slices(Random(3), 60_000_000, 60_000)
    assert end.outcome is Outcome.DEBUG_EXIT


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([150, 1_000, 20_000, 300_000]))
def test_hostile_guest(seed, longest):
    Pair(lambda: hostile.make(seed).machine).run_in_slices(Random(seed), hostile.LIMIT_NS // 4, longest)
