# SPDX-License-Identifier: GPL-2.0-only
"""Check a patched file against the plan before anyone gets it, with tools that did not make it.

Another ELF library reads the file back, and the decoder reads the code: the emitter's own address
arithmetic is not trusted. What is checked:

* the file (here): table of program headers where it was, entry point, old segments with their addresses,
  sizes and flags, one new segment; every loaded byte is either the original one or in the plan;
* the control flow (``verify_flow``): each window jumps to its trampoline, the trampoline is the window's
  instructions with the same branch targets, in whatever pieces, and it comes back to the right address;
* the tables (``verify_tables``): as many records as the plan has slots and traps, each slot holding NOPs and
  the original instruction on the right sides, each adaptor starting where a record says and calling where
  a link says; and the kernel's own tables, which must name the moved instructions where they are now.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from vmi import sitetable
from vmi.errors import BadInput, VerifyError
from vmi.patcher import verify_flow, verify_tables
from vmi.patcher.emit import Emission
from vmi.patcher.entry import kludge_edit
from vmi.patcher.model import Image, Plan
from vmi.patcher.readback import Memory, check, is_padding, open_elf
from vmi.sitetable import ImageFlag

PROGRAM_HEADER_SIZE = 32
GRUB_LIMIT = 8192  # bytes within which GRUB wants the program header table
CONTEXT = 16  # bytes read before and after padding: longer than any NOP


def verify(emission: Emission, data: bytes) -> None:
    """Raise VerifyError, one sentence, unless ``data`` is exactly what the emission's plan asks for.

    Raises BadInput when the original can't be read with the other library, so that nothing can be compared.
    """
    try:
        list(open_elf(emission.plan.image.data).iter_sections())
    except ELFError as error:
        raise BadInput(f"the section headers are damaged: {error}") from None
    try:
        _verify(emission, data)
    except (ELFError, OverflowError) as error:
        raise VerifyError(f"the output can't be read back as an ELF file: {error}") from None


def _verify(emission: Emission, data: bytes) -> None:
    file = open_elf(data)
    segments = [segment for segment in file.iter_segments() if segment["p_type"] == "PT_LOAD"]
    sections = list(file.iter_sections())
    check(file["e_entry"] == emission.entry, f"the entry point is {file['e_entry']:#x}")
    _check_headers(emission.plan.image, file)
    memory = Memory([(s["p_vaddr"], s.data()) for s in segments])
    _check_segments(emission, file, segments)
    _check_bytes(emission, file, memory)
    _check_sections(emission.plan.image, sections)
    _check_padding(emission.plan)
    parsed = sitetable.parse(memory.read(emission.base, emission.header.size), emission.base)
    check(parsed.header == emission.header, "the header of the .vmi segment reads back differently")
    check(parsed.sites == emission.records, "the site table reads back differently")
    check(parsed.links == emission.links, "the link table reads back differently")
    verify_tables.check_records(emission, memory)
    verify_tables.check_cleared(emission, memory, sections)
    found = verify_flow.follow(emission, memory)
    verify_tables.check_fault_table(emission.plan, memory, found)
    verify_tables.check_lock_table(emission.plan, memory, found)
    verify_tables.check_displaced(emission, memory, found)
    verify_tables.check_relocations(emission.plan, sections, found)


def _check_headers(image: Image, file: ELFFile) -> None:
    old = open_elf(image.data)
    end = file["e_phoff"] + file["e_phnum"] * PROGRAM_HEADER_SIZE
    old_end = old["e_phoff"] + old["e_phnum"] * PROGRAM_HEADER_SIZE
    check(
        end <= GRUB_LIMIT or old_end > GRUB_LIMIT,
        f"the program header table ends at byte {end}, and boot loaders read {GRUB_LIMIT} bytes",
    )
    for name in ("e_machine", "e_type", "e_flags", "e_shnum", "e_shstrndx"):
        check(file[name] == old[name], f"{name} changed from {old[name]} to {file[name]}")


def _check_segments(emission: Emission, file: ELFFile, segments: list[Any]) -> None:
    def facts(segment: Any) -> tuple[int, ...]:
        addresses = tuple(segment[f"p_{n}"] for n in ("vaddr", "paddr", "filesz", "memsz"))
        return (*addresses, segment["p_flags"] & 7)

    expected = sorted(
        (s.vaddr, s.paddr, s.filesz, s.memsz, int(s.flags)) for s in emission.plan.image.segments
    )
    layout = emission.place.layout
    size = emission.header.size
    expected.append((layout.base, layout.loaded(layout.base), size, size, 7))
    found = sorted(facts(segment) for segment in segments if segment["p_memsz"])
    check(found == sorted(expected), "the loadable segments are not the old ones and the new one")
    home = next(segment for segment in segments if segment["p_vaddr"] == layout.base)
    away = (home["p_vaddr"] - home["p_paddr"] - emission.header.bias) % (1 << 32) != 0
    flagged = bool(emission.header.image_flags & ImageFlag.LIFTED)
    check(away == flagged, f"the .vmi segment is loaded at {home['p_paddr']:#x}, and its flags say otherwise")
    check(layout.base % 0x1000 == 0, f"the .vmi segment's address {layout.base:#x} is not that of a page")


def _check_bytes(emission: Emission, file: ELFFile, memory: Memory) -> None:
    """Every loaded byte is untouched or in the plan."""
    check(memory.read(emission.base, emission.header.size) == emission.segment, "the .vmi segment's bytes")
    allowed = _planned(emission)
    headers_end = 52
    for segment in emission.plan.image.segments:
        expected = bytearray(segment.data)
        for start, content in allowed:
            if segment.vaddr <= start < segment.end:
                at = start - segment.vaddr
                expected[at : at + len(content)] = content
        found = memory.read(segment.vaddr, segment.filesz)
        if segment.file_offset < headers_end:
            # The segment holds the ELF header and the program headers, as some linkers do.
            skip = file["e_phoff"] + file["e_phnum"] * PROGRAM_HEADER_SIZE - segment.file_offset
            expected[:skip] = found[:skip]
        if bytes(expected) != found:
            at = next(n for n, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1])
            raise VerifyError(
                f"the output doesn't match the plan: the byte at {segment.vaddr + at:#x} should be "
                f"{expected[at]:#04x} and is {found[at]:#04x}"
            )


def _planned(emission: Emission) -> list[tuple[int, bytes]]:
    """The edits, each checked to be what the plan has at its place, and no two overlapping."""
    ranges = set(planned_ranges(emission.plan))
    table = emission.plan.fault_table
    if table is not None:
        ranges.add((table.start, table.count * table.entry))
    locks = emission.plan.lock_table
    if locks is not None:
        ranges.add((locks.start, 4 * locks.count))
    ranges |= {(at, len(raw)) for at, raw in _load_addresses(emission).items()}
    for start, content in emission.edits.items():
        check((start, len(content)) in ranges, f"there is an edit at {start:#x} outside all windows")
    for (low, size), (high, _) in pairwise(sorted(ranges)):
        check(low + size <= high, f"what the plan has at {low:#x} and {high:#x} overlaps")
    return sorted(emission.edits.items())


def _load_addresses(emission: Emission) -> dict[int, bytes]:
    """What the load addresses of a multiboot header must be, if it has them."""
    layout = emission.place.layout
    end = layout.loaded(layout.base + emission.header.size)
    found = kludge_edit(emission.plan.image, end, layout.loaded(layout.activation))
    for at, raw in found.items():
        check(
            emission.edits.get(at) == raw, f"the load addresses at {at:#x} don't reach to the segment's end"
        )
    return found


def planned_ranges(plan: Plan) -> list[tuple[int, int]]:
    """(start, size) of all windows, pads and springboards; those in a host are part of its window."""
    windows = sorted((window.start, window.length) for window in plan.windows)
    pads = [(pad.start, pad.size) for window in plan.windows for pad in window.pads]
    hosts = {at for start, length in windows for at in range(start + 5, start + length - 4)}
    boards = [w.springboard for w in plan.windows if w.springboard is not None]
    return windows + pads + [(board, 5) for board in boards if board not in hosts]


def _check_padding(plan: Plan) -> None:
    """Pads and springboards lie in padding of the original; those that touch are looked at together."""
    windows = {window.start for window in plan.windows}
    image = plan.image
    run_start = run_end = -1
    for start, size in [*sorted(planned_ranges(plan)), (1 << 32, 0)]:
        if start == run_end and start not in windows:
            run_end += size
            continue
        if run_end > run_start:
            segment = image.segment_at(run_start)
            low = max(run_start - CONTEXT, segment.vaddr if segment is not None else run_start)
            raw = image.read(low, run_end + CONTEXT - low)
            check(is_padding(raw, run_start - low, run_end - low), f"what is at {run_start:#x} is no padding")
        run_start, run_end = (start, start) if start in windows else (start, start + size)


def _check_sections(image: Image, sections: list[Any]) -> None:
    old = list(open_elf(image.data).iter_sections())
    check(len(old) == len(sections), f"there are {len(sections)} sections instead of {len(old)}")
    for before, after in zip(old, sections, strict=True):
        for name in ("sh_type", "sh_flags", "sh_addr", "sh_size"):
            if before["sh_type"] != "SHT_STRTAB":  # those are sorted anew
                check(before[name] == after[name], f"{name} of the section {before.name!r} changed")
