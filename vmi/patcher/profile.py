# SPDX-License-Identifier: GPL-2.0-only
"""Profiles: which instructions of a kernel wrote live page tables in a run of it, as a file.

A run shows what no table of a stripped kernel tells. What it saw is put in the kernel's own terms (linked
virtual addresses, bytes as in the file) when the profile is made, so that a reader needs no knowledge of the
run. ``docs/profile.md`` describes the file.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from iced_x86 import Decoder

from vmi.errors import BadInput
from vmi.patcher import elf
from vmi.patcher.container import open_container
from vmi.patcher.decode import BITS
from vmi.patcher.model import Image, Segment
from vmi.patcher.pagetables import Candidate, Source, is_code

FORMAT = "vmi page-table profile"
VERSION = 1
LEVELS = ("table", "directory", "pointers")
MAX_WRITERS = 100_000
LONGEST_CODE = 15  # bytes

_U32 = 0xFFFFFFFF
_PAGE = 4096
_PIECE, _PIECES = 32, 16  # bytes and number of the pieces of text that are looked for in memory
_TRIED = 8  # displacements


@dataclass(frozen=True, slots=True, order=True)
class Writer:
    """The instruction at ``address`` wrote ``size`` bytes in a table of ``level``, ``count`` times.

    ``entry``: bytes of an entry, 4 or 8 (PAE). ``code``: the instruction's bytes as in the file.
    """

    address: int
    level: str
    entry: int
    size: int
    count: int
    code: bytes


@dataclass(frozen=True)
class Profile:
    """What a run of one kernel showed.

    ``kernel``: sha256 of its ELF file, unpacked. ``displacement``: how far from its linked address it ran.
    ``outside``: number of writes by instructions that aren't the kernel's (modules, firmware, programs).
    ``instructions``: how long the run was.
    """

    kernel: str
    writers: tuple[Writer, ...]
    displacement: int = 0
    outside: int = 0
    instructions: int = 0

    def __repr__(self) -> str:
        return f"Profile({len({w.address for w in self.writers})} instructions, {self.total} writes)"

    @property
    def total(self) -> int:
        """Number of writes by the kernel's own instructions."""
        return sum(writer.count for writer in self.writers)

    def to_json(self) -> str:
        """The file's text: keys in a fixed order, writers in address order."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "kernel": self.kernel,
            "displacement": self.displacement,
            "instructions": self.instructions,
            "outside": self.outside,
            "writers": [asdict(writer) | {"code": writer.code.hex()} for writer in self.writers],
        }
        return json.dumps(content, indent=1) + "\n"


def image_of(file: bytes) -> Image:
    """The kernel in a file, as a profile sees it; raises BadInput for what couldn't be patched either."""
    container = open_container(file)
    return replace(elf.load(container.kernel), displaced=container.displaced)


def identity(image: Image) -> str:
    """What a profile knows a kernel by: the sha256 of its ELF file, however that is packed."""
    return hashlib.sha256(image.data).hexdigest()


# ---------------------------------------------------------------- making one


def make(image: Image, seen: Iterable[Writer], ram: memoryview, instructions: int) -> Profile:
    """A profile from what a machine saw: ``seen`` has addresses and bytes as they were there.

    ``ram`` is the guest's memory from physical address 0, at the end of the run.
    """
    seen = list(seen)
    best: Profile | None = None
    for moved in displacements(image, ram):
        found = _made(image, seen, moved, instructions)
        if best is None or found.outside < best.outside:
            best = found
    assert best is not None
    return best


def _made(image: Image, seen: list[Writer], moved: int, instructions: int) -> Profile:
    counts: Counter[tuple[int, str, int, int, bytes]] = Counter()
    outside = 0
    for writer in seen:
        address = _linked(image, (writer.address - moved) & _U32, writer.code, moved)
        if address is None:
            outside += writer.count
            continue
        code = _instruction(image, address)
        counts[address, writer.level, writer.entry, writer.size, code] += writer.count
    writers = sorted(
        Writer(address, level, entry, size, count, code)
        for (address, level, entry, size, code), count in counts.items()
    )
    return Profile(identity(image), tuple(writers), moved, outside, instructions)


def displacements(image: Image, ram: memoryview) -> list[int]:
    """How far from its linked place a kernel that can run elsewhere may run, the likeliest first.

    Found by pieces of its text that no displacement changes: memory may hold other copies of some. Only 0
    when they are nowhere, and for a kernel that always runs where it is linked.
    """
    text = image.text
    if not image.displaced or text is None:
        return [0]
    votes: Counter[int] = Counter()
    for at in _pieces(image, text):
        piece, home = text.data[at : at + _PIECE], text.paddr + at
        for place in range(home % _PAGE, len(ram) - _PIECE, _PAGE):
            if ram[place : place + _PIECE] == piece:
                votes[place - home] += 1
    return sorted(votes, key=lambda moved: (-votes[moved], abs(moved), moved))[:_TRIED] or [0]


def _pieces(image: Image, text: Segment) -> Iterator[int]:
    """Offsets in ``text`` of pieces that hold no displaced word and aren't padding, well spread."""
    section = image.section(".text")
    # what is only used to start up is overwritten later; it comes last
    size = section.size if section is not None and section.vaddr == text.vaddr else text.filesz // 2
    step = max(_PIECE, size // _PIECES)
    for part in range(0, size - _PIECE, step):
        for at in range(part, min(part + step, size) - _PIECE, _PIECE):
            address = text.vaddr + at
            following = bisect_left(image.displaced, address - 3)
            free = following == len(image.displaced) or image.displaced[following] >= address + _PIECE
            if free and len(set(text.data[at : at + _PIECE])) > _PIECE // 2:
                yield at
                break


def _linked(image: Image, address: int, code: bytes, moved: int) -> int | None:
    """The linked virtual address of an instruction seen at ``address``, None if it is not the kernel's."""
    for place in (address, image.virtual(address)):
        if place is None or not is_code(image, place):
            continue
        wanted = _instruction(image, place)
        if wanted and _undisplaced(image, place, code[: len(wanted)], moved) == wanted:
            return place
    return None


def _instruction(image: Image, address: int) -> bytes:
    code = image.read(address, LONGEST_CODE)
    return code[: Decoder(BITS, code, ip=address).decode().len]


def _undisplaced(image: Image, address: int, code: bytes, moved: int) -> bytes:
    """Bytes seen at a place with the displacement taken off the words that have it."""
    result = bytearray(code)
    if moved:
        at = bisect_left(image.displaced, address)
        while at < len(image.displaced) and image.displaced[at] + 4 <= address + len(code):
            start = image.displaced[at] - address
            word = int.from_bytes(result[start : start + 4], "little") - moved
            result[start : start + 4] = (word & _U32).to_bytes(4, "little")
            at += 1
    return bytes(result)


# ---------------------------------------------------------------- reading one


def load(data: bytes) -> Profile:
    """Read a profile file; raises BadInput, one sentence, for what is none or contradicts itself."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise BadInput("the profile is not JSON text") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInput(f"the profile must be a JSON object with the format {FORMAT!r}")
    if content.get("version") != VERSION:
        raise BadInput(f"the profile has version {_shown(content.get('version'))}, expected {VERSION}")
    content = {key: value for key, value in content.items() if key not in ("format", "version")}
    _check_keys("the profile", content, {field.name for field in fields(Profile)})
    kernel, rows = content["kernel"], content["writers"]
    if not isinstance(kernel, str) or len(kernel) != 64 or set(kernel) - set("0123456789abcdef"):
        raise BadInput(f"the profile's kernel must be a sha256 in hexadecimal, got {_shown(kernel)}")
    if not isinstance(rows, list) or len(rows) > MAX_WRITERS:
        raise BadInput(f"the profile's writers must be a list of at most {MAX_WRITERS}")
    numbers = {name: _number("the profile's", content, name) for name in ("outside", "instructions")}
    moved = content["displacement"]
    if not isinstance(moved, int) or isinstance(moved, bool) or abs(moved) > _U32:
        raise BadInput(f"the profile's displacement must be a number of 32 bits, got {_shown(moved)}")
    writers = tuple(_writer(number, row) for number, row in enumerate(rows, start=1))
    _check_agreement(writers)
    return Profile(kernel, tuple(sorted(writers)), moved, **numbers)


def check_kernel(profile: Profile, image: Image) -> None:
    """Raise BadInput when a profile is of another kernel, or of another build of this one."""
    ours = identity(image)
    if profile.kernel != ours:
        raise BadInput(
            f"the profile is of another kernel: one whose sha256 begins with {profile.kernel[:12]}, "
            f"and this one's begins with {ours[:12]}"
        )


def candidates(profile: Profile) -> tuple[Candidate, ...]:
    """The profile's instructions as candidates for page-table sites, in address order, each once."""
    found = {
        writer.address: Candidate(writer.address, Source.PROFILE, writer.entry == 8, writer.code)
        for writer in profile.writers
    }
    return tuple(found.values())


def _writer(number: int, row: object) -> Writer:
    where = f"writer {number} of the profile"
    if not isinstance(row, dict):
        raise BadInput(f"{where} must be a JSON object, got {_shown(row)}")
    _check_keys(where, row, {field.name for field in fields(Writer)})
    level, code = row["level"], row["code"]
    if level not in LEVELS:
        raise BadInput(f"{where} has level {_shown(level)}, expected one of {', '.join(LEVELS)}")
    address, entry, size, count = (
        _number(f"{where}: its", row, name) for name in ("address", "entry", "size", "count")
    )
    if entry not in (4, 8):
        raise BadInput(f"{where} has entries of {entry} bytes, expected 4 or 8")
    if not 1 <= size <= 64 or not count or address > _U32:
        raise BadInput(f"{where} must have a 32-bit address, a size of 1 to 64 and a count above 0")
    try:
        raw = bytes.fromhex(code)
    except (TypeError, ValueError):
        raw = b""
    if not 1 <= len(raw) <= LONGEST_CODE:
        raise BadInput(f"{where} must have 1 to {LONGEST_CODE} bytes of code in hexadecimal")
    return Writer(address, level, entry, size, count, raw)


def _check_agreement(writers: tuple[Writer, ...]) -> None:
    known: dict[int, Writer] = {}
    keys: set[tuple[int, str, int, int]] = set()
    for writer in writers:
        first = known.setdefault(writer.address, writer)
        if first.code != writer.code or first.entry != writer.entry:
            raise BadInput(f"the profile contradicts itself about the instruction at {writer.address:#x}")
        key = (writer.address, writer.level, writer.entry, writer.size)
        if key in keys:
            raise BadInput(f"the profile counts the same writes at {writer.address:#x} twice")
        keys.add(key)


def _check_keys(where: str, content: dict[str, Any], wanted: set[str]) -> None:
    wrong = sorted(wanted ^ set(content))
    if wrong:
        raise BadInput(f"{where} has missing or unknown keys: {', '.join(wrong)[:200]}")


def _number(where: str, content: dict[str, Any], name: str) -> int:
    value = content[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise BadInput(f"{where} {name} must be a number from 0, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    return repr(value)[:60]
