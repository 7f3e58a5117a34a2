# SPDX-License-Identifier: GPL-2.0-only
"""A Linux kernel's own calls through tables of operations, which it replaces by instructions when it starts.

With CONFIG_PARAVIRT a kernel doesn't contain, say, CLI in its functions, but a call through a pointer in a
table, and a record in `.parainstructions` that says where. On bare hardware it writes the native instruction
over the call when it starts. That makes sensitive instructions where the patcher saw none, after activation.

The calls work as they are: so does a kernel that is started with `noreplace-paravirt`. What they reach is an
ordinary function with an ordinary sensitive instruction, which has its slot. So all that is needed where
a ROM is active is that the kernel doesn't replace them. It copies as many bytes as a record says; a record
whose length byte is 0 changes nothing. Natively the records stay, and so does what the kernel does.

Two things follow for the patcher. The length bytes are what activation must clear (`lengths`). And the native
instructions that the kernel copies lie in its text as bare pieces, which must not be changed (`templates`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from vmi.patcher import forms
from vmi.patcher.decode import FALLS_THROUGH, Kind, Listing, Reference, Role, decode
from vmi.patcher.decode import Bounds as _Bounds
from vmi.patcher.model import Image

SECTION = ".parainstructions"
RECORD = struct.Struct("<IBBH")  # address, operation, length, registers that may be lost
LENGTH_AT = 5
REASON = "The kernel copies these instructions over calls (.parainstructions)."

_CALL, _JUMP = b"\xff\x15", b"\xff\x25"  # through a pointer at an absolute address
_LONGEST_FUNCTION = 32  # bytes of one that is no more than an instruction and its frame
_LONGEST_TEMPLATE = 16
_SYMBOLS = (("start_pv_", "end_pv_"), ("start_", "end_"))


@dataclass(frozen=True, slots=True)
class Call:
    """One record: ``length`` bytes at ``address`` call the operation whose pointer is at ``slot``.

    ``function`` is what the pointer holds in the file; ``native`` the forms of the sensitive instructions in
    it, if it is so short that the kernel may put them in place of the call. Both are empty (None) when the
    bytes are no such call.
    """

    address: int
    length: int
    slot: int | None = None
    function: int | None = None
    native: tuple[str, ...] = ()


def calls(image: Image) -> tuple[Call, ...]:
    """The records in the file's order; none for a kernel without the table or with one of another layout."""
    section = image.section(SECTION)
    if section is None or section.size % RECORD.size:
        return ()
    data = image.read(section.vaddr, section.size)
    found = []
    for address, _operation, length, _lost in RECORD.iter_unpack(data[: len(data) - len(data) % RECORD.size]):
        if image.segment_at(address) is None:
            return ()
        found.append(_call(image, address, length))
    return tuple(found)


def lengths(image: Image) -> tuple[int, ...]:
    """Addresses of the bytes that must be 0 before the kernel starts, when a ROM is active.

    None for a kernel whose operations are not sensitive: it may replace its calls as it likes.
    """
    if not any(call.native for call in calls(image)):
        return ()
    section = image.section(SECTION)
    assert section is not None
    return tuple(range(section.vaddr + LENGTH_AT, section.end, RECORD.size))


def _call(image: Image, address: int, length: int) -> Call:
    code = image.read(address, length)
    at = max(code.find(_CALL), code.find(_JUMP))
    if at < 0 or at + 6 > len(code):
        return Call(address, length)
    slot = int.from_bytes(code[at + 2 : at + 6], "little")
    function = image.u32(slot)
    if function is None or image.segment_at(function) is None:
        return Call(address, length, slot)
    return Call(address, length, slot, function, _native(image, function))


def _native(image: Image, function: int) -> tuple[str, ...]:
    """Forms of the sensitive instructions of a very short function, none if it is longer."""
    code = decode(image.read(function, _LONGEST_FUNCTION), function, _Bounds(0, 0, 0))
    names: list[str] = []
    for index, kind in enumerate(code.kinds):
        form = code.forms.get(code.starts[index])
        if form is not None and form.effect is not forms.Effect.HARMLESS:
            names.append(form.name)
        if kind in (Kind.RET, Kind.END):
            return tuple(names)
        if kind != Kind.PLAIN:
            return ()
    return ()


def templates(
    image: Image, listing: Listing, references: Iterable[Reference], branches: Callable[[], set[int]]
) -> Iterator[tuple[int, int]]:
    """The pieces [start, end) that the kernel copies, in address order.

    Symbols name them. Without, they are told by their look: short, with sensitive instructions in them, and
    control could run out of their end, where another number stands for code that no branch goes to (which
    ``branches`` gives). Every function ends otherwise.
    """
    if not lengths(image):
        return
    numbers = {r.value for r in references if r.role is Role.IMMEDIATE}
    named = {symbol.address: symbol.name for symbol in image.symbols if listing.start <= symbol.address}
    ends = {symbol.name: symbol.address for symbol in image.symbols}
    for start, name in sorted(named.items()):
        end = next((ends.get(e + name[len(s) :]) for s, e in _SYMBOLS if name.startswith(s)), None)
        if end is not None and start < end <= min(start + _LONGEST_TEMPLATE, listing.end):
            yield start, end
    loose = sorted(n for n in numbers - branches() if listing.start <= n <= listing.end)
    for start, end in pairwise(loose):
        if end - start <= _LONGEST_TEMPLATE and _runs_out(listing, start, end):
            yield start, end


def _runs_out(listing: Listing, start: int, end: int) -> bool:
    index = listing.at(start)
    sensitive = False
    while index >= 0 and index < len(listing) and listing.starts[index] < end:
        sensitive = sensitive or listing.starts[index] in listing.forms
        last = index
        index += 1
    if index < 0 or not sensitive:
        return False
    # the last of these may end the flow of control, as IRET does: then the piece is nothing else
    alone = listing.starts[last] == start
    return listing.stop(last) == end and (listing.kinds[last] in FALLS_THROUGH or alone)
