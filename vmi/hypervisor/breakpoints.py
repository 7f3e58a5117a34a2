# SPDX-License-Identifier: GPL-2.0-only
"""Breakpoints at silent instructions: those that ring 1 would carry out, but wrongly.

They are kept by guest-physical address, since a kernel runs the same code at more than one linear
address. A guest may overwrite what was planted; a breakpoint then is its own.

Instructions that trap do so again and again, so what was decoded is kept, by guest-physical address too.
It holds as long as memory has the bytes that it was made from: nobody needs to tell of a change.
"""

from __future__ import annotations

from collections.abc import Iterable

from iced_x86 import Instruction

from vmi import sitetable
from vmi.errors import BadInput
from vmi.hypervisor.operands import MAX_LENGTH, decode
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native.cpu import Cpu
from vmi.native.linear import Linear
from vmi.native.stamped import Stamped
from vmi.x86 import GuestFault

_INT3 = 0xCC
_MOST_SITES = 1 << 18  # a table with more is no kernel's, and reading it would take long
_MOST_DECODED = 1 << 14
_MOST_FOUND = 1 << 14
_AROUND = 8  # bytes before and from a breakpoint on by which a copy is known


class Breakpoints(Stamped):
    """The breakpoints planted in one guest."""

    def __init__(self, cpu: Cpu, linear: Linear) -> None:
        self._cpu = cpu
        self._linear = linear
        self._covered: dict[int, bytes] = {}  # address -> the bytes from there on, as they were
        self._behind: dict[int, bytes] = {}  # address -> what the instruction has behind its first byte
        # address and width -> the bytes in memory, and the instruction without breakpoints
        self._decoded: dict[tuple[int, int], tuple[bytes, Instruction]] = {}

    def plant(self, addresses: Iterable[int]) -> None:
        """Put breakpoints at guest-physical addresses, but outside RAM and where one stands already."""
        memory = self._cpu.memory
        places = sorted({at for at in addresses if 0 <= at < memory.size and not self.stands(at)})
        for at in places:
            covered = memory.read(at, min(MAX_LENGTH, memory.size - at))
            self._cover(at, covered, decode(covered).len)
        for at in places:
            self._cpu.write_memory(at, bytes([_INT3]))

    def plant_at(self, linear: int, code: bytes) -> None:
        """Put one at a linear address, where an instruction has this code without breakpoints."""
        at = self._physical(linear)
        if at is not None:
            if len(self._covered) >= _MOST_FOUND:
                self._remove_all()  # the code will be looked at again
            self._cover(at, code, min(len(code), PAGE_SIZE - at % PAGE_SIZE))
            self._cpu.write_memory(at, bytes([_INT3]))

    def _remove_all(self) -> None:
        for at, covered in self._covered.items():
            if self.stands(at):
                self._cpu.write_memory(at, covered[:1])
        self._covered.clear()
        self._behind.clear()

    def stands_at(self, linear: int) -> bool:
        """A breakpoint is at a linear address, or can't be."""
        at = self._physical(linear)
        return at is None or self.stands(at)

    def stands(self, at: int) -> bool:
        """One of ours is at a guest-physical address."""
        return self.covers(at) and self._cpu.memory.ram[at] == _INT3

    def original_of(self, linear: int) -> bytes:
        """What a breakpoint covers that was copied with the code around it, by the guest; b"" if none was."""
        at, ram, size = self._physical(linear), self._cpu.memory.ram, self._cpu.memory.size
        if at is None or not _AROUND <= at < size - _AROUND:
            return b""
        around = ram[at - _AROUND : at + _AROUND]
        found = {
            covered[:1]
            for one, covered in self._covered.items()
            if one != at and _AROUND <= one < size - _AROUND and ram[one - _AROUND : one + _AROUND] == around
        }
        return found.pop() if len(found) == 1 else b""

    def _physical(self, linear: int) -> int | None:
        """Where in RAM a linear address is."""
        try:
            at = self._linear.physical(linear)
        except GuestFault:
            return None
        return at if at < self._cpu.memory.size else None

    def _cover(self, at: int, code: bytes, length: int) -> None:
        self._covered[at] = code
        self._behind[at] = code[1 : max(1, length)]

    def covers(self, at: int) -> bool:
        """The breakpoint at a guest-physical address is one of ours, and the code is still what it was."""
        behind = self._behind.get(at)
        return behind is not None and self._cpu.memory.ram[at + 1 : at + 1 + len(behind)] == behind

    def remove(self, at: int) -> None:
        """Take a breakpoint out for good."""
        del self._behind[at]
        self._cpu.write_memory(at, self._covered.pop(at)[:1])

    def originals(self) -> dict[int, int]:
        """What each breakpoint covers: guest-physical address and byte."""
        return {at: covered[0] for at, covered in self._covered.items()}

    def instruction(self, linear: int, bits: int) -> Instruction:
        """The instruction at a linear address without breakpoints; an invalid one if nothing is mapped."""
        try:
            at = self._linear.physical(linear)
        except GuestFault:
            return decode(b"", bits)
        return self.instruction_at(at, linear, bits)

    def instruction_at(self, at: int, linear: int, bits: int) -> Instruction:
        """As :meth:`instruction`, for whoever knows where in guest-physical memory that is."""
        found = self._decoded.get((at, bits))
        if found is not None and self._cpu.memory.ram[at : at + len(found[0])] == found[0]:
            return found[1]
        instruction = decode(self.code(linear), bits)
        if not instruction.is_invalid and at % PAGE_SIZE + instruction.len <= PAGE_SIZE:
            if len(self._decoded) >= _MOST_DECODED:
                self._decoded.clear()
            self._decoded[at, bits] = self._cpu.memory.read(at, instruction.len), instruction
        return instruction

    def code(self, linear: int, size: int = MAX_LENGTH) -> bytes:
        """The code at a linear address without breakpoints, up to the first byte that is not mapped."""
        data, wanted = bytearray(), size
        while len(data) < wanted:
            try:
                at = self._linear.physical(linear + len(data))
            except GuestFault:
                break
            size = min(wanted - len(data), PAGE_SIZE - at % PAGE_SIZE)
            piece = bytearray(self._cpu.memory.read(at, size))
            if _INT3 in piece:
                for i, byte in enumerate(piece):
                    if byte == _INT3 and self.covers(at + i):
                        piece[i] = self._covered[at + i][0]
            data += piece
        return bytes(data)


def silent_sites(memory: PhysicalMemory, header_address: int) -> list[int] | None:
    """Where silent instructions stay as they are, by the guest's own table.

    They have no slot, or one that activation doesn't connect on this processor.

    :param header_address: guest-physical address of the guest's `.vmi` segment, or anything.
    :returns: guest-physical addresses; None if there is no table, or a damaged one.
    """
    try:
        header = sitetable.parse_header(memory.read(header_address, sitetable.HEADER_SIZE))
        if header.size > memory.size or max(header.site_count, header.link_count) > _MOST_SITES:
            return None
        linked_at = (header_address + header.bias) & 0xFFFFFFFF
        table = sitetable.parse(memory.read(header_address, header.size), linked_at)
    except BadInput:
        return None
    places = [(record.slot - header.bias) & 0xFFFFFFFF for record in table.traps]
    for record in table.unconnected:
        slot = (record.slot - header.bias) & 0xFFFFFFFF
        behind = record.flags & sitetable.SiteFlag.PAD_AFTER
        places.append(slot if behind else slot + _padding(memory.read(slot, record.length)))
    return places


def _padding(slot: bytes) -> int:
    """Bytes of a slot before its last instruction."""
    at = 0
    while 0 < (length := decode(slot[at:]).len) < len(slot) - at:
        at += length
    return at
