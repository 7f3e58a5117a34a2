# SPDX-License-Identifier: GPL-2.0-only
"""What a stretch of this process's memory holds, kept so that it can be put back again and again, quickly.

What has to be put back are the pages that were written since, whoever wrote them: translated code, devices,
a hypervisor. So it is not the writers who are watched, which can't be done completely, but the operating
system's page tables. The stretch becomes a private mapping of a file in memory that holds the image. A page
that is written to gets a copy of its own, and :meth:`PageImage.put_back` asks which pages have one. They keep
it: a page that has been written once costs no page fault the next time, only its bytes are copied. When there
are many of them, and now and then, all go back to the file at once.

Where the system doesn't tell which pages have a copy (Linux tells since 4.2 and quickly since 6.7, unless
``/proc`` is hidden), all pages go back to the file each time. That is right too, but slower.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref
from array import array
from collections.abc import Iterable, Sequence
from itertools import groupby

from vmi.errors import OutputError
from vmi.files import reason
from vmi.memory import PAGE_SIZE

#: After so many times all copies are dropped: a page that was written once is not copied to for ever.
DROPPED_EACH = 64
#: More pages than this with a copy of their own are dropped rather than copied to.
MOST_COPIES = 4096

_PIECE = 1 << 20  # bytes that are written to the file at once, unless they are zero
_ZERO = bytes(_PIECE)
_MAP_FIXED = 0x10
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE

# PAGEMAP_SCAN: which pages of a range are in memory, or swapped out, and not the file's
_SCAN = 0xC0606610
_SCAN_SIZE, _SCAN_START, _SCAN_REACHED = 96, 2, 4  # bytes of the request, and two of its fields of 8
_OF_FILE, _PRESENT, _SWAPPED = 1 << 2, 1 << 3, 1 << 4
_ROWS, _ROW = 64, 3  # ranges that one request gives at most: start, end, what they are

# the same, in the 8 bytes that /proc/self/pagemap has for each page
_ENTRY = 8
_ENTRY_OF_FILE, _ENTRY_THERE = 1 << 61, 3 << 62

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

#: Address -> the image that the memory there is a private mapping of.
_mapped: weakref.WeakValueDictionary[int, PageImage] = weakref.WeakValueDictionary()


class PageImage:
    """What ``view`` holds now. The memory stays where it is, and all that points to it stays right.

    :param view: whole pages, at the beginning of a mapping; it must outlive this.
    :param address: their address in this process.
    :raises OutputError: the system doesn't give the memory that the image takes.
    """

    def __init__(self, view: memoryview, address: int) -> None:
        self._view, self._address, self._size = view, address, len(view)
        try:
            self._file = os.memfd_create("vmi-image", os.MFD_CLOEXEC)
            weakref.finalize(self, os.close, self._file)
            os.ftruncate(self._file, self._size)
            for at in range(0, self._size, _PIECE):
                piece = bytes(view[at : at + _PIECE])
                if piece != _ZERO[: len(piece)]:
                    os.pwrite(self._file, piece, at)
            self._image = mmap.mmap(self._file, self._size, mmap.MAP_SHARED, mmap.PROT_READ)
            self._was = memoryview(self._image)
        except OSError as error:
            raise OutputError(
                f"{self._size >> 20} MiB of memory can't be kept for a checkpoint: {reason(error)}"
            ) from error
        self._pagemap = _Pagemap(address, self._size)
        self._times = 0
        self._map()

    def __repr__(self) -> str:
        return f"<PageImage of {self._size >> 20} MiB>"

    def _map(self) -> None:
        """Make the memory a private mapping of the image, which drops all copies that it has of pages."""
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        got = _libc.mmap(self._address, self._size, _READ_WRITE, flags, self._file, 0)
        if got != self._address:
            why = os.strerror(ctypes.get_errno())
            raise OutputError(f"{self._size >> 20} MiB of memory can't be mapped for a checkpoint: {why}")
        _mapped[self._address] = self

    def changed(self, candidates: Iterable[int]) -> list[int]:
        """Those of some pages, by number, that hold something else than the image does."""
        view, was = self._view, self._was
        spans = ((page, slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)) for page in candidates)
        return [page for page, span in spans if bytes(view[span]) != bytes(was[span])]

    def written(self) -> Sequence[range] | None:
        """The pages, by number, that may hold something else than the image does; None if that is unknown."""
        return self._pagemap.copies() if _mapped.get(self._address) is self else None

    def put_back(self, written: Sequence[range] | None) -> None:
        """Let the memory hold what the image does.

        :param written: what :meth:`written` just gave.
        """
        self._times += 1
        if written is None or self._times % DROPPED_EACH == 0 or sum(map(len, written)) > MOST_COPIES:
            self._map()
            return
        view, was = self._view, self._was
        for pages in written:
            span = slice(pages.start * PAGE_SIZE, pages.stop * PAGE_SIZE)
            view[span] = was[span]


class _Pagemap:
    """What the system says of a range of this process's pages."""

    def __init__(self, start: int, size: int) -> None:
        self._start, self._size = start, size
        self._rows = array("Q", bytes(_ROWS * _ROW * _ENTRY))
        rows, _ = self._rows.buffer_info()
        wanted = _OF_FILE, _OF_FILE, _PRESENT | _SWAPPED, _PRESENT
        self._request = array("Q", (_SCAN_SIZE, 0, start, start + size, 0, rows, _ROWS, 0, *wanted))
        self._scans = True
        self._file: int | None = None
        try:
            self._file = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        weakref.finalize(self, os.close, self._file)

    def copies(self) -> list[range] | None:
        """The pages, by number in the range, that are not those of the file they map."""
        if self._file is None:
            return None
        try:
            if self._scans:
                return self._scan(self._file)
        except OSError:
            self._scans = False
        try:
            return self._read(self._file)
        except OSError:
            return None

    def _scan(self, file: int) -> list[range]:
        start, end = self._start, self._start + self._size
        request, rows, at = self._request, self._rows, start
        found: list[range] = []
        while at < end:
            request[_SCAN_START] = at
            used = _ROW * fcntl.ioctl(file, _SCAN, request)
            firsts, lasts = ([(each - start) // PAGE_SIZE for each in rows[n:used:_ROW]] for n in (0, 1))
            found += map(range, firsts, lasts)
            at = request[_SCAN_REACHED]
        return found

    def _read(self, file: int) -> list[range] | None:
        size = self._size // PAGE_SIZE * _ENTRY
        data = os.pread(file, size, self._start // PAGE_SIZE * _ENTRY)
        if len(data) != size:
            return None
        entries = memoryview(data).cast("Q")
        numbers = [
            n for n, entry in enumerate(entries) if entry & _ENTRY_THERE and not entry & _ENTRY_OF_FILE
        ]
        runs = (list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
        return [range(run[0][1], run[-1][1] + 1) for run in runs]
