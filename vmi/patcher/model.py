# SPDX-License-Identifier: GPL-2.0-only
"""The values the patcher's halves exchange: the loaded image, sites, windows and the plan.

Planning (forms, scan, flow, plan, liveness) only reads an :class:`Image` and gives a :class:`Plan`;
emitting (adaptors, trampolines, activation, ELF) only reads a Plan. Nothing here is mutable and nothing
depends on where trampolines end up: the emitter places them. All addresses are the guest's *virtual*
(linked) addresses unless a name says ``paddr``; all sizes are in bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntFlag, StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from vmi.sitetable import Tactic

if TYPE_CHECKING:
    from vmi.abi import Call

MIN_SLOT = 5
"""Shortest slot and shortest rewritten window: one ``call``/``jmp`` with a 32-bit distance."""

SPRING = 2
"""Shortest window when a springboard is used: one ``jmp`` with an 8-bit distance."""


# ---------------------------------------------------------------- the image


class Access(IntFlag):
    """ELF segment permissions (``p_flags``)."""

    X = 1
    W = 2
    R = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD: ``data`` is its file part, ``memsz`` >= len(data) its size in memory."""

    vaddr: int
    paddr: int
    data: bytes
    memsz: int
    flags: Access
    file_offset: int = 0

    @property
    def filesz(self) -> int:
        return len(self.data)

    @property
    def end(self) -> int:
        """First virtual address after the file part."""
        return self.vaddr + len(self.data)

    @property
    def offset(self) -> int:
        """vaddr - paddr (may be negative)."""
        return self.vaddr - self.paddr

    def __repr__(self) -> str:
        return (
            f"Segment({self.vaddr:#x}, pa {self.paddr:#x}, {self.filesz:#x}/{self.memsz:#x}, {self.flags!r})"
        )


@dataclass(frozen=True, slots=True)
class Section:
    """One section header that is loaded (SHF_ALLOC) and has bytes in the file."""

    name: str
    vaddr: int
    size: int
    executable: bool
    writable: bool

    @property
    def end(self) -> int:
        return self.vaddr + self.size


class SymbolKind(StrEnum):
    FUNCTION = "function"
    OBJECT = "object"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A defined symbol whose value is an address (no absolute, section or file symbols)."""

    name: str
    address: int
    size: int
    kind: SymbolKind


@dataclass(frozen=True, slots=True)
class Relocation:
    """One relocation kept in a linked file (``ld --emit-relocs``): ``kind`` is the R_386_* number.

    The word at ``address`` already holds its final value.
    """

    address: int
    kind: int


@dataclass(frozen=True)
class Image:
    """A kernel ELF as the planner sees it: PT_LOADs in address order, and whatever tables the file still has.

    ``data`` is the whole file. ``entry`` is ``e_entry`` as written (virtual or physical form). ``sections``,
    ``symbols`` and ``relocations`` may be empty (stripped). ``displaced`` are the addresses, in order, of the
    32-bit words to which the kernel's boot code adds its displacement when it runs elsewhere than linked
    (Linux's own list; empty for a kernel that always runs where it is linked).
    """

    data: bytes
    segments: tuple[Segment, ...]
    entry: int
    sections: tuple[Section, ...] = ()
    symbols: tuple[Symbol, ...] = ()
    relocations: tuple[Relocation, ...] = ()
    displaced: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Image(entry {self.entry:#x}, {len(self.segments)} segments, {len(self.sections)} sections,"
            f" {len(self.symbols)} symbols)"
        )

    def segment_at(self, address: int) -> Segment | None:
        """The segment whose file part holds virtual ``address``."""
        for segment in self.segments:
            if segment.vaddr <= address < segment.end:
                return segment
        return None

    def section(self, name: str) -> Section | None:
        for section in self.sections:
            if section.name == name:
                return section
        return None

    def read(self, address: int, size: int) -> bytes:
        """Up to ``size`` file bytes at virtual ``address``; shorter at a segment's end, empty outside all."""
        segment = self.segment_at(address)
        if segment is None:
            return b""
        start = address - segment.vaddr
        return segment.data[start : start + size]

    def u32(self, address: int) -> int | None:
        """The little-endian word at virtual ``address``, None when it isn't in the file."""
        raw = self.read(address, 4)
        return int.from_bytes(raw, "little") if len(raw) == 4 else None

    def virtual(self, paddr: int) -> int | None:
        """The virtual address of physical ``paddr`` if a segment's file part holds it."""
        for segment in self.segments:
            if segment.paddr <= paddr < segment.paddr + segment.filesz:
                return paddr + segment.offset
        return None

    @cached_property
    def text(self) -> Segment | None:
        """The main text segment: the largest executable one, which need not hold the entry.

        Kernels that are linked high often start in a small segment of their own that lies where it is loaded.
        """
        executable = (s for s in self.segments if s.flags & Access.X and s.data)
        return max(executable, key=lambda s: s.filesz, default=None)

    @property
    def entry_virtual(self) -> int | None:
        """``entry`` in virtual form, None when it's in no segment."""
        if self.segment_at(self.entry) is not None:
            return self.entry
        return self.virtual(self.entry)


# ---------------------------------------------------------------- instructions and sites


class Branch(StrEnum):
    """How an instruction depends on its own address; these are the only kinds a window may hold.

    =========  =====================================================================================
    kind       what the emitter does in a trampoline (``Insn.target`` is the absolute destination)
    =========  =====================================================================================
    JMP        ``E9 rel32``
    JCC        ``0F 8x rel32``, x = low nibble of the opcode's last byte
    CALL       ``E8 rel32``; the return address is then in the trampoline (see :class:`Window`)
    LOOP       loop/loopne/loope/jecxz, 8-bit only: ``op +2; jmp short +5; jmp rel32`` (no flags change)
    =========  =====================================================================================

    A target is only ever inside a window if all branches to it are in windows: those name it in
    :attr:`Window.inner`, and the emitter sends them to where the instruction is now. It may be a window's
    first byte, and then the branch goes through that window's jump again, which is right.
    """

    JMP = "jmp"
    JCC = "jcc"
    CALL = "call"
    LOOP = "loop"


@dataclass(frozen=True, slots=True)
class Insn:
    """One guest instruction (or the pair ``sti;hlt``, which is one unit with form ``"sti;hlt"``).

    ``form`` is the normal form of a sensitive instruction, None for the others. ``branch`` None means the
    bytes mean the same at any address: copy ``raw`` as it is.
    """

    address: int
    raw: bytes
    form: str | None = None
    branch: Branch | None = None
    target: int = 0

    @property
    def length(self) -> int:
        return len(self.raw)

    @property
    def end(self) -> int:
        return self.address + len(self.raw)

    def __repr__(self) -> str:
        what = f", {self.form}" if self.form else f", {self.branch} {self.target:#x}" if self.branch else ""
        return f"Insn({self.address:#x}, {self.raw.hex()}{what})"


@dataclass(frozen=True, slots=True)
class Site:
    """One sensitive instruction of the guest.

    ``silent``: at CPL 1 it executes without a trap and gives a wrong result. ``trapping``: it raises #GP
    there by itself. Exactly one of them is true. ``call`` is None when no VMI call stands for it.
    ``flags_live``: the arithmetic flags (CF PF AF ZF SF OF) as they are *after* the native instruction may
    be read before they are overwritten; when False a call here may leave any value in them. ``dead``: those
    of ``eax ecx edx`` that every path overwrites in full before reading, after the instruction.

    ``inline``: no call is needed, an adaptor of its own does what the instruction should (``call`` is None).
    ``pad_after``: the slot's NOPs stand behind the instruction, because it runs in the interrupt shadow of
    the one before, or because its address is in a fault table. ``recovered``: the kernel recovers from a
    fault of this instruction by its address. ``isolated``: it may run while most of the kernel is not mapped
    (entry code under page-table isolation). ``direction``: the direction flag may be set when it runs.
    """

    address: int
    raw: bytes
    form: str
    call: Call | None
    silent: bool
    trapping: bool
    flags_live: bool = True
    dead: tuple[str, ...] = ()
    inline: bool = False
    pad_after: bool = False
    recovered: bool = False
    isolated: bool = False
    direction: bool = False

    @property
    def length(self) -> int:
        return len(self.raw)

    @property
    def end(self) -> int:
        return self.address + len(self.raw)

    def __repr__(self) -> str:
        flags = "live" if self.flags_live else "dead"
        call = self.call.name if self.call else "no call"
        return f"Site({self.address:#x}, {self.form}, flags {flags}, {call})"


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot that needs no window: [start, start+length) is NOPs (perhaps none), then ``site.raw``.

    tactic IN_PLACE: start == site.address and length >= 5, NOPs behind a shorter site. ANNOTATED: as the
    guest's record says. The emitter writes nothing there; it only records the slot.
    """

    start: int
    length: int
    site: Site
    tactic: Tactic


@dataclass(frozen=True, slots=True)
class Pad:
    """Bytes of the text that control never runs into (padding between functions): [start, start+size)."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size

    def __repr__(self) -> str:
        return f"Pad({self.start:#x}+{self.size})"


@dataclass(frozen=True, slots=True)
class FaultTable:
    """A table, sorted by instruction address, by which a kernel recovers from faults (``__ex_table``).

    ``count`` entries of ``entry`` bytes (8 or 12) from ``start``: words for the instruction, the place to
    go on at, and in 12 bytes a third one. ``relative``: the first two are distances from their own words;
    ``relative_third``: the third one is too (the handler's address; else a number).
    """

    start: int
    count: int
    entry: int
    relative: bool
    relative_third: bool = False


@dataclass(frozen=True, slots=True)
class LockTable:
    """A table of LOCK prefixes that a kernel takes out where there is one processor (``.smp_locks``).

    ``count`` words from ``start``: the prefixes' addresses, or (``relative``) their distances from the words.
    """

    start: int
    count: int
    relative: bool


@dataclass(frozen=True, slots=True)
class Window:
    """A run of whole instructions that moves to a trampoline.

    What the emitter does: overwrite [start, start+length) with ``E9 rel32`` to the trampoline, rest filled
    with 0xCC; the trampoline holds ``insns`` in order, then ``E9 rel32`` to ``resume`` (nothing when
    ``resume`` is None: the last instruction never falls through). For each insn, in this order of
    questions:

    * one of ``sites`` (same address): a slot, i.e. NOP padding then ``insn.raw``, >= 5 bytes; no padding
      when raw has 5 bytes already;
    * one of ``traps``: ``raw`` as it is, plus a site record with call 0xFF at its new address;
    * a ``branch``: re-encoded as :class:`Branch` says;
    * else ``raw`` as it is.

    What the emitter may rely on:

    * no jump target lies in (start, start+length) but those of ``inner``, and windows, slots and
      springboards are disjoint;
    * all sites of ``sites`` have a call; ``traps`` are silent sites that get no slot; both in address order;
    * the instruction after sti / mov ss / pop ss follows it in ``insns`` and is not in ``sites`` unless its
      own raw has 5 bytes or it is padded after: so nothing ever comes between them; but for a jump label,
      a NOP or jump that stays, to which the trampoline comes back. ``sti;hlt`` is a single insn and site;
    * a CALL, or an indirect call (``branch`` None, copied as it is), is only the last insn, and ``resume``
      is the next address. JMP, and anything else that never falls through, is only the last; ``resume`` is
      then None;
    * ``insns`` NEED NOT add up to [start, start+length): trailing padding after a last jump is displaced
      but not copied, and one last instruction may be a copy of the next one after the window (kept with an
      STI, which stays in place too, for those who jump to it). Only ``start``, ``length``, ``insns``,
      ``resume`` count.
    * length >= 5 when ``springboard`` is None. Else length is 2..4: write ``EB rel8`` to ``springboard`` at
      start, and the 5-byte ``E9`` to the trampoline at ``springboard`` (always in reach): padding that nobody
      executes, or bytes 5 to 9 of a window that has at least 10 (its host), in place of the 0xCC there.
    * ``edges`` are sites of other addresses that stay where they are and could get no window (edge split):
      each is copied into a slot behind the trampoline's end, followed by ``jmp site.end``; branches of
      ``insns`` with ``target == site.address`` go to that copy, and so does the end of the trampoline when
      ``resume == site.address``. One such site may be in several windows: it then has several slots.
    * ``inner``: targets of the window's branches that lie inside windows, this one or another one, and are
      not their first byte: instructions that only moved branches lead to. Such a branch goes to the moved
      instruction, in its long form. A window may be there for the sake of ``edges`` or ``inner`` alone.
    * ``pads`` empty: the trampoline is in the `.vmi` segment, in one piece. Else it is in these pads of the
      text, in this order: pieces of whole instructions (slots are never cut, nor is anything behind a
      shadow), each but the last ended by a ``jmp`` to the next one, unless nothing falls out of it. Branches
      have an 8-bit distance there when that is enough.
    """

    start: int
    length: int
    insns: tuple[Insn, ...]
    sites: tuple[Site, ...]
    traps: tuple[Site, ...]
    resume: int | None
    springboard: int | None = None
    edges: tuple[Site, ...] = ()
    pads: tuple[Pad, ...] = ()
    inner: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.length

    def __repr__(self) -> str:
        return f"Window({self.start:#x}+{self.length}, {len(self.insns)} insns, {len(self.sites)} sites)"


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class EntryCode:
    """Code that may run while most of the kernel is not mapped: ``ranges`` of addresses.

    ``mapped`` are ranges of whole pages: while code of one runs, all of that range is mapped.
    """

    ranges: tuple[range, ...] = ()
    mapped: tuple[range, ...] = ()

    def __contains__(self, address: int) -> bool:
        return any(address in one for one in self.ranges)


@dataclass(frozen=True, slots=True)
class Placement:
    """What became of one site; ``reason`` is a sentence for TRAP and LEFT, empty otherwise."""

    site: Site
    tactic: Tactic
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A range of an executable region that was not searched for sites, and why (one sentence)."""

    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """All decisions for one image; everything in address order, the same for the same image.

    ``placements`` has each site once. A site with a slot is in exactly one Window.sites or is one Slot; a
    TRAP site is in a Window.traps (moved) or stays at its address. ``harmless`` counts, by normal form,
    sensitive-looking instructions that need no care at CPL 1. ``padding`` is what windows left of the text's
    padding, in pieces of at least 5 bytes. ``fault_table`` and ``lock_table`` are set when instructions named
    in them may move.
    """

    image: Image
    windows: tuple[Window, ...]
    slots: tuple[Slot, ...]
    placements: tuple[Placement, ...]
    skipped: tuple[Skipped, ...] = ()
    harmless: tuple[tuple[str, int], ...] = ()
    instructions: int = 0
    padding: tuple[Pad, ...] = ()
    fault_table: FaultTable | None = None
    lock_table: LockTable | None = None
    entry_code: EntryCode = EntryCode()

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(p.site for p in self.placements)

    @cached_property
    def by_tactic(self) -> Counter[Tactic]:
        return Counter(p.tactic for p in self.placements)

    @property
    def slotted(self) -> int:
        """Number of sites that have a slot (all of them have a call)."""
        return sum(p.tactic.has_slot for p in self.placements)

    def __repr__(self) -> str:
        return f"Plan({len(self.placements)} sites, {self.slotted} in slots, {len(self.windows)} windows)"
