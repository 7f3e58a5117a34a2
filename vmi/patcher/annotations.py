# SPDX-License-Identifier: GPL-2.0-only
"""Slots that the guest's own source made: the records of the annotation section, checked.

A record is a promise that may be wrong (an old object file, a hand-written macro), and a wrong one would
make activation overwrite code. So each is held against the bytes: NOPs, then exactly one sensitive
instruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from iced_x86 import Mnemonic

from vmi.errors import BadInput
from vmi.patcher import elf
from vmi.patcher.flow import Flow
from vmi.patcher.forms import Form, pair
from vmi.patcher.model import MIN_SLOT, Image

SECTION = ".vmi.annotations"
RECORD = 8
VERSION = 1
MAX_SLOT = 255


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated slot: [start, start+length)."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Annotated:
    """A checked record: the native instruction is entries [index, stop) and has ``form``."""

    record: Record
    form: Form
    index: int
    stop: int


def records(image: Image) -> tuple[Record, ...]:
    """The image's records in address order; raises BadInput when they contradict each other."""
    # The section isn't loaded, so it is in the file but in no segment.
    raw = elf.section_bytes(image.data, SECTION) if image.data else b""
    if len(raw) % RECORD:
        raise BadInput(f"{SECTION} must hold {RECORD}-byte records, but it has {len(raw)} bytes")
    found: set[Record] = set()
    for at in range(0, len(raw), RECORD):
        start = int.from_bytes(raw[at : at + 4], "little")
        length = int.from_bytes(raw[at + 4 : at + 6], "little")
        version = int.from_bytes(raw[at + 6 : at + 8], "little")
        if version != VERSION:
            raise BadInput(f"the annotation at {start:#x} has version {version}, expected {VERSION}")
        if not MIN_SLOT <= length <= MAX_SLOT:
            raise BadInput(
                f"the annotation at {start:#x} has {length} bytes, expected {MIN_SLOT} to {MAX_SLOT}"
            )
        found.add(Record(start, length))
    ordered = sorted(found, key=lambda r: (r.start, r.length))
    for first, second in pairwise(ordered):
        if second.start < first.end:
            raise BadInput(f"the annotations at {first.start:#x} and {second.start:#x} overlap")
    return tuple(ordered)


def anchors(image: Image) -> frozenset[int]:
    """Addresses where an instruction starts because a record says so."""
    return frozenset(address for record in records(image) for address in (record.start, record.end))


def check(flow: Flow, record: Record) -> Annotated:
    """Hold one record against the code; raises BadInput when it does not describe a slot."""
    code = flow.code_at(record.start)
    if code is None or record.end > code.listing.end:
        raise BadInput(f"the annotation at {record.start:#x} is outside the kernel's code")
    listing = code.listing
    index = listing.at(record.start)
    while index >= 0 and listing.joined(index) and listing.decoded(index).mnemonic == Mnemonic.NOP:
        index += 1
    form = listing.forms.get(listing.starts[index]) if index >= 0 else None
    stop = index + 1
    if form is not None and listing.stop(index) < record.end and listing.joined(index):
        both = pair(form, listing.forms.get(listing.starts[stop]))
        form, stop = both, stop + 1
    if form is None or listing.stop(stop - 1) != record.end:
        offset = record.start - listing.start
        raw = listing.data[offset : offset + record.length].hex()
        raise BadInput(
            f"the annotation at {record.start:#x} must hold NOPs and then one sensitive instruction,"
            f" but it holds {raw}"
        )
    return Annotated(record, form, index, stop)
