# SPDX-License-Identifier: GPL-2.0-only
"""What an IDE disk does at each command code: the table of commands, and the data of IDENTIFY DEVICE.

Commands are those of ATA-5 for a disk, and of ATA-6 for sector numbers of 48 bits. A code that is not in
the table is aborted, as the standard demands; so are NOP, and DEVICE RESET and the packet commands, by which
a host finds out that this is no CD-ROM drive.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

from vmi.native.devices.ide_drive import (
    DRDY,
    DRQ,
    HEAD,
    LBA28_SECTORS,
    MAX_MULTIPLE,
    PASSED,
    READY,
    Drive,
    Reply,
)
from vmi.native.disk import SECTOR

MODEL, FIRMWARE = "QEMU HARDDISK", "2.5+"

_SET_TRANSFER_MODE, _WRITE_CACHE_ON, _WRITE_CACHE_OFF = 0x03, 0x02, 0x82
# Read ahead, keeping of settings over a reset, power and noise levels: nothing to do for a disk image.
_IGNORED_FEATURES = {0x05, 0x85, 0x42, 0xC2, 0x55, 0xAA, 0x66, 0xCC, 0x67, 0x69, 0x96, 0x9A}
_PIO_DEFAULT, _PIO, _MULTIWORD, _ULTRA = 0, 1, 4, 8  # transfer modes, without their number in the low bits


def execute(drive: Drive, code: int) -> Reply:
    """Do a command, or begin it if it moves sectors."""
    drive.commands += 1
    drive.error = 0
    command = COMMANDS.get(code)
    return drive.abort() if command is None else command(drive)


def proceed(drive: Drive, data: bytes) -> Reply:
    """Go on after a block: ``data`` is what the host has written, empty if it has read."""
    if not data:
        return _next_to_host(drive)
    if not drive.store(data):
        return drive.abort()
    return _next_from_host(drive) if drive.left else Reply()


def takes_data_at_once(drive: Drive, code: int) -> bool:
    """Whether a command's first step is that the host writes a block, before the drive does anything."""
    command = COMMANDS.get(code)
    function = command.func if isinstance(command, partial) else command
    return function is _write or (function is _write_multiple and drive.multiple > 0)


def diagnose(drive: Drive) -> Reply:
    """End of a reset, and the diagnosis that a host asks for: both drives tell that they are well."""
    drive.sign()
    drive.error = PASSED
    return Reply()


# --- moving sectors ---


def _next_to_host(drive: Drive) -> Reply:
    data = drive.fetch(min(drive.left, drive.block))
    if data is None:
        return drive.abort()
    return Reply(READY | DRQ, data=data, more=drive.left > 0)


def _next_from_host(drive: Drive, interrupt: bool = True) -> Reply:
    wanted = min(drive.left, drive.block) * SECTOR
    return Reply(READY | DRQ, interrupt, wanted=wanted, more=True)


def _read(drive: Drive, extended: bool = False) -> Reply:
    drive.begin(extended, 1)
    return _next_to_host(drive)


def _read_multiple(drive: Drive, extended: bool = False) -> Reply:
    if not drive.multiple:
        return drive.abort()
    drive.begin(extended, drive.multiple)
    return _next_to_host(drive)


def _write(drive: Drive, extended: bool = False) -> Reply:
    drive.begin(extended, 1)
    return _next_from_host(drive, interrupt=False)


def _write_multiple(drive: Drive, extended: bool = False) -> Reply:
    if not drive.multiple:
        return drive.abort()
    drive.begin(extended, drive.multiple)
    return _next_from_host(drive, interrupt=False)


def _dma(drive: Drive, direction: str, extended: bool = False) -> Reply:
    if not drive.can_dma:
        return drive.abort()
    drive.begin(extended, 1)
    return Reply(READY | DRQ, interrupt=False, dma=direction)


def _verify(drive: Drive, extended: bool = False) -> Reply:
    drive.extended = extended
    return Reply() if drive.has_requested() else drive.abort()


# --- everything else ---


def _nothing(drive: Drive) -> Reply:
    return Reply()


def _spin_down(drive: Drive) -> Reply:
    # No disk turns here; hosts only look at the bit that tells of a seek.
    return Reply(DRDY)


def _check_power(drive: Drive) -> Reply:
    drive.count = 0xFF  # active
    return Reply()


def _flush(drive: Drive) -> Reply:
    return Reply() if drive.flush() else drive.abort()


def _set_geometry(drive: Drive) -> Reply:
    if not drive.count:
        return drive.abort()
    drive.heads = (drive.select & HEAD) + 1
    drive.sectors_per_track = drive.count
    return Reply()


def _set_multiple(drive: Drive) -> Reply:
    count = drive.count
    if count > MAX_MULTIPLE or count & (count - 1):
        return drive.abort()
    drive.multiple = count
    return Reply()


def _set_features(drive: Drive) -> Reply:
    feature = drive.feature
    if feature == _SET_TRANSFER_MODE:
        return _set_transfer_mode(drive)
    if feature in (_WRITE_CACHE_ON, _WRITE_CACHE_OFF):
        drive.write_cache = feature == _WRITE_CACHE_ON
        return _nothing(drive) if drive.write_cache else _flush(drive)
    return Reply() if feature in _IGNORED_FEATURES else drive.abort()


def _set_transfer_mode(drive: Drive) -> Reply:
    kind, number = drive.count >> 3, drive.count & 7
    if kind in (_PIO_DEFAULT, _PIO):
        drive.dma_mode = 0
    elif drive.can_dma and ((kind == _MULTIWORD and number <= 2) or (kind == _ULTRA and number <= 5)):
        drive.dma_mode = kind << 3 | number
    else:
        return drive.abort()
    return Reply()


def _read_native_max(drive: Drive, extended: bool = False) -> Reply:
    drive.extended = extended
    drive.position = (drive.sectors if extended else min(drive.sectors, LBA28_SECTORS)) - 1
    return Reply()


def _identify(drive: Drive) -> Reply:
    return Reply(READY | DRQ, data=identify(drive))


def _text(value: str, size: int) -> bytes:
    """Text of an IDENTIFY field: padded with spaces, the first letter of each pair in the high byte."""
    raw = value.encode("ascii")[:size].ljust(size)
    return b"".join(raw[at + 1 : at + 2] + raw[at : at + 1] for at in range(0, size, 2))


def identify(drive: Drive) -> bytes:
    """The 512 bytes of IDENTIFY DEVICE."""
    shape, total = drive.geometry, drive.sectors
    cylinders = shape.cylinders
    if (drive.heads, drive.sectors_per_track) != (shape.heads, shape.sectors):
        cylinders = min(total // (drive.heads * drive.sectors_per_track), 0xFFFF)
    by_shape = cylinders * drive.heads * drive.sectors_per_track
    short = min(total, LBA28_SECTORS)
    cache = 0x20 if drive.write_cache else 0
    words = [0] * 256

    def put(at: int, *values: int) -> None:
        words[at : at + len(values)] = values

    put(0, 0x0040, shape.cylinders, 0, shape.heads, SECTOR * shape.sectors, SECTOR, shape.sectors)
    put(20, 3, 512, 4)  # buffer: dual ported with cache, 512 sectors; bytes of ECC
    put(47, 0x8000 | MAX_MULTIPLE, 1, 0x0A00)  # 32-bit data port; capabilities: LBA, IORDY
    put(51, 0x0200, 0x0200, 0x0003)  # words 54-58 and 64-70 are valid
    put(54, cylinders, drive.heads, drive.sectors_per_track, by_shape & 0xFFFF, by_shape >> 16)
    put(59, 0x0100 | drive.multiple if drive.multiple else 0, short & 0xFFFF, short >> 16)
    put(64, 0x0003, 120, 120, 120, 120)  # PIO modes 3 and 4, cycle times in ns
    put(80, 0x00F0, 0x0016)  # ATA-4 to ATA-7
    # Feature sets: write cache; 48-bit numbers and both FLUSH CACHE commands.
    put(82, 0x4020, 0x7400, 0x4000, 0x4000 | cache, 0x3400, 0x4000)
    put(93, 0x6001)  # result of the reset: drive 0, 80-wire cable
    put(100, *(total >> shift & 0xFFFF for shift in (0, 16, 32, 48)))
    put(106, 0x6000)  # physical sectors are as large as logical ones
    if drive.can_dma:
        kind, bit = drive.dma_mode >> 3, 0x100 << (drive.dma_mode & 7)
        words[49] |= 0x0100
        words[53] |= 0x0004  # word 88 is valid
        words[63] = 0x0007 | (bit if kind == _MULTIWORD else 0)
        words[88] = 0x003F | (bit if kind == _ULTRA else 0)
    data = bytearray(struct.pack("<256H", *words))
    data[20:40] = _text(drive.serial, 20)
    data[46:54] = _text(FIRMWARE, 8)
    data[54:94] = _text(MODEL, 40)
    return bytes(data)


Command = Callable[[Drive], Reply]

#: Command code -> what it does. EXECUTE DEVICE DIAGNOSTIC is not here: it concerns both drives.
COMMANDS: dict[int, Command] = {
    0x10: _nothing,  # RECALIBRATE
    0x20: _read, 0x21: _read,
    0x24: partial(_read, extended=True),
    0x25: partial(_dma, direction="read", extended=True),
    0x27: partial(_read_native_max, extended=True),
    0x29: partial(_read_multiple, extended=True),
    0x30: _write, 0x31: _write,
    0x34: partial(_write, extended=True),
    0x35: partial(_dma, direction="write", extended=True),
    0x39: partial(_write_multiple, extended=True),
    0x3C: _write,  # WRITE VERIFY
    0x40: _verify, 0x41: _verify,
    0x42: partial(_verify, extended=True),
    0x70: _nothing,  # SEEK
    0x91: _set_geometry,
    0x94: _spin_down, 0x95: _spin_down, 0x96: _spin_down, 0x97: _spin_down,
    0x98: _check_power,
    0x99: _spin_down,
    0xC4: _read_multiple, 0xC5: _write_multiple, 0xC6: _set_multiple,
    0xC8: partial(_dma, direction="read"), 0xC9: partial(_dma, direction="read"),
    0xCA: partial(_dma, direction="write"), 0xCB: partial(_dma, direction="write"),
    0xE0: _spin_down, 0xE1: _spin_down, 0xE2: _spin_down, 0xE3: _spin_down,
    0xE5: _check_power,
    0xE6: _spin_down,
    0xE7: _flush, 0xEA: _flush,
    0xEC: _identify,
    0xEF: _set_features,
    0xF8: _read_native_max,
}  # fmt: skip
