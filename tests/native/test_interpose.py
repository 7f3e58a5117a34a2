# SPDX-License-Identifier: GPL-2.0-only
"""Functions of the emulator library that are exchanged: engines that aren't ours, and when it can't be done.

What the exchange is for is test_cpu_changing_code.py's, test_cpu_msr.py's and test_cpu_sysenter.py's matter.
"""

from __future__ import annotations

import gc

import pytest

from tests.native.bare import Recorder, new_cpu, put
from vmi.errors import EngineError
from vmi.native import engine, interpose, pointers
from vmi.native.wiring import Stop

# -- engines that aren't ours ---------------------------------------------------------------------


def plain(source):
    """An engine of the library as anyone would make it, with code at 1000h."""
    uc = engine.unicorn.Uc(engine.unicorn.UC_ARCH_X86, engine.unicorn.UC_MODE_32)
    uc.mem_map(0, 0x100000)
    uc.mem_write(0x1000, bytes.fromhex(source))
    uc.reg_write(engine.x86_const.UC_X86_REG_ESP, 0x8000)
    return uc


def registers(uc, *names):
    return tuple(uc.reg_read(getattr(engine.x86_const, f"UC_X86_REG_{name}")) for name in names)


def test_a_plain_engine_keeps_the_library_s_own_functions(cpu):
    """RDMSR of anything, WRMSR, SYSENTER and SYSCALL do there what they always did."""
    source = "b912340000 0f32 89c3 b976010000 b844332211 31d2 0f30 31c0 0f32 90".replace(" ", "")
    uc = plain(source)
    uc.emu_start(0x1000, 0x1000 + len(source) // 2 - 1)
    assert registers(uc, "EBX", "EAX") == (0, 0x11223344)
    uc = plain("0f34 0f05 41 90".replace(" ", ""))
    uc.reg_write(engine.x86_const.UC_X86_REG_ECX, 1)
    uc.emu_start(0x1000, 0x1005)
    assert registers(uc, "ECX") == (2,)
    assert cpu.bus.log == []


def test_code_of_a_plain_engine_changes_too(cpu):
    # mov byte [1008h], 7; nop; mov eax, 1: the store hits the load's operand
    uc = plain("c6050910000007" + "90" + "b801000000" + "90")
    for _ in range(3):
        uc.emu_start(0x1000, 0x100D)
        assert registers(uc, "EAX") == (7,)
        uc.mem_write(0x1009, b"\x01")
    # a loop of stores into its own page, beside it
    uc = plain("b920030000 ff0500180000 e2f8 90".replace(" ", ""))
    uc.emu_start(0x1000, 0x100D)
    assert uc.mem_read(0x1800, 4) == (0x320).to_bytes(4, "little")


def test_a_plain_engine_inside_a_run_of_ours(cpu, bus):
    cpu.write_memory(0x40000, bytes.fromhex("b801000000c3"))  # mov eax, 1; ret
    results = []

    def work():
        uc = plain("c6050910000007" + "90" + "b801000000" + "90")
        uc.emu_start(0x1000, 0x100D)
        results.extend(registers(uc, "EAX"))

    bus.act = work
    put(cpu, "mov edi,0x40000 | call edi | out 0x80,al | mov byte ptr [0x40001],3 | call edi | hlt")
    assert cpu.run(100) is Stop.HALTED
    assert (results, cpu.eax) == ([7], 3)


def test_collected_cpus_leave_nothing_behind(plain_cpus):
    gc.collect()
    before = [len(table) for table in (interpose._by_cpu, interpose._by_state, interpose._by_engine)]
    for _ in range(5):
        other = new_cpu(Recorder())
        put(other, "rdmsr | hlt")
        other.run(10)
    assert len(interpose._by_cpu) >= before[0] + 1
    del other
    gc.collect()
    assert [len(table) for table in (interpose._by_cpu, interpose._by_state, interpose._by_engine)] == before


def test_a_plain_engine_at_the_address_of_a_collected_cpu():
    """Memory is used again; what has been ours is served by the library's own functions."""
    for _ in range(3):
        other = new_cpu(Recorder())
        put(other, "rdmsr | hlt")
        other.run(10)
        assert other.bus.log == [("rdmsr", 0)]
        del other
        gc.collect()
        uc = plain("b912340000 0f32 90".replace(" ", ""))
        uc.emu_start(0x1000, 0x1007)
        assert registers(uc, "EAX", "EDX") == (0, 0)
        del uc
        gc.collect()


# -- when it isn't possible -----------------------------------------------------------------------


def test_pointers_that_cannot_be_found(monkeypatch, cpu):
    monkeypatch.setattr(pointers, "_replaced", {})  # so that it looks for what is there no more
    sentence = (
        "the CPU emulator is not as expected: 1 of 2 functions to replace are reached in a way that can't be "
        "changed"
    )
    before = pointers.current(cpu._lib, "tlb_flush_page_x86_64")
    wanted = {"tlb_set_dirty_x86_64": 1, "tlb_flush_page_x86_64": before}
    for _ in range(2):  # the second time as well, though the first has been there
        with pytest.raises(EngineError, match=f"^{sentence}$"):
            pointers.exchange(cpu._lib, wanted)
    assert pointers.current(cpu._lib, "tlb_flush_page_x86_64") == before


def test_function_that_is_missing(monkeypatch):
    monkeypatch.setattr(interpose, "_installed", [])
    sentence = "the CPU emulator is not as expected: it has no function tlb_set_page_with_attrs_x86_64"
    with pytest.raises(EngineError, match=f"^{sentence}$"):
        interpose.install(object())


def test_memory_that_must_not_be_changed(monkeypatch):
    class Denied:
        def mprotect(self, *_):
            return -1

    monkeypatch.setattr(pointers.ctypes, "CDLL", lambda _name: Denied())
    sentence = "the CPU emulator's pointers can't be exchanged: mprotect is not allowed"
    with pytest.raises(EngineError, match=f"^{sentence}$"):
        pointers._store(0x1000, 0, False)
