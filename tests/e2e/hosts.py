# SPDX-License-Identifier: GPL-2.0-only
"""Two machines that start the same software: QEMU, the judge, and ours.

A test is written once against :class:`Guest` and runs on both. Both count time by instructions, skip it
where the guest waits, and begin at the same date, so what a guest logs is nearly the same each time.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e import qemu
from tests.e2e.line import Line, MachineLine
from vmi import run
from vmi.hypervisor.domain import Domain
from vmi.native import keyboard
from vmi.native.boot.state import Module
from vmi.native.cpuid import MODELS
from vmi.native.disk import Disk
from vmi.native.machine import Machine
from vmi.native.screen import Screen

#: 8 ns for an instruction (ours takes 10), no waiting for real time to pass, and our machine's date.
CLOCK = ("-icount", "shift=3,sleep=off", "-rtc", "base=2024-01-01T00:00:00,clock=vm")
#: The VGA that stands on our PCI bus, too.
VIDEO = ("-vga", "std")
#: A debug-exit port, for kernels that end themselves through it, and a second serial port, as ours has.
PORTS = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4")


@dataclass(frozen=True)
class Firmware:
    """A BIOS and the option ROM of the VGA that goes with it (QEMU finds that one itself)."""

    bios: Path
    video: Path


def seabios(folder: Path, name: str = "bios.bin") -> Firmware:
    """SeaBIOS out of its package's folder."""
    return Firmware(folder / name, folder / "vgabios-stdvga.bin")


@dataclass(frozen=True, repr=False)
class Start:
    """What a machine starts with: a kernel with its options and RAM disk, or nothing but a disk and a BIOS.

    :ivar disk: the first IDE disk's image; what the guest writes can be read from the guest's ``disk``.
    :ivar rom: an option ROM to plug in.
    :ivar firmware: what starts if there is no kernel; QEMU runs its own before a kernel, too.
    :ivar processor: its model, by the name that both know it by.
    :ivar processors: how many; under QEMU they take as long as the host takes.
    :ivar full: de-privilege the kernel without a ROM; only on ours.
    """

    kernel: Path | None = None
    append: str = ""
    initrd: bytes | None = None
    disk: bytes | None = None
    megabytes: int = 64
    rom: bytes | None = None
    firmware: Firmware | None = None
    processor: str = "qemu32"
    processors: int = 1
    full: bool = False


class Guest(ABC):
    """A running guest: the line to its serial port, its screen, its keyboard, its disk."""

    line: Line

    @abstractmethod
    def screen(self) -> str:
        """25 lines of the text screen."""

    @abstractmethod
    def press_enter(self) -> None:
        """Press the Enter key on the PC's keyboard."""

    @abstractmethod
    def disk(self) -> bytes:
        """The disk as it is now."""

    def wait_for_screen(self, shown: Callable[[str], bool], seconds: float, step: float = 0.2) -> str:
        """Let the guest run until its screen is as wanted; AssertionError with the last if it never is."""
        deadline = self.line.clock() + seconds
        while not shown(screen := self.screen()):
            why = self.line.listen(None, step) or ("time is up" if self.line.clock() > deadline else "")
            assert not why, f"{self.line.name}: {why}, with this on the screen:\n{screen}"
        return screen


class QemuGuest(Guest):
    """A guest of QEMU's."""

    def __init__(self, machine: qemu.Qemu, image: Path) -> None:
        self.line = self.qemu = machine
        self._image = image

    def screen(self) -> str:
        return qemu.text_screen(self.qemu.memory(0xB8000, 4000))

    def press_enter(self) -> None:
        self.qemu.press("ret")

    def disk(self) -> bytes:
        return self._image.read_bytes()


class OurGuest(Guest):
    """A guest of our machine's."""

    def __init__(self, machine: Machine, domain: Domain | None) -> None:
        self.machine = machine
        #: VMI calls by name
        self.calls: Mapping[str, int] = {} if domain is None else domain.calls
        self.line = MachineLine(machine)

    def screen(self) -> str:
        return Screen.capture(self.machine.memory, self.machine.board.vga).text()

    def press_enter(self) -> None:
        self.machine.board.keyboard.type(keyboard.text("\n"))

    def flip_bit(self, address: int, bit: int) -> None:
        """Change one bit of RAM behind the guest's back."""
        byte = self.machine.memory.read(address, 1)[0]
        self.machine.memory.write(address, bytes([byte ^ 1 << bit]))

    def disk(self) -> bytes:
        disk = self.machine.board.disks[0]
        assert disk is not None
        return disk.read(0, disk.sectors)


@contextlib.contextmanager
def in_qemu(start: Start, folder: Path) -> Iterator[Guest]:
    """Start under QEMU; the folder takes the files that it needs."""
    # Counting instructions, QEMU takes processors in turns so long that those who wait for each other crawl.
    clock = CLOCK if start.processors == 1 else ()
    arguments: list[str | Path] = ["-m", str(start.megabytes), *clock, *VIDEO, *PORTS]
    arguments += ["-cpu", start.processor, "-smp", str(start.processors)]
    if start.processors > 1:
        # one thread for all: with one each, a lock's holder may be off a busy computer for a minute
        arguments += ["-accel", "tcg,thread=single"]

    def file(name: str, data: bytes | None) -> Path:
        path = folder / name
        if data is not None:
            path.write_bytes(data)
        return path

    if start.kernel is not None:
        arguments += ["-kernel", start.kernel, "-append", start.append]
    if start.initrd is not None:
        arguments += ["-initrd", file("initrd", start.initrd)]
    if start.disk is not None:
        image = file("disk.img", start.disk)
        arguments += ["-drive", f"file={image},format=raw,if=ide"]
    if start.rom is not None:
        arguments += ["-option-rom", file("rom.bin", start.rom)]
    if start.firmware is not None:
        arguments += ["-bios", start.firmware.bios]
    board = qemu.PC if start.processors == 1 else qemu.PC_WITH_ACPI
    with qemu.running(folder, *arguments, machine=board) as machine:
        yield QemuGuest(machine, folder / "disk.img")


@contextlib.contextmanager
def on_ours(start: Start, folder: Path) -> Iterator[Guest]:
    """Start on our machine; what it does to the disk stays in memory."""
    setup = run.Setup(
        image=None if start.kernel is None else start.kernel.read_bytes(),
        append=start.append,
        modules=() if start.initrd is None else (Module(start.initrd, "initrd"),),
        memory=start.megabytes << 20,
        rom=start.rom,
        disks=() if start.disk is None else (Disk.from_bytes(start.disk),),
        bios=None if start.firmware is None else start.firmware.bios.read_bytes(),
        video_bios=None if start.firmware is None else start.firmware.video.read_bytes(),
        model=None if start.rom is not None or start.full else MODELS[start.processor],
        full=start.full,
        cpus=start.processors,
    )
    guest = run.prepare(setup)
    yield OurGuest(guest.machine, guest.domain)


HOSTS: dict[str, Callable[[Start, Path], AbstractContextManager[Guest]]] = {"qemu": in_qemu, "ours": on_ours}
