# SPDX-License-Identifier: GPL-2.0-only
"""Which of a kernel's plain stores write page-table entries, from what somebody knows about the kernel.

No opcode tells such a store from others, so there is no discovering them in the code alone. Three sources
name them: the kernel's own annotations, the line table of its debug file (the functions that write entries
are inline functions of a few headers), and a profile of a run. None is believed without a look: an address
must be that of an instruction that writes one entry's worth of memory, or it is refused with a reason.

A store that is named wrongly costs time but nothing else: the call that stands for it stores the same value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from iced_x86 import Decoder, Instruction, InstructionInfoFactory, MemorySizeExt, OpAccess, OpKind, Register

from vmi.errors import BadInput
from vmi.patcher import elf, forms, linetable, symbols
from vmi.patcher.adaptorcode import same
from vmi.patcher.decode import BITS
from vmi.patcher.forms import Form
from vmi.patcher.model import Access, Image

HEADERS = ("pgtable*.h", "pgalloc*.h")
"""Base names, as file patterns, of the headers whose inline functions write page-table entries."""
LONG_HEADERS = ("pgtable-3level*.h",)
"""Those of them that only a kernel with 8-byte entries (PAE) includes."""

_LONGEST = 15  # bytes of an instruction
_WRITES = (OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE)
_STRINGS = (OpKind.MEMORY_ESEDI, OpKind.MEMORY_ESDI, OpKind.MEMORY_ESRDI)

OUTSIDE = "It is not in the kernel's code."
NOT_CODE = "The bytes there are no instruction."
NO_STORE = "`{}` does not write memory."
STACK = "`{}` writes to the stack."
STRING = "`{}` may write several entries, and a call stands for one."
WRONG_SIZE = "`{}` writes {} bytes, and an entry has {}."
NO_CALL = "No VMI call stands for `{}` on a page-table entry."
NOT_A_START = "No instruction that the search found begins there."
NOT_THE_SAME = "The profile saw other bytes there."


class Source(StrEnum):
    """Who says that a store writes a page-table entry."""

    ANNOTATION = "annotation"
    LINES = "line table"
    PROFILE = "profile"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Perhaps a store of an entry, by virtual address. ``long``: the kernel's entries have 8 bytes (PAE).

    ``code``: the bytes that must be there, up to the shorter of the two; empty when nobody knows.
    ``range_end``: candidates are all memory writes from ``address`` up to it; 0: one instruction.
    """

    address: int
    source: Source
    long: bool = False
    code: bytes = b""
    range_end: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """A candidate that is no site, and why (one sentence)."""

    address: int
    source: Source
    reason: str


@dataclass(frozen=True)
class PageTableSites:
    """``forms``: what to make of each store, by address; ``sources``: who named it first; both in order."""

    forms: Mapping[int, Form]
    sources: Mapping[int, Source]
    refused: tuple[Refused, ...]

    def __repr__(self) -> str:
        return f"PageTableSites({len(self.forms)} stores, {len(self.refused)} refused)"


def choose(image: Image, candidates: Iterable[Candidate]) -> PageTableSites:
    """Decode each candidate and keep those that write one entry.

    Of several that name one address the first counts. Refused are only those whose address nobody else
    gave with better right; what is in a range of the line table and writes no memory isn't mentioned.
    """
    kept: dict[int, Form] = {}
    sources: dict[int, Source] = {}
    refused: dict[int, Refused] = {}
    for candidate in candidates:
        for address, form, reason in _judged(image, candidate):
            if address in kept:
                continue
            if form is None:
                refused.setdefault(address, Refused(address, candidate.source, reason))
            else:
                kept[address], sources[address] = form, candidate.source
    left = sorted((one for one in refused.values() if one.address not in kept), key=lambda r: r.address)
    return PageTableSites(dict(sorted(kept.items())), dict(sorted(sources.items())), tuple(left))


def from_lines(data: bytes) -> tuple[Candidate, ...]:
    """Candidates by the line table of a debug file, which must be of the kernel's build (`symbols.merge`).

    None for a symbol map, and for a file without a line table. Raises BadInput for a damaged one.
    """
    data = symbols.unpacked(data)
    if data[:4] != elf.MAGIC:
        return ()
    sections = (".debug_line", ".debug_line_str", ".debug_str")
    try:
        table, line_strings, strings = (symbols.debug_section(data, name) for name in sections)
        spans = list(linetable.spans(table, line_strings, strings, _is_header))
    except BadInput as error:
        raise BadInput(f"the symbol file can't be used: {error}") from None
    long = any(_matches(span.file, LONG_HEADERS) for span in spans)
    found = {Candidate(s.start, Source.LINES, long, range_end=s.end) for s in spans}
    return tuple(sorted(found, key=lambda c: (c.address, c.range_end)))


def _is_header(name: str) -> bool:
    return _matches(name, HEADERS)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _judged(image: Image, candidate: Candidate) -> Iterator[tuple[int, Form | None, str]]:
    """(address, form, reason) for each store that a candidate names; form None with the reason."""
    address = candidate.address
    segment = image.segment_at(address)
    if segment is None or not is_code(image, address):
        yield address, None, OUTSIDE
        return
    if not candidate.range_end:
        code = image.read(address, _LONGEST)
        known = min(len(code), len(candidate.code))
        insn = Decoder(BITS, code, ip=address).decode()
        # what comes behind the instruction may have been patched when the profile saw it
        known = min(known, insn.len or known)
        if code[:known] != candidate.code[:known]:
            yield address, None, NOT_THE_SAME
        else:
            yield address, *store_form(insn, candidate.long)
        return
    code = image.read(address, min(candidate.range_end - address, segment.end - address))
    for insn in Decoder(BITS, code, ip=address):
        if insn.is_invalid:
            break
        if _written(insn) is not None:
            yield insn.ip32, *store_form(insn, candidate.long)


def is_code(image: Image, address: int) -> bool:
    """Whether an address lies in a section of code, or in a file without sections, in such a segment.

    (The code that a kernel only starts with may lie in the segment of its data.)
    """
    named = [section for section in image.sections if section.executable]
    if named:
        return any(section.vaddr <= address < section.end for section in named)
    segment = image.segment_at(address)
    return segment is not None and bool(segment.flags & Access.X)


def store_form(insn: Instruction, long: bool) -> tuple[Form | None, str]:
    """The form of an instruction that is said to store one entry, or None and why it can't be."""
    if insn.is_invalid:
        return None, NOT_CODE
    text, kind = str(insn), _written(insn)
    if kind is None:
        return None, NO_STORE.format(text)
    if kind in _STRINGS:
        return None, STRING.format(text)
    if kind != OpKind.MEMORY or _on_stack(insn):
        return None, STACK.format(text)
    size, entry = MemorySizeExt.size(insn.memory_size), 8 if long else 4
    if size > entry or (long and size < 4):
        return None, WRONG_SIZE.format(text, size, entry)
    form = forms.page_table_form(insn, long)
    return (None, NO_CALL.format(text)) if form is None else (form, "")


def _written(insn: Instruction) -> int | None:
    """How the memory that an instruction writes is addressed (an OpKind), None if it writes none."""
    info = InstructionInfoFactory().info(insn)
    for operand in range(insn.op_count):
        kind = insn.op_kind(operand)
        if (kind == OpKind.MEMORY or kind in _STRINGS) and info.op_access(operand) in _WRITES:
            return kind
    if any(memory.access in _WRITES for memory in info.used_memory()):
        return -1  # a push, a call: what it writes is no operand
    return None


def _on_stack(insn: Instruction) -> bool:
    """True for what is addressed by ESP, or below EBP, which then is the frame pointer."""
    if same(insn.memory_base, Register.ESP):
        return True
    framed = same(insn.memory_base, Register.EBP) and same(insn.memory_index, Register.NONE)
    return framed and insn.memory_displacement >= 1 << 31
