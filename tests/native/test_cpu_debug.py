# SPDX-License-Identifier: GPL-2.0-only
"""Debugging by the processor's own means: breakpoints on code and ports, single steps, RF, the registers.

Not here, since the emulator has neither: breakpoints on data, and DR7.GD. F1 is an invalid opcode, as
under QEMU.
"""

from __future__ import annotations

import pytest

from tests.e2e.qemu import needs_qemu
from tests.native.bare import put
from tests.native.corners import (
    ABSENT,
    CODE0,
    CODE16,
    DATA,
    DATA0,
    LOW,
    USER_INT,
    Case,
    differences,
    more,
    run,
    run_all,
)
from tests.native.guest import CODE
from vmi.native.registers import Segment
from vmi.native.wiring import Stop
from vmi.x86 import Seg

DB, UD, GP, PF, DONE = 1, 6, 13, 14, 0x20
RF, TF = 0x10000, 0x100
CLEAR = 0xFFFF0FF0  # DR6 with nothing in it
STEP = 0x4000
DE = "mov eax,8 | mov cr4,eax"
STEPS = f"push {TF | 2} | popfd"


def arm(label, number=0, dr7=None):
    """Code that sets a debug register and DR7, by default to a breakpoint on code."""
    dr7 = 2 << 2 * number if dr7 is None else dr7
    return f"mov eax,{label} | mov dr{number},eax | mov eax,{dr7} | mov dr7,eax"


AT_B = arm("{b@}")
ON_PORT = f"mov eax,0x80 | mov dr0,eax | {DE} | mov eax,0x20003 | mov dr7,eax"


def told(seen):
    """Vector, EIP and DR6's bits of each event."""
    return [(event.vector, event.eip, event.dr6 & ~CLEAR) for event in seen.events]


# -- breakpoints on code --------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("shift", [0, 1])
def test_breakpoint_is_a_fault_at_the_instruction(number, shift):
    seen = run(Case("", f"{arm('{b@}', number, 1 << 2 * number + shift)} | inc edx | b@: inc edx | nop"))
    assert told(seen) == [(DB, seen.at("b"), 1 << number)]
    assert seen.event.edx == 0x103


def test_breakpoint_that_is_off():
    assert run(Case("", f"{arm('{b@}', 0, 0)} | b@: nop")).event.vector == DONE


def test_resume_flag_passes_the_breakpoint_once():
    seen = run(Case("", f"{more(3)} | mov ecx,3 | {AT_B} | b@: nop | loop b@"))
    assert told(seen) == [(DB, seen.at("b"), 1)] * 3 + [(DONE, seen.at("b") + 5, 1)]
    assert [event.ecx for event in seen.events] == [3, 2, 1, 0]
    assert [event.frame[2] & RF for event in seen.events] == [0, 0, 0, 0]


@pytest.mark.parametrize("how", [f"push {CODE0} | push {{b@}} | iretd", "popfd"])
def test_only_iret_sets_the_resume_flag(how):
    seen = run(Case("", f"{AT_B} | push {RF | 2} | {how} | b@: nop | nop"))
    assert seen.event.vector == (DONE if "iretd" in how else DB)


def test_breakpoints_of_several_registers_at_one_place():
    code = "mov eax,{b@} | mov dr0,eax | mov dr3,eax | mov dr1,eax | mov eax,0x82 | mov dr7,eax | b@: nop"
    seen = run(Case("", code))
    assert told(seen) == [(DB, seen.at("b"), 0b1011)], "those that are off are told too, as under QEMU"


def test_breakpoint_on_ring_3():
    seen = run(Case("", f"{more(1)} | {arm('{user@}')}", user="nop | b@: nop"))
    assert told(seen) == [(DB, seen.at("user"), 1), (DONE, seen.at("b") + 3, 1)]


def test_breakpoint_on_an_instruction_that_faults():
    seen = run(Case("", f"{more(2)} | {AT_B} | xor ecx,ecx | b@: div ecx"))
    at = seen.at("b")
    assert told(seen) == [(DB, at, 1), (0, at, 1), (0, at, 1)]


def test_breakpoint_of_a_handler():
    seen = run(Case("", f"{arm('{v33}')} | int 0x21"))
    assert told(seen) == [(DB, seen.labels["v33"], 1)]


def test_breakpoint_in_code_that_was_translated_before():
    loop = f"l@: inc edx | b@: inc edx | dec ecx | jz end@ | {AT_B} | jmp l@ | end@: nop"
    seen = run(Case("", f"mov ecx,2 | jmp l@ | {loop}"))
    assert told(seen) == [(DB, seen.at("b"), 1)]
    assert seen.event.edx == 0x105


def test_breakpoint_that_moves():
    code = f"{more(3)} | {AT_B} | b@: nop | mov eax,{{d@}} | mov dr0,eax | nop | d@: nop | nop"
    seen = run(Case("", code))
    assert told(seen)[:2] == [(DB, seen.at("b"), 1), (DB, seen.at("d"), 1)]
    assert len(seen.events) == 3


@pytest.mark.parametrize("base", [0, 0x800, 0x8000])
def test_breakpoints_are_linear_addresses(cpu, bus, base):
    source = "mov eax,{one}\nmov dr0,eax\nmov eax,{two}\nmov dr1,eax\nmov eax,10\nmov dr7,eax\nnop"
    labels = put(cpu, source + "\none: nop\njmp edx\ntwo: nop\nhlt")
    cpu.edx = (labels["two"] - base) & 0xFFFFFFFF
    cpu.set_segment(Seg.CS, Segment(8, base, 0xFFFFFFFF, 0xCF9B00))
    cpu.eip = (CODE - base) & 0xFFFFFFFF
    bus.act = cpu.stop_soon
    for name, bit in (("one", 1), ("two", 2)):
        assert cpu.run(100) is Stop.BUDGET
        assert bus.log.pop()[3] == (labels[name] - base) & 0xFFFFFFFF
        assert cpu.dr(6) & 15 == bit
        cpu.eflags |= RF
    assert cpu.run(100) is Stop.HALTED
    assert bus.log == []


@pytest.mark.parametrize("v86", [False, True])
def test_breakpoints_of_16_bit_code(v86):
    """QEMU loops for ever here."""
    low = "nop | nop | nop | int 0x20"
    if v86:
        seen = run(Case("", arm(LOW + 2), low=low, v86=True, flags=0x3002))
    else:
        seen = run(Case("", f"{arm(LOW + 2)} | jmp {CODE16}:0", low=low))
    assert told(seen) == [(DB, 2, 1)]


def test_breakpoint_on_a_repeated_instruction_fires_once():
    """RF stays through its rounds; under QEMU each round fires."""
    seen = run(Case("", f"{more(1)} | mov ecx,3 | mov edi,{DATA} | {AT_B} | b@: rep stosb | nop"))
    assert told(seen) == [(DB, seen.at("b"), 1), (DONE, seen.at("b") + 5, 1)]
    assert [event.ecx for event in seen.events] == [3, 0]


# -- breakpoints on ports -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "size", "length", "hit"),
    [
        (0x80, 1, 0, True),
        (0x81, 1, 0, False),
        (0x81, 1, 1, True),
        (0x83, 1, 3, True),
        (0x84, 1, 3, False),
        (0x7E, 4, 0, True),
        (0x7C, 4, 0, False),
    ],
)
def test_breakpoint_on_a_port_is_a_trap_behind_the_access(port, size, length, hit):
    out = f"mov edx,{port} | out dx,{'eax' if size == 4 else 'al'}"
    seen = run(Case("", f"{ON_PORT} | mov eax,{0x20003 | length << 18} | mov dr7,eax | {out} | b@: nop"))
    assert told(seen) == ([(DB, seen.at("b"), 1)] if hit else [(DONE, seen.at("b") + 3, 0)])


def test_breakpoint_on_a_port_needs_the_debugging_extensions():
    code = "mov eax,0x80 | mov dr0,eax | mov eax,0x20003 | mov dr7,eax | out 0x80,al"
    assert run(Case("", f"{ON_PORT} | xor eax,eax | out 0x80,al")).event.vector == DB
    assert run(Case("", code)).event.vector in (DB, DONE), "undefined without CR4.DE"


# -- single steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["ring 0", "ring 3", "virtual 8086"])
def test_single_steps(where):
    """The first is told behind the instruction after POPF; a handler starts without TF."""
    if where == "virtual 8086":
        seen = run(Case("", more(2), low="nop | nop | nop", v86=True, flags=0x3002 | TF))
        start = 0
    else:
        code = f"{STEPS} | s@: nop | nop | nop | nop"
        seen = run(Case("", f"{more(2)} | {code}") if where == "ring 0" else Case("", more(2), user=code))
        start = seen.at("s")
    assert told(seen) == [(DB, start + n, STEP) for n in (1, 2, 3)]
    assert all(event.frame[2] & TF and not event.flags & TF for event in seen.events)


def test_steps_of_a_repeated_instruction():
    seen = run(Case("", f"{more(3)} | mov ecx,3 | mov edi,{DATA} | {STEPS} | s@: rep stosb | nop"))
    at = seen.at("s")
    assert told(seen) == [(DB, at, STEP), (DB, at, STEP), (DB, at + 2, STEP), (DB, at + 3, STEP)]
    assert [event.ecx for event in seen.events] == [2, 1, 0, 0]


@pytest.mark.parametrize(("source", "vector"), [(f"int {USER_INT}", USER_INT), ("ud2", UD), ("div ecx", 0)])
def test_an_event_takes_the_place_of_the_step(source, vector):
    seen = run(Case("", f"xor ecx,ecx | {STEPS} | {source} | nop"))
    assert (seen.event.vector, seen.event.dr6, seen.event.frame[2] & TF) == (vector, CLEAR, TF)


def test_step_and_breakpoint_together():
    seen = run(Case("", f"{more(2)} | {AT_B} | {STEPS} | nop | b@: nop | nop"))
    at = seen.at("b")
    assert told(seen)[0][:2] == (DB, at)
    assert (DB, at + 1) in [(vector, eip) for vector, eip, _ in told(seen)]


def test_step_of_instructions_that_are_done_here():
    """OUT, CPUID, RDTSC, RDMSR and WRMSR are one step each, and do what they do once."""
    start = f"{more(4)} | mov ecx,0x175 | xor edx,edx | mov eax,0x1234 | {STEPS}"
    seen = run(Case("", f"{start} | s@: wrmsr | rdmsr | out 0x80,al | cpuid | rdtsc | nop"))
    at = seen.at("s")
    assert [eip for _, eip, _ in told(seen)] == [at + 2, at + 4, at + 6, at + 8, at + 10]
    assert [event.eax for event in seen.events[:3]] == [0x1234] * 3


# -- the registers --------------------------------------------------------------------------------


def test_fixed_bits():
    zero = "xor eax,eax | mov dr6,eax | mov ebx,dr6 | mov dr7,eax | mov ecx,dr7"
    event = run(Case("", f"{zero} | dec eax | mov dr6,eax | mov edx,dr6")).event
    assert (event.ebx, event.ecx, event.edx) == (CLEAR, 0x400, 0xFFFFFFFF)


def test_names_of_dr6_and_dr7():
    old = ".byte 0x0f,0x21,0xe3 | .byte 0x0f,0x21,0xe9"  # mov ebx, dr4; mov ecx, dr5
    plain, extended = run_all([Case("", old), Case("", f"{DE} | here@: {old}")])
    assert (plain.event.vector, plain.event.ebx, plain.event.ecx) == (DONE, CLEAR, 0x400)
    assert (extended.event.vector, extended.event.eip) == (UD, extended.at("here"))


@pytest.mark.parametrize("source", ["mov eax,dr0", "mov dr7,eax"])
def test_debug_registers_are_ring_0_s(source):
    seen = run(Case("", user=f"here@: {source}"))
    assert (seen.event.vector, seen.event.error, seen.event.eip) == (GP, 0, seen.at("here"))


def test_icebp_is_an_invalid_opcode():
    seen = run(Case("", user="nop | here@: .byte 0xf1"))
    assert (seen.event.vector, seen.event.eip) == (UD, seen.at("here"))


def test_int_1_is_an_int():
    """It needs a gate for ring 3, and leaves DR6 alone."""
    inner, outer = run_all([Case("", ".byte 0xcd,1 | b@: nop"), Case("", user="b@: .byte 0xcd,1")])
    assert told(inner) == [(DB, inner.at("b"), 0)]
    assert (outer.event.vector, outer.event.error, outer.event.eip) == (GP, 8 + 2, outer.at("b"))


# -- the judge ------------------------------------------------------------------------------------


_BREAKPOINTS = {
    "loop": "mov ecx,3 | b@: nop | loop b@",
    "int": "b@: int 0x21",
    "fault": "xor ecx,ecx | b@: div ecx",
    "behind mov ss": f"mov eax,{DATA0} | mov ss,ax | b@: nop",
    "behind sti": "sti | b@: nop",
    "behind rep": f"mov ecx,3 | mov edi,{DATA} | rep stosb | b@: nop",
    "step": f"{STEPS} | nop | b@: nop | nop",
    "deep": "jmp a@ | a@: inc eax | inc eax | b@: inc eax | inc eax",
    "load": f"b@: mov eax,[{ABSENT}]",
    "moved": "b@: nop | mov eax,{d@} | mov dr0,eax | nop | d@: nop | nop",
    "switched off": "mov ecx,2 | b@: nop | xor eax,eax | mov dr7,eax | loop b@",
    "popf": f"push {RF | 2} | popfd | b@: nop",
    "iret": f"push {RF | 2} | push {CODE0} | push {{b@}} | iretd | b@: nop",
}
_STEPPED = {
    "plain": "nop | nop | nop",
    "mov ss": f"mov eax,{DATA0} | mov ss,ax | nop",
    "pop ss": "push ss | pop ss | nop",
    "rep": f"mov ecx,3 | mov edi,{DATA} | rep stosb | nop",
    "int": "int 0x31 | nop | nop",
    "ud2": "ud2 | nop",
    "call": "call x@ | nop | x@: nop",
    "out": "out 0x80,al | nop",
    "cr0": "mov eax,cr0 | mov cr0,eax | nop",
    "msr": "mov ecx,0x175 | xor edx,edx | wrmsr | rdmsr",
    "popf": "push 2 | popfd | nop",
    "iret": f"push {TF | 2} | push {CODE0} | push {{b@}} | iretd | b@: nop",
    "far return": f"push {CODE0} | push {{b@}} | retf | b@: nop",
    "icebp": ".byte 0xf1 | nop",
    "int1": ".byte 0xcd,1 | nop",
    "port": f"{ON_PORT} | out 0x80,al | nop",
}


def _cases():
    for number in range(4):
        yield Case(f"breakpoint {number}", f"{arm('{b@}', number)} | nop | b@: nop")
    yield Case("local", f"{arm('{b@}', 0, 1)} | b@: nop")
    yield Case("off", f"{arm('{b@}', 0, 0)} | b@: nop")
    both = "mov eax,{b@} | mov dr0,eax | mov dr3,eax | mov eax,"
    for dr7 in (0x82, 0x80, 2):
        yield Case(f"two, {dr7:#x}", f"{more(1)} | {both}{dr7} | mov dr7,eax | b@: nop")
    for name, code in _BREAKPOINTS.items():
        yield Case(f"breakpoint, {name}", f"{more(3)} | {AT_B} | {code}")
    yield Case("breakpoint on ring 3", f"{more(1)} | {AT_B}", user="nop | b@: nop | nop")
    yield Case("breakpoint on a handler", f"{more(1)} | {arm('{v33}')} | int 0x21")
    yield Case("breakpoint with a length", f"{arm('{b@}', 0, 0xC0002)} | nop | b@: nop")
    for name, code in _STEPPED.items():
        start = f"{more(6, advance=2 if name == 'ud2' else 0)} | {STEPS}"
        yield Case(f"stepped, {name}", f"{start} | {code}")
    yield Case("stepped, ring 3", more(3), user=f"{STEPS} | nop | nop | nop")
    yield Case("stepped, virtual 8086", more(3), low="nop | nop | nop | int 0x20", v86=True, flags=0x3102)
    yield Case("stepped, refused", more(1, coded=[GP]), user=f"{STEPS} | hlt")
    yield Case("stepped, page fault", f"{more(1, coded=[PF])} | {STEPS} | mov eax,[{ABSENT}]")
    for text in (
        "xor eax,eax | mov dr6,eax | mov ebx,dr6 | dec eax | mov dr6,eax | mov ecx,dr6",
        "mov eax,0xfc00 | mov dr7,eax | mov ebx,dr7 | xor eax,eax | mov dr7,eax | mov ecx,dr7",
        "mov eax,0x2000 | mov dr7,eax | mov ebx,dr0", "mov eax,0x2000 | mov dr7,eax | mov dr0,ebx",
        f"{DE} | .byte 0x0f,0x21,0xe3", ".byte 0x0f,0x21,0xe3", ".byte 0xcd,1",
    ):  # fmt: skip
        yield Case(text, text)
        yield Case(f"ring 3: {text}", user=text)
    for dr7 in (0x20003, 0xE0003, 0x60003):
        for access in ("out 0x80,al", "out 0x83,al", "out 0x7e,eax"):
            yield Case(
                f"{access}, {dr7:#x}", f"{more(1)} | {ON_PORT} | mov eax,{dr7} | mov dr7,eax | {access}"
            )
    outs = f"mov ecx,3 | mov esi,{DATA} | {ON_PORT} | mov edx,0x80 | rep outsb | nop"
    yield Case("outs", f"{more(3)} | {outs}")


@pytest.mark.e2e
@needs_qemu
def test_as_under_qemu(tmp_path):
    assert differences(tmp_path, list(_cases())) == []
