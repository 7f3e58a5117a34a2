# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel image says about its own code in tables: boot headers, unwind entries, self-patching lists.

A stripped kernel still names much of its code. Boot headers lie in the text and look like instructions;
unwind entries give every function's start; tables by which a kernel finds instructions again to patch them
name instructions that must stay at their addresses. The table by which it recovers from faults and that of
LOCK prefixes can be rewritten, so the instructions that they name may move.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vmi.errors import BadInput
from vmi.patcher import elf, exports, jumplabels, locktable, marks
from vmi.patcher.model import FaultTable, Image, LockTable, Section, Skipped

MULTIBOOT2_MAGIC = 0xE85250D6
MULTIBOOT2_SEARCH = 32768

IsCode = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Pin:
    """Bytes that must stay where they are. ``untouchable``: nor may anybody write there (no breakpoint)."""

    start: int
    end: int
    reason: str
    untouchable: bool = False


@dataclass(frozen=True, slots=True)
class Hints:
    """Facts about the text that need no decoding.

    ``data``: ranges that are no code. ``pins``: ranges whose instructions must stay, with the reason.
    ``functions``: addresses where an instruction surely starts. ``labels``: addresses control may reach.
    ``recovered``: the instructions that ``fault_table`` names, in order; ``fixups``: where it lets the kernel
    go on. ``locks``: the instructions that ``lock_table`` names. ``rewritten``: addresses at which
    the kernel may put other instructions, so that control runs on behind what is a jump in the file.
    ``toggled``: where jump labels start, at which there is only ever a NOP or a jump.
    """

    data: tuple[Skipped, ...] = ()
    pins: tuple[Pin, ...] = ()
    functions: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    fault_table: FaultTable | None = None
    recovered: tuple[int, ...] = ()
    fixups: frozenset[int] = frozenset()
    lock_table: LockTable | None = None
    locks: frozenset[int] = frozenset()
    rewritten: frozenset[int] = frozenset()
    toggled: frozenset[int] = frozenset()


def read_hints(image: Image, is_code: IsCode) -> Hints:
    """Everything the image's tables say; ``is_code`` tells whether an address lies in an executable range."""
    pins: list[Pin] = []
    labels: list[int] = []
    faults = fault_table(image, is_code)
    lock_table = locktable.find(image, is_code)
    known = {name for name, table in ((FAULT_TABLE, faults), (locktable.SECTION, lock_table)) if table}
    recovered, fixups = fault_entries(image, faults) if faults is not None else ([], [])
    locks = locktable.entries(image, lock_table) if lock_table is not None else ()
    rewritten: set[int] = set()
    toggled: set[int] = set()
    for section in image.sections:
        family = _FAMILIES.get(section.name)
        if family is not None and section.name not in known:
            before = len(pins)
            _read_family(image, section, family, is_code, pins, labels)
            if family.any_code:
                rewritten.update(at for pin in pins[before:] for at in range(pin.start, pin.end))
    for label in jumplabels.jump_labels(image, is_code, _FAMILIES):
        end = label.start + label.size
        pins.append(Pin(label.start, end, _PATCHED.format("jump labels"), True))
        labels.append(label.target)
        rewritten.update(range(label.start, end))
        toggled.add(label.start)
    for record in marks.kept(image):
        if not is_code(record.start) or not is_code(record.end - 1):
            raise BadInput(f"the annotation at {record.start:#x} is outside the kernel's code")
        pins.append(Pin(record.start, record.end, _KEPT, untouchable=True))
    labels.extend(exports.functions(image, is_code))
    functions = [start for start in unwind_starts(image) if is_code(start)]
    return Hints(
        tuple(boot_headers(image)),
        tuple(pins),
        tuple(functions),
        tuple(labels),
        faults,
        tuple(sorted(recovered)),
        frozenset(fixups),
        lock_table,
        frozenset(locks),
        frozenset(rewritten),
        frozenset(toggled),
    )


# ---------------------------------------------------------------- boot headers


def boot_headers(image: Image) -> Iterator[Skipped]:
    """The multiboot headers (versions 1 and 2) as virtual ranges."""
    data = image.data
    header = elf.multiboot(data)
    if header is not None:
        yield from _file_range(image, header.offset, header.length, "This is the multiboot header.")
    for at in range(0, min(len(data) - 15, MULTIBOOT2_SEARCH), 8):
        magic, arch, size, checksum = struct.unpack_from("<IIII", data, at)
        if magic == MULTIBOOT2_MAGIC and (magic + arch + size + checksum) & 0xFFFFFFFF == 0:
            yield from _file_range(image, at, size, "This is the multiboot2 header.")


def _file_range(image: Image, offset: int, size: int, reason: str) -> Iterator[Skipped]:
    for segment in image.segments:
        if segment.file_offset <= offset < segment.file_offset + segment.filesz:
            start = segment.vaddr + offset - segment.file_offset
            yield Skipped(start, min(start + size, segment.end), reason)


# ---------------------------------------------------------------- unwind entries

_ABSOLUTE, _PC_RELATIVE = 0x00, 0x10
_WORD_FORMATS = (0x00, 0x03, 0x0B)


def unwind_starts(image: Image) -> Iterator[int]:
    """Function start addresses from `.eh_frame`; stops at the first record it does not understand."""
    section = image.section(".eh_frame")
    if section is None:
        return
    data = image.read(section.vaddr, section.size)
    encodings: dict[int, int | None] = {}
    at = 0
    while at + 8 <= len(data):
        length, pointer = struct.unpack_from("<II", data, at)
        if length == 0:
            at += 4
            continue
        body, end = at + 8, at + 4 + length
        if length < 4 or length >= 0xFFFFFFF0 or end > len(data):
            return
        if pointer == 0:
            encodings[at] = _pointer_encoding(data[body:end])
        else:
            encoding = encodings.get(at + 4 - pointer)
            if encoding is None or encoding & 0x0F not in _WORD_FORMATS or body + 4 > end:
                return
            value = int.from_bytes(data[body : body + 4], "little")
            if encoding & 0x70 == _PC_RELATIVE:
                yield (value + section.vaddr + body) & 0xFFFFFFFF
            elif encoding & 0x70 == _ABSOLUTE:
                yield value
        at = end


def _pointer_encoding(cie: bytes) -> int | None:
    """The FDE pointer encoding of a CIE (its bytes after the id field), None when it can't be told."""
    zero = cie.find(b"\0", 1)
    if zero < 0:
        return None
    augmentation, at = cie[1:zero], zero + 1
    if not augmentation.startswith(b"z"):
        return _ABSOLUTE if not augmentation else None
    for _ in range(2):  # code and data alignment factors
        at = _after_leb128(cie, at)
    at = at + 1 if cie[0] == 1 else _after_leb128(cie, at)  # return address register
    at = _after_leb128(cie, at)  # augmentation length
    for letter in augmentation[1:]:
        if at >= len(cie):
            return None
        if letter == ord("R"):
            return cie[at]
        if letter == ord("L"):
            at += 1
        elif letter == ord("P"):
            if cie[at] & 0x0F not in _WORD_FORMATS:
                return None
            at += 5
        elif letter not in b"SB":
            return None
    return _ABSOLUTE


def _after_leb128(data: bytes, at: int) -> int:
    while at < len(data) and data[at] & 0x80:
        at += 1
    return at + 1


# ---------------------------------------------------------------- the fault table

FAULT_TABLE = "__ex_table"
MAX_FAULT_TYPE = 0x1F
"""Where the third word is a number, its low byte is a small one: the kind of recovery."""


def fault_table(image: Image, is_code: IsCode) -> FaultTable | None:
    """The layout of `__ex_table`, None when there is none or when it fits none of the known layouts."""
    section = image.section(FAULT_TABLE)
    if section is None or not section.size:
        return None
    for entry, relative, third in (
        (12, True, True),
        (12, True, False),
        (8, True, False),
        (8, False, False),
    ):
        table = FaultTable(section.vaddr, section.size // entry, entry, relative, third)
        if section.size % entry == 0 and _fits(image, table, is_code):
            return table
    return None


def _fits(image: Image, table: FaultTable, is_code: IsCode) -> bool:
    instructions, fixups = fault_entries(image, table)
    if len(fixups) != table.count or not all(map(is_code, (*instructions, *fixups))):
        return False
    if table.entry == 8:
        return True
    for at in range(table.start + 8, table.start + table.count * 12, 12):
        word = image.u32(at) or 0
        if table.relative_third:
            if not is_code((word + at) & 0xFFFFFFFF):
                return False
        elif word & 0xFF > MAX_FAULT_TYPE:
            return False
    return True


def fault_entries(image: Image, table: FaultTable) -> tuple[list[int], list[int]]:
    """(instructions, places to go on at) of a fault table, in the table's order; short if the file is."""
    data = image.read(table.start, table.count * table.entry)
    found: tuple[list[int], list[int]] = ([], [])
    for record in range(0, len(data) - table.entry + 1, table.entry):
        for addresses, at in zip(found, (record, record + 4), strict=True):
            word = int.from_bytes(data[at : at + 4], "little")
            addresses.append((word + table.start + at) & 0xFFFFFFFF if table.relative else word)
    return found


# ---------------------------------------------------------------- self-patching tables


@dataclass(frozen=True, slots=True)
class _Layout:
    """One known record layout: where addresses stand in a record, and how they are stored.

    ``pins`` and ``labels`` are byte offsets of address words; ``length_at`` that of a byte that gives the
    first pin's length (-1: only the instruction there). ``relative``: an address is stored as distance from
    its own word.
    """

    size: int
    relative: bool
    pins: tuple[int, ...]
    labels: tuple[int, ...] = ()
    length_at: int = -1


@dataclass(frozen=True, slots=True)
class _Family:
    """All layouts that a section of this name has had, newest first, and why its instructions stay.

    ``any_code``: the kernel may put quite other instructions there, NOPs in place of a jump among them.
    """

    reason: str
    layouts: tuple[_Layout, ...]
    untouchable: bool = True
    any_code: bool = False


_KEPT = "The kernel's source wants these bytes left alone."
_FAULT = "The kernel finds this instruction by its address when it faults (__ex_table)."
_PATCHED = "The kernel rewrites these bytes itself ({})."


def _single(name: str, relative: bool = True) -> _Family:
    return _Family(_PATCHED.format(name), (_Layout(4, relative, (0,)), _Layout(4, not relative, (0,))))


_FAMILIES: dict[str, _Family] = {
    # This one and .smp_locks are only read here when their layout is unknown. No layout: whatever it may name
    # stays.
    FAULT_TABLE: _Family(_FAULT, (), untouchable=False),
    ".altinstructions": _Family(
        _PATCHED.format(".altinstructions"),
        (
            _Layout(12, True, (0,), (), 10),
            _Layout(13, True, (0,), (), 10),
            _Layout(12, False, (0,), (), 9),
            _Layout(11, False, (0,), (), 9),
        ),
        any_code=True,
    ),
    ".parainstructions": _Family(
        _PATCHED.format(".parainstructions"), (_Layout(8, False, (0,), (), 5),), any_code=True
    ),
    ".smp_locks": _single(".smp_locks"),
    "__bug_table": _Family(
        "The kernel finds this instruction by its address when it traps (__bug_table).",
        tuple(_Layout(size, relative, (0,)) for relative in (True, False) for size in (12, 8, 4, 6)),
    ),
    ".static_call_sites": _Family(_PATCHED.format(".static_call_sites"), (_Layout(8, True, (0,)),)),
    "__mcount_loc": _single("__mcount_loc", relative=False),
    ".retpoline_sites": _single(".retpoline_sites"),
    ".return_sites": _single(".return_sites"),
    ".call_sites": _single(".call_sites"),
    ".ibt_endbr_seal": _single(".ibt_endbr_seal"),
}

NO_CODE_SECTIONS: dict[str, str] = {
    ".altinstr_replacement": "The kernel copies these instructions over others (.altinstr_replacement).",
}
"""Executable sections that never run where they are, with the reason they are not searched."""


def _read_family(
    image: Image,
    section: Section,
    family: _Family,
    is_code: IsCode,
    pins: list[Pin],
    labels: list[int],
) -> None:
    data = image.read(section.vaddr, section.size)
    for layout in family.layouts:
        found = _try_layout(data, section.vaddr, layout, family, is_code)
        if found is not None:
            pins.extend(found[0])
            labels.extend(found[1])
            return
    # An unknown layout: whatever could be an address in it pins the instruction there.
    for at in range(0, len(data) - 3, 4):
        word = int.from_bytes(data[at : at + 4], "little")
        for address in (word, (word + section.vaddr + at) & 0xFFFFFFFF):
            if is_code(address):
                pins.append(Pin(address, address + 1, family.reason, family.untouchable))
                labels.append(address)


def _try_layout(
    data: bytes, base: int, layout: _Layout, family: _Family, is_code: IsCode
) -> tuple[list[Pin], list[int]] | None:
    """The pins and labels of a table, None when one of its records does not fit the layout."""
    if not data or len(data) % layout.size:
        return None

    def address(at: int) -> int:
        word = int.from_bytes(data[at : at + 4], "little")
        return (word + base + at) & 0xFFFFFFFF if layout.relative else word

    pins: list[Pin] = []
    labels: list[int] = []
    for record in range(0, len(data), layout.size):
        names = [address(record + at) for at in layout.pins + layout.labels]
        if not all(map(is_code, names)):
            return None
        length = 1 if layout.length_at < 0 else data[record + layout.length_at]
        pins.extend(
            Pin(name, name + max(1, length), family.reason, family.untouchable)
            for name in names[: len(layout.pins)]
        )
        labels.extend(names)
    return pins, labels


def merged(ranges: Iterable[Skipped]) -> list[Skipped]:
    """Ranges in address order without overlaps; the earlier one keeps what two share."""
    result: list[Skipped] = []
    for one in sorted(ranges, key=lambda r: (r.start, r.end)):
        start = max(one.start, result[-1].end) if result else one.start
        if start < one.end:
            result.append(Skipped(start, one.end, one.reason))
    return result
