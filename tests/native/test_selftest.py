# SPDX-License-Identifier: GPL-2.0-only
"""The proof that the emulator library is the right one: each assumption, when faked, has its sentence."""

from __future__ import annotations

import re

import pytest

from tests.native.bare import Recorder
from vmi.errors import EngineError, ExitCode
from vmi.memory import PhysicalMemory
from vmi.native import engine, interpose, layout, pointers, registers, selftest, translator
from vmi.native.accelerator import core
from vmi.native.cpu import Cpu

PLACE = "0x[0-9a-f]+"


@pytest.fixture(autouse=True)
def unproven(monkeypatch, plain_cpus):
    """Each test starts as a new process would."""
    monkeypatch.setattr(Cpu, "_proven", False)


def refused(sentence):
    """The next Cpu is refused with this sentence; ``PLACE`` stands for a host address."""
    whole = re.escape(f"the CPU emulator is not as expected: {sentence}").replace("PLACE", PLACE)
    with pytest.raises(EngineError, match=f"^{whole}$") as raised:
        Cpu(PhysicalMemory(1 << 20), Recorder())
    assert raised.value.exit_code == ExitCode.ENGINE
    assert not Cpu._proven


def test_the_library_passes():
    Cpu(PhysicalMemory(1 << 20), Recorder())
    assert Cpu._proven


def test_it_is_made_once(monkeypatch):
    made = []
    monkeypatch.setattr(selftest, "prove", lambda: made.append(1))
    for _ in range(3):
        Cpu(PhysicalMemory(1 << 20), Recorder())
    assert made == [1]


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(engine.unicorn, "__version__", "2.1.5")
    with pytest.raises(EngineError, match=r"^the CPU emulator must be unicorn 2\.1\.4, but it is 2\.1\.5$"):
        Cpu(PhysicalMemory(1 << 20), Recorder())


STRUCTURE = {
    ("ENGINE_ARCH", 12): "the engine's architecture word should be 0x4, but it is PLACE",
    ("ENGINE_MODE", 12): "the engine's mode word should be 0x4, but it is PLACE",
    ("ENGINE_CPU", 8): "the CPU's pointer to its engine should be PLACE, but it is PLACE",
    ("ENGINE_CPU", -8): "the CPU's pointer to its engine should be PLACE, but it is nothing readable",
    ("CPU_ENGINE", 8): "the CPU's pointer to its engine should be PLACE, but it is PLACE",
    ("CPU_ENV", 16): "the register state should be inside the CPU structure at PLACE, but it is at PLACE",
    ("CPU_CLASS", 8): "the CPU's class should be inside the CPU structure at PLACE, but it is at PLACE",
    ("STATE_FEATURES", 8): "the first word of features should be 0x781abfd, but it is 0x80000001",
    ("CLASS_DEBUG", 8): "the class entry for breakpoint_handler_x86_64 should be PLACE, but it is PLACE",
    (
        "CLASS_INTERRUPT",
        -8,
    ): "the class entry for x86_cpu_exec_interrupt_x86_64 should be PLACE, but it is PLACE",
    ("ENGINE_COUNTER", 8): "the count of instructions up to HLT should be 0x2, but it is 0x64",
    ("ENGINE_BUDGET", 8): "the count of instructions after a budget of 5 should be 0x5, but it is 0x6",
    ("CPU_HALTED", 8): "the end of a run that uses up its budget should be BUDGET, but it is HALTED",
    ("CPU_NEXT_BLOCK", 8): (
        "IN and OUT should be 0x74, 0x4, 0x40073, 0x40073, but it is 0x1, 0x0, 0x0, 0x1002, 0x71"
    ),
    ("CPU_INTERRUPT_REQUEST", 8): (
        "the end of a run when interrupts become acceptable should be WINDOW, 0x1003, "
        "but it is HALTED, 0x1006"
    ),
}


@pytest.mark.parametrize(("name", "off"), STRUCTURE)
def test_wrong_place_in_the_structures(monkeypatch, name, off):
    monkeypatch.setattr(layout, name, getattr(layout, name) + off)
    refused(STRUCTURE[name, off])


def test_missing_function(monkeypatch):
    monkeypatch.setattr(engine.Engine, "function", lambda self, name: 0)
    refused("the class entry for breakpoint_handler_x86_64 should be 0x0, but it is PLACE")


STATE = {
    "AT_EIP": "EIP after a budget of 5 instructions of 1 byte should be 0x1005, but it is 0x1000",
    "AT_EFLAGS": "EFLAGS that code sees should be 0x4cd7, but it is 0x2",
    "_CC_SRC": "EFLAGS in the middle of a run should be 0x200892, 0x200c92, but it is 0x200002, 0x200402",
    "AT_CC_OP": "EFLAGS set in the middle of a run should be 0x4893, but it is 0x4cd7",
    "_DF": "EFLAGS in the middle of a run should be 0x200892, 0x200c92, but it is 0x200892, 0x200892",
    "_HFLAGS": "CLI on ring 3 should be 0xd, 0x0, 0x0, 0x1000, but it is nothing",
    "_SEGS": "the end of a run at HLT should be HALTED, 0x1002, but it is BUDGET, 0x10bf",
    "_LDT": ("LDTR that code loads should be 0x20, 0x9000, 0x27, 0x8200, but it is 0x9000, 0x27, 0x28, 0x0"),
    "_TR": "TR that code loads should be 0x28, 0x7000, 0x67, 0x8900, but it is 0x7000, 0x67, 0x0, 0x8900",
    "_GDT": (
        "CS that code loads should be 0x18, 0x20000, 0x11fff, 0xc08b02, "
        "but it is 0x8, 0x0, 0xffffffff, 0xcf8b00"
    ),
    "_IDT": (
        "GDTR and IDTR that code stores should be ff0100800000, ff0278563400, "
        "but it is ff0100800000, 785600000000"
    ),
    "AT_CR": (
        "CR0, CR2, CR3, CR4 that code sees should be 0x11, 0xc2c2, 0xa000, 0x10, "
        "but it is 0x11, 0x0, 0xa000, 0x10"
    ),
    "_DR": "DR0 to DR3 that code sees should be 0xd0, 0xd1, 0xd2, 0xd3, but it is 0x0, 0xd0, 0xd1, 0xd2",
    "_EFER": (
        "a jump to where nothing can be executed should be 0xe, 0x0, 0x11, 0x380000, "
        "but it is 0xe, 0x0, 0x9, 0x380000"
    ),
    "_FAST_CALL": (
        "CS, SS, ESP and EIP behind SYSEXIT should be 0x1013, 0x101b, 0x5800, 0x1020, "
        "but it is 0x8, 0x10, 0x5000, 0x1000"
    ),
    "AT_ERROR_CODE": (
        "vector, kind, error code and EIP of a bad selector should be 0xd, 0x0, 0x1234, 0x1004, "
        "but it is 0xd, 0x0, 0x1004, 0x1004"
    ),
    "AT_IS_INT": (
        "vector, kind, error code and EIP of INT 48 should be 0x30, 0x1, 0x0, 0x1002, "
        "but it is 0x30, 0x0, 0x0, 0x1002"
    ),
    "_NEXT_EIP": (
        "vector, kind, error code and EIP of INT 6 should be 0x6, 0x1, 0x0, 0x1002, "
        "but it is 0x6, 0x1, 0x0, 0x70"
    ),
    "AT_OLD_EXCEPTION": (
        "vector, kind, error code and EIP of a bad selector should be 0xd, 0x0, 0x1234, 0x1004, "
        "but it is 0x8, 0x0, 0x0, 0x1004"
    ),
}


@pytest.fixture
def of_another_build(monkeypatch):
    """The library has flags computed at other times, so they need care."""
    monkeypatch.setattr(translator, "adopt", lambda *_: None)


@pytest.mark.usefixtures("of_another_build")
def test_wrong_place_of_the_return_address(monkeypatch):
    """The last word of the state, so the one in front is tried."""
    monkeypatch.setattr(registers, "AT_RETURN_ADDRESS", registers.AT_RETURN_ADDRESS - 2)
    refused("EFLAGS in front of a load where no page is should be 0x892, but it is 0x83")


@pytest.mark.parametrize("name", STATE)
def test_wrong_place_in_the_register_state(monkeypatch, name):
    monkeypatch.setattr(registers, name, getattr(registers, name) + 2)
    refused(STATE[name])


BEHAVIOUR = {
    "stop_soon": (
        lambda self: None,
        "EIP after a stop from inside OUT should be 0x1002, but it is 0x10b8",
    ),
    "stop_within": (
        lambda self, count: None,
        "EIP 3 instructions after OUT should be 0x1005, but it is 0x10b8",
    ),
    "set_gpr": (
        lambda self, number, value: None,
        "the general registers that code sees should be 0x10203040, 0x11213141, 0x12223242, 0x13233343, "
        "0x14243444, 0x15253545, 0x16263646, 0x17273747, but it is 0x0, 0x1, 0x0, 0x0, 0x6000, 0x0, 0x0, 0x0",
    ),
    "settle_flags": (
        lambda self: None,
        "EFLAGS in the middle of a run should be 0x200892, 0x200c92, but it is 0x200083, 0x200c92",
    ),
    "forget_exception": (
        lambda self: None,
        "vector, kind, error code and EIP of a bad selector should be 0xd, 0x0, 0x1234, 0x1004, "
        "but it is 0x8, 0x0, 0x0, 0x1004",
    ),
    "write_memory": (
        lambda self, address, data: self.memory.write(address, data),
        "the end of a run that uses up its budget should be BUDGET, but it is HALTED",
    ),
    "_on_rom_write": (
        lambda self, *_: False,
        "a store to ROM should be 0xc8000, 0x4, 0xffffffff, 0x0, but it is nothing, 0x0",
    ),
    "_on_invalid": (
        lambda self, _uc, _user: self._report(6, False, 0) or True,
        "vector, kind, error code and EIP of INT 6 should be 0x6, 0x1, 0x0, 0x1002, "
        "but it is 0x6, 0x0, 0x0, 0x1000",
    ),
    "_on_breakpoint": (
        lambda self, _cpu: self._engine.leave(),
        "the debug exception of a breakpoint should be 0x1, 0x0, 0x810, but it is nothing",
    ),
    "refuse": (
        lambda self, fault=None: None,
        "an unknown model-specific register should be 0xd, 0x0, 0x0, 0x100a, but it is nothing",
    ),
    "_take_back": (
        lambda self: False,
        "an unknown model-specific register should be 0xd, 0x0, 0x0, 0x100a, but it is nothing",
    ),
    "read_msr": (
        lambda self: None,
        "a model-specific register that code reads should be 0x4d5352, 0x174, but it is 0x2, 0x11223344",
    ),
    "write_msr": (
        lambda self: None,
        "a model-specific register that code writes should be 0x174, 0x2000000010, but it is nothing",
    ),
    "fast_call": (
        lambda self: None,
        "CS, SS, CPL, ESP and EFLAGS behind SYSENTER should be 0x1000, 0x1008, 0x0, 0x5000, 0x46, "
        "but it is 0xb, 0x13, 0x3, 0x6000, 0x77",
    ),
    "long_call": (lambda self: None, "SYSCALL should be 0x6, 0x1001, but it is nothing"),
    "host_page": (
        lambda self, page: None,
        "the pages that translated code lies in should be 0x190, but it is nothing",
    ),
    "stored_into_code": (
        lambda self: None,
        "EFLAGS behind a store into the block of code that it is in should be 0x892, but it is 0x83",
    ),
    "set_a20": (
        lambda self, enabled: None,
        "what code loads with address line 20 closed and open should be 0x22222222, 0x11111111, "
        "but it is 0x11111111, 0x11111111",
    ),
    "_on_cpuid": (
        lambda self, _uc, _user: 1,
        "CPUID should be 0x11, 0x12, 0x13, 0x14, but it is 0x10, 0xecdcccbc, 0x0, 0x50",
    ),
    "_on_rdtsc": (
        lambda self, _uc: 1,
        "RDTSC should be 0x55667788, 0x11223344, but it is 0x11, 0x14",
    ),
}


@pytest.mark.usefixtures("of_another_build")
@pytest.mark.parametrize("name", BEHAVIOUR)
def test_other_behaviour(monkeypatch, name):
    replacement, sentence = BEHAVIOUR[name]
    monkeypatch.setattr(Cpu, name, replacement)
    refused(sentence)


def test_another_cpu_model(monkeypatch):
    """The library's default has instructions that answer differently on every run."""
    monkeypatch.setattr(engine.x86_const, "UC_CPU_X86_QEMU32", engine.x86_const.UC_CPU_X86_HASWELL)
    refused("the first word of features should be 0x781abfd, but it is PLACE")


def test_features_that_are_not_taken_away(monkeypatch):
    monkeypatch.setattr(Cpu, "decode", lambda self, model: None)
    refused("the exception at CMOVZ on a 486 should be 0x6, 0x0, 0x0, 0x1000, but it is nothing")


def test_refused_outs_has_moved_on(monkeypatch):
    """Registers that a refusal does not put back."""
    take_back = Cpu._take_back

    def forget(self):
        if self._refused is not None:
            self._refused = (self._refused[0], *self._refused[1:4], self.esi, *self._refused[5:])
        return take_back(self)

    monkeypatch.setattr(Cpu, "_take_back", forget)
    refused("ESI and ECX behind a refused OUTS should be 0x3000, 0x3, but it is 0x3001, 0x3")


def test_functions_that_cannot_be_exchanged(monkeypatch):
    """Each CPU is refused, the second as well as the first."""
    monkeypatch.setattr(interpose, "_installed", [])
    monkeypatch.setattr(core, "_installed", None)
    monkeypatch.setattr(pointers, "_data_of_library", lambda inside: iter(()))
    sentence = (
        r"the CPU emulator is not as expected: (\d+) of \1 functions to replace are reached in a way that "
        "can't be changed"
    )
    for _ in range(2):
        with pytest.raises(EngineError, match=f"^{sentence}$") as raised:
            Cpu(PhysicalMemory(1 << 20), Recorder())
        assert raised.value.exit_code == ExitCode.ENGINE
        assert not Cpu._proven


def test_code_changed_where_it_cannot_be_executed(monkeypatch):
    """What the library does by itself: it looks at the first store only."""

    class Nobody(dict):
        def get(self, _cpu):
            return None

        def __contains__(self, _cpu):
            return False

    monkeypatch.setattr(interpose, "_by_cpu", Nobody())
    refused(
        "what code does that was changed where it can't be executed should be 0x2, 0x2, but it is 0x2, 0x1"
    )
