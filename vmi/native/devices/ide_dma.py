# SPDX-License-Identifier: GPL-2.0-only
"""The bus master of the IDE controller: moves sectors between drives and memory without the processor.

Each channel has a command, a status and a table register. The table lists pieces of memory, 8 bytes each:
address, size (0 stands for 64 KiB), and a mark on the last one. A command's sectors are moved all at once
when both drive and guest are ready, so the table is looked at before anything happens: if it has too little
room, nothing is moved and no interrupt comes, as in QEMU.

The 16 ports lie where the controller's fourth base address register puts them, or nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vmi.native.bus import Device, State
from vmi.native.stamped import Stamped

PORTS = 16  # 8 for each channel

_START, _TO_MEMORY = 0x01, 0x08  # command register
_ACTIVE, _ERROR, _INTERRUPT, _CAPABLE = 0x01, 0x02, 0x04, 0x60  # status register
_COMMAND, _STATUS, _TABLE = 0, 2, 4  # ports of a channel
_LAST = 1 << 31
_TABLE_BYTES = 0x10000  # a table must not cross a 64 KiB boundary, so that it can't be longer

_FIELDS = ("command", "status", "table")


class Ports(Protocol):
    """What can give a device other ports."""

    def move(self, device: Device, ports: tuple[range, ...]) -> None:
        """Let the device answer these ports instead of those it has."""


class Engine(Stamped):
    """The bus master's half for one channel.

    :param load: reads bytes of guest-physical memory: address, size.
    :param store: writes bytes of guest-physical memory: address, data.
    """

    def __init__(self, load: Callable[[int, int], bytes], store: Callable[[int, bytes], None]) -> None:
        self._load = load
        self._store = store
        self.on_start: Callable[[], None] | None = None
        self.transfers = self.moved = 0
        self.reset()

    def reset(self) -> None:
        """Return to power-on."""
        self.command = 0
        self.status = 0
        self.table = 0
        self._pieces: list[tuple[int, int]] = []
        self._ends = False  # the pieces are all that the table has

    # --- for the channel ---

    @property
    def active(self) -> bool:
        """The guest has set it going."""
        return bool(self.status & _ACTIVE)

    def prepare(self, size: int) -> bool:
        """Find ``size`` bytes of memory by the table. False if it has less: then the engine has stopped."""
        self._pieces = []
        for at in range(self.table, self.table + _TABLE_BYTES, 8):
            entry = self._load(at & 0xFFFFFFFF, 8)
            address = int.from_bytes(entry[:4], "little") & ~1
            word = int.from_bytes(entry[4:], "little")
            room = word & 0xFFFE or 0x10000
            used = min(room, size)
            self._pieces.append((address, used))
            size -= used
            if not size or word & _LAST:
                self._ends = bool(word & _LAST) and used == room
                break
        if size:
            self._pieces = []
            self.status &= ~_ACTIVE
        return not size

    def scatter(self, data: bytes) -> None:
        """Store bytes to the memory that comes next; there is that much of it."""
        at = 0
        while at < len(data):
            address, size = self._next(len(data) - at)
            self._store(address, data[at : at + size])
            at += size

    def gather(self, size: int) -> bytes:
        """Load bytes from the memory that comes next; there is that much of it."""
        parts = []
        while size:
            address, part = self._next(size)
            parts.append(self._load(address, part))
            size -= part
        return b"".join(parts)

    def _next(self, limit: int) -> tuple[int, int]:
        address, size = self._pieces[0]
        used = min(size, limit)
        if used == size:
            del self._pieces[0]
        else:
            self._pieces[0] = (address + used, size - used)
        self.moved += used
        return address, used

    def finish(self, failed: bool) -> None:
        """The drive is done; the engine stays active if its table goes on."""
        self.transfers += 1
        if failed or self._ends:
            self.status &= ~_ACTIVE
        self._pieces = []

    def interrupt(self) -> None:
        """The channel's interrupt line has risen."""
        self.status |= _INTERRUPT

    # --- for the guest ---

    def read(self, register: int) -> int:
        """Read one of 8 byte registers."""
        if register >= _TABLE:
            return self.table >> 8 * (register - _TABLE) & 0xFF
        return self.command if register == _COMMAND else self.status if register == _STATUS else 0xFF

    def write(self, register: int, value: int) -> None:
        """Write one of 8 byte registers."""
        if register >= _TABLE:
            shift = 8 * (register - _TABLE)
            self.table = (self.table & ~(0xFF << shift) | value << shift) & ~3
        elif register == _COMMAND:
            self._write_command(value & (_START | _TO_MEMORY))
        elif register == _STATUS:
            cleared = self.status & ~value & (_INTERRUPT | _ERROR)
            self.status = self.status & _ACTIVE | cleared | value & _CAPABLE

    def _write_command(self, value: int) -> None:
        # Which way the sectors go is the drive's command's matter, as in QEMU; the bit is only kept.
        before, self.command = self.command, value
        if not value & _START:
            self.status &= ~_ACTIVE
        elif not before & _START:
            self.status |= _ACTIVE
            if self.on_start is not None:
                self.on_start()


class BusMaster(Device):
    """Two engines behind ports that the guest chooses.

    :param ports: told of each move.
    :param load: reads bytes of guest-physical memory: address, size.
    :param store: writes bytes of guest-physical memory: address, data.
    """

    name = "ide_dma"

    def __init__(
        self, ports: Ports, load: Callable[[int, int], bytes], store: Callable[[int, bytes], None]
    ) -> None:
        self.ports: tuple[range, ...] = ()
        self._bus = ports
        self.engines = (Engine(load, store), Engine(load, store))

    def map(self, address: int | None) -> None:
        """Answer the 16 ports from ``address`` on, or none."""
        self._bus.move(self, () if address is None else (range(address, address + PORTS),))

    def read(self, port: int, size: int) -> int:
        """Read a register."""
        return self.engines[port >> 3 & 1].read(port & 7)

    def write(self, port: int, size: int, value: int) -> None:
        """Write a register."""
        self.engines[port >> 3 & 1].write(port & 7, value)

    def reset(self) -> None:
        """Stop; the controller's configuration space says where the ports go."""
        for engine in self.engines:
            engine.reset()

    def save(self) -> State:
        """Give both engines' registers."""
        return {"engines": [{name: getattr(engine, name) for name in _FIELDS} for engine in self.engines]}

    def load(self, state: State) -> None:
        """Take over both engines' registers."""
        for engine, saved in zip(self.engines, state["engines"], strict=True):
            for name in _FIELDS:
                setattr(engine, name, saved[name])

    def stats(self) -> dict[str, int]:
        """Count transfers and the bytes they moved."""
        return {
            "transfers": sum(engine.transfers for engine in self.engines),
            "bytes": sum(engine.moved for engine in self.engines),
        }
