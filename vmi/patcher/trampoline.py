# SPDX-License-Identifier: GPL-2.0-only
"""Emit the code that windows move to: slots, relocated branches, and the jumps there and back.

A trampoline is the window's instructions in order. Those with a site become slots, at least five bytes
that hold NOPs and the native instruction, so that activation finds room for one `call`. Without a ROM the
trampoline does what the window did, with two jumps more, or as many as it has pieces when it lies in the
text's padding: no flag, no register, no stack.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmi.patcher.model import Branch, Insn, Site, Window
from vmi.patcher.pieces import (
    JMP8_SIZE,
    JMP32_SIZE,
    Cut,
    Item,
    cuts,
    fixed_length,
    in_reach,
    link_size,
    prefixes,
    slot_length,
)

FILLER = 0xCC
"""What is left of a window: a jump into it, which the plan ruled out, would crash at once."""


@dataclass(frozen=True, slots=True)
class PlacedSlot:
    """A site's slot at its final address: NOPs before the native instruction, or (``pad_after``) behind."""

    start: int
    length: int
    site: Site

    @property
    def instruction(self) -> int:
        """Address of the native instruction."""
        return self.start if self.site.pad_after else self.start + self.length - self.site.length

    def __repr__(self) -> str:
        return f"PlacedSlot({self.start:#x}+{self.length}, {self.site.form})"


@dataclass(frozen=True, slots=True)
class Piece:
    """Code at an address."""

    start: int
    code: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.code)

    def __repr__(self) -> str:
        return f"Piece({self.start:#x}+{len(self.code)})"


@dataclass(frozen=True, slots=True)
class Moved:
    """An instruction of the guest and where it is now. ``copy``: it also stays where it was.

    ``size`` is that of its new bytes, which are the old ones unless it is a branch.
    """

    insn: Insn
    at: int
    size: int
    copy: bool = False

    def __repr__(self) -> str:
        return f"Moved({self.insn.address:#x} -> {self.at:#x})"


@dataclass(frozen=True, slots=True)
class Trampoline:
    """One window's code. ``slots`` are of its own sites, ``edges`` of sites that stay where they are.

    ``traps`` are (new address, site) of silent sites without a slot; ``moved`` are all instructions of the
    guest that it holds, in order.
    """

    window: Window
    pieces: tuple[Piece, ...]
    slots: tuple[PlacedSlot, ...]
    traps: tuple[tuple[int, Site], ...]
    edges: tuple[PlacedSlot, ...] = ()
    moved: tuple[Moved, ...] = ()

    @property
    def start(self) -> int:
        """Where the window jumps to."""
        return self.pieces[0].start

    @property
    def code(self) -> bytes:
        """The bytes of all pieces, one after the other."""
        return b"".join(piece.code for piece in self.pieces)

    def __repr__(self) -> str:
        return f"Trampoline({self.start:#x}+{len(self.code)} for {self.window.start:#x})"


def nops(size: int) -> bytes:
    """At most one NOP instruction of 0 to 4 bytes that every i386 processor executes."""
    return b"" if size == 0 else b"\x66" * (size - 1) + b"\x90"


def rel32(opcode: int, at: int, target: int) -> bytes:
    """``jmp`` (E9) or ``call`` (E8) at address ``at``; distances wrap at 4 GiB."""
    return bytes([opcode]) + distance(at + JMP32_SIZE, target)


def distance(end: int, target: int) -> bytes:
    """32-bit displacement of a branch that ends at address ``end``."""
    return ((target - end) & 0xFFFFFFFF).to_bytes(4, "little")


def branch(insn: Insn, at: int) -> bytes:
    """A branch of the guest, re-encoded to run at address ``at`` with the same target."""
    if insn.branch is Branch.JMP:
        return rel32(0xE9, at, insn.target)
    if insn.branch is Branch.CALL:
        return rel32(0xE8, at, insn.target)
    if insn.branch is Branch.JCC:
        return bytes([0x0F, 0x80 | _condition(insn)]) + distance(at + 6, insn.target)
    # loop and jecxz have a short form only. Their prefixes stay: one of them says which counter it is.
    head = insn.raw[: prefixes(insn.raw) + 1] + bytes([2, 0xEB, JMP32_SIZE])
    return head + rel32(0xE9, at + len(head), insn.target)


def short_branch(insn: Insn, at: int) -> bytes | None:
    """A branch of the guest with an 8-bit distance, to run at ``at``; None when that can't be."""
    if insn.branch is Branch.JMP:
        head = b"\xeb"
    elif insn.branch is Branch.JCC:
        head = bytes([0x70 | _condition(insn)])
    elif insn.branch is Branch.LOOP:
        head = insn.raw[: prefixes(insn.raw) + 1]
    else:
        return None
    end = at + len(head) + 1
    return head + bytes([insn.target - end & 0xFF]) if in_reach(end, insn.target) else None


def _condition(insn: Insn) -> int:
    first = prefixes(insn.raw)
    return insn.raw[first + (insn.raw[first] == 0x0F)] & 0xF


def slot_bytes(site: Site) -> bytes:
    """A site's slot: the native instruction and NOPs on the side where they belong."""
    padding = nops(slot_length(site) - site.length)
    return site.raw + padding if site.pad_after else padding + site.raw


def build(window: Window, start: int, homes: Mapping[int, int] | None = None) -> Trampoline:
    """The trampoline for a window, at ``start`` unless the window has pads.

    ``homes`` says where moved instructions are, by their old addresses, for the branches to ``inner`` ones.
    Raises ValueError when the pads are not those that it fills.
    """
    dense = bool(window.pads)
    laid = [(cut, _lay_out(cut, dense)) for cut in cuts(window, start)]
    copies = {at: (homes or {}).get(at, at) for at in window.inner}
    copies.update((item.insn.address, at) for _, placed in laid for item, at in placed if item.edge)
    slots: list[PlacedSlot] = []
    edges: list[PlacedSlot] = []
    traps: list[tuple[int, Site]] = []
    moved: list[Moved] = []
    pieces: list[Piece] = []
    for cut, placed in laid:
        code = bytearray()
        for item, at in placed:
            raw = _bytes(item, at, dense, copies)
            code += raw
            if item.slot is not None:
                slot = PlacedSlot(at, len(raw), item.slot)
                (edges if item.edge else slots).append(slot)
                moved.append(Moved(item.insn, slot.instruction, item.slot.length, item.edge))
            elif not item.added:
                copy = not window.start <= item.insn.address < window.end
                moved.append(Moved(item.insn, at, len(raw), copy))
            if item.trap is not None:
                traps.append((at, item.trap))
        if cut.following is not None:
            code += _link(cut.start, cut.start + len(code), cut.following)
        pieces.append(Piece(cut.start, bytes(code)))
    return Trampoline(window, tuple(pieces), tuple(slots), tuple(traps), tuple(edges), tuple(moved))


def _lay_out(cut: Cut, dense: bool) -> list[tuple[Item, int]]:
    """Each item of a piece and its address."""
    placed = []
    at = cut.start
    for unit in cut.units:
        end = at + unit.size(at, dense)
        for item in unit.items:
            placed.append((item, at))
            at += fixed_length(item)
        at = end  # a branch, the last item if any, has another length than it had
    return placed


def _bytes(item: Item, at: int, dense: bool, copies: dict[int, int]) -> bytes:
    insn = item.insn
    if item.slot is not None:
        return slot_bytes(item.slot)
    if insn.branch is None:
        return insn.raw
    if item.local:
        return branch(Insn(insn.address, insn.raw, None, insn.branch, copies[insn.target]), at)
    return (short_branch(insn, at) if dense else None) or branch(insn, at)


def _link(start: int, at: int, following: int) -> bytes:
    """The jump at ``at`` that ends the piece at ``start``."""
    if link_size(start, following) == JMP32_SIZE:
        return rel32(0xE9, at, following)
    return bytes([0xEB, following - (at + JMP8_SIZE) & 0xFF])


def link(trampolines: Sequence[Trampoline]) -> list[Trampoline]:
    """The trampolines with their branches to ``inner`` instructions led to where those are now.

    For a site that is the start of its slot, NOPs and all.
    """
    homes: dict[int, int] = {}
    for built in trampolines:
        homes.update((moved.insn.address, moved.at) for moved in built.moved if not moved.copy)
        homes.update((slot.site.address, slot.start) for slot in built.slots)
    return [build(built.window, built.start, homes) if built.window.inner else built for built in trampolines]


def edits(trampolines: Sequence[Trampoline]) -> dict[int, bytes]:
    """What the guest's text becomes at the windows, their springboards and pads: address to bytes.

    No two of them overlap: the springboard in a host is part of what the host's window becomes.
    """
    found: dict[int, bytes] = {}
    boards: dict[int, bytes] = {}
    for built in trampolines:
        window = built.window
        if window.springboard is None:
            jump = rel32(0xE9, window.start, built.start)
        else:
            if not in_reach(window.start + JMP8_SIZE, window.springboard):
                raise ValueError(f"the springboard of the window at {window.start:#x} is out of reach")
            jump = bytes([0xEB, window.springboard - (window.start + JMP8_SIZE) & 0xFF])
            boards[window.springboard] = rel32(0xE9, window.springboard, built.start)
        found[window.start] = jump.ljust(window.length, bytes([FILLER]))
        if window.pads:
            found.update((piece.start, piece.code) for piece in built.pieces)
    hosts = sorted((built.window for built in trampolines), key=lambda window: window.start)
    starts = [window.start for window in hosts]
    for address, jump in boards.items():
        host = hosts[bisect_right(starts, address) - 1]
        if host.start <= address < host.end:
            at = address - host.start
            before = found[host.start]
            found[host.start] = before[:at] + jump + before[at + len(jump) :]
        else:
            found[address] = jump
    return found
