# SPDX-License-Identifier: GPL-2.0-only
"""Calls that a kernel must not replace by instructions: their lengths become 0 if there is a ROM.

The activation code runs on a processor, in a kernel that stays where it is linked and in one that moves.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cache
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import UC_ARCH_X86, UC_MODE_32, Uc
from unicorn.x86_const import UC_X86_REG_EIP, UC_X86_REG_ESI

from tests.patcher.elfs import PADDR, VADDR, Piece, Plan, make
from tests.patcher.test_activation import fake_rom
from vmi import sitetable
from vmi.abi import Reloc
from vmi.errors import BadInput, VerifyError
from vmi.patcher import adaptors, displaced, elf, paravirt
from vmi.patcher.emit import Emission, emit
from vmi.patcher.model import Image
from vmi.patcher.place import Choice, place
from vmi.patcher.plan import make_plan
from vmi.patcher.rewrite import write
from vmi.patcher.verify import verify
from vmi.rom.assemble import assemble
from vmi.sitetable import Header, Status

RAM = 0x800000
BIAS = VADDR - PADDR
DATA, TABLE = VADDR + 0x1000, VADDR + 0x2000
SOURCE = f"""
    mov ecx, dword ptr [{DATA + 8 - BIAS}]
    mov edx, 0x3f8
    out dx, al
    mov eax, ecx
    jmp main
disable:
    cli
    nop
    ret
main:
    call dword ptr [{DATA}]
    call dword ptr [{DATA + 4}]
    ret
"""
CODE = assemble(SOURCE, VADDR)
LENGTHS = (6, 6, 0, 5)
WORDS = (VADDR + 2, DATA, DATA + 4, *(TABLE + 8 * n for n in range(len(LENGTHS))))
ROM = fake_rom({"OUT": (Reloc.CALL_REL, 0x200), "OUTB": (Reloc.CALL_REL, 0x200)})


def kernel(*, sensitive: bool = True, linux: bool = False, paddr: int | None = None) -> Image:
    """``sensitive``: the operations that the records' calls reach disable interrupts, as on hardware."""
    function = CODE.labels["disable"] + (not sensitive)
    data = struct.pack("<III", function, function, 0x11223344).ljust(0x800, b"\x55")
    at = (CODE.labels["main"], CODE.labels["main"] + 6, VADDR, VADDR + 6)
    rows = zip(at, LENGTHS, strict=True)
    records = [struct.pack("<IBBH", address, 1, length, 0xFFFF) for address, length in rows]
    pieces = [
        Piece(VADDR, CODE.code.ljust(0x100, b"\x90"), 0, 5, section=".text"),
        Piece(DATA, data, 0x1000, 6, section=".data"),
        Piece(TABLE, b"".join(records), 0x1000, 6, paddr, paravirt.SECTION),
    ]
    image = elf.load(make(Plan(pieces, PADDR if linux else VADDR, stack_header=False)))
    return replace(image, displaced=WORDS if linux else ())


@cache
def patched(linux: bool, sensitive: bool = True) -> tuple[Emission, bytes]:
    image = kernel(sensitive=sensitive, linux=linux)
    emission = emit(make_plan(image, adaptors.refusal), place(image, Choice(protocol=0x20F * linux)))
    output = write(emission)
    verify(emission, output)
    return emission, output


@dataclass(frozen=True)
class Outcome:
    """Memory when the kernel's own code runs, ``displacement`` above where it is linked."""

    cpu: Uc
    emission: Emission
    displacement: int

    def read(self, vaddr: int, size: int) -> bytes:
        return bytes(self.cpu.mem_read(vaddr - BIAS + self.displacement, size))

    @property
    def header(self) -> Header:
        return sitetable.parse_header(self.read(self.emission.base, sitetable.HEADER_SIZE))

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.read(TABLE + 8 * n + 5, 1)[0] for n in range(len(LENGTHS)))


def start(emission: Emission, output: bytes, rom: bytes | None, displacement: int = 0) -> Outcome:
    cpu = Uc(UC_ARCH_X86, UC_MODE_32)
    cpu.mem_map(0, RAM)
    image = elf.load(output, patched=True)
    for segment in image.segments:
        cpu.mem_write(segment.paddr + displacement, segment.data)
    if rom is not None:
        cpu.mem_write(0xC8000, rom)
    cpu.reg_write(UC_X86_REG_ESI, 0x9000)
    first = emission.first
    entry = (PADDR if first else image.entry - BIAS) + displacement
    leave = (first.start if first else VADDR) - BIAS + displacement
    cpu.emu_start(entry, leave, count=2_000_000)
    assert cpu.reg_read(UC_X86_REG_EIP) == leave
    return Outcome(cpu, emission, displacement)


CASES = [(False, 0), (True, 0), (True, 0x123000), (True, -0x10000)]


@pytest.mark.parametrize(("linux", "displacement"), CASES)
def test_lengths_become_0_when_there_is_a_rom(linux: bool, displacement: int) -> None:
    emission, output = patched(linux)
    outcome = start(emission, output, ROM, displacement)
    assert outcome.header.status == Status.ACTIVE
    assert outcome.lengths == (0, 0, 0, 0)
    assert outcome.header.cleared == emission.header.cleared + displacement
    where = int.from_bytes(outcome.read(emission.header.cleared, 4), "little")
    assert where == TABLE + 5 - 4 + displacement
    before, after = elf.load(output, patched=True), bytearray(outcome.read(TABLE, 8 * len(LENGTHS)))
    for n, length in enumerate(LENGTHS):  # nothing else of the records changed, but for moving along
        after[8 * n + 5] = length
        moved = struct.unpack_from("<I", after, 8 * n)[0] - displacement
        struct.pack_into("<I", after, 8 * n, moved)
    assert bytes(after) == before.read(TABLE, len(after))


REFUSES = fake_rom({}, init="mov eax, 1")
TOO_LARGE = fake_rom({}, size=0x4800)


@pytest.mark.parametrize(("linux", "displacement"), CASES)
@pytest.mark.parametrize(
    ("rom", "status"), [(None, Status.NATIVE), (REFUSES, Status.REFUSED), (TOO_LARGE, Status.TOO_LARGE)]
)
def test_lengths_stay_in_a_kernel_that_runs_natively(
    linux: bool, displacement: int, rom: bytes | None, status: Status
) -> None:
    outcome = start(*patched(linux), rom, displacement)
    assert (outcome.header.status, outcome.lengths) == (status, LENGTHS)


@pytest.mark.parametrize("linux", [False, True])
def test_a_kernel_without_sensitive_operations_has_no_list(linux: bool) -> None:
    emission, output = patched(linux, False)
    assert (emission.header.cleared, emission.header.cleared_size) == (0, 0)
    outcome = start(emission, output, ROM, 0x5000 if linux else 0)
    assert outcome.header.status == Status.ACTIVE
    assert (outcome.header.cleared, outcome.lengths) == (0, LENGTHS)


@settings(max_examples=25, deadline=None)
@given(st.booleans(), st.sets(st.integers(DATA + 16, DATA + 0x7FF), min_size=1, max_size=30))
def test_any_list_of_bytes_is_cleared(linux: bool, addresses: set[int]) -> None:
    """Any distances, which a table of records doesn't have."""
    image = kernel(linux=linux)
    with patch.object(paravirt, "lengths", lambda _image: tuple(sorted(addresses))):
        emission = emit(make_plan(image, adaptors.refusal), place(image, Choice(protocol=0x20F * linux)))
    outcome = start(emission, write(emission), ROM, 0x7000 if linux else 0)
    found = outcome.read(DATA + 16, 0x7F0)
    assert {DATA + 16 + at for at, byte in enumerate(found) if byte != 0x55} == addresses
    assert set(found) == {0, 0x55}


# --- what is refused ----------------------------------------------------------------------------


def test_records_must_lie_where_the_text_does() -> None:
    image = kernel(paddr=PADDR + 0x3000)
    with pytest.raises(BadInput) as error:
        emit(make_plan(image, adaptors.refusal), place(image))
    assert str(error.value) == (
        f"the byte at {TABLE + 5:#x}, which must be cleared when there is a ROM, is not at the same distance "
        "from its physical address as the text"
    )


@pytest.mark.parametrize("linux", [False, True])
def test_another_list_is_caught(linux: bool) -> None:
    emission, _ = patched(linux)
    header = emission.header
    wrong = displaced.pack([TABLE + 8 * n + (5 if n else 4) for n in range(len(LENGTHS))])
    at = header.cleared - emission.base
    segment = emission.segment[:at] + wrong + emission.segment[at + len(wrong) :]
    assert len(wrong) == header.cleared_size
    damaged = replace(emission, segment=segment)
    sentence = f"the list of bytes to be cleared isn't that of the records at {TABLE:#x}"
    with pytest.raises(VerifyError) as error:
        verify(damaged, write(damaged))
    assert str(error.value) == f"the output doesn't match the plan: {sentence}"


def test_a_missing_list_is_caught() -> None:
    emission, _ = patched(False)
    header = replace(emission.header, cleared=0, cleared_size=0)
    segment = header.pack() + emission.segment[len(header.pack()) :]
    damaged = replace(emission, header=header, segment=segment)
    with pytest.raises(VerifyError) as error:
        verify(damaged, write(damaged))
    assert str(error.value) == (
        "the output doesn't match the plan: there is no list of bytes to be cleared where one is needed, or "
        "the other way round"
    )
