# SPDX-License-Identifier: GPL-2.0-only
"""VMI calls in general: all served, arguments and results where the table says, faults at the call's site."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.hypervisor.lab import GPRS, ROM, ROM_AT, SITE, U32, Lab, call, place_call
from tests.native.guest import DATA0, DATA3, GDT, IDT, STACK, TASK, descriptor
from vmi import abi
from vmi.abi import Reloc
from vmi.hypervisor import calls
from vmi.native.cpuid import I686_APIC
from vmi.native.machine import Outcome
from vmi.rom.build import build_flavour
from vmi.rom.flavours import vmware
from vmi.rom.template import gate
from vmi.x86 import Eflags, Seg

ROM_CALLS = {row.name for row in abi.CALLS if ROM.calls[row.number][0] is not Reloc.NONE}
OFFERED = [row for row in abi.CALLS if row.name in ROM_CALLS]
SERVED = [row for row in abi.CALLS if "@gate" in vmware.FLAVOUR.template(row).source]
RETURNING = [row for row in OFFERED if row.returns and row.name not in ("Halt", "RDPMC")]  # it always faults
ABSENT, READ_ONLY, BUFFER = 0x62000, 0x63000, 0x60000
FAULT = "fault: jmp fault"
LDT_SELECTOR, FREE_ENTRY = 0x60, 0x68

WIDTH = {"u8": 0xFF, "u16": 0xFFFF}
TIMES = {"RDMSR", "RDTSC", "GetCycleCounter", "GetWallclockTime"}

# arguments that a call succeeds with; the others take 0
ARGUMENTS: dict[str, dict[str, int]] = {
    "RDMSR": {"msr": 0x10},
    "WRMSR": {"msr": 0x10, "value": 1 << 40},
    "SetGDT": {"pointer": BUFFER},
    "SetIDT": {"pointer": BUFFER + 8},
    "SetLDT": {"selector": LDT_SELECTOR},
    "SetTR": {"selector": TASK},
    "GetGDT": {"pointer": BUFFER + 16},
    "GetIDT": {"pointer": BUFFER + 16},
    "WriteGDTEntry": {"table": GDT, "index": FREE_ENTRY >> 3, "low": 0xFFFF, "high": 0xCF9300},
    "WriteLDTEntry": {"table": BUFFER, "index": 5, "low": 0xFFFF, "high": 0xCF9300},
    "WriteIDTEntry": {"table": IDT, "index": 200, "low": 0x80000, "high": 0x8E00},
    "UpdateKernelStack": {"stack_selector": DATA0, "esp0": 0x9000},
    "SetCR0": {"value": 0x80010019},
    "SetCR3": {"value": 0x20000},
    "SetDR": {"number": 2, "value": 77},
    "GetDR": {"number": 6},
    "InvalPage": {"address": 0x1234567},
    "FlushTLB": {"flags": 3},
    "SetAlarm": {"flags": 0x100, "expiry": 1 << 60, "period": 1 << 40},
    "SetPxE": {"value": 5, "entry": BUFFER + 64},
    "SetPxELong": {"value": 5 << 32, "entry": BUFFER + 64},
    "AllocatePage": {"pfn": BUFFER >> 12, "flags": abi.PageFlag.PT},
    "ReleasePage": {"pfn": BUFFER >> 12, "flags": abi.PageFlag.PT},
    "UpdatePxE": {"entry": BUFFER + 64, "flags": 1},
    "UpdatePxELong": {"entry": BUFFER + 64, "flags": 1},
    "SetLinearMapping": {"va": BUFFER, "count": 1, "pfn": BUFFER >> 12},
    "APICWrite": {"register": 0x80, "value": 0x20},
    "APICRead": {"register": 0x80},
    **{f"IN{size}": {"port": 0x3FF} for size in "BWL"},
    **{f"OUT{size}": {"port": 0x3FF, "value": 5} for size in "BWL"},
    **{
        f"{way}S{size}": {"port": 0x3FF, "buffer": BUFFER + 128, "count": 3}
        for way in ("IN", "OUT")
        for size in "BWL"
    },
}


def lab_for_calls(source: str = FAULT) -> Lab:
    """A guest behind the ROM with paging on, one page absent and one read-only, and handlers for faults."""
    handlers = {1: "fault", 6: "fault", 11: "fault", 13: "fault", 14: "fault"}
    lab = Lab(source, handlers, "paravirt", model=I686_APIC, taken=False)
    lab.page(ABSENT)
    lab.memory.put_u32(0x21000 + 4 * (READ_ONLY >> 12), READ_ONLY | 5)
    lab.memory.write(BUFFER, (0xFFF).to_bytes(2, "little") + GDT.to_bytes(4, "little"))
    lab.memory.write(BUFFER + 8, (0x7FF).to_bytes(2, "little") + IDT.to_bytes(4, "little"))
    lab.describe(LDT_SELECTOR, descriptor(0x5000, 0x3F, 0x82, 0))
    lab.take()
    return lab


def placed(row: abi.Call, values: dict[str, int]) -> tuple[dict[str, int], list[int]]:
    """Argument values by the register, or in stack order, that the table says."""
    registers: dict[str, int] = {}
    stack: dict[int, int] = {}
    for argument in row.args:
        value = values.get(argument.name, 0)
        for number, place in enumerate(argument.places):
            word = value >> 32 * number & 0xFFFFFFFF
            if place.startswith("stack"):
                stack[int(place[5:])] = word
            else:
                registers[place] = word
    return registers, [stack[i] for i in sorted(stack)]


def test_every_gate_of_the_rom_is_served() -> None:
    handlers = calls.load_all()
    assert set(handlers) == {row.number for row in SERVED}
    assert {row.name for row in SERVED} > {"IRET", "SYSEXIT", "Halt", "SetCR3", "SetAlarm"}


def test_a_handler_is_registered_once() -> None:
    with pytest.raises(ValueError, match=r"^CLTS has two handlers$"):
        calls.serves("CLTS")(lambda _context: None)


@pytest.mark.parametrize("row", RETURNING, ids=lambda row: row.name)
def test_a_call_keeps_what_the_table_says(row: abi.Call) -> None:
    """With registers filled one way and then the other way, so that no value is kept by chance."""
    registers, stack = placed(row, ARGUMENTS.get(row.name, {}))
    results = []
    for fill in (0x5A5AA5A5, 0xA5A55A5A):
        lab = lab_for_calls()
        filled = {name: fill for name in GPRS if name != "esp"} | registers
        lab.cpu.eflags = 0x8D7
        lab.memory.write(STACK - 0x200, b"\x5a" * 0x200)
        left = call(lab, row.name, *stack, **filled)
        assert left.returned and left.registers["esp"] == STACK - 4 * len(stack), row
        for name in row.preserves:
            assert name == "esp" or left.registers[name] == filled[name], (row, name)
        assert [lab.u32(left.registers["esp"] + 4 * i) for i in range(len(stack))] == stack
        assert lab.cpu.cpl == 1 and not lab.cpu.eflags & Eflags.DF
        assert lab.virtual_if == (row.name == "EnableInterrupts")
        below = lab.memory.read(STACK - 0x200, 0x200 - 4 * len(stack) - 4)
        assert not below[:-32].strip(b"\x5a"), "more than 32 bytes of the stack below the call"
        assert lab.cpu.segment(Seg.DS).selector == DATA0
        places = [(place, WIDTH.get(result.type, U32)) for result in row.results for place in result.places]
        results.append([left.registers[place] & width for place, width in places])
    assert results[0] == results[1] or row.name in TIMES


@pytest.mark.parametrize("mask", [0, 0x200])
@pytest.mark.parametrize(
    "row", [row for row in RETURNING if row.group != "interrupts"], ids=lambda row: row.name
)
def test_a_call_leaves_the_interrupt_flag_alone(row: abi.Call, mask: int) -> None:
    lab = lab_for_calls()
    lab.set_word(vmware.VIF, mask)
    registers, stack = placed(row, ARGUMENTS.get(row.name, {}))
    assert call(lab, row.name, *stack, **registers).returned
    assert lab.word(vmware.VIF) == mask


def faulted(lab: Lab, name: str, *stack: int, **registers: int) -> tuple[int, list[int]]:
    """Make a call that faults; gives CR2 and the frame: error code (if any), EIP, CS, EFLAGS."""
    left = call(lab, name, *stack, **registers)
    assert not left.returned and lab.cpu.eip == lab.labels["fault"]
    for register, value in registers.items():
        assert left.registers[register] == value, "a faulting call changes no register"
    return lab.cpu.cr2, [lab.u32(left.registers["esp"] + 4 * i) for i in range(4)]


@pytest.mark.parametrize(
    ("name", "pointer", "address", "error"),
    [
        ("SetGDT", ABSENT, ABSENT, 0),
        ("SetIDT", ABSENT - 3, ABSENT, 0),
        ("GetGDT", ABSENT + 0x10, ABSENT + 0x10, 2),
        ("GetIDT", ABSENT - 4, ABSENT, 2),
        ("GetGDT", READ_ONLY, READ_ONLY, 3),
        ("SetGDT", 0xFFFFFFFE, 0xFFFFFFFE, 0),
    ],
)
def test_a_bad_pointer_is_a_page_fault_at_the_call(name: str, pointer: int, address: int, error: int) -> None:
    lab = lab_for_calls()
    before = lab.cpu.gdt, lab.memory.read(READ_ONLY, 16)
    cr2, frame = faulted(lab, name, eax=pointer)
    assert (cr2, frame) == (address, [error, SITE, 0x08, frame[3]])
    assert lab.cpu.esp == STACK - 16, "the return address is gone, the frame is on top"
    assert before == (lab.cpu.gdt, lab.memory.read(READ_ONLY, 16))
    stored = 2 if address - pointer >= 2 and error else 0  # the limit, as by the instruction
    assert not lab.memory.read(ABSENT - 16, 16).replace(b"\xff\x07", b"", stored // 2).strip(b"\0")


@pytest.mark.parametrize("name", ["WriteGDTEntry", "WriteLDTEntry", "WriteIDTEntry"])
def test_an_entry_that_can_not_be_written_whole_is_not_written(name: str) -> None:
    lab = lab_for_calls()
    cr2, frame = faulted(lab, name, 0xCF9300, eax=ABSENT - 4, edx=0, ecx=0xFFFF)
    assert (cr2, frame[:2]) == (ABSENT, [2, SITE])
    assert lab.u32(ABSENT - 4) == 0


def test_a_stack_argument_that_is_not_there() -> None:
    lab = lab_for_calls()
    lab.cpu.eax, lab.cpu.edx, lab.cpu.ecx = GDT, FREE_ENTRY >> 3, 0xFFFF
    place_call(lab, "WriteGDTEntry")
    lab.cpu.esp, lab.cpu.eip = ABSENT, SITE
    assert lab.step_to(lab.labels["fault"])
    # the frame goes where the return address was
    assert (lab.cpu.cr2, lab.cpu.eip) == (ABSENT, lab.labels["fault"])
    assert [lab.u32(lab.cpu.esp + 4 * i) for i in range(2)] == [0, SITE]
    assert lab.memory.read(GDT + FREE_ENTRY, 8) == bytes(8)


@pytest.mark.parametrize(
    ("name", "registers", "vector_error"),
    [
        ("SetCR0", {"eax": 0x80000000}, 0),
        ("SetCR0", {"eax": 0x20000001}, 0),
        ("SetCR4", {"eax": 0x20}, 0),
        ("SetCR4", {"eax": 0x80000000}, 0),
        ("SetLDT", {"eax": 0x08}, 0x08),
        ("SetLDT", {"eax": 0x7FF8}, 0x7FF8),
        ("SetTR", {"eax": 0}, 0),
        ("SetTR", {"eax": DATA3}, 0x20),
        ("SetTR", {"eax": LDT_SELECTOR}, LDT_SELECTOR),
        ("RDMSR", {"ecx": 0x174}, 0),
        ("WRMSR", {"ecx": 0x1B, "edx": 0x100, "eax": 0}, 0),
        ("WRMSR", {"ecx": 0x174}, 0),
        ("RDPMC", {"ecx": 0}, 0),
        ("RDPMC", {"ecx": 0x40000001}, 0),
    ],
)
def test_a_bad_argument_is_a_protection_fault_at_the_call(
    name: str, registers: dict[str, int], vector_error: int
) -> None:
    lab = lab_for_calls()
    _, frame = faulted(lab, name, **registers)
    assert frame[:3] == [vector_error, SITE, 0x08]


def test_a_call_that_nobody_serves_ends_the_run() -> None:
    templates = {**vmware.FLAVOUR.templates, "WBINVD": gate()}
    rom = build_flavour(replace(vmware.FLAVOUR, templates=templates))
    lab = Lab(
        f"start: call {ROM_AT + rom.offset('WBINVD'):#x}\nmov al, 1\nout 0xf4, al", mode="paravirt", rom=rom
    )
    end = lab.run()
    assert end.outcome is Outcome.CALL_NOT_SERVED
    number = abi.BY_NAME["WBINVD"].number
    assert end.reason == (
        f"the guest made the VMI call WBINVD (number {number}), which this hypervisor does not serve"
    )
    assert lab.domain is not None and lab.domain.calls == {"VMI_Init": 1, "WBINVD": 1}
