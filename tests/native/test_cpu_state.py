# SPDX-License-Identifier: GPL-2.0-only
"""A CPU's state: put into another CPU after any instruction, it makes no difference to the guest."""

from __future__ import annotations

import json

import pytest

from tests.native.bare import Recorder, new_cpu, put
from tests.native.guest import CODE, PAGES, Guest, descriptor
from vmi.errors import UsageError
from vmi.native import cpu_state
from vmi.native.registers import Segment
from vmi.native.wiring import Stop
from vmi.x86 import Cr0, Seg, Vector

OUT = 0x40000  # where programs store what they see
SHIFTED, LDT, OTHER_TSS = 0x58, 0x60, 0x68  # selectors: data that begins at CODE, and what they say
SSE = "mov eax,cr4 | or eax,0x600 | mov cr4,eax"

# what the assembler has no operands for; EDI is OUT
FADD, FADDP, FDIVRP, FXCH_2 = ".byte 0xd8,0xc1", ".byte 0xde,0xc1", ".byte 0xde,0xf1", ".byte 0xd9,0xca"
FNSTENV_40, FNSTENV_60 = ".byte 0xd9,0x77,0x40", ".byte 0xd9,0x77,0x60"
FNSAVE_80, FNSAVE_100 = ".byte 0xdd,0xb7,0x80,0,0,0", ".byte 0xdd,0xb7,0,1,0,0"
FRSTOR_80 = ".byte 0xdd,0xa7,0x80,0,0,0"

ARITHMETIC = f"""
mov edi,{OUT} | mov al,0x7f | add al,1 | pushfd | sbb ebx,3 | adc ecx,edx | std | stosd | lodsb
pushfd | cld | mov ecx,5 | rep stosd | bsf eax,ecx | sete al | mul ebx | rcl edx,3 | pushfd
mov esi,{OUT} | mov ecx,9 | repe cmpsb | pushfd | cmc | stc | rcr eax,1 | das | aaa | lahf | pushfd
shld eax,ebx,7 | imul eax,ebx,77 | xadd eax,ebx | pushfd | popfd | sti | nop | cli | pushfd
push 0x244ed7 | popfd | pushfd | mov ebp,0x12345678 | xchg ebp,esp | xchg ebp,esp | mov [{OUT + 0x80}],ebp
"""

FLOATING = f"""
{SSE} | mov edi,{OUT} | fninit | push 0x0e7f | fldcw word ptr [esp]
fldpi | fld1 | fld1 | {FDIVRP} | fchs | fld1 | fldz | {FDIVRP} | fld1 | fldpi | {FADDP}
push 0x7fc0 | ldmxcsr dword ptr [esp]
mov dword ptr [{OUT}],0x3fc00000 | mov dword ptr [{OUT + 4}],0x40490fdb
movups xmm7,xmmword ptr [{OUT}] | movaps xmm3,xmm7 | divps xmm3,xmm7 | mulps xmm7,xmm7 | sqrtps xmm1,xmm7
fld dword ptr [{OUT}] | {FXCH_2} | fsin | fist dword ptr [{OUT + 0x24}] | fincstp
{FNSTENV_40} | fxsave [{OUT + 0x200}] | fxrstor [{OUT + 0x200}] | {FNSTENV_60}
{FNSAVE_80} | {FRSTOR_80} | {FADD} | emms | mov eax,0x12345678 | movd mm5,eax
paddd mm5,mm5 | fxsave [{OUT + 0x400}] | {FNSAVE_100}
"""

SYSTEM = f"""
mov ax,{SHIFTED} | mov es,ax | mov gs,ax | xor eax,eax | mov fs,ax | mov ax,{LDT} | lldt ax
mov ax,{OTHER_TSS} | ltr ax | sub esp,8 | mov word ptr [esp],0x123
mov dword ptr [esp+2],0x456789 | lidt [esp] | sidt [{OUT}] | sgdt [{OUT + 8}] | sldt word ptr [{OUT + 16}]
str word ptr [{OUT + 18}]
mov eax,0xdead0000 | mov cr2,eax | mov eax,0xbeef | mov dr0,eax | mov dr3,eax | mov eax,0x703 | mov dr7,eax
mov eax,0xe000 | mov dr6,eax | mov eax,0x20 | mov cr4,eax | mov eax,0x55005000 | mov cr3,eax
mov ecx,0x174 | mov eax,0x40 | xor edx,edx | wrmsr | inc ecx | mov eax,0x1234 | wrmsr | inc ecx | wrmsr
mov eax,cr0 | or eax,0x1000a | mov cr0,eax | smsw ax | clts
mov [{OUT + 0x20}],eax | mov eax,cr2 | mov [{OUT + 0x24}],eax | mov eax,dr7 | mov [{OUT + 0x28}],eax
mov eax,cr3 | mov [{OUT + 0x2C}],eax | mov eax,cr4 | mov [{OUT + 0x30}],eax
mov eax,dr6 | mov [{OUT + 0x34}],eax | mov eax,dr3 | mov [{OUT + 0x38}],eax
mov eax,es:[4] | mov gs:[{OUT - CODE + 0x3C}],eax | mov ecx,0x176 | rdmsr | mov [{OUT + 0x40}],eax
mov word ptr [{OUT + 0x48}],es | mov word ptr [{OUT + 0x4C}],fs | mov word ptr [{OUT + 0x50}],ss
mov al,0 | out 0x92,al | mov dword ptr [0x100000],1 | mov eax,[0] | mov [{OUT + 0x54}],eax
mov al,2 | out 0x92,al | mov eax,[0x100000] | mov [{OUT + 0x58}],eax
"""


def guest(source: str) -> Guest:
    """A guest that runs a program to HLT."""
    made = Guest(f"{' | '.join(source.strip().splitlines())} | hlt")
    made.describe(SHIFTED, descriptor(CODE, 0xFFFFF, 0x92))
    made.describe(LDT, descriptor(0x5000, 0x57, 0x82, 0))
    made.describe(OTHER_TSS, descriptor(0x6000, 0x77, 0x89, 0))
    return made


def run_to_halt(guest: Guest) -> None:
    """Run the CPU alone; a port access takes time, and so ends a run that no machine has begun."""
    while (stop := guest.cpu.run(1000)) is Stop.BUDGET:
        assert guest.cpu.instructions < 100_000, "it does not come to its end"
    assert stop is Stop.HALTED


def kept(cpu) -> str:
    """The state as it is kept between two processes."""
    return json.dumps(cpu_state.save(cpu))


@pytest.mark.parametrize("source", [ARITHMETIC, FLOATING, SYSTEM], ids=["arithmetic", "floating", "system"])
def test_the_rest_of_a_program_is_the_same_after_each_instruction(source):
    reference, stopped, other = guest(source), guest(source), guest("nop")
    run_to_halt(reference)
    total, memory = reference.cpu.instructions, reference.memory.sha256()
    assert total > 40
    for count in range(1, total):
        assert stopped.cpu.run(1) is Stop.BUDGET
        state = kept(stopped.cpu)
        other.memory.write(0, stopped.memory.read(0, stopped.memory.size))
        other.machine.board.load(stopped.machine.board.save())  # it has the gate of address line 20 too
        cpu_state.load(other.cpu, json.loads(state))
        assert kept(other.cpu) == state
        run_to_halt(other)
        assert other.memory.sha256() == memory, f"after {count} of {total} instructions"
        assert kept(other.cpu) == kept(reference.cpu), f"after {count} of {total} instructions"


def test_all_of_it_by_name():
    """The names are those of the processor, so the values are those that a program has loaded."""
    cpu = new_cpu(Recorder())
    put(
        cpu,
        "fninit | fldpi | mov eax,0x600 | mov cr4,eax | mov eax,0x9fc0 | push eax | ldmxcsr dword ptr [esp]",
    )
    cpu.run(7)
    for number in range(8):
        cpu.set_gpr(number, 0x1000 + number)
    cpu.eflags, cpu.efer, cpu.fast_call_target = 0x244ED7, 0x800, (8, 0x2000, 0x3000)
    cpu.tr = Segment(0x28, 0x3000, 0x67, 0x8900)
    cpu.load_dr(2, 0x77)
    state = cpu_state.save(cpu)
    assert json.loads(json.dumps(state)) == state
    assert state.pop("general") == {
        "eax": 0x1000, "ecx": 0x1001, "edx": 0x1002, "ebx": 0x1003,
        "esp": 0x1004, "ebp": 0x1005, "esi": 0x1006, "edi": 0x1007,
    }  # fmt: skip
    data = [0x10, 0, 0xFFFFFFFF, 0xCF9300]
    assert state.pop("segments") == {
        "es": data, "cs": [8, 0, 0xFFFFFFFF, 0xCF9B00], "ss": data, "ds": data, "fs": data, "gs": data,
    }  # fmt: skip
    fpu = state.pop("fpu")
    assert (fpu["control"], fpu["status"], fpu["tags"], fpu["mxcsr"]) == (0x37F, 0x3800, 0x3FFF, 0x9FC0)
    assert (fpu["eip"], fpu["code_segment"], fpu.keys() - state.keys()) == (CODE + 2, 8, {
        "control", "status", "tags", "opcode", "code_segment", "data_segment", "operand", "mxcsr"
    })  # fmt: skip
    assert state.pop("x87") == ["00" * 10] * 7 + ["35c26821a2da0fc90040"]
    assert state.pop("xmm") == ["00" * 16] * 8
    assert state == {
        "eip": cpu.eip, "eflags": 0x244ED7, "irq_shadow": False, "a20": True,
        "ldtr": [0, 0, 0, 0], "tr": [0x28, 0x3000, 0x67, 0x8900], "gdtr": [0, 0], "idtr": [0, 0],
        "cr0": 0x11, "cr2": 0, "cr3": 0, "cr4": 0x600, "efer": 0x800, "sysenter": [8, 0x2000, 0x3000],
        "dr0": 0, "dr1": 0, "dr2": 0x77, "dr3": 0, "dr6": 0xFFFF0FF0, "dr7": 0x400,
    }  # fmt: skip


def real_mode(cpu):
    cpu.set_cr(0, 0)
    cpu.set_segment(Seg.DS, Segment(0x1234, 0x12340, 0xFFFF, 0x9300))


def virtual_8086(cpu):
    cpu.eflags = 0x20202
    for seg in Seg:
        cpu.set_segment(seg, Segment(0x1000 + seg, 0x10000 + 16 * seg, 0xFFFF, 0xF300))


def ring_3_of_16_bits(cpu):
    cpu.set_segment(Seg.CS, Segment(0x1B, 0x1000, 0xFFFF, 0xFB00))
    cpu.set_segment(Seg.SS, Segment(0x23, 0x1000, 0xFFFF, 0xF300))


def extended_paging(cpu):
    cpu.efer = 0x800
    cpu.set_cr(4, 0x6B0)
    cpu.set_cr(3, 0x7000)
    cpu.set_cr(0, Cr0.PE | Cr0.MP | Cr0.TS | Cr0.WP | Cr0.PG)
    cpu.set_a20(False)


@pytest.mark.parametrize("prepare", [real_mode, virtual_8086, ring_3_of_16_bits, extended_paging])
def test_every_mode(prepare):
    """The emulator decodes by bits that it collects from several registers; they follow from the state."""
    cpu, other = new_cpu(Recorder()), new_cpu(Recorder())
    prepare(cpu)
    clear, state = cpu_state.save(other), cpu_state.save(cpu)
    assert clear != state
    modes = cpu.hflags, other.hflags
    cpu_state.load(other, state)
    cpu_state.load(cpu, clear)
    assert (cpu_state.save(other), cpu_state.save(cpu)) == (state, clear)
    assert (other.hflags, cpu.hflags) == modes


def test_a_new_fpu_is_as_after_reset():
    state = cpu_state.save(new_cpu(Recorder()))
    assert (state["fpu"]["control"], state["fpu"]["tags"], state["fpu"]["mxcsr"]) == (0x37F, 0xFFFF, 0x1F80)


def test_breakpoints_are_armed_and_disarmed():
    source = "mov eax,0x10010 | mov dr1,eax | mov eax,0x404 | mov dr7,eax | nop | nop | nop | hlt"
    bus = Recorder()
    cpu = new_cpu(bus)
    clear = cpu_state.save(cpu)
    put(cpu, source)
    cpu.run(4)
    assert cpu.eip == CODE + 16, "the breakpoint is at the next instruction"
    state = cpu_state.save(cpu)
    other_bus = Recorder()
    other = new_cpu(other_bus)
    put(other, source)
    cpu_state.load(other, state)
    other_bus.act = other.stop_soon
    other.run(2)
    assert other_bus.log == [(Vector.DB, False, 0, CODE + 16)]
    assert other.dr(6) & 15 == 2
    again = {"eip": CODE + 16, "segments": state["segments"]}
    for control in (clear["dr7"], state["dr7"]):  # disarmed, and armed at another place
        cpu_state.load(other, state)
        cpu_state.load(other, clear | again | {"dr1": 0x5000, "dr7": control})
        other.run(2)
        assert len(other_bus.log) == 1
        assert other.eip == CODE + 18


@pytest.mark.parametrize("source", ["sti | nop | nop", "mov ax,ss | mov ss,ax | nop | nop"])
def test_the_shadow_of_sti_and_mov_ss_is_kept(source):
    """An interrupt that waits is taken behind the instruction in the shadow, not in front of it."""
    stopped, other = guest(source), guest(source)
    stopped.cpu.eflags = 0x202 if "ss" in source else 2
    stopped.cpu.run(source.count("|") - 1)
    assert stopped.cpu.irq_shadow
    cpu_state.load(other.cpu, cpu_state.save(stopped.cpu))
    assert other.cpu.irq_shadow
    assert other.cpu.run(10, stop_when_interruptible=True) is Stop.WINDOW
    assert other.cpu.eip == stopped.cpu.eip + 1


def test_nothing_translated_is_left():
    """Neither code nor page tables are those that the CPU knew before."""
    made = guest("nop")
    made.page()
    put(made.cpu, "mov eax,[0x50000] | hlt")
    state = cpu_state.save(made.cpu)
    made.memory.put_u32(0x50000, 1)
    made.memory.put_u32(0x60000, 2)
    made.cpu.run(10)
    assert made.cpu.eax == 1
    cpu_state.load(made.cpu, state)
    made.memory.put_u32(PAGES + 0x1000 + 4 * 0x50, 0x60007)  # by the host, which tells nobody
    cpu_state.load(made.cpu, state)
    made.cpu.run(10)
    assert made.cpu.eax == 2
    made.memory.write(CODE, b"\xb8\x03\0\0\0\xf4")  # mov eax,3
    cpu_state.load(made.cpu, state)
    made.cpu.run(10)
    assert made.cpu.eax == 3


def test_only_between_instructions():
    """A bus may ask in the middle of one, when half of the state lies elsewhere."""
    bus = Recorder()
    cpu = new_cpu(bus)
    state = cpu_state.save(cpu)
    errors = []

    def act():
        for attempt in (lambda: cpu_state.save(cpu), lambda: cpu_state.load(cpu, state)):
            with pytest.raises(UsageError) as caught:
                attempt()
            errors.append(str(caught.value))

    bus.act = act
    put(cpu, "in al,0x60 | hlt")
    assert cpu.run(10) is Stop.HALTED
    sentence = "a CPU's state can be saved and loaded between instructions only, but one is under way"
    assert errors == [sentence] * 2


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("x87", ["00" * 10] * 7, "FPU_0 must be 8 registers of 10 bytes"),
        ("xmm", ["00" * 16] * 7 + ["00" * 15], "XMM_0 must be 8 registers of 16 bytes"),
    ],
)
def test_registers_of_another_size_are_refused(name, value, sentence):
    cpu = new_cpu(Recorder())
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        cpu_state.load(cpu, cpu_state.save(cpu) | {name: value})
