# SPDX-License-Identifier: GPL-2.0-only
"""Model-specific registers: which a model has, what they show, take and refuse."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.native.cpuid import MODELS
from vmi.native.msr import APIC_BASE, EFER, PAT, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP, TSC, Live, MsrFile

ALL = (1 << 64) - 1
NAMES = tuple(MODELS)
MTRR_DEF_TYPE, MTRRCAP, MCG_CAP, MCG_STATUS, MCG_CTL, MC0_CTL = 0x2FF, 0xFE, 0x179, 0x17A, 0x17B, 0x400


def new(name="max", counter=lambda: 0, **live):
    return MsrFile(MODELS[name], counter, live.get("live"))


# What QEMU 7.2 -M pc with the model of each name shows to a kernel that starts: those that aren't 0. Of
# them only here, since no kernel is known to read it without asking: SMI count 34h, thread count 35h,
# bus clock 198h, and the registers of an Intel on processors that aren't.
FIRMWARE_MTRR = {
    0xFE: 0x508, 0x200: 0x80000000, 0x201: 0xF80000800, 0x250: 0x0606060606060606, 0x258: 0x0606060606060606,
    **{0x268 + n: 0x0505050505050505 for n in range(8)}, 0x2FF: 0xC06,
}  # fmt: skip
MACHINE_CHECK = {0x179: 0x100010A, 0x17B: ALL, **{0x400 + 4 * n: ALL for n in range(10)}}
P6 = {0x1B: 0xFEE00900, 0x8B: 1 << 32, 0x1A0: 1, 0x277: 0x0007040600070406}
SHOWN = {
    "i686": {},
    "i686-apic": {0x1B: 0xFEE00900, 0x8B: 1 << 32, 0x1A0: 1},
    "i686-pae": {0x8B: 1 << 32, 0x1A0: 1},
    "486": {},
    "pentium": {0x1B: 0xFEE00900},
    "pentium3": P6 | FIRMWARE_MTRR | MACHINE_CHECK,
    "qemu32": P6,
    "max": {0x1B: 0xFEE00900, 0x8B: 0x01000065, 0x277: P6[0x277]} | FIRMWARE_MTRR | MACHINE_CHECK,
}


@pytest.mark.parametrize("name", NAMES)
def test_values_that_a_kernel_finds(name):
    msrs = new(name)
    msrs.settle()
    assert {index: value for index in msrs.registers if (value := msrs.read(index))} == SHOWN[name]


@pytest.mark.parametrize("name", NAMES)
def test_before_firmware_the_types_of_memory_are_off(name):
    msrs = new(name)
    kept = {
        index: value for index, value in SHOWN[name].items() if index not in FIRMWARE_MTRR or index == 0xFE
    }
    assert {index: value for index in msrs.registers if (value := msrs.read(index))} == kept


@pytest.mark.parametrize(
    ("feature", "index"),
    [
        ("tsc", TSC), ("apic", APIC_BASE), ("sep", SYSENTER_CS), ("sep", SYSENTER_EIP), ("mtrr", MTRRCAP),
        ("mtrr", MTRR_DEF_TYPE), ("mtrr", 0x26F), ("mtrr", 0x20F), ("pat", PAT), ("mca", MCG_CAP),
        ("mca", 0x427), ("nx", EFER),
    ],
)  # fmt: skip
def test_a_register_comes_with_its_feature(feature, index):
    having = {name for name in NAMES if MODELS[name].has("msr") and MODELS[name].has(feature)}
    assert {name for name in NAMES if new(name).read(index) is not None} == having


@pytest.mark.parametrize("name", ["486", "i686"])
def test_a_processor_without_rdmsr_has_none(name):
    assert not new(name).registers


@pytest.mark.parametrize(
    "index", [0x1000, 0x2, 0x34, 0x210, 0x428, 0xC0000081, 0xC0000100, 0x4B564D00, 0xFFFFFFFF]
)
@pytest.mark.parametrize("name", NAMES)
def test_unknown_register_is_a_fault(name, index):
    msrs = new(name)
    assert msrs.read(index) is None
    assert msrs.write(index, 0) is False


# -- what a write does ----------------------------------------------------------------------------

STORED = [
    (SYSENTER_CS, 0x12345678, 0x5678),
    (SYSENTER_ESP, 0x1_8000_1000, 0x8000_1000),
    (SYSENTER_EIP, 0xC010_0000, 0xC010_0000),
    (PAT, 0x0007_0501_0406_0004, 0x0007_0501_0406_0004),
    (MTRR_DEF_TYPE, 0xC00, 0xC00),
    (0x202, 0xF_F000_0006, 0xF_F000_0006),
    (0x203, 0xF_F800_0800, 0xF_F800_0800),
    (0x259, 0x0101010101010101, 0x0101010101010101),
    (MCG_STATUS, 7, 7),
    (MCG_CTL, 0, 0),
    (MC0_CTL, 0x7F, 0x7F),
    (0x401, 0, 0),
    (0x1A0, 0x850089, 0x850089),
    (TSC, 0x1_0000_0000, 0x1_0000_0000),
]


@pytest.mark.parametrize(("index", "value", "kept"), STORED)
def test_write(index, value, kept):
    msrs = new("pentium3")
    assert msrs.write(index, value) is True
    assert msrs.read(index) == kept


REFUSED = [
    (MTRRCAP, 0x508), (MCG_CAP, 0),  # read-only
    (PAT, 0x0007040600070402), (PAT, 0x0807040600070406), (PAT, 3 << 56),  # no such memory type
    (MTRR_DEF_TYPE, 0xC02), (MTRR_DEF_TYPE, 0x100C06), (MTRR_DEF_TYPE, 0xD06),
    (0x200, 7), (0x200, 0x106), (0x200, 1 << 36), (0x201, 0x400), (0x201, 1 << 36), (0x268, 0x2000000),
    (MCG_STATUS, 8), (0x401, 1), (0x402, 1), (0x403, 1 << 63),
    (APIC_BASE, 0xFEE00D00), (APIC_BASE, 0xFEE00901), (APIC_BASE, 0x10_FEE00900),
]  # fmt: skip


@pytest.mark.parametrize(("index", "value"), REFUSED)
def test_refused_write_changes_nothing(index, value):
    msrs = new("pentium3")
    before = msrs.save()
    assert msrs.write(index, value) is False
    assert msrs.save() == before


def test_no_execute_is_all_there_is_of_efer():
    msrs = new("max")
    assert msrs.write(EFER, 0x800)
    assert msrs.read(EFER) == 0x800
    for value in (0x801, 0x100, 0x1000, 0x4000, 1 << 63):  # SYSCALL, long mode, SVM, FFXSR
        assert msrs.write(EFER, value) is False
    assert msrs.read(EFER) == 0x800


@pytest.mark.parametrize("index", [0x17, 0x2A, 0x79, 0x8B, 0xC1, 0xC2, 0x186, 0x187, 0x1D9])
def test_registers_that_are_touched_without_asking_show_the_same_always(index):
    msrs = new("qemu32")
    before = msrs.read(index)
    assert msrs.write(index, ALL) is True
    assert msrs.read(index) == before


def test_steps_of_linux_to_the_microcode_revision():
    msrs = new("pentium3")
    assert msrs.write(0x8B, 0)
    assert msrs.read(0x8B) >> 32 == 1


def test_apic_base_keeps_the_processor_s_rank():
    msrs = new("qemu32")
    assert msrs.write(APIC_BASE, 0xFED00000)
    assert msrs.read(APIC_BASE) == 0xFED00100


# -- time -----------------------------------------------------------------------------------------


def test_time_stamp_counter():
    now = 1000
    msrs = new(counter=lambda: now)
    assert (msrs.read(TSC), msrs.tsc()) == (1000, 1000)
    assert msrs.write(TSC, 5)
    now += 7
    assert (msrs.read(TSC), msrs.tsc()) == (12, 12)
    assert msrs.write(TSC, ALL)
    now += 2
    assert msrs.tsc() == 1
    msrs.reset()
    assert msrs.tsc() == 0


def test_a_processor_without_the_register_still_counts():
    assert new("486", counter=lambda: 77).tsc() == 77


# -- registers that are kept elsewhere ------------------------------------------------------------


def test_live_register():
    kept = {EFER: 0x500, APIC_BASE: 0xFEE00900}

    def live(index):
        return Live(lambda: kept[index], lambda value: kept.__setitem__(index, value))

    msrs = new(live={index: live(index) for index in kept} | {0x9999: live(EFER)})
    assert msrs.read(EFER) == 0x500
    assert msrs.write(EFER, 0x800)
    assert kept[EFER] == 0xD00, "bits that aren't the guest's stay"
    assert not msrs.write(EFER, 1)
    assert kept[EFER] == 0xD00
    assert msrs.write(APIC_BASE, 0xFEE00000)
    assert kept[APIC_BASE] == 0xFEE00100
    assert msrs.read(0x9999) is None
    msrs.reset()
    msrs.settle()
    assert kept == {EFER: 0xD00, APIC_BASE: 0xFEE00100}
    assert not {f"{EFER:x}", f"{APIC_BASE:x}"} & msrs.save()["values"].keys()


# -- state ----------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.sampled_from(sorted(new("pentium3").registers)), st.integers(0, 0x500), st.integers(0, 0xFFFFFFFF)
)
VALUES = st.one_of(st.sampled_from([0, 1, 6, 0x800, 0xC06, 0x0606060606060606, ALL]), st.integers(0, ALL))
ACCESSES = st.lists(st.tuples(NUMBERS, st.none() | VALUES), max_size=40)


def follow(msrs, accesses):
    return [msrs.read(index) if value is None else msrs.write(index, value) for index, value in accesses]


@given(name=st.sampled_from(NAMES), before=ACCESSES, after=ACCESSES)
def test_any_access_and_a_saved_state(name, before, after):
    one, two = new(name, lambda: 9), new(name, lambda: 9)
    for answer in follow(one, before):
        assert answer is None or 0 <= answer <= ALL
    state = json.loads(json.dumps(one.save()))
    two.load(state)
    assert follow(one, after) == follow(two, after)
    assert one.save() == two.save()
    one.reset()
    assert one.save() == {"offset": -9, "values": new(name).save()["values"]}


def test_short_forms():
    msrs = new("pentium")
    assert repr(msrs) == "<MsrFile 4 registers>"
    assert repr(msrs.registers[TSC]) == "Msr(0x10 TSC)"


@pytest.mark.parametrize("name", NAMES)
def test_names_are_unique(name):
    found = [msr.name for msr in new(name).registers.values()]
    assert len(found) == len(set(found))
