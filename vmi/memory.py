# SPDX-License-Identifier: GPL-2.0-only
"""Guest addresses as types of their own, and the physical memory of a machine.

A guest-physical and a guest-linear address are both numbers; giving each its type lets the type
checker catch the classic mix-up. Physical memory is one flat buffer from address 0 to the end of
RAM: what lies above reads as all ones and swallows writes, as on a PC with nothing on the bus.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
from typing import NewType

GuestPhys = NewType("GuestPhys", int)
GuestVirt = NewType("GuestVirt", int)

PAGE_SIZE = 4096


class PhysicalMemory:
    """The RAM of one machine (with the ROM area inside its first MiB) as a flat byte buffer.

    :param size: bytes of RAM, a multiple of 4096, at least 1 MiB, below 4 GiB.

    Accesses are little endian. Reads beyond the end give ``0xFF`` bytes, writes beyond it are
    dropped; neither raises, since a guest can ask for any address.
    """

    def __init__(self, size: int) -> None:
        if size % PAGE_SIZE or not 1 << 20 <= size < 1 << 32:
            raise ValueError(f"RAM size must be a multiple of 4096 from 1 MiB to below 4 GiB, got {size}")
        self.size = size
        self._buffer = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor = (ctypes.c_char * size).from_buffer(self._buffer)
        self.ram = memoryview(self._buffer)
        #: The same as dwords of this computer's byte order, to see whether one has changed.
        self.dwords = self.ram.cast("I")

    def __repr__(self) -> str:
        return f"PhysicalMemory({self.size >> 20} MiB)"

    @property
    def host_address(self) -> int:
        """Address of byte 0 in this process, for the emulator to map."""
        return ctypes.addressof(self._anchor)

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at a guest-physical address."""
        if address + size <= self.size:
            return bytes(self.ram[address : address + size])
        inside = bytes(self.ram[address : self.size]) if address < self.size else b""
        return inside + b"\xff" * (size - len(inside))

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at a guest-physical address."""
        if address < self.size:
            inside = data[: self.size - address]
            self.ram[address : address + len(inside)] = inside

    def u32(self, address: int) -> int:
        """The dword at a guest-physical address."""
        if address + 4 <= self.size:
            return int.from_bytes(self.ram[address : address + 4], "little")
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        """The 8 bytes at a guest-physical address as a number."""
        if address + 8 <= self.size:
            return int.from_bytes(self.ram[address : address + 8], "little")
        return int.from_bytes(self.read(address, 8), "little")

    def put_u32(self, address: int, value: int) -> None:
        """Store a dword at a guest-physical address."""
        self.write(address, (value & 0xFFFFFFFF).to_bytes(4, "little"))

    def sha256(self) -> str:
        """Hash of the whole memory, for comparing runs."""
        return hashlib.sha256(self.ram).hexdigest()
