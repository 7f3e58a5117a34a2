# SPDX-License-Identifier: GPL-2.0-only
"""Accesses to guest-linear memory as the CPU itself makes them, with its faults.

Used wherever the host acts for the CPU: delivery of events, emulation, the hypervisor's look at
guest pointers. A store is all or nothing: each page it touches is checked first.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmi.memory import PAGE_SIZE
from vmi.native.cpu import Cpu
from vmi.native.walks import Walked, Walks
from vmi.x86 import U32, Cr0, Descriptor, GuestFault, Paging, Vector, translate

_GP = Vector.GP


class Linear:
    """Linear memory of the address space a CPU is in now."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self._walks = Walks(cpu.memory)

    def physical(self, linear: int, *, write: bool = False, user: bool = False) -> int:
        """Guest-physical address; sets accessed and dirty bits. :raises GuestFault: #PF."""
        cpu = self._cpu
        registers = cpu.paging()
        if not registers[0] & Cr0.PG:
            return linear & cpu.a20_mask
        found = self._walks.find(registers, linear, write, user)
        if found is not None:
            return found
        paging = Paging(cpu.cr(0), cpu.cr(3), cpu.cr(4), cpu.efer, cpu.a20_mask | ~U32)
        return self._walks.make(
            linear,
            write,
            user,
            lambda memory: translate(memory, paging, linear, write=write, user=user, store=cpu.put_u32),
        )

    def walked(self, linear: int, *, write: bool = False) -> Walked | None:
        """What :meth:`physical` finds and what it was found by; None if that is not known.

        :raises GuestFault: #PF.
        """
        physical = self.physical(linear, write=write)
        if not self._cpu.cr(0) & Cr0.PG:
            return physical & -PAGE_SIZE, ()
        return self._walks.made(linear, write)

    def _pieces(self, linear: int, size: int, write: bool, user: bool) -> list[tuple[int, int]]:
        pieces = []
        while size > 0:
            length = min(size, PAGE_SIZE - linear % PAGE_SIZE)
            pieces.append((self.physical(linear, write=write, user=user), length))
            linear = (linear + length) & U32
            size -= length
        return pieces

    def read(self, linear: int, size: int, *, user: bool = False) -> bytes:
        """``size`` bytes. :raises GuestFault: #PF."""
        if linear % PAGE_SIZE + size <= PAGE_SIZE:
            return self._cpu.memory.read(self.physical(linear & U32, user=user), size)
        return b"".join(
            self._cpu.memory.read(at, length)
            for at, length in self._pieces(linear & U32, size, write=False, user=user)
        )

    def write(self, linear: int, data: bytes, *, user: bool = False) -> None:
        """Store ``data``, all of it or nothing. :raises GuestFault: #PF."""
        if linear % PAGE_SIZE + len(data) <= PAGE_SIZE:
            self._cpu.store(self.physical(linear & U32, write=True, user=user), data)
        else:
            self.write_all([(linear, data)], user=user)

    def write_all(self, values: Iterable[tuple[int, bytes]], *, user: bool = False) -> None:
        """Store several values at their addresses, all of them or nothing. :raises GuestFault: #PF."""
        stores = []
        for linear, data in values:
            done = 0
            for at, length in self._pieces(linear & U32, len(data), write=True, user=user):
                stores.append((at, data[done : done + length]))
                done += length
        for at, part in stores:
            self._cpu.store(at, part)

    def u16(self, linear: int) -> int:
        """The word at a linear address. :raises GuestFault: #PF."""
        return int.from_bytes(self.read(linear, 2), "little")

    def u32(self, linear: int) -> int:
        """The dword at a linear address. :raises GuestFault: #PF."""
        return int.from_bytes(self.read(linear, 4), "little")

    def put_u32(self, linear: int, value: int) -> None:
        """Store a dword. :raises GuestFault: #PF."""
        self.write(linear, (value & U32).to_bytes(4, "little"))

    def table_pointer(self, linear: int) -> tuple[int, int]:
        """Base and limit as LGDT and LIDT read them: 6 bytes. :raises GuestFault: #PF."""
        data = self.read(linear, 6)
        return int.from_bytes(data[2:], "little"), int.from_bytes(data[:2], "little")

    def put_table_pointer(self, linear: int, base: int, limit: int) -> None:
        """Store base and limit as SGDT and SIDT do. :raises GuestFault: #PF."""
        self.write(linear, (limit & 0xFFFF).to_bytes(2, "little") + base.to_bytes(4, "little"))

    def descriptor_address(self, selector: int, vector: int = _GP) -> int:
        """Linear address of a selector's descriptor. :raises GuestFault: outside its table."""
        cpu = self._cpu
        table = cpu.ldt if selector & 4 else cpu.gdt
        offset = selector & ~7
        usable = not selector & 4 or cpu.ldt.flags & 1 << 15
        if not usable or offset + 7 > table.limit:
            raise GuestFault(vector, selector & 0xFFFC)
        return (table.base + offset) & U32

    def descriptor(self, selector: int, vector: int = _GP) -> Descriptor:
        """The descriptor of a selector. :raises GuestFault: outside its table, or #PF."""
        return Descriptor.parse(self.read(self.descriptor_address(selector, vector), 8))
