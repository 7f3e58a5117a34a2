# SPDX-License-Identifier: GPL-2.0-only
"""Checkpoints of whole machines: each run from one is the same run, to the byte, and so is what it leaves."""

from __future__ import annotations

import random

import pytest

from tests.native import hostile
from tests.native.guest import CODE, DONE, EOI, MS, PIC, Guest, timer
from tests.native.test_snapshot import COUNTER, WRITER, WRITTEN, fingerprint, sample
from vmi import samples
from vmi.errors import UsageError
from vmi.native import cpu_state, page_image
from vmi.native.cpuid import I686_APIC
from vmi.native.disk import SECTOR, Disk, open_image
from vmi.native.keyboard import text
from vmi.native.machine import End, Machine, Outcome
from vmi.native.pagetable_watch import PageTableWatch
from vmi.rom.assemble import assemble


def whole(machine: Machine) -> dict[str, object]:
    """All that two machines could be told by."""
    disks = [disk and disk.overlay() for disk in machine.disks]
    counts = machine.board.stats()
    return {**fingerprint(machine), "cpu": cpu_state.save(machine.cpu), "disks": disks, "counts": counts}


def run(machine: Machine, spans: list[int]) -> list[tuple[End, dict[str, object]]]:
    """What there is to tell after each of some runs, one after the other."""
    return [(machine.run(span), whole(machine)) for span in spans]


def prove(machine: Machine, *spans: int, again: int = 2) -> None:
    """Go back from several places of a run, and come to the same end each time."""
    checkpoint, before = machine.checkpoint(), whole(machine)
    wanted = run(machine, list(spans))
    for number in range(again * len(spans)):
        checkpoint.restore()
        assert whole(machine) == before
        count = number % len(spans) + 1
        assert run(machine, list(spans[:count])) == wanted[:count]
    checkpoint.restore()


# -- the same run -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ns", "left"),
    [("hello", 9_000, 20_000), ("interrupts", 900_000, 1_100_000), ("paging", 300_000, 700_000),
     ("traps", 800_000, 900_000)],
)  # fmt: skip
def test_sample_kernels(name, ns, left):
    reference, machine = sample(name), sample(name)
    end = reference.run(10**9)
    machine.run(ns)
    prove(machine, left // 3, left // 7, 10**9)
    assert machine.run(10**9) == end
    assert fingerprint(machine) == fingerprint(reference)


@pytest.mark.parametrize("cpus", [2, 4])
def test_several_processors(cpus):
    machine = Machine(ram=16 << 20, model=I686_APIC, cpus=cpus)
    machine.load(samples.get("smp").path.read_bytes())
    machine.console.expect(b"started")
    assert len({each.registers for each in machine.turns.processors}) > 1
    prove(machine, 100_000, 300_000, 10**9)


@pytest.mark.parametrize("seed", range(12))
def test_guests_that_mean_harm(seed):
    machine, chance = hostile.make(seed).machine, random.Random(seed)
    if seed % 3:
        machine.run(chance.randrange(100_000))
    prove(machine, *(chance.randrange(1, 100_000) for _ in range(3)), again=1)


def test_it_may_be_between_any_two_instructions():
    machine = Guest(COUNTER, {0x20: "h"}).machine
    reference = Guest(COUNTER, {0x20: "h"}).machine
    end = reference.run(10 * MS)
    first = machine.checkpoint()
    machine.run(10 * (reference.clock.now() // 20))
    for _ in range(20):
        machine.run(10)
        checkpoint = machine.checkpoint()
        for _ in range(2):
            assert machine.run(10 * MS) == end
            assert fingerprint(machine) == fingerprint(reference)
            checkpoint.restore()
    first.restore()
    assert (machine.instructions, machine.console.data) == (0, b"")
    assert machine.run(10 * MS) == end
    assert fingerprint(machine) == fingerprint(reference)


def test_several_of_one_machine():
    """Each of them can be gone back to from anywhere."""
    machine, found = sample("paging"), []
    for _ in range(4):
        machine.run(150_000)
        found.append((machine.checkpoint(), whole(machine)))
    for number in (2, 0, 0, 3, 1, 3):
        machine.run(70_000)
        checkpoint, wanted = found[number]
        checkpoint.restore()
        assert whole(machine) == wanted


@pytest.mark.parametrize("how", ["page by page", "not at all"])
def test_a_system_that_tells_less(monkeypatch, how):
    if how == "page by page":
        monkeypatch.setattr(page_image, "_SCAN", 0)
    else:
        monkeypatch.setattr(page_image._Pagemap, "copies", lambda self: None)
    machine = sample("paging")
    machine.run(300_000)
    prove(machine, 200_000, 10**9)
    changed = Guest(CHANGES_ITSELF)
    prove(changed.machine, MS)


# -- code that was translated -------------------------------------------------------------------

# Counts in EBX by 1, changes the instruction to count by 2, goes on, and jumps to code that it has made.
CHANGES_ITSELF = (
    "mov esi,3 | xor ebx,ebx | a: mov ecx,3 | again: add ebx,1 | loop again | mov byte ptr [{again}+2],2"
    " | dec esi | jnz a | mov dword ptr [0x40000],0x40404343 | mov byte ptr [0x40004],0xc3 | mov eax,0x40000"
    f" | call eax | mov [0x50000],ebx | {DONE} | hlt"
)


def test_code_that_the_guest_changed():
    guest = Guest(CHANGES_ITSELF)
    prove(guest.machine, 50, 400, MS)
    assert guest.exit_value() == 1
    assert guest.u32(0x50000) == 3 * 1 + 6 * 2 + 2


def test_code_that_the_host_changed():
    guest = Guest(f"mov al,1 | out 0xf4,al | l: {DONE} | jmp l")
    checkpoint = guest.machine.checkpoint()
    for value in (1, 2, 1, 3):
        if value > 1:
            guest.cpu.write_memory(CODE + 1, bytes([value]))
        assert guest.exit_value() == value
        checkpoint.restore()
        assert guest.exit_value() == 1
        checkpoint.restore()


def test_code_that_came_to_where_none_was():
    """Translated behind the checkpoint, from what is gone when it is gone back to."""
    guest = Guest(
        "mov eax,[0x60000] | test eax,eax | jz skip | mov [0x30000],eax | skip: mov eax,0x30000 | call eax"
        " | mov [0x50000],ebx | hlt"
    )
    guest.memory.write(0x30000, bytes.fromhex("43c3"))  # inc ebx; ret
    checkpoint = guest.machine.checkpoint()
    for code, wanted in (("4343c3", 2), ("", 1), ("434343c3", 3), ("4343c3", 2), ("", 1)):
        guest.memory.write(0x60000, bytes.fromhex(code))
        guest.run()
        assert guest.u32(0x50000) == wanted
        checkpoint.restore()
        assert guest.memory.read(0x30000, 2) == b"\x43\xc3"


def test_code_stays_translated(monkeypatch):
    """What has not changed is not translated once more: that would take longer than all else."""
    guest = Guest(f"mov dword ptr [0x50000],5 | {DONE}")
    checkpoint = guest.machine.checkpoint()
    guest.run()
    pages = set(guest.cpu.code_pages)
    dropped: list[int] = []
    monkeypatch.setattr(guest.cpu._engine, "drop_translations", lambda at, size: dropped.append(at))
    checkpoint.restore()
    assert pages and not dropped
    guest.cpu.write_memory(CODE, b"\x90")
    checkpoint.restore()
    assert dropped == [CODE, CODE]


# -- all parts ----------------------------------------------------------------------------------


def test_breakpoints_and_address_line_20():
    source = (
        "mov eax,{there} | mov dr0,eax | mov eax,2 | mov dr7,eax | in al,0x92 | or al,2 | out 0x92,al"
        " | mov dword ptr [0x103000],1 | there: mov eax,[0x3000] | mov dr7,ebx"
        f" | and al,0xfd | in al,0x92 | and al,0xfd | out 0x92,al | mov eax,[0x103000] | {DONE} | h: hlt"
    )
    for stop in (0, 40, 100):
        guest = Guest(source, {1: "h"})
        if stop:
            guest.machine.run(stop)
        prove(guest.machine, 30, 60, 90, MS)


def test_pieces_of_the_rom_area_that_are_ram():
    """The chipset's map is a device's register, but the CPU has to be told."""
    source = (
        "mov eax,0x80000058 | mov dx,0xcf8 | out dx,eax | mov dword ptr [0xc0000],0x1111 | mov dx,0xcfe"
        " | mov al,0x33 | out dx,al | mov dword ptr [0xc0000],0x2222 | mov al,0 | out dx,al"
        f" | mov dword ptr [0xc0000],0x3333 | {DONE} | hlt"
    )
    for stop in (0, 1050, 2080, 2090):
        guest = Guest(source)
        if stop:
            guest.machine.run(stop)
        prove(guest.machine, 30, 40, MS)
        guest.run()
        assert guest.u32(0xC0000) == 0x2222


@pytest.mark.parametrize("ns", [5_000, 300_000, 700_000, 1_000_000])
def test_disks_whose_changes_are_in_memory(ns):
    machine = Machine(ram=2 << 20, disks=[Disk.from_bytes(bytes(range(256)) * 80)])
    machine.load(assemble(WRITER.replace(" | ", "\n"), 0x100000).code, protocol="flat")
    machine.run(ns)
    prove(machine, 50_000, 100_000, 10 * MS, again=1)
    machine.run(10 * MS)
    assert machine.memory.read(0x50000, 1024) == WRITTEN


def test_what_is_typed_and_waited_for():
    source = (
        "mov dx,0x3f8 | mov al,62 | out dx,al"
        " | l: mov dx,0x3fd | in al,dx | test al,1 | jz l | mov dx,0x3f8"
        " | in al,dx | inc al | out dx,al | jmp l"
    )
    machine = Guest(source).machine
    machine.console.expect(b">", 1)
    machine.console.send(b"abcdef")
    machine.console.expect(b"bc", 1)
    checkpoint = machine.checkpoint()
    for _ in range(3):
        assert machine.console.expect(b"fg", 1) == b"defg"
        machine.console.send(b"y")
        assert machine.console.expect(b"z", 1) == b"z"
        checkpoint.restore()
        assert machine.console.text() == ">bc"


def test_events_that_wait_for_their_time():
    """Whoever schedules them: the timer, and somebody who types."""
    source = (
        f"{PIC} | mov al,0xfc | out 0x21,al | {timer(3000, 0x34)} | mov edi,0x50000 | sti | l: hlt | jmp l"
        f" | h: push eax | inc ecx | {EOI} | pop eax | iretd"
        f" | k: push eax | in al,0x60 | stosb | {EOI} | pop eax | iretd"
    )
    machine = Guest(source, {0x20: "h", 0x21: "k"}).machine
    machine.run(MS)
    for at in (2, 3):
        machine.clock.schedule(at * MS, lambda _due: machine.board.keyboard.type(text("ab")))
    prove(machine, MS // 2, MS, 15 * MS, again=1)
    machine.run(15 * MS)
    assert machine.memory.read(0x50000, 4) == bytes.fromhex("1e9e30b0")
    assert machine.cpu.ecx > 1


def test_who_watches_page_tables():
    guest = Guest(f"mov dword ptr [0x21014],0x6007 | mov eax,cr3 | mov cr3,eax | {DONE}")
    guest.page()
    before = guest.machine.checkpoint()
    watch = PageTableWatch(guest.cpu)
    checkpoint = guest.machine.checkpoint()
    guest.run()
    wanted, watched = dict(watch.writes), set(guest.cpu.watched_pages)
    assert sum(wanted.values()) == 1 and watched
    for _ in range(2):
        checkpoint.restore()
        assert not watch.writes and not guest.cpu.watched_pages
        guest.run()
        assert watch.writes == wanted and guest.cpu.watched_pages == watched
    before.restore()
    assert guest.cpu.store_watch is None and not guest.cpu.watched_pages


def test_the_end_of_the_last_run_comes_back_too():
    machine = sample("hello")
    ended = machine.checkpoint()
    end = machine.run(10**9)
    later = machine.checkpoint()
    ended.restore()
    assert machine.end is None
    later.restore()
    assert machine.end == end and end.outcome is Outcome.DEBUG_EXIT


# -- what can't be ------------------------------------------------------------------------------


def test_not_while_it_runs():
    guest = Guest(f"out 0x80,al | {DONE}")
    checkpoint, caught = guest.machine.checkpoint(), []

    def ask(*_):
        for what in (guest.machine.checkpoint, checkpoint.restore):
            with pytest.raises(UsageError) as error:
                what()
            caught.append(str(error.value))

    guest.machine.board.ports.write = ask
    guest.machine.run(MS)
    assert set(caught) == {"a machine can be kept and go back between two runs only, but it is running"}
    with pytest.raises(UsageError) as error:
        cpu_state.keep(running(guest))
    assert str(error.value) == (
        "a CPU's state can be saved and loaded between instructions only, but one is under way"
    )


def running(guest: Guest):
    guest.cpu._running = True
    return guest.cpu


def test_not_with_a_disk_that_is_written(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 * SECTOR))
    machine = Machine(ram=2 << 20, disks=[None, open_image(path, writable=True)])
    with pytest.raises(UsageError) as error:
        machine.checkpoint()
    assert str(error.value) == "a machine whose disk 1 writes to its image can't go back: use it without rw"
