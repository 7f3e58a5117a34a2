# SPDX-License-Identifier: GPL-2.0-only
"""Fast linear decoding of 32-bit code into a listing: starts, lengths, flow kinds, forms, references.

A kernel has up to some millions of instructions, so a listing keeps parallel arrays and nothing else per
instruction; objects are made on demand for the few instructions a plan touches. One table lookup by the
decoder's code number tells flow and sensitivity, which is what makes a whole kernel take about a second.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate, pairwise
from operator import attrgetter

from iced_x86 import Code, Decoder, Instruction, MemorySizeExt, OpKind, Register

from vmi.patcher import forms, shortcuts
from vmi.patcher.branches import Branches
from vmi.patcher.forms import Form
from vmi.patcher.model import Branch, Insn
from vmi.patcher.wordsearch import WORD, hits, offsets

BITS = 32


class Kind(IntEnum):
    """Control flow of an instruction, and whether it can be moved."""

    PLAIN = 0
    JMP = 1
    JCC = 2
    LOOP = 3
    CALL = 4
    CALL_INDIRECT = 5
    JMP_INDIRECT = 6
    RET = 7
    END = 8
    """Falls through to nothing, but isn't a near return: iret, sysexit, far return."""
    SOFT_INT = 9
    ODD = 10
    """Falls through and must stay at its address: far call, int3, ud2, 16-bit branches."""
    ODD_END = 11
    """Far jmp and its like: stays, falls through to nothing."""
    BAD = 12
    """Bytes that aren't an instruction."""


# Plain numbers, as listings hold them: members of an enumeration would take longer to compare.
FALLS_THROUGH = frozenset(
    map(int, (Kind.PLAIN, Kind.JCC, Kind.LOOP, Kind.CALL, Kind.CALL_INDIRECT, Kind.SOFT_INT, Kind.ODD))
)
DIRECT = frozenset(map(int, (Kind.JMP, Kind.JCC, Kind.LOOP, Kind.CALL)))
CALLS = frozenset(map(int, (Kind.CALL, Kind.CALL_INDIRECT)))
MOVABLE = (
    DIRECT | CALLS | frozenset(map(int, (Kind.PLAIN, Kind.JMP_INDIRECT, Kind.RET, Kind.END, Kind.SOFT_INT)))
)
_BAD = int(Kind.BAD)

_STARTS = [b"\1" + bytes(max(0, length - 1)) for length in range(16)]
"""By the length of an instruction: 1 for its first byte, 0 for the others."""
_NO_STARTS = b"\x80\0" + bytes(254)
_LEFT_OUT = bytes(range(0x80, 0x100))

_BRANCH: dict[int, Branch] = {
    Kind.JMP: Branch.JMP,
    Kind.JCC: Branch.JCC,
    Kind.LOOP: Branch.LOOP,
    Kind.CALL: Branch.CALL,
}
_BEHIND = 2  # bytes behind the first one that say what it starts
_SHORT_JUMP = 2  # bytes of one with an 8-bit distance
_PLAIN, _DIRECT = 16 * (Kind.PLAIN + 1), 16 * (max(DIRECT) + 1)
"""Answers (see `shortcuts`) for plain instructions are below the one, those for direct branches the other."""
_FAR = frozenset((Kind.ODD, Kind.ODD_END))
_SMALL = 1 << 16  # what fits in less than a word
_SENSITIVE = 0x80
_STEP = 1 << 14
_KIND_MASK = 0x7F


def _kinds() -> bytes:
    """Kind by decoder code number, with _SENSITIVE set where `forms` has to look."""
    names = {name: value for name, value in vars(Code).items() if name.isupper() and isinstance(value, int)}
    table = bytearray(max(names.values()) + 1)
    table[Code.INVALID] = Kind.BAD
    for name, code in names.items():
        if name.startswith(("LOOP", "JCXZ", "JECXZ")):
            table[code] = Kind.LOOP if "_REL8_32" in name else Kind.ODD
        elif name.startswith("J") and "_REL" in name:
            near = name.endswith(("_REL8_32", "_REL32_32"))
            if name.startswith("JMPE"):
                table[code] = Kind.ODD_END
            elif name.startswith("JMP"):
                table[code] = Kind.JMP if near else Kind.ODD_END
            else:
                table[code] = Kind.JCC if near else Kind.ODD
    fixed: tuple[tuple[Kind, tuple[int, ...]], ...] = (
        (Kind.CALL, (Code.CALL_REL32_32,)),
        (Kind.CALL_INDIRECT, (Code.CALL_RM32, Code.CALL_RM16)),
        (Kind.JMP_INDIRECT, (Code.JMP_RM32, Code.JMP_RM16)),
        (Kind.RET, (Code.RETND, Code.RETND_IMM16, Code.RETNW, Code.RETNW_IMM16)),
        (Kind.END, (Code.IRETD, Code.IRETW, Code.SYSEXITD, Code.SYSRETD)),
        (Kind.END, (Code.RETFD, Code.RETFD_IMM16, Code.RETFW, Code.RETFW_IMM16)),
        (Kind.SOFT_INT, (Code.INT_IMM8, Code.INTO)),
        (Kind.ODD, (Code.INT3, Code.INT1, Code.UD0, Code.UD1_R32_RM32, Code.UD2, Code.CALL_REL16)),
        (Kind.ODD, (Code.CALL_PTR1616, Code.CALL_PTR1632, Code.CALL_M1616, Code.CALL_M1632)),
        (Kind.ODD, (Code.XBEGIN_REL16, Code.XBEGIN_REL32)),
        (Kind.ODD_END, (Code.JMP_PTR1616, Code.JMP_PTR1632, Code.JMP_M1616, Code.JMP_M1632)),
    )
    for kind, codes in fixed:
        for code in codes:
            table[code] = kind
    for code in forms.SENSITIVE:
        table[code] |= _SENSITIVE
    return bytes(table)


_TABLE = _kinds()


class Role(IntEnum):
    """How an instruction names a text address."""

    IMMEDIATE = 0
    """As a number: perhaps a code pointer."""
    DISPLACEMENT = 1
    """As the base of an indexed access, or in a LEA."""
    ABSOLUTE = 2
    """As a memory operand of known address: the bytes there are read or written."""
    TABLE = 3
    """As the base of an indexed jump or call: a table of code pointers."""
    FAR = 4
    """As the target of a direct far jump or call."""
    DESCRIPTORS = 5
    """As the operand of lgdt/lidt: a 6-byte pseudo-descriptor."""
    FAR_POINTER = 6
    """As the operand of an indirect far jump or call: offset, then selector."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One text address named by the instruction at ``address``; ``size`` bytes are accessed there (0
    unknown)."""

    address: int
    value: int
    role: Role
    size: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What counts as a text address: the virtual hull [start, end), and its physical form (vaddr -
    offset)."""

    start: int
    end: int
    offset: int

    def normal(self, value: int) -> int | None:
        """``value`` as a virtual text address if it is one in either form, else None."""
        if self.start <= value < self.end:
            return value
        value = (value + self.offset) & 0xFFFFFFFF
        return value if self.offset and self.start <= value < self.end else None


@dataclass(slots=True)
class Listing:
    """A decoded range. Entry i is the instruction at ``starts[i]``, ``lengths[i]`` bytes, flow ``kinds[i]``.

    Ranges known to be data have no entries: they are gaps between one entry's end and the next one's start;
    ``after_gaps`` are the entries behind them.

    ``targets`` (direct near branches) and ``forms`` are keyed by instruction address. ``mask`` is what is
    known of where entries start.
    """

    start: int
    data: bytes
    starts: array[int] = field(default_factory=lambda: array("I"))
    lengths: bytearray = field(default_factory=bytearray)
    kinds: bytearray = field(default_factory=bytearray)
    targets: Branches = field(default_factory=Branches)
    forms: dict[int, Form] = field(default_factory=dict)
    references: list[Reference] = field(default_factory=list)
    after_gaps: list[int] = field(default_factory=list)
    mask: bytearray = field(default_factory=bytearray, compare=False)

    def __repr__(self) -> str:
        return f"Listing({self.start:#x}-{self.end:#x}, {len(self.starts)} instructions)"

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def at(self, address: int) -> int:
        """Index of the instruction that starts at ``address``, -1 if none does."""
        index = bisect_left(self.starts, address)
        return index if index < len(self.starts) and self.starts[index] == address else -1

    def covering(self, address: int) -> int:
        """Index of the entry whose bytes hold ``address``, -1 if none does."""
        index = bisect_right(self.starts, address) - 1
        return index if index >= 0 and address < self.stop(index) else -1

    def between(self, start: int, end: int) -> range:
        """The indices of the entries that start in [start, end)."""
        return range(bisect_left(self.starts, start), bisect_left(self.starts, end))

    def inside(self, addresses: Iterable[int]) -> list[int]:
        """Those of ``addresses`` that lie in an entry but aren't its start, in order."""
        base, end, mask = self.start, self.end, self.starting()
        found = {one for one in addresses if base <= one < end and not mask[one - base]}
        return [address for address in sorted(found) if self.covering(address) >= 0]

    def at_starts(self, data: bytes | bytearray) -> bytes:
        """Those bytes of ``data``, which is as long as the listing's, that lie at the entries' starts.

        They must be below 0x80.
        """
        # All the others become 0x80 and more at once, and are left out.
        others = int.from_bytes(self.starting().translate(_NO_STARTS), "little")
        mixed = (int.from_bytes(data, "little") | others).to_bytes(len(data), "little")
        return mixed.translate(None, _LEFT_OUT)

    def starting(self) -> bytearray:
        """A byte per byte of ``data``, 1 where an entry starts."""
        if not self.mask:
            for low, stop in pairwise((0, *self.after_gaps, len(self))):
                # Not all at once: joining takes much memory for each piece.
                for first in range(low, stop, _STEP):
                    if first == low:
                        self.mask.extend(bytes(self.starts[low] - self.start - len(self.mask)))
                    lengths = self.lengths[first : min(first + _STEP, stop)]
                    self.mask += b"".join(map(_STARTS.__getitem__, lengths))
            self.mask.extend(bytes(len(self.data) - len(self.mask)))
        return self.mask

    def stop(self, index: int) -> int:
        """Address after entry ``index``."""
        return self.starts[index] + self.lengths[index]

    def joined(self, index: int) -> bool:
        """True when control can run from entry ``index`` into entry ``index`` + 1."""
        kinds, starts = self.kinds, self.starts
        return (
            kinds[index] in FALLS_THROUGH
            and index + 1 < len(starts)
            and starts[index + 1] == starts[index] + self.lengths[index]
            and kinds[index + 1] != _BAD
        )

    def raw(self, index: int) -> bytes:
        at = self.starts[index] - self.start
        return self.data[at : at + self.lengths[index]]

    def decoded(self, index: int) -> Instruction:
        """The decoder's own view of entry ``index``."""
        return Decoder(BITS, self.raw(index), ip=self.starts[index]).decode()

    def insn(self, index: int) -> Insn:
        address = self.starts[index]
        form = self.forms.get(address)
        branch = _BRANCH.get(self.kinds[index])
        target = 0 if branch is None else self.targets[address]
        return Insn(address, self.raw(index), form.name if form else None, branch, target)

    def append(self, other: Listing) -> None:
        """Add a listing of later addresses; ``data`` stays as it is."""
        if self.starts and other.starts and self.stop(len(self) - 1) != other.starts[0]:
            self.after_gaps.append(len(self))
        self.mask.clear()
        self.starts.extend(other.starts)
        self.lengths.extend(other.lengths)
        self.kinds.extend(other.kinds)
        self.targets.extend(other.targets)
        self.forms.update(other.forms)
        self.references.extend(other.references)


def decode(data: bytes, start: int, bounds: Bounds) -> Listing:
    """Decode ``data`` at virtual address ``start`` from its first byte to its last, in 32-bit mode.

    Of the references, those of sensitive instructions and far branches are there; `refer` adds the others.
    """
    listing = Listing(start, data)
    answers = bytearray()
    put_source, put_target = listing.targets.sources.append, listing.targets.targets.append
    put, two, three = answers.append, shortcuts.TWO, shortcuts.THREE
    more, unknown = shortcuts.MORE, shortcuts.UNKNOWN
    decoder = Decoder(BITS, data, ip=start)
    at, size = 0, len(data)
    data += bytes(_BEHIND)
    # All but the least for most instructions is left out of this loop: its length is the patcher's time.
    while at < size:
        answer = two[data[at]][data[at + 1]]
        if answer < _PLAIN:
            put(answer)
            at += answer
            continue
        if answer == more:
            answer = three[data[at]][data[at + 1]][data[at + 2]]
        if answer == unknown:
            decoder.position, decoder.ip = at, start + at
            answer = _ask(decoder, listing, bounds)
        elif _PLAIN <= answer < _DIRECT:
            following = at + (answer & 15)
            if answer & 15 == _SHORT_JUMP:
                distance = data[at + 1]
                distance -= distance << 1 & 0x100  # it is signed
            else:
                distance = int.from_bytes(data[following - 4 : following], "little")
            put_source(start + at)
            put_target(start + following + distance & 0xFFFFFFFF)
        put(answer)
        at += answer & 15
    if at > size:  # the last instruction is cut off
        at -= answers.pop() & 15
        if start + at in listing.targets:
            listing.targets.pop()
        while at < size:
            decoder.position, decoder.ip = at, start + at
            put(_ask(decoder, listing, bounds))
            at += answers[-1] & 15
    listing.lengths = answers.translate(shortcuts.LENGTHS)
    listing.kinds = answers.translate(shortcuts.KINDS)
    listing.starts.extend(accumulate(listing.lengths[:-1], initial=start) if listing.lengths else ())
    return listing


def _ask(decoder: Decoder, listing: Listing, bounds: Bounds) -> int:
    """The decoder's own answer where it stands."""
    insn = decoder.decode()
    kind, address = _TABLE[insn.code], insn.ip32
    special = kind in _FAR
    if kind & _SENSITIVE:
        form = forms.classify(insn)
        if form is not None:
            listing.forms[address] = form
        kind &= _KIND_MASK
        special = True
    answer: int = kind << 4 | insn.len
    if kind in DIRECT:
        listing.targets.append(address, insn.near_branch32)
        if insn.len != _SHORT_JUMP and insn.len <= WORD:
            return answer  # a short jump with a prefix, which `decode` would take for a long one
    if special:
        if insn.len > WORD:
            _refer(listing.references, insn, kind, bounds)
    elif kind != _BAD:
        at = address - listing.start
        shortcuts.learn(listing.data[at : at + 3], answer)
    return answer


def naming(data: bytes, bounds: Bounds, text: Sequence[tuple[int, int]]) -> int | None:
    """Where in ``data`` a word may be an address in ``text``, in either form: bytes of 1 in a long number.

    None when instructions can name such an address in less than a word: a very low or a very high one.
    """
    ranges = [*text, *((low - bounds.offset, high - bounds.offset) for low, high in text if bounds.offset)]
    if any(-_SMALL < end < _SMALL or -_SMALL < end - (1 << 32) < _SMALL for one in ranges for end in one):
        return None
    return hits(data, ranges)


def refer(listing: Listing, bounds: Bounds, words: int | None) -> None:
    """Add the references that `decode` leaves out, and put all in order.

    ``words`` is what :func:`naming` gives for the listing's data: all references to that text are found, and
    some others.
    """
    known = {reference.address for reference in listing.references}
    for index in _holding(listing, words):
        address = listing.starts[index]
        if address not in known and listing.kinds[index] not in DIRECT:
            known.add(address)
            insn = listing.decoded(index)
            _refer(listing.references, insn, _TABLE[insn.code] & _KIND_MASK, bounds)
    listing.references.sort(key=attrgetter("address"))


def _holding(listing: Listing, words: int | None) -> Iterator[int]:
    """The entries that hold one of the words as a whole behind their first byte, or all long ones."""
    if words is None:
        yield from (index for index, length in enumerate(listing.lengths) if length > WORD)
        return
    mask = listing.starting()
    first = int.from_bytes(mask, "little")
    # Of such a word no byte starts an entry.
    words &= ~(first | first >> 8 | first >> 16 | first >> 24)
    for at in offsets(words, len(mask)):
        index = listing.covering(listing.start + at)
        if index >= 0:
            yield index


# Asking the decoder's enumerations for their members each time takes longer than all the rest.
_MEMORY, _IMMEDIATE32, _FAR_BRANCH32 = int(OpKind.MEMORY), int(OpKind.IMMEDIATE32), int(OpKind.FAR_BRANCH32)
_NO_REGISTER = int(Register.NONE)
_DESCRIPTOR_FORMS = ("lgdt m", "lidt m", "lgdtw m", "lidtw m")


def _refer(found: list[Reference], insn: Instruction, kind: int, bounds: Bounds) -> None:
    """Add the text addresses that an instruction names."""
    for operand in range(insn.op_count):
        what = insn.op_kind(operand)
        if what == _MEMORY:
            value = bounds.normal(insn.memory_displacement)
            if value is not None:
                found.append(_memory_reference(insn, kind, value))
        elif what == _IMMEDIATE32:
            value = bounds.normal(insn.immediate32)
            if value is not None:
                found.append(Reference(insn.ip32, value, Role.IMMEDIATE))
        elif what == _FAR_BRANCH32:
            value = bounds.normal(insn.far_branch32)
            if value is not None:
                found.append(Reference(insn.ip32, value, Role.FAR))


def _memory_reference(insn: Instruction, kind: int, value: int) -> Reference:
    address = insn.ip32
    if insn.code in (Code.LEA_R32_M, Code.LEA_R16_M):
        return Reference(address, value, Role.DISPLACEMENT)
    if insn.memory_base == insn.memory_index == _NO_REGISTER:
        form = forms.classify(insn)
        if form is not None and form.name in _DESCRIPTOR_FORMS:
            return Reference(address, value, Role.DESCRIPTORS, 6)
        if kind in (Kind.ODD, Kind.ODD_END):
            return Reference(address, value, Role.FAR_POINTER, 6)
        return Reference(address, value, Role.ABSOLUTE, max(1, MemorySizeExt.size(insn.memory_size)))
    if kind in (Kind.JMP_INDIRECT, Kind.CALL_INDIRECT):
        return Reference(address, value, Role.TABLE)
    return Reference(address, value, Role.DISPLACEMENT)
