# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of whole machines: what goes on from one is the same run, to the byte."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace

import pytest

from tests.native.guest import DONE, EOI, MS, PIC, Guest, timer
from vmi import samples
from vmi.errors import BadInput, OutputError, UsageError
from vmi.native import snapshot
from vmi.native.cpuid import MODELS
from vmi.native.disk import SECTOR, Disk, open_image
from vmi.native.keyboard import text
from vmi.native.machine import Machine, Outcome
from vmi.native.snapshot_folder import MANIFEST
from vmi.rom.assemble import assemble
from vmi.version import __version__

# A guest that counts, with interrupts that may come between any two of its instructions.
COUNTER = (
    f"{PIC} | {timer(99, 0x34)} | mov edi,0x50000 | sti"
    f" | l: inc esi | imul ebx,esi,77 | stc | adc ebx,0 | cmp ecx,9 | jb l | cli | {DONE}"
    f" | h: push eax | push edx | inc ecx | mov [edi],ebx | mov [edi+4],esi | add edi,8"
    f" | mov dx,0x3f8 | mov al,cl | add al,64 | out dx,al | {EOI} | pop edx | pop eax | iretd"
)


def fingerprint(machine: Machine) -> dict[str, object]:
    """All that a guest or its user could tell two machines by."""
    board = machine.board
    return {
        "ram": machine.memory.sha256(),
        "consoles": (board.console.data, board.console2.data),
        "time": machine.clock.now(),
        "progress": machine.progress(),
        "board": json.dumps(board.save(), sort_keys=True),
        "msr": machine.msr.save(),
    }


def through(machine: Machine, folder, **more) -> Machine:
    """The machine after it has been saved and restored."""
    machine.save(folder)
    return Machine.restore(folder, **more)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# -- the same run -------------------------------------------------------------------------------


def sample(name: str) -> Machine:
    machine = Machine(ram=16 << 20)
    machine.load(samples.get(name).path.read_bytes())
    return machine


@pytest.mark.parametrize(
    ("name", "ns", "stops"),
    [("hello", 214_620, 4), ("interrupts", 2_554_968, 5), ("paging", 1_646_110, 5), ("traps", 8_677_320, 5)],
)
def test_a_sample_kernel_does_not_notice(tmp_path, name, ns, stops):
    reference = sample(name)
    end = reference.run(10**9)
    assert reference.clock.now() == ns
    chance = random.Random(name)
    saved, restored = sample(name), sample(name)
    for at in sorted(chance.sample(range(ns), stops)):
        for machine in (saved, restored):
            assert machine.run(max(0, at - machine.clock.now())).outcome is Outcome.TIMEOUT
        saved.save(tmp_path / "saved")
        restored = through(restored, tmp_path / "restored")
        assert contents(tmp_path / "saved") == contents(tmp_path / "restored")
    for machine in (saved, restored):
        assert machine.run(10**9) == end
        assert fingerprint(machine) == fingerprint(reference)


def test_it_may_be_between_any_two_instructions(tmp_path):
    """Among them are the shadow of STI, the first instruction of a handler, and IRETD."""
    reference = Guest(COUNTER, {0x20: "h"}).machine
    end = reference.run(10 * MS)
    assert reference.console.data == b"ABCDEFGHI"
    first, last = Guest(COUNTER, {0x20: "h"}).machine, reference.clock.now() // 10
    first.run(10 * (last // 2))
    for _ in range(20):
        first.run(10)
        other = through(first, tmp_path / "s")
        assert other.run(10 * MS) == end
        assert fingerprint(other) == fingerprint(reference)


def test_a_halted_guest_wakes_up_in_time(tmp_path):
    source = f"{PIC} | {timer(50_000)} | sti | hlt | {DONE} | h: iretd"
    reference, machine = (Guest(source, {0x20: "h"}).machine for _ in range(2))
    end = reference.run(100 * MS)
    assert machine.run(10 * MS + 3).outcome is Outcome.TIMEOUT
    assert machine.halted
    other = through(machine, tmp_path / "s")
    assert other.run(90 * MS) == end
    assert fingerprint(other) == fingerprint(reference)


def test_in_a_slice_of_a_run(tmp_path):
    """The machine's owner may also save it while it runs, where it is told of progress."""
    source = (
        f"{PIC} | {timer(40_000, 0x34)} | sti | l: inc eax | jmp l | h: push eax | {EOI} | pop eax | iretd"
    )
    machine = Guest(source, {0x20: "h"}).machine
    folders = (tmp_path / name for name in "ab")

    def on_slice():
        for folder in folders:
            machine.save(folder)
            return

    machine.run(60 * MS, on_slice)
    found = [Machine.restore(tmp_path / name) for name in "ab"]
    assert found[0].instructions < found[1].instructions < machine.instructions
    for other in found:
        other.run(60 * MS - other.clock.now())
        assert fingerprint(other) == fingerprint(machine)


def test_saving_again_gives_the_same_bytes(tmp_path):
    machine = sample("paging")
    machine.run(MS // 2)
    machine.save(tmp_path / "a")
    machine.save(tmp_path / "b")
    through(machine, tmp_path / "c").save(tmp_path / "d")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "d")


def test_what_the_processor_had_cached_goes_here_too(tmp_path):
    """A guest changes a page table and tells nobody, as it must not: both machines do the same."""
    source = (
        "mov eax,[0x5000] | mov dword ptr [0x21014],0x6007 | nop | mov eax,[0x5000] | out 0xf4,al | l: jmp l"
    )
    found = []
    for saved in (False, True):
        guest = Guest(source)
        guest.page()
        guest.memory.put_u32(0x5000, 0x11)
        guest.memory.put_u32(0x6000, 0x22)
        guest.machine.run(30)
        machines = [guest.machine]
        if saved:
            machines.append(through(guest.machine, tmp_path / "s"))
        found += [machine.run(MS).value for machine in machines]
    assert found == [0x11, 0x22, 0x22]


# -- all parts ----------------------------------------------------------------------------------


def test_the_machine_is_made_of_the_same_parts(tmp_path):
    bios = bytes(0xFFF0) + b"\xeb\xfe" + bytes(14)
    machine = Machine(
        ram=3 << 20, model=MODELS["pentium"], epoch=5 * 10**8, bios=bios, video_bios=b"\x55\xaa" * 600
    )
    rom = b"\x55\xaa\x01" + bytes(0x15) + b"\x1c\0\0\0" + b"PCIR\x34\x12\x78\x56" + bytes(0x200)
    machine.plug(rom)
    machine.plug(b"\x55\xaa" + bytes(510))
    machine.run(1000)
    other = through(machine, tmp_path / "s")
    assert fingerprint(other) == fingerprint(machine)
    assert (other.memory.size, other.model, other.epoch) == (3 << 20, MODELS["pentium"], 5 * 10**8)
    assert (other.bios, other.video_bios, other.roms) == (machine.bios, machine.video_bios, machine.roms)
    assert other.cpu.eip == 0xFFF0
    assert other.run(1000).outcome is Outcome.TIMEOUT
    assert other.plug(b"x") == machine.plug(b"x")


def test_a_rom_in_the_bay_and_the_next_free_place(tmp_path):
    machine = Machine(ram=2 << 20, model=MODELS["486"])
    machine.plug(b"\x55\xaa" + bytes(3000))
    other = through(machine, tmp_path / "s")
    assert other.memory.read(0xC0000, 4096) == machine.memory.read(0xC0000, 4096)
    assert other.plug(b"next") == 0xC1000


def test_zero_where_a_new_machine_has_none(tmp_path):
    machine = Machine(ram=2 << 20)
    machine.memory.write(0xC0000, bytes(0x40000))
    assert through(machine, tmp_path / "s").memory.sha256() == machine.memory.sha256()


def test_special_registers_that_the_guest_has_set(tmp_path):
    source = (
        "mov ecx,0x10 | mov eax,0x1234 | mov edx,7 | wrmsr | mov ecx,0x1a0"
        " | mov eax,0xc00 | xor edx,edx | wrmsr"
        " | nop | rdmsr | mov [0x50000],eax | rdtsc | mov [0x50004],eax | mov [0x50008],edx | hlt"
    )
    reference, stopped = Guest(source).machine, Guest(source).machine
    reference.run(MS)
    stopped.run(90)
    other = through(stopped, tmp_path / "s")
    other.run(MS)
    assert [other.memory.u32(0x50000 + at) for at in (0, 8)] == [0xC00, 7]
    assert fingerprint(other) == fingerprint(reference)


def test_pieces_of_the_rom_area_that_are_ram(tmp_path):
    """The chipset's map is a device's register, but the CPU has to know it."""
    opened = (
        "mov eax,0x80000058 | mov dx,0xcf8 | out dx,eax | mov dx,0xcfe | mov al,0x33 | out dx,al"
        " | mov dword ptr [0xc8000],0x1111 | mov dword ptr [0xd0000],0x2222 | nop"
        f" | mov dword ptr [0xc9000],0x3333 | mov dword ptr [0xd1000],0x4444 | {DONE}"
    )
    reference, stopped = Guest(opened).machine, Guest(opened).machine
    reference.run(MS)
    stopped.run(90)
    other = through(stopped, tmp_path / "s")
    other.run(MS)
    written = [machine.memory.u32(at) for machine in (reference, other) for at in (0xC8000, 0xC9000, 0xD1000)]
    assert written[:3] == written[3:]
    assert fingerprint(other) == fingerprint(reference)


def test_an_open_conversation_goes_on(tmp_path):
    """What was shown, what was matched of it, and what has been typed but not been read yet."""
    source = (
        "mov dx,0x3f8 | mov al,62 | out dx,al"
        " | l: mov dx,0x3fd | in al,dx | test al,1 | jz l | mov dx,0x3f8"
        " | in al,dx | inc al | out dx,al | jmp l"
    )
    machine = Guest(source).machine
    machine.console.expect(b">", 1)
    machine.console.send(b"abcdef")
    machine.console.expect(b"bc", 1)
    other = through(machine, tmp_path / "s")
    assert other.console.text() == ">bc"
    assert other.console.queued == machine.console.queued > 0
    assert other.console.expect(b"fg", 1) == machine.console.expect(b"fg", 1) == b"defg"
    other.console.send(b"y")
    assert other.console.expect(b"z", 1) == b"z"


def test_keys_that_are_being_typed(tmp_path):
    source = (
        "mov edi,0x50000 | l: in al,0x64 | test al,1 | jz l | in al,0x60 | stosb | cmp edi,0x50004 | jb l"
        f" | {DONE}"
    )
    reference, stopped = Guest(source).machine, Guest(source).machine
    for machine in (reference, stopped):
        machine.board.keyboard.type(text("ab"))
    end = reference.run(1000 * MS)
    assert end.outcome is Outcome.DEBUG_EXIT
    stopped.run(reference.clock.now() // 2)
    assert 0 < stopped.memory.read(0x50000, 4).index(0) < 4
    other = through(stopped, tmp_path / "s")
    assert other.run(1000 * MS) == end
    assert fingerprint(other) == fingerprint(reference)


# -- disks --------------------------------------------------------------------------------------


def _ide(command: int) -> str:
    """Code that gives a command for two sectors from the fourth on."""
    values = ((0x1F6, 0xE0), (0x1F2, 2), (0x1F3, 4), (0x1F4, 0), (0x1F5, 0), (0x1F7, command))
    return " | ".join(f"mov dx,{port} | mov al,{value} | out dx,al" for port, value in values)


# Writes two sectors with what counts down, and reads them to 50000h.
WRITER = (
    f"cli | mov esp,0x8000 | {_ide(0x30)} | mov ebx,2"
    " | w: call ready | mov ecx,256 | x: mov eax,ecx | out dx,ax | loop x | dec ebx | jnz w | call ready"
    f" | {_ide(0x20)} | mov edi,0x50000 | mov ebx,2"
    f" | r: call ready | mov ecx,256 | y: in ax,dx | stosw | loop y | dec ebx | jnz r | {DONE}"
    " | ready: mov edx,0x1f7 | p: in al,dx | test al,0x80 | jnz p | mov edx,0x1f0 | ret"
)
WRITTEN = b"".join(n.to_bytes(2, "little") for n in range(256, 0, -1)) * 2


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 2 * 40)
    return path


def with_disks(*disks: Disk | None) -> Machine:
    machine = Machine(ram=2 << 20, disks=disks)
    machine.load(assemble(WRITER.replace(" | ", "\n"), 0x100000).code, protocol="flat")
    return machine


@pytest.mark.parametrize("ns", [5_000, 15_000, 100_000, 300_000, 560_000, 800_000, 1_050_000])
def test_a_transfer_goes_on(tmp_path, image, ns):
    """The stops are in each part of it: commands, both sectors out, both in."""
    before = image.read_bytes()
    reference, stopped = with_disks(open_image(image)), with_disks(open_image(image))
    end = reference.run(10 * MS)
    assert reference.memory.read(0x50000, 1024) == WRITTEN
    stopped.run(ns)
    assert stopped.instructions < reference.instructions
    other = through(stopped, tmp_path / "s")
    assert other.run(10 * MS) == end
    assert fingerprint(other) == fingerprint(reference)
    assert other.disks[0].overlay() == reference.disks[0].overlay()
    assert other.disks[0].read(4, 2) == WRITTEN
    assert image.read_bytes() == before


def test_a_writable_disk_keeps_its_changes_in_its_image(tmp_path, image):
    machine = with_disks(None, open_image(image, writable=True))
    machine.run(MS)  # there is no first disk, so that nothing is written
    machine.disks[1].write(7, b"x" * SECTOR)
    machine.save(tmp_path / "s")
    machine.disks[1].close()
    other = Machine.restore(tmp_path / "s")
    assert other.disks[1].writable
    assert other.disks[1].read(7, 1) == b"x" * SECTOR
    assert image.read_bytes()[7 * SECTOR : 8 * SECTOR] == b"x" * SECTOR
    other.disks[1].close()
    image.write_bytes(bytes(image.stat().st_size))
    why = f"the saved state is of other contents of disk image {str(image)!r}"
    refused(tmp_path / "s", why)


def test_disks_that_are_given(tmp_path, image):
    machine = with_disks(Disk.from_bytes(image.read_bytes()), None, open_image(image))
    machine.run(MS)
    machine.save(tmp_path / "s")
    refused(tmp_path / "s", "its disk 0 was in memory only and must be given")
    given = [Disk.from_bytes(image.read_bytes()), None, open_image(image)]
    other = Machine.restore(tmp_path / "s", given)
    assert fingerprint(other) == fingerprint(machine)
    assert other.disks[0].read(4, 2) == WRITTEN
    assert snapshot.inspect(tmp_path / "s").disks == (None, None, str(image))
    for disks, places in (([], "none"), ([given[0]], "0"), ([given[0], given[2]], "0, 1")):
        with pytest.raises(UsageError) as caught:
            Machine.restore(tmp_path / "s", disks)
        assert str(caught.value) == f"the snapshot's disks are 0, 2, but those given are {places}"


def test_a_disk_image_that_is_gone_or_another(tmp_path, image):
    with_disks(open_image(image)).save(tmp_path / "s")
    data = image.read_bytes()
    image.write_bytes(data + bytes(SECTOR))
    why = f"the saved state is of a disk image of 20480 bytes, but {str(image)!r} has 20992"
    refused(tmp_path / "s", why)
    image.write_bytes(b"x" + data[1:])
    refused(tmp_path / "s", f"the saved state is of other contents of disk image {str(image)!r}")
    image.unlink()
    refused(tmp_path / "s", f"disk image {str(image)!r} can't be read: No such file or directory")


# -- what can't be ------------------------------------------------------------------------------


def refused(folder, why: str) -> None:
    """Restoring must end in this sentence."""
    with pytest.raises(BadInput) as caught:
        Machine.restore(folder)
    assert str(caught.value) == f"snapshot {str(folder)!r} can't be restored: {why}"


def change(folder, edit) -> None:
    """Edit the state and seal the folder again, as another version would have done it."""
    state = json.loads((folder / "state.json").read_bytes())
    edit(state)
    data = json.dumps(state).encode()
    (folder / "state.json").write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"]["state.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_machine_under_a_hypervisor(tmp_path):
    machine = sample("hello")
    machine.monitor = object()
    with pytest.raises(UsageError, match=r"^a machine with a hypervisor on it can't be saved$"):
        machine.save(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_in_the_middle_of_an_instruction(tmp_path):
    machine, errors = Guest(f"mov dx,0x3f8 | out dx,al | {DONE}").machine, []

    def listener(_byte):
        with pytest.raises(UsageError) as caught:
            machine.save(tmp_path / "s")
        errors.append(str(caught.value))

    machine.console.add_listener(listener)
    assert machine.run(MS).outcome is Outcome.DEBUG_EXIT
    assert errors == ["a machine can be saved between two runs only, but it is running"]
    machine.save(tmp_path / "s")


def test_a_processor_of_its_own(tmp_path):
    machine = Machine(ram=2 << 20, model=replace(MODELS["486"], signature=0x470))
    with pytest.raises(UsageError) as caught:
        machine.save(tmp_path / "s")
    names = ", ".join(MODELS)
    sentence = f"a machine must have one of the processors {names} to be saved, but it has another '486'"
    assert str(caught.value) == sentence


VERSION = "its state is not of this version"


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda it: it["hardware"].update(model="k5"), "its processor 'k5' is none of {models}"),
        (
            lambda it: it["hardware"].update(ram=2 << 20),
            "ram.pages is damaged: page 4095 is not of this memory",
        ),
        (lambda it: it["hardware"].update(ram=5), VERSION),
        (lambda it: it["hardware"].update(roms=1), VERSION),
        (lambda it: it["cpu"].pop("cr3"), VERSION),
        (lambda it: it["cpu"].update(xmm=["00"]), VERSION),
        (lambda it: it.update(clock=None), VERSION),
        (lambda it: it["board"]["ports"]["pit"].update(counters=[]), VERSION),
        (
            lambda it: it["board"]["ports"].pop("pit"),
            "the saved state must be of the devices {all}, but it is of {rest}",
        ),
    ],
)
def test_a_state_that_does_not_fit(tmp_path, edit, why):
    machine = Machine(ram=16 << 20)
    machine.memory.write((16 << 20) - 1, b"x")
    machine.save(tmp_path / "s")
    change(tmp_path / "s", edit)
    names = sorted(device.name for device in machine.board.ports.devices)
    why = why.format(
        models=", ".join(MODELS),
        all=", ".join(names),
        rest=", ".join(name for name in names if name != "pit"),
    )
    refused(tmp_path / "s", why)


def test_a_page_that_is_cut_short(tmp_path, monkeypatch):
    machine = Machine(ram=2 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "_pages", lambda _memory: [(7, bytes(100))])
        machine.save(tmp_path / "s")
    refused(tmp_path / "s", "ram.pages is damaged: page 7 is not of this memory")


def test_damaged_memory(tmp_path):
    sample("hello").save(tmp_path / "s")
    data = (tmp_path / "s" / "ram.pages").read_bytes()
    (tmp_path / "s" / "ram.pages").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(tmp_path / "s", "ram.pages is damaged: its compressed data can't be unpacked")


def test_a_failed_save_changes_nothing(tmp_path):
    (tmp_path / "s").write_bytes(b"mine")
    machine = sample("hello")
    before = fingerprint(machine)
    with pytest.raises(OutputError) as caught:
        machine.save(tmp_path / "s")
    why = "there is a file of that name"
    assert str(caught.value) == f"snapshot {str(tmp_path / 's')!r} can't be written: {why}"
    assert fingerprint(machine) == before


def test_summary(tmp_path):
    machine = sample("paging")
    machine.run(123_450)
    machine.save(tmp_path / "s")
    assert snapshot.inspect(tmp_path / "s") == snapshot.Summary(
        ram=16 << 20, model="qemu32", instructions=machine.instructions,
        virtual_ns=machine.clock.now(), disks=(), program=__version__,
    )  # fmt: skip
    with pytest.raises(BadInput) as caught:
        snapshot.inspect(tmp_path)
    assert str(caught.value) == f"snapshot {str(tmp_path)!r} can't be restored: it has no {MANIFEST}"
