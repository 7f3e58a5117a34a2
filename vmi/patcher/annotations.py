# SPDX-License-Identifier: GPL-2.0-only
"""Slots that the guest's own source made: the records of the annotation section, held against the code.

A record is a promise that may be wrong (an old object file, a hand-written macro), and a wrong one would
make activation overwrite code. So each must be NOPs, then exactly one instruction of the kind it says.
"""

from __future__ import annotations

from dataclasses import dataclass

from iced_x86 import Mnemonic

from vmi.errors import BadInput
from vmi.patcher import marks, pagetables
from vmi.patcher.decode import Listing
from vmi.patcher.flow import Flow
from vmi.patcher.forms import Form, pair
from vmi.patcher.marks import Kind, Record
from vmi.patcher.model import Image


@dataclass(frozen=True, slots=True)
class Annotated:
    """A checked record: the native instruction is entries [index, stop) and has ``form``."""

    record: Record
    form: Form
    index: int
    stop: int


def records(image: Image) -> tuple[Record, ...]:
    """The image's slots in address order; raises BadInput when its records contradict each other."""
    return marks.slots(image)


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
    stop = index + 1
    form = None if index < 0 or listing.stop(index) > record.end else _form(listing, index, record)
    if form is not None and listing.stop(index) < record.end and listing.joined(index):
        form, stop = pair(form, listing.forms.get(listing.starts[stop])), stop + 1
    if form is None or listing.stop(stop - 1) != record.end:
        offset = record.start - listing.start
        raw = listing.data[offset : offset + record.length].hex()
        wanted = "sensitive instruction" if record.kind is Kind.SLOT else "store of a page-table entry"
        raise BadInput(
            f"the annotation at {record.start:#x} must hold NOPs and then one {wanted}, but it holds {raw}"
        )
    return Annotated(record, form, index, stop)


def _form(listing: Listing, index: int, record: Record) -> Form | None:
    if record.kind is Kind.SLOT:
        return listing.forms.get(listing.starts[index])
    return pagetables.store_form(listing.decoded(index), long=record.kind is Kind.LONG_ENTRY)[0]
