# SPDX-License-Identifier: GPL-2.0-only
"""Damaged kernels, as many as one wants, each made from its number alone.

A mutant starts from a sample kernel or from a small one that has every table the patcher reads, and goes
through one to four changes: header fields, table entries, ends cut off, bytes turned. The numbers that go
into fields are those at which programs fail: ends of ranges, signs, sizes just too large.
"""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable
from functools import cache

from tests.patcher import bzimages
from tests.patcher.elfs import VADDR, Piece, Plan, kernel_code, make, small_kernel
from vmi import samples
from vmi.patcher import elf, patch
from vmi.rom.assemble import assemble

EDGES = (
    0, 1, 2, 4, 7, 8, 31, 0x34, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0xFFFF,
    0x10000, 0x100000, 0x7FFFFFFF, 0x80000000, 0xC0000000, 0xC0100000, 0xFFFFF000, 0xFFFFFFFE, 0xFFFFFFFF,
)  # fmt: skip

_FORMS = (
    "fa",
    "fb",
    "f4",
    "0f20d8",
    "0f22d8",
    "9c",
    "9d",
    "cf",
    "0f0130",
    "16",
    "8cd0",
    "e6",
    "67",
    "66ea",
    "eb",
)


@cache
def _tables() -> bytes:
    """A kernel with a fault table, lists of code that patches itself, unwind entries, annotations."""
    marked = assemble("nop\nnop\nnop\nnop\ncli\nret\n.align 16").code
    text = kernel_code() + marked
    slot = VADDR + len(kernel_code())
    at = VADDR + 0x1000
    faults = b"".join(struct.pack("<II", VADDR + off, VADDR + 0x10) for off in (0x10, 0x40, 0x41))
    locks = struct.pack("<i", VADDR + 0x45 - (at + 0x1000))
    alternatives = struct.pack("<IIHBB", VADDR + 0x46, VADDR + 0x40, 1, 2, 2)
    frames = struct.pack("<IIB3sBBBBBxxx", 16, 0, 1, b"zR\0", 1, 0x7C, 8, 1, 0x1B)
    frames += struct.pack("<IIiI4x", 16, len(frames) + 4, VADDR - (at + 0x3000 + len(frames) + 8), 0x20)
    pieces = [
        Piece(VADDR, text, section=".text"),
        Piece(at, faults, flags=4, section="__ex_table"),
        Piece(at + 0x1000, locks, flags=4, section=".smp_locks"),
        Piece(at + 0x2000, alternatives, flags=4, section=".altinstructions"),
        Piece(at + 0x3000, frames, flags=4, section=".eh_frame"),
        Piece(at + 0x4000, struct.pack("<8I", *range(VADDR, VADDR + 32, 4)), 0x800, 6, section=".data"),
    ]
    records = struct.pack("<IHH", slot, 5, 1)
    return make(
        Plan(
            pieces,
            symbols=[("start", VADDR + 0x10, 2), ("end", VADDR + 0x5800, 0)],
            extra={".vmi.annotations": records},
        )
    )


@cache
def _linux_kernel() -> bytes:
    """A kernel that a bzImage can hold: it starts with an instruction that may move, as Linux does."""
    start = assemble("test byte ptr [esi+0x211], 0x40\nnop").code
    data = struct.pack("<9000I", *(VADDR + n % 64 for n in range(9000)))
    return make(
        Plan(
            [
                Piece(VADDR, start + kernel_code(VADDR + len(start)), section=".text"),
                Piece(VADDR + 0x1000, data, 0x9000, 6, section=".data"),
            ]
        )
    )


@cache
def parents() -> tuple[tuple[str, bytes], ...]:
    """Name and bytes of each file that mutants are made from."""
    found = [(sample.name, sample.path.read_bytes()) for sample in samples.load_all()]
    hello = found[0][1]
    found += [
        ("small", small_kernel()),
        ("bare", small_kernel(sections=False, stack_header=False)),
        ("tables", _tables()),
        ("gzip", gzip.compress(hello, mtime=0)),
        ("patched", patch(small_kernel()).data),
        ("bzimage", bzimages.Image(_linux_kernel(), bzimages.words(3000)).make()),
        ("signed", bzimages.Image(_linux_kernel(), compression="gzip", pe="fixed", signature=b"s").make()),
    ]
    return tuple(found)


Change = Callable[[random.Random, bytearray], None]


def _number(rng: random.Random, old: int, size: int) -> int:
    """Something to put in a field of ``size`` bytes."""
    value = rng.choice(
        (
            rng.choice(EDGES),
            old + rng.choice((-0x1000, -8, -4, -1, 1, 4, 8, 0x1000)),
            old ^ (1 << rng.randrange(8 * size)),
            rng.randrange(1 << (8 * size)),
            -old,
        )
    )
    return value & ((1 << (8 * size)) - 1)


def _put(rng: random.Random, data: bytearray, at: int, size: int) -> None:
    if at + size <= len(data):
        old = int.from_bytes(data[at : at + size], "little")
        data[at : at + size] = _number(rng, old, size).to_bytes(size, "little")


def _elf_header(rng: random.Random, data: bytearray) -> None:
    at, size = rng.choice(
        [
            (4, 1),
            (5, 1),
            (16, 2),
            (18, 2),
            *((n, 4) for n in range(20, 40, 4)),
            *((n, 2) for n in range(40, 52, 2)),
        ]
    )
    _put(rng, data, at, size)


def _table(data: bytes, where: int, count: int) -> tuple[int, int]:
    """Offset and number of entries of a header table, as far as they can be believed."""
    if len(data) < 52:
        return 0, 0
    return struct.unpack_from("<I", data, where)[0], min(64, struct.unpack_from("<H", data, count)[0])


def _program_header(rng: random.Random, data: bytearray) -> None:
    offset, count = _table(data, 28, 44)
    if count:
        _put(rng, data, offset + 32 * rng.randrange(count) + 4 * rng.randrange(8), 4)


def _section_header(rng: random.Random, data: bytearray) -> None:
    offset, count = _table(data, 32, 48)
    if count:
        _put(rng, data, offset + 40 * rng.randrange(count) + 4 * rng.randrange(10), 4)


def _copied_header(rng: random.Random, data: bytearray) -> None:
    """One table entry over another: two segments or sections claim the same."""
    where, count_at, size = rng.choice(((28, 44, 32), (32, 48, 40)))
    offset, count = _table(data, where, count_at)
    if count and offset + count * size <= len(data):
        source, target = (offset + size * rng.randrange(count) for _ in range(2))
        data[target : target + size] = data[source : source + size]


def _section_content(rng: random.Random, data: bytearray) -> None:
    """A word of a section: of a symbol, a fault table, an unwind entry, an annotation, an instruction."""
    offset, count = _table(data, 32, 48)
    for _ in range(8):
        at = offset + 40 * rng.randrange(count) if count else len(data)
        if at + 40 > len(data):
            return
        start, size = struct.unpack_from("<II", data, at + 16)
        if 0 < size <= len(data) - start:
            for _ in range(rng.randrange(1, 5)):
                _put(rng, data, start + rng.randrange(size), rng.choice((1, 2, 4)))
            return


def _renamed_section(rng: random.Random, data: bytearray) -> None:
    """A section becomes what another one is called: tables where code was, code where tables were."""
    offset, count = _table(data, 32, 48)
    if count and offset + 40 * count <= len(data):
        one, other = (offset + 40 * rng.randrange(count) for _ in range(2))
        data[one : one + 4] = data[other : other + 4]


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _grown(rng: random.Random, data: bytearray) -> None:
    data += rng.randbytes(rng.randrange(1, 5000))


def _removed(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.randrange(1, 600)]


def _flipped(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.randrange(1, 20)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _filled(rng: random.Random, data: bytearray) -> None:
    """A stretch of one instruction, of zeros, of anything."""
    start = rng.randrange(len(data) + 1)
    size = min(rng.choice((4, 40, 400, 4000)), len(data) - start)
    unit = bytes.fromhex(rng.choice(_FORMS))
    kinds = (bytes(size), b"\xff" * size, rng.randbytes(size), (unit * size)[:size])
    data[start : start + size] = rng.choice(kinds)


def _repeated(rng: random.Random, data: bytearray) -> None:
    size = rng.randrange(1, 300)
    source, target = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    piece = data[source : source + size]
    data[target : target + len(piece)] = piece


def _magic(rng: random.Random, data: bytearray) -> None:
    """What readers look for, where it does not belong."""
    at = rng.choice((rng.randrange(len(data) + 1), 0x1000 * rng.randrange(1, 6)))
    multiboot = [0x1BADB002, flags := rng.choice((0, 3, 0x10003, 0xFFFF)), -(0x1BADB002 + flags) & 0xFFFFFFFF]
    second = [0xE85250D6, 0, size := rng.choice((16, 0, 0xFFFFFFFF)), -(0xE85250D6 + size) & 0xFFFFFFFF]
    words = rng.choice((multiboot, second))
    piece = rng.choice(
        (b"VMIS\1\0\x44\0", b"\x7fELF", b"\x1f\x8b\x08", struct.pack(f"<{len(words)}I", *words))
    )
    data[at : at + len(piece)] = piece


def _setup_header(rng: random.Random, data: bytearray) -> None:
    """A field of a bzImage's setup header, or of the PE header before it."""
    at, size = rng.choice(
        [
            (0x1F1, 1), (0x1F4, 4), (0x1FE, 2), (0x202, 4), (0x206, 2), (0x211, 1), (0x214, 4), (0x236, 2),
            (0x248, 4), (0x24C, 4), (0x250, 4), (0x258, 8), (0x260, 4), (0x3C, 4),
            (rng.randrange(0x40, 0x1F0), 4),
        ]
    )  # fmt: skip
    _put(rng, data, at, size)


def _boot_code(rng: random.Random, data: bytearray) -> None:
    """What is before and behind the payload: the words with its size, the checksum."""
    near = rng.choice((bzimages.CODE_AT, max(0, len(data) - 80)))
    _put(rng, data, near + rng.randrange(80), rng.choice((1, 4)))


CHANGES: tuple[tuple[Change, int], ...] = (
    (_elf_header, 3), (_program_header, 6), (_section_header, 6), (_copied_header, 2), (_section_content, 8),
    (_renamed_section, 2), (_cut, 2), (_grown, 1), (_removed, 2), (_flipped, 4), (_filled, 4), (_repeated, 3),
    (_magic, 2),
)  # fmt: skip


LINUX: tuple[tuple[Change, int], ...] = (
    (_setup_header, 10), (_boot_code, 4), (_cut, 2), (_grown, 1), (_removed, 2), (_flipped, 4),
    (_repeated, 2), (_magic, 1),
)  # fmt: skip


def _changed(rng: random.Random, data: bytearray, kinds: tuple[tuple[Change, int], ...]) -> list[str]:
    """Change ``data`` once to four times; the names of what was done."""
    count = rng.choice((1, 1, 1, 2, 3, 4))
    changes = rng.choices([change for change, _ in kinds], [weight for _, weight in kinds], k=count)
    for change in changes:
        change(rng, data)
    return [change.__name__.strip("_") for change in changes]


def mutant(number: int) -> tuple[str, bytes]:
    """The damaged kernel with this number, and what it was made from how, in a few words."""
    rng = random.Random(number)
    name, parent = rng.choice(parents())
    if name in ("bzimage", "signed") and rng.random() < 0.6:
        data = bytearray(parent)
        return f"{number}: {name}, {', '.join(_changed(rng, data, LINUX))}", bytes(data)
    if name in ("bzimage", "signed"):  # a good file around a damaged kernel
        data = bytearray(_linux_kernel())
        names = _changed(rng, data, CHANGES)
        words = bzimages.words(rng.choice((0, 3, 3000)))
        return f"{number}: {name}, {', '.join(names)}", bzimages.Image(bytes(data), words=words).make()
    data = bytearray(gzip.decompress(parent) if name == "gzip" and rng.random() < 0.5 else parent)
    names = _changed(rng, data, CHANGES)
    damaged = bytes(data)
    if name == "gzip" and damaged[:2] != elf.GZIP_MAGIC:
        damaged = gzip.compress(damaged, 1, mtime=0)
    return f"{number}: {name}, {', '.join(names)}", damaged
