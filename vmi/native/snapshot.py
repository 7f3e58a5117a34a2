# SPDX-License-Identifier: GPL-2.0-only
"""A whole machine in a folder: a run can be stopped, kept, and gone on with later or elsewhere.

What goes on from a snapshot is the same run: instruction by instruction, nanosecond by nanosecond and byte
by byte what the machine would have done had it never been stopped.

The one thing that is not kept is what the processor has cached of page tables and code, and saving makes the
saved machine forget it as well. No guest can tell that follows the rules of the processor. One that changes
a page table silently may see the change earlier than it would have, or its accessed bit set again; but so it
may at any time, here and on silicon.

The folder holds ``manifest.json``, which names the other files with size and hash; ``state.json``, all that
is not bulk; ``ram.pages`` and ``disk0.pages`` to ``disk3.pages``, memory and what has been written to disks
(see :mod:`vmi.native.page_file`); ``console1.log`` and ``console2.log``, what COM1 and COM2 have shown; and
``firmware.bin``, ``video_bios.bin``, ``rom0.bin`` and so on, if there are any. Images of disks stay where
they are. The same machine gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmi.errors import BadInput, UsageError
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native import cpu_state, page_file
from vmi.native.bus import State
from vmi.native.cpuid import MODELS
from vmi.native.disk import Disk, open_image
from vmi.native.snapshot_folder import Reader, reading, writing

if TYPE_CHECKING:
    from vmi.native.console import Console
    from vmi.native.machine import Machine

_STATE, _RAM = "state.json", "ram.pages"
_FIRMWARE, _VIDEO_BIOS = "firmware.bin", "video_bios.bin"
_CONSOLES = ("console1.log", "console2.log")
_DISKS = tuple(f"disk{n}.pages" for n in range(4))

_MIB = 1 << 20
_ZERO_PAGE, _ZERO_MIB = bytes(PAGE_SIZE), bytes(_MIB)


@dataclass(frozen=True)
class Summary:
    """What a snapshot is of, without its bulk.

    ``disks`` are the images' paths by place (None: no disk, or one that was only in memory), ``program``
    the version of this toolkit that made it, ``cpus`` how many processors there are.
    """

    ram: int
    model: str
    instructions: int
    virtual_ns: int
    disks: tuple[str | None, ...]
    program: str
    cpus: int = 1


# -- save ---------------------------------------------------------------------------------------


def save(machine: Machine, folder: str | os.PathLike[str]) -> None:
    """Write a machine that is between two runs to a folder that is new, empty or an older snapshot.

    The machine goes on afterwards as a restored one does.

    :raises UsageError: a hypervisor is on the machine, it is in the middle of an instruction, or its
        processor is none of this toolkit's models.
    :raises OutputError: the folder can't be written, or it is something else; nothing has changed then.
    """
    state = _state(machine)
    with writing(folder) as files:
        files.write(_RAM, page_file.encode(_pages(machine.memory)))
        for name, disk in zip(_DISKS, machine.disks, strict=False):
            if disk is not None:
                files.write(name, page_file.encode(sorted(disk.overlay().items())))
        for name, console in zip(_CONSOLES, _consoles(machine), strict=True):
            files.write(name, [console.data])
        for name, data in _chips(machine):
            files.write(name, [data])
        files.write_json(_STATE, state)
    machine.cpu.forget_translations()


def _state(machine: Machine) -> State:
    """All that is not bulk, as JSON-able values."""
    if machine.monitor is not None:
        raise UsageError("a machine with a hypervisor on it can't be saved")
    if machine.cpu.running:
        raise UsageError("a machine can be saved between two runs only, but it is running")
    if MODELS.get(machine.model.name) != machine.model:
        raise UsageError(
            f"a machine must have one of the processors {', '.join(MODELS)} to be saved, "
            f"but it has another {machine.model.name!r}"
        )
    return {
        "hardware": {
            "ram": machine.memory.size,
            "model": machine.model.name,
            "epoch": machine.epoch,
            "disks": [_disk(disk) for disk in machine.disks],
            "roms": len(machine.roms),
            "cpus": machine.cpus,
        },
        "progress": machine.progress(),
        "clock": machine.clock.save(),
        "board": machine.board.save(),
        "msr": machine.msr.save(),
        "cpu": cpu_state.save(machine.cpu),
        "turns": None if machine.turns is None else machine.turns.save(),
        "matched": [console.matched for console in _consoles(machine)],
    }


def _disk(disk: Disk | None) -> State | None:
    if disk is None:
        return None
    disk.flush()
    return {"path": disk.path, "writable": disk.writable, "image": disk.save()}


def _consoles(machine: Machine) -> tuple[Console, Console]:
    return machine.board.console, machine.board.console2


def _chips(machine: Machine) -> Iterator[tuple[str, bytes]]:
    """Firmware and option ROMs as they were plugged in; a guest may have changed what it sees of them."""
    if machine.bios is not None:
        yield _FIRMWARE, machine.bios
    if machine.video_bios is not None:
        yield _VIDEO_BIOS, machine.video_bios
    for n, rom in enumerate(machine.roms):
        yield _rom(n), rom


def _rom(number: int) -> str:
    return f"rom{number}.bin"


def _pages(memory: PhysicalMemory) -> Iterator[tuple[int, bytes]]:
    """The pages that are not zero."""
    for start in range(0, memory.size, _MIB):
        data = memory.read(start, min(_MIB, memory.size - start))
        if data == _ZERO_MIB:
            continue
        for at in range(0, len(data), PAGE_SIZE):
            page = data[at : at + PAGE_SIZE]
            if page != _ZERO_PAGE:
                yield (start + at) // PAGE_SIZE, page


# -- restore ------------------------------------------------------------------------------------


def inspect(folder: str | os.PathLike[str]) -> Summary:
    """Tell what a snapshot is of. BadInput if it is none, or damaged where this looks."""
    with reading(folder) as files:
        state = files.read_json(_STATE)
        hardware = state["hardware"]
        return Summary(
            ram=hardware["ram"],
            model=hardware["model"],
            instructions=state["progress"]["instructions"],
            virtual_ns=state["clock"]["reached"],
            disks=tuple(disk and disk["path"] for disk in hardware["disks"]),
            program=files.program,
            cpus=hardware.get("cpus", 1),
        )


def restore(
    kind: type[Machine],
    folder: str | os.PathLike[str],
    disks: Sequence[Disk | None] | None = None,
) -> Machine:
    """Make the machine that a snapshot is of.

    :param kind: :class:`~vmi.native.machine.Machine`.
    :param disks: the disks, over the same images and in the same places as those that were saved; None to
        open the images where they were.
    :raises BadInput: that is no snapshot, or a damaged one, or of another version, or a disk image has
        changed or can't be opened.
    :raises UsageError: ``disks`` are in other places than those that were saved.
    """
    with reading(folder) as files:
        state = files.read_json(_STATE)
        hardware = state["hardware"]
        model = MODELS.get(hardware["model"])
        if model is None:
            raise BadInput(f"its processor {hardware['model']!r} is none of {', '.join(MODELS)}")
        saved = hardware["disks"]
        machine = kind(
            ram=hardware["ram"],
            model=model,
            epoch=hardware["epoch"],
            disks=_opened(saved) if disks is None else _same_places(disks, saved),
            bios=files.read(_FIRMWARE) if _FIRMWARE in files else None,
            video_bios=files.read(_VIDEO_BIOS) if _VIDEO_BIOS in files else None,
            cpus=hardware.get("cpus", 1),
        )
        for n in range(hardware["roms"]):
            machine.plug(files.read(_rom(n)))
        _load(machine, state, files)
        return machine


def _opened(saved: list[State | None]) -> list[Disk | None]:
    found: list[Disk | None] = []
    for n, each in enumerate(saved):
        if each is not None and each["path"] is None:
            raise BadInput(f"its disk {n} was in memory only and must be given")
        found.append(None if each is None else open_image(each["path"], writable=each["writable"]))
    return found


def _same_places(disks: Sequence[Disk | None], saved: list[State | None]) -> list[Disk | None]:
    def places(these: Sequence[object]) -> str:
        return ", ".join(str(n) for n, each in enumerate(these) if each is not None) or "none"

    if places(disks) != places(saved):
        raise UsageError(f"the snapshot's disks are {places(saved)}, but those given are {places(disks)}")
    return list(disks)


def _load(machine: Machine, state: State, files: Reader) -> None:
    for n, (disk, saved) in enumerate(zip(machine.disks, state["hardware"]["disks"], strict=False)):
        if disk is not None:
            disk.load(saved["image"])
            blocks = dict(files.pages(_DISKS[n]))
            if blocks or not disk.writable:
                disk.load_overlay(blocks)
    # time first: devices ask for it; and the clock drops all events before they give it theirs
    machine.set_progress(state["progress"])
    machine.clock.load(state["clock"])
    try:
        machine.board.load(state["board"])
    except UsageError as error:  # a mistake of who called it; here it is the snapshot's
        raise BadInput(str(error)) from error
    machine.msr.load(state["msr"])
    for name, console, matched in zip(_CONSOLES, _consoles(machine), state["matched"], strict=True):
        console.load(files.read(name), matched)
    _load_ram(machine.memory, files)
    if machine.turns is not None:
        machine.turns.load(state["turns"])
    cpu_state.load(machine.cpu, state["cpu"])


def _load_ram(memory: PhysicalMemory, files: Reader) -> None:
    memory.write(0, _ZERO_MIB)  # the rest of a new machine's memory is zero as it is
    for page, data in files.pages(_RAM):
        if (page + 1) * PAGE_SIZE > memory.size or len(data) != PAGE_SIZE:
            raise BadInput(f"{_RAM} is damaged: page {page} is not of this memory")
        memory.write(page * PAGE_SIZE, data)
