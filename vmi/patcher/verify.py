# SPDX-License-Identifier: GPL-2.0-only
"""Check a patched file against the plan before anyone gets it, with tools that did not make it.

Another ELF library reads the file back, and the decoder reads the code: the emitter's own address
arithmetic is not trusted. What is checked:

* the file: table of program headers where it was, entry point, old segments with their addresses, sizes
  and flags, one new segment; every loaded byte is either the original one or in the plan;
* the tables: as many records as the plan has sites for, each slot holding NOPs and then the original
  instruction, each adaptor starting where a record says and calling where a link says;
* the control flow: each window jumps to its trampoline, the trampoline is the window's instructions with
  the same branch targets, and it comes back to the right address.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from iced_x86 import Code, Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register

from vmi import sitetable
from vmi.errors import BadInput, VerifyError
from vmi.patcher.adaptorcode import same
from vmi.patcher.emit import Emission
from vmi.patcher.model import Image, Site, Window
from vmi.sitetable import INLINE, SiteRecord, Tactic

PROGRAM_HEADER_SIZE = 32
GRUB_LIMIT = 8192  # bytes within which GRUB wants the program header table


def verify(emission: Emission, data: bytes) -> None:
    """Raise VerifyError, one sentence, unless ``data`` is exactly what the emission's plan asks for.

    Raises BadInput when the original can't be read with the other library, so that nothing can be compared.
    """
    try:
        list(_open(emission.plan.image.data).iter_sections())
    except ELFError as error:
        raise BadInput(f"the section headers are damaged: {error}") from None
    try:
        _verify(emission, data)
    except (ELFError, OverflowError) as error:
        raise VerifyError(f"the output can't be read back as an ELF file: {error}") from None


def _verify(emission: Emission, data: bytes) -> None:
    file = _open(data)
    segments = [segment for segment in file.iter_segments() if segment["p_type"] == "PT_LOAD"]
    sections = list(file.iter_sections())
    _check(file["e_entry"] == emission.entry, f"the entry point is {file['e_entry']:#x}")
    _check_headers(emission.plan.image, file)
    memory = _Memory([(s["p_vaddr"], s.data()) for s in segments])
    _check_segments(emission, file, segments)
    _check_bytes(emission, file, memory)
    _check_sections(emission.plan.image, sections)
    parsed = sitetable.parse(memory.read(emission.base, emission.header.size), emission.base)
    _check(parsed.header == emission.header, "the header of the .vmi segment reads back differently")
    _check(parsed.sites == emission.records, "the site table reads back differently")
    _check(parsed.links == emission.links, "the link table reads back differently")
    _check_records(emission, memory)
    records = {record.site: record for record in emission.records}
    for window in emission.plan.windows:
        _check_window(emission, memory, window, records)


def _check(condition: bool, otherwise: str) -> None:
    if not condition:
        raise VerifyError(f"the output doesn't match the plan: {otherwise}")


# --- the file -----------------------------------------------------------------------------------


class _Memory:
    """The loaded bytes by virtual address."""

    def __init__(self, pieces: list[tuple[int, bytes]]) -> None:
        self.pieces = sorted(pieces)
        self.starts = [start for start, _ in self.pieces]

    def read(self, address: int, size: int) -> bytes:
        index = bisect_right(self.starts, address) - 1
        if index < 0:
            return b""
        start, content = self.pieces[index]
        return content[address - start : address - start + size]

    def decode(self, address: int) -> Instruction:
        raw = self.read(address, 15)
        insn = Decoder(32, raw, ip=address).decode()
        _check(not insn.is_invalid, f"there is no instruction at {address:#x}")
        return insn


def _open(data: bytes) -> ELFFile:
    """The file as the second library reads it; it wants the section header size even without sections.

    No section headers means none, wherever they are said to be: there are never so many that their number
    stands in the first of them.
    """
    if data[48:50] == b"\0\0":  # e_shnum
        data = data[:32] + bytes(4) + data[36:46] + b"\x28\0" + data[48:]
    return ELFFile(io.BytesIO(data))


def _check_headers(image: Image, file: ELFFile) -> None:
    old = _open(image.data)
    end = file["e_phoff"] + file["e_phnum"] * PROGRAM_HEADER_SIZE
    old_end = old["e_phoff"] + old["e_phnum"] * PROGRAM_HEADER_SIZE
    _check(
        end <= GRUB_LIMIT or old_end > GRUB_LIMIT,
        f"the program header table ends at byte {end}, and boot loaders read {GRUB_LIMIT} bytes",
    )
    for name in ("e_machine", "e_type", "e_flags", "e_shnum", "e_shstrndx"):
        _check(file[name] == old[name], f"{name} changed from {old[name]} to {file[name]}")


def _check_segments(emission: Emission, file: ELFFile, segments: list[Any]) -> None:
    def facts(segment: Any) -> tuple[int, ...]:
        addresses = tuple(segment[f"p_{n}"] for n in ("vaddr", "paddr", "filesz", "memsz"))
        return (*addresses, segment["p_flags"] & 7)

    expected = sorted(
        (s.vaddr, s.paddr, s.filesz, s.memsz, int(s.flags)) for s in emission.plan.image.segments
    )
    layout = emission.place.layout
    size = emission.header.size
    expected.append((layout.base, layout.physical(layout.base), size, size, 7))
    found = sorted(facts(segment) for segment in segments if segment["p_memsz"])
    _check(found == sorted(expected), "the loadable segments are not the old ones and the new one")
    _check(layout.base % 0x1000 == 0, f"the .vmi segment's address {layout.base:#x} is not that of a page")


def _check_bytes(emission: Emission, file: ELFFile, memory: _Memory) -> None:
    """Every loaded byte is untouched or in the plan."""
    _check(memory.read(emission.base, emission.header.size) == emission.segment, "the .vmi segment's bytes")
    allowed = _planned_ranges(emission)
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


def _planned_ranges(emission: Emission) -> list[tuple[int, bytes]]:
    """The edits, each checked to lie inside a window or springboard of the plan."""
    ranges = {(window.start, window.length) for window in emission.plan.windows}
    ranges |= {(w.springboard, 5) for w in emission.plan.windows if w.springboard is not None}
    for start, content in emission.edits.items():
        _check((start, len(content)) in ranges, f"there is an edit at {start:#x} outside all windows")
    return sorted(emission.edits.items())


def _check_sections(image: Image, sections: list[Any]) -> None:
    old = list(_open(image.data).iter_sections())
    _check(len(old) == len(sections), f"there are {len(sections)} sections instead of {len(old)}")
    for before, after in zip(old, sections, strict=True):
        for name in ("sh_type", "sh_flags", "sh_addr", "sh_size"):
            if before["sh_type"] != "SHT_STRTAB":  # those are sorted anew
                _check(before[name] == after[name], f"{name} of the section {before.name!r} changed")


# --- tables, adaptors ---------------------------------------------------------------------------


def _check_records(emission: Emission, memory: _Memory) -> None:
    image = emission.plan.image
    sites = {site.address: site for site in emission.plan.sites}
    wanted = {p.site.address for p in emission.plan.placements if p.tactic is not Tactic.LEFT}
    recorded = [record.site for record in emission.records]
    _check(
        sorted(recorded) == sorted(wanted),
        f"there are {len(recorded)} records for {len(wanted)} sites with a slot or to be trapped",
    )
    adaptors = {placed.address: placed.call for placed in emission.adaptors}
    links = {link.address: link.call for link in emission.links}
    previous_end = 0
    for record in emission.records:
        _check(record.slot >= previous_end, f"the slots before and at {record.slot:#x} overlap")
        previous_end = record.slot + record.length
        site = sites.get(record.site)
        _check(site is not None, f"there is a record for {record.site:#x}, where no site is")
        assert site is not None
        unmoved = image.read(site.address, site.length) == site.raw
        _check(unmoved, f"the site at {site.address:#x} isn't there in the original")
        if record.has_call:
            _check_slot(record, site, memory)
            _check(
                record.adaptor == 0 or adaptors.get(record.adaptor) == record.call,
                f"the slot at {record.slot:#x} has no adaptor at {record.adaptor:#x} for call {record.call}",
            )
        else:
            unchanged = memory.read(record.slot, record.length) == site.raw
            _check(unchanged, f"the instruction to be trapped is not at {record.slot:#x}")
    for address, call in adaptors.items():
        _check_adaptor(address, call, memory, links)


def _check_slot(record: SiteRecord, site: Site, memory: _Memory) -> None:
    where = f"the slot at {record.slot:#x}"
    _check(record.length >= 5, f"{where} has only {record.length} bytes")
    wanted = INLINE if site.inline else site.call and site.call.number
    _check(wanted == record.call, f"{where} has the wrong call")
    _check(record.adaptor != 0 or not site.inline, f"{where} needs an adaptor and has none")
    at, end = record.slot, record.slot + record.length
    while at < end - site.length:
        insn = memory.decode(at)
        _check(_is_nop(insn), f"{where} has something else than NOPs before the instruction")
        at = insn.next_ip32
    _check(at == end - site.length, f"{where} does not end with the original instruction")
    _check(memory.read(at, site.length) == site.raw, f"{where} does not hold the original instruction")


def _is_nop(insn: Instruction) -> bool:
    if same(insn.mnemonic, Mnemonic.NOP):
        return True
    # What assemblers pad i386 code with: mov r,r and lea r,[r+0].
    if insn.code in (Code.MOV_R32_RM32, Code.MOV_RM32_R32):
        return same(insn.op1_kind, OpKind.REGISTER) and same(insn.op0_register, insn.op1_register)
    plain = insn.memory_displacement == 0 and same(insn.memory_index, Register.NONE)
    return same(insn.code, Code.LEA_R32_M) and plain and same(insn.op0_register, insn.memory_base)


def _check_adaptor(address: int, call: int, memory: _Memory, links: dict[int, int]) -> None:
    """Straight code with exactly one call, which is linked to the right entry, up to a return."""
    at, seen = address, 0
    while True:
        insn = memory.decode(at)
        if same(insn.flow_control, FlowControl.RETURN):
            break
        if same(insn.flow_control, FlowControl.CALL):
            seen += 1
            _check(links.get(at) == call, f"the call at {at:#x} in an adaptor is not linked to call {call}")
            _check(insn.next_ip32 == insn.near_branch32, f"the call at {at:#x} is not empty before linking")
        else:
            straight = same(insn.flow_control, FlowControl.NEXT)
            _check(straight, f"the adaptor at {address:#x} is not straight code")
        at = insn.next_ip32
    inline = call == INLINE
    wanted = "none" if inline else "one"
    _check(seen == (not inline), f"the adaptor at {address:#x} makes {seen} calls instead of {wanted}")


# --- control flow -------------------------------------------------------------------------------


def _jump(memory: _Memory, address: int) -> int:
    insn = memory.decode(address)
    near = same(insn.op0_kind, OpKind.NEAR_BRANCH32)
    _check(near and same(insn.mnemonic, Mnemonic.JMP), f"there is no jump at {address:#x}")
    return insn.near_branch32


def _check_window(
    emission: Emission, memory: _Memory, window: Window, records: dict[int, SiteRecord]
) -> None:
    image = emission.plan.image
    at = _jump(memory, window.start)
    if window.springboard is not None:
        _check(at == window.springboard, f"the window at {window.start:#x} misses its springboard")
        at = _jump(memory, at)
    _check(
        emission.base <= at < emission.base + emission.header.size,
        f"the window at {window.start:#x} jumps out of the .vmi segment",
    )
    slotted = {site.address for site in window.sites}
    shadowed = False
    for insn in window.insns:
        _check(image.read(insn.address, insn.length) == insn.raw, f"the plan misread {insn.address:#x}")
        old = Decoder(32, insn.raw, ip=insn.address).decode()
        padded = at
        if insn.address in slotted:
            while memory.read(at, insn.length) != insn.raw and _is_nop(memory.decode(at)):
                at = memory.decode(at).next_ip32
        where = f"{at:#x} in the trampoline for {window.start:#x}"
        _check(not (shadowed and padded != at), f"a NOP at {where} breaks the shadow of an instruction")
        record = records.get(insn.address)
        if insn.address in slotted and record is not None and record.has_call:
            _check(record.slot == padded, f"the record for {insn.address:#x} names another slot")
        shadowed = _has_shadow(insn.raw)
        if insn.branch is None:
            _check(memory.read(at, insn.length) == insn.raw, f"the instruction at {where} changed")
            at += insn.length
        else:
            at = _check_branch(memory, at, old, where)
    if window.resume is not None:
        _check(
            _jump(memory, at) == window.resume,
            f"the trampoline for {window.start:#x} does not come back to {window.resume:#x}",
        )


def _check_branch(memory: _Memory, at: int, old: Instruction, where: str) -> int:
    """Compare a relocated branch with the old one and return the address after it."""
    new = memory.decode(at)
    _check(same(new.mnemonic, old.mnemonic), f"the branch at {where} is another one")
    if new.near_branch32 == old.near_branch32:
        return new.next_ip32
    # loop, jecxz: taken goes to a long jump, not taken jumps over it.
    taken, after = new.near_branch32, _jump(memory, new.next_ip32)
    _check(_jump(memory, taken) == old.near_branch32, f"the branch at {where} has another target")
    _check(after == memory.decode(taken).next_ip32, f"the branch at {where} does not fall through")
    return after


def _has_shadow(raw: bytes) -> bool:
    """True when the last instruction of ``raw`` holds interrupts off for the one after it."""
    last = list(Decoder(32, raw))[-1]
    if same(last.mnemonic, Mnemonic.STI):
        return True
    loads = same(last.mnemonic, Mnemonic.MOV) or same(last.mnemonic, Mnemonic.POP)
    return loads and same(last.op0_kind, OpKind.REGISTER) and same(last.op0_register, Register.SS)
