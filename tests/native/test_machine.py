# SPDX-License-Identifier: GPL-2.0-only
"""The machine as a whole: time, interrupts, ends, and that the same input gives the same run."""

from __future__ import annotations

import struct

import pytest

from tests.native.guest import (
    DONE,
    EOI,
    MS,
    PIC,
    STACK,
    Guest,
    timed,
    timer,
)  # fmt: skip
from vmi.errors import BadInput, RomError
from vmi.native.interrupts import Origin
from vmi.native.machine import EVENT_NS, End, Machine, Outcome
from vmi.native.registers import TableRegister
from vmi.native.traffic import PORT_NS
from vmi.native.wiring import Stop
from vmi.x86 import Seg

# -- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "value"), [("mov al,0x10 | out 0xf4,al", 0x10), ("mov eax,0x12345 | out 0xf4,eax", 0x12345)]
)
def test_debug_exit(source, value):
    guest = Guest(f"{source} | after: jmp after")
    end = guest.run()
    assert end == End(Outcome.DEBUG_EXIT, f"the guest ended itself with debug-exit value {value:#x}", value)
    assert guest.cpu.eip == guest.labels["after"], "nothing of the guest runs behind its end"


@pytest.mark.parametrize(
    ("source", "who"),
    [
        ("mov al,0xfe | out 0x64,al", "the keyboard controller"),
        ("mov al,3 | out 0x92,al", "port 92h"),
        ("mov dx,0xcf9 | mov al,2 | out dx,al | mov al,6 | out dx,al", "port CF9h"),
    ],
)
def test_reset(source, who):
    guest = Guest(f"{source} | after: jmp after")
    assert guest.run() == End(Outcome.RESET, f"the guest reset the machine through {who}")
    assert guest.cpu.eip == guest.labels["after"]


@pytest.mark.parametrize("target", [0x200000, 0xABCDE000, 0xFFFFFFF0])
def test_jump_to_nowhere(target):
    guest = Guest(f"mov eax,{target} | jmp eax")
    assert guest.run() == End(Outcome.CRASHED, f"the guest jumped to {target:#x}, where no memory is")


def test_jump_to_nowhere_through_page_tables():
    guest = Guest("mov eax,0x5000 | jmp eax")
    guest.page()
    guest.memory.put_u32(0x21000 + 4 * 5, 0x80000007)
    assert guest.run() == End(Outcome.CRASHED, "the guest jumped to 0x5000, where no memory is")


def test_instruction_over_the_end_of_memory():
    guest = Guest(".byte 0xb8", at=0x1FFFFE)
    end = guest.run()
    assert end == End(Outcome.CRASHED, "the guest's instruction at 0x1ffffe goes on where no memory is")


def test_instruction_that_the_emulator_cannot_do(monkeypatch):
    guest = Guest("nop")
    guest.cpu.failure = 21
    monkeypatch.setattr(guest.cpu, "run", lambda budget, **_: Stop.FAILED)
    reason = "the guest's instruction at 0x10000 is none that the CPU emulator can do (its error 21)"
    assert guest.run() == End(Outcome.CRASHED, reason)


def test_triple_fault():
    guest = Guest("nop | ud2")
    guest.cpu.idt = TableRegister(0, 0)
    assert guest.run() == End(Outcome.TRIPLE_FAULT, "the guest triple-faulted at 0x8:0x10001")


def test_nothing_happens_behind_an_end():
    """The instruction behind the last one may not be fetched; that fault belongs to the next run."""
    guest = Guest("nop | h: hlt", {14: "h"})
    guest.machine.finish(Outcome.SHUTDOWN, "over")
    guest.machine.exception(14, False, 0)
    assert guest.machine.exits == {}
    assert guest.cpu.esp == STACK


def test_triple_fault_whose_next_instruction_can_not_be_fetched_either():
    guest = Guest("mov eax,0x5000 | jmp eax")
    guest.cpu.idt = TableRegister(0, 0)
    guest.page(0x5000)
    assert guest.run() == End(Outcome.TRIPLE_FAULT, "the guest triple-faulted at 0x8:0x5000")
    assert guest.machine.exits == {"#PF": 1}


def test_first_reason_counts():
    guest = Guest("l: jmp l")
    guest.machine.finish(Outcome.SHUTDOWN, "first")
    guest.machine.finish(Outcome.CRASHED, "second")
    assert guest.machine.end == End(Outcome.SHUTDOWN, "first")


def test_console_listener_may_end_the_run_and_it_can_go_on():
    guest = Guest("mov dx,0x3f8 | mov al,65 | l: out dx,al | inc al | jmp l")
    machine = guest.machine
    machine.console.add_listener(
        lambda byte: machine.finish(Outcome.CONSOLE, "the console showed C") if byte == ord("C") else None
    )
    assert guest.run() == End(Outcome.CONSOLE, "the console showed C")
    assert machine.console.data.endswith(b"C")
    before = machine.instructions
    assert guest.machine.run(1000).outcome is Outcome.TIMEOUT
    assert machine.instructions > before


# -- memory and ports ---------------------------------------------------------------------------


def test_nothing_above_memory():
    guest = Guest(f"mov eax,[0x200000] | mov bl,[0xe0000000] | mov [0x200000],eax | {DONE}")
    guest.exit_value()
    assert guest.cpu.ebx == 0xFF
    assert guest.machine.exits == {"device memory read": 2, "device memory write": 1, "port write": 1}


def test_rom_takes_no_writes():
    guest = Guest(f"mov byte ptr [0xc8000],1 | mov dword ptr [0xf0000],2 | {DONE}")
    guest.exit_value()
    assert guest.machine.exits["ROM write"] == 2
    assert guest.memory.read(0xC8000, 1) + guest.memory.read(0xF0000, 4) == b"\xff" * 5


def test_ports_of_nobody_read_as_ones():
    guest = Guest(f"mov dx,0x5555 | in eax,dx | mov esi,eax | out dx,al | {DONE}")
    guest.exit_value()
    assert guest.cpu.esi == 0xFFFFFFFF
    assert guest.machine.board.ports.unclaimed_reads.total() == 4
    assert guest.machine.board.ports.unclaimed_writes[0x5555] == 1


def test_events_are_counted_by_reason():
    source = f"int 0x30 | ud2 | {DONE} | h: add dword ptr [esp],2 | i: iretd"
    guest = Guest(source, {6: "h", 0x30: "i"})
    guest.exit_value()
    assert guest.machine.exits == {"software interrupt": 1, "#UD": 1, "port write": 1}
    guest.machine.count_fault(9)
    assert guest.machine.exits["exception 9"] == 1


# -- the ROM bay and the loader -----------------------------------------------------------------


def test_rom_bay():
    machine = Machine(ram=2 << 20)
    assert machine.plug(b"\x55\xaa" + bytes(3000)) == 0xC0000
    assert machine.plug(b"second") == 0xC1000
    assert machine.plug(bytes(2048)) == 0xC1800
    assert machine.memory.read(0xC1000, 6) == b"second"
    with pytest.raises(RomError, match=r"^the ROM bay has 122880 bytes left, the ROM needs 131072$"):
        machine.plug(bytes(0x20000))
    assert machine.plug(bytes(122880)) == 0xC2000


def multiboot(code, flags=0x10003):
    header = struct.pack("<3I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    return header + struct.pack("<5I", 0x100000, 0x100000, 0, 0, 0x100020) + code


def test_multiboot_entry_state():
    machine = Machine(ram=2 << 20)
    state = machine.load(multiboot(b"\xf4"), append="a=b")
    cpu = machine.cpu
    assert (cpu.eip, cpu.eax, cpu.ebx) == (state.eip, 0x2BADB002, state.ebx) == (0x100020, 0x2BADB002, 0x9500)
    assert cpu.cr(0) == 0x11
    assert cpu.cpl == 0
    assert cpu.eflags == 2
    assert {cpu.segment(seg).base for seg in Seg} == {0}
    assert machine.memory.read(machine.memory.u32(0x9500 + 16), 11) == b"kernel a=b\0"
    assert machine.memory.read(0x413, 2) == (639).to_bytes(2, "little"), "the firmware's data area"
    assert machine.run(MS).reason == "the guest halted for ever at 0x100021"


def test_firmware_s_interrupt_controller_is_in_force():
    machine = Machine(ram=2 << 20)
    machine.load(multiboot(b"\xe4\x21\xf4"))  # in al, 21h
    machine.run(MS)
    assert machine.cpu.eax & 0xFF == 0xB8


def test_kernel_that_is_none():
    sentence = (
        "the kernel has no Linux or multiboot header and is no ELF file: "
        "if it is a flat binary, ask for protocol 'flat'"
    )
    with pytest.raises(BadInput, match=f"^{sentence}$"):
        Machine(ram=2 << 20).load(b"nothing")


# -- monitors -----------------------------------------------------------------------------------


class Watcher:
    """A monitor that lets everything through, or takes what a test says."""

    def __init__(self, machine, *, takes=(), retry=0):
        self.machine, self.takes, self.retry = machine, takes, retry
        self.seen, self.waits, self.calls = [], [], ()

    def event(self, event):
        self.seen.append((event.vector, event.origin))
        return event.vector in self.takes

    def call_out(self, vector):
        return vector in self.calls

    def accepts_interrupts(self):
        return False

    def interrupt_waits(self, waits):
        self.waits.append(waits)

    def retry_after(self):
        return self.retry

    def deliver(self, event):
        self.machine.delivery.deliver(event)


def test_monitor_sees_events_first():
    guest = Guest(f"int 0x30 | ud2 | h: {DONE}", {6: "h"})
    monitor = guest.machine.monitor = Watcher(guest.machine, takes=(0x30,))
    guest.exit_value()
    assert monitor.seen == [(0x30, Origin.SOFTWARE), (6, Origin.EXCEPTION)]
    assert guest.machine.exits == {"#UD": 1, "port write": 1}


def test_a_call_out_is_no_event():
    guest = Guest(f"int 0x30 | {DONE}")
    monitor = guest.machine.monitor = Watcher(guest.machine)
    monitor.calls = (0x30,)
    guest.exit_value()
    assert monitor.seen == [] and guest.machine.exits == {"port write": 1}
    assert guest.machine.clock.now() == guest.machine.instructions * 10 + EVENT_NS + PORT_NS


@pytest.mark.parametrize(("retry", "runs"), [(1, 1000), (100, 1), (None, 1)])
def test_monitor_says_when_an_interrupt_is_offered_again(retry, runs):
    guest = timed(f"{timer(2)} | l: jmp l")
    monitor = guest.machine.monitor = Watcher(guest.machine, retry=retry)
    guest.machine.run(100_000)
    assert monitor.waits.count(True) >= runs


def test_monitor_accepts_an_interrupt():
    guest = timed(f"{timer(2)} | l: jmp l | h: {DONE}")
    monitor = guest.machine.monitor = Watcher(guest.machine)
    monitor.accepts_interrupts = lambda: guest.cpu.eip == guest.labels["l"]
    assert guest.exit_value() == 1
    assert guest.machine.exits["interrupt"] == 1


# -- the same run -------------------------------------------------------------------------------

BUSY = (
    f"{PIC} | {timer(700, 0x34)} | sti | l: add eax,[0x4000] | rol eax,3 | xor [0x4004],eax | push eax"
    " | mov dx,0x3f8 | out dx,al | pop eax | inc dword ptr [0x4000] | rdtsc | xor ebx,eax | jmp l"
    f" | h: push eax | {EOI} | inc esi | pop eax | iretd"
)


def fingerprint(guest):
    machine = guest.machine
    registers = [guest.cpu.gpr(n) for n in range(8)]
    return (
        machine.console.data, machine.instructions, machine.clock.now(), machine.memory.sha256(), registers,
        machine.exits, machine.board.ports.save(),
    )  # fmt: skip


def test_same_input_same_run():
    runs = []
    for _ in range(2):
        guest = Guest(BUSY, {0x20: "h"})
        guest.run(20)
        assert guest.cpu.esi > 30
        runs.append(fingerprint(guest))
    assert runs[0] == runs[1]


def test_two_machines_in_one_process_do_not_influence_each_other():
    alone = Guest(BUSY, {0x20: "h"})
    for _ in range(40):
        alone.machine.run(MS // 2)
    first, second = Guest(BUSY, {0x20: "h"}), Guest("l: inc eax | int 0x30 | jmp l | h: iretd", {0x30: "h"})
    for _ in range(40):
        first.machine.run(MS // 2)
        second.machine.run(MS // 2)
    assert fingerprint(first) == fingerprint(alone)
    assert second.cpu.eax > 1000


def test_slices_are_told_about_and_change_nothing():
    whole = Guest(BUSY, {0x20: "h"})
    whole.run(20)
    told = []
    watched = Guest(BUSY, {0x20: "h"})
    watched.machine.run(20 * MS, lambda: told.append(watched.machine.instructions))
    assert len(told) > 10
    assert fingerprint(watched) == fingerprint(whole)


def test_memory_size_shows_in_the_name():
    assert repr(Machine(ram=2 << 20)) == "<Machine 2 MiB qemu32 at 0 ns>"
