# SPDX-License-Identifier: GPL-2.0-only
"""Taking a guest over: VMI_Init, gates, breakpoints, and what a guest's own tables may do."""

from __future__ import annotations

import struct

import pytest

from tests.hypervisor.lab import LANDING, ROM, ROM_AT, Lab, call, exit_value
from tests.native.guest import CODE0, CODE3, DATA0, GDT, IDT, STACK, Guest, gate
from vmi import abi
from vmi.errors import RomError
from vmi.hypervisor.full import NoRom, take_over
from vmi.hypervisor.personalities import PERSONALITIES, attach
from vmi.hypervisor.personalities.vmware import Vmware
from vmi.memory import PhysicalMemory
from vmi.native.cpuid import I686_APIC
from vmi.native.machine import Machine, Outcome
from vmi.rom import layout
from vmi.rom.build import build
from vmi.rom.flavours import vmware
from vmi.x86 import Seg

DONE = "mov al, 1\nout 0xf4, al"
FAULT = "fault: hlt"


def standing_by(source: str = f"start: nop\n{FAULT}") -> Lab:
    """A guest on ring 0 with the ROM in memory, and the hypervisor behind it."""
    handlers = {13: "fault", 11: "fault", 6: "fault"} if FAULT in source else {}
    return Lab(source, handlers, "paravirt", taken=False)


# -- VMI_Init ----------------------------------------------------------------------------------


def test_init_compresses_the_rings_and_keeps_the_rest() -> None:
    lab = standing_by()
    cpu = lab.cpu
    for number in (1, 2, 3, 5, 6, 7):
        cpu.set_gpr(number, 0x1000 + number)
    cpu.set_segment(Seg.FS, cpu.segment(Seg.FS).__class__(0, 0, 0, 0))
    cpu.eflags = 0x40003
    segments = [cpu.segment(seg) for seg in Seg]
    tables = cpu.gdt, cpu.idt, cpu.tr, cpu.ldt, cpu.cr(0), cpu.cr(3), cpu.cr(4)
    assert lab.initialise() == 0
    assert [cpu.gpr(number) for number in (1, 2, 3, 5, 6, 7)] == [
        0x1001,
        0x1002,
        0x1003,
        0x1005,
        0x1006,
        0x1007,
    ]
    assert cpu.esp == STACK and cpu.cpl == 1
    assert tables == (cpu.gdt, cpu.idt, cpu.tr, cpu.ldt, cpu.cr(0), cpu.cr(3), cpu.cr(4))
    for seg, before in zip(Seg, segments, strict=True):
        after = cpu.segment(seg)
        assert (after.base, after.limit) == (before.base, before.limit)
        assert after.selector == (before.selector | 1 if seg in (Seg.CS, Seg.SS) else before.selector)
    assert cpu.segment(Seg.FS).flags == 0, "a null segment stays null"
    assert cpu.system_flags & 0x3202 == 0x202 and cpu.eflags & 0x40001 == 0x40001
    assert lab.word(vmware.VIF) == 0 and not lab.virtual_if
    assert repr(lab.domain) == "<Domain vmware active>"


def test_init_keeps_an_interrupt_flag_that_is_on() -> None:
    lab = standing_by()
    lab.cpu.eflags = 0x3202
    assert lab.initialise() == 0
    assert lab.word(vmware.VIF) == 0x200 and lab.word(vmware.IOPL) == 0x3000 and lab.virtual_if


def test_a_second_init_is_refused() -> None:
    lab = standing_by()
    assert lab.initialise() == 0
    assert lab.initialise() == 1
    assert lab.cpu.cpl == 1 and lab.cpu.esp == STACK
    assert lab.domain is not None and lab.domain.calls == {"VMI_Init": 2}


def test_init_in_real_mode_is_refused() -> None:
    """There is no ring to leave; the native paths go on."""
    lab = standing_by("start: nop\nreal: nop")
    lab.real_mode("real")
    lab.memory.write(0x20000, ROM.image)
    cpu = lab.cpu
    cpu.set_segment(Seg.CS, cpu.segment(Seg.CS).__class__(0x2000, 0x20000, 0xFFFF, 0x9B00))
    cpu.eip = layout.gate_offset(vmware.INIT_GATE)
    before = lab.memory.read(0x20000, len(ROM.image))
    cpu.run(1)
    assert cpu.eax == 1 and lab.domain is not None and not lab.domain.active
    assert lab.memory.read(0x20000, len(ROM.image)) == before


@pytest.mark.parametrize("damage", [0, 0x100, 0x400, 0x1FFF])
def test_a_copy_that_is_not_exact_is_none(damage: int) -> None:
    lab = standing_by()
    lab.memory.write(IDT + 8 * 0x82, gate(CODE0, lab.labels["fault"]))
    at = ROM_AT + damage
    lab.cpu.write_memory(at, bytes([lab.memory.read(at, 1)[0] ^ 1]))
    lab.push(LANDING)
    lab.cpu.eip = ROM_AT + abi.INIT_OFFSET
    assert lab.step_to(lab.labels["fault"]), "an INT like any other"
    assert lab.domain is not None and not lab.domain.active and lab.cpu.cpl == 0


def test_init_is_not_for_user_code() -> None:
    lab = standing_by()
    lab.user("start")
    lab.push(LANDING)
    lab.cpu.eip = ROM_AT + abi.INIT_OFFSET
    lab.cpu.run(2)
    assert lab.domain is not None and not lab.domain.active
    assert lab.cpu.eip == lab.labels["fault"]


@pytest.mark.parametrize("at", [ROM_AT, ROM_AT + 0x800, 0xC0000, 0xC8000])
def test_the_rom_may_lie_anywhere(at: int) -> None:
    """In the bay too, where it is not copied: its data page is written all the same."""
    lab = standing_by("start: nop\n@cli\n@sti\nhlt")
    lab.cpu.write_memory(at, ROM.image)
    assert lab.initialise(at) == 0
    lab.push(LANDING)
    lab.cpu.eip = at + ROM.offset("EnableInterrupts")
    assert lab.step_to(LANDING) and lab.virtual_if
    assert ROM.data_page is not None and lab.u32(at + ROM.data_page) == 0x200


def test_code_in_the_bay_is_not_writable() -> None:
    lab = standing_by("start: mov dword ptr [0xc0400], 0\nhlt")
    lab.cpu.write_memory(0xC0000, ROM.image)
    lab.initialise(0xC0000)
    lab.cpu.eip = lab.labels["start"]
    lab.cpu.run(1)
    assert lab.memory.read(0xC0000, 0x2000) == ROM.image[:0x2000]


def test_a_data_page_in_the_bay_costs_no_more_than_one_elsewhere() -> None:
    """The first store opens it, and its neighbours stay ROM."""
    assert ROM.data_page is not None
    page = 0xC0000 + ROM.data_page
    names = "EnableInterrupts", "DisableInterrupts"
    calls = "\n".join(f"call {0xC0000 + ROM.offset(name):#x}" for name in names)
    around = f"mov dword ptr [{page - 4:#x}], 0\nmov dword ptr [{page + 0x1000:#x}], 0"
    lab = standing_by(f"start: mov ecx, 1000\nagain: {calls}\ndec ecx\njnz again\n{around}\n{DONE}")
    lab.cpu.write_memory(0xC0000, ROM.image.ljust(0x8000, b"\xff"))
    lab.initialise(0xC0000)
    lab.cpu.eip = lab.labels["start"]
    assert lab.domain is not None
    stores, write = [], lab.domain.memory_write
    lab.domain.memory_write = lambda *store: stores.append(store[0]) or write(*store)  # type: ignore[func-returns-value, method-assign]
    assert exit_value(lab) == 1
    assert [at for at in stores if at & -4096 == page] == stores[:1]
    assert stores[1:] == [page - 4, page + 0x1000]
    assert lab.memory.read(page - 4, 4) == ROM.image[ROM.data_page - 4 : ROM.data_page]
    assert lab.u32(page + 0x1000) == 0xFFFFFFFF and not lab.virtual_if


def test_a_guest_that_never_asks_runs_natively() -> None:
    lab = standing_by(f"start: cli\nsti\nint 0x82\nback: {DONE}")
    lab.memory.write(IDT + 8 * 0x82, gate(CODE0, lab.labels["back"]))
    assert exit_value(lab) == 1
    assert lab.domain is not None and lab.domain.calls == {} and lab.cpu.cpl == 0
    assert repr(lab.domain) == "<Domain vmware waiting for VMI_Init>"


# -- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        vmware.INIT_GATE,
        vmware.PENDING_GATE,
        *(call.number for call in abi.CALLS if ROM.image[layout.gate_offset(call.number)] == 0xCD),
    ],
)
def test_no_gate_is_for_user_code(number: int) -> None:
    lab = Lab(f"start: nop\n{FAULT}", {13: "fault"}, "paravirt")
    assert lab.domain is not None
    before = dict(lab.domain.calls)
    lab.user("start", 0x202)
    lab.cpu.eip = ROM_AT + layout.gate_offset(number)
    lab.cpu.run(1)
    assert lab.cpu.eip == lab.labels["fault"] and lab.cpu.cpl == 1
    frame = [lab.u32(lab.cpu.esp + 4 * i) for i in range(5)]
    assert frame[:3] == [0x82 * 8 + 2, ROM_AT + layout.gate_offset(number), CODE3]
    assert lab.domain.calls == before


def test_the_gates_interrupt_elsewhere_is_the_guests() -> None:
    lab = Lab(f"start: int 0x82\nback: {DONE}", mode="paravirt")
    lab.memory.write(IDT + 8 * 0x82, gate(CODE0, lab.labels["back"]))
    assert exit_value(lab) == 1
    assert lab.u32(lab.cpu.esp) == lab.labels["back"]


def test_a_gate_that_stands_for_nothing() -> None:
    lab = Lab(f"start: nop\n{FAULT}", {13: "fault"}, "paravirt")
    at = ROM_AT + layout.gate_offset(vmware.PENDING_GATE + 1)
    lab.cpu.write_memory(at, bytes.fromhex("cd82"))
    lab.cpu.eip = at
    lab.cpu.run(1)
    assert lab.cpu.eip == lab.labels["fault"]


# -- what a kernel may not do, and what it may -------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "paravirt"])
def test_leaving_protected_mode_ends_the_run(mode: str) -> None:
    lab = Lab("start: mov eax, cr0\nand al, 0xfe\nmov cr0, eax\nhlt", mode=mode)
    end = lab.run()
    assert (end.outcome, end.reason) == (
        Outcome.CRASHED,
        "the guest kernel left protected mode, which this hypervisor does not serve",
    )


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("mov eax, 0x80000000\nx: mov cr0, eax", 0),
        ("mov eax, 0x20000011\nx: mov cr0, eax", 0),
        ("mov eax, 0x20\nx: mov cr4, eax", 0),
        ("mov ecx, 0x1b\nx: rdmsr", 0),
        ("mov ecx, 0x10\nx: wrmsr", 0),
        ("xor eax, eax\nx: ltr ax", 0),
    ],
)
def test_what_ring_0_is_refused_by_the_manual(code: str, error: int) -> None:
    """The bare machine's CPU core accepts all of these."""
    lab = Lab(f"start: {code}\nhlt\nfault: {DONE}", {13: "fault"}, "full")
    assert exit_value(lab) == 1
    assert [lab.u32(lab.cpu.esp + 4 * i) for i in range(3)] == [error, lab.labels["x"], CODE0]


def test_the_time_stamp_counter_is_readable_in_every_way() -> None:
    source = f"start: rdtsc\nmov ebx, eax\nmov ecx, 0x10\nrdmsr\nmov esi, eax\n{DONE}"
    lab = Lab(source, mode="full", model=I686_APIC)
    lab.cpu.set_cr(4, 4)  # TSD: RDTSC is refused outside ring 0
    assert exit_value(lab) == 1
    assert lab.cpu.ebx < lab.cpu.esi <= lab.machine.msr.tsc()
    lab = Lab("start: nop", mode="paravirt")
    lab.cpu.set_cr(4, 4)
    assert call(lab, "RDTSC").returned


def test_port_calls_reach_the_ports() -> None:
    lab = Lab("start: nop", mode="paravirt")
    assert call(lab, "OUTB", eax=0x5A, edx=0x3FF).returned
    assert call(lab, "INB", eax=0xFFFFFF00, edx=0x3FF).registers["eax"] == 0xFFFFFF5A
    lab.memory.write(0x7000, bytes(range(4)))
    left = call(lab, "OUTSB", esi=0x7000, edx=0x3FF, ecx=4).registers
    assert (left["esi"], left["ecx"]) == (0x7004, 0)


def test_the_guest_ends_itself() -> None:
    for name, eax, outcome, reason in (
        ("Reboot", 0, Outcome.RESET, "the guest asked the hypervisor for a soft reboot"),
        ("Reboot", 1, Outcome.RESET, "the guest asked the hypervisor for a hard reboot"),
        ("Shutdown", 0, Outcome.SHUTDOWN, "the guest asked the hypervisor to switch the machine off"),
    ):
        lab = Lab(f"start: mov eax, {eax}\ncall {name}\nmov dword ptr [0x7000], 1\nhlt", mode="paravirt")
        end = lab.run()
        assert (end.outcome, end.reason, lab.u32(0x7000)) == (outcome, reason, 0)


# -- personalities -----------------------------------------------------------------------------


def test_a_rom_finds_its_personality_by_its_name() -> None:
    machine = Machine(ram=1 << 20)
    assert attach(machine, build("native").image) is None
    assert attach(machine, bytes(4096)) is None
    domain = attach(machine, ROM.image)
    assert domain is not None and machine.monitor is domain
    assert Vmware in PERSONALITIES


@pytest.mark.parametrize("offset", [layout.CALL_TABLE, layout.CALL_TABLE + 10, layout.CALL_TABLE + 12])
def test_a_rom_that_is_not_what_it_calls_itself(offset: int) -> None:
    image = bytearray(ROM.image)
    image[offset] ^= 0xFF
    with pytest.raises(RomError) as caught:
        attach(Machine(ram=1 << 20), bytes(image))
    assert str(caught.value) == "a ROM of flavour vmware must have gates, and a data page at its end"


def test_no_copy_is_in_use_before_init() -> None:
    rom = Vmware(ROM.image, PhysicalMemory(1 << 20))
    with pytest.raises(ValueError, match=r"^no copy of the ROM is in use$"):
        rom.gate(0x1000)
    assert not rom.adopt(0) and not rom.adopt((1 << 20) - 4), "a copy can't begin before or end behind memory"


def test_full_virtualization_has_no_rom() -> None:
    rom = NoRom()
    assert not rom.adopt(0) and rom.gate(0) is None and not rom.holds_code(0) and not rom.holds_data(0)
    rom.set_iopl(0x3000)
    rom.set_pending(True)
    assert not rom.get()
    guest = Guest("start: nop")
    assert repr(take_over(guest.machine)) == "<Domain full active>"


def test_descriptors_are_raised_in_place_and_only_those_of_ring_0() -> None:
    lab = standing_by()
    before = lab.memory.read(GDT, 0x1000)
    lab.take()
    for at in range(0, 0x1000, 8):
        low, high = struct.unpack_from("<II", before, at)
        kernel = high & 0xF000 == 0x9000
        expected = high | 0x2000 if kernel and at else high
        assert struct.unpack("<II", lab.memory.read(GDT + at, 8)) == (low, expected), hex(at)
    assert lab.memory.read(GDT + DATA0 + 5, 1)[0] >> 5 & 3 == 1


@pytest.mark.parametrize("mode", ["full", "paravirt"])
def test_what_ring_0_is_refused_too_is_no_trap(mode: str) -> None:
    lab = Lab(
        f"start: mov eax, 0x7ff8\nmov gs, ax\n{DONE}\nfault: mov al, 2\nout 0xf4, al", {13: "fault"}, mode
    )
    assert exit_value(lab) == 2
    assert lab.u32(lab.cpu.esp) == 0x7FF8
    assert lab.machine.exits["#GP"] == 1
    assert not any(reason.startswith("privileged") for reason in lab.machine.exits)
