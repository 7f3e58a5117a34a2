# SPDX-License-Identifier: GPL-2.0-only
"""Emit the code that windows move to: slots, relocated branches, and the jumps there and back.

A trampoline is the window's instructions in order. Those with a site become slots, at least five bytes
that hold NOPs and then the native instruction, so that activation finds room for one `call`. Without
a ROM the trampoline does what the window did, with two jumps more: no flag, no register, no stack.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmi.patcher.model import MIN_SLOT, Branch, Insn, Site, Window

JMP32_SIZE = 5
FILLER = 0xCC
"""What is left of a window: a jump into it, which the plan ruled out, would crash at once."""

_PREFIXES = bytes.fromhex("26 2e 36 3e 64 65 66 67 f0 f2 f3")


@dataclass(frozen=True, slots=True)
class PlacedSlot:
    """A site's slot at its final address: NOPs up to ``instruction``, then the native instruction."""

    start: int
    length: int
    site: Site

    @property
    def instruction(self) -> int:
        """Address of the native instruction."""
        return self.start + self.length - self.site.length

    def __repr__(self) -> str:
        return f"PlacedSlot({self.start:#x}+{self.length}, {self.site.form})"


@dataclass(frozen=True, slots=True)
class Trampoline:
    """One window's code at ``start``; ``traps`` are (new address, site) of silent sites without a slot."""

    window: Window
    start: int
    code: bytes
    slots: tuple[PlacedSlot, ...]
    traps: tuple[tuple[int, Site], ...]

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
    prefixes = next(n for n, byte in enumerate(insn.raw) if byte not in _PREFIXES)
    opcode = insn.raw[prefixes]
    if insn.branch is Branch.JCC:
        condition = insn.raw[prefixes + 1] if opcode == 0x0F else opcode
        return bytes([0x0F, 0x80 | condition & 0xF]) + distance(at + 6, insn.target)
    # loop and jecxz have a short form only. Their prefixes stay: one of them says which counter it is.
    head = insn.raw[:prefixes] + bytes([opcode, 2, 0xEB, JMP32_SIZE])
    return head + rel32(0xE9, at + len(head), insn.target)


def build(window: Window, start: int) -> Trampoline:
    """The trampoline for a window, to be placed at ``start``."""
    sites = {site.address: site for site in window.sites}
    trapped = {site.address: site for site in window.traps}
    code = bytearray()
    slots: list[PlacedSlot] = []
    traps: list[tuple[int, Site]] = []
    for insn in window.insns:
        at = start + len(code)
        site = sites.get(insn.address)
        if site is not None:
            raw = nops(max(0, MIN_SLOT - insn.length)) + insn.raw
            slots.append(PlacedSlot(at, len(raw), site))
            code += raw
            continue
        if insn.address in trapped:
            traps.append((at, trapped[insn.address]))
        code += insn.raw if insn.branch is None else branch(insn, at)
    if window.resume is not None:
        code += rel32(0xE9, start + len(code), window.resume)
    return Trampoline(window, start, bytes(code), tuple(slots), tuple(traps))


def edits(trampoline: Trampoline) -> dict[int, bytes]:
    """What the guest's text becomes at the window: address to bytes."""
    window = trampoline.window
    if window.springboard is None:
        jump = rel32(0xE9, window.start, trampoline.start)
        return {window.start: jump.ljust(window.length, bytes([FILLER]))}
    hop = window.springboard - (window.start + 2)
    if not -128 <= hop < 128:
        raise ValueError(f"the springboard of the window at {window.start:#x} is out of reach")
    short = bytes([0xEB, hop & 0xFF]).ljust(window.length, bytes([FILLER]))
    return {
        window.start: short,
        window.springboard: rel32(0xE9, window.springboard, trampoline.start),
    }
