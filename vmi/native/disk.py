# SPDX-License-Identifier: GPL-2.0-only
"""A disk as a row of 512-byte sectors over a raw image, with changes kept in memory unless asked otherwise.

By default the image is never written to: changed blocks live in an overlay that ends with the run, so that
the same run can be made again. A writable disk passes each write on to its image at once.

Snapshots are in two parts, because changed blocks may be many megabytes: ``save`` names the image that the
changes belong to, ``overlay`` gives the changes themselves.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import weakref
from collections.abc import Mapping
from typing import Protocol

from vmi.errors import BadInput, OutputError, UsageError
from vmi.files import reason
from vmi.native.bus import State

SECTOR = 512  # bytes
MOST_DISKS = 4  # on the board's two channels
BLOCK = 4096  # bytes of one entry of the overlay
OVERLAY_LIMIT = 1 << 30  # bytes of changes that a guest may make this process keep

_SAMPLES = 4096  # blocks that an image is known by: all of them up to 16 MiB, then evenly spread ones


class Store(Protocol):
    """What lies below a disk: ``size`` bytes that are there. Offsets and sizes are in bytes."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Give ``size`` bytes; those beyond the end are zero."""

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""

    def flush(self) -> None:
        """Force what was written to where it stays."""

    def close(self) -> None:
        """Let go of the host's file."""


class _Bytes:
    """A constant image in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size].ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        raise OutputError("a disk image in memory can't be written to")

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


class _File:
    """A raw image: a regular file or a block device."""

    def __init__(self, path: str, writable: bool) -> None:
        self._path = path
        try:
            descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
            wanted = "written to" if writable else "read"
            raise BadInput(f"disk image {path!r} can't be {wanted}: {reason(error)}") from error
        # Closes the file as well when nobody refers to this object any more.
        self.close = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        try:
            self._claim(writable)
            self.size = os.lseek(descriptor, 0, os.SEEK_END)
        except BaseException:
            self.close()
            raise

    def _claim(self, writable: bool) -> None:
        mode = os.fstat(self._descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise BadInput(f"disk image {self._path!r} must be a file or a block device")
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            wanted = "another program uses it" if writable else "another program writes to it"
            raise BadInput(f"disk image {self._path!r} can't be used: {wanted}") from None
        except OSError:
            pass  # a file system without locks

    def read(self, offset: int, size: int) -> bytes:
        parts = []
        try:
            while size and (part := os.pread(self._descriptor, size, offset)):
                parts.append(part)
                offset += len(part)
                size -= len(part)
        except OSError as error:
            raise BadInput(f"disk image {self._path!r} can't be read: {reason(error)}") from error
        return b"".join(parts) + bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                done = os.pwrite(self._descriptor, rest, offset)
                offset += done
                rest = rest[done:]
            self.size = max(self.size, offset)  # a last sector that was there in part is whole now
        except OSError as error:
            raise OutputError(f"disk image {self._path!r} can't be written: {reason(error)}") from error

    def flush(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise OutputError(f"disk image {self._path!r} can't be written: {reason(error)}") from error


class Disk:
    """``sectors`` sectors of 512 bytes; a last sector that the image holds in part is filled up with zeros.

    :param store: the image; left as it is unless ``writable``.
    :param name: for messages.
    :param overlay_limit: bytes of changes kept in memory at most.
    :param path: where the image can be opened again, None if nowhere.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        writable: bool = False,
        overlay_limit: int = OVERLAY_LIMIT,
        path: str | None = None,
    ) -> None:
        if not store.size:
            raise BadInput(f"disk image {name!r} is empty")
        self.name = name
        self.path = path
        self.writable = writable
        self.sectors = -(-store.size // SECTOR)
        self._store = store
        self._limit = overlay_limit
        self._overlay: dict[int, bytes] = {}
        self._reads = self._writes = self._sectors_read = self._sectors_written = self._flushes = 0

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "memory") -> Disk:
        """A disk over a constant image in memory."""
        return cls(_Bytes(bytes(data)), name=name)

    def __repr__(self) -> str:
        kind = "writable" if self.writable else f"{len(self._overlay)} blocks changed"
        return f"<Disk {self.name!r} {self.sectors} sectors, {kind}>"

    # --- sectors ---

    def read(self, lba: int, count: int) -> bytes:
        """Read ``count`` sectors from sector ``lba`` on.

        :raises BadInput: the host can't read the image.
        :raises UsageError: the disk has no such sectors.
        """
        self._check(lba, count)
        self._reads += 1
        self._sectors_read += count
        return self._read(lba * SECTOR, count * SECTOR)

    def write(self, lba: int, data: bytes) -> None:
        """Write whole sectors from sector ``lba`` on.

        :raises OutputError: the host can't write the image, or the overlay is full.
        :raises BadInput: the host can't read what else is in a block of the overlay.
        :raises UsageError: the disk has no such sectors, or ``data`` is not whole sectors.
        """
        count, rest = divmod(len(data), SECTOR)
        if rest:
            raise UsageError(
                f"a disk write must be whole sectors of {SECTOR} bytes, but it is of {len(data)}"
            )
        self._check(lba, count)
        if self.writable:
            self._store.write(lba * SECTOR, data)
        else:
            self._change(lba * SECTOR, data)
        self._writes += 1
        self._sectors_written += count

    def flush(self) -> None:
        """Force what was written to the image. OutputError if the host can't."""
        self._flushes += 1
        if self.writable:
            self._store.flush()

    def close(self) -> None:
        """Let go of the image; the disk can't be used any more."""
        self._store.close()

    def _check(self, lba: int, count: int) -> None:
        if lba < 0 or count < 0 or lba + count > self.sectors:
            raise UsageError(
                f"disk sectors must lie in 0 to {self.sectors - 1}, but {count} from {lba} were asked for"
            )

    def _read(self, offset: int, size: int) -> bytes:
        if not self._overlay:
            return self._store.read(offset, size)
        end = offset + size
        blocks = range(offset // BLOCK, -(-end // BLOCK))
        changed = [block for block in blocks if block in self._overlay]
        if len(changed) == len(blocks):
            data, begin = bytearray(len(blocks) * BLOCK), blocks.start * BLOCK
        else:
            data, begin = bytearray(self._store.read(offset, size)), offset
        for block in changed:
            bits = self._overlay[block]
            at = block * BLOCK - begin
            skip = max(0, -at)
            bits = bits[skip : len(data) - at]
            data[at + skip : at + skip + len(bits)] = bits
        return bytes(data[offset - begin : end - begin])

    def _change(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        blocks = range(offset // BLOCK, -(-end // BLOCK))
        new = sum(block not in self._overlay for block in blocks)
        if (len(self._overlay) + new) * BLOCK > self._limit:
            raise OutputError(
                f"disk image {self.name!r} can't take more than {self._limit >> 20} MiB of changes in memory"
            )
        changed = {}
        for block in blocks:
            begin = block * BLOCK
            low, high = max(offset, begin), min(end, begin + BLOCK)
            part = data[low - offset : high - offset]
            length = self._length(block)
            if len(part) < length:
                old = self._overlay.get(block) or self._store.read(begin, length)
                part = old[: low - begin] + part + old[high - begin :]
            changed[block] = bytes(part)
        self._overlay.update(changed)

    def _length(self, block: int) -> int:
        """Bytes of a block: all have BLOCK but the last."""
        return min(BLOCK, self.sectors * SECTOR - block * BLOCK)

    # --- snapshots ---

    def save(self) -> State:
        """Name the image by its size and a hash of it; the changes are in :meth:`overlay`.

        The hash is over all blocks of an image up to 16 MiB, and over 4096 evenly spread blocks of a larger
        one: enough to notice another image, not enough to notice each edit of a large one.
        """
        return {"size": self._store.size, "sha256": self._sample()}

    def load(self, state: State) -> None:
        """Make sure that a saved state is of this image. BadInput if it is not."""
        own = self.save()
        if own["size"] != state["size"]:
            raise BadInput(
                f"the saved state is of a disk image of {state['size']} bytes, "
                f"but {self.name!r} has {own['size']}"
            )
        if own["sha256"] != state["sha256"]:
            raise BadInput(f"the saved state is of other contents of disk image {self.name!r}")

    def overlay(self) -> dict[int, bytes]:
        """Give the changed blocks by number: 4096 bytes each, the disk's last one may be shorter."""
        return dict(self._overlay)

    def load_overlay(self, blocks: Mapping[int, bytes]) -> None:
        """Replace all changes by what :meth:`overlay` gave.

        :raises BadInput: a block is not one of this disk.
        :raises UsageError: the disk is writable, so its changes are in its image.
        """
        if self.writable:
            raise UsageError(f"disk image {self.name!r} is writable, so that it takes no saved changes")
        for block, data in blocks.items():
            if not 0 <= block * BLOCK < self.sectors * SECTOR or len(data) != self._length(block):
                raise BadInput(f"saved block {block} ({len(data)} bytes) is none of disk image {self.name!r}")
        self._overlay = dict(blocks)

    def _sample(self) -> str:
        total = -(-self._store.size // BLOCK)
        digest = hashlib.sha256()
        if total <= _SAMPLES:
            digest.update(self._store.read(0, self._store.size))
        else:
            for n in range(_SAMPLES):
                digest.update(self._store.read(n * (total - 1) // (_SAMPLES - 1) * BLOCK, BLOCK))
        return digest.hexdigest()

    def stats(self) -> dict[str, int]:
        """Count accesses and sectors since the disk was opened."""
        return {
            "reads": self._reads,
            "writes": self._writes,
            "flushes": self._flushes,
            "sectors_read": self._sectors_read,
            "sectors_written": self._sectors_written,
            "changed_blocks": len(self._overlay),
        }


def open_image(
    path: str | os.PathLike[str], *, writable: bool = False, overlay_limit: int = OVERLAY_LIMIT
) -> Disk:
    """Open a raw image: a file or a block device.

    :param writable: write changes to the image itself instead of keeping them in memory.
    :raises BadInput: the image can't be opened, is empty, or is in use.
    """
    name = os.fspath(path)
    return Disk(
        _File(name, writable),
        name=name,
        writable=writable,
        overlay_limit=overlay_limit,
        path=os.path.abspath(name),
    )
