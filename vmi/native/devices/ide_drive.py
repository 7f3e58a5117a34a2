# SPDX-License-Identifier: GPL-2.0-only
"""One drive of an IDE channel: its registers, its ways to name a sector, and moving sectors.

A drive is addressed by cylinder, head and sector, by a 28-bit or by a 48-bit sector number. The 48-bit
commands need registers twice as wide: each write pushes the value before into a second, "previous" one.

What the drive tells its host after a step of a command is a :class:`Reply`; ports, time and interrupts are
the channel's matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vmi.errors import VmiError
from vmi.native.bus import State
from vmi.native.disk import SECTOR, Disk
from vmi.native.stamped import Stamped

BSY, DRDY, DSC, DRQ, ERR = 0x80, 0x40, 0x10, 0x08, 0x01  # status
READY = DRDY | DSC
ABRT, PASSED = 0x04, 0x01  # error register; PASSED is the code of a successful diagnosis

LBA, SLAVE, HEAD, ALWAYS_ON = 0x40, 0x10, 0x0F, 0xA0  # device/head register
MAX_MULTIPLE = 16  # sectors of one block of READ MULTIPLE
LBA28_SECTORS = 0x0FFFFFFF

#: Registers 1-5 for the host to write, in the order of their ports.
WRITTEN = ("feature", "count", "sector", "cylinder_low", "cylinder_high")
#: Registers 1-5 for the host to read.
READ = ("error", *WRITTEN[1:])

_FIELDS = (
    *WRITTEN, *(f"previous_{name}" for name in WRITTEN), "error", "select", "status", "heads",
    "sectors_per_track", "multiple", "write_cache", "dma_mode", "extended", "left", "block",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """What a drive says when a step of a command is done.

    ``data`` is a block for the host to read at the data port; ``wanted`` is how many bytes the host shall
    write there. With ``more`` the drive goes on when that has happened. ``dma`` says that the command's
    sectors go through the bus master instead: "read" from the drive or "write" to it.
    """

    status: int = READY
    interrupt: bool = True
    data: bytes = field(default=b"", repr=False)
    wanted: int = 0
    more: bool = False
    dma: str = ""


@dataclass(frozen=True)
class Geometry:
    """Cylinders, heads (1-16) and sectors of a track (1-63)."""

    cylinders: int
    heads: int
    sectors: int

    @classmethod
    def of(cls, disk: Disk) -> Geometry:
        """The geometry a disk was partitioned with if it shows, otherwise the usual one of its size.

        Partitions end at the end of a cylinder, so the first one's last sector tells the shape; one with more
        than 16 heads is what firmware makes of a large disk, not the drive's own.
        """
        try:
            first = disk.read(0, 1)
        except VmiError:
            first = bytes(SECTOR)
        if first[510:] == b"\x55\xaa":
            for at in range(446, 510, 16):
                heads, sectors = first[at + 5] + 1, first[at + 6] & 0x3F
                length = int.from_bytes(first[at + 12 : at + 16], "little")
                if length and heads > 1 and sectors:
                    cylinders = disk.sectors // (heads * sectors)
                    if 1 <= cylinders <= 16383:
                        if heads > 16:
                            break
                        return cls(cylinders, heads, sectors)
        return cls(min(max(disk.sectors // (16 * 63), 2), 16383), 16, 63)


class Drive(Stamped):
    """A drive, or the empty place of one when there is no ``disk``.

    :param slave: drive 1 of its channel instead of drive 0.
    :param dma: the channel can do DMA.
    """

    def __init__(self, disk: Disk | None, *, slave: bool, serial: str, dma: bool) -> None:
        self.disk = disk
        self.slave = slave
        self.serial = serial
        self.can_dma = dma
        self.sectors = disk.sectors if disk is not None else 0
        self.geometry = Geometry.of(disk) if disk is not None else Geometry(0, 0, 0)
        self.commands = self.failures = 0
        self.power_on()

    def __repr__(self) -> str:
        return f"<Drive {int(self.slave)} {self.disk!r} status {self.status:#04x}>"

    def power_on(self) -> None:
        """The state after the RESET line."""
        # The shape that the host's cylinder, head and sector numbers are of.
        self.heads, self.sectors_per_track = self.geometry.heads, self.geometry.sectors
        self.write_cache = True
        self.dma_mode = 0x45 if self.can_dma else 0  # as SET FEATURES has it: multiword 2xh, ultra 4xh
        self.restart()

    def restart(self) -> None:
        """The state after a software reset, which leaves alone what the host has set up."""
        self.feature = self.previous_feature = 0
        self.previous_count = self.previous_sector = 0
        self.previous_cylinder_low = self.previous_cylinder_high = 0
        self.error = 0
        self.multiple = MAX_MULTIPLE
        self.extended = False  # the command in progress is one of the 48-bit ones
        self.left = 0  # sectors of it that have not been moved
        self.block = 1  # sectors it moves between interrupts
        self.sign()
        self.status = READY if self.disk is not None else 0

    def sign(self) -> None:
        """Put the signature of an ATA disk into the registers, by which hosts tell it from other devices."""
        self.select = ALWAYS_ON
        self.count = self.sector = 1
        self.cylinder_low = self.cylinder_high = 0 if self.disk is not None else 0xFF

    # --- registers ---

    def read(self, register: int, previous: bool) -> int:
        """Read register 1-6; ``previous`` shows the older bytes of the wide ones."""
        if register == 6:
            return self.select
        if previous:
            value: int = getattr(self, f"previous_{WRITTEN[register - 1]}")
        else:
            value = getattr(self, READ[register - 1])
        return value

    def write(self, register: int, value: int) -> None:
        """Write register 1-6."""
        if register == 6:
            self.select = value | ALWAYS_ON
        else:
            name = WRITTEN[register - 1]
            setattr(self, f"previous_{name}", getattr(self, name))
            setattr(self, name, value)

    @property
    def position(self) -> int:
        """The sector that the registers name; negative or too large if the drive has no such sector."""
        low = self.cylinder_high << 8 | self.cylinder_low
        if not self.select & LBA:
            track = low * self.heads + (self.select & HEAD)
            return track * self.sectors_per_track + self.sector - 1
        low = low << 8 | self.sector
        if not self.extended:
            return (self.select & HEAD) << 24 | low
        high = self.previous_cylinder_high << 8 | self.previous_cylinder_low
        return (high << 8 | self.previous_sector) << 24 | low

    @position.setter
    def position(self, lba: int) -> None:
        if not self.select & LBA:
            track, sector = divmod(lba, self.sectors_per_track)
            cylinder, head = divmod(track, self.heads)
            self.sector = sector + 1 & 0xFF
            self.select = self.select & ~HEAD | head
        else:
            self.sector = lba & 0xFF
            cylinder = lba >> 8
            if self.extended:
                self.previous_sector = lba >> 24 & 0xFF
                self.previous_cylinder_low = lba >> 32 & 0xFF
                self.previous_cylinder_high = lba >> 40 & 0xFF
            else:
                self.select = self.select & ~HEAD | lba >> 24 & HEAD
        self.cylinder_low, self.cylinder_high = cylinder & 0xFF, cylinder >> 8 & 0xFF

    @property
    def requested(self) -> int:
        """How many sectors the registers ask for; 0 stands for the most there can be."""
        if self.extended:
            return self.previous_count << 8 | self.count or 0x10000
        return self.count or 0x100

    # --- moving sectors ---

    def begin(self, extended: bool, block: int) -> None:
        """Begin to move the sectors that the registers name, ``block`` between interrupts."""
        self.extended = extended
        self.left = self.requested
        self.block = block

    def fetch(self, count: int) -> bytes | None:
        """Read the next sectors; None if the drive or its image can't."""
        lba = self.position
        if self.disk is None or not self._has(lba, count):
            return None
        try:
            data = self.disk.read(lba, count)
        except VmiError:
            return None
        self._advance(lba, count)
        return data

    def store(self, data: bytes) -> bool:
        """Write the next sectors; False if the drive or its image can't."""
        lba, count = self.position, len(data) // SECTOR
        if self.disk is None or not self._has(lba, count):
            return False
        try:
            self.disk.write(lba, data)
        except VmiError:
            return False
        self._advance(lba, count)
        return True

    def flush(self) -> bool:
        """Force what was written to the image; False if that can't be done."""
        try:
            if self.disk is not None:
                self.disk.flush()
        except VmiError:
            return False
        return True

    def _has(self, lba: int, count: int) -> bool:
        return lba >= 0 and lba + count <= self.sectors

    def has_requested(self) -> bool:
        """Whether all the sectors exist that the registers name."""
        return self._has(self.position, self.requested)

    def _advance(self, lba: int, count: int) -> None:
        self.position = lba + count
        self.left -= count
        self.count = self.left & 0xFF

    def abort(self) -> Reply:
        """Give a command up."""
        self.failures += 1
        self.left = 0
        self.error = ABRT
        return Reply(DRDY | ERR)

    # --- state ---

    def save(self) -> State:
        """Give all registers; the disk's contents are the disk's matter."""
        return {"sectors": self.sectors, **{name: getattr(self, name) for name in _FIELDS}}

    def load(self, state: State) -> None:
        """Take over all registers."""
        for name in _FIELDS:
            setattr(self, name, state[name])
