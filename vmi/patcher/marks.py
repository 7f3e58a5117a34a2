# SPDX-License-Identifier: GPL-2.0-only
"""The records that a guest's own source left in its file: what they say, before the code is looked at.

``vmi_guest.h`` describes a record for those who write one. Here they are read and held against each
other; whether they are true of the code is ``annotations``' matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from vmi.errors import BadInput
from vmi.patcher import elf
from vmi.patcher.model import MIN_SLOT, Image

SECTION = ".vmi.annotations"
RECORD = 8
VERSION = 1
MAX_SLOT = 255


class Kind(IntEnum):
    """What a record says of its bytes."""

    SLOT = 0
    """NOPs, then one sensitive instruction."""
    ENTRY = 1
    """NOPs, then one store of a page-table entry of 4 bytes."""
    LONG_ENTRY = 2
    """NOPs, then one store of a page-table entry of 8 bytes (PAE) or of half of it."""
    KEEP = 3
    """Bytes that must stay as they are."""


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """One record: the bytes [start, start+length)."""

    start: int
    length: int
    kind: Kind = Kind.SLOT

    @property
    def end(self) -> int:
        return self.start + self.length


def read(image: Image) -> tuple[Record, ...]:
    """The image's records in address order, each once; raises BadInput when they contradict each other."""
    # The section isn't loaded, so it is in the file but in no segment.
    raw = elf.section_bytes(image.data, SECTION) if image.data.startswith(elf.MAGIC) else b""
    if len(raw) % RECORD:
        raise BadInput(f"{SECTION} must hold {RECORD}-byte records, but it has {len(raw)} bytes")
    found = sorted({_record(raw[at : at + RECORD]) for at in range(0, len(raw), RECORD)})
    slots = [record for record in found if record.kind is not Kind.KEEP]
    for first, second in pairwise(slots):
        if second.start < first.end:
            raise BadInput(f"the annotations at {first.start:#x} and {second.start:#x} overlap")
    _check_kept([record for record in found if record.kind is Kind.KEEP], slots)
    return tuple(found)


def _record(raw: bytes) -> Record:
    start, length = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:6], "little")
    version, kind = raw[6], raw[7]
    if version != VERSION:
        raise BadInput(f"the annotation at {start:#x} has version {version}, expected {VERSION}")
    if kind > max(Kind):
        raise BadInput(f"the annotation at {start:#x} is of kind {kind}, expected 0 to {max(Kind)}")
    least, most = (1, 0xFFFF) if kind == Kind.KEEP else (MIN_SLOT, MAX_SLOT)
    if not least <= length <= most:
        raise BadInput(f"the annotation at {start:#x} has {length} bytes, expected {least} to {most}")
    return Record(start, length, Kind(kind))


def _check_kept(kept: list[Record], slots: list[Record]) -> None:
    """Both in address order; slots don't overlap."""
    at = 0
    for keep in kept:
        while at < len(slots) and slots[at].end <= keep.start:
            at += 1
        if at < len(slots) and slots[at].start < keep.end:
            raise BadInput(
                f"the annotation at {slots[at].start:#x} makes a slot of bytes that the one at "
                f"{keep.start:#x} wants left alone"
            )


def kept(image: Image) -> tuple[Record, ...]:
    """The records of bytes that must stay as they are."""
    return tuple(record for record in read(image) if record.kind is Kind.KEEP)


def slots(image: Image) -> tuple[Record, ...]:
    """The records of slots."""
    return tuple(record for record in read(image) if record.kind is not Kind.KEEP)
