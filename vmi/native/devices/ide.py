# SPDX-License-Identifier: GPL-2.0-only
"""An IDE channel: two drives behind one set of ports and one interrupt line.

A command, and each block of sectors within one, keeps the drive busy for a fixed time of virtual time, and
the interrupt comes with the end of it. So no interrupt ever arrives inside the instruction that asked for
it: drivers count on having let go of their locks by then. Whoever polls needs a few turns. Only the first
block of a write is asked for at once.

Registers are written to both drives and read from the selected one, as on the cable. Where drives differ
from each other, this follows QEMU's: while a drive is busy or wants data, writes to its registers are lost;
a request that comes while interrupts are switched off is lost; a drive that is not there reads as zero.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Protocol

from vmi.errors import UsageError
from vmi.native.bus import Device, IrqLine, State
from vmi.native.clock import Clock, Event
from vmi.native.devices.ide_commands import diagnose, execute, proceed, takes_data_at_once
from vmi.native.devices.ide_drive import BSY, DRDY, DRQ, READY, SLAVE, Drive, Reply
from vmi.native.disk import SECTOR, Disk

BUSY_NS = 20_000  # how long a command, or the next block of one, keeps the drive busy

NO_IRQ, RESET, HIGH_ORDER = 0x02, 0x04, 0x80  # device control register
_DATA, _ERROR, _SELECT, _STATUS = 0, 1, 6, 7  # ports from the base on
_DIAGNOSE = 0x90
_DMA_SECTORS = 256  # sectors moved in one piece

# What the end of a busy time brings, or what the channel waits for.
_IDLE, _COMMAND, _BLOCK, _RESET, _DMA = "", "command", "block", "reset", "dma"

_FIELDS = ("selected", "control", "command", "phase", "at", "reading", "more", "dma_to_memory", "line")


class DmaEngine(Protocol):
    """One channel's half of the bus master: moves bytes along a table in guest memory."""

    @property
    def active(self) -> bool:
        """The guest has set it going."""

    on_start: Callable[[], None] | None  # called when the guest has set it going

    def prepare(self, size: int) -> bool:
        """Find ``size`` bytes of memory by the table; if it has less the engine stops, and this is False."""

    def scatter(self, data: bytes) -> None:
        """Store bytes to the memory found."""

    def gather(self, size: int) -> bytes:
        """Load bytes from the memory found."""

    def finish(self, failed: bool) -> None:
        """The drive is done."""

    def interrupt(self) -> None:
        """The channel's interrupt line has risen."""


class IdeChannel(Device):
    """Ports ``base`` to ``base + 7`` and ``control``.

    :param first_serial: number in the serial number of drive 0; drive 1 has the next.
    :param dma: the bus master's half for this channel, if there is one.
    """

    wide = True  # for the data port; the other registers are bytes

    def __init__(
        self,
        name: str,
        base: int,
        control: int,
        irq: IrqLine,
        clock: Clock,
        master: Disk | None = None,
        slave: Disk | None = None,
        *,
        first_serial: int = 1,
        dma: DmaEngine | None = None,
    ) -> None:
        self.name = name
        self.ports = (range(base, base + 8), range(control, control + 1))
        self._base = base
        self._control_port = control
        self._irq = irq
        self._clock = clock
        self._dma = dma
        if dma is not None:
            dma.on_start = self._dma_started
        self.drives = tuple(
            Drive(disk, slave=bool(n), serial=f"QM{first_serial + n:05}", dma=dma is not None)
            for n, disk in enumerate((master, slave))
        )
        self._empty = master is None and slave is None
        self._interrupts = 0
        self._event: Event | None = None
        self._line = False
        self._words: list[int] = []  # the block that the host reads or writes at the data port
        self._power_on()

    def _power_on(self) -> None:
        self._selected = 0
        self._control = 0
        self._command = 0
        self._phase = _IDLE
        self._drop_block()

    # --- interrupts and time ---

    def _request(self) -> None:
        """Raise the interrupt line, unless the host has switched it off."""
        if not self._control & NO_IRQ:
            self._interrupts += not self._line
            self._line = True
            if self._dma is not None:
                self._dma.interrupt()
            self._irq.set(True)

    def _release(self) -> None:
        if self._line:
            self._line = False
            self._irq.set(False)

    def _busy(self, phase: str) -> None:
        self._phase = phase
        self._event = self._clock.schedule(self._clock.now() + BUSY_NS, self._done)

    def _stop(self) -> None:
        """Give up whatever is going on."""
        if self._event is not None:
            self._event.cancel()
            self._event = None
        self._phase = _IDLE
        self._drop_block()

    def _done(self, due: int) -> None:
        """A busy time is over."""
        self._event = None
        phase, self._phase = self._phase, _IDLE
        drive = self.drives[self._selected]
        if phase == _RESET:
            self._diagnose()
        elif phase == _DMA:
            self._move(drive)
        elif phase == _BLOCK:
            self._take(drive, proceed(drive, b"" if self._reading else _bytes(self._words)))
        elif self._command == _DIAGNOSE:
            self._diagnose()
            self._request()
        else:
            self._take(drive, execute(drive, self._command))

    def _take(self, drive: Drive, reply: Reply) -> None:
        """Show the host what the drive says."""
        drive.status = reply.status
        self._more = reply.more
        self._at = 0
        self._reading = bool(reply.data)
        self._words = _words(reply.data) if reply.data else [0] * (reply.wanted // 2)
        if reply.dma:
            self._dma_to_memory = reply.dma == "read"
            self._phase = _DMA
            self._dma_started()
        if reply.interrupt:
            self._request()

    def _diagnose(self) -> None:
        self._selected = 0
        for drive in self.drives:
            reply = diagnose(drive)
            drive.status = reply.status if drive.disk is not None else 0

    # --- data ---

    def _drop_block(self) -> None:
        self._words = []
        self._at = 0
        self._reading = False  # the block is for the host to read
        self._more = False  # the drive goes on after the block
        self._dma_to_memory = False

    def _read_data(self, size: int) -> int:
        words, at = self._words, self._at
        if not self._reading or at * 2 + size > len(words) * 2:
            return 0
        if size == 2:
            value = words[at]
            at += 1
        else:
            value = words[at] | words[at + 1] << 16
            at += 2
        self._at = at
        if at == len(words):
            self._moved()
        return value

    def _write_data(self, size: int, value: int) -> None:
        words, at = self._words, self._at
        if self._reading or at * 2 + size > len(words) * 2:
            return
        words[at] = value & 0xFFFF
        at += 1
        if size == 4:
            words[at] = value >> 16
            at += 1
        self._at = at
        if at == len(words):
            self._moved()

    def _moved(self) -> None:
        """The host has moved the whole block."""
        drive = self.drives[self._selected]
        if self._more:
            drive.status = READY | BSY
            self._busy(_BLOCK)
        else:
            drive.status = READY
            self._drop_block()

    def _dma_started(self) -> None:
        """The bus master is ready, or the drive is: go on once both are."""
        if self._phase == _DMA and self._event is None and self._dma is not None and self._dma.active:
            self._busy(_DMA)

    def _move(self, drive: Drive) -> None:
        """Move all sectors of a DMA command."""
        engine = self._dma
        if engine is None or not engine.active:
            self._phase = _DMA  # it was stopped meanwhile
            return
        if not engine.prepare(drive.left * SECTOR):
            drive.left = 0
            self._take(drive, Reply(interrupt=False))  # the driver's timeout finds out
            return
        good = True
        while drive.left and good:
            count = min(drive.left, _DMA_SECTORS)
            if self._dma_to_memory:
                data = drive.fetch(count)
                good = data is not None
                engine.scatter(data or b"")
            else:
                good = drive.store(engine.gather(count * SECTOR))
        engine.finish(failed=not good)
        self._take(drive, Reply() if good else drive.abort())

    # --- registers ---

    def read(self, port: int, size: int) -> int:
        """Read a register; only the data port is wider than a byte."""
        if port == self._base:
            # A byte costs a whole word: there are boot loaders that read the low bytes of words this way.
            return self._read_data(2) & 0xFF if size == 1 else self._read_data(size)
        if size == 1:
            return self._read_register(port)
        inside = [at for at in range(port, port + size) if any(at in span for span in self.ports)]
        value = (1 << 8 * size) - 1
        for at in inside:
            shift = 8 * (at - port)
            value = value & ~(0xFF << shift) | self._read_register(at) << shift
        return value

    def write(self, port: int, size: int, value: int) -> None:
        """Write a register; only the data port is wider than a byte."""
        if port == self._base:
            if size != 1:
                self._write_data(size, value)
            return
        for at in range(port, port + size):
            if any(at in span for span in self.ports):
                self._write_register(at, value >> 8 * (at - port) & 0xFF)

    def _read_register(self, port: int) -> int:
        drive = self.drives[self._selected]
        register = port - self._base
        if port != self._control_port and register != _STATUS:
            # Of a drive that is not there, the other one can't know the error.
            unknown = self._empty or (register == _ERROR and drive.disk is None)
            return 0 if unknown else drive.read(register, bool(self._control & HIGH_ORDER))
        if port != self._control_port:
            self._release()
        return drive.status

    def _write_register(self, port: int, value: int) -> None:
        if port == self._control_port:
            self._write_control(value)
            return
        drive = self.drives[self._selected]
        register = port - self._base
        if register == _STATUS:
            self._control &= ~HIGH_ORDER
            self._write_command(drive, value)
        elif not drive.status & (BSY | DRQ):
            self._control &= ~HIGH_ORDER
            for each in self.drives:
                each.write(register, value)
            if register == _SELECT:
                self._selected = int(bool(value & SLAVE))

    def _write_command(self, drive: Drive, code: int) -> None:
        self._release()
        if drive.disk is None or drive.status & (BSY | DRQ) or self._control & RESET:
            return
        self._command = code
        if takes_data_at_once(drive, code):
            # nothing interrupts yet, and there are drivers that write the first block without a look
            self._take(drive, execute(drive, code))
            return
        drive.status = DRDY | BSY
        self._busy(_COMMAND)

    def _write_control(self, value: int) -> None:
        before, self._control = self._control, value
        if value & RESET:
            if not before & RESET:
                self._stop()
                self._release()
                for drive in self.drives:
                    drive.status |= BSY
        elif before & RESET:
            for drive in self.drives:
                drive.restart()
                drive.status |= BSY
            self._busy(_RESET)

    # --- state ---

    def reset(self) -> None:
        """Go back to power-on; the disks keep their contents."""
        self._stop()
        self._release()
        self._power_on()
        for drive in self.drives:
            drive.power_on()

    def save(self) -> State:
        """Give registers, the block being moved and the coming event; not the disks' contents."""
        return {
            **{name: getattr(self, f"_{name}") for name in _FIELDS},
            "drives": [drive.save() for drive in self.drives],
            "words": _bytes(self._words).hex(),
            "event": self._event.save() if self._event is not None else None,
        }

    def load(self, state: State) -> None:
        """Take over what ``save`` gave. UsageError if it is of drives of other sizes."""
        for n, (drive, saved) in enumerate(zip(self.drives, state["drives"], strict=True)):
            if saved["sectors"] != drive.sectors:
                raise UsageError(
                    f"the saved state is of a drive with {saved['sectors']} sectors, "
                    f"but drive {n} of {self.name} has {drive.sectors}"
                )
        self._stop()
        for drive, saved in zip(self.drives, state["drives"], strict=True):
            drive.load(saved)
        for name in _FIELDS:
            setattr(self, f"_{name}", state[name])
        self._words = _words(bytes.fromhex(state["words"]))
        event = state["event"]
        self._event = None if event is None else self._clock.restore(event, self._done)

    def stats(self) -> dict[str, int]:
        """Count commands, those that failed, and interrupts."""
        return {
            "commands": sum(drive.commands for drive in self.drives),
            "failures": sum(drive.failures for drive in self.drives),
            "interrupts": self._interrupts,
        }


def _words(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 2}H", data))


def _bytes(words: list[int]) -> bytes:
    return struct.pack(f"<{len(words)}H", *words)


#: The first channel, 1F0h and 3F6h, which has line 14, and the second, 170h and 376h, which has line 15: each
#: is an :class:`IdeChannel` that takes its line, the clock, its disks, and its half of the bus master.
primary = partial(IdeChannel, "ide0", 0x1F0, 0x3F6, first_serial=1)
secondary = partial(IdeChannel, "ide1", 0x170, 0x376, first_serial=3)
