# SPDX-License-Identifier: GPL-2.0-only
"""Which part of a kernel's file goes where in memory, and whether that is a place where it can go.

All protocols share these rules, so that a kernel is refused in the same words by each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmi.errors import BadInput
from vmi.memory import PAGE_SIZE
from vmi.native.boot.elf import Executable
from vmi.native.boot.memory_map import HIGH_RAM, LOW_RAM_END, ram_end
from vmi.native.boot.state import STACK_TOP, Write


@dataclass(frozen=True)
class Piece:
    """File bytes [offset, offset + filesz) for memory [address, address + memsz); the rest is zeroed."""

    address: int
    offset: int
    filesz: int
    memsz: int

    @property
    def end(self) -> int:
        """First address after the piece."""
        return self.address + self.memsz

    @property
    def span(self) -> str:
        """The addresses, for a sentence."""
        return f"{self.address:#x}-{self.end - 1:#x}"


def by_segments(executable: Executable) -> list[Piece]:
    """An ELF file's segments at their physical addresses, without the page below 1 MiB.

    Linkers map the file's headers there, in front of code at 1 MiB. Loaders on hardware write them to
    the firmware's ROM, where they are lost without harm.
    """
    pieces = (Piece(s.paddr, s.offset, s.filesz, s.memsz) for s in executable.segments)
    return [without_header_page(piece) for piece in pieces]


def without_header_page(piece: Piece) -> Piece:
    """Leave out what a piece has on the last page below 1 MiB, if it goes on above."""
    below = HIGH_RAM - piece.address
    if not (0 < below <= PAGE_SIZE and piece.end > HIGH_RAM):
        return piece
    return Piece(HIGH_RAM, piece.offset + below, max(piece.filesz - below, 0), piece.memsz - below)


def check_place(pieces: Sequence[Piece], ram_size: int) -> range:
    """The memory from the first piece to the end of the last. BadInput if not all of them are in RAM."""
    top = ram_end(ram_size)
    for piece in pieces:
        if piece.end > top:
            raise BadInput(f"the kernel needs memory up to {piece.end:#x}, but RAM ends at {top:#x}")
        if piece.address < HIGH_RAM and piece.end > LOW_RAM_END:
            raise BadInput(
                f"the kernel's memory {piece.span} is not all RAM: "
                f"there is none from {LOW_RAM_END:#x} to {HIGH_RAM - 1:#x}"
            )
    total = sum(piece.memsz for piece in pieces)
    if total > top:  # only if they overlap, many times: thousands of such headers would take hours to load
        raise BadInput(f"the kernel's segments have {total} bytes in all, but RAM has only {top}")
    return range(min(p.address for p in pieces), max(p.end for p in pieces))


def check_entry(pieces: Sequence[Piece], entry: int) -> None:
    """BadInput if the kernel would start outside of what is loaded."""
    if not any(piece.address <= entry < piece.end for piece in pieces):
        raise BadInput(f"the kernel's entry point {entry:#x} is not inside the memory that it is loaded to")


def check_free(pieces: Sequence[Piece], tables: range) -> None:
    """BadInput if a piece lies where the boot information goes."""
    for piece in pieces:
        if piece.address < tables.stop and piece.end > tables.start:
            raise BadInput(
                f"the kernel's memory {piece.span} overlaps the boot information "
                f"at {tables.start:#x}-{tables.stop - 1:#x}"
            )


def writes(image: bytes, pieces: Sequence[Piece]) -> tuple[Write, ...]:
    """The pieces with their bytes from the file; call it after the checks, as it copies."""
    return tuple(Write(p.address, image[p.offset : p.offset + p.filesz], p.memsz - p.filesz) for p in pieces)


def stack_beside(pieces: Sequence[Piece]) -> int:
    """Top of a stack of 4 KiB in low memory that is not the kernel's own. BadInput if there is no room."""
    for top in (STACK_TOP, LOW_RAM_END):
        if all(piece.end <= top - PAGE_SIZE or piece.address >= top for piece in pieces):
            return top
    raise BadInput(
        "the kernel's memory leaves no room for a stack, "
        f"neither below {STACK_TOP:#x} nor below {LOW_RAM_END:#x}"
    )


def page_up(address: int) -> int:
    """The next page boundary, or the address itself if it is one."""
    return -(-address // PAGE_SIZE) * PAGE_SIZE


def below(limit: int, size: int) -> int:
    """The highest page from which ``size`` bytes end at or before the address ``limit``."""
    return (limit - size) & -PAGE_SIZE


def encode(text: str, what: str) -> bytes:
    """A string as the kernel gets it, with its NUL. BadInput if it holds one itself."""
    data = text.encode(errors="surrogateescape")  # undoes what made text of a foreign argument
    if 0 in data:
        raise BadInput(f"{what} must not contain a NUL character")
    return data + b"\0"


class Strings:
    """Strings one after the other, each ended by a NUL, from a given address on."""

    def __init__(self, start: int) -> None:
        self.end = start
        self.data = bytearray()

    def add(self, text: str, what: str) -> int:
        """Add a string, give its address. BadInput if it holds a NUL."""
        data = encode(text, what)
        address = self.end
        self.data += data
        self.end += len(data)
        return address
