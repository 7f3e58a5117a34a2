# SPDX-License-Identifier: GPL-2.0-only
"""What the translator leaves out of counted instructions: flags are right all the same, here and elsewhere.

That each event has the right flags is tests/native/test_cpu_events.py's matter, and its neighbours'.
"""

from __future__ import annotations

import ctypes
import gc

import pytest

from tests.native.bare import Recorder, new_cpu, put
from tests.native.test_interpose import plain, registers
from vmi.errors import EngineError
from vmi.native import engine, pointers, translator

pytestmark = pytest.mark.usefixtures("plain_cpus")

FLAGS = "xor eax, eax | cmp eax, 1 | nop | inc ebx | pushfd | pop ecx | test eax, eax | pushfd | pop edx"
ARITHMETIC = 0x8D5


@pytest.mark.parametrize("budget", [1, 2, 3, 100])
def test_flags_are_those_of_the_last_instruction_that_set_them(cpu, budget):
    put(cpu, FLAGS + " | hang: jmp hang")
    cpu.ebx = 0xFFFFFFFF
    seen = []
    for _ in range(12):
        cpu.run(budget)
        seen.append(cpu.eflags & ARITHMETIC)
    assert cpu.ecx & ARITHMETIC == 0x55  # ZF, AF and PF of INC, and CMP's CF
    assert cpu.edx & ARITHMETIC == seen[-1] == 0x44
    if budget == 1:
        assert seen[1:4] == [0x95, 0x95, 0x55]


@pytest.mark.parametrize(
    "first", ["xor eax, eax", "cmp eax, 9", "cmp ebx, ebx", "add ebx, -1", "inc ebx", "shl ebx, 31", "sahf"]
)
@pytest.mark.parametrize("between", ["", "nop | ", "nop | nop | "])
@pytest.mark.parametrize("loop", ["loope", "loopne", "loop", "jecxz"])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_flags_are_kept_by_what_goes_on_in_one_of_two_ways(cpu, first, between, loop, times):
    put(cpu, f"{first} | pushfd | pop edx | hang: jmp hang")
    cpu.ebx, cpu.eax = 3, 5
    cpu.run(20)
    cpu.ebx, cpu.eax, cpu.ecx = 3, 5, times
    wanted = cpu.edx
    put(cpu, f"stc | adc edi, edi | {first} | {between}{loop} on | on: pushfd | pop edx | hang: jmp hang")
    cpu.run(20)
    assert cpu.edx & ARITHMETIC == wanted & ARITHMETIC


def test_a_cpu_that_is_gone_is_forgotten():
    before = set(translator._makers)
    cpu = new_cpu(Recorder())
    assert set(translator._makers) - before == {cpu.host_cpu}
    del cpu.bus.cpu, cpu
    gc.collect()
    assert set(translator._makers) <= before


def test_engines_that_are_not_ours_have_flags_stored_for_their_hooks(cpu):
    """Such a hook may look into the library's own structure, where nothing computes them."""
    uc = plain("31c0 83f801 90")  # the first three of them
    seen = []
    uc.hook_add(
        engine.const.UC_HOOK_CODE,
        lambda uc, address, *_: seen.append((address, uc.reg_read(engine.x86_const.UC_X86_REG_EFLAGS) & 1)),
    )
    uc.emu_start(0x1000, 0x1006, count=100)
    assert seen == [(0x1000, 0), (0x1002, 0), (0x1005, 1)]
    assert registers(uc, "EAX") == (0,)


def test_it_is_done_once(cpu):
    before = list(translator._kept)
    translator.install(cpu._engine.lib)
    assert translator._kept == before != []


def test_another_build_of_the_library_is_left_alone(cpu, monkeypatch):
    monkeypatch.setattr(translator, "_kept", [])
    monkeypatch.setattr(pointers, "BUILD", "00")
    monkeypatch.setattr(pointers, "put", lambda *_: pytest.fail("a pointer was exchanged"))
    translator.install(cpu._engine.lib)
    assert translator._kept == []


def test_a_pointer_that_is_another_is_not_replaced():
    cell = ctypes.c_uint64(5)
    at = ctypes.addressof(cell)
    wanted = f"the CPU emulator is not as expected: the pointer at {at:#x} should be 0x7, but it is 0x5"
    with pytest.raises(EngineError) as caught:
        pointers.put(at, 7, 9)
    assert (str(caught.value), cell.value) == (wanted, 5)
